"""The LSTM kernels, at every instruction-set level, against the definition in float64."""

import numpy as np
import pytest
from in_one_test import in_one_test

# T, N, E, H: around the edges of vectors, of register tiles and of the blocks of rows; the last has tiles
# enough to fetch all that a step back awaits.
SIZES = [
    (1, 1, 1, 1),
    (3, 2, 4, 5),
    (2, 6, 16, 16),
    (4, 13, 3, 17),
    (2, 5, 0, 40),
    (2, 0, 2, 3),
    (3, 1, 5, 7),
    (2, 103, 9, 35),
    (40, 16, 20, 32),
    (2, 49, 33, 48),
    (3, 32, 4, 160),
]

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
walks = pytest.mark.parametrize(("threads", "reverse"), [(1, False), (1, True), (2, True), (3, False)])


def arrays(size, dtype):
    """x, h0, c0, weight_ih, weight_hh, bias; then gradients of the hidden and of the cell states."""
    T, N, E, H = size
    rng = np.random.default_rng(T + N + E + H)
    shapes = [(T, N, E), (N, H), (N, H), (4 * H, E), (4 * H, H), (4 * H,), (T, N, H), (T, N, H)]
    scales = [1, 1, 1, max(E, 1) ** -0.5, H**-0.5, 1, 1, 1]
    return [(rng.standard_normal(s) * scale).astype(dtype) for s, scale in zip(shapes, scales, strict=True)]


def times(T, reverse):
    return range(T)[::-1] if reverse else range(T)


def forward_by_definition(x, h, c, weight_ih, weight_hh, bias, reverse):
    T, N, H = *x.shape[:2], h.shape[1]
    y, cells, gates = np.empty((T, N, H)), np.empty((T, N, H)), np.empty((T, N, 4 * H))
    for t in times(T, reverse):
        z = x[t] @ weight_ih.T + h @ weight_hh.T + bias
        i, f, g, o = np.split(z, 4, axis=1)
        i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
        c = f * c + i * g
        h = o * np.tanh(c)
        y[t], cells[t], gates[t] = h, c, np.hstack([i, f, g, o])
    return y, cells, gates


def empty(shapes, dtype):
    return [np.full(shape, np.nan, dtype) for shape in shapes]


def run_forward(module, size, dtype, reverse, threads):
    T, N, _, H = size
    outs = empty([(T, N, H), (T, N, H), (T, N, 4 * H)], dtype)
    module.forward(*outs, *arrays(size, dtype)[:6], reverse, threads)
    return outs


def run_backward(module, size, dtype, reverse, threads, with_grad_c=True, batch_first=False):
    T, N, _, H = size
    *inputs, grad_y, grad_c = arrays(size, dtype)
    if batch_first:
        grad_y = grad_y.transpose(1, 0, 2).copy().transpose(1, 0, 2)
    _, cells, gates = (a.astype(dtype) for a in forward_by_definition(*inputs, reverse))
    outs = empty([(T, N, 4 * H), (N, H), (N, H)], dtype)
    _, _, c0, _, weight_hh, _ = inputs
    grad_c = grad_c if with_grad_c else None
    module.backward(*outs, weight_hh, c0, cells, gates, grad_y, grad_c, reverse, threads)
    return outs


def weight_grad_inputs(size, dtype):
    """dz, x, h0 and hidden."""
    T, N, E, H = size
    rng = np.random.default_rng(T + N + E + H)
    shapes = (T, N, 4 * H), (T, N, E), (N, H), (T, N, H)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run_weight_grad(module, size, dtype, reverse, threads):
    _, _, E, H = size
    outs = empty([(4 * H, E), (4 * H, H), (4 * H,)], dtype)
    module.weight_grad(*outs, *weight_grad_inputs(size, dtype), reverse, threads)
    return outs


def assert_steps_close(actual, expected, size, dtype):
    """Each step rounds a sum of E + H products and some ten functions; errors of T steps add up."""
    T, _, E, H = size
    tolerance = T * (E + H + 10) * np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@sizes
@walks
def test_forward(kernel_module, size, dtype, threads, reverse):
    expected = forward_by_definition(*(a.astype(float) for a in arrays(size, dtype)[:6]), reverse)
    for out, wanted in zip(
        run_forward(kernel_module("lstm"), size, dtype, reverse, threads), expected, strict=True
    ):
        assert_steps_close(out, wanted, size, dtype)


@sizes
def test_forward_without_bias(kernel_module, size, dtype):
    T, N, _, H = size
    inputs, outs = arrays(size, dtype)[:5], empty([(T, N, H), (T, N, H), (T, N, 4 * H)], dtype)
    kernel_module("lstm").forward(*outs, *inputs, None, False, 1)
    wanted = forward_by_definition(*(a.astype(float) for a in inputs), 0, False)
    for out, exact in zip(outs, wanted, strict=True):
        assert_steps_close(out, exact, size, dtype)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 2, 1, 5), (2, 3, 2, 17)], ids=str)
