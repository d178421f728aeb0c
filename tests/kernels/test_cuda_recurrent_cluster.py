"""Recurrent layers by clusters of blocks, on the simulator and on a card of compute capability 9.0.

What they share with the other kernels of recurrent layers is tested by test_cuda_recurrent_kernels.py and
test_cuda_recurrent_halves.py.
"""

import contextlib
import re
from functools import partial

import numpy as np
import pytest

import minigrad as mg
from minigrad import get_op, nn, use_kernel
from minigrad.dispatch import kernel_table
from minigrad.kernels import sim
from minigrad.kernels.cuda import recurrent_cluster
from minigrad.kernels.errors import KernelLaunchError
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import CudaSource

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)
GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
layers = pytest.mark.parametrize("layer", GATES)


@pytest.fixture
def card(backend):
    """A card of compute capability 9.0, or the simulator in the place of one."""
    if not recurrent_cluster.is_supported(backend.put(np.zeros(1))):
        pytest.skip("clusters need a card of compute capability 9.0")
    return backend


def problem(layer, T, N, H, dtype=np.float32):
    """(weight_hh, bias, what the inputs contribute, two first states, a gradient of the states)."""
    rng, gates = np.random.default_rng(0), GATES[layer]
    shapes = (gates * H, H), (gates * H,), (T, N, gates * H), (N, H), (N, H), (T, N, H)
    weight, *others = (rng.standard_normal(shape) for shape in shapes)
    return [a.astype(dtype) for a in (weight * H**-0.5, *others)]


def calls(layer, T, N, H, dtype=np.float32, reverse=False):
    """What a layer launches: (an op, its inputs and attributes, the shapes of its outputs, what launches it).

    The gradient comes second; its states and gates are random numbers.
    """
    weight, bias, z, h0, c0, grad = problem(layer, T, N, H, dtype)
    state, first, walk = (T, N, H), (N, H), {"reverse": reverse}
    rng = np.random.default_rng(1)
    drawn = partial(rng.uniform, 0.1, 0.9)
    if layer == "lstm":

        def launch(outs, z, h0, c0, _identity, weight, bias, **options):
            outs[2][...] = z
            recurrent_cluster.lstm(outs, h0, c0, weight, bias, **options)

        identity = np.eye(4 * H, dtype=dtype)
        yield "lstm", (z, h0, c0, identity, weight, bias), walk, [state, state, z.shape], launch
        inputs = weight, c0, grad, drawn(z.shape).astype(dtype), grad, c0 * np.ones(state, dtype)
        yield "lstm_grad", inputs, walk, [z.shape, first, first], recurrent_cluster.lstm_grad
    elif layer == "gru":
        yield "gru", (z, h0, weight, bias), walk, [state, (T, 4, N, H)], recurrent_cluster.gru
        inputs = weight, h0, grad, drawn((T, 4, N, H)).astype(dtype), grad
        yield "gru_grad", inputs, walk, [z.shape, z.shape, first], recurrent_cluster.gru_grad
    else:
        attributes = {"nonlinearity": layer} | walk
        yield "rnn", (z, h0, weight), attributes, [state], recurrent_cluster.rnn
        y = (drawn(state) - 0.5).astype(dtype)
        yield "rnn_grad", (grad, y, weight), attributes, [state], recurrent_cluster.rnn_grad


def launched(card, inputs, attributes, shapes, launch, cluster=None):
    """The outputs of a launch, as NumPy's arrays; what it does not write stays NaN."""
    dtype = inputs[0].dtype
    outs = tuple(card.put(np.full(shape, np.nan, dtype)) for shape in shapes)
    launch(outs[0] if len(outs) == 1 else outs, *map(card.put, inputs), **attributes, cluster=cluster)
    return [card.get(out) for out in outs]


