"""The CUDA kernels of pooling against the definition in float64, on the simulator and on a card."""

import itertools

import numpy as np
import pytest
from simulated import normal

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.cuda import pool2d, pool2d_rolling, pool2d_rows
from minigrad.kernels.cuda.pool2d_rolling import avg_pool2d_rolling, max_pool2d_rolling
from minigrad.kernels.cuda.pool2d_rows import avg_pool2d_input_grad_rows, max_pool2d_input_grad_rows
from minigrad.kernels.cuda.pool2d_tiled import avg_pool2d_tiled, max_pool2d_tiled
from minigrad.kernels.cuda.pool2d_vectorized import (
    avg_pool2d_input_grad_vectorized,
    avg_pool2d_vectorized,
    max_pool2d_input_grad_vectorized,
    max_pool2d_vectorized,
)
from minigrad.kernels.launch import CudaKernel

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def in_fours(input_grad):
    """A gradient by rows of which a thread makes four, as if there were threads enough."""

    def kernel(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool2d_rows, "ENOUGH_THREADS", 1)
            input_grad(*arguments)

    return kernel


DTYPES = [np.float32, np.float64]
RUNGS = {  # of max pooling: (forward, gradient for the input)
    "naive": (pool2d.max_pool2d, pool2d.max_pool2d_input_grad),
    "tiled": (max_pool2d_tiled, pool2d.max_pool2d_input_grad),
    "rolling": (max_pool2d_rolling, pool2d.max_pool2d_input_grad),
    "rows": (pool2d.max_pool2d, max_pool2d_input_grad_rows),
    "four rows": (pool2d.max_pool2d, in_fours(max_pool2d_input_grad_rows)),
    "scatter": (pool2d.max_pool2d, pool2d.max_pool2d_input_grad_scatter),
    "vectorized": (max_pool2d_vectorized, max_pool2d_input_grad_vectorized),
}

AVERAGES = [
    *(pool2d.avg_pool2d, avg_pool2d_tiled, avg_pool2d_rolling, avg_pool2d_vectorized),
    pool2d.avg_pool2d_planes,
]
AVERAGE_GRADIENTS = [
    pool2d.avg_pool2d_input_grad_planes,
    *(pool2d.avg_pool2d_input_grad, avg_pool2d_input_grad_vectorized),
    *(avg_pool2d_input_grad_rows, in_fours(avg_pool2d_input_grad_rows)),
]

pytestmark = pytest.mark.usefixtures("checked_accesses")


def assert_sums(actual, expected, magnitude, length):
    """Sums of ``length`` terms, whose absolute values add up to ``magnitude``, are exact for the dtype."""
    bound = (length + 2) * np.finfo(actual.dtype).eps * np.asarray(magnitude, np.float64)
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= bound), np.abs(actual - expected).max()


