"""The CUDA kernels of 16-bit floats: conversions, elementwise functions, and what undoes a loss's scale."""

import itertools

import numpy as np
import pytest

from minigrad.kernels.cuda import cast, elementwise, unscale
from minigrad.kernels.cuda.elementwise import ACTIVATIONS, FUNCTIONS

# Blocks take 1024 or 2048 elements, threads 4 or 8.
SIZES = [0, 1, 7, 1023, 1024, 1029, 2048, 4101]
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    np.inf,
    -np.inf,
    np.nan,
    65504.0,
    65519.0,
    65520.0,
    3.3e38,
    3.4e38,
    1e-7,
    2**-24,
    1e-40,
]
TIES = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23]


def named(name):
    """The dtype of that name; a skip where bfloat16 is not installed."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    return named(request.param)


def draw(rng, n, dtype):
    """Of many magnitudes, with special values and ties at the start."""
    values = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 5, n)
    known = (SPECIAL + TIES)[:n]
    values[: len(known)] = known
    with np.errstate(all="ignore"):
        return values.astype(np.float32).astype(dtype)


def assert_same(actual, expected):
    """The same bits, but that a NaN may be any."""
    assert actual.dtype == expected.dtype
    kind = f"u{actual.itemsize}"
    actual_nan, expected_nan = (np.isnan(x.astype(np.float32)) for x in (actual, expected))
    np.testing.assert_array_equal(actual_nan, expected_nan)
    np.testing.assert_array_equal(actual.view(kind)[~actual_nan], expected.view(kind)[~expected_nan])


@pytest.mark.parametrize("names", list(itertools.permutations(["float32", "float16", "bfloat16"], 2)))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shift", [0, 1])
def test_conversions_round_to_nearest(backend, rng, names, n, shift):
    source, target = map(named, names)
    x = draw(rng, n + shift, source)[shift:]
    with np.errstate(all="ignore"):
        expected = x.astype(np.float32).astype(target)
    out = backend.put(np.full(n + shift, 77, target))[shift:]
    cast.cast(out, backend.put_strided(x))
    actual, subnormal = backend.get(out), np.abs(x.astype(np.float32)) < np.finfo(np.float32).tiny
    # On a card, -ftz=true lets subnormal numbers of float32 count as zero, in any kernel.
    may_flush = subnormal & (actual.astype(np.float32) == 0)
    assert_same(np.where(may_flush, expected, actual), expected)


def test_conversions_are_those_of_floats():
    assert cast.converts(np.dtype("f4"), np.dtype("f2"))
    for source, target in (("f4", "f4"), ("f8", "f2"), ("i4", "f2"), ("f2", "i2"), ("u2", "f4")):
        assert not cast.converts(np.dtype(source), np.dtype(target))


def test_a_conversion_refuses_another_shape():
    with pytest.raises(ValueError, match="shapes"):
        cast.cast(np.zeros(3, np.float16), np.zeros(4, np.float32))


def apply(backend, name, out_dtype, *inputs):
    shape = np.broadcast_shapes(*(np.shape(x) for x in inputs))
    out = backend.put(np.full(shape, 1, out_dtype))
    placed = [backend.put_strided(x) if isinstance(x, np.ndarray) else x for x in inputs]
    (FUNCTIONS | ACTIVATIONS)[name](out, *placed)
    return backend.get(out)


def in_float32(function, *inputs):
    with np.errstate(all="ignore"):
        return function(
            *(x.astype(np.float32) if isinstance(x, np.ndarray) else np.float32(x) for x in inputs)
        )


# One operation in float32, whose result is rounded once more.
ARITHMETIC = {"add": np.add, "div": np.divide}


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("n", [1, 2047, 2049])
def test_arithmetic_is_rounded_from_float32(backend, rng, half, name, n):
    x, y = (rng.standard_normal(n).astype(half) for _ in range(2))
    for inputs in ((x, y), (x, 0.1), (3, y), (x[::-1], y)):
        expected = in_float32(ARITHMETIC[name], *inputs).astype(half)
        assert_same(apply(backend, name, half, *inputs), expected)


def test_operands_are_broadcast_and_read_where_they_lie(backend, rng, half):
    x, y = rng.standard_normal((37, 21)).astype(half), rng.standard_normal(37).astype(half)
    expected = in_float32(np.add, x.T, y).astype(half)
    assert_same(apply(backend, "add", half, x.T, y), expected)


BROADCAST = {
    "row": ((32, 64), lambda draw: draw(64)),
    "column": ((32, 64), lambda draw: draw(32, 1)),
    "channel": ((3, 5, 4, 8), lambda draw: draw(5, 1, 1)),
    "rows apart": ((6, 64), lambda draw: draw(6, 80)[:, 16:]),
    "rows that start between vectors": ((6, 64), lambda draw: draw(6, 80)[:, 1:65]),
    "rows that are no whole vectors": ((7, 63), lambda draw: draw(63)),
    "backwards": ((32, 64), lambda draw: draw(64)[::-1]),
    "rows backwards": ((32, 64), lambda draw: draw(32, 64)[::-1]),
    "transposed": ((32, 32), lambda draw: draw(32, 32).T),
    "single": ((32, 64), lambda draw: draw(1, 1)),
}


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", BROADCAST)
def test_broadcast_vectors(backend, rng, name, layout):
    """Where along the last dimension inputs are contiguous, or one number, a thread takes a vector."""
    dtype = named(name)
    shape, second = BROADCAST[layout]
    x, y = rng.standard_normal(shape).astype(dtype), second(lambda *s: rng.standard_normal(s).astype(dtype))
    expected = x + y if name == "float64" else in_float32(np.add, x, y).astype(dtype)
    assert_same(apply(backend, "add", dtype, x, y), expected)
    expected = y < x
    np.testing.assert_array_equal(apply(backend, "lt", np.bool_, y, x), expected)


def test_which_layouts_go_by_vectors():
    def lanes(shape, *inputs):
        return elementwise.layout_of(shape, 4, *((s, strides, 4) for s, strides in inputs))["lanes"]

    whole = ((8, 64), (256, 4))
    assert lanes((8, 64), whole, ((64,), (4,))) == 4
    assert lanes((8, 64), whole, ((8, 1), (4, 4))) == 4
    assert lanes((8, 64), whole, ((8, 64), (272, 4))) == 4
    assert lanes((8, 64), whole, ((8, 64), (260, 4))) == 1  # rows that start between vectors
    assert lanes((8, 64), whole, ((64,), (-4,))) == lanes((8, 64), whole, ((64,), (8,))) == 1
    assert lanes((8, 63), ((8, 63), (252, 4)), ((63,), (4,))) == 1


def test_comparisons_choices_and_limits(backend, rng, half):
    x, y = (draw(rng, 2051, half) for _ in range(2))
    np.testing.assert_array_equal(apply(backend, "lt", np.bool_, x, y), in_float32(np.less, x, y))
    np.testing.assert_array_equal(apply(backend, "isnan", np.bool_, x), in_float32(np.isnan, x))
    condition = rng.integers(0, 2, 2051).astype(bool)
    assert_same(apply(backend, "where", half, condition, x, y), np.where(condition, x, y))
    x = rng.standard_normal(2051).astype(half)
    expected = np.clip(x.astype(np.float32), -0.5, 0.75).astype(half)
    assert_same(apply(backend, "clamp", half, x, -0.5, 0.75), expected)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "relu"])
def test_functions_are_rounded_from_float32(backend, rng, half, name):
    x = rng.uniform(0.1, 3.0, 1029).astype(half)
    exact = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "relu": lambda x: x}[name](x.astype(np.float64))
    actual = apply(backend, name, half, x).astype(np.float64)
    # Half a unit in the last place, and the few of float32 that may tip a tie.
    unit = 2.0**-11 if half == np.float16 else 2.0**-8
    assert (np.abs(actual - exact) <= (unit + 2.0**-20) * np.abs(exact) + 2.0**-25).all()


def test_every_elementwise_function_has_instances_for_halves():
    for function in (FUNCTIONS | ACTIVATIONS).values():
        assert len(function.half_kernels) == 2 * len(elementwise.HALVES) == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shift", [0, 1])
def test_unscale(backend, rng, dtype, n, shift):
    values = rng.standard_normal(n + shift).astype(dtype)
    grad, found = backend.put(values.copy())[shift:], backend.put(np.zeros(1, np.int32))
    unscale.unscale(grad, 0.125, found)
    np.testing.assert_array_equal(backend.get(grad), values[shift:] / 8)
    assert backend.get(found)[0] == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 1023, 1024, 1028])
def test_unscale_finds_what_is_not_finite(backend, rng, bad, at):
    values = rng.standard_normal(1029).astype(np.float32)
    values[at] = bad
    grad, found = backend.put(values.copy()), backend.put(np.zeros(1, np.int32))
    unscale.unscale(grad, 0.5, found)
    assert backend.get(found)[0] == 1
    np.testing.assert_array_equal(backend.get(grad), values * np.float32(0.5))
