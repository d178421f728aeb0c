"""The CUDA kernels of convolution against the definition in float64, on the simulator and on a card."""

import itertools
from functools import partial

import numpy as np
import pytest
from convolution_problems import CASES, by_definition, output_shape

from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import conv2d
from minigrad.kernels.cuda import conv2d_depthwise as depthwise
from minigrad.kernels.cuda import conv2d_implicit_gemm as gemm
from minigrad.kernels.cuda import conv2d_pipelined as pipelined
from minigrad.kernels.cuda import conv2d_strips as strips

RUNGS = {  # (forward, gradient for the input, gradient for the weight)
    "direct": (conv2d.forward, conv2d.input_grad, conv2d.weight_grad),
    "tiled": (gemm.forward_tiled, gemm.input_grad_tiled, gemm.weight_grad_tiled),
    "implicit_gemm": (gemm.forward, gemm.input_grad, gemm.weight_grad),
    "pipelined": (pipelined.forward, pipelined.input_grad, pipelined.weight_grad),
    "depthwise": (depthwise.forward, depthwise.input_grad, depthwise.weight_grad),
    "strips": (strips.forward, strips.input_grad, strips.weight_grad),
}
DTYPES = [np.float32, np.float64]
FLOAT32_ALONE = {"pipelined"}
needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

DEPTHWISE = [
    *(case for case in CASES if case[1][1] == 1),
    ((2, 3, 35, 34), (3, 1, 3, 3), (1, 1), (1, 1), (1, 1), 3),  # more than a tile
    ((2, 2, 9, 70), (6, 1, 2, 5), (1, 2), (1, 3), (2, 1), 2),  # three outputs of each channel
    ((1, 2, 13, 12), (4, 1, 2, 2), (2, 2), (3, 2), (2, 2), 2),  # a source that fills the shared memory
    ((1, 2, 5, 11), (2, 1, 2, 2), (1, 3), (2, 4), (1, 1), 2),  # a stride beyond the kernel
    ((2, 1, 6, 9), (2, 1, 4, 5), (1, 1), (0, 2), (1, 1), 1),  # more taps than a block of weight_grad takes
    ((3, 1, 60, 50), (2, 1, 3, 3), (1, 1), (0, 0), (1, 1), 1),  # sums long enough to be cut into parts
]
STRIPS = [
    *(case for case in DEPTHWISE if strips.fits(case[1][2:], case[2], case[4])),
    ((2, 2, 17, 10), (4, 1, 3, 3), (2, 2), (1, 1), (1, 1), 2),  # two outputs of each channel
    ((2, 3, 12, 11), (3, 1, 3, 3), (2, 2), (0, 3), (1, 1), 3),
    ((9, 1, 20, 23), (3, 1, 5, 5), (1, 1), (2, 3), (1, 1), 1),  # images enough to be cut into parts
    ((2, 2, 9, 11), (2, 1, 5, 5), (2, 2), (2, 5), (1, 1), 2),
    ((2, 3, 17, 8), (3, 1, 3, 3), (1, 1), (0, 1), (1, 1), 3),  # as wide as vectors
    ((9, 2, 6, 4), (4, 1, 5, 5), (1, 1), (2, 2), (1, 1), 2),
    ((2, 3, 17, 12), (3, 1, 3, 3), (2, 2), (1, 1), (1, 1), 3),  # and with a stride
    ((3, 2, 11, 8), (4, 1, 3, 3), (2, 2), (0, 1), (1, 1), 2),
    ((2, 2, 9, 8), (2, 1, 5, 5), (2, 2), (2, 2), (1, 1), 2),
    ((1, 1, 22, 4), (3, 1, 5, 5), (2, 2), (3, 2), (1, 1), 1),
]
TAKES = {"depthwise": DEPTHWISE, "strips": STRIPS}
IN_PARTS = [  # few results and long sums, for pipelined
    ((2, 80, 4, 5), (6, 80, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 70, 6, 5), (40, 35, 3, 3), (2, 2), (1, 1), (1, 1), 2),
    ((1, 4, 7, 6), (70, 4, 3, 4), (2, 2), (1, 0), (2, 1), 1),  # phases of 6 taps and of none
    ((1, 3, 9, 8), (420, 3, 1, 2), (3, 3), (0, 0), (1, 1), 1),
]
BOTH = [(rung, case) for rung in RUNGS for case in TAKES.get(rung, CASES)]
BOTH += [("pipelined", case) for case in IN_PARTS]