def check(card, layer, *size, dtype=np.float32, reverse=False, cluster=None):
    """A layer and its gradient against the definition in float64."""
    for op, inputs, attributes, shapes, launch in calls(layer, *size, dtype, reverse):
        found = launched(card, inputs, attributes, shapes, launch, cluster)
        expected = get_op(op).reference(np, *(a.astype(np.float64) for a in inputs), **attributes)
        expected = expected if isinstance(expected, tuple) else (expected,)
        tolerance = size[0] * (GATES[layer] * size[2] + 10) * np.finfo(dtype).eps
        for out, exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(out, exact, rtol=tolerance, atol=tolerance)


# Weights that registers have no room for: terms beyond theirs, columns, or both; and with H odd.
LARGE = [
    ("lstm", 264, np.float32),
    ("lstm", 131, np.float64),
    ("gru", 200, np.float64),
    ("tanh", 530, np.float32),
    ("relu", 300, np.float64),
]


@pytest.mark.parametrize(("layer", "H", "dtype"), LARGE)
def test_weights_in_shared_memory(card, layer, H, dtype):
    with sim.checks(layer == "gru" and H == 200):
        check(card, layer, 3, 5, H, dtype=dtype)


@layers
@pytest.mark.parametrize("size", [(2, 3, 70), (1, 1, 3)], ids=str)
def test_clusters_of_16(card, layer, size):
    with sim.checks():
        check(card, layer, *size, reverse=size[0] == 2, cluster=16)


@layers
@pytest.mark.parametrize("multiprocessors", [8, 24, 400])
def test_a_batch_is_dealt_to_clusters(card, layer, multiprocessors, monkeypatch):
    """One cluster after the other, with as many rows as they can have, and one for each row."""
    monkeypatch.setattr(recurrent_cluster, "multiprocessors", lambda array: multiprocessors)
    with sim.checks():
        check(card, layer, 2, 14, 100)


@needs_simulator
@layers
def test_every_thread_order_gives_the_same_bits(layer):
    with sim.checks(False):
        for _, inputs, attributes, shapes, launch in calls(layer, 4, 7, 37):
            with sim.stress(6):
                outs = tuple(np.empty(shape, np.float32) for shape in shapes)
                launch(outs[0] if len(outs) == 1 else outs, *inputs, **attributes)


# ---- whole layers ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_clusters():
    """Has layers on the simulator run by clusters."""
    with contextlib.ExitStack() as selected:
        for op in ("lstm", "lstm_grad", "gru", "gru_grad", "rnn", "rnn_grad"):
            selected.enter_context(use_kernel(op, "fused_cluster", "sim"))
        yield


def results(made, x, dtype):
    """The outputs of a layer, and all gradients."""
    layer, x = made.to("sim", dtype), mg.tensor(x, device="sim", dtype=dtype, requires_grad=True)
    y, states = layer(x)
    states = states if isinstance(states, tuple) else (states,)
    grads = mg.autograd.grad((y * y).sum() + sum(s.sum() for s in states), [x, *layer.parameters()])
    return [t.detach().numpy() for t in (y, *states, *grads)]


