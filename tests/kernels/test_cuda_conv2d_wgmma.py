"""Convolution by wgmma, on the simulator and on a card of compute capability 9.0, and its launch."""

from math import prod

import numpy as np
import pytest
from convolution_problems import (
    FORMATS,
    as_channels_last,
    assert_close,
    by_definition,
    formats_in_turn,
    inputs,
)

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.arguments import address
from minigrad.kernels.channels_last import is_channels_last
from minigrad.kernels.cuda import (
    conv2d_tensor_core,
    conv2d_tensor_core_weight_grad,
    conv2d_walk,
    conv2d_wgmma,
    matmul_wgmma,
    tensor_map,
)
from minigrad.kernels.errors import KernelLaunchError
from minigrad.kernels.launch import CudaKernel
from minigrad.op import get_op

ONE = (1, 1)
# (N, C, H, W), (O, C, KH, KW), stride, padding, dilation, groups
LAYERS = [
    ((2, 8, 7, 6), (8, 8, 3, 3), ONE, ONE, ONE, 1),
    ((1, 72, 7, 7), (70, 72, 3, 3), ONE, ONE, ONE, 1),  # no multiples of a step, or of a tile
    ((2, 64, 7, 7), (136, 64, 1, 1), ONE, (0, 0), ONE, 1),
    ((3, 16, 9, 8), (20, 16, 3, 2), (2, 1), (1, 0), (1, 2), 1),
    ((2, 40, 10, 11), (24, 40, 3, 3), (2, 2), (2, 2), (2, 3), 1),
    ((2, 8, 5, 5), (9, 8, 3, 3), ONE, (4, 4), ONE, 1),  # some windows see padding only
    ((1, 8, 20, 18), (7, 8, 7, 7), (2, 2), (3, 3), ONE, 1),
    ((2, 8, 6, 6), (8, 8, 2, 2), (3, 3), (0, 0), ONE, 1),  # some pixels are in no window
    ((1, 8, 13, 12), (16, 8, 4, 3), (4, 6), (3, 2), (2, 4), 1),
    ((2, 9, 8, 7), (5, 9, 3, 2), ONE, ONE, (1, 2), 1),  # images that are copied
    ((4, 8, 14, 14), (264, 8, 1, 1), ONE, (0, 0), ONE, 1),  # more pixels, and channels, than a tile has
    ((6, 8, 22, 21), (16, 8, 2, 2), ONE, (0, 0), ONE, 1),  # sums long enough to be cut into parts
]


# ---- results -----------------------------------------------------------------------------------------------


def run(card, name, kernel, shape, *args, last=True, **more):
    """What ``kernel`` writes, as numbers; what it does not stays NaN."""
    encode, numbers, *_ = FORMATS[name]
    out = encode(np.full(shape, np.nan, np.float32))
    out = card.put_strided(as_channels_last(out) if last else out)
    kernel(out, *(card.put_strided(a) if isinstance(a, np.ndarray) else a for a in args), **more)
    return numbers(np.ascontiguousarray(card.get(out)))


def results(card, name, x, weight, bias, grad, options, tile=None):
    """The output with bias, and the gradients for x and for the weight, where there are such kernels."""
    backwards = prod(options[:2]) <= conv2d_walk.MOST_PHASES
    passes = [
        (conv2d_wgmma.forward, grad.shape, (x, weight, bias)),
        (conv2d_wgmma.input_grad, x.shape, (grad, weight)) if backwards else None,
        (conv2d_wgmma.weight_grad, weight.shape, (grad, x)) if name != "tf32" else None,
    ]
    return [p and run(card, name, p[0], p[1], *p[2], *options, tile=tile) for p in passes]


def channels_last(name, case):
    """As :func:`inputs`, of images and weights that lie so."""
    *arrays, options = inputs(name, case)
    return [as_channels_last(a) if a.ndim == 4 else a for a in arrays], options


