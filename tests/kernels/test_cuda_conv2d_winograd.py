"""Winograd's convolution on CUDA against definitions in float64, on the simulator and on a card."""

import itertools
from functools import partial

import numpy as np
import pytest
from winograd_errors import bound, definition, deviations, groups_of, operands

import minigrad as mg
from minigrad.dispatch import Spec, kernel_table
from minigrad.kernels import sim
from minigrad.kernels.cuda import conv2d_winograd as winograd

FUNCTIONS = ("forward", "input_grad", "weight_grad")
STEP = winograd.STEP

functions = pytest.mark.parametrize("function", FUNCTIONS)
needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

SHAPES = [
    # N, C, O, (H, W), padding, and where there are groups: 3, and their number
    (1, 1, 1, (4, 4), (0, 0)),
    (2, 3, 5, (7, 9), (1, 1)),
    (2, 5, 4, (8, 8), (1, 1), 3, 2),  # outputs of whole vectors
    (3, 17, 12, (8, 11), (0, 3), 3, 2),
    (1, 12, 70, (13, 5), (3, 0)),  # more channels than a tile of a product has
    (1, 5, 6, (1, 2), (2, 3)),
    (1, 4, 3, (2, 2), (9, 9)),  # some tiles see padding only
    (1, 2, 3, (3, 290), (1, 1)),  # more tiles than a block has
]
EMPTY = [
    (0, 3, 4, (5, 5), (1, 1)),
    (2, 0, 4, (5, 5), (1, 1)),
    (2, 9, 0, (5, 5), (1, 1)),
    (2, 3, 5, (0, 4), (2, 1)),
]


def call(run, function, pad, x, weight, bias, grad_output):
    inputs, like = {
        "forward": ((x, weight, bias), grad_output),
        "input_grad": ((grad_output, weight), x),
        "weight_grad": ((grad_output, x), weight),
    }[function]
    options = (1, 1, *pad, 1, 1, groups_of(x, weight))
    return run(getattr(winograd, function), like.shape, np.float32, *inputs, *options)


def assert_correct(run, function, pad, arrays):
    error = np.abs(call(run, function, pad, *arrays) - definition(function, pad, *arrays))
    assert np.all(error <= bound(function, STEP, arrays)), f"error {np.max(error)}"


@functions
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_definition(run, shape, function):
    assert_correct(run, function, shape[4], operands(*shape))


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_relu_is_applied_to_the_same_bits(run, shape):
    x, weight, bias, grad = operands(*shape)
    options = (1, 1, *shape[4], 1, 1, groups_of(x, weight))
    x = np.where(np.arange(x.shape[-1]) == 2, np.nan, x).astype(np.float32)
    out = run(winograd.forward, grad.shape, np.float32, x, weight, bias, *options)
    found = run(partial(winograd.forward, relu=True), grad.shape, np.float32, x, weight, bias, *options)
    assert np.isnan(out).any()
    assert np.array_equal(found, np.maximum(out, 0), equal_nan=True)


@functions
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_in_chunks(run, monkeypatch, shape, function):
    """Of 16 tiles, so that they end within images."""
    channels = shape[1] + shape[2]
    groups = shape[6] if len(shape) > 6 else 1
    monkeypatch.setattr(winograd, "WORKSPACE", 16 * winograd.POINTS * 4 * channels * groups)
    monkeypatch.setattr(winograd, "ROW", 4)
    shape = (7, *shape[1:])
    assert_correct(run, function, shape[4], operands(*shape))


@functions
@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty_dimensions(run, shape, function, groups):
    arrays = operands(*shape, 3, groups if shape[1] else 1)
    out = call(run, function, shape[4], *arrays)
    expected = arrays[2][:, None, None] if function == "forward" else 0
    np.testing.assert_array_equal(out, np.broadcast_to(expected, out.shape))


def test_forward_without_bias(run):
    x, weight, bias, grad_output = operands(*SHAPES[1])
    out = call(run, "forward", (1, 1), x, weight, None, grad_output)
    np.testing.assert_array_equal(out, call(run, "forward", (1, 1), x, weight, 0 * bias, grad_output))


@functions
def test_error_on_data_of_unit_variance(run, function):
    pad, arrays = (1, 1), operands(2, 40, 32, (12, 12), (1, 1))
    error = call(run, function, pad, *arrays) - definition(function, pad, *arrays)
    assert np.mean(error**2) < np.mean(deviations(function, STEP, arrays) ** 2)
    assert np.max(np.abs(error)) < bound(function, STEP, arrays)