@walks
def test_backward_against_differences(kernel_module, size, threads, reverse):
    """z takes the place of x: the identity is its weight."""
    x, h0, c0, weight_ih, weight_hh, bias, grad_y, grad_c = arrays(size, np.float64)
    z, identity = x @ weight_ih.T + bias, np.eye(4 * size[3])

    def total(z, h0, c0):
        y, cells, _ = forward_by_definition(z, h0, c0, identity, weight_hh, 0, reverse)
        return (y * grad_y).sum() + (cells * grad_c).sum()

    found = run_backward(kernel_module("lstm"), size, np.float64, reverse, threads)
    for which, gradient in enumerate(found):
        for position in np.ndindex(gradient.shape):
            moved = [[z.copy(), h0.copy(), c0.copy()] for _ in range(2)]
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
    T, N, E, H = size
    *inputs, grad_y, grad_c = (a.astype(float) for a in arrays(size, np.float32))
    _, cells, gates = forward_by_definition(*inputs, reverse)
    wanted = empty([(T, N, 4 * H), (N, H), (N, H)], float)
    _, _, c0, _, weight_hh, _ = inputs
    grad_c = grad_c if with_grad_c else None
    module.backward(*wanted, weight_hh, c0, cells, gates, grad_y, grad_c, reverse, 1)
    for out, exact in zip(found, wanted, strict=True):
        assert_steps_close(out, exact, (T, N, E, 4 * H), np.float32)


@sizes
@walks
def test_backward_reads_the_gradient_of_a_batch_first_layer(kernel_module, size, dtype, threads, reverse):
    module = kernel_module("lstm")
    found = run_backward(module, size, dtype, reverse, threads, batch_first=True)
    for out, same in zip(found, run_backward(module, size, dtype, reverse, threads), strict=True):
        np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize("size", [*SIZES, (3, 130, 37, 9), (400, 1, 2, 4)], ids=str)
@walks
def test_weight_grad(kernel_module, size, dtype, threads, reverse):
    """Sizes with more rows than one block has, the first of which end within h0."""
    T, N, *_ = size
    dz, x, h0, hidden = (a.astype(float) for a in weight_grad_inputs(size, dtype))
    before = np.concatenate([hidden[1:], h0[None]] if reverse else [h0[None], hidden[:-1]])
    wanted = np.einsum("tna,tnb->ab", dz, x), np.einsum("tna,tnb->ab", dz, before), dz.sum((0, 1))
    tolerance = (T * N + 1) * np.finfo(dtype).eps
    found = run_weight_grad(kernel_module("lstm"), size, dtype, reverse, threads)
    for out, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(out, exact, rtol=tolerance, atol=tolerance * 3)
    without_bias = [*(np.empty_like(out) for out in found[:2]), np.empty(0, dtype)]
    kernel_module("lstm").weight_grad(*without_bias, *weight_grad_inputs(size, dtype), reverse, threads)
    for out, same in zip(without_bias, found[:2], strict=False):
        np.testing.assert_array_equal(out, same)


@in_one_test("threads", [1, 2, 3])
def test_same_thread_count_gives_same_bits(kernel_module, dtype, threads):
    module, size = kernel_module("lstm"), (40, 16, 20, 32)
    for run in (run_forward, run_backward, run_weight_grad):
        first = run(module, size, dtype, False, threads)
        for out, again in zip(first, run(module, size, dtype, False, threads), strict=True):
            np.testing.assert_array_equal(out, again)


def test_nan_and_infinity(kernel_module, dtype):
    T, N, H = 2, 3, 17
    _, h0, c0, _, weight_hh, *_ = arrays((T, N, 1, H), dtype)
    z = np.random.default_rng(0).standard_normal((T, N, 1)).astype(dtype)
    weight_ih = np.ones((4 * H, 1), dtype)
    z[0, 0], z[0, 1], z[0, 2] = np.inf, np.nan, -np.inf
    outs = empty([(T, N, H), (T, N, H), (T, N, 4 * H)], dtype)
    kernel_module("lstm").forward(*outs, z, h0, c0, weight_ih, weight_hh, None, False, 1)
    y, _, gates = outs
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, [0, 2]]).all()
    np.testing.assert_array_equal(gates[0, 0], 1)
    np.testing.assert_array_equal(gates[0, 2, : 2 * H], 0)
    np.testing.assert_array_equal(gates[0, 2, 2 * H : 3 * H], -1)