@pytest.fixture(params=["sim", "cuda"])
def run(request):
    """``run(kernel, shape, dtype, *args)``: the output of ``kernel``, which starts filled with NaN."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    put, get = (np.array, np.array) if request.param == "sim" else (cuda.cupy().asarray, cuda.cupy().asnumpy)

    def run(kernel, shape, dtype, *args, fill=np.nan):
        out = put(np.full(shape, fill, dtype))
        kernel(out, *(put(a) if isinstance(a, np.ndarray) else a for a in args))
        return get(out)

    return run


def inputs(case, dtype=np.float64):
    """Random x, weight, bias and gradient of the output, and the options as the kernels take them."""
    shapes = case[0], case[1], case[1][:1], output_shape(case)
    arrays = [np.random.default_rng(i).standard_normal(s).astype(dtype) for i, s in enumerate(shapes)]
    _, _, stride, padding, dilation, groups = case
    return *arrays, (*stride, *padding, *dilation, groups)


def assert_sums(actual, expected, magnitude, length):
    """Sums of ``length`` terms, whose absolute values add up to ``magnitude``, are exact for the dtype."""
    bound = (length + 2) * np.finfo(actual.dtype).eps * magnitude
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= bound), np.abs(actual - expected).max()


@pytest.mark.parametrize(
    ("rung", "case", "dtype"),
    [(r, c, d) for r, c in BOTH for d in DTYPES if r not in FLOAT32_ALONE or d is np.float32],
)
def test_convolution_and_its_gradients(run, dtype, rung, case):
    forward, input_grad, weight_grad = RUNGS[rung]
    x, weight, bias, grad, options = inputs(case, dtype)
    out, grad_x, grad_weight = by_definition(x, weight, grad, options)
    magnitudes = by_definition(abs(x), abs(weight), abs(grad), options)
    taps = weight[0].size
    assert_sums(run(forward, grad.shape, dtype, x, weight, None, *options), out, magnitudes[0], taps)
    assert_sums(
        run(forward, grad.shape, dtype, x, weight, bias, *options),
        out + bias[:, None, None],
        magnitudes[0] + abs(bias[:, None, None]),
        taps + 1,
    )
    length = weight[:, 0].size // case[-1]
    assert_sums(run(input_grad, x.shape, dtype, grad, weight, *options), grad_x, magnitudes[1], length)
    length = grad[:, 0].size
    assert_sums(run(weight_grad, weight.shape, dtype, grad, x, *options), grad_weight, magnitudes[2], length)


@pytest.mark.parametrize(
    ("rung", "case"), [(r, c) for r, c in BOTH if c[0][0] == 2 or (c[0][2] > 9 and r == "strips")]
)
def test_relu_is_applied_to_the_same_bits(run, rung, case):
    """And lets NaN through."""
    forward = partial(RUNGS[rung][0], relu=True)
    x, weight, bias, grad, options = inputs(case, np.float32)
    x[0, 0, 0, -1], x[-1, -1, -1, 0] = np.nan, -np.inf
    for added in (bias, None):
        out = run(RUNGS[rung][0], grad.shape, "f4", x, weight, added, *options)
        found = run(forward, grad.shape, "f4", x, weight, added, *options)
        assert np.array_equal(found, np.maximum(out, 0), equal_nan=True)


@pytest.mark.parametrize("rung", RUNGS)
def test_empty_arrays(run, rung):
    forward, input_grad, weight_grad = RUNGS[rung]
    options = (1, 1, 0, 0, 1, 1, 1)
    x, weight, grad = np.empty((0, 1, 4, 4), "f4"), np.ones((3, 1, 3, 3), "f4"), np.empty((0, 3, 2, 2), "f4")
    assert run(forward, grad.shape, "f4", x, weight, None, *options).shape == grad.shape
    assert run(input_grad, x.shape, "f4", grad, weight, *options).shape == x.shape
    assert not run(weight_grad, weight.shape, "f4", grad, x, *options).any()
    # No channels: a sum of nothing.
    x, weight, grad = np.empty((1, 0, 4, 4), "f4"), np.empty((3, 0, 2, 2), "f4"), np.ones((1, 3, 3, 3), "f4")
    if rung not in TAKES:
        bias = np.arange(3, dtype="f4")
        out = run(forward, grad.shape, "f4", x, weight, bias, *options)
        assert np.array_equal(out, np.broadcast_to(bias[:, None, None], grad.shape))
        assert run(input_grad, x.shape, "f4", grad, weight, *options).shape == x.shape
        assert run(weight_grad, weight.shape, "f4", grad, x, *options).shape == weight.shape


@pytest.mark.parametrize(("rung", "case"), [(r, c) for r, c in BOTH if c[0][0] == 2])
def test_nan_and_infinity_reach_what_they_are_part_of_and_nothing_else(run, rung, case):
    """In x and in the output's gradient. At the borders too, where taps meet padding."""
    forward, input_grad, weight_grad = RUNGS[rung]
    x, weight, _, grad, options = inputs(case, np.float32)
    x[0, 0, 0, -1], x[1, -1, -1, 0] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        out, _, grad_weight = by_definition(x, weight, grad, options)
    assert not np.isfinite(out).all() or case[2] == (2, 3)  # whose stride steps over both
    assert_same_specials(run(forward, grad.shape, "f4", x, weight, None, *options, fill=77), out)
    assert_same_specials(run(weight_grad, weight.shape, "f4", grad, x, *options, fill=77), grad_weight)

    x, weight, _, grad, options = inputs(case, np.float32)
    grad[0, 0, 0, -1], grad[1, -1, -1, 0] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        _, grad_x, grad_weight = by_definition(x, weight, grad, options)
    assert_same_specials(run(input_grad, x.shape, "f4", grad, weight, *options, fill=77), grad_x)
    # Padding counts as zeros, which the direct kernel skips: an infinity times these is NaN, or nothing.
    special = ~np.isfinite(run(weight_grad, weight.shape, "f4", grad, x, *options, fill=77))
    if rung == "direct":
        assert not (special & np.isfinite(grad_weight)).any()
    else:
        assert np.array_equal(special, ~np.isfinite(grad_weight))


