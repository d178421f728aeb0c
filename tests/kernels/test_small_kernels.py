"""Arithmetic on small arrays: NumPy's results to the bit, or None, or the operator's own doing."""

import operator

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels.cpu import small

BINARY = {
    small.add: operator.add,
    small.sub: operator.sub,
    small.mul: operator.mul,
    small.div: operator.truediv,
    small.total: operator.add,
    small.product: operator.mul,
}
SPECIAL = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 1e-40, 3e38])


def same_bits(ours, theirs):
    assert type(ours) is np.ndarray and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    bits = f"u{ours.itemsize}"
    np.testing.assert_array_equal(ours.view(bits)[~nan], np.asarray(theirs).view(bits)[~nan])


@pytest.fixture(params=[(), (0,), (1,), (3, 5), (7, 1, 11), (1024,)])
def pair(request, dtype):
    rng = np.random.default_rng()
    return [np.asarray(rng.standard_normal(request.param), dtype) for _ in range(2)]


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_two_arrays(function, pair):
    x, y = pair
    same_bits(function(x, y), np.asarray(BINARY[function](x, y)))
    same_bits(function(x, x), np.asarray(BINARY[function](x, x)))


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_special_values(function, dtype):
    x = np.repeat(SPECIAL, len(SPECIAL)).astype(dtype)
    y = np.tile(SPECIAL, len(SPECIAL)).astype(dtype)
    with np.errstate(all="ignore"):
        expected = BINARY[function](x, y)
    with np.errstate(all="raise"):  # nothing here looks at floating-point flags
        same_bits(function(x, y), expected)


@pytest.mark.parametrize("number", [2.5, -0.1, 3, -7, 2**24, float("inf"), float("nan")])
@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_an_array_and_a_number(function, pair, number):
    x = pair[0]
    same_bits(function(x, number), np.asarray(BINARY[function](x, number), x.dtype))
    same_bits(function(number, x), np.asarray(BINARY[function](number, x), x.dtype))


def test_the_negative(pair):
    for negate in (small.neg, small.negative):
        same_bits(negate(pair[0]), np.asarray(-pair[0]))


def unfit(x):
    """What is none of these functions' business, alone or beside the plain array ``x``."""
    yield from (x[:, ::-1], x.T, x[:, :1], x.astype(x.dtype.newbyteorder()), x.astype(np.float16))
    yield from (x.astype(np.int64), x > 0, x.tolist(), None, True, 2**24 + 1, np.float64(2.0), 1j, "x")
    yield from (np.ma.array(x), np.zeros((1025,), x.dtype), mg.tensor(x))
    yield np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)  # not aligned


def test_everything_else_is_left_to_others(dtype):
    x = np.random.default_rng().standard_normal((4, 3)).astype(dtype)
    for other in unfit(x):
        for function in (small.add, small.sub, small.mul, small.div):
            assert function(x, other) is None and function(other, x) is None
        assert small.neg(other) is None
    for partner in (x[:1], x.astype(np.float64 if dtype == np.float32 else np.float32)):
        assert small.add(x, partner) is None and small.mul(partner, x) is None
    assert small.add(1.0, 2.0) is None


def test_the_operators_take_over(dtype):
    x = np.random.default_rng().standard_normal((4, 3)).astype(dtype)
    for other in (x[:, ::-1], x[:1], x.astype(np.int64), np.float64(2.0), 2**24 + 1):
        for function in (small.total, small.product):
            expected = BINARY[function](x, other)
            found = function(x, other)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    t = mg.tensor(x)
    assert type(small.total(t, t)) is type(small.product(t, 2.0)) is type(small.negative(t)) is mg.Tensor
    np.testing.assert_array_equal(small.negative(x[:, ::-1]), -x[:, ::-1])


def test_a_selected_kernel_comes_first():
    ran = []

    @mg.op(name="test_small_op", small=lambda x: ran.append("small"))
    def test_small_op(xp, x):
        ran.append("reference")
        return x + 1

    test_small_op(mg.ones(3))
    with mg.use_kernel("test_small_op", "reference"):
        test_small_op(mg.ones(3))
    assert ran == ["small", "reference", "reference"]