@pytest.mark.parametrize("function", ("forward", "input_grad"))
@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_value_that_is_not_finite_reaches_its_tiles_alone(run, function, value):
    pad, (x, weight, bias, grad_output) = (1, 1), operands(2, 3, 5, (13, 14), (1, 1))
    x, grad_output = x.copy(), grad_output.copy()
    (x if function == "forward" else grad_output)[1, 2, 6, 3] = value
    with np.errstate(invalid="ignore"):
        reached = ~np.isfinite(definition(function, pad, x, weight, bias, grad_output))
    lost = ~np.isfinite(call(run, function, pad, x, weight, bias, grad_output))
    in_tiles = np.zeros_like(reached)
    for _, _, i, j in np.argwhere(reached):
        in_tiles[1, :, i // STEP * STEP :, j // STEP * STEP :][:, :STEP, :STEP] = True
    assert np.all(lost[reached])
    assert not np.any(lost[~in_tiles])


def test_what_does_not_fit_is_refused():
    x, weight, _, out = (array.copy() for array in operands(*SHAPES[1]))
    options = (1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="float32, 3x3 kernels, and stride and dilation 1 expected"):
        winograd.forward(out.astype("f8"), x.astype("f8"), weight.astype("f8"), None, *options)
    with pytest.raises(ValueError, match=r"got float32, \(5, 5\)"):
        winograd.input_grad(x, out[..., :-2].copy()[:, :, :-2], np.ones((5, 3, 5, 5), "f4"), *options)
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(1, 1\)"):
        winograd.weight_grad(weight, out[:, :, :4].copy(), x, 2, *options[1:])
    with pytest.raises(ValueError, match="do not fit together"):
        winograd.forward(out, x[:, :2].copy(), weight, None, *options)


# ---- on the simulator alone --------------------------------------------------------------------------------


def all_results():
    x, weight, bias, grad_output = operands(2, 3, 5, (5, 6), (1, 2), 3, 2)
    results = [np.empty_like(a) for a in (grad_output, x, weight)]
    options = (1, 1, 1, 2, 1, 1, 2)
    winograd.forward(results[0], x, weight, bias, *options)
    winograd.input_grad(results[1], grad_output, weight, *options)
    winograd.weight_grad(results[2], grad_output, x, *options)
    return b"".join(result.tobytes() for result in results)


@needs_simulator
def test_every_thread_order_gives_the_same_bits():
    expected = all_results()
    for seed, workers in itertools.product((1, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert all_results() == expected


@needs_simulator
def test_every_access_is_allowed():
    with sim.checks():
        checked = all_results()
    assert checked == all_results()


# ---- when it runs ------------------------------------------------------------------------------------------

LARGE = (64, 64, 64, (56, 56), (1, 1))


def chosen_for_all(shape, dtype=np.float32, **attrs):
    """The kernels chosen for the three functions of one layer on a card; there need be none for that."""
    n, channels, out_channels, size, pad, groups = (*shape, 1)[:6]
    x, weight, out = (
        Spec(s, np.dtype(dtype))
        for s in (
            (n, channels * groups, *size),
            (out_channels * groups, channels, 3, 3),
            (n, out_channels * groups, *(s + 2 * p - 2 for s, p in zip(size, pad, strict=True))),
        )
    )
    options = {"stride": (1, 1), "padding": pad, "dilation": (1, 1), "groups": groups} | attrs
    return {
        kernel_table(op).choose("cuda", x.dtype, [*arrays], options | more).name
        for op, arrays, more in (
            ("conv2d", (x, weight, None), {}),
            ("conv2d_input_grad", (out, weight), {"input_size": size}),
            ("conv2d_weight_grad", (out, x), {"kernel_size": (3, 3)}),
        )
    }


def test_it_is_taken_where_it_is_faster_and_allowed():
    assert chosen_for_all(LARGE) == {"winograd"}
    assert chosen_for_all((128, 128, 128, (28, 28), (1, 1))) == {"winograd"}
    assert chosen_for_all((64, 64, 64, (56, 56), (1, 1), 2)) == {"winograd"}  # in 2 groups
    assert "winograd" not in chosen_for_all(LARGE, np.float64)
    assert "winograd" not in chosen_for_all((64, 3, 64, (56, 56), (1, 1)))  # too few channels
    assert "winograd" not in chosen_for_all((64, 1, 1, (56, 56), (1, 1), 64))  # depthwise
    assert "winograd" not in chosen_for_all((2, 64, 64, (8, 8), (1, 1)))  # launches take longer than the work
    assert "winograd" not in chosen_for_all(LARGE, stride=(2, 1))
    with mg.convolution_precision("highest"):
        assert "winograd" not in chosen_for_all(LARGE)
        with mg.use_kernel("conv2d", "winograd"):  # the user's word counts
            assert "winograd" in chosen_for_all(LARGE)
