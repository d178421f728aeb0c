"""The CUDA kernels of pooling against the definition in float64, on the simulator and on a card."""

import numpy as np
import pytest

from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import pool2d

DTYPES = [np.float32, np.float64]


@pytest.fixture(params=["sim", "cuda"])
def backend(request):
    """Moves NumPy arrays to where the kernels run, and back: ``backend.put`` and ``backend.get``."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    return Simulator() if request.param == "sim" else Card()


class Simulator:
    put = get = staticmethod(lambda array: array)


class Card:
    put = staticmethod(lambda array: cuda.cupy().asarray(array))
    get = staticmethod(lambda array: cuda.cupy().asnumpy(array))


def run(backend, kernel, shape, dtype, *args):
    """The output of ``kernel`` for NumPy arguments. It starts as NaN, so that what is not written shows."""
    out = backend.put(np.full(shape, np.nan, dtype))
    kernel(out, *(backend.put(a) if isinstance(a, np.ndarray) else a for a in args))
    return backend.get(out)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_sums(actual, expected, magnitude, length):
    """Sums of ``length`` terms, whose absolute values add up to ``magnitude``, are exact for the dtype."""
    bound = (length + 2) * np.finfo(actual.dtype).eps * np.asarray(magnitude, np.float64)
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= bound), np.abs(actual - expected).max()


# ---- pooling -----------------------------------------------------------------------------------------------

# (N, C, H, W), kernel, stride, padding, dilation, output size (larger than the floor: ceil_mode)
POOLINGS = [
    ((1, 1, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), (2, 2)),
    ((2, 3, 7, 5), (3, 2), (2, 1), (1, 1), (1, 1), (4, 6)),
    ((1, 2, 6, 7), (3, 3), (2, 2), (1, 1), (1, 1), (4, 4)),  # windows hang over the far border
    ((2, 1, 9, 8), (2, 3), (1, 2), (1, 0), (3, 2), (8, 2)),
    ((1, 2, 5, 5), (2, 2), (4, 4), (0, 0), (1, 1), (1, 1)),  # some elements are in no window
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


@pytest.mark.parametrize("tap_dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLINGS)
def test_max_pool2d(backend, dtype, tap_dtype, case):
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
    actual = run(backend, pool2d.max_pool2d, out_shape, dtype, actual_taps, x, *options)
    assert np.array_equal(actual, expected)
    assert np.array_equal(backend.get(actual_taps), taps)
    assert np.array_equal(
        run(backend, pool2d.max_pool2d_gather, out_shape, dtype, x + 1, taps, *options),
        gathered.astype(dtype),
    )
    actual = run(backend, pool2d.max_pool2d_input_grad, shape, dtype, grad, taps, *options)
    assert_sums(actual, scattered, np.abs(grad).sum(), np.prod(kernel))


def test_max_pool2d_with_nan_and_infinity(backend):
    x = np.full((1, 1, 2, 8), -np.inf, np.float32)
    x[0, 0, 0, 3], x[0, 0, 1, 2], x[0, 0, 1, 4] = np.nan, np.nan, np.inf
    taps = backend.put(np.full((1, 1, 1, 4), 9, np.uint8))
    out = run(backend, pool2d.max_pool2d, (1, 1, 1, 4), "f4", taps, x, 2, 2, 2, 2, 0, 0, 1, 1)
    assert np.array_equal(out[0, 0, 0], np.float32([-np.inf, np.nan, np.inf, -np.inf]), equal_nan=True)
    assert backend.get(taps)[0, 0, 0].tolist() == [0, 2, 2, 0]  # the last NaN wins; of equals, the first


def test_max_pool2d_window_without_elements(backend):
    """With dilation, a window can step over a narrow input: -infinity, and no gradient anywhere."""
    x, options = np.ones((1, 1, 1, 1), np.float32), (1, 2, 1, 1, 0, 1, 1, 2)
    taps = backend.put(np.full((1, 1, 1, 1), 9, np.uint8))
    out = run(backend, pool2d.max_pool2d, (1, 1, 1, 1), "f4", taps, x, *options)
    assert out.item() == -np.inf and backend.get(taps).item() == 0
    taps = backend.get(taps)
    assert run(backend, pool2d.max_pool2d_input_grad, x.shape, "f4", x, taps, *options).item() == 0
    assert run(backend, pool2d.max_pool2d_gather, x.shape, "f4", x, taps, *options).item() == 0


@pytest.mark.parametrize("divisor", [None, 0, 3, -2])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", [c for c in POOLINGS if c[4] == (1, 1)])
def test_avg_pool2d(backend, count_include_pad, divisor, case):
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
        actual = run(backend, pool2d.avg_pool2d, out_shape, dtype, x.astype(dtype), *options)
        assert_sums(actual, expected, np.abs(x).max() * 9, 9)
        actual = run(backend, pool2d.avg_pool2d_input_grad, shape, dtype, grad.astype(dtype), *options)
        assert_sums(actual, expected_grad, np.abs(grad).max() * 9, 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [((7, 5), (3, 2)), ((6, 4), (3, 4)), ((3, 2), (7, 5)), ((5, 5), (1, 1))])
def test_adaptive_avg_pool2d(backend, dtype, sizes):
    (H, W), (OH, OW) = sizes
    x, grad = normal(2, 3, H, W, dtype=dtype), normal(2, 3, OH, OW, dtype=dtype, seed=1)
    expected, expected_grad = np.zeros(grad.shape), np.zeros(x.shape)
    for i, j in np.ndindex(OH, OW):
        window = (..., slice(i * H // OH, -(-(i + 1) * H // OH)), slice(j * W // OW, -(-(j + 1) * W // OW)))
        expected[:, :, i, j] = x[window].mean((2, 3), dtype=np.float64)
        expected_grad[window] += grad[:, :, i : i + 1, j : j + 1] / x[window][0, 0].size
    actual = run(backend, pool2d.adaptive_avg_pool2d, grad.shape, dtype, x)
    assert_sums(actual, expected, np.abs(x).max(), H * W)
    actual = run(backend, pool2d.adaptive_avg_pool2d_input_grad, x.shape, dtype, grad)
    assert_sums(actual, expected_grad, np.abs(grad).max() * OH * OW, OH * OW)


def test_pooling_of_an_empty_batch(backend):
    empty, out_shape, options = np.empty((0, 3, 4, 4), "f4"), (0, 3, 2, 2), (2, 2, 2, 2, 0, 0)
    taps = np.empty(out_shape, np.uint8)
    assert run(backend, pool2d.max_pool2d, out_shape, "f4", taps, empty, *options, 1, 1).size == 0
    assert run(backend, pool2d.avg_pool2d, out_shape, "f4", empty, *options, True, None).size == 0
    assert run(backend, pool2d.adaptive_avg_pool2d, out_shape, "f4", empty).size == 0


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
    with pytest.raises(ValueError, match="kernel, stride and dilation must be at least 1"):
        pool2d.avg_pool2d(out, x, 2, 2, 0, 1, 0, 0, True, None)
