"""Compiles Cython source while the program runs, and keeps the result: :func:`cython_module`.

A module is compiled once for each source, set of flags, Cython, Python, NumPy and compiler, and found in the
cache from then on, by any process. It is compiled under another name and then renamed, so that processes
that compile the same source at once do not disturb each other. What does not compile leaves nothing behind.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
from collections.abc import Mapping, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import cpu
from .cache import cache_directory, new_file
from .errors import KernelCompileError

__all__ = ["cython_module"]

INSTALL = 'pip install "minigrad[kernels]"'

# As minigrad's own kernels are compiled (setup.py): without -ffast-math, which would change how NaN and
# denormals behave, in all other code too.
FLAGS = (
    *("-std=gnu11", "-g0", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wno-psabi", "-Wno-unused-function"),
    *("-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION", "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION"),
)
UNSAFE_FLAGS = ("-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-mdaz-ftz")

DIRECTIVES = {"boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False}
"""Cython's directives, unless the caller or a ``# cython:`` line at the head of the source sets others."""

_modules: dict[str, ModuleType] = {}
_compiling = threading.RLock()


def cython_module(
    source: str | Path,
    *,
    name: str = "kernel",
    flags: Sequence[str] = (),
    directives: Mapping[str, Any] | None = None,
) -> ModuleType:
    """The module that ``source`` compiles to, from the cache or newly compiled (which takes seconds).

    OpenMP is there (``from cython.parallel import prange``), and so are NumPy (``cimport numpy``) and the
    headers of minigrad's own kernels (``from arrays cimport gemm``: a matrix product, vectors; arrays.h). The
    instruction set is that of minigrad's own kernels, the best that this processor has. The directives are
    those for speed: ``boundscheck``, ``wraparound`` and ``initializedcheck`` off, ``cdivision`` on. An index
    out of range is then not found: ``directives={"boundscheck": True}`` finds it.

    Args:
        source: Cython code, or the path of a ``.pyx`` file, where ``cimport`` and ``include`` look too.
        name: for people: what the module, and the file in error messages, is called; a file has its own.
        flags: more flags for the C compiler, such as ``"-march=native"``.
        directives: Cython's compiler directives.

    Raises:
        ImportError: Cython is not installed.
        KernelCompileError: the source does not compile (the message holds the compiler's own lines), there is
            no compiler, or the cache cannot be written to.
        ValueError: a flag changes the arithmetic of the whole process.
    """
    folder = source.parent if isinstance(source, Path) else None
    text = textwrap.dedent(source.read_text() if isinstance(source, Path) else source)
    name = re.sub(r"\W", "_", source.stem if isinstance(source, Path) else name)
    flags = (flags,) if isinstance(flags, str) else tuple(flags)
    for flag in flags:
        if flag in UNSAFE_FLAGS:
            raise ValueError(f"cython_module: the flag {flag} changes the arithmetic of the whole process")
    if importlib.util.find_spec("Cython") is None:
        raise ImportError(f"kernels from Cython source need Cython; install it with {INSTALL}")
    chosen = {**DIRECTIVES, **_directives_in(text), **(directives or {})}
    options = [word for item in chosen.items() for word in ("-X", "=".join(map(str, item)))]
    return _module(_Code(name, text, folder, options, [*FLAGS, "-O3", *_level_flags(), *flags]))


class _Code(NamedTuple):
    """What makes a module: its name, its source, where that includes from, and the compilers' options."""

    name: str
    text: str
    folder: Path | None
    options: list[str]
    flags: list[str]


HEADERS = Path(cpu.__file__).parent
"""Where the headers of minigrad's own kernels are, for any source to include: ``arrays.h``, ``gemm.h``."""

INCLUDES_HEADERS = re.compile(r'\.h"|^\s*(from\s+arrays\s+cimport|cimport\s+arrays)\b', re.M)

SHARED = _Code("cython_memoryview", "", None, [], [*FLAGS, "-O1"])
"""What Cython adds to each module that has memoryviews, some 30,000 lines of C: compiled once for all."""


def _module(code: _Code) -> ModuleType:
    command = _compiler()
    beside = _beside(code.folder) + (_beside(HEADERS) if INCLUDES_HEADERS.search(code.text) else "")
    key = "\0".join((code.text, beside, *code.options, *code.flags, *_versions(command)))
    key = hashlib.sha256(key.encode()).hexdigest()[:24]
    with _compiling:
        module = _modules.get(key)
        if module is None:
            if re.search(r"\[[^\]\n]*:[^\]\n]*\]", code.text):
                code = code._replace(options=[*code.options, f"--shared={_module(SHARED).__name__}"])
            library = cache_directory("cython") / f"{code.name}-{key}.so"
            module_name = f"{code.name}_{key}"
            if not library.exists():
                _build(code, module_name, library, command)
            try:
                module = _load(module_name, library)
            except ImportError:  # damaged by something else: build it once more
                _build(code, module_name, library, command)
                module = _load(module_name, library)
            _modules[key] = module
    return module


