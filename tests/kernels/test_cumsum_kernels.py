"""Cumulative sums against NumPy's in float64."""

import numpy as np
import pytest
from in_one_test import in_one_test

# Every axis; sizes around the groups of 8 rows and 64 columns; enough for threads; nothing.
CASES = [
    ((7,), 0),
    ((100_003,), 0),
    ((8, 33), 1),
    ((19, 5000), 1),
    ((50, 64), 0),
    ((300, 131), 0),
    ((3, 40, 2), 1),
    ((2, 3, 17), 2),
    ((5, 100, 130), 1),
    ((4, 1, 9), 1),
    ((0, 3), 0),
    ((3, 0), 1),
    ((0, 3), 1),
]


@pytest.fixture
def cumsum(kernel_module):
    return kernel_module("cumsum").cumsum


def expected(x, axis, reverse):
    wide = x.astype(np.float64)
    return np.flip(np.cumsum(np.flip(wide, axis), axis), axis) if reverse else np.cumsum(wide, axis)


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_cumulative_sums(cumsum, dtype, shape, axis, reverse, threads):
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    out = np.full_like(x, 77)
    cumsum(out, x, axis, reverse, threads)
    # Additions one after another in float64, in the order of the definition, then one rounding.
    np.testing.assert_array_equal(out, expected(x, axis, reverse).astype(dtype))


@pytest.mark.parametrize("axis", [0, 1])
def test_in_place_and_what_is_not_finite(cumsum, dtype, axis):
    x = np.random.default_rng(2).standard_normal((11, 70)).astype(dtype)
    x[3, 5], x[9, 40], x[4, 20], x[8, 30] = np.inf, -np.inf, np.nan, np.finfo(dtype).max
    with np.errstate(invalid="ignore"):
        right = expected(x, axis, False).astype(dtype)
    cumsum(x, x, axis, False, 1)
    np.testing.assert_array_equal(x, right)


def test_wrong_arguments_are_errors(cumsum, dtype):
    x = np.zeros((4, 4), dtype)
    with pytest.raises(TypeError, match="float32 or float64"):
        cumsum(x, x.astype(int), 0, False, 1)
    with pytest.raises(TypeError, match="dtype"):
        cumsum(x.astype(int), x, 0, False, 1)
    with pytest.raises(ValueError, match="contiguous"):
        cumsum(x, x.T[::2], 0, False, 1)
    with pytest.raises(ValueError, match="one shape"):
        cumsum(x[:2], x, 0, False, 1)
    with pytest.raises(ValueError, match="axis 2 is out of range"):
        cumsum(x, x, 2, False, 1)