@pytest.mark.parametrize(("name", "case"), formats_in_turn(LAYERS), ids=str)
def test_convolution_and_its_gradients(card, name, case):
    arrays, options = channels_last(name, case)
    assert_close(name, results(card, name, *arrays, options), arrays, options)


@pytest.mark.parametrize("tile", conv2d_wgmma.COLUMNS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_tile(card, name, tile):
    arrays, options = channels_last(name, LAYERS[1])
    assert_close(name, results(card, name, *arrays, options, tile), arrays, options)


def test_images_and_weights_in_c_order_are_copied(card):
    for case in LAYERS[0], LAYERS[3]:
        *arrays, options = inputs("bf16", case)
        assert_close("bf16", results(card, "bf16", *arrays, options), arrays, options)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("case", [LAYERS[i] for i in (1, 2, 3, 9, 11)], ids=str)
def test_a_float32_weight_beside_images_of_16_bits(card, case, last):
    """It is rounded; its gradient is not."""
    (x, _, _, grad, options), weight = inputs("f16", case), inputs("tf32", case)[1]
    narrow = weight.astype(np.float16)
    if last:
        x, weight, narrow, grad = map(as_channels_last, (x, weight, narrow, grad))
    for kernel, shape, found, expected in (
        (conv2d_wgmma.forward, grad.shape, (x, weight, None), (x, narrow, None)),
        (conv2d_wgmma.input_grad, x.shape, (grad, weight), (grad, narrow)),
    ):
        one, other = (run(card, "f16", kernel, shape, *a, *options, last=last) for a in (found, expected))
        np.testing.assert_array_equal(one, other)
    found = run(card, "tf32", conv2d_wgmma.weight_grad, weight.shape, grad, x, *options, last=last)
    exact = by_definition(x, weight, grad, options)[2]
    size = by_definition(abs(x), abs(weight), abs(grad), options)[2]
    assert (abs(found - exact) <= grad[:, 0].size * 2.0**-24 * size).all()


IN_C_ORDER = [
    ((6, 16, 4, 6), (70, 16, 3, 3), ONE, ONE, ONE, 1),  # a box has pixels of four images
    ((2, 8, 13, 9), (264, 8, 3, 2), ONE, (1, 0), ONE, 1),  # a plane has more pixels than a box
    LAYERS[1],  # planes are no multiples of 16 bytes
    ((2, 16, 7, 8), (8, 16, 1, 3), (2, 2), ONE, ONE, 1),  # each phase is stored by itself; some have no taps
]


@pytest.mark.parametrize(("name", "case"), formats_in_turn(IN_C_ORDER), ids=str)
def test_results_in_c_order_are_the_same(card, name, case):
    x, weight, bias, grad, options = inputs(name, case)
    passes = [
        (conv2d_wgmma.forward, grad.shape, x, weight, bias),
        (conv2d_wgmma.input_grad, x.shape, grad, weight),
    ]
    for kernel, shape, *arrays in passes:
        args = name, kernel, shape, *arrays, *options
        np.testing.assert_array_equal(run(card, *args, last=False), run(card, *args))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("case", [LAYERS[1], LAYERS[10], IN_C_ORDER[0]], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_sums_in_parts(card, name, case, last):
    """Which end within a tap's channels, too; of more parts than there are steps each has one."""
    arrays, options = channels_last(name, case)
    x, weight, bias, grad = arrays
    for tile, parts in ((64, 2), (64, 5), (128, 99)):
        more = {"last": last, "tile": tile, "parts": parts}
        out = run(card, name, conv2d_wgmma.forward, grad.shape, x, weight, bias, *options, **more)
        of_x = run(card, name, conv2d_wgmma.input_grad, x.shape, grad, weight, *options, **more)
        assert_close(name, [out, of_x, None], arrays, options)
    more["relu"] = True
    rectified = run(card, name, conv2d_wgmma.forward, grad.shape, x, weight, bias, *options, **more)
    np.testing.assert_array_equal(rectified, np.maximum(out, 0))


@pytest.mark.parametrize("how", [{"parts": 1}, {"parts": 2}, {"parts": 2, "tile": 256}], ids=str)
@pytest.mark.parametrize("case", [LAYERS[0], LAYERS[2]], ids=str)
def test_parts_without_a_tile_that_has_them(how, case):
    (x, weight, _, grad), options = channels_last("bf16", case)
    with sim.architecture("sm_90a"), pytest.raises(ValueError, match=f"got parts={how['parts']}, tile="):
        conv2d_wgmma.forward(grad, x, weight, None, *options, **how)


def test_phases_of_a_stride_have_no_parts():
    (x, weight, _, grad), options = channels_last("bf16", LAYERS[4])
    with sim.architecture("sm_90a"), pytest.raises(ValueError, match="with a stride, got parts=2, tile=64"):
        conv2d_wgmma.input_grad(x, grad, weight, *options, tile=64, parts=2)


@pytest.mark.parametrize("channels", [64, 60])  # the weight of 60 is copied, once for all images
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_planes_and_a_kernel_of_1x1_are_factors_where_they_lie(card, name, channels):
    case = ((3, channels, 4, 6), (136, channels, 1, 1), ONE, (0, 0), ONE, 1)
    x, weight, bias, grad, options = inputs(name, case)
    for own_weight in (weight, as_channels_last(weight), weight.swapaxes(0, 1).copy().swapaxes(0, 1)):
        with sim.profile() as launches:
            out = run(card, name, conv2d_wgmma.forward, grad.shape, x, own_weight, None, *options, last=False)
            of_x = run(card, name, conv2d_wgmma.input_grad, x.shape, grad, own_weight, *options, last=False)
        assert [launch.kernel.partition("<")[0] for launch in launches] in ([], ["matmul_wgmma"] * 2)
        assert_close(name, [out, of_x, None], (x, weight, np.zeros_like(bias), grad), options)
    rectified = run(
        card, name, conv2d_wgmma.forward, grad.shape, x, weight, None, *options, last=False, relu=True
    )
    np.testing.assert_array_equal(rectified, np.maximum(out, 0))
    with_bias = run(card, name, conv2d_wgmma.forward, grad.shape, x, weight, bias, *options, last=False)
    assert_close(name, [with_bias, of_x, None], (x, weight, bias, grad), options)


def test_the_gradient_of_weights_in_c_order(card):
    (x, weight, _, grad), options = channels_last("bf16", LAYERS[1])
    args = "bf16", conv2d_wgmma.weight_grad, weight.shape, grad, x, *options
    np.testing.assert_array_equal(run(card, *args, last=False), run(card, *args))


def test_pixels_of_more_channels_are_read_where_they_lie(card):
    (x, weight, bias, grad), options = channels_last("bf16", LAYERS[0])
    wide = np.full((2, 7, 6, 32), x.flat[0])
    wide[..., 8:16] = x.transpose(0, 2, 3, 1)
    arrays = wide[..., 8:16].transpose(0, 3, 1, 2), weight, bias, grad
    assert_close("bf16", results(card, "bf16", *arrays, options), arrays, options)


@pytest.mark.parametrize("name", FORMATS)
def test_relu_is_applied_to_the_same_bits(card, name):
    (x, weight, bias, grad), options = channels_last(name, LAYERS[1])
    x[0, 0, 0, -1] = FORMATS[name][0](np.array([np.nan], np.float32))[0]
    for added in (bias, None):
        args = name, conv2d_wgmma.forward, grad.shape, x, weight, added, *options
        out, found = run(card, *args), run(card, *args, relu=True)
        assert np.isnan(out).any() and np.array_equal(found, np.maximum(out, 0), equal_nan=True)


@pytest.mark.parametrize("case", [LAYERS[0], LAYERS[3]], ids=str)
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_nan_and_infinity_reach_what_they_are_part_of_and_nothing_else(card, name, case):
    encode, numbers, *_ = FORMATS[name]
    arrays, options = channels_last(name, case)
    for i in (0, 3):
        special = list(arrays)
        special[i] = as_channels_last(arrays[i])
        special[i][0, 0, 0, -1], special[i][-1, -1, -1, 0] = encode(np.array([np.nan, np.inf], np.float32))
        x, weight, _, grad = special
        with np.errstate(invalid="ignore"):
            expected = by_definition(*(numbers(np.ascontiguousarray(a)) for a in (x, weight, grad)), options)
        for one, other in zip(results(card, name, x, weight, None, grad, options), expected, strict=True):
            if one is None:
                continue
            assert np.array_equal(np.isfinite(one), np.isfinite(other))
            there = ~np.isfinite(other)
            assert np.array_equal(one[there], other[there], equal_nan=True)


# ---- the launch --------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """What would be launched on a card of 132 multiprocessors: (kernel, grid, arguments) of each launch.

    In the place of a tensor map stands what it was made from.
    """
    seen, described, launch_other = [], [], CudaKernel.launch

    def launch(self, grid, block, args, shared_bytes=0):
        if "wgmma" not in self.name:  # which makes a copy
            return launch_other(self, grid, block, args, shared_bytes)
        self._binder.bind(args)  # the arguments fit the kernel's parameters
        maps = [a["words"][0] if isinstance(a, dict) and "words" in a else None for a in args]
        args = [a if i is None else described[i] for a, i in zip(args, maps, strict=True)]
        seen.append((self.expression, grid, args))

    def encode(*made_from):
        described.append(made_from)
        return {"words": (len(described) - 1, *(0,) * 15)}

    monkeypatch.setattr(CudaKernel, "launch", launch)
    monkeypatch.setattr(tensor_map, "_encode_for_simulator", encode)
    monkeypatch.setattr(conv2d_wgmma, "is_supported", lambda array: True)
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    return seen


def images(*shape, dtype=np.float16):
    """Zeros that lie channels last and start at a multiple of 16 bytes."""
    n, c, h, w = shape
    memory = np.zeros(n * c * h * w + 16, dtype)
    start = -address(memory) % 16 // memory.itemsize
    return memory[start : start + n * c * h * w].reshape(n, h, w, c).transpose(0, 3, 1, 2)


def test_the_filter_moves_over_the_input(launches):
    x, weight, out = images(2, 16, 9, 8), images(24, 16, 3, 2), images(2, 24, 5, 7)
    conv2d_wgmma.forward(out, x, weight, None, 2, 1, 1, 0, 1, 1, 1)
    name, grid, args = launches.pop()
    source, weights, result = args[4:7]
    assert name == "conv2d_wgmma<__half, 64, false>" and grid == 2
    assert source[:5] == (address(x), 1, 2, (16, 8, 9, 2), (32, 256, 2304))
    assert source[5] == ((0, -1), (-1, -1), (1, 2))  # across first
    assert weights == (address(weight), 1, 2, (16, 24, 6), (192, 32))
    assert result == (address(out), 1, 2, (24, 70, 1), (48, 3360))
    assert list(args[7].values()) == [5, 7, -1, 0, 2, 1, 3, 2, 0, 0, 1, 1, 0, 1, 0]
    assert args[9:14] == [70, 24, 16, False, conv2d_wgmma.BY_BOXES] and args[15:] == [1, 6]


def test_the_filter_moves_backwards_over_the_gradient(launches):
    x, weight, grad = images(2, 16, 9, 8), images(24, 16, 3, 2), images(2, 24, 9, 6)
    conv2d_wgmma.input_grad(x, grad, weight, 1, 1, 1, 0, 1, 2, 1)
    name, _, args = launches.pop()
    assert name == "conv2d_wgmma<__half, 64, true>"
    assert args[4][3:] == ((24, 6, 9, 2), (48, 288, 2592), ((-2, -1), (0, -1), (1, 1)))
    assert args[5] == (address(weight), 1, 2, (16, 24, 6), (192, 32))  # where they lie
    assert list(args[7].values()) == [9, 8, -1, -2, 1, 1, 3, 2, 2, 2, -1, -2, 0, 1, 0]


def test_each_phase_of_a_stride_has_its_taps(launches):
    """Along an axis of 9 pixels, of a stride of 2, a padding and 3 taps, the first, third, ... are reached by
    tap 1, and those between by taps 0 and 2."""
    x, weight, grad = images(2, 16, 9, 9), images(24, 16, 3, 3), images(2, 24, 5, 5)
    conv2d_wgmma.input_grad(x, grad, weight, 2, 2, 1, 1, 1, 1, 1)
    sizes, taps, numbers, lattices = zip(
        *(
            (f["height"], f["taps_down"], f["number"], tuple(lattice.values()))
            for f, lattice in (args[7:9] for _, _, args in launches)
        ),
        strict=True,
    )
    assert sizes == (5, 5, 4, 4) and taps == (1, 1, 2, 2) and numbers == (4, 3, 1, 0)
    assert lattices == tuple((9, 9, y, x, 2, 2) for y, x in np.ndindex(2, 2))
    assert launches[3][2][4][5] == ((0, 0), (-1, -1), (1, 1))  # all of them lie between two outputs


def test_sums_over_pixels_are_cut_into_parts(launches):
    x, weight, grad = images(64, 64, 56, 56), images(64, 64, 3, 3), images(64, 64, 56, 56)
    conv2d_wgmma.weight_grad(weight, grad, x, 1, 1, 1, 1, 1, 1, 1)
    (name, grid, args), (added, squares, _) = launches
    pixels, length, parts, made, channels = args[9:]
    assert name == "conv2d_weight_grad_wgmma<__half, 64>" and grid == 2 * 3 * parts <= 132
    assert (pixels, made, channels) == (64 * 56 * 56, 64, 64)
    assert length % 64 == 0 and (parts - 1) * length < pixels <= parts * length and parts == 22
    assert args[1].shape == (22, 9, 64, 64) and not args[2]
    assert args[6][3:] == ((64, pixels, 1), (128, 128 * pixels))
    assert added == "conv2d_add_parts_wgmma<__half>" and squares == 18 * 2


def test_a_tile_is_as_wide_as_keeps_the_card_busy(launches):
    def tile(pixels, channels):
        x, weight = images(1, 8, pixels, 16), images(channels, 8, 1, 1)
        conv2d_wgmma.forward(images(1, channels, pixels, 16), x, weight, None, *ONE, 0, 0, *ONE, 1)
        return launches.pop()[0].split(", ")[1]

    assert tile(16 * 66, 64) == tile(16, 512) == "64"
    assert tile(16 * 66, 128) == "128" and tile(16 * 66, 256) == "256"


def test_outputs_of_no_whole_vectors_are_stored_by_the_threads(launches):
    out, x, weight = images(1, 9, 4, 4), images(1, 8, 4, 4), images(9, 8, 1, 1)
    conv2d_wgmma.forward(out, x, weight, None, *ONE, 0, 0, *ONE, 1)
    assert launches.pop()[2][13] == conv2d_wgmma.BY_THREADS


def test_contiguous_outputs_are_stored_where_their_planes_are_whole_vectors(launches, monkeypatch):
    transposed = []
    monkeypatch.setattr(conv2d_wgmma, "transpose", lambda out, x, shape: transposed.append(shape))

    def stores(*plane):
        out, x, weight = np.empty((2, 24, *plane), np.float16), images(2, 8, *plane), images(24, 8, 1, 1)
        conv2d_wgmma.forward(out, x, weight, None, *ONE, 0, 0, *ONE, 1)
        return launches.pop()[2]

    args = stores(4, 6)
    assert args[13] == conv2d_wgmma.CHANNELS_FIRST and args[0].array.shape == (2, 24, 24) and not transposed
    args = stores(3, 6)
    assert args[13] == conv2d_wgmma.BY_BOXES and args[0].array.shape == (1, 36, 24)
    assert transposed == [(2, 18, 24)]


def test_the_parts_of_a_weights_gradient_fill_the_card():
    """The columns of a tile, and the parts, of layers of ResNets and VGGs, for 66 clusters."""

    def cut(images, channels, made, size, kernel=3):
        tile, clusters, parts = conv2d_wgmma._cut(kernel**2, channels, made, images * size**2, 66)
        return tile, parts, clusters * parts / 66

    assert cut(64, 64, 64, 56)[:2] == (64, 22)
    assert cut(128, 128, 128, 28)[:2] == (128, 13)
    assert cut(64, 256, 256, 14)[:2] == (256, 7)
    assert cut(64, 256, 64, 56, kernel=1)[:2] == (64, 66)
    assert cut(64, 512, 512, 14) == (256, 3, 36 * 3 / 66)  # two waves of a third
    assert cut(64, 512, 512, 7) == (192, 1, 54 / 66)  # to store parts would take longer


@pytest.mark.parametrize(("batch", "largest", "leaves"), [(0, 95, True), (2, 95, True), (2, 96, False)])
def test_nothing_and_too_many_pixels_are_left_to_others(launches, monkeypatch, batch, largest, leaves):
    left = []
    monkeypatch.setattr(tensor_map, "LARGEST_SIZE", largest)
    for module, name in (
        (conv2d_tensor_core, "forward"),
        (conv2d_tensor_core, "input_grad"),
        (conv2d_tensor_core_weight_grad, "weight_grad"),
    ):
        monkeypatch.setattr(module, name, lambda *args, _name=name, **more: left.append(_name))
    x, weight, out = images(batch, 8, 6, 8), images(16, 8, 3, 3), images(batch, 16, 6, 8)
    conv2d_wgmma.forward(out, x, weight, None, *ONE, *ONE, *ONE, 1)
    conv2d_wgmma.input_grad(x, out, weight, *ONE, *ONE, *ONE, 1)
    conv2d_wgmma.weight_grad(weight, out, x, *ONE, *ONE, *ONE, 1)
    assert left == (["forward", "input_grad", "weight_grad"] if leaves else [])
    assert bool(launches) is not leaves


def test_what_the_engine_does_not_take():
    assert conv2d_wgmma.fits((3, 3), (8, 1), (127, 0), (1, 64))
    for kernel, stride, padding, dilation in (
        ((3, 3), (9, 1), (0, 0), ONE),
        ((3, 3), ONE, (0, 129), ONE),
        ((3, 3), ONE, (0, 0), (1, 65)),  # the corner would be 130 pixels from the image's last one
        ((257, 1), ONE, (128, 0), ONE),
    ):
        assert not conv2d_wgmma.fits(kernel, stride, padding, dilation)


def test_wrong_arguments(launches):
    x, weight = images(1, 8, 4, 4), images(16, 8, 1, 1)
    with pytest.raises(ValueError, match="C-contiguous, or lies channels last"):
        conv2d_wgmma.forward(images(1, 16, 4, 8)[..., ::2], x, weight, None, *ONE, 0, 0, *ONE, 1)
    with pytest.raises(ValueError, match="the copy engine takes no kernel"):  # so many phases
        conv2d_wgmma.input_grad(x, images(1, 16, 2, 2), weight, 3, 3, 0, 0, *ONE, 1)
    with pytest.raises(ValueError, match="the copy engine takes no kernel"):
        conv2d_wgmma.forward(images(1, 16, 1, 1), x, weight, None, 9, 9, 0, 0, *ONE, 1)


def test_the_simulator_in_the_place_of_another_card():
    x, weight = images(1, 8, 4, 4), images(16, 8, 1, 1)
    needs = r"needs a card of compute capability 9\.0, or sim.architecture\('sm_90a'\)"
    with sim.architecture("sm_80"), pytest.raises(KernelLaunchError, match=needs):
        conv2d_wgmma.forward(images(1, 16, 4, 4), x, weight, None, *ONE, 0, 0, *ONE, 1)


# ---- the choice --------------------------------------------------------------------------------------------


@pytest.fixture
def choose(monkeypatch):
    """The name of the kernel for these arrays on a card of 132 multiprocessors and wgmma."""
    for module in conv2d_wgmma, mg.kernels.cuda.conv2d_tensor_core:
        monkeypatch.setattr(module, "is_supported", lambda array: True)
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    options = {"stride": ONE, "padding": ONE, "dilation": ONE, "groups": 1}

    def choose(op, *arrays, **changed):
        kernels = get_op(op).kernels
        kernel = kernels.choose("cuda", arrays[0].dtype, list(arrays), options | changed)
        return kernel and kernel.name

    return choose


def test_which_layers_the_rung_takes(choose):
    x, weight, grad = images(2, 16, 8, 8), images(24, 16, 3, 3), images(2, 24, 8, 8)
    calls = {
        "conv2d": ((x, weight, None), {}),
        "conv2d_input_grad": ((grad, weight), {"input_size": (8, 8)}),
        "conv2d_weight_grad": ((grad, x), {"kernel_size": (3, 3)}),
    }
    for op, (arrays, more) in calls.items():
        assert choose(op, *arrays, **more) == "tensor_core"
        with mg.use_kernel(op, "wgmma", "cuda"):
            assert choose(op, *arrays, **more) == "wgmma"
            in_c_order = [a if a is None else np.ascontiguousarray(a) for a in arrays]
            assert not is_channels_last(in_c_order[0])
            assert choose(op, *in_c_order, **more) == "wgmma"
            assert choose(op, *arrays, **more, groups=2) is None
            assert choose(op, *arrays, **more, stride=(9, 9)) is None
    with mg.use_kernel("conv2d", "wgmma", "cuda"):
        assert choose("conv2d", images(2, 9, 8, 8), images(24, 9, 3, 3), None) is None
    with mg.use_kernel("conv2d_input_grad", "wgmma", "cuda"):
        assert choose("conv2d_input_grad", grad, weight, input_size=(16, 16), stride=(2, 2)) == "wgmma"
        assert choose("conv2d_input_grad", grad, weight, input_size=(24, 24), stride=(3, 3)) is None


# (N, C, O, H = W, kernel, stride), and which of the passes are computed by wgmma
CHOICES = [
    ((64, 64, 64, 56, 3, 1), "forward input weight"),
    ((128, 128, 128, 28, 3, 1), "forward input weight"),
    ((64, 64, 128, 56, 3, 2), "forward input weight"),
    ((64, 256, 64, 56, 1, 1), "forward input weight"),
    ((64, 512, 512, 7, 3, 1), "forward input weight"),
    ((8, 512, 512, 7, 3, 1), "forward input weight"),  # few tiles, but long sums
    ((8, 128, 128, 14, 3, 1), "weight"),  # and shorter ones
    ((128, 32, 64, 32, 3, 1), ""),  # half of each step would be zeros
    ((128, 64, 32, 32, 3, 1), ""),
    ((128, 96, 64, 32, 3, 1), "forward input weight"),
]


@pytest.mark.parametrize(("layer", "by_wgmma"), CHOICES, ids=str)
def test_it_is_preferred_where_there_are_tiles_and_channels_for_it(choose, layer, by_wgmma):
    N, C, O, size, kernel, stride = layer  # noqa: E741
    padding, made = (kernel // 2,) * 2, size // stride
    x, weight, grad = images(N, C, size, size), images(O, C, kernel, kernel), images(N, O, made, made)
    options = {"stride": (stride,) * 2, "padding": padding}
    found = {
        "forward": choose("conv2d", x, weight, None, **options),
        "input": choose("conv2d_input_grad", grad, weight, input_size=(size, size), **options),
        "weight": choose("conv2d_weight_grad", grad, x, kernel_size=(kernel,) * 2, **options),
    }
    assert [name for name, rung in found.items() if rung == "wgmma"] == by_wgmma.split()
    if kernel == 1:
        grad, x = (np.empty(a.shape, np.float16) for a in (grad, x))
        assert choose("conv2d_weight_grad", grad, x, kernel_size=ONE, **options) == "pointwise"
