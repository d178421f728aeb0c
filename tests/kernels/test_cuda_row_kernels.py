"""The CUDA kernels that work on the rows of a matrix, against NumPy in float64."""

import itertools

import numpy as np
import pytest
from simulated import normal

from minigrad.kernels import sim
from minigrad.kernels.cuda import cumsum, reduce, softmax

DTYPES = [np.float32, np.float64]
COLUMNS = [1, 31, 32, 33, 257, 1000, 2049]
SHAPES = [(3, columns) for columns in COLUMNS] + [(37, 128), (9, 256), (9, 512)]
SHAPES += [(1, 1), (70, 5), (300, 3), (0, 4), (4, 0), (0, 0)]


def assert_within(actual, expected, bound):
    assert actual.shape == expected.shape
    error = np.abs(actual - expected)
    assert (error <= bound).all(), f"largest error {error.max()}"


# ---- reductions --------------------------------------------------------------------------------------------

REDUCTIONS = [reduce.naive, reduce.tree, reduce.shuffle, reduce.vectorized, reduce.split]
LONG = [(1, 24576), (3, 20001), (2, 16385)]  # rows that split cuts into parts, of unequal lengths


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


# (outer, rows, columns): one part and several, of strips of vectors and of single columns.
MATRICES = [(1, 7, 5), (3, 70, 33), (1, 3000, 3), (2, 1100, 260), (2, 0, 4), (0, 3, 4), (2, 3, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES)
def test_sums_and_extrema_of_columns(run, dtype, shape):
    x = normal(*shape, dtype=dtype)
    wide, out = x.astype(np.float64), (shape[0], shape[2])
    bound = (shape[1] + 1) * np.finfo(dtype).eps * np.abs(wide).sum(1)
    assert_within(run(reduce.columns, out, dtype, x), wide.sum(1), bound)
    assert np.array_equal(run(reduce.columns, out, dtype, x, "max"), x.max(1, initial=-np.inf))
    assert np.array_equal(run(reduce.columns, out, dtype, x, "min"), x.min(1, initial=np.inf))


@pytest.mark.parametrize("dim", [(0,), (1,), (3,), (0, 2), (1, 3), (0, 2, 3), (0, 1, 2), (0, 1, 3)])
def test_sums_over_any_axes(run, dim):
    x = normal(5, 3, 4, 7, dtype=np.float32)
    expected, bound = x.astype(np.float64).sum(dim), 1e-5 * np.abs(x).sum(dim)
    assert_within(run(reduce.axes, expected.shape, "f4", x, dim), expected, bound)
    assert np.array_equal(run(reduce.axes, expected.shape, "f4", x, dim, "max"), x.max(dim))


def test_columns_keep_nan_to_themselves(run):
    x = normal(1, 300, 6, dtype=np.float32)
    x[0, 0, 1], x[0, 150, 2], x[0, 299, 5] = np.nan, np.nan, np.nan
    for operation in ("sum", "max", "min"):
        found = run(reduce.columns, (1, 6), "f4", x, operation, fill=77)[0]
        assert np.isnan(found).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize("kernel", [reduce.vectorized, reduce.split])
@pytest.mark.parametrize("columns", [1000, 20480])
def test_sums_have_the_same_bits_wherever_they_start(run, kernel, columns):
    """Where vectors may not start, single elements are added in the same order."""
    flat = normal(3 * columns + 1, dtype=np.float32)
    x = flat[:-1].reshape(3, columns)
    shifted = np.concatenate([flat[:1], flat[:-1]])

    def moved(out, x):
        kernel(out, x[1:].reshape(3, columns))

    assert np.array_equal(run(kernel, 3, "f4", x), run(moved, 3, "f4", shifted))


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
    with pytest.raises(ValueError, match=r"cannot reduce the columns of \(3, 4\) to \(4,\)"):
        reduce.columns(np.empty(4, np.float32), x)


# ---- sums up to each element -------------------------------------------------------------------------------

# Of a lane or a few, of a warp and of a block; in vectors and not; of several tiles. (outer, length, inner)
SEQUENCES = [(3, 1, 1), (9, 5, 1), (70, 16, 1), (5, 100, 1), (3, 512, 1), (2, 1031, 1), (2, 20008, 1)]
SEQUENCES += [(0, 4, 1), (4, 0, 1), (2, 9, 5), (1, 35, 300), (0, 3, 2)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SEQUENCES)
def test_sums_up_to_each_element(run, shape, dtype, reverse):
    x = normal(*shape, dtype=dtype)
    order = np.s_[:, ::-1] if reverse else np.s_[:]
    expected = x.astype(np.float64)[order].cumsum(1)[order]
    bound = (shape[1] + 1) * np.finfo(dtype).eps * np.abs(x).astype(np.float64).sum(1, keepdims=True)
    assert_within(run(cumsum.cumsum, shape, dtype, x, 1, reverse), expected, bound)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(4, 30, 1), (4, 9001, 1), (4, 30, 3)])
def test_sums_are_nan_and_infinite_from_where_an_element_is(run, shape, reverse):
    x = np.ones(shape, np.float32)
    x[0, 3], x[1, 20], x[2, 5], x[2, -7] = np.nan, np.inf, np.inf, -np.inf
    order = np.s_[:, ::-1] if reverse else np.s_[:]
    with np.errstate(invalid="ignore"):
        expected = x[order].cumsum(1)[order]
    np.testing.assert_array_equal(run(cumsum.cumsum, shape, "f4", x, 1, reverse, fill=77), expected)


# ---- softmax -----------------------------------------------------------------------------------------------

RUNGS = ["naive", "warp", "vectorized", "registers"]


def log_softmax(x):
    x = x.astype(np.float64)
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, initial=0.0 if x.size else 1.0))


