"""Elementwise kernels against their definitions in float64, evaluated by Python's math functions."""

import itertools
import math

import numpy as np
import pytest
from in_one_test import in_one_test

# Sizes around whole vectors (2 to 16 elements), and enough for two and for three threads.
SIZES = [0, 1, 3, 15, 16, 17, 33, 100_003]

_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def normal_cdf(x):
    return 0.5 * _erfc(-x * math.sqrt(0.5))


def normal_pdf(x):
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def gelu_argument(x):
    """0.5 (1 + tanh(u)) = sigmoid(2 u): this is 2 u."""
    return math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)


def gelu_tanh_derivative(x):
    u = gelu_argument(x)
    return sigmoid(u) + x * sigmoid(u) * sigmoid(-u) * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x * x)


# name: (definition, error in units of the last place)
FUNCTIONS = {
    "relu": (lambda x: np.maximum(x, 0), 0),
    "exp": (np.exp, 2),
    "sin": (np.sin, 2),
    "cos": (np.cos, 2),
    "erf": (_erf, 3),
    "sigmoid": (sigmoid, 3),
    "tanh": (np.tanh, 2),
}

# Products of x and a probability, which is good to some units of its own last place, or far out (where it is
# small) of its exponent's.
PRODUCTS = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": lambda x: x * sigmoid(gelu_argument(x)),
}
DERIVATIVES = {
    "silu_grad": lambda x: sigmoid(x) * (1 + x * sigmoid(-x)),
    "gelu_grad": lambda x: normal_cdf(x) + x * normal_pdf(x),
    "gelu_tanh_grad": gelu_tanh_derivative,
}
FROM_RESULT = {
    "relu_grad": lambda y: np.where(y <= 0, 0.0, 1.0),
    "sigmoid_grad": lambda y: y * (1 - y),
    "tanh_grad": lambda y: 1 - y * y,
}
UNARY = [*FUNCTIONS, *PRODUCTS, "log"]
GRADIENTS = [*DERIVATIVES, *FROM_RESULT]


@pytest.fixture
def elementwise(kernel_module):
    return kernel_module("elementwise")


def poisoned_like(x):
    return np.full_like(x, 77)


