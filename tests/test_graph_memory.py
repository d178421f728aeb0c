"""Memory: gradients of their own, graphs of any depth, freed at once; copies of tensors."""

import copy
import gc
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest

import minigrad as mg


def leaf(*values, dtype=np.float64):
    return mg.tensor(np.array(values, dtype), requires_grad=True)


# ---- gradients are nobody else's memory -----------------------------------------------------------------


def _shares(*tensors):
    arrays = [t.detach().numpy() for t in tensors]
    return any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: (x + y).sum(),
        lambda x, y: (x + x + y).sum(),
        lambda x, y: (x.reshape(2, 1).reshape(2) + y[::-1]).sum(),
        lambda x, y: (x * y).sum(),
        lambda x, y: mg.concat([x, y]).sum(),
        lambda x, y: mg.where(x > y, x, y).sum(),
        lambda x, y: (x.clone() + y.detach() + y).mean(),
    ],
)
def test_leaf_gradients_do_not_alias(function, create_graph):
    x, y = leaf(1.0, 2.0), leaf(4.0, 3.0)
    hooked = []
    x.register_hook(hooked.append)
    loss = function(x, y)
    loss.backward(retain_graph=True, create_graph=create_graph)
    assert not _shares(x, y, x.grad, y.grad)
    others = (x, y, y.grad, hooked[0])
    before = [t.detach().numpy().copy() for t in others]
    with mg.no_grad():
        x.grad.fill_(99.0)
    for old, t in zip(before, others, strict=True):
        np.testing.assert_array_equal(old, t.detach().numpy())


def test_a_rule_that_returns_a_saved_tensor_does_not_lend_its_memory():
    @mg.op(name="test_half_square")
    def half_square(xp, x):
        return x * x * 0.5

    half_square.grad(x=lambda g, _y, x: x)
    x = leaf(1.0, 2.0)
    half_square(x).sum().backward(retain_graph=True)
    assert not _shares(x, x.grad)


def test_retained_gradients_do_not_alias():
    x = leaf(1.0, 2.0)
    y = x + 1.0
    z = y + 1.0
    y.retain_grad()
    z.retain_grad()
    (z * 2.0).sum().backward()
    assert not _shares(x.grad, y.grad, z.grad)


# ---- depth, freeing, memory -----------------------------------------------------------------------------


def test_a_chain_of_a_hundred_thousand_ops():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert y.item() == 100_001.0 and x.grad.item() == 1.0
    y = x
    for _ in range(100_000):
        y = y * 1.0
    del y  # deallocation of a graph that was never walked must not recurse either


def _walk(x):
    (x.exp() * mg.tanh(x) @ x.T).sum().backward()


def _no_walk(x):
    (x.exp() * mg.tanh(x) @ x.T).sum()


def _double_walk(x):
    (g,) = mg.autograd.grad((x * x * x).sum(), x, create_graph=True)
    (g * g).sum().backward()


def _in_place(x):
    y = x * 2.0
    y *= y
    y += 1.0
    y[0] = 3.0
    y.sum().backward()


@pytest.mark.parametrize("use", [_walk, _no_walk, _double_walk, _in_place])
def test_graphs_are_freed_without_the_cycle_collector(use):
    gc.collect()
    gc.disable()
    try:
        before = _count_nodes()
        x = mg.randn(20, 20, dtype=mg.float64, requires_grad=True)
        for _ in range(5):
            use(x)
        assert _count_nodes() == before
    finally:
        gc.enable()


def _count_nodes():
    return sum(type(o) is mg.autograd.Node for o in gc.get_objects())


def test_memory_of_a_training_loop_is_flat():
    w = mg.randn(256, 256, requires_grad=True)
    x = mg.randn(8, 256)

    def step():
        loss = (mg.tanh(x @ w) ** 2).mean()
        w.grad = None
        loss.backward()
        with mg.no_grad():
            w.sub_(w.grad * 0.1)

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            step()
        first = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            step()
        grown = tracemalloc.get_traced_memory()[0] - first
        assert grown < 2**16, "one gradient is 2^18 bytes; Python's own lists of free objects take some"
    finally:
        tracemalloc.stop()
        gc.enable()


def test_backward_frees_what_was_saved():
    x = leaf(*range(1000))
    y = x * 2.0
    saved = weakref.ref(y)
    z = y.exp() * y
    del y
    assert saved() is not None
    z.sum().backward()
    assert saved() is None, "z is alive, but its graph was freed"


# ---- copies ---------------------------------------------------------------------------------------------


def test_deepcopy():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert y.requires_grad and y.tolist() == x.tolist() and y.grad.tolist() == x.grad.tolist()
    assert not _shares(x, y) and not _shares(x.grad, y.grad)
    twice = copy.deepcopy([x, x])
    assert twice[0] is twice[1]
    with pytest.raises(RuntimeError, match=r"leaf.*detach"):
        copy.deepcopy(x * 2.0)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64, mg.int32, mg.bool])
def test_pickle(dtype):
    x = mg.tensor([[1, 0], [0, 1]], dtype)
    x.requires_grad = dtype.kind == "f"
    y = pickle.loads(pickle.dumps(x))
    assert y.dtype == dtype and y.requires_grad == x.requires_grad and y.tolist() == x.tolist()
