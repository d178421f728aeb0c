"""Elementwise functions: values against NumPy in float64, gradients, special values, dtypes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
import minigrad.nn.functional as F

# name -> (function of tensors, the same of float64 arrays, bounds of the inputs)
UNARY = {
    "neg": (mg.neg, np.negative, -2, 2),
    "abs": (mg.abs, np.abs, -2, 2),
    "square": (mg.square, np.square, -2, 2),
    "reciprocal": (mg.reciprocal, np.reciprocal, 0.5, 2),
    "sqrt": (mg.sqrt, np.sqrt, 0.1, 4),
    "rsqrt": (mg.rsqrt, lambda x: 1 / np.sqrt(x), 0.1, 4),
    "exp": (mg.exp, np.exp, -2, 2),
    "expm1": (mg.expm1, np.expm1, -1, 1),
    "log": (mg.log, np.log, 0.1, 4),
    "log1p": (mg.log1p, np.log1p, -0.5, 4),
    "log2": (mg.log2, np.log2, 0.1, 4),
    "log10": (mg.log10, np.log10, 0.1, 4),
    "sin": (mg.sin, np.sin, -4, 4),
    "cos": (mg.cos, np.cos, -4, 4),
    "tan": (mg.tan, np.tan, -1, 1),
    "asin": (mg.asin, np.arcsin, -0.9, 0.9),
    "acos": (mg.acos, np.arccos, -0.9, 0.9),
    "atan": (mg.atan, np.arctan, -4, 4),
    "sinh": (mg.sinh, np.sinh, -2, 2),
    "cosh": (mg.cosh, np.cosh, -2, 2),
    "tanh": (mg.tanh, np.tanh, -3, 3),
    "erf": (mg.erf, np.vectorize(math.erf), -3, 3),
    "sigmoid": (mg.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -5, 5),
    "relu": (mg.relu, lambda x: np.where(x > 0, x, 0), -2, 2),
    "silu": (F.silu, lambda x: x / (1 + np.exp(-x)), -5, 5),
    "gelu": (F.gelu, np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))), -3, 3),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        -3,
        3,
    ),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x), -2, 2),
    "elu": (lambda x: F.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * (np.exp(x) - 1)), -2, 2),
    "softplus": (F.softplus, lambda x: np.log(1 + np.exp(x)), -3, 3),
    "floor": (mg.floor, np.floor, -3, 3),
    "ceil": (mg.ceil, np.ceil, -3, 3),
    "round": (mg.round, np.round, -3, 3),
    "trunc": (mg.trunc, np.trunc, -3, 3),
    "sign": (mg.sign, np.sign, -2, 2),
    "clamp": (lambda x: mg.clamp(x, -0.5, 1.0), lambda x: np.minimum(np.maximum(x, -0.5), 1.0), -2, 2),
    "clamp_min": (lambda x: x.clamp(min=0.3), lambda x: np.maximum(x, 0.3), -2, 2),
    "pow_2": (lambda x: x**2, lambda x: x * x, -2, 2),
    "pow_3": (lambda x: x**3, lambda x: x * x * x, -2, 2),
    "pow_half": (lambda x: x**0.5, np.sqrt, 0.1, 4),
    "pow_minus_1": (lambda x: x**-1, lambda x: 1 / x, 0.5, 2),
    "pow_of_2": (lambda x: 2.0**x, np.exp2, -2, 2),
    "add_number": (lambda x: 1.5 + x, lambda x: x + 1.5, -2, 2),
    "sub_number": (lambda x: 1.5 - x, lambda x: 1.5 - x, -2, 2),
    "div_number": (lambda x: 1.5 / x, lambda x: 1.5 / x, 0.5, 2),
}

BINARY = {
    "add": (lambda x, y: x + y, np.add, -2, 2),
    "sub": (lambda x, y: x - y, np.subtract, -2, 2),
    "mul": (lambda x, y: x * y, np.multiply, -2, 2),
    "div": (lambda x, y: x / y, np.divide, 0.5, 2),
    "pow": (lambda x, y: x**y, lambda x, y: np.exp(y * np.log(x)), 0.5, 2),
    "maximum": (mg.maximum, lambda x, y: np.where(x > y, x, y), -2, 2),
    "minimum": (mg.minimum, lambda x, y: np.where(x < y, x, y), -2, 2),
    "remainder": (lambda x, y: x % y, lambda x, y: x - y * np.floor(x / y), 0.5, 2),
    "where": (lambda x, y: mg.where(x > y * 0.5, x, y), lambda x, y: np.where(x > y * 0.5, x, y), -2, 2),
    "clamp_by_tensors": (lambda x, y: mg.clamp(x, min=y), np.maximum, -2, 2),
}


def uniform(rng, low, high, shape):
    return rng.uniform(low, high, shape)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_value_of_one(name, dtype, device, rng):
    function, expected, low, high = UNARY[name]
    x = uniform(rng, low, high, (33, 7)).astype(dtype)
    y = function(mg.tensor(x, device=device))
    assert y.dtype == dtype and y.device is device
    mg.testing.assert_close(y, expected(x.astype(np.float64)), length=64, magnitude=high)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_value_of_two(name, dtype, device, rng):
    function, expected, low, high = BINARY[name]
    x, y = (uniform(rng, low, high, s).astype(dtype) for s in ((5, 1, 7), (6, 1)))
    z = function(mg.tensor(x, device=device), mg.tensor(y, device=device))
    assert z.dtype == dtype and z.device is device
    wanted = expected(x.astype(np.float64), y.astype(np.float64))
    mg.testing.assert_close(z, wanted, length=64, magnitude=high)


@pytest.mark.parametrize("name", UNARY)
def test_gradient_of_one(name, rng, check_gradients):
    function, _, low, high = UNARY[name]
    check_gradients(function, uniform(rng, low, high, (3, 4)))
    check_gradients(function, np.asarray(rng.uniform(low, high)))


@pytest.mark.parametrize("name", BINARY)
def test_gradient_of_two(name, rng, check_gradients):
    function, _, low, high = BINARY[name]
    check_gradients(function, uniform(rng, low, high, (2, 3, 1)), uniform(rng, low, high, (3, 4)))
    check_gradients(function, uniform(rng, low, high, ()), uniform(rng, low, high, (2,)))


def test_where_has_gradients_for_both_and_the_condition_none(check_gradients):
    condition = mg.tensor([[True], [False]])
    check_gradients(lambda x, y: mg.where(condition, x, y), (2, 3), (3,))


def test_ties_share_the_gradient():
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = mg.tensor([1.0, 1.0], requires_grad=True)
    mg.maximum(x, y).sum().backward()
    assert x.grad.tolist() == [0.5, 1.0] and y.grad.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("size", [1, 3, 40_000])  # by each of the kernels for small and large arrays
def test_kinks_have_the_gradient_that_pytorch_gives(size, device):
    x = mg.zeros(size, device=device, requires_grad=True)
    cases = [(mg.relu, 0.0), (mg.abs, 0.0), (mg.sign, 0.0), (lambda t: t.clamp(0.0, 1.0), 1.0)]
    cases += [(lambda t: mg.relu(t + mg.nan), 1.0), (lambda t: t // 2.0, 0.0), (lambda t: 2.0 // t, 0.0)]
    cases += [(lambda t: mg.maximum(t + mg.nan, 1.0), 1.0), (lambda t: mg.minimum(mg.nan, t), 1.0)]
    for function, expected in cases:
        (gradient,) = mg.autograd.grad(function(x).sum(), x)
        assert (gradient == expected).all()


@pytest.mark.parametrize("base", [0.0, mg.tensor(0.0)])
def test_powers_of_zero_have_the_gradient_that_pytorch_gives(base):
    x = mg.tensor([2.0, 0.5, 0.0, -1.0], requires_grad=True)
    assert mg.autograd.grad((base**x).sum(), x)[0].tolist() == [0.0, 0.0, 0.0, -math.inf]


# ---- special values ---------------------------------------------------------------------------------------

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -3e38, 1.0], np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("exp", np.exp),
        ("log", np.log),
        ("abs", np.abs),
        ("sqrt", np.sqrt),
        ("square", np.square),
    ],
)
def test_special_values(name, expected, device):
    """NaN and infinity flow as in NumPy, in vectors of any alignment, and nothing warns."""
    # On a card, float32 numbers below the smallest normal one count as zero.
    smallest = np.finfo(np.float32).tiny if device.is_card else 0
    counted = np.where(np.abs(SPECIAL) < smallest, 0, SPECIAL).astype(np.float64)
    for shift in range(SPECIAL.size):
        x = np.tile(np.roll(SPECIAL, shift), 9)
        with np.errstate(all="ignore"):
            wanted = np.tile(np.roll(expected(counted), shift), 9)
            wanted = wanted.astype(np.float32).astype(np.float64)
        mg.testing.assert_close(UNARY[name][0](mg.tensor(x, device=device)), wanted, magnitude=0.0, length=4)


def test_functions_that_would_overflow_do_not():
    big = mg.tensor([-1000.0, -100.0, 100.0, 1000.0], mg.float64)
    assert mg.sigmoid(big).tolist() == [0.0, pytest.approx(math.exp(-100)), 1.0, 1.0]
    assert F.softplus(big).tolist() == [0.0, pytest.approx(math.exp(-100)), 100.0, 1000.0]
    assert mg.tanh(big).tolist() == [-1.0, -1.0, 1.0, 1.0]
    x = mg.tensor([-1000.0, 1000.0], mg.float64, requires_grad=True)
    (F.softplus(x) + F.elu(x) + mg.sigmoid(x)).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    "function", [F.softplus, lambda x: mg.logaddexp(x, 0.0), lambda x: -F.logsigmoid(-x)]
)
def test_softplus_is_smooth_at_zero(function):
    x = mg.tensor([0.0, -0.0], mg.float64, requires_grad=True)
    (slope,) = mg.autograd.grad(function(x).sum(), x, create_graph=True)
    (curvature,) = mg.autograd.grad(slope.sum(), x)
    assert slope.tolist() == [0.5, 0.5] and curvature.tolist() == [0.25, 0.25]


def test_division_by_zero_gives_infinity():
    assert (mg.tensor([1.0, -1.0, 0.0]) / 0.0).tolist()[:2] == [math.inf, -math.inf]
    assert math.isnan((mg.zeros(1) / mg.zeros(1)).item())


# ---- dtypes and operands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "log1p", "sigmoid", "tanh", "erf", "sqrt", "reciprocal", "mean"])
@pytest.mark.parametrize("dtype", [mg.int64, mg.int32, mg.uint8, mg.bool], ids=str)
def test_integers_become_the_default_dtype(name, dtype):
    assert getattr(mg, name)(mg.tensor([1, 0], dtype)).dtype == mg.float32


def test_true_division_of_integers():
    ints = mg.tensor([1, 2])
    for quotient in (ints / 2, 1 / ints, ints / ints, ints / mg.tensor([2, 4], mg.int32), mg.div(1, ints)):
        assert quotient.dtype == mg.float32


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(name, device):
    x = np.array([1.0, 2.0, np.nan, np.inf], np.float32)
    y = np.array([1.0, 3.0, np.nan, -np.inf], np.float32)
    found = getattr(mg, name)(mg.tensor(x, device=device), mg.tensor(y, device=device))
    assert found.dtype == mg.bool and not found.requires_grad
    assert found.tolist() == getattr(x, f"__{name}__")(y).tolist()


def test_logic():
    a, b = mg.tensor([True, True, False, False]), mg.tensor([True, False, True, False])
    assert (a & b).tolist() == mg.logical_and(a, b).tolist() == [True, False, False, False]
    assert (a | b).tolist() == mg.logical_or(a, b).tolist() == [True, True, True, False]
    assert (a ^ b).tolist() == mg.logical_xor(a, b).tolist() == [False, True, True, False]
    assert (~a).tolist() == mg.logical_not(a).tolist() == [False, False, True, True]
    assert (mg.tensor([6]) & mg.tensor([3])).tolist() == [2] and (~mg.tensor([0])).tolist() == [-1]


def test_operands_may_be_arrays_lists_and_numpy_scalars():
    x = mg.ones(2)
    for other in (np.full(2, 2.0, np.float32), [2.0, 2.0], np.float32(2.0), np.float64(2.0), 2, 2.0):
        for result in (x + other, other + x):
            assert isinstance(result, mg.Tensor) and result.tolist() == [3.0, 3.0]


@st.composite
def broadcastable(draw):
    """Two shapes that broadcast."""
    full = draw(st.lists(st.integers(0, 4), max_size=4))

    def part():
        kept = full[draw(st.integers(0, len(full))) :]
        return tuple(1 if draw(st.booleans()) else n for n in kept)

    return part(), part()


@given(broadcastable(), st.sampled_from(["add", "subtract", "multiply", "maximum", "divide"]))
def test_broadcasting(shapes, name):
    function = getattr(mg, {"subtract": "sub", "multiply": "mul", "divide": "div"}.get(name, name))
    rng = np.random.default_rng(0)
    x, y = (mg.tensor(rng.uniform(1, 2, s), requires_grad=True) for s in shapes)
    z = function(x, y)
    expected = getattr(np, name)(x.detach().numpy(), y.detach().numpy())
    np.testing.assert_array_equal(z.detach().numpy(), expected)
    z.sum().backward()
    assert x.grad.shape == x.shape and y.grad.shape == y.shape
    if name == "add":
        assert x.grad.sum().item() == y.grad.sum().item() == z.numel()


def test_rounding_leaves_integers_as_they_are():
    x = mg.tensor([2**53 + 1])
    for function in (mg.floor, mg.ceil, mg.round, mg.trunc):
        assert (function(x).dtype, function(x).item()) == (mg.int64, 2**53 + 1)


def test_integers_are_divided_in_the_dtype_of_a_floating_operand():
    halves, whole = mg.ones(2, dtype=mg.float16), mg.tensor([2, 4])
    assert (halves / whole).dtype == (whole / halves).dtype == mg.float16
    assert (whole / whole).dtype == (whole / 2).dtype == (2 / whole).dtype == mg.float32


def test_nothing_equals_none():
    x = mg.ones(2)
    assert (x == None) is False and (x != None) is True  # noqa: E711
    assert (x == "ones") is False


def test_closeness_of_unsigned_integers():
    x, y = mg.tensor([1, 200], dtype=mg.uint8), mg.tensor([2, 100], dtype=mg.uint8)
    assert mg.isclose(x, y, atol=1.0).tolist() == mg.isclose(y, x, atol=1.0).tolist() == [True, False]


def test_closeness():
    x = mg.tensor([1.0, mg.inf, mg.nan])
    y = mg.tensor([1.0 + 1e-6, mg.inf, mg.nan])
    assert mg.isclose(x, y).tolist() == [True, True, False]
    assert mg.isclose(mg.ones(1), mg.tensor([mg.inf])).tolist() == [False]
    assert mg.allclose(x, y, equal_nan=True) and not x.allclose(y)
    assert mg.equal(x[:2], x[:2].clone()) and not mg.equal(x[:1], x[:2]) and not x.equal(x)


@pytest.mark.parametrize("diagonal", [-1, 0, 2])
def test_triangles(diagonal, device, rng, check_gradients):
    x = rng.standard_normal((2, 3, 4))
    for function, expected in ((mg.tril, np.tril), (mg.triu, np.triu)):
        found = function(mg.tensor(x, device=device), diagonal)
        np.testing.assert_array_equal(device.to_numpy(found._array), expected(x, diagonal))
        check_gradients(lambda x, f=function: f(x, diagonal), x)
    assert mg.ones(2, 2, dtype=mg.bool).tril().dtype == mg.bool
    with pytest.raises(ValueError, match=r"tril: needs at least two dimensions, got shape \(3,\)"):
        mg.ones(3).tril()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_quotients_of_another_array_module_are_numpys(dtype, rng):
    """On a card the reference does not ask CuPy, whose own differs for infinite dividends."""
    functions = ("asarray", "fmod", "floor", "where")  # and not floor_divide
    other = SimpleNamespace(**{name: getattr(np, name) for name in functions})
    reference = mg.get_op("floor_divide").reference
    special = np.array([0, -0.0, 1, -1, 2.5, -7, 1e-3, 6e4, -6e4, np.inf, -np.inf, np.nan], dtype)
    random = (rng.standard_normal((2, 10000)) * 10 ** rng.uniform(-2, 2, (2, 10000))).astype(dtype)
    for x, y in (np.meshgrid(special, special), random, (special, 2), (2.5, special), (special, 0)):
        found = reference(other, x, y)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.floor_divide(x, y))