def _build(code: _Code, module_name: str, library: Path, command: str) -> None:
    """Compile ``code`` into the file ``library``."""
    with new_file(library, "Cython") as target, tempfile.TemporaryDirectory(prefix="minigrad-") as scratch:
        beside = [f"-I{code.folder}"] if code.folder is not None else []
        c = str(Path(scratch, f"{code.name}.c"))
        what = ["--generate-shared", c]
        if code is not SHARED:
            pyx = Path(scratch, f"{code.name}.pyx")
            pyx.write_text(code.text)
            what = ["--line-directives", *beside, f"-I{HEADERS}", *code.options, "-o", c, str(pyx)]
        _run([sys.executable, "-m", "cython", "-3", "--module-name", module_name, *what], code, scratch)
        includes = [f"-I{sysconfig.get_path('include')}", f"-I{np.get_include()}", *beside, f"-I{HEADERS}"]
        _run([*shlex.split(command), c, *includes, *code.flags, "-o", target, "-lm"], code, scratch)


def _run(command: Sequence[str], code: _Code, scratch: str) -> None:
    """Run a compiler; KernelCompileError holds what it says, with the source's own name."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment)
    if done.returncode == 0:
        return
    said = (done.stderr.strip() or done.stdout.strip()).replace(
        f"{scratch}/", f"{code.folder}/" if code.folder else ""
    )
    said = _in_source_lines(said, code, Path(scratch, f"{code.name}.c"))
    advice = ""
    if "Python.h: No such file" in said:
        advice = "\nPython's headers are missing: install them (Debian, Ubuntu: apt install python3-dev)"
    raise KernelCompileError(f"{code.name}.pyx does not compile:\n{said}{advice}")


def _in_source_lines(said: str, code: _Code, c: Path) -> str:
    """``said`` with lines of the C code that came from the source as they are told as lines of the source.

    These are the C code in an ``extern`` block, and the headers; Cython itself tells all other lines so.
    """
    said = re.sub(r"^ *\d+ \|", "      |", said, flags=re.M)  # the numbers beside excerpts
    c_lines = c.read_text().splitlines() if c.exists() else []
    own = [line.strip() for line in code.text.splitlines()]

    def place(found: re.Match) -> str:
        line = c_lines[int(found["line"]) - 1].strip()
        header = re.fullmatch(r"#include\s*(?P<name>[\"<].+[\">])", line)
        at = [n for n, text in enumerate(own, 1) if text == line or (header and header["name"] in text)]
        return f"{code.name}.pyx:{at[0]}" if len(at) == 1 else found[0]

    name = re.escape(f"{code.name}.c")
    said = re.sub(rf"(?<!\w){name}:(?P<line>\d+)", place, said)
    return (
        said
        if re.search(rf"{name}:\d", said)
        else re.sub(rf"^{name}:", f"{code.name}.pyx:", said, flags=re.M)
    )


def _load(name: str, library: Path) -> ModuleType:
    loader = ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    return module


def _directives_in(text: str) -> dict[str, str]:
    """The directives of the ``# cython: boundscheck=True`` lines at the head of a source."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        match = re.match(r"\s*#\s*cython\s*:(.*)", line)
        for setting in match[1].split(",") if match else ():
            name, _, value = setting.partition("=")
            found[name.strip()] = value.strip()
    return found


def _beside(folder: Path | None) -> str:
    """What a file may include or cimport from its own folder."""
    if folder is None:
        return ""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".pxd", ".pxi", ".h"))
    return "\0".join(f"{path.name}\0{path.read_text()}" for path in paths)


def _level_flags() -> tuple[str, ...]:
    """The flag for the instruction-set level of minigrad's own kernels, ``x86_64_v3`` say."""
    return () if cpu.isa == "baseline" else (f"-march={cpu.isa.replace('_', '-')}",)


def _compiler() -> str:
    """The C compiler: the command in ``$CC``, or else gcc, cc or clang."""
    for command in (os.environ.get("CC"), "gcc", "cc", "clang"):
        if command and shutil.which(shlex.split(command)[0]):
            return command
    raise KernelCompileError(
        "kernels from Cython source need a C compiler, and there is none: install gcc (Debian, Ubuntu: apt "
        "install gcc) or clang, or set CC"
    )


@functools.cache
def _versions(command: str) -> tuple[str, ...]:
    """What else a compiled module depends on."""
    from importlib.metadata import version

    compiler = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True).stdout
    return version("cython"), np.__version__, str(sysconfig.get_config_var("EXT_SUFFIX")), compiler
