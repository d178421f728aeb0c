"""The CUDA kernels of recurrent layers in 16 bits, step by step against the definitions in float64.

What a step multiplies is what the one before stored, rounded; what an element carries on outside of the
product is float32. So the definition takes the stored states, or gradients, into each product, and carries on
numbers of its own. From what it gives, the kernels are off by float32's rounding errors, and by one rounding.
"""

import numpy as np
import pytest
from rounded import EPS, assert_rounded, normal

# T, N, H: one row and several, with a rest; units around strips of 4, warps and their vectors of 8.
SIZES = [
    (1, 1, 1),
    (3, 1, 7),
    (2, 3, 4),
    (3, 8, 5),
    (2, 9, 33),
    (2, 1, 40),
    (1, 3, 136),
    (1, 17, 264),
    (2, 0, 3),
]

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
walks = pytest.mark.parametrize(("reverse", "optional"), [(False, True), (True, False)])
nonlinearities = pytest.mark.parametrize(("reverse", "nonlinearity"), [(False, "tanh"), (True, "relu")])

pytestmark = pytest.mark.usefixtures("checked_accesses")


def drawn(half, *shapes):
    """Random arrays, and the same in float64; the first is a weight, whose product is as large as a state."""
    scales = shapes[0][1] ** -0.5, *[1.0] * (len(shapes) - 1)
    pairs = zip(shapes, scales, strict=True)
    return zip(
        *(normal(half, *shape, seed=i, scale=scale) for i, (shape, scale) in enumerate(pairs)), strict=True
    )