@needs_simulator
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [mg.float32, mg.float64, mg.float16], ids=str)
def test_layers_both_ways_one_on_the_other(name, dtype, monkeypatch):
    launches, launch = [], CudaKernel.launch

    def recorded(self, *args):
        launches.append(self.name)
        return launch(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", recorded)
    layer = getattr(nn, name)(5, 9, num_layers=2, bidirectional=True, batch_first=True)
    x = np.random.default_rng(2).standard_normal((3, 4, 5))
    expected = results(layer, x, dtype)
    assert not any("cluster" in name for name in launches)
    with by_clusters():
        found = results(layer, x, dtype)
    assert launches.count(f"{name.lower()}_cluster") == launches.count(f"{name.lower()}_grad_cluster") == 4
    tolerance = 60 * mg.finfo(dtype).eps
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


# ---- broken kernels ----------------------------------------------------------------------------------------

RACE = r"race on shared\["
OWN_RACE = r"race on shared\[.*of the same block .*with no barrier in between"
START = "sync_cluster();  // all blocks have started"

# (what stands in the kernel, what is put in its place, how often, what is said; None: the result is wrong).
# With 90 units a block has 12, and an operand of 128 numbers 32 that are of none.
MUTANTS = [
    (START, "//", 2, "may not have started: call sync_cluster|which no thread|race on shared"),
    ("__syncthreads();  // the products are there", "//", 1, OWN_RACE),
    ("__syncthreads();  // dz is there", "//", 1, OWN_RACE),
    ("__syncthreads();  // dz was read", "//", 1, OWN_RACE),
    ("(step + 1) % 2 * operand_size", "step % 2 * operand_size", 1, RACE),
    ("% 2 * operand_size", "% 1 * operand_size", 2, RACE),
    ("number % 2 * BLOCKS * part_size", "0", 1, RACE),
    ("        arrivals.wait(step);\n", "", 1, f"{RACE}|which no thread"),
    ("        arrivals.wait(number);\n", "", 1, f"{RACE}|which no thread"),
    ("    arrivals.start();\n", "", 2, "nothing has made a barrier"),
    ("is_last = step + 1 == sizes.steps;", "is_last = false;", 1, "reads|writes|returns"),
    ("block++)\n                    store", "block += 2) store", 1, "deadlock"),
    ("column / units, come", "(column / units + 1) % 8, come", 1, None),
    ("operands[operand_size + i] = 0;", "", 1, "which no thread of the block has written"),
    ("place_of(step + 1, sizes)", "place_of(step, sizes)", 1, None),
    ("            dh = 0;\n", "", 1, None),
]


@needs_simulator
@pytest.mark.parametrize(("old", "new", "count", "says"), MUTANTS)
def test_a_change_is_found(old, new, count, says, monkeypatch):
    text = recurrent_cluster._source.text
    assert text.count(old) == count
    source = CudaSource(text.replace(old, new), "sm_90a")
    for table in (recurrent_cluster._lstm, recurrent_cluster._lstm_grad):
        for shape, kernel in table.items():
            monkeypatch.setitem(table, shape, CudaKernel(source, kernel.expression))
    try:
        with sim.checks():
            check(sim_arrays, "lstm", 5, 2, 90)
    except KernelLaunchError as error:
        assert says and re.search(says, str(error)), str(error)
    except AssertionError as error:
        assert says is None and "Not equal to tolerance" in str(error)
    else:
        raise AssertionError("nothing was found")


class sim_arrays:
    put = get = staticmethod(lambda array: array)


# ---- the launch --------------------------------------------------------------------------------------------


def weights(layer, H, dtype="f4"):
    return np.empty((GATES[layer] * H, H), dtype)


def test_what_fits_a_cluster(monkeypatch):
    with sim.architecture("sm_80"):
        assert not recurrent_cluster.takes(weights("lstm", 256))
    monkeypatch.setattr(recurrent_cluster, "is_supported", lambda array: True)
    for layer, H, dtype, blocks in (
        ("lstm", 256, "f4", 8),
        ("lstm", 512, "f4", 16),
        ("lstm", 512, "f2", 8),
        ("lstm", 640, "f2", 16),
        ("gru", 640, "f4", 16),
        ("tanh", 1024, "f4", 16),
        ("tanh", 1024, "f2", 8),
        ("lstm", 640, "f4", 0),
        ("lstm", 1024, "f2", 0),
        ("lstm", 0, "f4", 0),
    ):
        weight = weights(layer, H, dtype)
        assert recurrent_cluster.takes(weight) == bool(blocks)
        assert recurrent_cluster._smallest_cluster(True, GATES[layer], H, weight.dtype) == blocks


@pytest.mark.parametrize("N", [1, 20, 32, 100, 1000])
@pytest.mark.parametrize(("H", "dtype"), [(256, "f4"), (512, "f4"), (512, "f2"), (200, "f8")])
def test_all_clusters_run_at_once_as_far_as_they_have_room(N, H, dtype, monkeypatch):
    seen = []

    def launch(kernel, grid, block, args, shared_bytes):
        kernel._binder.bind(args)
        seen.append((kernel.expression, grid, args[-1], shared_bytes))

    monkeypatch.setattr(CudaKernel, "launch", launch)
    monkeypatch.setattr(recurrent_cluster, "is_supported", lambda array: True)
    monkeypatch.setattr(recurrent_cluster, "multiprocessors", lambda array: 132)
    _, inputs, attributes, shapes, run = next(calls("lstm", 2, N, H, dtype))
    launched(sim_arrays, inputs, attributes, shapes, run)
    ((name, grid, sizes, shared_bytes),) = seen
    blocks, rows = map(int, re.fullmatch(r"lstm_cluster<T, (\d+), (\d)>", name).groups())
    clusters, of_cluster = grid // blocks, sizes["cluster_rows"]
    assert grid % blocks == of_cluster % rows == 0 and clusters == -(-N // of_cluster)
    assert of_cluster * sizes["units"] <= recurrent_cluster.THREADS and sizes["units"] * blocks >= H
    assert shared_bytes <= recurrent_cluster.MOST_SHARED_BYTES
    at_once = 132 // blocks
    assert clusters <= at_once or of_cluster > recurrent_cluster.THREADS // sizes["units"] - rows


def test_a_card_that_has_no_clusters():
    inputs = next(calls("lstm", 1, 1, 4))[1]
    no_clusters = pytest.raises(KernelLaunchError, match="needs a card of compute capability 9")
    with sim.architecture("sm_80"), no_clusters:
        recurrent_cluster.lstm((np.zeros((1, 1, 4)),) * 3, *inputs[1:3], *inputs[4:], False)


@needs_simulator
def test_a_layer_that_no_cluster_has_room_for():
    _, inputs, attributes, shapes, launch = next(calls("tanh", 1, 1, 2000))
    with pytest.raises(KernelLaunchError, match="no cluster has room for"):
        launched(sim_arrays, inputs, attributes, shapes, launch)


def test_clusters_are_chosen_by_use_kernel_alone(monkeypatch):
    """And where they cannot run, not even then."""

    def chosen(op, H):
        shapes = {
            "lstm": [(9, 2, 5), (2, H), (2, H), (4 * H, 5), (4 * H, H), None, None],
            "lstm_grad": [(4 * H, H), (2, H), (9, 2, H), (9, 2, 4 * H), (9, 2, H), None, None],
            "gru": [(9, 2, 3 * H), (2, H), (3 * H, H), None],
            "gru_grad": [(3 * H, H), (2, H), (9, 2, H), (9, 4, 2, H), (9, 2, H), None],
            "rnn": [(9, 2, H), (2, H), (H, H)],
            "rnn_grad": [(9, 2, H), (9, 2, H), (H, H)],
        }
        arrays = [None if shape is None else np.empty(shape, "f4") for shape in shapes[op]]
        attributes = {"reverse": False} | ({"nonlinearity": "tanh"} if "rnn" in op else {})
        kernel = kernel_table(op).choose("cuda", np.dtype("f4"), arrays, attributes)
        return kernel and kernel.name

    for op in ("lstm", "lstm_grad", "gru", "gru_grad", "rnn", "rnn_grad"):
        for supported in (True, False):
            monkeypatch.setattr(recurrent_cluster, "is_supported", lambda _, answer=supported: answer)
            assert chosen(op, 512) == "fused_step" and chosen(op, 64) == "fused_sequence"
            with use_kernel(op, "fused_cluster", "cuda"):
                assert chosen(op, 256) == ("fused_cluster" if supported else None)
                assert chosen(op, 1100) is None
