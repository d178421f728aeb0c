"""``op.cython`` and ``kernels.cython_module``: Cython source compiled while the program runs."""

import importlib.util
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad.errors import KernelCompileError
from minigrad.kernels import cython_module
from minigrad.testing import case, check_op

if importlib.util.find_spec("Cython") is None:
    pytest.skip("Cython is not installed (extra: kernels)", allow_module_level=True)

SWISH = """
from cython cimport floating
from libc.math cimport exp

def swish(floating[::1] out, const floating[::1] x, double beta):
    '''A loop in C.

    More about it.
    '''
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = x[i] / (1 + exp(-beta * x[i]))
"""

TINY = "def answer():\n    return {}\n"


pytestmark = pytest.mark.usefixtures("forget_ops")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cython"


# ---- op.cython --------------------------------------------------------------------------------------------


def test_the_simplest_form(swish):
    assert swish.cython(SWISH) is swish
    (kernel,) = mg.list_kernels("swish")
    assert (kernel.name, kernel.summary, kernel.devices) == ("cython", "A loop in C.", ("cpu",))
    assert kernel.dtypes == (np.dtype("f4"), np.dtype("f8"))
    check_op(swish, [case((33, 17)), case((0, 3)), case((), beta=2.0)], devices=["cpu"])


def test_arguments_are_expressions(swish):
    swish.cython(SWISH, "swish", args="out.ravel(), x.ravel(), beta=beta * 1.0", name="mine", dtypes="f8")
    assert (
        mg.get_kernel("swish", "cpu", "f8") == "mine" and mg.get_kernel("swish", "cpu", "f4") == "reference"
    )
    check_op(swish, [case((5, 3))], devices=["cpu"], gradients=False)


def test_a_file_beside_the_caller_s_with_an_include(swish, tmp_path, monkeypatch, cache):
    (tmp_path / "constant.pxi").write_text("cdef double ONE = 1\n")
    source = 'include "constant.pxi"\n' + "def swish(double[:, ::1] out, double[:, ::1] x, double beta):\n"
    (tmp_path / "swish.pyx").write_text(source + "    out[0, 0] = x[0, 0] + ONE\n")
    (tmp_path / "my_cython_ops.py").write_text("def register(op):\n    op.cython('swish.pyx')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_cython_ops

    my_cython_ops.register(swish)
    assert mg.list_kernels("swish")[0].dtypes == (np.dtype("f8"),)
    assert swish(mg.ones(1, 1, dtype=mg.float64)).item() == 2
    (tmp_path / "constant.pxi").write_text("cdef double ONE = 5\n")
    assert cython_module(tmp_path / "swish.pyx").swish is not None
    assert len(list(cache.glob("swish-*.so"))) == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("no_such_file.pyx",), {}, FileNotFoundError, r"tests/no_such_file\.pyx.*relative"),
        (("hello",), {}, TypeError, r"code, or the path of a \.pyx file, got str 'hello'"),
        ((SWISH, "swosh"), {}, ValueError, r"no function `def swosh\(...\)`; it has: swish"),
        ((SWISH,), {"args": "out, x, gamma"}, ValueError, "'beta', `gamma`, uses 'gamma'"),
        ((SWISH,), {"args": "out, x, beta, 1"}, ValueError, "4 expressions for 3 parameters"),
        ((SWISH.replace("double beta", "double slope"),), {}, ValueError, "nothing is called 'slope'"),
        ((SWISH.replace("double beta", "*more"),), {}, ValueError, r"cannot read the parameter `\*more`"),
        ((SWISH,), {"layout": "nchw"}, ValueError, "'nchw'"),
    ],
)
def test_wrong_registrations(swish, arguments, options, error, words):
    with pytest.raises(error, match=words) as found:
        swish.cython(*arguments, **options)
    assert "op 'swish'" in str(found.value)
    assert mg.list_kernels("swish") == []


def test_a_compile_error_tells_the_line_of_this_file(swish, cache):
    code = """
    def swish(float[::1] out, float[::1] x, double beta):
        out[0] = no_such_thing  # the line
    """
    swish.cython(code)
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if "no_such_thing  # the line" in line)
    for _ in range(2):  # what failed is not kept
        with pytest.raises(
            KernelCompileError, match=rf"test_op_cython\.py:{number}:13: undeclared name"
        ) as found:
            swish(mg.ones(4))
        assert str(found.value).startswith("op 'swish', kernel 'cython'")
    assert not list(cache.glob("swish*"))


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (np.broadcast_to(np.float32(1), (1,)), {}, "read-only: declare the arrays.*`const float"),
        (np.ones((2, 2), np.float32), {"args": "out[0], x[0, 0], beta"}, "[Bb]uffer"),
        (np.ones(2, np.float32), {"args": "out, x[3], beta"}, r"`x\[3\]`, cannot be computed: IndexError"),
        (np.ones(2, np.float32), {"args": "out, x, beta='two'"}, "must be real number"),
    ],
)
def test_wrong_calls(swish, x, options, words):
    code = """
def swish(float[::1] out, float[::1] x, double beta):
    out[0] = x[0]
"""
    swish.cython(code, **options)
    with pytest.raises((TypeError, ValueError), match=words) as found:
        swish(mg.from_numpy(x))
    assert str(found.value).startswith("op 'swish', kernel 'cython'")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            (np.ones((2, 3), "f4"), 2.0),
            r'`const float\[::1\] b` expects an array, got float 2.0: layout="broadcast"',
        ),
        (
            (np.ones((2, 3), "f4"), np.ones(3, "i8")),
            r"`const float\[::1\] b` expects an array of float32, got one of int64",
        ),
        (
            (np.ones(3, "f4"), np.ones(3, "f4")),
            r"`float\[:, ::1\] out` expects.* 2 dimensions, got one of shape \(3,\)",
        ),
    ],
)
def test_the_array_that_does_not_fit_is_named(inputs, words):
    added = mg.op(lambda xp, a, b: a + b, name="added")
    added.cython(
        "def added(float[:, ::1] out, const float[:, ::1] a, const float[::1] b):\n    out[0, 0] = a[0, 0]\n"
    )
    with pytest.raises((TypeError, ValueError), match=f"op 'added', kernel 'cython': the parameter {words}"):
        added.kernels.kernels[0].run(np.ones(inputs[0].shape, "f4"), *inputs)


