"""The CUDA kernels that work on the rows of a matrix, against NumPy in float64."""

import itertools

import numpy as np
import pytest

from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import reduce

DTYPES = [np.float32, np.float64]
COLUMNS = [1, 31, 32, 33, 257, 1000, 2049]
SHAPES = [(3, columns) for columns in COLUMNS] + [(1, 1), (70, 5), (300, 3), (0, 4), (4, 0), (0, 0)]


@pytest.fixture(params=["sim", "cuda"])
def run(request):
    """``run(kernel, shape, dtype, *args)``: the output of ``kernel``, which starts filled with NaN."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    put, get = (np.array, np.array) if request.param == "sim" else (cuda.cupy().asarray, cuda.cupy().asnumpy)

    def run(kernel, shape, dtype, *args, fill=np.nan):
        out = put(np.full(shape, fill, dtype))
        kernel(out, *(put(a) if isinstance(a, np.ndarray) else a for a in args))
        return get(out)

    return run


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_within(actual, expected, bound):
    assert actual.shape == expected.shape
    error = np.abs(actual - expected)
    assert (error <= bound).all(), f"largest error {error.max()}"


# ---- reductions --------------------------------------------------------------------------------------------

REDUCTIONS = [reduce.naive, reduce.tree, reduce.shuffle, reduce.split]
LONG = [(1, 8192), (3, 20001), (2, 12289)]  # rows that split cuts into parts, of unequal lengths


@pytest.mark.parametrize("kernel", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LONG)
def test_sums_and_extrema(run, kernel, dtype, shape):
    x = normal(*shape, dtype=dtype)
    wide = x.astype(np.float64)
    bound = (shape[1] + 1) * np.finfo(dtype).eps * np.abs(wide).sum(1)
    assert_within(run(kernel, shape[0], dtype, x), wide.sum(1), bound)
    assert np.array_equal(run(kernel, shape[0], dtype, x, "max"), x.max(1, initial=-np.inf))
    assert np.array_equal(run(kernel, shape[0], dtype, x, "min"), x.min(1, initial=np.inf))


@pytest.mark.parametrize("kernel", REDUCTIONS)
@pytest.mark.parametrize("columns", [3, 33, 1000, 8195])
def test_reductions_with_nan_and_infinity(run, kernel, columns):
    x = np.tile(normal(columns, dtype=np.float32), (8, 1))
    x[0, 0], x[1, columns // 2], x[2, -1] = np.nan, np.nan, np.nan
    x[3, 1], x[4, 1], x[5, 0], x[5, -1] = np.inf, -np.inf, np.inf, -np.inf
    x[6], x[7] = -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        for operation, expected in (("sum", x.sum(1)), ("max", x.max(1)), ("min", x.min(1))):
            actual = run(kernel, 8, "f4", x, operation, fill=77)
            assert np.allclose(actual, expected, rtol=1e-3, atol=1e-3, equal_nan=True), operation


@pytest.mark.parametrize("kernel", REDUCTIONS)
def test_extrema_find_their_element_anywhere(run, kernel):
    """Each row has its largest and its smallest element at another column."""
    x = normal(300, 300, dtype=np.float32).clip(-1, 1)
    x[np.arange(300), np.arange(300)] = 2
    x[np.arange(300), (np.arange(300) + 1) % 300] = -2
    assert (run(kernel, 300, "f4", x, "max") == 2).all()
    assert (run(kernel, 300, "f4", x, "min") == -2).all()


def test_reductions_refuse_what_does_not_fit():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"cannot reduce the rows of \(3, 4\) to \(4,\)"):
        reduce.naive(np.empty(4, np.float32), x)
    with pytest.raises(ValueError, match="unknown operation 'mean', expected one of sum, max, min"):
        reduce.split(np.empty(3, np.float32), x, "mean")
    with pytest.raises(TypeError, match="expects an array of float32, got one of float64"):
        reduce.tree(np.empty(3, np.float32), x.astype(np.float64))


# ---- all of them -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("columns", [40, 700, 8195])
def test_every_thread_order_gives_the_same_bits(columns):
    x = normal(3, columns, dtype=np.float32)

    def results():
        found = []
        for kernel in REDUCTIONS:
            found.append(np.empty(3, np.float32))
            kernel(found[-1], x)
        return b"".join(out.tobytes() for out in found)

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
