"""The CUDA kernels of recurrent layers, a launch a step or one for all, against definitions in float64."""

import itertools

import numpy as np
import pytest

from minigrad import get_op, use_kernel
from minigrad.dispatch import kernel_table
from minigrad.kernels import sim

DTYPES = [np.float32, np.float64]

# T, N, H: one row and several, with a rest; units around strips of 4, warps and their vectors.
SIZES = [(1, 1, 1), (3, 1, 7), (2, 3, 4), (3, 8, 5), (2, 9, 33), (2, 1, 36), (1, 17, 132), (2, 0, 3)]

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
walks = pytest.mark.parametrize(("reverse", "optional"), [(False, True), (True, False)])
nonlinearities = pytest.mark.parametrize(("reverse", "nonlinearity"), [(False, "tanh"), (True, "relu")])


pytestmark = pytest.mark.usefixtures("checked_accesses")


def drawn(dtype, *shapes):
    """Random arrays; weights, which come first, so that a product is about as large as a state."""
    rng = np.random.default_rng(len(shapes))
    weight, *others = (rng.standard_normal(shape) for shape in shapes)
    return [a.astype(dtype) for a in (weight * shapes[0][1] ** -0.5, *others)]


def gates_of(dtype, *shape):
    return np.random.default_rng(7).uniform(0.1, 0.9, shape).astype(dtype)


def definition(op, *inputs, **attributes):
    """The op's reference in float64."""
    wide = [None if a is None else a.astype(np.float64) for a in inputs]
    return get_op(op).reference(np, *wide, **attributes)


def assert_steps_close(found, expected, terms, dtype):
    """Each step rounds a sum of so many terms and some ten functions; errors of the steps add up."""
    for out, exact in zip(found, expected, strict=True):
        tolerance = len(expected[0]) * (terms + 10) * np.finfo(dtype).eps
        np.testing.assert_allclose(out, exact, rtol=tolerance, atol=tolerance)


# ---- long short-term memory --------------------------------------------------------------------------------


def lstm(recurrent):
    """The kernels' ``lstm``, with what the inputs contribute as an argument."""

    def run(outs, z, *inputs):
        outs[2][...] = z
        recurrent.lstm(outs, *inputs)

    return run


def lstm_problem(size, dtype):
    """The arrays of a problem, and the shapes of its results."""
    T, N, H = size
    weight, bias, z, h0, c0 = drawn(dtype, (4 * H, H), (4 * H,), (T, N, 4 * H), (N, H), (N, H))
    return weight, bias, z, h0, c0, [(T, N, H), (T, N, H), (T, N, 4 * H)]


@sizes
@dtypes
@walks
def test_lstm(run, recurrent, size, dtype, reverse, optional):
    weight, bias, z, h0, c0, shapes = lstm_problem(size, dtype)
    bias = bias if optional else None
    found = run(lstm(recurrent), shapes, dtype, z, h0, c0, weight, bias, reverse)
    expected = definition("lstm", z, h0, c0, np.eye(4 * size[2]), weight, bias, reverse=reverse)
    assert_steps_close(found, expected, size[2], dtype)


@sizes
@dtypes
@walks
def test_lstm_gradient(run, recurrent, size, dtype, reverse, optional):
    T, N, H = size
    weight, c0, cells, grad_y, grad_c = drawn(dtype, (4 * H, H), (N, H), *[(T, N, H)] * 3)
    gates, grad_c = gates_of(dtype, T, N, 4 * H), grad_c if optional else None
    inputs = (weight, c0, cells, gates, grad_y, grad_c)
    found = run(recurrent.lstm_grad, [(T, N, 4 * H), (N, H), (N, H)], dtype, *inputs, reverse)
    expected = definition("lstm_grad", *inputs, reverse=reverse)
    assert_steps_close(found, expected, 4 * H, dtype)


def test_gates_that_are_shut_and_open(run, recurrent):
    """Pre-activations far beyond the range of exp, and infinite ones."""
    weight, bias, z, h0, c0, shapes = lstm_problem((2, 3, 8), np.float32)
    z[0, 0], z[0, 1], z[1, 2] = 200, -200, np.inf
    found = run(lstm(recurrent), shapes, np.float32, z, h0, c0, weight, bias, False)
    expected = definition("lstm", z[:1], h0, c0, np.eye(32), weight, bias)
    assert_steps_close([a[:1] for a in found], expected, 8, np.float32)
    assert all(np.isfinite(a).all() for a in found)
    assert (found[2][1, 2] == 1).all()


@pytest.mark.parametrize("H", [8, 33])
def test_nan_stays_in_its_row(run, recurrent, H):
    weight, bias, z, h0, c0, shapes = lstm_problem((3, 4, H), np.float32)
    z[1, 2, 0] = np.nan
    hidden, cells, gates = run(lstm(recurrent), shapes, np.float32, z, h0, c0, weight, bias, False, fill=77)
    for found in (hidden, cells, gates):
        assert np.isfinite(found[:, [0, 1, 3]]).all() and np.isfinite(found[0]).all()
    assert np.isnan(cells[1, 2]).sum() == 1 and np.isnan(hidden[2, 2]).all()


def test_weights_that_start_between_vectors(run, recurrent):
    """Their rows are read element by element."""
    weight, bias, z, h0, c0, shapes = lstm_problem((2, 3, 8), np.float32)

    def shifted(outs, z, h0, c0, flat, bias):
        lstm(recurrent)(outs, z, h0, c0, flat[1:].reshape(weight.shape), bias, False)

    flat = np.concatenate([np.zeros(1, np.float32), weight.ravel()])
    found = run(shifted, shapes, np.float32, z, h0, c0, flat, bias)
    assert_steps_close(found, definition("lstm", z, h0, c0, np.eye(32), weight, bias), 8, np.float32)


