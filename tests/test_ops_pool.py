"""Pooling: the definitions as loops, every rung through autograd, ties and NaN, bad arguments."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.kernels import sim


def output_size(size, k, s, p, d, ceil_mode):
    """PyTorch's rule: with ceil_mode a last window counts if it starts inside the input or padding before."""
    room = (size + 2 * p - d * (k - 1) - 1) / s
    count = (math.ceil(room) if ceil_mode else math.floor(room)) + 1
    return count - 1 if ceil_mode and (count - 1) * s >= size + p else count


def windows(x, kernel, stride, padding, dilation, ceil_mode):
    """For each output pixel: its index, and the list of ((row, column), in_bounds) of its taps."""
    sizes = [
        output_size(*a, ceil_mode) for a in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    for n, c, i, j in np.ndindex(*x.shape[:2], *sizes):
        taps = []
        for u, v in np.ndindex(*kernel):
            row = i * stride[0] - padding[0] + u * dilation[0]
            column = j * stride[1] - padding[1] + v * dilation[1]
            taps.append((row, column))
        yield (n, c, i, j), taps


def shape_of(x, kernel, stride, padding, dilation, ceil_mode):
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return *x.shape[:2], *(output_size(*a, ceil_mode) for a in sizes)


def max_by_definition(x, kernel, stride, padding, dilation=(1, 1), ceil_mode=False):
    """(values, flat indices): the first largest of each window; the padding never wins; a NaN does."""
    geometry = kernel, stride, padding, dilation, ceil_mode
    values, indices = np.full(shape_of(x, *geometry), -np.inf), np.full(shape_of(x, *geometry), -1)
    h, w = x.shape[2:]
    for at, taps in windows(x, *geometry):
        for row, column in taps:
            if 0 <= row < h and 0 <= column < w:
                value = x[at[0], at[1], row, column]
                if indices[at] < 0 or value > values[at] or np.isnan(value):
                    values[at], indices[at] = value, row * w + column
    return values, indices


def average_by_definition(x, kernel, stride, padding, ceil_mode=False, include_pad=True, divisor=None):
    geometry = kernel, stride, padding, (1, 1), ceil_mode
    out = np.zeros(shape_of(x, *geometry))
    h, w = x.shape[2:]
    for at, taps in windows(x, *geometry):
        inside = [(r, c) for r, c in taps if 0 <= r < h and 0 <= c < w]
        padded = [(r, c) for r, c in taps if r < h + padding[0] and c < w + padding[1]]
        count = divisor or (len(padded) if include_pad else len(inside))
        out[at] = sum(x[at[0], at[1], r, c] for r, c in inside) / count
    return out


def adaptive_by_definition(x, size):
    out = np.zeros((*x.shape[:2], *size))
    for n, c, i, j in np.ndindex(out.shape):
        rows, columns = (
            slice(k * have // want, math.ceil((k + 1) * have / want))
            for k, have, want in zip((i, j), x.shape[2:], size, strict=True)
        )
        out[n, c, i, j] = x[n, c, rows, columns].mean()
    return out


# input, kernel, stride, padding, dilation, ceil_mode
TABLE = [
    ((2, 3, 6, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 2, 7, 5), (3, 2), (2, 1), (1, 1), (1, 1), False),
    ((1, 2, 7, 5), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((1, 1, 9, 9), (3, 3), (1, 2), (1, 1), (2, 2), False),
    ((2, 1, 5, 5), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((1, 1, 5, 6), (3, 3), (2, 3), (1, 0), (1, 1), True),
    ((1, 1, 4, 4), (4, 4), (1, 1), (2, 2), (1, 1), False),
    ((1, 1, 4, 4), (1, 1), (3, 3), (0, 0), (1, 1), True),
    ((1, 2, 1, 4), (2, 7), (2, 4), (0, 1), (1, 1), True),
    ((1, 2, 3, 70), (2, 2), (2, 2), (0, 0), (1, 1), False),
]
AVERAGES = [case for case in TABLE if case[4] == (1, 1)]
RUNGS = ["reference", *(k.name for k in mg.list_kernels("max_pool2d", "cpu"))]


def distinct(rng, shape):
    return (rng.permutation(int(np.prod(shape))) / 7.0 - 5.0).reshape(shape)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize("case", TABLE)
def test_max_value_and_indices(case, dtype, device, rng):
    shape, *geometry = case
    x = distinct(rng, shape).astype(dtype)
    found, indices = F.max_pool2d(mg.tensor(x, device=device), *geometry, return_indices=True)
    values, positions = max_by_definition(x, *geometry)
    np.testing.assert_array_equal(device.to_numpy(found._array), values.astype(dtype))
    np.testing.assert_array_equal(device.to_numpy(indices._array), positions)
    assert indices.dtype == mg.int64


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("case", TABLE)
def test_max_of_every_rung(case, rung, rng, check_gradients):
    shape, *geometry = case
    x = distinct(rng, shape)
    with mg.use_kernel("max_pool2d", rung), mg.use_kernel("max_pool2d_input_grad", rung):
        values = F.max_pool2d(mg.tensor(x), *geometry)
        np.testing.assert_array_equal(values.numpy(), max_by_definition(x, *geometry)[0])
        t = mg.tensor(x, requires_grad=True)
        assert mg.testing.gradcheck(lambda t: F.max_pool2d(t, *geometry), [t], elements=20, seed=0)


@pytest.mark.parametrize("case", TABLE)
def test_max_gradients_of_both_orders(case, rng, check_gradients):
    shape, *geometry = case
    if shape[3] < 50:
        check_gradients(lambda t: F.max_pool2d(t, *geometry) ** 2, distinct(rng, shape))


@settings(max_examples=60)
@given(st.data())
def test_max_of_any_geometry(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel, dilation, stride = (draw(1, 4), draw(1, 4)), (draw(1, 2), draw(1, 2)), (draw(1, 3), draw(1, 3))
    padding = draw(0, kernel[0] // 2), draw(0, kernel[1] // 2)
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    shape = (draw(0, 2), draw(1, 2), least[0] + draw(0, 4), least[1] + draw(0, 40))
    x = np.random.default_rng(0).integers(0, 5, shape).astype(np.float64)  # with ties
    geometry = kernel, stride, padding, dilation, data.draw(st.booleans())
    with mg.use_kernel("max_pool2d", data.draw(st.sampled_from(RUNGS))):
        values, indices = F.max_pool2d(mg.tensor(x), *geometry, return_indices=True)
    wanted, positions = max_by_definition(x, *geometry)
    np.testing.assert_array_equal(values.numpy(), wanted)
    np.testing.assert_array_equal(indices.numpy(), positions)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize(("kernel", "rung"), [(3, "threes"), (5, "rows"), (2, "vectorized")])
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_the_gradient_of_windows_that_overlap_is_made_by_rows(pool, kernel, rung):
    x = mg.randn(1, 2, 8, 8, device="sim", requires_grad=True)
    y = pool(x, kernel, 2)
    with sim.profile() as launches:
        y.backward(mg.ones_like(y))
    assert f"{pool.__name__}_input_grad_{rung}" in [launch.kernel.split("<")[0] for launch in launches]


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("pool", [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.avg_pool2d(x, 7)])
def test_the_mean_of_planes_is_a_mean_of_rows(pool, rng):
    x = mg.tensor(rng.standard_normal((2, 5, 7, 7)), device="sim", requires_grad=True)
    with sim.profile() as launches:
        y = pool(x)
        y.backward(mg.ones_like(y))
    kernels = [launch.kernel.split("<")[0] for launch in launches]
    assert kernels.count("reduce_vectorized") == kernels.count("one_window_input_grad") == 1
    np.testing.assert_allclose(y.detach().numpy(), x.detach().numpy().mean((2, 3), keepdims=True), atol=1e-14)
    np.testing.assert_allclose(x.grad.numpy(), 1 / 49)


@pytest.mark.parametrize("rung", RUNGS)
def test_nan_is_the_largest(rung, rng):
    x = rng.standard_normal((1, 2, 9, 18))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[0, 0, :4, :4] = -np.inf
    with mg.use_kernel("max_pool2d", rung):
        for geometry in (((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1))):
            for dtype in (np.float32, np.float64):
                values = F.max_pool2d(mg.tensor(x.astype(dtype)), *geometry)
                wanted, _ = max_by_definition(x, *geometry)
                np.testing.assert_array_equal(values.numpy(), wanted.astype(dtype))


def test_a_tie_goes_to_the_first():
    x = mg.ones(1, 1, 2, 2, requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize("case", AVERAGES)
def test_average_value(case, include_pad, device, rng):
    shape, kernel, stride, padding, _, ceil_mode = case
    x = rng.standard_normal(shape).astype(np.float32)
    for divisor in (None, 3):
        found = F.avg_pool2d(
            mg.tensor(x, device=device), kernel, stride, padding, ceil_mode, include_pad, divisor
        )
        wanted = average_by_definition(
            x.astype(np.float64), kernel, stride, padding, ceil_mode, include_pad, divisor
        )
        mg.testing.assert_close(found, wanted, length=16, magnitude=1.0)


@pytest.mark.parametrize("rung", ["reference", *(k.name for k in mg.list_kernels("avg_pool2d", "cpu"))])
@pytest.mark.parametrize("case", AVERAGES)
def test_average_of_every_rung(case, rung, rng):
    shape, kernel, stride, padding, _, ceil_mode = case
    x = mg.tensor(rng.standard_normal(shape), requires_grad=True)
    with mg.use_kernel("avg_pool2d", rung), mg.use_kernel("avg_pool2d_input_grad", rung):
        found = F.avg_pool2d(x, kernel, stride, padding, ceil_mode)
        wanted = average_by_definition(x.detach().numpy(), kernel, stride, padding, ceil_mode)
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-12, atol=1e-12)
        function = lambda t: F.avg_pool2d(t, kernel, stride, padding, ceil_mode)  # noqa: E731
        assert mg.testing.gradcheck(function, [x], elements=20, seed=0)


@pytest.mark.parametrize("include_pad", [True, False])
def test_average_gradients_of_both_orders(include_pad, check_gradients):
    for shape, kernel, stride, padding, _, ceil_mode in AVERAGES[:-1]:
        check_gradients(
            lambda t, a=(kernel, stride, padding, ceil_mode): F.avg_pool2d(t, *a, include_pad) ** 2,
            (1, 1, *shape[2:]),
        )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (9, 6), 3, (None, 2)])
def test_adaptive_average(size, device, rng, check_gradients):
    x = rng.standard_normal((2, 3, 7, 5)).astype(np.float32)
    found = F.adaptive_avg_pool2d(mg.tensor(x, device=device), size)
    pair = (size, size) if isinstance(size, int) else tuple(7 if s is None else s for s in size)
    mg.testing.assert_close(
        found, adaptive_by_definition(x.astype(np.float64), pair), length=35, magnitude=1.0
    )
    if device.type == "cpu":
        check_gradients(lambda t: F.adaptive_avg_pool2d(t, size) ** 2, (1, 1, 7, 5))


@pytest.mark.parametrize(
    "function",
    [
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.avg_pool2d(t, 3, 1, 1),
        lambda t: F.adaptive_avg_pool2d(t, 2),
    ],
)
def test_single_images_views_and_empty_batches(function, rng):
    x = rng.standard_normal((4, 6, 3, 2))
    batch = mg.tensor(x).permute(3, 2, 0, 1)  # strides in another order
    np.testing.assert_array_equal(function(batch).numpy(), function(batch.contiguous()).numpy())
    np.testing.assert_array_equal(function(batch[1]).numpy(), function(batch).numpy()[1])
    mirrored = batch[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(function(mirrored).numpy(), function(mirrored.contiguous()).numpy())
    empty = mg.ones(0, 3, 4, 6, requires_grad=True)
    out = function(empty)
    out.sum().backward()
    assert out.shape[:2] == (0, 3) and empty.grad.shape == empty.shape


X = mg.ones(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.max_pool2d(X, 6, 1, 0, 1, True), ValueError, r"kernel \(6, 6\).*larger than the padded"),
        (lambda: F.max_pool2d(X, 5), ValueError, r"kernel \(5, 5\).*larger than the padded.*\(1, 1, 4, 4\)"),
        (lambda: F.avg_pool2d(X, (2, 7)), ValueError, r"kernel \(2, 7\).*larger"),
        (lambda: F.max_pool2d(X, 2, padding=2), ValueError, "padding.*half"),
        (lambda: F.avg_pool2d(X, 2, padding=-1), ValueError, "padding.*-1"),
        (lambda: F.max_pool2d(X, 0), ValueError, "kernel_size.*0"),
        (lambda: F.max_pool2d(X, 2, stride=0), ValueError, "stride.*0"),
        (lambda: F.max_pool2d(X, 2, dilation=0), ValueError, "dilation.*0"),
        (lambda: F.max_pool2d(X, 2, dilation=4), ValueError, "dilation.*larger"),
        (lambda: F.max_pool2d(X, 2.5), ValueError, r"kernel_size.*2\.5"),
        (lambda: F.max_pool2d(mg.ones(4, 4), 2), ValueError, r"4 dimensions.*\(4, 4\)"),
        (lambda: F.avg_pool2d(mg.ones(1, 1, 1, 4, 4), 2), ValueError, "4 dimensions"),
        (lambda: F.avg_pool2d(X, 2, divisor_override=0), ValueError, "divisor_override"),
        (lambda: F.adaptive_avg_pool2d(X, 0), ValueError, "output_size.*0"),
        (lambda: F.adaptive_avg_pool2d(X, (1, 2, 3)), ValueError, r"output_size.*\(1, 2, 3\)"),
        (lambda: F.adaptive_avg_pool2d(mg.ones(1, 1, 0, 4), 1), ValueError, r"empty.*\(1, 1, 0, 4\)"),
        (lambda: F.max_pool2d(mg.ones(1, 1, 0, 4), 2), ValueError, "larger"),
        (lambda: F.max_pool2d(X, 2, stride=2**40), ValueError, r"stride.*2\^31"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()
