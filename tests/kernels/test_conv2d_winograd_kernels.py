"""Winograd's convolution on the processor, at every instruction-set level, against float64 definitions.

Errors are held against what the transform matrices predict; the matrices are made here from their points, by
the definition, and not taken from the kernel.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.dispatch import kernel_table
from minigrad.kernels import cpu

FUNCTIONS = ("forward", "input_grad", "weight_grad")
TILES = ((4, 3), (2, 3), (2, 5))  # pixels of a tile, taps of a kernel, along one side
POINTS = {6: (0, 0.75, -0.75, 1.5, -1.5), 4: (0, 1, -1)}  # number of points -> all of them but infinity

functions = pytest.mark.parametrize("function", FUNCTIONS)
tiles = pytest.mark.parametrize("step, kernel", TILES)


@pytest.fixture(scope="session")
def winograd(kernel_module):
    return kernel_module("conv2d_winograd")


# ---- what errors to expect ---------------------------------------------------------------------------------


def matrices(points, outputs, taps):
    """A^T (outputs, n), G (n, taps) and B^T (n, n) for n - 1 ``points`` and infinity."""
    n = outputs + taps - 1
    a, g, b = np.zeros((outputs, n)), np.zeros((n, taps)), np.zeros((n, n))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, i] = [p**k for k in range(outputs)]
        g[i] = np.array([p**k for k in range(taps)]) / np.prod([p - q for q in others])
        b[i, : n - 1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a, g, b


def predicted_errors(step, kernel, channels, weight_grad=False):
    """The standard deviations of the errors that float32's rounding causes in the outputs of one tile.

    Inputs and weights are independent, of unit variance, and ``channels`` is how many products each point
    sums up. Every rounding is taken as an independent error of standard deviation u times that of the number
    rounded (it is at most u times the number), and every partial sum of a transform to be as large as the
    whole, its terms as independent. So there are 4 roundings in a pass over inputs, 4 over kernels and 5 over
    products, in each of two passes, and one for each sum of products; errors pass through the transforms as
    the numbers do, variances times squared entries.
    """
    u = np.finfo(np.float32).eps / 2
    points = POINTS[step + kernel - 1]
    a, g, b = matrices(points, kernel, step) if weight_grad else matrices(points, step, kernel)
    values, kernels = (np.outer(norms, norms) for norms in ((b**2).sum(1), (g**2).sum(1)))
    products = channels * values * kernels
    errors = u**2 * (products * (2 * 4 + 2 * 4) + values * kernels * channels * (channels + 1) / 2)
    return np.sqrt(a**2 @ (errors + 2 * 5 * u**2 * products) @ (a**2).T)


def amplification(points, outputs, taps):
    """How much larger the error of the products' sums is in the worst output of a tile than that of the same
    number of roundings in the definition."""
    a, g, b = matrices(points, outputs, taps)
    return ((a**2) @ ((b**2).sum(1) * (g**2).sum(1))).max() / taps


def test_the_matrices_compute_a_correlation(rng):
    for outputs, taps in (*TILES, (3, 4), (3, 2), (5, 2)):
        a, g, b = matrices(POINTS[outputs + taps - 1], outputs, taps)
        signal, kernel = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
        np.testing.assert_allclose(
            a @ ((g @ kernel) * (b @ signal)), np.correlate(signal, kernel), atol=1e-12
        )


def test_these_points_amplify_less_than_the_usual_ones():
    assert 3.5 < amplification((0, 1, -1, 2, -2), 4, 3) / amplification(POINTS[6], 4, 3) < 3.6
    for step, kernel in TILES:
        assert amplification(POINTS[step + kernel - 1], step, kernel) < 9


# ---- the definition ----------------------------------------------------------------------------------------


def taps(x, pad, kernel):
    """x (N, C, H, W) as (N, C, OH, OW, K, K): the pixels under each tap, for each output."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2))
    return sliding_window_view(padded, (kernel, kernel), axis=(2, 3))


