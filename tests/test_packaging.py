"""The wheel and the sdist: built from this checkout, installed elsewhere, used from outside of it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from minigrad.kernels.cache import cache_directory

ROOT = Path(__file__).parents[1]

USE = """
import sys, time
start = time.perf_counter()
import minigrad as mg
from minigrad.data import Digits
import minigrad.kernels.cpu as cpu
from pathlib import Path

where = Path(mg.__file__).resolve()
assert where.is_relative_to(sys.prefix), where
assert mg.__version__ == {version!r}
assert {{k.name for k in mg.kernels.list("matmul", "cpu")}} >= {{"naive", "tiled", "packed", "threaded"}}
a, b = mg.randn(70, 50, requires_grad=True), mg.randn(50, 30)
(a @ b).sum().backward()
assert a.grad.shape == (70, 50)
assert len(Digits(train=True)) == 1437
assert (where.parent / "py.typed").is_file()
for module in ("minigrad.op", "minigrad.kernels.launch", "minigrad.ops.norm"):
    assert sys.modules[module].__file__.endswith(".so"), f"{{module}} is not compiled"
kernels = Path(mg.kernels.__file__).parent
assert (kernels / "cuda" / "matmul.cu").is_file() and (kernels / "sim" / "cuda_sim.h").is_file()
try:
    x = mg.randn(5, 4, device="sim")
except mg.errors.DeviceError as error:
    print("no simulator:", error)
else:
    y = x.cpu() @ x.cpu().T
    assert abs((x @ x.T).cpu() - y).max().item() < 1e-5
print("used", where, cpu.isa, cpu.available_levels())
"""


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


TYPES = sorted([*ROOT.glob("minigrad/*.pxd"), *ROOT.glob("kernels/*.pxd")])


@pytest.mark.parametrize("types", TYPES, ids=lambda path: path.stem)
def test_compiled_functions_hold_no_closures(types):
    """Cython compiles no functions, lambdas or generators within a ``cpdef`` one: only wheels would tell."""
    compiled = set(re.findall(r"cpdef[\w ]*? (\w+)\(", types.read_text()))
    inner = ast.FunctionDef, ast.Lambda, ast.GeneratorExp
    for function in ast.walk(ast.parse(types.with_suffix(".py").read_text())):
        if isinstance(function, ast.FunctionDef) and function.name in compiled:
            lines = [node.lineno for node in ast.walk(function) if isinstance(node, inner)][1:]
            assert not lines, f"{types.stem}.py: {function.name}, lines {lines}"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built in an isolated environment as a release would be."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist):
    """The wheel, built from the sdist: so the sdist holds all that a build needs.

    To compile the kernels takes minutes. Those of one level, not optimized, show whether that works; those of
    the others are put where they would be built, and are this checkout's own.
    """
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    source = sdist.with_name(sdist.name.removesuffix(".tar.gz"))
    build = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for library in ROOT.glob("kernels/cpu/x86_64_v[34]/*.so"):
        copy = build / "minigrad" / library.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, copy)
        os.utime(copy, (time.time() + 3600,) * 2)  # newer than the source
    command = sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", sdist.parent, source
    run(*command, env=os.environ | {"MINIGRAD_CFLAGS": "-O0"})
    return next(sdist.parent.glob("*.whl"))


def test_sdist_holds_sources_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("kernels/cpu/matmul.pyx", "kernels/cpu/gemm.h", "kernels/cuda/conv2d.cu", "LICENSE"):
        assert wanted in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_holds_every_level_and_what_runs_the_simulator(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for file in (ROOT / "kernels").rglob("*"):
        if file.suffix in (".cu", ".cuh") or (file.parent.name == "sim" and file.suffix in (".h", ".cpp")):
            assert f"minigrad/kernels/{file.relative_to(ROOT / 'kernels')}" in names
    for file in (*(ROOT / "minigrad").rglob("*.py"), *(ROOT / "minigrad/templates").rglob("*.*")):
        assert "__pycache__" in file.parts or str(file.relative_to(ROOT)) in names
    if os.uname().machine == "x86_64":
        for level in ("x86_64_v2", "x86_64_v3", "x86_64_v4"):
            assert any(name.startswith(f"minigrad/kernels/cpu/{level}/matmul") for name in names)
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs commands of a new virtual environment that has the wheel, outside the checkout."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", home / "venv")
    run(home / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
    base = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MINIGRAD"))}
    base["MINIGRAD_CACHE"] = str(home / "cache")

    def call(command, *arguments, **environment):
        return run(home / "venv/bin" / command, *arguments, cwd=home, env={**base, **environment})

    return call


def test_wheel_works_outside_the_checkout(wheel, installed):
    assert "used" in installed("python", "-c", USE.format(version=wheel.name.split("-")[1]))
    assert "minigrad" in installed("minigrad", "--version")
    assert "matmul" in installed("python", "-m", "minigrad", "info")
    assert "pyproject.toml" in installed("minigrad", "new-kernel", "soft_length", "--package")


def test_what_is_compiled_passes_its_tests(installed):
    names = (
        *("autograd", "graph_memory", "in_place", "op_api", "op_options", "dispatch", "tensor", "promotion"),
        *("ops_matmul", "ops_norm", "ops_pool", "ops_shape"),
    )
    files = [ROOT / f"tests/test_{name}.py" for name in names] + [ROOT / "tests/kernels/test_launch.py"]
    # pytest comes from this environment; minigrad cannot, for an editable install is no folder in there.
    site = sysconfig.get_path("purelib")
    environment = {
        "PYTHONPATH": site,
        "MINIGRAD_CACHE": str(cache_directory("sim").parent),  # the same kernels, compiled once
    }
    printed = installed("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, **environment)
    assert " passed" in printed


def test_a_source_tree_that_was_not_installed_says_what_to_do(installed):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import minigrad"
    with pytest.raises(AssertionError, match="install it first: python -m pip install -e"):
        installed("python", "-c", code)