# ---- gated recurrent unit, plain recurrent layer -----------------------------------------------------------


def gru_problem(size, dtype):
    T, N, H = size
    weight, bias, z, h0 = drawn(dtype, (3 * H, H), (3 * H,), (T, N, 3 * H), (N, H))
    return (z, h0, weight, bias), [(T, N, H), (T, 4, N, H)]


@sizes
@dtypes
@walks
def test_gru(run, recurrent, size, dtype, reverse, optional):
    (*inputs, bias), shapes = gru_problem(size, dtype)
    inputs.append(bias if optional else None)
    found = run(recurrent.gru, shapes, dtype, *inputs, reverse)
    assert_steps_close(found, definition("gru", *inputs, reverse=reverse), size[2], dtype)


@sizes
@dtypes
@pytest.mark.parametrize("reverse", [False, True])
def test_gru_gradient(run, recurrent, size, dtype, reverse):
    T, N, H = size
    weight, h0, y, grad_y = drawn(dtype, (3 * H, H), (N, H), (T, N, H), (T, N, H))
    inputs = (weight, h0, y, gates_of(dtype, T, 4, N, H), grad_y)
    found = run(recurrent.gru_grad, [(T, N, 3 * H), (T, N, 3 * H), (N, H)], dtype, *inputs, reverse)
    assert_steps_close(found, definition("gru_grad", *inputs, reverse=reverse), 3 * H, dtype)


@sizes
@dtypes
@nonlinearities
def test_rnn(run, recurrent, size, dtype, reverse, nonlinearity):
    T, N, H = size
    weight, z, h0 = drawn(dtype, (H, H), (T, N, H), (N, H))
    found = run(recurrent.rnn, (T, N, H), dtype, z, h0, weight, nonlinearity, reverse)
    expected = definition("rnn", z, h0, weight, nonlinearity=nonlinearity, reverse=reverse)
    assert_steps_close([found], [expected], H, dtype)


@sizes
@dtypes
@nonlinearities
def test_rnn_gradient(run, recurrent, size, dtype, reverse, nonlinearity):
    T, N, H = size
    weight, grad_y = drawn(dtype, (H, H), (T, N, H))
    y = gates_of(dtype, T, N, H) - dtype(0.5)
    found = run(recurrent.rnn_grad, (T, N, H), dtype, grad_y, y, weight, nonlinearity, reverse)
    expected = definition("rnn_grad", grad_y, y, weight, nonlinearity=nonlinearity, reverse=reverse)
    assert_steps_close([found], [expected], H, dtype)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_every_thread_order_gives_the_same_bits(recurrent):
    weight, bias, z, h0, c0, shapes = lstm_problem((3, 9, 36), np.float32)
    (a, _, gru_weight, gru_bias), gru_shapes = gru_problem((3, 9, 36), np.float32)

    def results():
        outs, gru_outs = ([np.empty(shape, np.float32) for shape in s] for s in (shapes, gru_shapes))
        lstm(recurrent)(outs, z, h0, c0, weight, bias, False)
        grads = [np.empty(shape, np.float32) for shape in (z.shape, h0.shape, c0.shape)]
        recurrent.lstm_grad(grads, weight, c0, outs[1], outs[2], outs[0], None, False)
        recurrent.gru(gru_outs, a, h0, gru_weight, gru_bias, True)
        return b"".join(out.tobytes() for out in (*outs, *grads, *gru_outs))

    expected = results()
    for seed, workers in itertools.product((1, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected


def test_small_layers_take_one_launch():
    """The sizes of the weights and of the batch decide; a rung that was selected runs anyway."""

    def chosen(op, N, H, dtype="f4"):
        shapes = {
            "lstm": [(9, N, 5), (N, H), (N, H), (4 * H, 5), (4 * H, H), None, None],
            "lstm_grad": [(4 * H, H), (N, H), (9, N, H), (9, N, 4 * H), (9, N, H), None, None],
            "gru": [(9, N, 3 * H), (N, H), (3 * H, H), None],
            "gru_grad": [(3 * H, H), (N, H), (9, N, H), (9, 4, N, H), (9, N, H), None],
            "rnn": [(9, N, H), (N, H), (H, H)],
            "rnn_grad": [(9, N, H), (9, N, H), (H, H)],
        }
        arrays = [None if shape is None else np.empty(shape, dtype) for shape in shapes[op]]
        attributes = {"reverse": False} | ({"nonlinearity": "tanh"} if "rnn" in op else {})
        return kernel_table(op).choose("sim", np.dtype(dtype), arrays, attributes).name

    for layer in ("lstm", "gru", "rnn"):
        for op in (layer, f"{layer}_grad"):
            assert chosen(op, 32, 128) == chosen(op, 1, 64, "f8") == "fused_sequence"
            assert chosen(op, 600, 128) == chosen(op, 2, 257) == chosen(op, 2, 0) == "fused_step"
            with use_kernel(op, "fused_sequence", "sim"):
                assert chosen(op, 600, 128) == "fused_sequence"
    assert chosen("lstm", 32, 136) == chosen("lstm_grad", 32, 136) == "fused_step"
    assert chosen("lstm", 32, 136, "f2") == chosen("rnn", 32, 256) == "fused_sequence"