def test_rejects_what_would_corrupt_memory(kernel_module):
    module, size = kernel_module("lstm"), (3, 2, 4, 5)
    x, h0, c0, weight_ih, weight_hh, bias, *_ = arrays(size, np.float64)
    outs = run_forward(module, size, np.float64, False, 1)
    good = [*outs, x, h0, c0, weight_ih, weight_hh, bias]
    for position, bad, error in [
        (0, outs[0][:2], ValueError),
        (1, np.asfortranarray(outs[1]), ValueError),
        (2, outs[2].reshape(-1), ValueError),
        (3, x[:, :1], ValueError),
        (3, x[0], ValueError),
        (3, x.astype(np.float32), TypeError),
        (4, h0.T, ValueError),
        (5, c0[0], ValueError),
        (6, weight_ih[:5], ValueError),
        (7, weight_hh[:5], ValueError),
        (7, weight_hh.astype(np.float32), TypeError),
        (7, None, TypeError),
        (8, bias[1:], ValueError),
    ]:
        with pytest.raises(error):
            module.forward(*(bad if i == position else array for i, array in enumerate(good)), False, 1)
    nothing = np.empty((0, 2, 5)), np.empty((0, 2, 5)), np.empty((0, 2, 20))
    with pytest.raises(ValueError, match="T > 0"):
        module.forward(*nothing, x[:0], h0, c0, weight_ih, weight_hh, bias, False, 1)


def test_backward_rejects_what_would_corrupt_memory(kernel_module):
    module, size = kernel_module("lstm"), (3, 2, 4, 5)
    outs = run_backward(module, size, np.float64, False, 1)
    *inputs, grad_y, grad_c = arrays(size, np.float64)
    _, cells, gates = forward_by_definition(*inputs, False)
    good = [*outs, inputs[4], inputs[2], cells, gates, grad_y, grad_c]
    for position, bad, error in [
        (0, outs[0][:2], ValueError),
        (5, cells[:, :1], ValueError),
        (6, gates.astype(np.float32), TypeError),
        (7, grad_y[:2], ValueError),
        (7, grad_y.astype(np.float32), TypeError),
        (7, np.asfortranarray(grad_y), ValueError),
        (7, np.repeat(grad_y, 2, axis=2)[..., ::2], ValueError),
        (8, grad_c.transpose(1, 0, 2).copy().transpose(1, 0, 2), ValueError),
    ]:
        with pytest.raises(error):
            module.backward(*(bad if i == position else array for i, array in enumerate(good)), False, 1)


def test_weight_grad_rejects_what_would_corrupt_memory(kernel_module):
    module, size = kernel_module("lstm"), (3, 2, 4, 5)
    outs, inputs = run_weight_grad(module, size, np.float64, False, 1), weight_grad_inputs(size, np.float64)
    good = [*outs, *inputs]
    for position, bad, error in [
        (0, outs[0].T, ValueError),
        (1, outs[1][:2], ValueError),
        (2, outs[2].astype(np.float32), TypeError),
        (2, outs[2][:1], ValueError),
        (3, inputs[0][:2], ValueError),
        (4, inputs[1][:0], ValueError),
        (5, inputs[2][0], ValueError),
        (6, inputs[3][:, :1], ValueError),
    ]:
        with pytest.raises(error):
            module.weight_grad(*(bad if i == position else a for i, a in enumerate(good)), False, 1)


def lookup(size, dtype):
    """The inputs of a lookup: projected and numbers; then h0, c0 and weight_hh."""
    T, N, _, H = size
    _, h0, c0, _, weight_hh, *_ = arrays(size, dtype)
    rng = np.random.default_rng(T + N + H)
    return rng.standard_normal((3, 4 * H)).astype(dtype), rng.integers(0, 3, (T, N)), h0, c0, weight_hh


@sizes
@walks
def test_forward_of_lookup(kernel_module, size, dtype, threads, reverse):
    """The projections take the place of x: the identity is its weight."""
    T, N, _, H = size
    projected, numbers, h0, c0, weight_hh = lookup(size, dtype)
    outs = empty([(T, N, H), (T, N, H), (T, N, 4 * H)], dtype)
    kernel_module("lstm").forward_of_lookup(*outs, projected, numbers, h0, c0, weight_hh, reverse, threads)
    exact = [a.astype(float) for a in (projected[numbers], h0, c0, np.eye(4 * H), weight_hh)]
    for out, wanted in zip(outs, forward_by_definition(*exact, 0, reverse), strict=True):
        assert_steps_close(out, wanted, size, dtype)


def test_forward_of_lookup_rejects_what_would_corrupt_memory(kernel_module):
    size = 3, 2, 4, 5
    projected, numbers, h0, c0, weight_hh = lookup(size, np.float64)
    outs = run_forward(kernel_module("lstm"), size, np.float64, False, 1)
    good = [*outs, projected, numbers, h0, c0, weight_hh]
    for position, bad, error in [
        (3, projected[:, :5], ValueError),
        (3, projected[0], ValueError),
        (3, projected.astype(np.float32), TypeError),
        (4, numbers.astype(np.int32), TypeError),
        (4, numbers[:2], ValueError),
        (4, numbers + 1, ValueError),
        (4, numbers - 1, ValueError),
        (5, h0[0], ValueError),
    ]:
        with pytest.raises(error):
            kernel_module("lstm").forward_of_lookup(
                *(bad if i == position else array for i, array in enumerate(good)), False, 1
            )