def both(rung, of="softmax"):
    """The kernels of a rung for softmax and for log-softmax."""
    return getattr(softmax, f"{of}_{rung}"), getattr(softmax, f"log_{of}_{rung}")


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_its_logarithm(run, rung, dtype, shape):
    x = 5 * normal(*shape, dtype=dtype)
    out, log_out = (run(kernel, shape, dtype, x) for kernel in both(rung))
    logs = log_softmax(x)
    # x - m is rounded, which exp turns into a relative error; so does each addition of the sum.
    spread = np.ptp(x, axis=1, keepdims=True) if shape[1] else 0
    relative = (8 + 2 * spread + shape[1]) * np.finfo(dtype).eps
    assert_within(out, np.exp(logs), relative * np.exp(logs))
    assert_within(log_out, logs, relative + np.finfo(dtype).eps * np.abs(logs))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_softmax_of_rising_and_falling_rows(run, rung, order):
    """In a rising row every element is the largest so far, which the online normaliser must follow."""
    x = np.linspace(-300, 300, 2 * 1100).reshape(2, 1100)[:, order].copy()
    out, log_out = (run(kernel, x.shape, "f8", x) for kernel in both(rung))
    np.testing.assert_allclose(out, np.exp(log_softmax(x)), rtol=1e-12)
    np.testing.assert_allclose(log_out, log_softmax(x), rtol=1e-12)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [5, 40, 1100])
def test_softmax_of_special_values(run, rung, dtype, columns):
    largest = np.finfo(dtype).max
    x = np.zeros((8, columns), dtype)
    x[0, :-2] = -np.inf
    x[1, 2], x[2, 3], x[3] = np.nan, np.inf, -np.inf
    x[4] = np.linspace(0, 1, columns) * largest
    x[5] = -largest
    x[6, :-1], x[6, -1] = -np.inf, -largest
    x[7], x[7, -1] = -np.inf, np.nan
    out, log_out = (run(kernel, x.shape, dtype, x, fill=77) for kernel in both(rung))
    tolerance = 2 * columns * np.finfo(dtype).eps
    assert not out[0, :-2].any() and (log_out[0, :-2] == -np.inf).all()
    np.testing.assert_allclose(out[0, -2:], 0.5, rtol=tolerance)
    assert np.isnan(out[[1, 2, 3, 7]]).all() and np.isnan(log_out[[1, 2, 3, 7]]).all()
    np.testing.assert_array_equal(out[4], np.eye(columns)[-1])
    assert log_out[4, -1] == 0 and np.isfinite(log_out[4]).all()
    np.testing.assert_allclose(out[5], 1 / columns, rtol=tolerance)
    np.testing.assert_allclose(log_out[5], -np.log(columns), rtol=tolerance)
    np.testing.assert_array_equal(out[6], np.eye(columns)[-1])
    assert log_out[6, -1] == 0 and (log_out[6, :-1] == -np.inf).all()


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_gradients(run, rung, dtype, shape):
    logs, grad = log_softmax(normal(*shape)).astype(dtype), normal(*shape, dtype=dtype, seed=1)
    y = np.exp(logs)
    kernel, log_kernel = both(rung, "softmax_grad")
    out, log_out = run(kernel, shape, dtype, grad, y), run(log_kernel, shape, dtype, grad, logs)
    g, p, exp_logs = grad.astype(np.float64), y.astype(np.float64), np.exp(logs.astype(np.float64))
    # Sums of n terms: n roundings of their magnitudes.
    size = np.abs(g).sum(axis=1, keepdims=True)
    tolerance = (4 + shape[1]) * np.finfo(dtype).eps * (size + np.abs(g))
    assert_within(out, p * (g - (g * p).sum(axis=1, keepdims=True)), tolerance)
    assert_within(log_out, g - exp_logs * g.sum(axis=1, keepdims=True), tolerance)


@pytest.mark.parametrize("rung", RUNGS)
def test_softmax_gradients_keep_nan_in_its_row(run, rung):
    grad = np.ones((3, 70), np.float32)
    grad[1, 69] = np.nan
    for kernel in both(rung, "softmax_grad"):
        out = run(kernel, grad.shape, "f4", grad, np.full_like(grad, 0.25), fill=77)
        assert np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_softmax_refuses_what_does_not_fit():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"arrays of one shape, got \(4, 3\), \(3, 4\)"):
        softmax.softmax_warp(np.empty((4, 3), np.float32), x)
    with pytest.raises(ValueError, match=r"arrays of one shape, got \(3, 4\), \(12,\)"):
        softmax.log_softmax_registers(x.copy(), x.ravel())
    with pytest.raises(TypeError, match="expects an array of float32, got one of float64"):
        softmax.softmax_grad_naive(x.copy(), x, x.astype(np.float64))


# ---- all of them -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("columns", [40, 700, 8195])
def test_every_thread_order_gives_the_same_bits(columns):
    x, y = normal(3, columns, dtype=np.float32), normal(3, columns, dtype=np.float32, seed=1)

    def results():
        found = []
        for rung in RUNGS:
            for kernel in both(rung):
                found.append(np.empty_like(x))
                kernel(found[-1], x)
            for kernel in both(rung, "softmax_grad"):
                found.append(np.empty_like(x))
                kernel(found[-1], x, y)
        for kernel in REDUCTIONS:
            found.append(np.empty(3, np.float32))
            kernel(found[-1], x)
        for reverse in (False, True):
            found.append(np.empty_like(x))
            cumsum.cumsum(found[-1], x, 1, reverse)
        found.append(np.empty((1, 3), np.float32))
        reduce.columns(found[-1], x.reshape(1, columns, 3))
        return b"".join(out.tobytes() for out in found)

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