def samples(n, dtype, seed=0):
    """Of all magnitudes that matter: denormal to where exp overflows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * 10.0 ** rng.integers(-8, 2, n)
    x[: n // 50] = np.linspace(-104, 88, n // 50)
    x[n // 50 : n // 40] = rng.standard_normal(n // 40 - n // 50) * np.finfo(dtype).tiny
    return x.astype(dtype)


@in_one_test("threads", [1, 2, 3])
@in_one_test("n", SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(elementwise, dtype, name, n, threads):
    definition, ulp = FUNCTIONS[name]
    x, out = samples(n, dtype), np.full(n, 77, dtype)
    getattr(elementwise, name)(out, x, threads)
    expected = definition(x.astype(np.float64))
    rounded = np.abs(expected.astype(dtype))
    # The float64 definitions have roundings of their own: 2 ulp more there.
    allowed = (ulp + (0 if dtype == np.float32 else 2)) * np.spacing(rounded).astype(float)
    assert (np.abs(out - expected) <= allowed).all()


@in_one_test("n", SIZES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(elementwise, dtype, name, n):
    x, out = samples(n, dtype), np.full(n, 77, dtype)
    getattr(elementwise, name)(out, x, 2)
    wide = x.astype(np.float64)
    # 4 ulp of the probability, which is at most 1
    tolerance = 4 * np.finfo(dtype).eps * np.abs(wide) + np.finfo(dtype).smallest_subnormal
    assert (np.abs(out - PRODUCTS[name](wide)) <= tolerance).all()


@in_one_test("threads", [1, 2])
@in_one_test("n", SIZES)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(elementwise, dtype, name, n, threads):
    derivative = DERIVATIVES.get(name) or FROM_RESULT[name]
    saved, grad = samples(n, dtype, seed=1), np.random.default_rng(2).standard_normal(n).astype(dtype)
    if name in FROM_RESULT:
        saved = np.tanh(saved)  # a result lies in [-1, 1]
    out = np.full(n, 77, dtype)
    getattr(elementwise, name)(out, grad, saved, threads)
    wide = saved.astype(np.float64)
    # Two terms below 2, whose relative errors are some roundings and that of the exponent, which is below 10
    # where the term counts.
    tolerance = 16 * np.finfo(dtype).eps * np.abs(grad) + np.finfo(dtype).smallest_subnormal
    assert (np.abs(out - grad * derivative(wide)) <= tolerance).all()


@in_one_test("threads", [1, 2, 3])
@in_one_test("n", SIZES)
def test_gelu_and_slope_are_gelu_and_its_gradient(elementwise, dtype, n, threads):
    x, ones = samples(n, dtype, seed=3), np.ones(n, dtype)
    x[n // 2 : n // 2 + 3] = [np.inf, -np.inf, np.nan][: len(x[n // 2 : n // 2 + 3])]
    y, slope, expected_y, expected_slope = (np.full(n, 77, dtype) for _ in range(4))
    elementwise.gelu_and_slope(y, slope, x, threads)
    elementwise.gelu(expected_y, x, 1)
    elementwise.gelu_grad(expected_slope, ones, x, 1)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(slope, expected_slope)


def test_gelu_and_slope_rejects_what_would_corrupt_memory(elementwise):
    x = np.ones(40)
    for y, slope, error in [
        (np.empty(39), np.empty(40), ValueError),
        (np.empty(40), np.empty((40, 1)), ValueError),
        (np.empty(80)[::2], np.empty(40), ValueError),
        (np.empty(40, np.float32), np.empty(40), TypeError),
        (np.empty(40), None, TypeError),
    ]:
        with pytest.raises(error):
            elementwise.gelu_and_slope(y, slope, x, 1)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_keeps_digits_far_out_on_the_left(elementwise, dtype, name):
    # 0.5 (1 + erf(x)) would have lost them all: PyTorch's float32 gelu(-6) is 0.
    x = np.linspace(-9, -2, 1001).astype(dtype)
    out = poisoned_like(x)
    getattr(elementwise, name)(out, x, 1)
    expected = PRODUCTS[name](x.astype(np.float64))
    # The exponent is rounded before the exponential: its ulp is a relative error of the result. That of the
    # tanh form is steeper, and is itself made of three terms.
    exponent = 0.5 * x * x if name == "gelu" else 3 * np.abs(gelu_argument(x))
    allowed = (8 + exponent) * np.finfo(dtype).eps
    assert (np.abs(out / expected - 1) <= allowed).all()


@pytest.mark.parametrize("name", UNARY)
def test_special_values(elementwise, dtype, name):
    big = np.finfo(dtype).max
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, big, -big, 1e20, -1e20], dtype)
    definition = np.log if name == "log" else FUNCTIONS[name][0] if name in FUNCTIONS else PRODUCTS[name]
    with np.errstate(all="ignore"):
        expected = definition(x.astype(np.float64)).astype(dtype)
    if name in PRODUCTS:
        expected[5:] = [big, 0, 1e20, 0]  # what the definitions are without overflow
    out = poisoned_like(x)
    getattr(elementwise, name)(out, x, 1)
    # NumPy's own sine, cosine and logarithm are good to some units of the last place.
    np.testing.assert_allclose(
        out, expected, rtol=4 * np.finfo(dtype).eps if name in ("log", "sin", "cos") else 0, atol=0
    )
    if name in ("sin", "tanh", "erf", *PRODUCTS):
        assert np.signbit(out[1]), "-0 stays -0"


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_finite_at_large_magnitudes(elementwise, dtype, name):
    big = np.finfo(dtype).max
    saved = np.array([1e4, -1e4, 1e20, -1e20, big, -big], dtype)
    out = poisoned_like(saved)
    getattr(elementwise, name)(out, np.ones_like(saved), saved, 1)
    if name in DERIVATIVES:
        np.testing.assert_array_equal(out, [1, 0, 1, 0, 1, 0])
    elif name == "relu_grad":
        np.testing.assert_array_equal(out, [1, 0, 1, 0, 1, 0])
        nan = np.array([np.nan], dtype)
        elementwise.relu_grad(out[:1], nan, np.ones_like(nan), 1)
        assert np.isnan(out[0])


def test_exp_of_every_exponent(elementwise, dtype):
    x = np.arange(-7600, 7200).astype(dtype) / 10
    x = np.concatenate([x, np.nextafter(x, np.array(np.inf, dtype))])
    out = poisoned_like(x)
    elementwise.exp(out, x, 1)
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(dtype)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(out[~finite], np.inf)
    np.testing.assert_array_max_ulp(out[finite], expected[finite], 2)


def test_log_of_every_exponent(elementwise, dtype):
    rng, limits = np.random.default_rng(3), np.finfo(dtype)
    exponents = np.linspace(limits.minexp - 10, limits.maxexp - 1, 20_000).astype(int)
    x = [np.ldexp(rng.uniform(1, 2, 20_000), exponents), rng.uniform(0.5, 2, 20_000)]
    x = np.concatenate(x).astype(dtype)
    out = poisoned_like(x)
    elementwise.log(out, x, 2)
    expected = np.log(x.astype(np.longdouble)).astype(dtype)
    np.testing.assert_array_max_ulp(out, expected, 2)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_large_angles(elementwise, dtype, name):
    rng = np.random.default_rng(9)
    x = rng.uniform(-1, 1, 30_000) * 10.0 ** rng.integers(-3, 30, 30_000)
    x[::2] = np.round(rng.uniform(-3e4, 3e4, 15_000)) * (math.pi / 2)  # one of the two is near 0
    x = x.astype(dtype)
    out = poisoned_like(x)
    getattr(elementwise, name)(out, x, 2)
    expected = np.array([getattr(math, name)(angle) for angle in x.tolist()]).astype(dtype)
    np.testing.assert_array_max_ulp(out, expected, 2)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos"])
def test_what_is_unusual_changes_no_other_element(elementwise, dtype, name):
    # A piece of an array that holds no such element takes a shorter formula.
    x = np.random.default_rng(10).uniform(0.01, 80, 20_000).astype(dtype)
    usual, mixed = poisoned_like(x), poisoned_like(x)
    getattr(elementwise, name)(usual, x, 1)
    x[::500] = np.inf
    getattr(elementwise, name)(mixed, x, 1)
    others = np.isfinite(x)
    np.testing.assert_array_equal(mixed[others], usual[others])
    np.testing.assert_array_equal(mixed[~others], np.inf if name in ("exp", "log") else np.nan)


@pytest.mark.parametrize("name", UNARY)
def test_in_place_and_the_same_everywhere_in_an_array(elementwise, dtype, name):
    x = np.tile(samples(257, dtype), 300)
    out = poisoned_like(x)
    getattr(elementwise, name)(out, x, 3)
    np.testing.assert_array_equal(out.reshape(300, 257), np.broadcast_to(out[:257], (300, 257)))
    getattr(elementwise, name)(x, x, 2)
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("name", UNARY)
def test_wrong_arguments_are_errors(elementwise, name):
    run, x = getattr(elementwise, name), np.zeros((4, 4), np.float32)
    with pytest.raises(TypeError, match="float32 or float64"):
        run(x, x.astype(int), 1)
    with pytest.raises(TypeError, match="dtype"):
        run(x.astype(float), x, 1)
    with pytest.raises(ValueError, match="contiguous"):
        run(x[:, ::2], x[:, ::2], 1)
    with pytest.raises(ValueError, match=r"\(2, 4\) does not broadcast to \(4, 4\)"):
        run(x, x[:2].copy(), 1)
    with pytest.raises(ValueError, match="does not broadcast"):
        run(x[0], x, 1)
    with pytest.raises(TypeError, match="takes out, 1 inputs and threads"):
        run(x, x, x, 1)


# ---- cheap functions of several inputs, in any layout -----------------------------------------------------

# name: (definition, inputs that are arrays, numbers after them)
CHEAP = {
    "neg": (lambda x: -x, 1, ()),
    "abs": (np.abs, 1, ()),
    "square": (lambda x: x * x, 1, ()),
    "cube": (lambda x: x * x * x, 1, ()),
    "add": (np.add, 2, ()),
    "sub": (np.subtract, 2, ()),
    "mul": (np.multiply, 2, ()),
    "div": (np.divide, 2, ()),
    "maximum": (np.maximum, 2, ()),
    "minimum": (np.minimum, 2, ()),
    "eq": (np.equal, 2, ()),
    "ne": (np.not_equal, 2, ()),
    "lt": (np.less, 2, ()),
    "le": (np.less_equal, 2, ()),
    "gt": (np.greater, 2, ()),
    "ge": (np.greater_equal, 2, ()),
    "clamp": (np.clip, 1, (-0.5, 0.75)),
    "leaky_relu": (lambda x, z, w: np.where(x > 0, x * w, x * z), 1, (0.125, 2.0)),
    "abs_grad": (lambda g, y: g * np.sign(y), 2, ()),
    "leaky_relu_grad": (lambda g, y, z, w: np.where(y > 0, g * w, g * z), 2, (0.125, 2.0)),
    "clamp_grad": (lambda g, y, z, w: np.where((y >= z) & (y <= w), g, 0), 2, (-0.5, 0.75)),
    "larger_share": (lambda g, x, y: np.where(x < y, 0, np.where(x == y, g / 2, g)), 3, ()),
    "divisor_grad": (lambda g, x, y: -g * x / (y * y), 3, ()),
}
BOOLEAN = ("eq", "ne", "lt", "le", "gt", "ge")
# One piece; rows longer and shorter than a tile; more dimensions than can be merged; nothing.
SHAPES = [
    (),
    (5,),
    (20_003,),
    (37, 53),
    (19, 130),
    (7, 3001),
    (3, 41, 50),
    (301, 3, 2),
    (2, 3, 5, 70),
    (6200, 16),  # enough for three threads
    (0, 3),
]


def layouts(shape, dtype, rng):
    """Arrays that broadcast to ``shape``: of whole numbers, so that ties occur, and none of them 0."""

    def numbers(shape):
        return rng.choice([-3, -2, -1, 1, 2, 3, 0.5], shape).astype(dtype)

    yield np.asarray(numbers(shape))
    if not shape:
        return
    yield numbers(shape[::-1]).T
    yield numbers((*shape, 2))[..., 1]
    yield numbers(shape)[..., ::-1]
    yield numbers((*shape[:-1], shape[-1] + 3))[..., 2:-1]
    yield numbers(())[None]
    yield numbers((*shape[:-1], 1))
    yield numbers(shape[1:])
    yield np.broadcast_to(numbers((1,) * len(shape)), shape)
    if len(shape) > 2:
        yield numbers((shape[1], shape[0], *shape[2:])).swapaxes(0, 1)
        yield numbers((shape[0], 1, *shape[2:]))
        yield numbers((shape[1], *(1,) * (len(shape) - 2)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHEAP)
def test_cheap_functions_in_any_layout(elementwise, dtype, name, shape):
    """By one to three threads: a layout in some of the functions and shapes by each of these counts."""
    definition, arrays, numbers = CHEAP[name]
    rng = np.random.default_rng([len(name), len(shape)])
    threads = itertools.cycle(rng.permutation([1, 2, 3]).tolist())
    result = np.bool_ if name in BOOLEAN else dtype
    choices = [list(layouts(shape, dtype, rng)) for _ in range(arrays)]
    for place, every in enumerate(choices):
        for layout in every:  # the other inputs in one of any layout
            inputs = [others[rng.integers(len(others))] for others in choices]
            inputs[place] = layout
            out = np.full(shape, 77).astype(result)
            getattr(elementwise, name)(out, *inputs, *numbers, next(threads))
            wide = [x.astype(np.float64) for x in inputs]
            expected = np.broadcast_to(definition(*wide, *numbers), shape)
            # A few roundings; all but the division's quotients are exact.
            np.testing.assert_allclose(out, expected.astype(result), rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["add", "div", "maximum", "lt", "larger_share"])
def test_numbers_as_inputs(elementwise, dtype, name):
    definition, arrays, _ = CHEAP[name]
    result = np.bool_ if name in BOOLEAN else dtype
    rng = np.random.default_rng(5)
    for shape in [(), (7,), (40_000,), (33, 65)]:
        x = np.asarray(rng.standard_normal(shape), dtype)
        for inputs in ([x, 2.5, x], [2.5, x, x], [x, x, 3]):
            inputs = inputs[:arrays]
            out = np.full(shape, 77).astype(result)
            getattr(elementwise, name)(out, *inputs, 2)
            expected = definition(*(np.asarray(v, np.float64) for v in inputs)).astype(result)
            np.testing.assert_allclose(out, expected, rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_where(elementwise, dtype, shape):
    rng = np.random.default_rng(6)
    everywhere = list(layouts(shape, dtype, rng))
    for condition in everywhere:
        condition = condition > 0 if condition.ndim else np.asarray(condition > 0)
        x, y = (everywhere[rng.integers(len(everywhere))] for _ in range(2))
        for inputs in ((x, y), (x, 0.0), (1.0, y)):
            out = np.full(shape, 77, dtype)
            elementwise.where(out, condition, *inputs, 2)
            np.testing.assert_array_equal(out, np.broadcast_to(np.where(condition, *inputs), shape))


def test_the_condition_of_where_is_an_array_of_bools(elementwise, dtype):
    x = np.zeros(3, dtype)
    with pytest.raises(TypeError, match="must be an array of bools"):
        elementwise.where(x, 1.0, x, 0.0, 1)
    with pytest.raises(TypeError, match="dtype"):
        elementwise.where(x, x, x, 0.0, 1)


def test_nan_and_infinity_of_cheap_functions(elementwise, dtype):
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, np.finfo(dtype).max], dtype)
    x, y = (np.ascontiguousarray(v).ravel() for v in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        for name, (definition, arrays, numbers) in CHEAP.items():
            if arrays == 3:
                continue
            inputs = (x, y)[:arrays]
            out = np.full(x.shape, 77).astype(np.bool_ if name in BOOLEAN else dtype)
            getattr(elementwise, name)(out, *inputs, *numbers, 1)
            np.testing.assert_array_equal(out, definition(*inputs, *numbers), err_msg=name)


def test_all_may_write_over_an_input(elementwise, dtype):
    rng = np.random.default_rng(7)
    for name, (_, arrays, numbers) in CHEAP.items():
        if name in BOOLEAN:
            continue
        inputs = [rng.uniform(0.5, 2, (190, 301)).astype(dtype) for _ in range(arrays)]
        out = np.empty_like(inputs[0])
        getattr(elementwise, name)(out, *inputs, *numbers, 2)
        for k in range(arrays):
            again = [x.copy() for x in inputs]
            getattr(elementwise, name)(again[k], *again, *numbers, 2)
            np.testing.assert_array_equal(again[k], out, err_msg=name)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 1100, 40_000])
def test_cheap_functions_wherever_an_array_begins(elementwise, dtype, n):
    rng = np.random.default_rng(8)
    inputs = [rng.uniform(0.5, 2, n).astype(dtype) for _ in range(3)]
    for name in ("neg", "sub", "lt", "clamp", "larger_share"):
        definition, arrays, numbers = CHEAP[name]
        expected = definition(*inputs[:arrays], *numbers)
        for before in range(33):  # elements, before the first, that must stay as they are
            memory = np.full(before + n + 33, 2).astype(expected.dtype)
            untouched = memory.copy()
            untouched[before : before + n] = expected
            getattr(elementwise, name)(memory[before : before + n], *inputs[:arrays], *numbers, 2)
            np.testing.assert_array_equal(memory, untouched, err_msg=name)


# ---- copies -------------------------------------------------------------------------------------------


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [*SHAPES, (130, 70, 65)])
def test_copies(elementwise, shape, threads):
    rng = np.random.default_rng(8)
    for dtype in (np.float32, np.float64, np.int32, np.int64, np.bool_):
        for x in layouts(shape, np.float64, rng):
            x = x.astype(dtype)  # in the same order, but for what repeats or is reversed
            out = np.full(shape, 77).astype(dtype)
            elementwise.copy(out, x, threads)
            np.testing.assert_array_equal(out, np.broadcast_to(x, shape))


def test_copies_keep_every_bit(elementwise):
    bits = np.random.default_rng(9).integers(0, 2**32, (70, 90), np.uint32)
    out = np.empty((90, 70), np.float32)
    elementwise.copy(out, bits.view(np.float32).T, 1)
    np.testing.assert_array_equal(out.view(np.uint32), bits.T)


def test_copies_of_other_types_are_refused(elementwise):
    x = np.zeros((4, 4), np.int16)
    with pytest.raises(TypeError, match="1, 4 or 8 bytes"):
        elementwise.copy(x, x.T, 1)
    with pytest.raises(TypeError, match="dtype"):
        elementwise.copy(x, x.astype(float), 1)
