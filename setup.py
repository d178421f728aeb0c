"""Builds the Cython CPU kernels, once for each instruction-set level, and the compiled engine.

Every ``kernels/cpu/*.pyx`` is translated to C once; that C file is compiled once per level, into the
packages ``minigrad.kernels.cpu.x86_64_v2``, ``..._v3`` and ``..._v4`` (on x86-64), or ``...baseline``
(elsewhere). ``kernels/cpu/__init__.py`` chooses among them when minigrad is imported. With some of their
names in the environment variable ``MINIGRAD_LEVELS``, separated by spaces, only those are built, which is
quicker; so is another ``-O`` in ``MINIGRAD_CFLAGS``, the last flags of the compiler.

Wheels also hold files of the engine, of ops and of the launch of CUDA kernels, in compiled form, each beside
the Python that it is compiled from and that it stands in for: those in which training steps spend most. An
editable install has the Python alone.

Everything that is not about compiling stands in ``pyproject.toml``.
"""

import os
import platform
import shutil
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("kernels/cpu")
ENGINE = {
    f"minigrad.{name}": f"minigrad/{name}.py"
    for name in ("autograd", "dispatch", "grad_mode", "graph", "op", "op_definition", "op_inputs")
}
LAUNCH = {
    f"minigrad.kernels.{name}": f"kernels/{name.replace('.', '/')}.py"
    for name in (
        *("arguments", "channels_last", "launch", "packing", "cuda.backend", "cuda.batch_norm"),
        *("cuda.batch_norm_cluster", "cuda.conv2d_pipelined", "cuda.conv2d_tensor_core", "cuda.elementwise"),
        *("cuda.guard", "cuda.matmul", "cuda.matmul_skinny", "cuda.matmul_warp_tile", "cuda.memory"),
        *("cuda.optim_many", "cuda.recurrent", "cuda.reduce", "cuda.split_k", "cuda.transpose"),
        "cuda.vector",
    )
}
"""What launches run through on the host, which takes longer than many a kernel."""
OPS = {
    f"minigrad.ops.{name}": f"minigrad/ops/{name}.py"
    for name in (
        *("conv", "conv_choice_on_cards", "conv_grads", "cross_entropy", "linear", "matmul", "norm"),
        *("norm_kernels", "reduce", "shape"),
    )
}
"""The ops in which training steps on a card spend most, with the rules that choose their kernels. Each file
that is added takes seconds to compile and 0.2 MB of the wheel."""
COMPILED = ENGINE | LAUNCH | OPS

if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS = {f"x86_64_{v}": [f"-march=x86-64-{v}"] for v in ("v2", "v3", "v4")}
else:
    LEVELS = {"baseline": []}
if os.environ.get("MINIGRAD_LEVELS"):
    LEVELS = {level: LEVELS[level] for level in os.environ["MINIGRAD_LEVELS"].split()}

# -O3 without -ffast-math: NaN, infinities and denormals behave as in NumPy. The two flags that are kept
# let the compiler vectorise loops with sqrt and comparisons; they change no result.
COMPILE_FLAGS = [
    *("-std=gnu11", "-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wno-psabi", "-Wno-unused-function"),
]
LAST_FLAGS = os.environ.get("MINIGRAD_CFLAGS", "").split()
LINK_FLAGS = ["-fopenmp"]
NUMPY_API = [(name, "NPY_2_0_API_VERSION") for name in ("NPY_NO_DEPRECATED_API", "NPY_TARGET_VERSION")]

WITHOUT_LEVEL = ("cpuid", "memory", "small")
"""What exists once: cpuid chooses the level, so it must load at every one; memory belongs to the process; and
small arrays gain nothing from wider vectors."""


