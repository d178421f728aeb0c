"""Convolution on tensor cores against the definition in float64, on the simulator and on a card."""

from functools import partial

import numpy as np
import pytest
from convolution_problems import (
    CASES,
    FORMATS,
    as_channels_last,
    assert_close,
    by_definition,
    formats_in_turn,
    inputs,
    output_shape,
)

from minigrad.kernels import sim
from minigrad.kernels.cuda import conv2d_pointwise as pointwise
from minigrad.kernels.cuda import conv2d_tensor_core as tensor_core
from minigrad.kernels.cuda import conv2d_tensor_core_weight_grad as of_weight
from minigrad.kernels.cuda.conv2d_merge_groups import groups_of_product
from minigrad.op import get_op

PASSES = tensor_core.forward, tensor_core.input_grad, of_weight.weight_grad

ODD = ((2, 9, 8, 7), (5, 9, 3, 2), (2, 1), (1, 1), (1, 2), 1)
# (N, C, H, W), (O, C, KH, KW), stride, padding, dilation, groups
LAYERS = [
    *(case for case in CASES if case[-1] == 1),
    ODD,
    ((1, 3, 20, 18), (7, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),  # a first layer: several taps in a step
    ((2, 40, 6, 5), (70, 40, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 17, 11, 12), (129, 17, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # more rows, and pixels, than a tile has
    ((1, 70, 3, 4), (24, 70, 3, 3), (1, 1), (2, 2), (1, 1), 1),
]
IN_PARTS = [  # few results and long sums, which are cut
    ((2, 130, 3, 4), (70, 130, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 20, 5, 6), (270, 20, 3, 2), (2, 1), (1, 0), (1, 1), 1),  # for the input: phases of 4 taps and of 2
    ((1, 360, 4, 3), (24, 180, 2, 3), (1, 1), (1, 1), (1, 1), 2),
    ((1, 4, 7, 6), (300, 4, 3, 4), (2, 2), (1, 0), (2, 1), 1),  # of 6 taps and of none
]

GROUPED = [
    ((2, 8, 6, 5), (8, 4, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    ((1, 64, 9, 8), (64, 4, 3, 3), (2, 1), (1, 1), (1, 2), 16),  # eight groups share a tile
    ((1, 64, 9, 8), (128, 32, 3, 3), (2, 1), (1, 1), (1, 2), 2),  # a group has tiles of its own
    ((1, 21, 7, 6), (14, 3, 3, 3), (2, 2), (1, 0), (1, 1), 7),  # no groups begin at whole chunks
    ((2, 70, 7, 6), (70, 35, 3, 3), (2, 2), (1, 0), (1, 1), 2),
    ((1, 60, 7, 6), (120, 20, 1, 1), (1, 1), (0, 0), (1, 1), 3),
    ((1, 12, 5, 4), (36, 1, 3, 2), (1, 1), (1, 1), (1, 1), 12),
    ((3, 48, 19, 18), (48, 8, 3, 3), (1, 1), (1, 1), (1, 1), 6),  # several parts of the pixels
]


@pytest.fixture
def place(backend):
    """Where the kernels run: the simulator, and a card that has tensor cores for them."""
    if not tensor_core.is_supported(backend.put(np.zeros(1))):
        pytest.skip("the card's compute capability is below 8.0")
    return backend


def run(place, name, kernel, shape, *args, last=False):
    """What ``kernel`` writes, channels ``last`` or first, as numbers; what it does not stays NaN."""
    encode, numbers, *_ = FORMATS[name]
    empty = encode(np.full(shape, np.nan, np.float32))
    out = place.put_strided(as_channels_last(empty)) if last else place.put(empty)
    kernel(out, *(place.put_strided(a) if isinstance(a, np.ndarray) else a for a in args))
    return numbers(place.get(out))


def results(place, name, x, weight, bias, grad, options, tile=None, passes=None, last=False):
    """The output with bias, and the gradients for x and for the weight."""
    forward, input_grad, weight_grad = passes or PASSES
    return (
        run(place, name, partial(forward, tile=tile), grad.shape, x, weight, bias, *options, last=last),
        run(place, name, partial(input_grad, tile=tile), x.shape, grad, weight, *options, last=last),
        run(place, name, weight_grad, weight.shape, grad, x, *options, last=last),
    )


def check(place, name, arrays, options, tile=None, passes=None):
    """The three results against float64, of the same numbers; returns them."""
    found = results(place, name, *arrays, options, tile, passes)
    assert_close(name, found, arrays, options)
    return found


@pytest.mark.parametrize(("name", "case"), formats_in_turn(LAYERS + IN_PARTS), ids=str)
def test_convolution_and_its_gradients(place, name, case):
    *arrays, options = inputs(name, case)
    check(place, name, arrays, options, tile=128 if case[1][0] > 64 else None)


@pytest.mark.parametrize(("name", "case"), formats_in_turn(GROUPED), ids=str)
def test_groups(place, name, case):
    """Channels first, and the same bits channels last."""
    *arrays, options = inputs(name, case)
    expected = check(place, name, arrays, options)
    arrays = [as_channels_last(a) if a.ndim == 4 else a for a in arrays]
    for one, other in zip(results(place, name, *arrays, options, last=True), expected, strict=True):
        assert np.array_equal(one, other)


def assert_float32_weight_is_rounded(place, x, weight, grad, options, passes, last=False):
    """Beside images of float16; and that its gradient is not."""
    forward, input_grad, weight_grad = passes
    narrow = weight.astype(np.float16)
    if last:
        x, weight, narrow, grad = map(as_channels_last, (x, weight, narrow, grad))
    for kernel, shape, found, expected in (
        (forward, grad.shape, (x, weight, None), (x, narrow, None)),
        (input_grad, x.shape, (grad, weight), (grad, narrow)),
    ):
        one, other = (run(place, "f16", kernel, shape, *a, *options, last=last) for a in (found, expected))
        assert np.array_equal(one, other)
    found = run(place, "tf32", weight_grad, weight.shape, grad, x, *options, last=last)
    exact = by_definition(x, weight, grad, options)[2]
    size = by_definition(abs(x), abs(weight), abs(grad), options)[2]
    assert (abs(found - exact) <= grad[:, 0].size * 2.0**-24 * size).all()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("case", [ODD, *LAYERS[-4:-2], IN_PARTS[0]], ids=str)
def test_a_float32_weight_beside_images_of_16_bits(place, case, last):
    x, _, _, grad, options = inputs("f16", case)
    weight = inputs("tf32", case)[1]
    assert_float32_weight_is_rounded(place, x, weight, grad, options, PASSES, last)


@pytest.mark.parametrize(
    ("groups", "rows", "copied", "merged"),
    [
        (32, 4, (4,), 8),  # as many as 32 rows hold
        (32, 16, (16,), 2),
        (32, 48, (48,), 1),
        (2, 20, (20,), 2),  # no chunk has channels of two products
        (6, 4, (4, 3), 6),
        (6, 4, (6,), 6),
        (3, 7, (7,), 3),  # but one product may end anywhere
        (1, 70, (5,), 1),
    ],
)
def test_groups_that_share_a_product(groups, rows, copied, merged):
    assert groups_of_product(groups, rows, copied, 8) == merged


@pytest.mark.parametrize("case", GROUPED[:4], ids=str)
@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_nan_and_infinity_stay_in_their_group(place, name, case):
    encode, numbers, *_ = FORMATS[name]
    forward, input_grad, weight_grad = PASSES
    x, weight, _, grad, options = inputs(name, case)
    for array in (x, grad):
        array[0, 0, 1, -1], array[-1, -1, -1, 0] = encode(np.array([np.nan, -np.inf], np.float32))
    with np.errstate(invalid="ignore"):
        expected = by_definition(numbers(x), numbers(weight), numbers(grad), options)
    found = (
        run(place, name, forward, grad.shape, x, weight, None, *options),
        run(place, name, input_grad, x.shape, grad, weight, *options),
        run(place, name, weight_grad, weight.shape, grad, x, *options),
    )
    for one, other in zip(found, expected, strict=True):
        there = ~np.isfinite(other)
        assert 0 < there.sum() < there.size
        assert np.array_equal(one[there], other[there], equal_nan=True)
        rest = abs(other[~there]).max()
        assert abs(one[~there] - other[~there]).max() < 0.02 * rest


@pytest.mark.parametrize(
    ("name", "case"), formats_in_turn([ODD, *LAYERS[-4:-2], GROUPED[1], IN_PARTS[0]]), ids=str
)
def test_relu_is_applied_to_the_same_bits(place, name, case):
    """And lets NaN through."""
    forward, encode = PASSES[0], FORMATS[name][0]
    x, weight, bias, grad, options = inputs(name, case)
    x[0, 0, 0, -1], x[-1, -1, -1, 0] = encode(np.array([np.nan, -np.inf], np.float32))
    for added in (bias, None):
        out = run(place, name, forward, grad.shape, x, weight, added, *options)
        found = run(place, name, partial(forward, relu=True), grad.shape, x, weight, added, *options)
        assert np.array_equal(found, np.maximum(out, 0), equal_nan=True)


POOLED = [
    *(case for case in LAYERS if min(output_shape(case)[2:]) > 1),
    ((3, 4, 5, 3), (4, 4, 2, 2), (2, 1), (0, 0), (1, 1), 1),
    ((2, 3, 21, 20), (130, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # windows of several tiles
]


@pytest.mark.parametrize(("name", "case"), formats_in_turn(POOLED), ids=str)
def test_pooling_finds_the_largest_of_the_same_bits(place, name, case):
    """And where it was: the first of equals, the last NaN, as max_pool2d does."""
    encode, numbers, *_ = FORMATS[name]
    x, weight, bias, grad, options = inputs(name, case)
    x[0, 0, 0, -1] = encode(np.array([np.nan], np.float32))[0]
    size = grad.shape[2] // 2, grad.shape[3] // 2
    windows = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "size": size}
    for added, tile in (bias, 64), (None, 128):
        forward = partial(PASSES[0], relu=True, tile=128)  # its sums are not cut into parts, like pooled's
        full = run(place, name, forward, grad.shape, x, weight, added, *options)
        expected = get_op("max_pool2d").reference(np, full, **windows)
        outs = place.put(encode(np.full((*full.shape[:2], *size), np.nan, np.float32)))
        taps = place.put(np.full(outs.shape, 9, np.uint8))
        arrays = [place.put_strided(a) if isinstance(a, np.ndarray) else a for a in (x, weight, added)]
        tensor_core.pooled((outs, taps), *arrays, *options, tile=tile)
        assert np.array_equal(numbers(place.get(outs)), expected[0], equal_nan=True)
        assert np.array_equal(place.get(taps), expected[1])


@pytest.mark.parametrize("name", FORMATS)
def test_channels_last_are_read_where_they_lie(place, name, monkeypatch):
    *arrays, options = inputs(name, ((2, 16, 5, 6), (24, 16, 3, 2), (1, 2), (1, 1), (1, 1), 1))
    x, weight, bias, grad = arrays
    expected = check(place, name, arrays, options)
    transposed = []
    transpose = tensor_core._transpose

    def noted(out, x, *how):
        transposed.append(x.shape)
        transpose(out, x, *how)

    monkeypatch.setattr(tensor_core, "_transpose", noted)
    found = results(
        place, name, *(as_channels_last(a) if a.ndim == 4 else a for a in (x, weight, bias, grad)), options
    )
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
    assert len(transposed) == 1  # the weight, for the gradient for the input, which wants its rows last
    # Of more channels, at whole vectors: their neighbours are not read.
    wide = np.full((*x.shape[:1], *x.shape[2:], 32), x.flat[0])
    wide[..., 8:24] = x.transpose(0, 2, 3, 1)
    run(
        place,
        name,
        PASSES[0],
        grad.shape,
        wide[..., 8:24].transpose(0, 3, 1, 2),
        weight,
        bias,
        *options,
    )
    assert len(transposed) == 2  # the weight alone, again


@pytest.mark.parametrize("view", ["rows reversed", "broadcast", "columns in order"])
def test_views_are_copied(place, view):
    *arrays, options = inputs("f16", ((2, 8, 5, 6), (4, 8, 3, 2), (1, 1), (1, 1), (1, 1), 1))
    x, weight, bias, grad = arrays
    x = {
        "rows reversed": lambda: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
        "broadcast": lambda: np.broadcast_to(x[:1], x.shape),
        "columns in order": lambda: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
    }[view]()
    check(place, "f16", [x, weight, bias, grad], options)


@pytest.mark.parametrize("name", FORMATS)
def test_empty_arrays(place, name):
    encode = FORMATS[name][0]
    options = (1, 1, 0, 0, 1, 1, 1)
    for N, C in ((0, 1), (1, 0), (2, 3)):
        x, weight = (encode(np.ones(s, np.float32)) for s in ((N, C, 4, 4), (3, C, 3, 3)))
        grad, bias = encode(np.ones((N, 3, 2, 2), np.float32)), encode(np.arange(3, dtype=np.float32))
        out, grad_x, grad_weight = results(place, name, x, weight, bias, grad, options)
        assert (out == 9 * C + np.arange(3)[:, None, None]).all()
        assert grad_x.shape == x.shape
        assert (grad_weight == 4 * N).all()
    x, weight, grad = (encode(np.ones(s, np.float32)) for s in ((1, 3, 4, 4), (0, 3, 3, 3), (1, 0, 2, 2)))
    _, grad_x, _ = results(place, name, x, weight, None, grad, options)
    assert not grad_x.any()


def test_long_sums_are_cut_for_multiprocessors_that_would_be_idle():
    assert tensor_core._plan(512, 4, 144) == (64, 32, 4, 36)  # 512 channels of 8 images of 7 x 7, in 16 bits
    assert tensor_core._plan(20, 1, 144) == (64, 1, 9, 16)
    assert tensor_core._plan(20, 1, 31) == (32, 1, 1, tensor_core.ALL_STEPS)
    assert tensor_core._plan(512, 25, 144) == (64, 200, 1, tensor_core.ALL_STEPS)
    for tile, merged in (128, 1), (None, 2):
        assert tensor_core._plan(20, 1, 144, tile, merged).parts == 1
    x, weight = np.empty((1, 256, 4, 4), "f2"), np.empty((8, 256, 3, 3), "f2")
    assert tensor_core.is_cut(x, weight, 1, 1, 1, 1, 1, 1)
    assert not tensor_core.is_cut(x, weight[:, :, :1], 1, 1, 1, 1, 1, 1)


def test_the_weight_s_tiles_keep_all_multiprocessors_busy():
    assert of_weight.tile_rows("__half", 512, 36) == 64  # 3 x 64 rows for the busiest, not 2 x 128
    assert of_weight.tile_rows("__half", 1024, 72) == 128
    assert of_weight.tile_rows("__half", 128, 9) == 128  # whose sums are cut
    assert of_weight.tile_rows("__half", 130, 90) == of_weight.tile_rows("float", 512, 36) == 64


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_parts_lie_as_the_result_does(place, name):
    *arrays, options = inputs(name, IN_PARTS[0])
    for last in False, True:
        forms = [as_channels_last(a) if last and a.ndim == 4 else a for a in arrays]
        assert_close(name, results(place, name, *forms, options, last=last), arrays, options)


@pytest.mark.parametrize("case", [ODD, LAYERS[1], LAYERS[-4]], ids=str)
@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_nan_and_infinity_reach_what_they_are_part_of_and_nothing_else(place, name, case):
    encode, numbers, *_ = FORMATS[name]
    forward, input_grad, weight_grad = PASSES
    x, weight, _, grad, options = inputs(name, case)
    for array in (x, grad):
        special = array.copy()
        last = array.shape[0] - 1
        special[0, 0, 0, -1], special[last, -1, -1, 0] = encode(np.array([np.nan, np.inf], np.float32))
        of_x, of_grad = (special, grad) if array is x else (x, special)
        with np.errstate(invalid="ignore"):
            expected = by_definition(numbers(of_x), numbers(weight), numbers(of_grad), options)
        found = (
            run(place, name, forward, grad.shape, of_x, weight, None, *options),
            run(place, name, input_grad, x.shape, of_grad, weight, *options),
            run(place, name, weight_grad, weight.shape, of_grad, of_x, *options),
        )
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(np.isfinite(one), np.isfinite(other))
            there = ~np.isfinite(other)
            assert np.array_equal(one[there], other[there], equal_nan=True)


def test_pooled_refuses_groups():
    x, weight, out = (np.ones(s, "f4") for s in ((1, 4, 5, 5), (2, 2, 3, 3), (1, 2, 1, 1)))
    with pytest.raises(ValueError, match="expected 1 group, got 2"):
        tensor_core.pooled((out, out.astype("u1")), x, weight, None, 1, 1, 0, 0, 1, 1, 2)


# ---- 1x1 kernels, on images as they lie -------------------------------------------------------------------

POINTWISE = pointwise.forward, pointwise.input_grad, pointwise.weight_grad
STAY = (1, 1, 0, 0, 1, 1, 1)
POINTWISE_LAYERS = [  # N, C, O, H, W
    (2, 17, 33, 4, 4),
    (1, 64, 64, 2, 8),
    (3, 40, 70, 2, 12),  # more rows than a tile of 64
    (1, 130, 129, 8, 3),
    (1, 1, 1, 1, 8),
    (9, 3, 5, 1, 8),  # a tile has pixels of all images
    (17, 9, 4, 8, 8),  # sums over pixels, and then over channels, long enough to be cut into parts
    (1, 1030, 33, 2, 4),
    (1, 33, 1050, 2, 4),
]


def pointwise_inputs(name, layer):
    N, C, O, H, W = layer  # noqa: E741
    return inputs(name, ((N, C, H, W), (O, C, 1, 1), (1, 1), (0, 0), (1, 1), 1))[:-1]


@pytest.mark.parametrize(("name", "layer"), formats_in_turn(POINTWISE_LAYERS), ids=str)
def test_1x1_kernels(place, name, layer, monkeypatch):
    monkeypatch.setattr(tensor_core, "_transpose", None)
    arrays = pointwise_inputs(name, layer)
    check(place, name, arrays, STAY, passes=POINTWISE)
    if name != "tf32" and layer[2] > 64:
        check(place, name, arrays, STAY, 128, (*POINTWISE[:2], partial(pointwise.weight_grad, tile=128)))


@pytest.mark.parametrize("layer", [POINTWISE_LAYERS[i] for i in (0, 2, 7)], ids=str)
def test_a_float32_weight_of_a_1x1_kernel(place, layer):
    x, _, _, grad = pointwise_inputs("f16", layer)
    weight = pointwise_inputs("tf32", layer)[1]
    assert_float32_weight_is_rounded(place, x, weight, grad, STAY, POINTWISE)


@pytest.mark.parametrize("name", FORMATS)
def test_1x1_kernels_of_random_sizes(place, name):
    rng = np.random.default_rng(5)
    for _ in range(4):
        N, C, O = rng.integers(1, 5), rng.integers(1, 80), rng.integers(1, 80)  # noqa: E741
        check(place, name, pointwise_inputs(name, (N, C, O, rng.integers(1, 7), 8)), STAY, passes=POINTWISE)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_1x1_kernels_may_be_views(place, name):
    x, weight, bias, grad = pointwise_inputs(name, (2, 16, 24, 4, 4))
    transposed = np.ascontiguousarray(weight.swapaxes(0, 1)).swapaxes(0, 1)
    within = np.ascontiguousarray(np.repeat(weight, 3, axis=1))[:, ::3]
    for view in transposed, within:
        check(place, name, (x, view, bias, grad), STAY, passes=POINTWISE)


@pytest.mark.parametrize("name", FORMATS)
def test_images_of_1x1_kernels_may_begin_anywhere(place, name):
    x, weight, bias, grad = pointwise_inputs(name, (2, 16, 24, 4, 4))

    def moved(array):
        return np.concatenate([array.ravel()[:1], array.ravel()])[1:].reshape(array.shape)

    check(place, name, (moved(x), weight, bias, moved(grad)), STAY, passes=POINTWISE)


@pytest.mark.parametrize("name", FORMATS)
def test_relu_is_applied_to_the_same_bits_of_1x1_kernels(place, name):
    x, weight, bias, grad = pointwise_inputs(name, POINTWISE_LAYERS[0])
    x[0, 0, 0, -1], x[-1, -1, -1, 0] = FORMATS[name][0](np.array([np.nan, -np.inf], np.float32))
    for added in (bias, None):
        out = run(place, name, pointwise.forward, grad.shape, x, weight, added, *STAY)
        found = run(place, name, partial(pointwise.forward, relu=True), grad.shape, x, weight, added, *STAY)
        assert np.isnan(out).any()
        assert np.array_equal(found, np.maximum(out, 0), equal_nan=True)


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_nan_and_infinity_stay_in_their_pixels_of_1x1_kernels(place, name):
    numbers = FORMATS[name][1]
    x, weight, _, grad = pointwise_inputs(name, POINTWISE_LAYERS[0])
    for array in (x, grad):
        special = FORMATS[name][0](np.array([np.nan, np.inf], np.float32))
        array[0, 0, 0, -1], array[1, -1, -1, 0] = special
        with np.errstate(invalid="ignore"):
            expected = by_definition(*map(numbers, (x, weight, grad)), STAY)
        found = results(place, name, x, weight, None, grad, STAY, passes=POINTWISE)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(np.isfinite(one), np.isfinite(other))
            there = ~np.isfinite(other)
            assert np.array_equal(one[there], other[there], equal_nan=True)


def test_layers_that_pointwise_does_not_take_are_refused():
    x, weight, out = (np.ones(s, "f4") for s in ((2, 3, 4, 4), (5, 3, 1, 1), (2, 5, 4, 4)))
    for images in (x[..., :3], x[:, :, ::-1], as_channels_last(x), x[:0]):
        assert not pointwise.fits(images, (1, 1), (1, 1), (0, 0))
    for kernel, stride, padding in (
        ((1, 3), (1, 1), (0, 0)),
        ((1, 1), (1, 2), (0, 0)),
        ((1, 1), (1, 1), (1, 0)),
    ):
        assert not pointwise.fits(x, kernel, stride, padding)
    with pytest.raises(ValueError, match="are multiples of 16 bytes"):
        pointwise.forward(out[..., :3], x[..., :3], weight, None, *STAY)
    with pytest.raises(ValueError, match="expected a 1x1 kernel, stride 1"):
        pointwise.weight_grad(np.ones((5, 3, 1, 3), "f4"), out[..., :2], x, *STAY)
    with pytest.raises(ValueError, match="expected 1 group, got 3"):
        pointwise.input_grad(
            np.ones((2, 9, 4, 4), "f4"),
            np.ones((2, 6, 4, 4), "f4"),
            weight[:, :3].repeat(2, 0)[:6],
            *STAY[:-1],
            3,
        )


# ---- on the simulator alone --------------------------------------------------------------------------------


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("name", ["tf32", "f16"])
def test_every_order_of_the_threads_gives_the_same_bits_and_no_race(name):
    class Simulator:
        put = put_strided = get = staticmethod(lambda array: array)

    for arrays, passes in (
        (inputs(name, ODD), None),
        (inputs(name, GROUPED[1]), None),
        (inputs(name, IN_PARTS[1]), None),
        ((*pointwise_inputs(name, POINTWISE_LAYERS[0]), STAY), POINTWISE),
        ((*pointwise_inputs(name, POINTWISE_LAYERS[-1]), STAY), POINTWISE),
    ):
        expected = results(Simulator, name, *arrays, passes=passes)
        with sim.checks(), sim.stress(2):
            found = results(Simulator, name, *arrays, passes=passes)
        for seed, workers in ((1, 1), (12345, 3)):
            with sim.seed(seed), sim.num_threads(workers):
                found += results(Simulator, name, *arrays, passes=passes)
        for number, result in enumerate(found):
            assert np.array_equal(result, expected[number % 3])
