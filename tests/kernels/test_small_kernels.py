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


def test_relu_and_its_gradient(pair, dtype):
    for x, g in (pair, (np.tile(SPECIAL, 9).astype(dtype), np.repeat(SPECIAL, 9).astype(dtype))):
        same_bits(small.relu(x), np.where(x < 0, dtype(0), x))
        same_bits(small.relu_grad(g, x), np.where(x <= 0, dtype(0), g))


@pytest.mark.parametrize(
    "shape", [(4, 4, 4), (1, 1, 1), (3, 7, 5), (512, 1, 1), (1, 1, 512), (2, 0, 3), (0, 4, 3), (3, 4, 0)]
)
def test_products_of_matrices(shape, dtype):
    M, N, K = shape
    rng = np.random.default_rng()
    a, b = rng.standard_normal((M, K)).astype(dtype), rng.standard_normal((K, N)).astype(dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = K * np.finfo(dtype).eps * (np.abs(a).astype(np.float64) @ np.abs(b)) + 1e-300
    wide = np.zeros((2 * M, 3 * K), dtype)
    wide[::2, 1::3] = a
    for left in (a, np.asfortranarray(a), wide[::2, 1::3], a[::-1, ::-1][::-1, ::-1]):
        for right in (b, np.asfortranarray(b)):
            found = small.matmul(left, right)
            assert (found.shape, found.dtype) == ((M, N), dtype) and found.flags.c_contiguous
            assert (np.abs(found - exact) <= bound).all()


def test_a_product_spreads_nan(dtype):
    a, b = np.zeros((2, 3), dtype), np.ones((3, 2), dtype)
    b[1, 0] = np.nan
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(np.isnan(small.matmul(a, b)), [[True, False], [True, False]])


def test_products_that_are_left_to_kernels(dtype):
    a = np.ones((4, 4), dtype)
    other_dtype = np.float64 if dtype == np.float32 else np.float32
    misaligned = np.zeros(a.nbytes + 1, np.uint8)[1:].view(dtype).reshape(a.shape)
    for other in (
        a[0],
        a[None],
        a.astype(other_dtype),
        a.astype(int),
        misaligned,
        a.tolist(),
        2.0,
        mg.tensor(a),
    ):
        assert small.matmul(a, other) is None and small.matmul(other, a) is None
    assert small.matmul(a, np.ones((5, 4), dtype)) is None
    assert small.matmul(np.ones((9, 8), dtype), np.ones((8, 8), dtype)) is None
    assert small.matmul(np.ones((2**40, 0), dtype), np.ones((0, 2**40), dtype)) is None


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
        for function in (small.neg, small.relu):
            assert function(other) is None
        assert small.relu_grad(x, other) is None and small.relu_grad(other, x) is None
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


@pytest.mark.parametrize(
    ("own", "shape"),
    [
        *(((3, 1), (3, 5)), ((5,), (3, 5)), ((), (2, 3)), ((1, 1), (0, 4)), ((0,), (2, 0))),
        ((2, 1, 3), (4, 2, 5, 3)),
    ],
)
def test_a_view_is_stretched_as_by_numpy(dtype, own, shape):
    x = np.random.default_rng().standard_normal(own).astype(dtype)
    for array in (x, np.repeat(x, 2, -1)[..., ::-2] if own else x, x.T.copy().T):
        view, expected = small.stretch(array, shape), np.broadcast_to(array, shape)
        assert view.strides == expected.strides and view.dtype == expected.dtype and not view.flags.writeable
        assert view.flags.c_contiguous == expected.flags.c_contiguous and view.base is not None
        np.testing.assert_array_equal(view, expected)
    x = np.ones(4, dtype)
    view = small.stretch(x, (3, 4))
    x[0] = 7
    del x  # the view keeps the memory
    assert (view[:, 0] == 7).all()


def test_what_stretches_in_another_way(dtype):
    x = np.ones((3, 2), dtype)
    for array in (
        x.astype(np.int64),
        x.astype(np.float16),
        x.astype(x.dtype.newbyteorder()),
        x.tolist(),
        1.0,
    ):
        assert small.stretch(array, (4, 3, 2)) is None
    for shape in ((2,), (3, 3), (2, 2), (-1, 3, 2), (1,) * 63 + (3, 2)):
        assert small.stretch(x, shape) is None
