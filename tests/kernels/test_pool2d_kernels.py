"""Pooling kernels against the definition, written as Python loops over windows in float64."""

import functools
import itertools

import numpy as np
import pytest
from in_one_test import in_one_test

# (N, C, H, W), kernel, stride, padding, dilation, ceil_mode
CASES = [
    ((2, 3, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 2, 9, 37), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 2, 9, 37), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((2, 1, 14, 14), (2, 2), (2, 2), (1, 1), (1, 1), False),
    ((1, 2, 11, 21), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((1, 2, 10, 22), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((1, 1, 13, 35), (3, 3), (1, 1), (1, 1), (1, 1), False),
    ((1, 1, 12, 40), (3, 2), (3, 3), (1, 1), (2, 3), True),
    ((2, 2, 7, 5), (7, 5), (1, 1), (0, 0), (1, 1), False),
    ((1, 2, 18, 45), (2, 3), (1, 4), (1, 0), (3, 2), False),
    ((1, 1, 20, 24), (17, 18), (2, 1), (8, 9), (1, 1), True),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
    ((0, 3, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 0, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
]
UNDILATED = [case for case in CASES if case[4] == (1, 1)]


@pytest.fixture
def pool2d(kernel_module):
    return kernel_module("pool2d")


def out_size(size, kernel, stride, pad, dilation, ceil_mode):
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    n = (-(-span // stride) if ceil_mode else span // stride) + 1
    return n - 1 if ceil_mode and (n - 1) * stride >= size + pad else n


def out_shape(shape, kernel, stride, pad, dilation, ceil_mode):
    sizes = (
        out_size(*axis, ceil_mode) for axis in zip(shape[2:], kernel, stride, pad, dilation, strict=True)
    )
    return (*shape[:2], *sizes)


def window(shape, oh, ow, kernel, stride, pad, dilation):
    """(tap, row, column) of the elements of one window that lie inside the input."""
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        row = oh * stride[0] - pad[0] + i * dilation[0]
        column = ow * stride[1] - pad[1] + j * dilation[1]
        if 0 <= row < shape[2] and 0 <= column < shape[3]:
            yield i * kernel[1] + j, row, column


def max_pool_by_loops(x, kernel, stride, pad, dilation, ceil_mode):
    shape = out_shape(x.shape, kernel, stride, pad, dilation, ceil_mode)
    out, taps = np.empty(shape), np.empty(shape, int)
    for n, c, oh, ow in np.ndindex(shape):
        elements = list(window(x.shape, oh, ow, kernel, stride, pad, dilation))
        best, winner = -np.inf, elements[0][0] if elements else 0
        for tap, row, column in elements:
            if x[n, c, row, column] > best or np.isnan(x[n, c, row, column]):
                best, winner = x[n, c, row, column], tap
        out[n, c, oh, ow], taps[n, c, oh, ow] = best, winner
    return out, taps


def scatter_by_loops(grad, taps, shape, kernel, stride, pad, dilation):
    out = np.zeros(shape)
    for n, c, oh, ow in np.ndindex(grad.shape):
        for tap, row, column in window(shape, oh, ow, kernel, stride, pad, dilation):
            if tap == taps[n, c, oh, ow]:
                out[n, c, row, column] += grad[n, c, oh, ow]
    return out


def averaging_weights(shape, kernel, stride, pad, ceil_mode, count_include_pad, divisor_override):
    """For each window (oh, ow): its elements and PyTorch's divisor."""
    _, _, height, width = shape
    _, _, out_height, out_width = out_shape(shape, kernel, stride, pad, (1, 1), ceil_mode)
    for oh, ow in np.ndindex(out_height, out_width):
        elements = [e[1:] for e in window(shape, oh, ow, kernel, stride, pad, (1, 1))]
        rows = min(oh * stride[0] - pad[0] + kernel[0], height + pad[0]) - (oh * stride[0] - pad[0])
        columns = min(ow * stride[1] - pad[1] + kernel[1], width + pad[1]) - (ow * stride[1] - pad[1])
        divisor = divisor_override or (rows * columns if count_include_pad else len(elements))
        yield oh, ow, elements, divisor


def poisoned(shape, dtype):
    return np.full(shape, 77, dtype)


def options(kernel, stride, pad, dilation):
    return (*kernel, *stride, *pad, *dilation)


def with_special_values(rng, shape, dtype):
    """Few distinct values, so that ties are common, and NaN and infinities among them."""
    x = rng.integers(-3, 4, shape).astype(dtype)
    special = rng.choice([np.nan, np.inf, -np.inf], shape)
    return np.where(rng.random(shape) < 0.15, special, x).astype(dtype)


# The oracles are slow: each example is made once for all levels, rungs and thread counts.


@functools.cache
def max_pool_example(case, dtype):
    shape, *geometry, ceil_mode = case
    x = with_special_values(np.random.default_rng(0), shape, dtype)
    return x, *max_pool_by_loops(x, *geometry, ceil_mode)


@functools.cache
def max_pool_grad_example(case, dtype):
    shape, *geometry, ceil_mode = case
    rng = np.random.default_rng(1)
    _, taps = max_pool_by_loops(rng.standard_normal(shape), *geometry, ceil_mode)
    # integers: sums of overlapping windows are exact
    grad = rng.integers(-9, 10, taps.shape).astype(dtype)
    return grad, taps, scatter_by_loops(grad, taps, shape, *geometry)


@functools.cache
def avg_pool_example(case, dtype, count_include_pad, divisor):
    """x, its average pooling, grad_output, and its gradient."""
    shape, kernel, stride, pad, _, ceil_mode = case
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(dtype)
    expected = np.empty(out_shape(*case))
    grad = rng.standard_normal(expected.shape).astype(dtype)
    expected_grad = np.zeros(shape)
    weights = averaging_weights(shape, kernel, stride, pad, ceil_mode, count_include_pad, divisor)
    for oh, ow, elements, d in weights:
        expected[:, :, oh, ow] = sum(x[:, :, row, column].astype(float) for row, column in elements) / d
        for row, column in elements:
            expected_grad[:, :, row, column] += grad[:, :, oh, ow].astype(float) / d
    return x, expected, grad, expected_grad


def taps_dtypes(case):
    kernel = case[1]
    return [np.uint8, np.int32] if kernel[0] * kernel[1] <= 256 else [np.int32]


@in_one_test("threads", [1, 2])
@in_one_test("rung", ["naive", "vectorized"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_pool2d(pool2d, dtype, case, rung, threads):
    geometry = case[1:5]
    x, expected, expected_taps = max_pool_example(case, dtype)
    for taps_dtype in taps_dtypes(case):
        out, taps = poisoned(expected.shape, dtype), poisoned(expected.shape, taps_dtype)
        getattr(pool2d, f"max_pool2d_{rung}")(out, taps, x, *options(*geometry), threads)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(taps, expected_taps)


@in_one_test("threads", [1, 2])
@in_one_test("rung", ["naive", "vectorized"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_pool2d_input_grad(pool2d, dtype, case, rung, threads):
    shape, *geometry, _ = case
    grad, taps, expected = max_pool_grad_example(case, dtype)
    for taps_dtype in taps_dtypes(case):
        out = poisoned(shape, dtype)
        kernel = getattr(pool2d, f"max_pool2d_input_grad_{rung}")
        kernel(out, grad, taps.astype(taps_dtype), *options(*geometry), threads)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gather_is_the_adjoint_of_the_gradient(pool2d, dtype, case):
    shape, *geometry, _ = case
    grad, taps, scattered = max_pool_grad_example(case, dtype)
    x = np.random.default_rng(2).integers(-9, 10, shape).astype(dtype)
    out = poisoned(grad.shape, dtype)
    pool2d.max_pool2d_gather(out, x, taps.astype(np.int32), *options(*geometry), 2)
    assert np.sum(out * grad, dtype=float) == np.sum(x * scattered, dtype=float)


def test_all_minus_infinity_keeps_a_tap_inside_the_input(pool2d, dtype):
    x = np.full((1, 1, 20, 20), -np.inf, dtype)
    expected, expected_taps = max_pool_by_loops(x, (3, 3), (2, 2), (1, 1), (1, 1), False)
    for rung in ("naive", "vectorized"):
        out, taps = poisoned(expected.shape, dtype), poisoned(expected.shape, np.uint8)
        getattr(pool2d, f"max_pool2d_{rung}")(out, taps, x, 3, 3, 2, 2, 1, 1, 1, 1, 1)
        np.testing.assert_array_equal(taps, expected_taps)


def test_window_of_padding_alone_has_no_gradient(pool2d, dtype):
    # Dilation 3 steps over the only row: some windows have no element.
    geometry = ((2, 1), (1, 1), (2, 0), (3, 1))
    x = np.ones((1, 1, 1, 8), dtype)
    expected, _ = max_pool_by_loops(x, *geometry, False)
    assert np.isneginf(expected).any()
    out, taps = poisoned(expected.shape, dtype), poisoned(expected.shape, np.uint8)
    pool2d.max_pool2d_vectorized(out, taps, x, *options(*geometry), 1)
    np.testing.assert_array_equal(out, expected)
    grad = poisoned(x.shape, dtype)
    pool2d.max_pool2d_input_grad_naive(grad, np.ones_like(out), taps, *options(*geometry), 1)
    np.testing.assert_array_equal(grad, scatter_by_loops(np.ones(out.shape), taps, x.shape, *geometry))


@in_one_test("threads", [1, 2])
@pytest.mark.parametrize(("count_include_pad", "divisor"), [(True, 0), (False, 0), (True, 7)])
@in_one_test("rung", ["naive", "vectorized"])
@pytest.mark.parametrize("case", UNDILATED, ids=str)
def test_avg_pool2d_and_its_gradient(pool2d, dtype, case, rung, count_include_pad, divisor, threads):
    _, kernel, stride, pad, _, _ = case
    x, expected, grad, expected_grad = avg_pool_example(case, dtype, count_include_pad, divisor)
    arguments = (*kernel, *stride, *pad, count_include_pad, divisor, threads)
    out, out_grad = poisoned(expected.shape, dtype), poisoned(x.shape, dtype)
    getattr(pool2d, f"avg_pool2d_{rung}")(out, x, *arguments)
    getattr(pool2d, f"avg_pool2d_input_grad_{rung}")(out_grad, grad, *arguments)
    # at most k rounded additions of numbers below 5, and a division
    atol = 5 * kernel[0] * kernel[1] * np.finfo(dtype).eps
    np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(out_grad, expected_grad, rtol=0, atol=atol)


@pytest.mark.parametrize("out_hw", [(1, 1), (7, 7), (3, 5), (11, 2), (13, 24)])
@pytest.mark.parametrize("hw", [(7, 7), (11, 23), (5, 3)])
def test_adaptive_avg_pool2d_and_its_gradient(pool2d, dtype, hw, out_hw):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, *hw)).astype(dtype)
    grad = rng.standard_normal((2, 3, *out_hw)).astype(dtype)
    expected, expected_grad = np.empty(grad.shape), np.zeros(x.shape)
    for oh, ow in np.ndindex(out_hw):
        rows = slice(oh * hw[0] // out_hw[0], -(-(oh + 1) * hw[0] // out_hw[0]))
        columns = slice(ow * hw[1] // out_hw[1], -(-(ow + 1) * hw[1] // out_hw[1]))
        patch = x[:, :, rows, columns].astype(float)
        expected[:, :, oh, ow] = patch.mean(axis=(2, 3))
        share = grad[:, :, oh, ow].astype(float) / (patch.shape[2] * patch.shape[3])
        expected_grad[:, :, rows, columns] += share[:, :, None, None]
    atol = 5 * hw[0] * hw[1] * np.finfo(dtype).eps
    for threads in (1, 2):
        out, out_grad = poisoned(grad.shape, dtype), poisoned(x.shape, dtype)
        pool2d.adaptive_avg_pool2d(out, x, threads)
        pool2d.adaptive_avg_pool2d_input_grad(out_grad, grad, threads)
        np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
        np.testing.assert_allclose(out_grad, expected_grad, rtol=0, atol=atol * out_hw[0] * out_hw[1])


def test_large_input_on_threads_gives_the_same_bits(pool2d, dtype):
    x = np.random.default_rng(6).standard_normal((4, 5, 64, 66)).astype(dtype)
    results = []
    for threads in (1, 2, 3):
        out, taps = poisoned((4, 5, 32, 33), dtype), poisoned((4, 5, 32, 33), np.uint8)
        pool2d.max_pool2d_vectorized(out, taps, x, 2, 2, 2, 2, 0, 0, 1, 1, threads)
        grad = poisoned(x.shape, dtype)
        pool2d.max_pool2d_input_grad_vectorized(grad, out, taps, 2, 2, 2, 2, 0, 0, 1, 1, threads)
        mean = poisoned((4, 5, 32, 33), dtype)
        pool2d.avg_pool2d_vectorized(mean, x, 2, 2, 2, 2, 0, 0, True, 0, threads)
        results.append((out, taps, grad, mean))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_wrong_arguments_are_errors(pool2d):
    x = np.zeros((1, 1, 4, 4), np.float32)
    out, taps = np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.uint8)
    two = (2, 2, 2, 2, 0, 0, 1, 1, 1)
    run = pool2d.max_pool2d_vectorized
    with pytest.raises(TypeError, match="float32 or float64"):
        run(out, taps, x.astype(np.int32), *two)
    with pytest.raises(TypeError, match="dtype"):
        run(out.astype(np.float64), taps, x, *two)
    with pytest.raises(TypeError, match="taps"):
        run(out, taps.astype(np.int64), x, *two)
    with pytest.raises(ValueError, match="contiguous"):
        run(out, taps, x.transpose(0, 1, 3, 2), *two)
    with pytest.raises(ValueError, match="one shape"):
        run(out, taps[..., :1].copy(), x, *two)
    with pytest.raises(ValueError, match="N or C"):
        run(np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2, 2), np.uint8), x, *two)
    with pytest.raises(ValueError, match=">= 1"):
        run(out, taps, x, 2, 2, 0, 2, 0, 0, 1, 1, 1)
    with pytest.raises(ValueError, match="int32 taps"):
        run(out, taps, x, 17, 17, 1, 1, 8, 8, 1, 1, 1)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        run(out, taps, x, *two)


def test_corrupt_taps_do_not_write_outside(pool2d):
    grad, taps = np.ones((1, 1, 2, 2), np.float32), np.full((1, 1, 2, 2), 2**30, np.int32)
    out = poisoned((1, 1, 4, 4), np.float32)
    pool2d.max_pool2d_input_grad_naive(out, grad, taps, 2, 2, 2, 2, 0, 0, 1, 1, 1)
    assert not out.any()