def test_an_error_at_run_time_tells_the_line_of_this_file(swish):
    code = """
    def swish(float[::1] out, float[::1] x, double beta):
        out[x.shape[0]] = 1  # out of bounds
    """
    swish.cython(code, directives={"boundscheck": True})
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if "= 1  # out of bounds" in line)
    with pytest.raises(
        IndexError, match=rf"op 'swish', kernel 'cython': Out of.*\(test_op_cython\.py:{number}\)"
    ):
        swish(mg.ones(4))


# ---- kernels.cython_module --------------------------------------------------------------------------------


def test_a_module_is_compiled_once(cache):
    module = cython_module(TINY.format(42), name="tiny")
    assert module.answer() == 42 and cython_module(TINY.format(42), name="tiny") is module
    (library,) = cache.iterdir()
    stamp = library.stat().st_mtime_ns
    call = f"cython_module({TINY.format(42)!r}, name='tiny').answer()"
    code = f"from minigrad.kernels import cython_module; print({call})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "42"
    assert [p.stat().st_mtime_ns for p in cache.iterdir()] == [stamp]
    assert cython_module(TINY.format(42), name="tiny", flags=["-fno-tree-vectorize"]) is not module


def test_processes_and_threads_that_compile_at_once(cache):
    code = f"from minigrad.kernels import cython_module as m; print(m({TINY.format(7)!r}).answer())"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cython_module(TINY.format(7)).answer()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.communicate()[0].strip() for p in processes] == [b"7", b"7"] and found == [7, 7]
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_damaged_library_is_compiled_again(cache):
    code = f"from minigrad.kernels import cython_module as m; print(m({TINY.format(8)!r}).answer())"
    cache.mkdir(parents=True)
    subprocess.check_call([sys.executable, "-c", code])
    (library,) = cache.iterdir()
    library.write_bytes(b"no library")
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "8"


def test_directives_of_the_caller_and_of_the_source():
    code = "def at(list x, Py_ssize_t i):\n    return x[i]\n"
    x = [0, 1, 2]
    with pytest.raises(IndexError):
        cython_module(code, directives={"boundscheck": True}).at(x, 3)
    assert cython_module("# cython: wraparound=True\n" + code).at(x, -1) == 2


def test_openmp_and_numpy():
    code = """
cimport numpy as cnp
from cython.parallel cimport prange

def total(cnp.ndarray[double] x, int threads):
    cdef double sum = 0
    cdef Py_ssize_t i
    cdef double[::1] values = x
    for i in prange(x.shape[0], nogil=True, num_threads=threads):
        sum += values[i]
    return sum
"""
    module = cython_module(code)
    assert [module.total(np.arange(10.0), threads) for threads in (1, 2, 3)] == [45, 45, 45]


def test_a_c_error_tells_the_line_of_the_source(cache):
    code = "cdef extern from *:\n    double sin(char x, int y)\ndef f(x):\n    return sin(3, x)\n"
    with pytest.raises(KernelCompileError, match=r"f\.pyx does not compile(.|\n)*f\.pyx:4"):
        cython_module(code, name="f")
    code = 'cdef extern from *:\n    """\n    int f = no_such;\n    """\n'
    with pytest.raises(KernelCompileError, match=r"^g\.pyx does not(.|\n)*g\.pyx:3:.*no_such"):
        cython_module(code, name="g")
    with pytest.raises(KernelCompileError, match=r"h\.pyx:2:.*no_such\.h"):
        cython_module('\ncdef extern from "no_such.h":\n    int f\n', name="h")
    with pytest.raises(KernelCompileError, match="no-such-flag"):
        cython_module(TINY.format(1), flags=["-fno-such-flag"])
    with pytest.raises(ValueError, match="-ffast-math"):
        cython_module(TINY.format(1), flags=["-ffast-math"])
    assert not list(cache.iterdir())


def test_what_is_missing_is_named(monkeypatch, cache):
    monkeypatch.setattr("minigrad.kernels.cython_source.shutil.which", lambda _: None)
    with pytest.raises(KernelCompileError, match=r"C compiler.*install gcc.*CC"):
        cython_module(TINY.format(2))
    monkeypatch.setattr("minigrad.kernels.cython_source.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"minigrad\[kernels\]"):
        cython_module(TINY.format(2))


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        KernelCompileError, match=r"Cython cannot write to its cache .*file.*set MINIGRAD_CACHE"
    ):
        cython_module(TINY.format(3))
    if os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "locked"))
        with pytest.raises(KernelCompileError, match="set MINIGRAD_CACHE"):
            cython_module(TINY.format(3))