def kernel_extensions():
    """One Extension per (kernel file, instruction-set level), sharing one translation to C."""
    translated = cythonize(
        [Extension(f"minigrad.kernels.cpu.{path.stem}", [str(path)]) for path in sorted(CPU.glob("*.pyx"))],
        build_dir="build/cython",
        language_level=3,
        compiler_directives={
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
    headers = [str(path) for path in sorted(CPU.glob("*.h"))]
    for extension in translated:
        name, source = extension.name.rpartition(".")[2], Path(extension.sources[0])
        if name in WITHOUT_LEVEL:
            extension.include_dirs = [numpy.get_include(), str(CPU)]
            extension.define_macros = NUMPY_API
            extension.extra_compile_args = LAST_FLAGS
            extension.depends = headers
            yield extension
            continue
        for level, flags in LEVELS.items():
            # Each level gets its own copy of the C file, and so its own object file: two levels can
            # then be compiled at the same time.
            copy = Path("build/cython", level, f"{name}.c")
            copy.parent.mkdir(parents=True, exist_ok=True)
            (CPU / level).mkdir(exist_ok=True)  # where an editable build puts the result
            if not copy.exists() or copy.stat().st_mtime < source.stat().st_mtime:
                shutil.copy2(source, copy)
            yield Extension(
                f"minigrad.kernels.cpu.{level}.{name}",
                [str(copy)],
                include_dirs=[numpy.get_include(), str(CPU)],
                define_macros=NUMPY_API,
                extra_compile_args=COMPILE_FLAGS + flags + LAST_FLAGS,
                extra_link_args=LINK_FLAGS,
                depends=headers,
            )


def engine_extensions():
    """The hot part of the engine, of ops and of launches, which is plain Python; types stand in the ``.pxd``
    beside, where there is one."""
    return [
        Extension(name, [path], extra_compile_args=["-O2", "-g0", *LAST_FLAGS])
        for name, path in COMPILED.items()
    ]


class Build(build_ext):
    """``build_ext`` on all cores. In place, for development, the engine stays plain Python."""

    def finalize_options(self):
        super().finalize_options()
        if self.inplace or self.editable_mode:
            self.extensions = [e for e in self.extensions if e.name not in COMPILED]
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        """Translate the engine to C only here, where it is known that it is to be compiled."""
        engine = [e for e in self.extensions if e.name in COMPILED]
        directives = {"annotation_typing": False, "auto_pickle": False}
        translated = cythonize(
            engine, build_dir="build/cython", language_level=3, compiler_directives=directives
        )
        for extension, c in zip(engine, translated, strict=True):
            extension.sources = c.sources
        if not self.inplace and not self.editable_mode:
            for extension in self.extensions:  # no symbols: those of the CPU kernels are 2 MB
                extension.extra_link_args = [*extension.extra_link_args, "-s"]
        super().build_extensions()


setup(
    packages=[
        "minigrad",
        "minigrad.compare",
        "minigrad.compare.chapters",
        "minigrad.compare.report",
        "minigrad.cuda",
        "minigrad.data",
        "minigrad.data.transforms",
        "minigrad.distributions",
        "minigrad.io",
        "minigrad.kernels",
        "minigrad.kernels.cpu",
        "minigrad.kernels.cuda",
        "minigrad.kernels.sim",
        "minigrad.models",
        "minigrad.nn",
        "minigrad.nn.utils",
        "minigrad.ops",
        "minigrad.optim",
        "minigrad.optim.lr_scheduler",
        "minigrad.testing",
        "minigrad.utils",
    ],
    package_dir={"minigrad.kernels": "kernels"},
    exclude_package_data={"": ["*.pyc"]},
    package_data={
        "minigrad": ["py.typed", "*.pxd", "templates/file/*", "templates/package/**/*"],
        "minigrad.compare": ["recorded/*.json"],
        "minigrad.compare.report": ["*.html", "*.css"],
        "minigrad.data": ["*.npz"],
        "minigrad.kernels.cpu": ["*.h", "*.pxd"],
        "minigrad.kernels.cuda": ["*.cu", "*.cuh"],
        "minigrad.kernels.sim": ["*.h", "*.cpp"],
    },
    ext_modules=[*kernel_extensions(), *engine_extensions()],
    cmdclass={"build_ext": Build},
)