# (N, C, H, W), kernel, stride, padding, dilation, output size (larger than the floor: ceil_mode)
POOLINGS = [
    ((1, 1, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), (2, 2)),
    ((2, 3, 7, 5), (3, 2), (2, 1), (1, 1), (1, 1), (4, 6)),
    ((1, 2, 6, 7), (3, 3), (2, 2), (1, 1), (1, 1), (4, 4)),  # windows hang over the far border
    ((2, 1, 9, 8), (2, 3), (1, 2), (1, 0), (3, 2), (8, 2)),
    ((1, 2, 5, 5), (2, 2), (4, 4), (0, 0), (1, 1), (1, 1)),  # some elements are in no window
    ((2, 1, 10, 11), (3, 2), (3, 4), (1, 1), (1, 1), (4, 3)),  # windows do not overlap
    ((1, 2, 9, 9), (2, 2), (3, 4), (1, 0), (2, 3), (3, 2)),  # nor do these, with dilation
    ((2, 3, 6, 8), (2, 2), (2, 2), (0, 0), (1, 1), (3, 4)),  # squares under whole vectors
    ((1, 2, 7, 8), (2, 2), (2, 2), (0, 0), (1, 1), (3, 4)),  # and a row in no window
    ((1, 2, 7, 8), (2, 2), (2, 2), (0, 0), (1, 1), (4, 4)),  # or in half of one
    ((1, 1, 67, 35), (3, 3), (1, 1), (1, 1), (1, 1), (67, 35)),  # several tiles along both axes
    ((2, 1, 18, 16), (3, 3), (1, 1), (1, 1), (1, 1), (18, 16)),  # strips of whole vectors
    ((1, 2, 73, 24), (3, 3), (2, 2), (1, 1), (1, 1), (37, 12)),
    ((2, 2, 35, 17), (3, 3), (1, 1), (1, 1), (1, 1), (35, 17)),  # of other rows
    ((1, 3, 21, 15), (3, 3), (2, 2), (1, 1), (1, 1), (11, 8)),
    ((2, 1, 13, 13), (3, 3), (2, 2), (0, 0), (1, 1), (6, 6)),
    ((2, 1, 12, 14), (3, 3), (2, 2), (0, 1), (1, 1), (6, 7)),  # the last of a column hang over
    ((1, 2, 7, 9), (3, 3), (1, 1), (0, 0), (1, 1), (5, 7)),
    ((1, 2, 5, 1), (3, 3), (1, 1), (1, 1), (1, 1), (5, 1)),
    ((2, 1, 20, 73), (5, 3), (2, 2), (2, 1), (1, 1), (10, 37)),  # in phases of the stride
    ((1, 1, 21, 34), (2, 3), (1, 3), (0, 1), (4, 2), (17, 11)),  # with dilation
]


