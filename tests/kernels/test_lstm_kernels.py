"""The LSTM kernels, at every instruction-set level, against the definition in float64."""

import numpy as np
import pytest

# T, N, H: around the edges of vectors and of register tiles.
SIZES = [(1, 1, 1), (3, 2, 5), (2, 6, 16), (4, 13, 17), (2, 5, 40), (2, 0, 3), (40, 16, 32)]

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
walks = pytest.mark.parametrize(("threads", "reverse"), [(1, False), (2, True), (3, False)])


def arrays(size, dtype):
    """x, h0, c0, weight; then gradients of the hidden and of the cell states."""
    T, N, H = size
    rng = np.random.default_rng(T + N + H)
    shapes = [(T, N, 4 * H), (N, H), (N, H), (4 * H, H), (T, N, H), (T, N, H)]
    scales = [1, 1, 1, H**-0.5, 1, 1]
    return [(rng.standard_normal(s) * scale).astype(dtype) for s, scale in zip(shapes, scales, strict=True)]


def times(T, reverse):
    return range(T)[::-1] if reverse else range(T)


def forward_by_definition(x, h, c, weight, reverse):
    y, cells, gates = (
        np.empty((*x.shape[:2], h.shape[1])),
        np.empty((*x.shape[:2], h.shape[1])),
        np.empty(x.shape),
    )
    for t in times(len(x), reverse):
        z = x[t] + h @ weight.T
        i, f, g, o = np.split(z, 4, axis=1)
        i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
        c = f * c + i * g
        h = o * np.tanh(c)
        y[t], cells[t], gates[t] = h, c, np.hstack([i, f, g, o])
    return y, cells, gates


def run_forward(module, size, dtype, reverse, threads):
    T, N, H = size
    outs = [np.full((T, N, width), np.nan, dtype) for width in (H, H, 4 * H)]
    module.forward(*outs, *arrays(size, dtype)[:4], reverse, threads)
    return outs


def run_backward(module, size, dtype, reverse, threads, with_grad_c=True):
    T, N, H = size
    x, h0, c0, weight, grad_y, grad_c = arrays(size, dtype)
    _, cells, gates = (a.astype(dtype) for a in forward_by_definition(x, h0, c0, weight, reverse))
    outs = [np.full(s, np.nan, dtype) for s in ((T, N, 4 * H), (N, H), (N, H))]
    grad_c = grad_c if with_grad_c else None
    module.backward(*outs, weight, c0, cells, gates, grad_y, grad_c, reverse, threads)
    return outs


def assert_steps_close(actual, expected, size, dtype):
    """Each step rounds a sum of H products and some ten functions; errors of T steps add up."""
    T, _, H = size
    tolerance = T * (H + 10) * np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@sizes
@walks
def test_forward(kernel_module, size, dtype, threads, reverse):
    expected = forward_by_definition(*(a.astype(float) for a in arrays(size, dtype)[:4]), reverse)
    for out, wanted in zip(
        run_forward(kernel_module("lstm"), size, dtype, reverse, threads), expected, strict=True
    ):
        assert_steps_close(out, wanted, size, dtype)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 5), (2, 3, 17)], ids=str)
@walks
def test_backward_against_differences(kernel_module, size, threads, reverse):
    x, h0, c0, weight, grad_y, grad_c = arrays(size, np.float64)

    def total(x, h0, c0):
        y, cells, _ = forward_by_definition(x, h0, c0, weight, reverse)
        return (y * grad_y).sum() + (cells * grad_c).sum()

    found = run_backward(kernel_module("lstm"), size, np.float64, reverse, threads)
    for which, gradient in enumerate(found):
        for position in np.ndindex(gradient.shape):
            moved = [[x.copy(), h0.copy(), c0.copy()] for _ in range(2)]
            moved[0][which][position] += 1e-6
            moved[1][which][position] -= 1e-6
            difference = (total(*moved[0]) - total(*moved[1])) / 2e-6
            np.testing.assert_allclose(gradient[position], difference, rtol=1e-6, atol=1e-7)


@sizes
@walks
@pytest.mark.parametrize("with_grad_c", [True, False])
def test_backward_in_float32_against_float64(kernel_module, size, threads, reverse, with_grad_c):
    module = kernel_module("lstm")
    found = run_backward(module, size, np.float32, reverse, threads, with_grad_c)
    T, N, H = size
    x, h0, c0, weight, grad_y, grad_c = (a.astype(float) for a in arrays(size, np.float32))
    _, cells, gates = forward_by_definition(x, h0, c0, weight, reverse)
    wanted = [np.empty(s) for s in ((T, N, 4 * H), (N, H), (N, H))]
    module.backward(*wanted, weight, c0, cells, gates, grad_y, grad_c if with_grad_c else None, reverse, 1)
    for out, exact in zip(found, wanted, strict=True):
        assert_steps_close(out, exact, (T, N, 4 * H), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_thread_count_gives_same_bits(kernel_module, dtype, threads):
    module, size = kernel_module("lstm"), (40, 16, 32)
    for run in (run_forward, run_backward):
        first = run(module, size, dtype, False, threads)
        for out, again in zip(first, run(module, size, dtype, False, threads), strict=True):
            np.testing.assert_array_equal(out, again)


def test_nan_and_infinity(kernel_module, dtype):
    size = T, N, H = (2, 3, 17)
    x, h0, c0, weight, *_ = arrays(size, dtype)
    x[0, 1, 0], x[0, 0, :H], x[0, 2, H : 2 * H] = np.nan, np.inf, -np.inf
    outs = [np.empty((T, N, width), dtype) for width in (H, H, 4 * H)]
    kernel_module("lstm").forward(*outs, x, h0, c0, weight, False, 1)
    y, _, gates = outs
    assert np.isnan(y[0, 1, 0]) and np.isfinite(y[0, 1, 1:]).all()
    assert np.isnan(y[1, 1]).all() and np.isfinite(y[:, [0, 2]]).all()
    np.testing.assert_array_equal(gates[0, 0, :H], 1)
    np.testing.assert_array_equal(gates[0, 2, H : 2 * H], 0)


def test_rejects_what_would_corrupt_memory(kernel_module):
    module, size = kernel_module("lstm"), (3, 2, 5)
    x, h0, c0, weight, *_ = arrays(size, np.float64)
    outs = run_forward(module, size, np.float64, False, 1)
    good = [*outs, x, h0, c0, weight]
    for position, bad, error in [
        (0, outs[0][:2], ValueError),
        (1, np.asfortranarray(outs[1]), ValueError),
        (2, outs[2].reshape(-1), ValueError),
        (3, x[:, :1], ValueError),
        (3, x.astype(np.float32), TypeError),
        (4, h0.T, ValueError),
        (5, c0[0], ValueError),
        (6, weight[:5], ValueError),
        (6, weight.astype(np.float32), TypeError),
        (6, None, TypeError),
    ]:
        with pytest.raises(error):
            module.forward(*(bad if i == position else array for i, array in enumerate(good)), False, 1)
    empty = np.empty((0, 2, 5)), np.empty((0, 2, 5)), np.empty((0, 2, 20))
    with pytest.raises(ValueError, match="T > 0"):
        module.forward(*empty, x[:0], h0, c0, weight, False, 1)