def definition(function, pad, x, weight, bias, grad_output):
    groups = groups_of(x, weight)
    weights, biases = np.split(weight.astype(np.float64), groups), np.split(bias, groups)
    images, gradients = (np.split(a.astype(np.float64), groups, axis=1) for a in (x, grad_output))
    parts = [
        of_group(function, pad, *group) for group in zip(images, weights, biases, gradients, strict=True)
    ]
    return np.concatenate(parts, axis=0 if function == "weight_grad" else 1)


def groups_of(x, weight):
    return x.shape[1] // max(weight.shape[1], 1) or 1


def of_group(function, pad, x, weight, bias, grad_output):
    kernel = weight.shape[2]
    if function == "forward":
        out = np.einsum("ncijuv,ocuv->noij", taps(x, pad, kernel), weight, optimize=True)
        return out + bias[:, None, None]
    if function == "weight_grad":
        return np.einsum("ncijuv,noij->ocuv", taps(x, pad, kernel), grad_output, optimize=True)
    (height, width), (rows, columns) = x.shape[2:], grad_output.shape[2:]
    grad = np.zeros((*x.shape[:2], height + 2 * pad[0], width + 2 * pad[1]))
    for u in range(kernel):
        for v in range(kernel):
            grad[:, :, u : u + rows, v : v + columns] += np.einsum(
                "noij,oc->ncij", grad_output, weight[:, :, u, v], optimize=True
            )
    return grad[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width]


@lru_cache
def operands(n, channels, out_channels, size, pad, kernel=3, groups=1, seed=0):
    """x, weight, bias and grad_output, of unit variance; with so many channels in each group."""
    out_size = tuple(s + 2 * p - kernel + 1 for s, p in zip(size, pad, strict=True))
    shapes = (
        (n, groups * channels, *size),
        (groups * out_channels, channels, kernel, kernel),
        (groups * out_channels,),
        (n, groups * out_channels, *out_size),
    )
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def compute(module, function, pad, x, weight, bias, grad_output, threads=1, step=0):
    inputs, like = {
        "forward": ((x, weight, bias), grad_output),
        "input_grad": ((grad_output, weight), x),
        "weight_grad": ((grad_output, x), weight),
    }[function]
    out = np.full(like.shape, np.nan, np.float32)
    getattr(module, function)(out, *inputs, 1, 1, *pad, 1, 1, groups_of(x, weight), threads, step)
    return out