def gates_of(half, *shape):
    gates = np.random.default_rng(7).uniform(0.1, 0.9, shape).astype(half)
    return gates, gates.astype(np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def walk(T, reverse):
    """(place of a step, of the one before, of the one after) in the order of time; None for none."""
    places = list(range(T))[:: -1 if reverse else 1]
    return list(zip(places, [None, *places[:-1]], [*places[1:], None], strict=True))


def assert_steps_rounded(found, exact, terms):
    for actual, expected in zip(found, exact, strict=True):
        error = max(len(exact[0]), 1) * (terms + 20) * EPS * (1 + np.abs(expected))
        assert_rounded(actual, np.asarray(expected), error)


# ---- long short-term memory --------------------------------------------------------------------------------


def lstm(recurrent):
    """The kernels' ``lstm``, with what the inputs contribute as an argument."""

    def run(outs, z, *inputs):
        outs[2][...] = z
        recurrent.lstm(outs, *inputs)

    return run


def lstm_definition(hidden, z, h0, c0, weight, bias, reverse):
    """The hidden states, cells and gates, with the product of each step from what is given of ``hidden``."""
    exact, c = [np.empty(hidden.shape), np.empty(hidden.shape), np.empty(z.shape)], c0
    for at, before, _ in walk(len(z), reverse):
        h = h0 if before is None else hidden[before]
        i, f, g, o = np.split(z[at] + h @ weight.T + bias, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        exact[0][at], exact[1][at], exact[2][at] = o * np.tanh(c), c, np.concatenate([i, f, g, o], 1)
    return exact


@sizes
@walks
def test_lstm(run, recurrent, half, size, reverse, optional):
    T, N, H = size
    narrow, wide = drawn(half, (4 * H, H), (4 * H,), (T, N, 4 * H), (N, H), (N, H))
    weight, bias, z, h0, c0 = narrow
    shapes = [(T, N, H), (T, N, H), (T, N, 4 * H)]
    found = run(lstm(recurrent), shapes, half, z, h0, c0, weight, bias if optional else None, reverse)
    weight, bias, z, h0, c0 = wide
    hidden = found[0].astype(np.float64)
    exact = lstm_definition(hidden, z, h0, c0, weight, bias * optional, reverse)
    assert_steps_rounded(found, exact, H)


@sizes
@walks
def test_lstm_gradient(run, recurrent, half, size, reverse, optional):
    T, N, H = size
    narrow, wide = drawn(half, (4 * H, H), (N, H), *[(T, N, H)] * 3)
    gates, of_gates = gates_of(half, T, N, 4 * H)
    weight, c0, cells, grad_y, grad_c = narrow
    inputs = weight, c0, cells, gates, grad_y, grad_c if optional else None, reverse
    found = run(recurrent.lstm_grad, [(T, N, 4 * H), (N, H), (N, H)], half, *inputs)
    weight, c0, cells, grad_y, grad_c = wide
    dz, dc, exact = found[0].astype(np.float64), 0, np.empty(gates.shape)
    for at, before, after in reversed(walk(T, reverse)):
        i, f, g, o = np.split(of_gates[at], 4, axis=1)
        dh = grad_y[at] + (0 if after is None else dz[after] @ weight)
        dc = dc + grad_c[at] * optional + dh * o * (1 - np.tanh(cells[at]) ** 2)
        c = c0 if before is None else cells[before]
        slopes = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
        exact[at] = np.concatenate([*slopes, dh * np.tanh(cells[at]) * o * (1 - o)], 1)
        dc = dc * f
    assert_steps_rounded(found, [exact, dz[at] @ weight, dc], 4 * H)


def test_a_cell_takes_in_many_times_a_little(run, recurrent, half):
    """With the forget gate open, 100 steps of what 16 bits would not add to the cell's state of 1."""
    T, little = 100, 2.0**-12
    z = np.zeros((T, 1, 4), half)
    z[..., 0], z[..., 1], z[..., 2] = 100, 100, little
    zeros, one, weight = np.zeros((1, 1), half), np.ones((1, 1), half), np.zeros((4, 1), half)
    _, cells, _ = run(
        lstm(recurrent), [(T, 1, 1), (T, 1, 1), (T, 1, 4)], half, z, zeros, one, weight, None, False
    )
    exact = 1 + np.tanh(little) * np.arange(1, T + 1)
    assert_rounded(cells[:, 0, 0], exact, T * 4 * EPS)


# ---- gated recurrent unit, plain recurrent layer -----------------------------------------------------------


@sizes
@walks
def test_gru(run, recurrent, half, size, reverse, optional):
    T, N, H = size
    narrow, wide = drawn(half, (3 * H, H), (3 * H,), (T, N, 3 * H), (N, H))
    weight, bias, z, h0 = narrow
    inputs = z, h0, weight, bias if optional else None, reverse
    found = run(recurrent.gru, [(T, N, H), (T, 4, N, H)], half, *inputs)
    weight, bias, z, h0 = wide
    stored, h, exact = found[0].astype(np.float64), h0, [np.empty(f.shape) for f in found]
    for at, before, _ in walk(T, reverse):
        b = (h0 if before is None else stored[before]) @ weight.T + bias * optional
        (of_r, of_u, of_n), (r, u, c) = np.split(z[at], 3, axis=1), np.split(b, 3, axis=1)
        r, u = sigmoid(of_r + r), sigmoid(of_u + u)
        n = np.tanh(of_n + r * c)
        h = n + u * (h - n)
        exact[0][at], exact[1][at] = h, np.stack([r, u, n, c])
    assert_steps_rounded(found, exact, H)


@sizes
@pytest.mark.parametrize("reverse", [False, True])
def test_gru_gradient(run, recurrent, half, size, reverse):
    T, N, H = size
    narrow, wide = drawn(half, (3 * H, H), (N, H), (T, N, H), (T, N, H))
    weight, h0, y, grad_y = narrow
    gates, of_gates = gates_of(half, T, 4, N, H)
    inputs = weight, h0, y, gates, grad_y, reverse
    found = run(recurrent.gru_grad, [(T, N, 3 * H), (T, N, 3 * H), (N, H)], half, *inputs)
    weight, h0, y, grad_y = wide
    db, carried, exact = found[1].astype(np.float64), 0, [np.empty(f.shape) for f in found[:2]]
    for at, before, after in reversed(walk(T, reverse)):
        r, u, n, c = of_gates[at]
        h = h0 if before is None else y[before]
        dh = grad_y[at] + carried + (0 if after is None else db[after] @ weight)
        of_n = dh * (1 - u) * (1 - n**2)
        shared = of_n * c * r * (1 - r), dh * (h - n) * u * (1 - u)
        exact[0][at], exact[1][at] = (np.concatenate([*shared, last], 1) for last in (of_n, of_n * r))
        carried = dh * u
    assert_steps_rounded(found, [*exact, carried + db[at] @ weight], 3 * H)


@sizes
@nonlinearities
def test_rnn(run, recurrent, half, size, reverse, nonlinearity):
    T, N, H = size
    (weight, z, h0), wide = drawn(half, (H, H), (T, N, H), (N, H))
    found = run(recurrent.rnn, (T, N, H), half, z, h0, weight, nonlinearity, reverse)
    weight, z, h0 = wide
    stored, exact = found.astype(np.float64), np.empty(found.shape)
    for at, before, _ in walk(T, reverse):
        x = z[at] + (h0 if before is None else stored[before]) @ weight.T
        exact[at] = np.tanh(x) if nonlinearity == "tanh" else np.maximum(x, 0)
    assert_steps_rounded([found], [exact], H)


@sizes
@nonlinearities
def test_rnn_gradient(run, recurrent, half, size, reverse, nonlinearity):
    T, N, H = size
    (weight, grad_y, y), wide = drawn(half, (H, H), (T, N, H), (T, N, H))
    found = run(recurrent.rnn_grad, (T, N, H), half, grad_y, y, weight, nonlinearity, reverse)
    weight, grad_y, y = wide
    dz, exact = found.astype(np.float64), np.empty(found.shape)
    for at, _, after in reversed(walk(T, reverse)):
        dh = grad_y[at] + (0 if after is None else dz[after] @ weight)
        exact[at] = dh * (1 - y[at] ** 2 if nonlinearity == "tanh" else y[at] > 0)
    assert_steps_rounded([found], [exact], H)


def test_weights_that_start_between_vectors(run, recurrent, half):
    """Their rows are read element by element."""
    T, N, H = 2, 3, 8
    (weight, z, h0), _ = drawn(half, (H, H), (T, N, H), (N, H))

    def shifted(out, z, h0, flat):
        recurrent.rnn(out, z, h0, flat[1:].reshape(H, H), "tanh", False)

    flat = np.concatenate([np.zeros(1, half), weight.ravel()])
    found = run(shifted, (T, N, H), half, z, h0, flat).astype(np.float64)
    expected = run(recurrent.rnn, (T, N, H), half, z, h0, weight, "tanh", False).astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=2 * 2.0**-8, atol=2.0**-10)