def windows(case):
    """(oh, ow, taps), where taps lists (index, y, x) of a window's elements inside the input."""
    (_, _, H, W), kernel, stride, padding, dilation, out_size = case
    for oh, ow in np.ndindex(out_size):
        taps = []
        for i, j in np.ndindex(kernel):
            y = oh * stride[0] - padding[0] + i * dilation[0]
            x = ow * stride[1] - padding[1] + j * dilation[1]
            if 0 <= y < H and 0 <= x < W:
                taps.append((i * kernel[1] + j, y, x))
        yield oh, ow, taps


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("tap_dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLINGS)
def test_max_pool2d(backend, run, rung, dtype, tap_dtype, case):
    forward, input_grad = RUNGS[rung]
    shape, kernel, stride, padding, dilation, out_size = case
    x, out_shape = normal(*shape, dtype=dtype).round(1), (*shape[:2], *out_size)  # rounded: there are ties
    grad, options = normal(*out_shape, dtype=dtype, seed=1), (*kernel, *stride, *padding, *dilation)
    expected, taps = np.full(out_shape, -np.inf, dtype), np.zeros(out_shape, tap_dtype)
    gathered, scattered = np.zeros(out_shape), np.zeros(shape)
    for oh, ow, inside in windows(case):
        for n, c in np.ndindex(shape[:2]):
            tap, y, xx = max(inside, key=lambda t: (x[n, c, t[1], t[2]], -t[0]))
            expected[n, c, oh, ow], taps[n, c, oh, ow] = x[n, c, y, xx], tap
            gathered[n, c, oh, ow] = x[n, c, y, xx] + 1
            scattered[n, c, y, xx] += grad[n, c, oh, ow]

    actual_taps = backend.put(np.full(out_shape, 77, tap_dtype))
    actual = run(forward, out_shape, dtype, actual_taps, x, *options)
    assert np.array_equal(actual, expected)
    assert np.array_equal(backend.get(actual_taps), taps)
    assert np.array_equal(
        run(pool2d.max_pool2d_gather, out_shape, dtype, x + 1, taps, *options),
        gathered.astype(dtype),
    )
    actual = run(input_grad, shape, dtype, grad, taps, *options)
    assert_sums(actual, scattered, np.abs(grad).sum(), np.prod(kernel))


@pytest.mark.parametrize(
    "forward",
    [pool2d.max_pool2d, max_pool2d_tiled, max_pool2d_rolling, max_pool2d_vectorized],
)
def test_max_pool2d_with_nan_and_infinity(backend, run, forward):
    x = np.full((1, 1, 2, 8), -np.inf, np.float32)
    x[0, 0, 0, 3], x[0, 0, 1, 2], x[0, 0, 1, 4] = np.nan, np.nan, np.inf
    taps = backend.put(np.full((1, 1, 1, 4), 9, np.uint8))
    out = run(forward, (1, 1, 1, 4), "f4", taps, x, 2, 2, 2, 2, 0, 0, 1, 1)
    assert np.array_equal(out[0, 0, 0], np.float32([-np.inf, np.nan, np.inf, -np.inf]), equal_nan=True)
    assert backend.get(taps)[0, 0, 0].tolist() == [0, 2, 2, 0]  # the last NaN wins; of equals, the first


@pytest.mark.parametrize("most", [pool2d_rolling.MOST, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("width", "padding"), [(16, 1), (17, 1), (15, 0)])
def test_strips_find_nan_and_infinity_like_the_definition(
    backend, run, stride, width, padding, most, monkeypatch
):
    """NaNs here and there, of which the last in a window counts, and windows of nothing but -infinity.

    The six planes are two groups, of which the last is not full.
    """
    monkeypatch.setattr(pool2d_rolling, "AT_A_TIME", 16 // stride if most > 2 else 8 // stride)
    monkeypatch.setattr(pool2d_rolling, "SEGMENT_ROWS", 3)
    monkeypatch.setattr(pool2d_rolling, "MOST", most)
    rng = np.random.default_rng(stride)
    x = rng.choice([-np.inf, -1.0, 0.0, 1.0, np.inf], (2, 3, 11, width)).astype(np.float32)
    x[1][rng.random(x[1].shape) < 0.1] = np.nan
    x[0, 1, :, :9] = -np.inf
    rows, columns = ((n + 2 * padding - 3) // stride + 1 for n in (11, width))
    size, options = (2, 3, rows, columns), (3, 3, stride, stride, padding, padding, 1, 1)
    found = []
    for forward in (pool2d.max_pool2d, max_pool2d_rolling):
        taps = backend.put(np.full(size, 99, np.uint8))
        found.append((run(forward, size, "f4", taps, x, *options, fill=77), backend.get(taps)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("forward", [pool2d.max_pool2d, max_pool2d_tiled])
def test_max_pool2d_window_without_elements(backend, run, forward):
    """With dilation, a window can step over a narrow input: -infinity, and no gradient anywhere."""
    x, options = np.ones((1, 1, 1, 1), np.float32), (1, 2, 1, 1, 0, 1, 1, 2)
    taps = backend.put(np.full((1, 1, 1, 1), 9, np.uint8))
    out = run(forward, (1, 1, 1, 1), "f4", taps, x, *options)
    assert out.item() == -np.inf and backend.get(taps).item() == 0
    taps = backend.get(taps)
    assert run(pool2d.max_pool2d_input_grad, x.shape, "f4", x, taps, *options).item() == 0
    assert run(pool2d.max_pool2d_gather, x.shape, "f4", x, taps, *options).item() == 0


@pytest.mark.parametrize("divisor", [None, 0, 3, -2])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", [c for c in POOLINGS if c[4] == (1, 1)])
def test_avg_pool2d(backend, run, count_include_pad, divisor, case):
    shape, kernel, stride, padding, _, out_size = case
    x, out_shape = normal(*shape), (*shape[:2], *out_size)
    grad = normal(*out_shape, seed=1)
    expected, expected_grad = np.zeros(out_shape), np.zeros(shape)
    for oh, ow, inside in windows(case):
        ends = [
            min(o * s - p + k, size + p) - (o * s - p)
            for o, s, p, k, size in zip((oh, ow), stride, padding, kernel, shape[2:], strict=True)
        ]
        by = divisor or (np.prod(ends) if count_include_pad else len(inside))
        for _, y, xx in inside:
            expected[:, :, oh, ow] += x[:, :, y, xx] / by
            expected_grad[:, :, y, xx] += grad[:, :, oh, ow] / by
    for dtype in DTYPES:
        options = (*kernel, *stride, *padding, count_include_pad, divisor)
        for forward in AVERAGES:
            actual = run(forward, out_shape, dtype, x.astype(dtype), *options)
            assert_sums(actual, expected, np.abs(x).max() * 9, 9)
        for input_grad in AVERAGE_GRADIENTS:
            actual = run(input_grad, shape, dtype, grad.astype(dtype), *options)
            assert_sums(actual, expected_grad, np.abs(grad).max() * 9, 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [((7, 5), (3, 2)), ((6, 4), (3, 4)), ((3, 2), (7, 5)), ((5, 5), (1, 1))])
def test_adaptive_avg_pool2d(backend, run, dtype, sizes):
    (H, W), (OH, OW) = sizes
    x, grad = normal(2, 3, H, W, dtype=dtype), normal(2, 3, OH, OW, dtype=dtype, seed=1)
    expected, expected_grad = np.zeros(grad.shape), np.zeros(x.shape)
    for i, j in np.ndindex(OH, OW):
        window = (..., slice(i * H // OH, -(-(i + 1) * H // OH)), slice(j * W // OW, -(-(j + 1) * W // OW)))
        expected[:, :, i, j] = x[window].mean((2, 3), dtype=np.float64)
        expected_grad[window] += grad[:, :, i : i + 1, j : j + 1] / x[window][0, 0].size
    for forward in (pool2d.adaptive_avg_pool2d, pool2d.adaptive_avg_pool2d_planes):
        actual = run(forward, grad.shape, dtype, x)
        assert_sums(actual, expected, np.abs(x).max(), H * W)
    for backward in (pool2d.adaptive_avg_pool2d_input_grad, pool2d.adaptive_avg_pool2d_input_grad_planes):
        actual = run(backward, x.shape, dtype, grad)
        assert_sums(actual, expected_grad, np.abs(grad).max() * OH * OW, OH * OW)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (7, 7), (4, 8), (29, 31), (140, 160)])
@pytest.mark.parametrize("divisor", [None, 5])
def test_one_window_for_a_plane(backend, run, dtype, size, divisor):
    """Means of rows of any length, and gradients in vectors that begin in one plane and end in another."""
    x, grad = normal(3, 5, *size, dtype=dtype), normal(3, 5, 1, 1, dtype=dtype, seed=1)
    x[0, 1, -1, -1], x[1, 0, 0, 0], x[2, 4, 0, -1] = np.nan, np.inf, -np.inf
    area, options = size[0] * size[1], (*size, 1, 2, 0, 0, True, divisor)
    bound = area * np.finfo(dtype).eps * np.abs(x).max(initial=0, where=np.isfinite(x)) * area
    sums = x.sum((2, 3), dtype=np.float64, keepdims=True)
    kernels = [(pool2d.avg_pool2d_planes, pool2d.avg_pool2d_input_grad_planes, options, divisor or area)]
    if divisor is None:
        adaptive = pool2d.adaptive_avg_pool2d_planes, pool2d.adaptive_avg_pool2d_input_grad_planes
        kernels.append((*adaptive, (), area))
    for forward, backward, options, by in kernels:
        actual = run(forward, grad.shape, dtype, x, *options)
        np.testing.assert_allclose(actual, sums / by, rtol=0, atol=bound / by)
        actual = run(backward, x.shape, dtype, grad, *options)
        assert (actual == np.broadcast_to(grad / dtype(by), x.shape)).all()


def test_pooling_of_an_empty_batch(backend, run):
    empty, out_shape, options = np.empty((0, 3, 4, 4), "f4"), (0, 3, 2, 2), (2, 2, 2, 2, 0, 0)
    taps = np.empty(out_shape, np.uint8)
    for forward in (pool2d.max_pool2d, max_pool2d_tiled):
        assert run(forward, out_shape, "f4", taps, empty, *options, 1, 1).size == 0
    for forward in (pool2d.avg_pool2d, avg_pool2d_tiled):
        assert run(forward, out_shape, "f4", empty, *options, True, None).size == 0
    assert run(pool2d.adaptive_avg_pool2d_planes, (0, 3, 1, 1), "f4", empty).size == 0
    assert run(pool2d.adaptive_avg_pool2d_input_grad_planes, empty.shape, "f4", empty[..., :1, :1]).size == 0
    assert run(pool2d.adaptive_avg_pool2d, out_shape, "f4", empty).size == 0


def test_pooling_refuses_what_does_not_fit():
    x, out, options = np.ones((1, 1, 32, 32), "f4"), np.ones((1, 1, 1, 1), "f4"), (32, 32, 1, 1, 0, 0, 1, 1)
    with pytest.raises(ValueError, match="taps of a 32 x 32 window do not fit uint8"):
        pool2d.max_pool2d(out, np.ones(out.shape, np.uint8), x, *options)
    with pytest.raises(TypeError, match="taps must be uint8 or int32, got int64"):
        pool2d.max_pool2d(out, np.ones(out.shape, np.int64), x, *options)
    with pytest.raises(ValueError, match=r"taps have shape \(1,\)"):
        pool2d.max_pool2d(out, np.ones(1, np.int32), x, *options)
    with pytest.raises(ValueError, match="cannot pool empty planes"):
        pool2d.adaptive_avg_pool2d(out, np.empty((1, 1, 0, 4), "f4"))
    for forward in (pool2d.avg_pool2d, avg_pool2d_tiled):
        with pytest.raises(ValueError, match="kernel, stride and dilation must be at least 1"):
            forward(out, x, 2, 2, 0, 1, 0, 0, True, None)


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order."""
    names, launch = [], CudaKernel.launch

    def noted(self, *args):
        names.append(self.name)
        launch(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", noted)
    return names


def test_the_rungs_are_taken_where_they_fit(run, launched):
    """Elsewhere the rung below does the work: the results are right in any case, the launches tell."""

    def gradient(H, W, kernel, stride):
        pooled = (1, 1, (H - kernel) // stride + 1, (W - kernel) // stride + 1)
        grad, taps = np.ones(pooled, np.float32), np.zeros(pooled, np.uint8)
        options = (kernel, kernel, stride, stride, 0, 0, 1, 1)
        result = run(max_pool2d_input_grad_vectorized, (1, 1, H, W), "f4", grad, taps, *options)
        assert result.sum() == grad.size
        return launched.pop().removeprefix("max_pool2d_input_grad")

    assert gradient(4, 8, 2, 2) == "_vectorized"
    assert gradient(4, 6, 2, 2) == gradient(5, 8, 2, 2) == gradient(8, 8, 3, 3) == "_scatter"
    assert gradient(8, 8, 3, 2) == ""


def test_a_window_too_large_for_a_tile_is_pooled_without(backend, run, launched):
    """One row of such a tile is more than its shared memory."""
    x, options = normal(1, 1, 2, 8000, dtype=np.float32), (2, 7000, 1, 1, 0, 0, 1, 1)
    taps = backend.put(np.full((1, 1, 1, 1001), 7, np.int32))
    out = run(max_pool2d_tiled, taps.shape, "f4", taps, x, *options)
    assert np.array_equal(out[0, 0, 0], [x[..., i : i + 7000].max() for i in range(1001)])
    assert np.array_equal(
        run(avg_pool2d_tiled, (1, 1, 1, 1), "f4", np.ones_like(x), 2, 8000, 1, 1, 0, 0, True, None),
        [[[[1]]]],
    )
    assert launched == ["max_pool2d", "avg_pool2d"]


@needs_simulator
@pytest.mark.parametrize(
    ("size", "geometry", "rung"),
    [
        ((7, 9), (3, 1, 1), "_rolling"),
        ((13, 13), (3, 2), "_rolling"),
        ((9, 9), (3, (2, 1), 1), "_tiled"),
        ((7, 8), (3, 1, 1), "_rolling"),
        ((12, 14), (5, 2, 2), "_tiled"),
        ((3, 40), ((3, 2), 1), "_tiled"),
        ((6, 5), ((3, 2), 1), ""),  # 16 windows, half of a warp
        ((24, 24), (3, 3), ""),  # no overlap
        ((24, 24), ((24, 23), 2), ""),  # nor has a single window
        ((8, 24), (2, 2), "_vectorized"),
    ],
)
def test_tiles_are_chosen_where_windows_overlap(launched, size, geometry, rung):
    x = mg.tensor(normal(1, 1, *size, dtype=np.float32), device="sim")
    mg.nn.functional.max_pool2d(x, *geometry)
    mg.nn.functional.avg_pool2d(x, *geometry)
    assert launched == [f"max_pool2d{rung}", f"avg_pool2d{rung}"]


@needs_simulator
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("W", [16, 56])  # a warp makes windows of two rows, or of one
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 3, 2)])
def test_tiles_ask_for_less_and_cause_no_bank_conflicts(kernel, stride, padding, W, dtype):
    x, pooled = normal(1, 1, 48, W * stride, dtype=dtype), (1, 1, 48 // stride, W)
    options = (kernel, kernel, stride, stride, padding, padding, 1, 1)

    def profile(forward):
        out, taps = np.empty(pooled, dtype), np.empty(pooled, np.uint8)
        with sim.checks(False), sim.profile() as launches:
            forward(out, taps, x, *options)
        return launches[0]

    naive, tiled = profile(pool2d.max_pool2d), profile(max_pool2d_tiled)
    read = kernel**2 * np.prod(pooled) * x.itemsize
    assert 0.9 * read < naive.total("global load").bytes < read  # some of it is padding
    # The definition reads an element kernel / stride times along each axis. The tiles, with all that they
    # share with their neighbours, save more than one of the two factors.
    assert tiled.total("global load").cost < naive.total("global load").cost * stride / kernel
    assert tiled.total("shared load").requests > 0 and tiled.bank_conflicts == 0


@needs_simulator
def test_the_ratio_at_the_head_of_the_tiles():
    x, pooled = normal(2, 2, 56, 56, dtype=np.float32), (2, 2, 56, 56)
    asked = []
    for forward in (pool2d.max_pool2d, max_pool2d_tiled):
        with sim.checks(False), sim.profile() as launches:
            forward(np.empty(pooled, "f4"), np.empty(pooled, np.uint8), x, 3, 3, 1, 1, 1, 1, 1, 1)
        asked.append(launches[0].asked_bytes / x.size)
    assert np.round(asked, 1).tolist() == [49.0, 11.6]


@needs_simulator
def test_squares_are_stored_as_vectors():
    """A warp's 64 outputs of 2x2 windows are one request, and so are their taps."""
    x, pooled = normal(1, 1, 2, 128, dtype=np.float32), (1, 1, 1, 64)
    out, taps = np.empty(pooled, np.float32), np.empty(pooled, np.uint8)
    with sim.checks(False), sim.profile() as launches:
        max_pool2d_vectorized(out, taps, x, 2, 2, 2, 2, 0, 0, 1, 1)
    stores = launches[0].total("global store")
    assert (stores.requests, stores.bytes, stores.cost) == (2, 64 * 5, 64 * 5 // 32)


@needs_simulator
@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("kernel", [2, 3])
def test_every_thread_order_gives_the_same_bits(rung, kernel):
    forward, input_grad = RUNGS[rung]
    x, options = normal(3, 2, 8, 24, dtype=np.float32), (kernel, kernel, 2, 2, kernel - 2, kernel - 2, 1, 1)

    def results():
        out, taps, grad = np.empty((3, 2, 4, 12), "f4"), np.empty((3, 2, 4, 12), np.uint8), np.empty_like(x)
        forward(out, taps, x, *options)
        input_grad(grad, out, taps, *options)
        mean = np.empty_like(out)
        avg_pool2d_tiled(mean, x, *options[:6], True, None)
        return out.tobytes() + taps.tobytes() + grad.tobytes() + mean.tobytes()

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.checks(False), sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