def assert_same_specials(actual, expected):
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    special = ~np.isfinite(expected)
    assert np.array_equal(actual[special], expected[special], equal_nan=True)


@pytest.mark.parametrize("rung", RUNGS)
def test_an_infinite_weight_stays_in_its_channels(run, rung):
    forward, input_grad, _ = RUNGS[rung]
    case = ((2, 4, 6, 7), (8, 1, 3, 3), (2, 2), (1, 1), (1, 1), 4)
    x, weight, _, grad, options = inputs(case, np.float32)
    weight[3, 0, 0, 1] = np.inf  # of channel 3 of the output, which sees channel 1 of x
    out = run(forward, grad.shape, "f4", x, weight, None, *options)
    assert np.isfinite(np.delete(out, 3, axis=1)).all()
    assert not np.isfinite(out[:, 3, 1:]).any()  # in its first row the tap lies above the image
    grad_x = run(input_grad, x.shape, "f4", grad, weight, *options)
    assert np.isfinite(np.delete(grad_x, 1, axis=1)).all()
    assert np.isfinite(grad_x[:, 1, ::2]).all()  # the tap reads odd rows alone, and even columns
    assert not np.isfinite(grad_x[:, 1, 1:4:2, ::2]).any()


def test_what_does_not_fit_is_refused():
    x, weight, out = (np.ones(s, "f4") for s in ((1, 4, 5, 5), (2, 3, 3, 3), (1, 2, 3, 3)))
    fitting = x[:, :3].copy()
    for forward, input_grad, weight_grad in RUNGS.values():
        with pytest.raises(ValueError, match="do not fit together"):
            forward(out, x, weight, None, 1, 1, 0, 0, 1, 1, 1)
        with pytest.raises(ValueError, match="stride, dilation and groups must be at least 1"):
            forward(out, fitting, weight, None, 0, 1, 0, 0, 1, 1, 1)
        with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(2,\)"):
            forward(out, fitting, weight, np.ones(3, "f4"), 1, 1, 0, 0, 1, 1, 1)
        with pytest.raises(ValueError, match="do not fit together"):
            input_grad(x, out, weight, 1, 1, 0, 0, 1, 1, 1)
        with pytest.raises(ValueError, match=r"at least size 1, got \(3, 0\)"):
            weight_grad(weight[..., :0], out, fitting, 1, 1, 0, 0, 1, 1, 1)


