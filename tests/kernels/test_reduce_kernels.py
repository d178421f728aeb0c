"""Reduction kernels against NumPy's in wider types, over every group of axes that they take."""

import itertools
import math

import numpy as np
import pytest

# Rows shorter than a vector, than a strip (8 to 64 columns), of several blocks of 16 strips, of several
# chunks of 32768 elements; the same for columns.
SHAPES = [
    *((1,), (5,), (16,), (17,), (100,), (129,), (1000,), (32_768,), (70_001,)),
    *((3, 5), (1000, 10), (10, 1000), (300, 301), (2000, 16), (70, 1030), (3, 40_000)),
    *((5, 7, 9), (32, 20, 49), (4, 1000, 70), (1, 33, 70), (2, 3, 4, 5), (3, 17, 2, 40)),
]


@pytest.fixture
def reduce(kernel_module):
    return kernel_module("reduce")


def groups(reduce, x):
    """All the axes that the kernels reduce over."""
    for count in range(1, x.ndim + 1):
        for axes in itertools.combinations(range(x.ndim), count):
            if reduce.fits(x, axes):
                yield axes


def additions(n, groups):
    """The most additions that one of n elements passes, in one group of axes or in two: see reduce.h."""
    return 9 + math.log2(n) + (8 if groups > 1 else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_as_accurate_as_derived(reduce, dtype, shape):
    x = (np.random.default_rng(1).standard_normal(shape) + 0.5).astype(dtype)
    exact = x.astype(np.longdouble)
    for axes in groups(reduce, x):
        expected = exact.sum(axes)
        out = np.full(expected.shape, 77, dtype)
        n = x.size // out.size
        for run, terms in ((reduce.sum, exact), (reduce.sum_of_squares, exact * exact)):
            run(out, x, axes, 1)
            # one rounding more, of a square
            bound = (additions(n, len(axes)) + 1) * np.finfo(dtype).eps / 2 * np.abs(terms).sum(axes)
            assert (np.abs(out - terms.sum(axes)) <= bound).all(), axes


@pytest.mark.parametrize("shape", SHAPES)
def test_extrema_are_exact_and_products_close(reduce, dtype, shape):
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    for axes in groups(reduce, x):
        out = np.full(x.max(axes).shape, 77, dtype)
        reduce.max(out, x, axes, 2)
        np.testing.assert_array_equal(out, x.max(axes))
        reduce.min(out, x, axes, 2)
        np.testing.assert_array_equal(out, x.min(axes))
        n = x.size // out.size
        factors = np.exp(x / math.sqrt(n)).astype(dtype)
        reduce.prod(out, factors, axes, 2)
        # n - 1 roundings, whatever their order
        np.testing.assert_allclose(
            out, factors.astype(np.longdouble).prod(axes), rtol=n * np.finfo(dtype).eps
        )


@pytest.mark.parametrize("name", ["sum", "sum_of_squares", "prod", "max", "min"])
@pytest.mark.parametrize("shape", [(200_003,), (40, 5000), (5000, 40), (1003, 97), (8, 30, 900)])
def test_the_thread_count_changes_no_bit(reduce, dtype, name, shape):
    x = (1 + 1e-3 * np.random.default_rng(3).standard_normal(shape)).astype(dtype)
    for axes in groups(reduce, x):
        results = []
        for threads in (1, 2, 3, 3):
            out = np.full(np.sum(x, axes).shape, 77, dtype)
            getattr(reduce, name)(out, x, axes, threads)
            results.append(out.tobytes())
        assert len(set(results)) == 1, axes


@pytest.mark.parametrize("name", ["max", "min", "sum", "prod"])
@pytest.mark.parametrize("shape", [(3,), (1000,), (70_001,), (9, 300), (300, 9)])
def test_nan_and_infinity(reduce, dtype, name, shape):
    numpy = getattr(np, name)
    rng = np.random.default_rng(4)
    for special in ([np.nan], [np.inf], [-np.inf], [np.inf, np.nan], [np.inf, -np.inf]):
        x = rng.uniform(0.9, 1.1, shape).astype(dtype)
        x.reshape(-1)[rng.permutation(x.size)[: len(special)]] = special
        for axes in groups(reduce, x):
            with np.errstate(all="ignore"):
                expected = numpy(x, axis=axes)
            out = np.full(expected.shape, 77, dtype)
            getattr(reduce, name)(out, x, axes, 2)
            np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
            special = ~np.isfinite(expected)
            np.testing.assert_array_equal(out[special], expected[special])


@pytest.mark.parametrize(("n", "step"), [(2, 1), (15, 1), (40, 1), (127, 1), (300, 1), (4500, 7)])
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_extrema_find_nan_wherever_it_is(reduce, dtype, n, step, nan):
    places = np.arange(0, n, step)
    x = np.random.default_rng(5).standard_normal((places.size, n)).astype(dtype)
    x[np.arange(places.size), places] = nan
    for run in (reduce.max, reduce.min):
        for array, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
            out = np.zeros(places.size, dtype)
            run(out, array, (axis,), 2)
            assert np.isnan(out).all()


def test_rows_of_every_length_end_where_they_end(reduce, dtype):
    # every number of elements that a vector of 2 to 16 leaves over, of rows together, alone, and in streams
    for n in (*range(1, 70), *range(120, 140), *range(4090, 4110)):
        memory = np.full(5 * n + 16, np.nan, dtype)
        x = memory[: 5 * n].reshape(5, n)
        x[...] = np.random.default_rng(n).integers(-9, 10, x.shape)
        for name in ("sum", "max", "min"):
            out = np.full(5, 77, dtype)
            getattr(reduce, name)(out, x, (1,), 1)
            np.testing.assert_array_equal(out, getattr(np, name)(x, axis=1))


def test_over_nothing(reduce, dtype):
    for shape, axes in (((0,), (0,)), ((0, 3), (0,)), ((3, 0), (1,)), ((2, 0, 3), (1,))):
        x = np.empty(shape, dtype)
        for name, identity in (("sum", 0), ("sum_of_squares", 0), ("prod", 1)):
            out = np.full(np.sum(x, axes).shape, 77, dtype)
            getattr(reduce, name)(out, x, axes, 2)
            np.testing.assert_array_equal(out, identity)
        with pytest.raises(ValueError, match="no elements"):
            reduce.max(out, x, axes, 1)
    nothing = np.empty((0,), dtype)
    reduce.sum(nothing, np.empty((0, 3), dtype), (1,), 1)


def test_wrong_arguments_are_errors(reduce):
    x, out = np.zeros((4, 5, 6), np.float32), np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="float32 or float64"):
        reduce.sum(out, x.astype(int), (1, 2), 1)
    with pytest.raises(TypeError, match="dtype"):
        reduce.sum(out.astype(float), x, (1, 2), 1)
    with pytest.raises(ValueError, match="contiguous"):
        reduce.sum(out, x[:, ::2], (1, 2), 1)
    with pytest.raises(ValueError, match="does not fit"):
        reduce.sum(out, x, (0, 1), 1)
    assert reduce.fits(np.zeros((2, 3, 4, 5)), (0, 2, 3))
    five = np.zeros((2, 3, 4, 5, 6), np.float32)
    assert not reduce.fits(five, (1, 3)) and not reduce.fits(five, (0, 2, 4))
    with pytest.raises(ValueError, match="have no kernel"):
        reduce.sum(np.zeros((3, 5), np.float32), five, (0, 2, 4), 1)
