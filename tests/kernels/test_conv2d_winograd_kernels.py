"""Winograd's convolution on the processor, at every instruction-set level, against float64 definitions.

Errors are held against what the transform matrices predict (``winograd_errors.py``).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_one_test import in_one_test
from winograd_errors import (
    POINTS,
    amplification,
    bound,
    definition,
    deviations,
    groups_of,
    matrices,
    operands,
)

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.dispatch import kernel_table
from minigrad.kernels import cpu

FUNCTIONS = ("forward", "input_grad", "weight_grad")
TILES = ((4, 3), (2, 3), (2, 5))  # pixels of a tile, taps of a kernel, along one side

functions = pytest.mark.parametrize("function", FUNCTIONS)
tiles = pytest.mark.parametrize("step, kernel", TILES)


@pytest.fixture(scope="session")
def winograd(kernel_module):
    return kernel_module("conv2d_winograd")


# ---- what errors to expect ---------------------------------------------------------------------------------


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


# ---- values ------------------------------------------------------------------------------------------------


def compute(module, function, pad, x, weight, bias, grad_output, threads=1, step=0):
    inputs, like = {
        "forward": ((x, weight, bias), grad_output),
        "input_grad": ((grad_output, weight), x),
        "weight_grad": ((grad_output, x), weight),
    }[function]
    out = np.full(like.shape, np.nan, np.float32)
    getattr(module, function)(out, *inputs, 1, 1, *pad, 1, 1, groups_of(x, weight), threads, step)
    return out


def assert_correct(module, function, pad, arrays, threads, step):
    out = compute(module, function, pad, *arrays, threads, step)
    error = np.abs(out - definition(function, pad, *arrays))
    assert np.all(error <= bound(function, step, arrays)), f"error {np.max(error)}"


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
@in_one_test("threads", (1, 2, 3))
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