@needs_simulator
def test_strips_refuse_other_groups_kernels_strides_and_dilations():
    x, weight, out = (np.ones(s, "f4") for s in ((1, 4, 9, 9), (4, 2, 3, 3), (1, 4, 7, 7)))
    with pytest.raises(ValueError, match="expected as many groups as channels, 4, got 2"):
        strips.forward(out, x, weight, None, 1, 1, 0, 0, 1, 1, 2)
    for kernel, stride, dilation in (((3, 2), 1, 1), ((4, 4), 1, 1), ((3, 3), 3, 1), ((3, 3), 1, 2)):
        weight = np.ones((4, 1, *kernel), "f4")
        with pytest.raises(ValueError, match=f"got kernel .*, stride .{stride}, {stride}., dilation"):
            strips.forward(out, x, weight, None, stride, stride, 0, 0, dilation, dilation, 4)


def test_more_strips_than_are_counted_in_32_bits_are_left_to_another_rung(run, monkeypatch):
    x, weight, _, grad, options = inputs(STRIPS[0], np.float32)
    monkeypatch.setattr(strips, "MOST_STRIPS", 1)
    expected = run(depthwise.weight_grad, weight.shape, "f4", grad, x, *options)
    assert np.array_equal(run(strips.weight_grad, weight.shape, "f4", grad, x, *options), expected)


@needs_simulator
def test_depthwise_refuses_other_groups_and_what_it_has_no_room_for():
    x, weight, out = (np.ones(s, "f4") for s in ((1, 4, 99, 9), (4, 2, 3, 3), (1, 4, 97, 7)))
    with pytest.raises(ValueError, match="expected as many groups as channels, 4, got 2"):
        depthwise.forward(out, x, weight, None, 1, 1, 0, 0, 1, 1, 2)
    weight, out = np.ones((4, 1, 3, 3), "f4"), np.ones((1, 4, 33, 3), "f4")
    with pytest.raises(ValueError, match=r"stride \(3, 3\) and dilation \(1, 1\) reach further"):
        depthwise.forward(out, x, weight, None, 3, 3, 1, 0, 1, 1, 4)
    depthwise.weight_grad(weight, out, x, 3, 3, 1, 0, 1, 1, 4)  # copies nothing
    assert weight[0, 0, 1, 1] == out[0, 0].size


def test_long_sums_are_cut_into_as_many_parts_as_a_card_has_places_for():
    assert pipelined._in_parts(16, 128, 288) == ((16, 16), 256, 18)  # 512 channels of 8 images of 7 x 7
    assert pipelined._in_parts(400, 128, 288) == ((400, 1), 256, 288)
    assert pipelined._in_parts(4, 64, 30) == ((4, 2), 128, 15)
    assert pipelined._in_parts(1, 32, 0)[0] == (1, 1)
    for tiles, steps in ((1, 13), (7, 100), (30, 577), (100, 1000)):
        (_, parts), _, length = pipelined._in_parts(tiles, 64, steps)
        assert (parts - 1) * length < steps <= parts * length and tiles * parts <= 3 * 132


# ---- on the simulator alone --------------------------------------------------------------------------------

ODD = ((2, 3, 11, 13), (6, 1, 3, 3), (2, 1), (1, 2), (1, 2), 3)
ODD_CASES = {
    "strips": ((2, 3, 11, 13), (6, 1, 3, 3), (2, 2), (1, 2), (1, 1), 3),
    "pipelined": ((2, 66, 5, 7), (68, 33, 2, 3), (2, 1), (1, 2), (1, 2), 2),
}


def all_results(rung, case):
    """The three results of a rung in float32, as bytes."""
    x, weight, bias, grad, options = inputs(case, np.float32)
    results = [np.empty_like(a) for a in (grad, x, weight)]
    forward, input_grad, weight_grad = RUNGS[rung]
    forward(results[0], x, weight, bias, *options)
    input_grad(results[1], grad, weight, *options)
    weight_grad(results[2], grad, x, *options)
    return b"".join(result.tobytes() for result in results)


@needs_simulator
@pytest.mark.parametrize("rung", RUNGS)
def test_every_thread_order_gives_the_same_bits(rung):
    case = ODD_CASES.get(rung, ODD)
    expected = all_results(rung, case)
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert all_results(rung, case) == expected


@needs_simulator
@pytest.mark.parametrize("rung", RUNGS)
def test_every_access_is_allowed(rung):
    case = ODD_CASES.get(rung, ODD)
    with sim.checks():
        checked = all_results(rung, case)
    assert checked == all_results(rung, case)