def deviations(function, step, arrays):
    x, weight, _, grad_output = arrays
    tiles = x.shape[0] * -(-grad_output.shape[2] // step) * -(-grad_output.shape[3] // step)
    out_channels = weight.shape[0] // groups_of(x, weight)
    terms = {"forward": weight.shape[1], "input_grad": out_channels, "weight_grad": tiles}[function]
    return predicted_errors(step, weight.shape[2], max(terms, 1), function == "weight_grad")


def bound(function, step, arrays):
    """Six standard deviations: 2e-9 of normally distributed errors exceed them."""
    return 6 * deviations(function, step, arrays).max()


def assert_correct(module, function, pad, arrays, threads, step):
    out = compute(module, function, pad, *arrays, threads, step)
    error = np.abs(out - definition(function, pad, *arrays))
    assert np.all(error <= bound(function, step, arrays)), f"error {np.max(error)}"


# ---- values ------------------------------------------------------------------------------------------------

SHAPES = [
    # N, C, O, (H, W), padding
    (1, 1, 1, (4, 4), (0, 0)),
    (2, 3, 5, (7, 9), (1, 1)),
    (3, 17, 40, (8, 11), (0, 3)),
    (1, 40, 33, (13, 5), (3, 0)),
    (2, 16, 64, (14, 14), (1, 1)),
    (1, 300, 20, (6, 7), (2, 2)),
    (33, 8, 9, (4, 3), (1, 1)),
    (1, 5, 6, (1, 2), (2, 3)),
    (1, 4, 3, (2, 2), (9, 9)),
    (1, 9, 10, (3, 70), (1, 1)),
    # Weights that outgrow the cache: the threads share output channels.
    (1, 200, 210, (7, 6), (1, 1)),
    (40, 260, 121, (5, 8), (0, 2)),
]
EMPTY = [
    (0, 3, 4, (5, 5), (1, 1)),
    (2, 0, 4, (5, 5), (1, 1)),
    (2, 9, 0, (5, 5), (1, 1)),
    (2, 3, 5, (0, 4), (1, 1)),
    (2, 3, 5, (2, 0), (0, 1)),
]


def with_kernel(shape, kernel):
    """The same images and outputs with larger kernels: the padding makes up for them."""
    return (*shape[:-1], tuple(p + (kernel - 3) // 2 for p in shape[-1]), kernel)


@tiles
@functions
@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_definition(winograd, shape, function, threads, step, kernel):
    shape = with_kernel(shape, kernel)
    assert_correct(winograd, function, shape[-2], operands(*shape), threads, step)


@tiles
@functions
@pytest.mark.parametrize("groups, channels, out_channels", ((2, 17, 5), (3, 1, 20), (2, 150, 140)))
def test_groups(winograd, function, groups, channels, out_channels, step, kernel):
    arrays = operands(3, channels, out_channels, (9, 6), (1, 2), kernel, groups)
    for threads in (1, 2):
        assert_correct(winograd, function, (1, 2), arrays, threads, step)


@given(
    shape=st.tuples(
        st.integers(0, 3),
        *(st.integers(1, 40),) * 2,
        st.tuples(st.integers(1, 13), st.integers(1, 13)),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
    ).filter(lambda shape: min(s + 2 * p for s, p in zip(*shape[3:], strict=True)) >= 3),
    groups=st.integers(1, 3),
    threads=st.integers(1, 3),
    tile=st.sampled_from(TILES),
)
@settings(max_examples=60, deadline=None)
def test_any_size(shape, groups, threads, tile):
    step, kernel = tile
    shape = with_kernel(shape, kernel)
    module, arrays = cpu.kernel_module("conv2d_winograd"), operands(*shape, groups)
    for function in FUNCTIONS:
        assert_correct(module, function, shape[-2], arrays, threads, step)


@tiles
@functions
@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty_dimensions(winograd, shape, function, groups, step, kernel):
    shape = with_kernel(shape, kernel)
    arrays = operands(*shape, groups if shape[1] else 1)
    out = compute(winograd, function, shape[-2], *arrays, 2, step)
    expected = arrays[2][:, None, None] if function == "forward" else 0
    np.testing.assert_array_equal(out, np.broadcast_to(expected, out.shape))


def test_forward_without_bias(winograd):
    x, weight, bias, grad_output = operands(*SHAPES[2])
    out = compute(winograd, "forward", SHAPES[2][-1], x, weight, None, grad_output)
    zero_bias = compute(winograd, "forward", SHAPES[2][-1], x, weight, 0 * bias, grad_output)
    np.testing.assert_array_equal(out, zero_bias)


@tiles
@functions
@pytest.mark.parametrize("channels", (1, 16, 128))
def test_error_on_data_of_unit_variance(winograd, function, channels, step, kernel):
    pad, arrays = (1, 1), operands(2, channels, channels, (24, 24), (1, 1), kernel)
    error = compute(winograd, function, pad, *arrays, 2, step) - definition(function, pad, *arrays)
    assert np.mean(error**2) < np.mean(deviations(function, step, arrays) ** 2)
    assert np.max(np.abs(error)) < bound(function, step, arrays)


@tiles
@pytest.mark.parametrize("function", ("forward", "input_grad"))
@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_value_that_is_not_finite_reaches_its_tiles_alone(winograd, function, value, step, kernel):
    pad, (x, weight, bias, grad_output) = (1, 1), operands(2, 9, 20, (13, 14), (1, 1), kernel)
    x, grad_output = x.copy(), grad_output.copy()
    (x if function == "forward" else grad_output)[1, 2, 6, 3] = value
    with np.errstate(invalid="ignore"):
        reached = ~np.isfinite(definition(function, pad, x, weight, bias, grad_output))
    lost = ~np.isfinite(compute(winograd, function, pad, x, weight, bias, grad_output, 1, step))
    in_tiles = np.zeros_like(reached)
    for _, _, i, j in np.argwhere(reached):
        in_tiles[1, :, i // step * step :, j // step * step :][:, :step, :step] = True
    assert np.all(lost[reached])
    assert not np.any(lost[~in_tiles])


# ---- memory and threads ------------------------------------------------------------------------------------


@functions
def test_the_same_bits_in_every_run(winograd, function):
    pad, arrays = (1, 1), operands(9, 20, 24, (20, 21), (1, 1), groups=2)
    runs = {
        threads: [compute(winograd, function, pad, *arrays, threads) for _ in range(2)]
        for threads in (1, 2, 3)
    }
    for first, second in runs.values():
        np.testing.assert_array_equal(first, second)
    if function != "weight_grad":  # whose sums are split among threads
        np.testing.assert_array_equal(runs[1], runs[3])


@functions
def test_arrays_may_lie_anywhere(winograd, function):
    """At addresses that are no multiple of a vector, between garbage that is neither read nor written."""
    shape = (2, 17, 19, (7, 9), (1, 1))

    def surrounded(array):
        memory = np.full(array.size + 6, np.nan, np.float32)
        memory[3:-3] = array.ravel()
        return memory, memory[3:-3].reshape(array.shape)

    x, weight, bias, grad_output = (surrounded(array)[1] for array in operands(*shape))
    like, inputs = {
        "forward": (grad_output, (x, weight, bias)),
        "input_grad": (x, (grad_output, weight)),
        "weight_grad": (weight, (grad_output, x)),
    }[function]
    memory, out = surrounded(np.empty_like(like))
    getattr(winograd, function)(out, *inputs, 1, 1, 1, 1, 1, 1, 1, 2)
    assert np.isnan(memory[:3]).all() and np.isnan(memory[-3:]).all()
    np.testing.assert_array_equal(out, compute(winograd, function, (1, 1), *operands(*shape), 2))


def test_python_threads_may_run_it_at_once(winograd):
    calls = [
        (function, operands(4, 20, 17 + seed, (16, 16), (1, 1), seed=seed))
        for function in FUNCTIONS
        for seed in range(3)
    ]
    alone = [compute(winograd, function, (1, 1), *arrays, 2) for function, arrays in calls]
    with ThreadPoolExecutor(4) as pool:
        together = [
            pool.submit(compute, winograd, function, (1, 1), *arrays, 2) for function, arrays in calls
        ]
    for expected, future in zip(alone, together, strict=True):
        np.testing.assert_array_equal(future.result(), expected)


def test_bad_arguments_are_refused(winograd):
    x, weight, bias, out = (array.copy() for array in operands(*SHAPES[1]))
    options = (1, 1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(TypeError):
        winograd.forward(out, x.astype(np.float64), weight, bias, *options)
    with pytest.raises(ValueError, match="shapes do not fit"):
        winograd.forward(out[:, :, 1:].copy(), x, weight, bias, *options)
    with pytest.raises(ValueError, match="shapes do not fit"):
        winograd.input_grad(x, out, weight[:, :, :, 1:].copy(), *options)
    with pytest.raises(ValueError, match="shapes do not fit"):
        winograd.weight_grad(weight, out, x, 1, 1, 2, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="shapes do not fit"):
        winograd.forward(out, x, weight, bias, 1, 1, 1, 1, 1, 1, 3, 1)
    with pytest.raises(ValueError, match="stride and dilation"):
        winograd.forward(out, x, weight, bias, 2, *options[1:])
    with pytest.raises(ValueError, match="bias"):
        winograd.forward(out, x, weight, bias[1:], *options)
    with pytest.raises(ValueError, match="4 or 2"):
        winograd.forward(out, x, weight, bias, *options, 3)
    with pytest.raises(ValueError, match="C-contiguous"):
        winograd.forward(out, x[:, :, ::-1], weight, bias, *options)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        winograd.forward(out, x, weight, bias, *options)
    x, weight, bias, out = (array.copy() for array in operands(*with_kernel(SHAPES[1], 5)))
    with pytest.raises(ValueError, match="of 2 for 5x5 kernels"):
        winograd.forward(out, x, weight, bias, 1, 1, 2, 2, 1, 1, 1, 1, 4)


# ---- when it is taken --------------------------------------------------------------------------------------

LARGE = (8, 32, 32, (16, 16), (1, 1))


def chosen(op, arrays, **attrs):
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1} | attrs
    return kernel_table(op).choose("cpu", arrays[0].dtype, arrays, options).name


def chosen_for_all(dtype=np.float32, shape=LARGE):
    x, weight, bias, grad_output = (array.astype(dtype) for array in operands(*shape))
    options = {"padding": shape[4], "groups": groups_of(x, weight)}
    return {
        chosen("conv2d", (x, weight, bias), **options),
        chosen("conv2d", (x, weight, None), **options),
        chosen("conv2d_input_grad", (grad_output, weight), input_size=x.shape[2:], **options),
        chosen("conv2d_weight_grad", (grad_output, x), kernel_size=weight.shape[2:], **options),
    }


def test_it_is_taken_where_it_is_faster_and_allowed():
    assert chosen_for_all() == {"winograd"}
    assert chosen_for_all(shape=with_kernel(LARGE, 5)) == {"winograd"}
    assert chosen_for_all(shape=(*LARGE, 3, 4)) == {"winograd"}  # in 4 groups
    assert "winograd" not in chosen_for_all(shape=(8, 8, 8, (16, 16), (1, 1), 3, 4))  # small groups
    assert "winograd" not in chosen_for_all(np.float64)
    assert "winograd" not in chosen_for_all(shape=(1, 3, 4, (16, 16), (1, 1)))  # too few channels
    assert "winograd" not in chosen_for_all(shape=(32, 64, 64, (2, 2), (1, 1)))  # little of a tile
    with mg.convolution_precision("highest"):
        assert "winograd" not in chosen_for_all()
        with mg.use_kernel("conv2d", "winograd"):  # the user's word counts
            assert "winograd" in chosen_for_all()
    with mg.use_kernel("conv2d", "implicit_gemm"):
        assert "implicit_gemm" in chosen_for_all()


@pytest.mark.parametrize("options", ({"stride": (2, 1)}, {"dilation": (1, 2)}, {"padding": (99, 1)}), ids=str)
def test_it_is_not_taken_for_other_convolutions(options):
    x, weight, bias, _ = operands(*LARGE)
    assert chosen("conv2d", (x, weight, bias), **options) != "winograd"
    assert chosen("conv2d", (x, weight[..., :2], bias)) != "winograd"


def test_precision_can_be_set_and_asked_for():
    assert mg.get_convolution_precision() == "high"
    with mg.convolution_precision("highest"):
        assert mg.get_convolution_precision() == "highest"
    assert mg.get_convolution_precision() == "high"
    with pytest.raises(ValueError, match="expected one of highest, high, got 'low'"):
        mg.set_convolution_precision("low")
    assert mg.get_convolution_precision() == "high"


def test_the_highest_precision_is_that_of_the_definition():
    """Sums of 9 C products, in any order, have errors of at most gamma(9 C) times the sum of their absolute
    values (Higham, Accuracy and Stability, section 3.5); here also the gradients that backward computes."""
    arrays = operands(*LARGE)
    x, weight, _, grad_output = (mg.from_numpy(array.copy()) for array in arrays)
    x.requires_grad_(), weight.requires_grad_()
    with mg.convolution_precision("highest"):
        out = F.conv2d(x, weight, padding=1)
        out.backward(grad_output)
    found = {"forward": out.detach(), "input_grad": x.grad, "weight_grad": weight.grad}
    terms = {"forward": 9 * 32, "input_grad": 9 * 32, "weight_grad": 8 * 16 * 16}
    no_bias = (*arrays[:2], 0 * arrays[2], arrays[3])
    for function, result in found.items():
        exact = definition(function, (1, 1), *no_bias)
        absolute = definition(function, (1, 1), *map(np.abs, no_bias))
        t = terms[function] * np.finfo(np.float32).eps / 2
        assert np.all(np.abs(result.numpy() - exact) <= t / (1 - t) * absolute)
