"""The engine: the walk back, accumulation, higher orders, modes, hooks, wrong rules, anomaly mode."""

import gc
import threading
import weakref

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels.launch import CudaKernel


def leaf(*values, dtype=np.float64):
    return mg.tensor(np.array(values, dtype), requires_grad=True)


# ---- accumulation ---------------------------------------------------------------------------------------


def test_gradients_of_all_paths_add_up():
    x = leaf(3.0)
    y = x * x
    z = y * x + y + x  # x^3 + x^2 + x
    z.backward()
    assert x.grad.item() == 3 * 9 + 2 * 3 + 1


def test_backward_adds_to_what_is_there():
    x = leaf(1.0, 2.0)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), times * 2 * x.detach().numpy())


def test_a_leaf_may_be_the_root():
    x = leaf(1.0, 2.0)
    start = mg.tensor([3.0, 4.0], mg.float64)
    x.backward(start)
    start.fill_(0.0)
    assert x.grad.tolist() == [3.0, 4.0]


def test_several_roots_are_summed():
    x = leaf(2.0)
    y, z = x * x, x * 3.0
    mg.autograd.backward([y, z], [mg.tensor([10.0], mg.float64), None])
    assert x.grad.item() == 10 * 4 + 3


def test_broadcasting_is_undone(device):
    shapes = (2, 1, 4), (3, 1), ()
    a, b, c = (mg.randn(*s, dtype=mg.float64, device=device, requires_grad=True) for s in shapes)
    (a * b * c).sum().backward()
    for t, others in ((a, b * c), (b, a * c), (c, a * b)):
        full = np.broadcast_to(others.detach().numpy(), (2, 3, 4))
        axes = tuple(k for k, n in enumerate((1,) * (3 - t.ndim) + t.shape) if n == 1)
        expected = full.sum(axes, keepdims=True).reshape(t.shape)
        np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float16], ids=str)
def test_broadcasting_is_undone_by_kernels_where_it_is_not_the_processor(device, dtype, monkeypatch):
    launched, launch = [], CudaKernel.launch

    def noted(self, *args):
        launched.append(self.name)
        launch(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", noted)
    x = mg.ones(5, 3, dtype=dtype, device=device)
    bias = mg.ones(3, dtype=dtype, device=device, requires_grad=True)
    (x + bias).backward(x)
    assert bias.grad.tolist() == [5.0] * 3 and bias.grad.dtype == dtype
    assert ("reduce_columns" in launched) == (device.type != "cpu")


def test_an_output_that_is_not_used_has_gradient_zero():
    @mg.op(name="test_two_outputs")
    def both(xp, x):
        return x * 2.0, x * 3.0

    both.grad(x=lambda g, _y, _x: g[0] * 2.0 + g[1] * 3.0)
    x = leaf(1.0)
    _, tripled = both(x)
    (tripled * 5.0).backward()
    assert x.grad.item() == 15.0


def test_gradient_has_the_dtype_of_its_tensor():
    x = mg.ones(3, requires_grad=True)
    (x.double() * 2.0).sum().backward()
    assert x.grad.dtype == mg.float32 and x.grad.tolist() == [2.0] * 3


def test_the_start_is_brought_to_the_tensors_dtype():
    x = leaf(1.0, 2.0)
    x.backward(mg.ones(2))
    assert x.grad.dtype == mg.float64
    (x * 2.0).backward(mg.ones(2))
    assert x.grad.dtype == mg.float64 and x.grad.tolist() == [3.0, 3.0]


def test_backward_needs_a_start_for_several_elements():
    with pytest.raises(RuntimeError, match=r"one element.*shape \(2,\)"):
        (leaf(1.0, 2.0) * 2.0).backward()


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (mg.ones(3), ValueError, r"shape \(3,\).*\(2,\)"),
        (mg.ones(2, device="sim"), ValueError, "sim.*cpu"),
    ],
)
def test_the_start_must_fit(start, error, words):
    with pytest.raises(error, match=words):
        (mg.ones(2, requires_grad=True) * 2.0).backward(start)


def test_backward_of_what_has_no_graph():
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        mg.ones(1).backward()


# ---- a second walk --------------------------------------------------------------------------------------


def test_a_freed_graph_names_the_op_and_the_remedy():
    y = leaf(2.0).exp()
    y.backward()
    with pytest.raises(RuntimeError, match=r"freed.*'exp'.*retain_graph=True"):
        y.backward()


def test_retain_graph():
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8.0


def test_create_graph_gives_higher_orders():
    x = leaf(1.5)
    derivative = x**5
    for order in range(1, 5):
        (derivative,) = mg.autograd.grad(derivative, x, create_graph=True)
        expected = np.prod([5 - k for k in range(order)]) * 1.5 ** (5 - order)
        assert derivative.item() == pytest.approx(expected, rel=1e-12)


def test_backward_with_create_graph_leaves_a_grad_that_has_a_graph():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    (second,) = mg.autograd.grad(x.grad, x)
    assert second.item() == 12.0


def test_hessian_vector_product_by_two_walks():
    matrix = np.random.default_rng(1).standard_normal((4, 4))
    a, x, v = mg.tensor(matrix), leaf(1.0, 2.0, 3.0, 4.0), mg.tensor([1.0, -1.0, 0.5, 2.0], mg.float64)
    (g,) = mg.autograd.grad((x @ a) @ x, x, create_graph=True)
    (hv,) = mg.autograd.grad((g * v).sum(), x)
    np.testing.assert_allclose(hv.numpy(), (matrix + matrix.T) @ v.numpy(), rtol=1e-12)


def test_forward_derivative_by_differentiating_for_the_start():
    x, start = leaf(1.0, 2.0), leaf(1.0, 1.0)
    (g,) = mg.autograd.grad(x * x, x, start, create_graph=True)
    (jv,) = mg.autograd.grad(g, start, mg.tensor([1.0, 10.0], mg.float64))
    assert jv.tolist() == [2.0, 40.0]


# ---- autograd.grad --------------------------------------------------------------------------------------


def test_grad_changes_no_grad_and_prunes_what_is_not_asked_for():
    calls = []

    @mg.op(name="test_watched")
    def watched(xp, x):
        return x * 1.0

    watched.grad(x=lambda g, _y, _x: (calls.append(1), g)[1])
    x, y = leaf(2.0), leaf(3.0)
    (gx,) = mg.autograd.grad(x * watched(y), x)
    assert gx.item() == 3.0 and x.grad is None and y.grad is None
    assert not calls, "the rule of a branch that leads to no target ran"


def test_grad_of_a_tensor_in_the_middle():
    x = leaf(2.0)
    y = x * x
    gy, gx = mg.autograd.grad(y * y, [y, x])
    assert (gy.item(), gx.item()) == (8.0, 32.0)


def test_grad_of_the_output_for_itself():
    y = leaf(2.0) * 3.0
    assert mg.autograd.grad(y, y)[0].item() == 1.0


def test_grad_of_an_input_that_takes_no_part():
    x, other = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match=r"input 1 takes no part.*allow_unused"):
        mg.autograd.grad(x * 2.0, [x, other], retain_graph=True)
    gx, none = mg.autograd.grad(x * 2.0, [x, other], allow_unused=True)
    assert gx.item() == 2.0 and none is None


def test_grad_for_what_requires_none():
    with pytest.raises(RuntimeError, match="input 0 does not require"):
        mg.autograd.grad(leaf(1.0) * 2.0, mg.ones(1))


# ---- modes ----------------------------------------------------------------------------------------------


def test_no_grad_and_enable_grad_nest():
    x = leaf(1.0)
    with mg.no_grad():
        assert not (x * 2.0).requires_grad
        with mg.enable_grad():
            assert (x * 2.0).requires_grad
            with mg.no_grad():
                assert not mg.is_grad_enabled()
        assert not mg.is_grad_enabled()
    assert mg.is_grad_enabled()


def test_mode_is_restored_after_an_error():
    with pytest.raises(KeyError), mg.no_grad():
        raise KeyError
    assert mg.is_grad_enabled()


def test_modes_as_decorators():
    @mg.no_grad()
    def without(x):
        return x * 2.0

    @mg.enable_grad()
    def with_grad(x):
        return x * 2.0

    x = leaf(1.0)
    assert not without(x).requires_grad
    with mg.no_grad():
        assert with_grad(x).requires_grad
    assert mg.is_grad_enabled()


def test_no_grad_decorates_with_and_without_parentheses():
    @mg.no_grad
    def plain(x):
        return x, mg.is_grad_enabled()

    assert plain(3) == (3, False)
    assert mg.is_grad_enabled()


def test_set_grad_enabled_acts_at_once_or_inside():
    try:
        mg.set_grad_enabled(False)
        assert not mg.is_grad_enabled()
    finally:
        mg.set_grad_enabled(True)
    with mg.set_grad_enabled(False):
        assert not mg.is_grad_enabled()
    assert mg.is_grad_enabled()

    @mg.set_grad_enabled(False)
    def decorated():
        return mg.is_grad_enabled()

    assert mg.is_grad_enabled()
    assert not decorated()


def test_no_grad_holds_for_one_thread():
    inside, release = threading.Event(), threading.Event()
    seen = {}

    def other():
        with mg.no_grad():
            inside.set()
            release.wait(10)
            seen["other"] = mg.is_grad_enabled()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    seen["main"] = mg.is_grad_enabled()
    release.set()
    thread.join()
    assert seen == {"main": True, "other": False}


def test_a_decorated_function_may_run_in_two_threads_at_once():
    barrier = threading.Barrier(2, timeout=300)
    after = {}

    @mg.no_grad()
    def both_inside():
        barrier.wait()

    def run(name, enabled):
        with mg.enable_grad() if enabled else mg.no_grad():
            for _ in range(20):
                both_inside()
                after.setdefault(name, set()).add(mg.is_grad_enabled())

    threads = [threading.Thread(target=run, args=(str(e), e)) for e in (True, False)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert after == {"True": {True}, "False": {False}}


def test_threads_walk_graphs_of_their_own():
    results = {}

    def work(k):
        x = leaf(float(k))
        for _ in range(20):
            y = x
            for _ in range(30):
                y = y * 1.0
            (y * y).backward()
        results[k] = x.grad.item()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {k: 20 * 2.0 * k for k in range(4)}


def test_detach_shares_memory_outside_the_graph():
    x = leaf(1.0, 2.0)
    d = x.detach()
    assert not d.requires_grad and np.shares_memory(d.numpy(), x.detach().numpy())
    (x * d).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0]


def test_requires_grad_():
    with pytest.raises(TypeError, match="int64"):
        mg.tensor([1]).requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        (leaf(1.0) * 2.0).requires_grad_(False)
    x = leaf(1.0).requires_grad_(False)
    assert not (x * 2.0).requires_grad


# ---- hooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["leaf", "inner"])
def test_a_hook_is_called_once_with_the_whole_gradient(where):
    x = leaf(2.0)
    y = x * 1.0
    seen = []
    (x if where == "leaf" else y).register_hook(lambda g: seen.append(g.item()))
    (y * 3.0 + y * y).backward()
    assert seen == [3.0 + 4.0] and x.grad.item() == 7.0


@pytest.mark.parametrize("where", ["leaf", "inner"])
def test_what_a_hook_returns_replaces_the_gradient(where):
    x = leaf(2.0)
    y = x * 1.0
    target = x if where == "leaf" else y
    target.register_hook(lambda g: g * 10.0)
    target.register_hook(lambda g: g + 1.0)
    (y * 3.0).backward()
    assert x.grad.item() == 31.0


def test_a_removed_hook_is_not_called():
    x = leaf(2.0)
    seen = []
    keep = x.register_hook(lambda g: seen.append("kept"))
    gone = x.register_hook(lambda g: seen.append("gone"))
    gone.remove()
    gone.remove()
    (x * 1.0).backward()
    keep.remove()
    (x * 1.0).backward()
    assert seen == ["kept"]


def test_integers_require_no_gradient():
    x = leaf(1.5, 2.5)
    for y in (x.long(), x.bool(), x.to(mg.uint8), mg.ones(2).long().copy_(x)):
        assert not y.requires_grad and y.is_leaf
    assert (x * 2.0).int().numpy().tolist() == [3, 5]


def test_a_hook_must_keep_the_shape():
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ValueError, match=r"hook.*\(\).*\(2,\)"):
        (x * 2.0).sum().backward()
    y = x * 2.0
    y.register_hook(lambda g: g.tolist())
    with pytest.raises(TypeError, match="a hook returns a tensor or None, got list"):
        y.sum().backward()
    assert x.grad is None


def test_hooks_see_the_graph_of_the_gradient_under_create_graph():
    x = leaf(2.0)
    hook = x.register_hook(lambda g: g * g)
    (x**3).backward(create_graph=True)
    hook.remove()
    assert x.grad.item() == 144.0
    assert mg.autograd.grad(x.grad, x)[0].item() == pytest.approx(36 * 2.0**3)


def test_a_hook_needs_a_gradient():
    with pytest.raises(RuntimeError, match="does not require"):
        mg.ones(1).register_hook(print)


def test_retain_grad():
    x = leaf(1.0, 2.0)
    y = x * 3.0
    y.retain_grad()
    y.retain_grad()
    (y * y).sum().backward(retain_graph=True)
    assert y.grad.tolist() == [6.0, 12.0]
    (y * y).sum().backward()
    assert y.grad.tolist() == [12.0, 24.0], "it accumulates, as a leaf's does"


def test_retain_grad_follows_a_change_in_place():
    x = leaf(1.0)
    y = x * 3.0
    y.retain_grad()
    y *= 2.0
    (y * 5.0).backward()
    assert y.grad.item() == 5.0 and x.grad.item() == 30.0


def test_retain_grad_keeps_nothing_alive():
    y = leaf(1.0) * 2.0
    y.retain_grad()
    reference = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert reference() is None
    finally:
        gc.enable()


# ---- rules that are wrong -------------------------------------------------------------------------------


def _op_with_rule(name, rule):
    @mg.op(name=name)
    def identity(xp, x, y):
        return x + y

    if rule is not None:
        identity.grad(rule)
    return identity


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        (lambda g, z, x, y: (g, g[:1]), RuntimeError, r"'test_bad'.*'y'.*\(1,\).*\(2,\)"),
        (lambda g, z, x, y: (g, mg.ones(3)), RuntimeError, r"'test_bad'.*'y'.*\(3,\)"),
        (lambda g, z, x, y: (g, None), RuntimeError, "'test_bad'.*no gradient.*'y'"),
        (lambda g, z, x, y: g, RuntimeError, "'test_bad'.*1 values for 2 inputs"),
        (lambda g, z, x, y: (g, 1.0), TypeError, "'test_bad'.*'y'.*tensor.*float"),
        (lambda g, z, x, y: (g, g.to("sim")), TypeError, "'test_bad'.*'y'.*cpu.*sim"),
        (None, RuntimeError, "'test_bad'.*no gradient.*'x'.*detach"),
    ],
)
def test_a_wrong_rule_is_an_error_that_names_the_op_and_the_input(rule, error, words):
    identity = _op_with_rule("test_bad", rule)
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with pytest.raises(error, match=words):
        identity(x, y).sum().backward()
    assert x.grad is None and y.grad is None


# ---- anomaly mode ---------------------------------------------------------------------------------------


def test_anomaly_mode_names_the_op_that_made_a_nan_forward():
    x = leaf(-1.0, 4.0)
    with mg.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="'sqrt' made a NaN"):
        mg.sqrt(x * 1.0) * 2.0


def test_anomaly_mode_names_the_op_that_made_a_nan_backward():
    x = leaf(0.0)
    with mg.autograd.detect_anomaly():
        y = mg.sqrt(x * 0.0) * 0.0  # at 0, g is 0 and the slope infinite: 0 * inf
        with pytest.raises(RuntimeError, match=r"gradient of 'sqrt'(.|\n)*test_autograd"):
            y.backward()
    assert x.grad is None


def test_anomaly_mode_lets_a_nan_of_the_input_pass():
    x = leaf(np.nan)
    with mg.autograd.detect_anomaly():
        assert np.isnan((x * 2.0).item())
    mg.sqrt(leaf(-1.0))  # outside of the context nothing is checked


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_gradients_are_added_and_shared_with_nobody(dtype, threads):
    """Of a size at which kernels add them, in place where nobody else refers to the memory."""
    shape = (65, 701)
    rng = np.random.default_rng()
    values = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    with mg.num_threads(threads):
        x, y = (mg.tensor(v, requires_grad=True) for v in values[:2])
        g = mg.tensor(values[2])
        for passes in (1, 2):
            (x + y + x * 2.0 + x).backward(g)
            np.testing.assert_allclose(x.grad.numpy(), passes * 4.0 * values[2], rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_array_equal(y.grad.numpy(), passes * values[2])
            np.testing.assert_array_equal(g.numpy(), values[2])
        x.grad = y.grad = None
        (x + y).backward(g)
        x.grad.zero_()
        np.testing.assert_array_equal(y.grad.numpy(), values[2])
        np.testing.assert_array_equal(g.numpy(), values[2])


def test_a_large_gradient_that_is_a_view_or_shared_is_left_alone():
    x = mg.tensor(np.random.default_rng().standard_normal((300, 200)), requires_grad=True)
    seen = []
    y = x * 1.0
    y.register_hook(seen.append)
    z = y * 3.0 + y.T.reshape(200, 300).T
    z.sum().backward()
    np.testing.assert_array_equal(seen[0].numpy(), np.full((300, 200), 4.0))
    held = seen[0].numpy().copy()
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full((300, 200), 6.0))
    np.testing.assert_array_equal(seen[0].numpy(), held)


def test_a_reshaped_gradient_is_copied_only_if_somebody_else_refers_to_it():
    x = mg.tensor(np.random.default_rng().standard_normal((300, 200)), requires_grad=True)
    (x.reshape(60_000) * 2.0).sum().backward()
    assert x.grad.numpy().base is not None
    np.testing.assert_array_equal(x.grad.numpy(), np.full((300, 200), 2.0))
    x.grad, seen = None, []
    y = x.reshape(60_000)
    y.register_hook(seen.append)
    (y * 2.0).sum().backward()
    assert not np.shares_memory(x.grad.numpy(), seen[0].numpy())
    g = mg.tensor(np.random.default_rng().standard_normal(60_000))
    x.grad = None
    x.reshape(60_000).backward(g)
    assert not np.shares_memory(x.grad.numpy(), g.numpy())
    np.testing.assert_array_equal(x.grad.numpy().ravel(), g.numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_parts_are_added_in_place(dtype):
    """The gradients of parts of one tensor meet in one array, whatever the parts, and are nobody else's."""
    rng = np.random.default_rng()
    value = rng.standard_normal((6, 5, 4)).astype(dtype)
    parts = [0, (slice(None), 1), (..., 2), (slice(4, None, -2), slice(1, 3)), (5, 4, 3), [1, 1, 2], -1]
    weights = [rng.standard_normal(np.shape(value[part])).astype(dtype) for part in parts]
    expected = np.zeros_like(value)
    for part, weight in zip(parts, weights, strict=True):
        np.add.at(expected, part, weight)

    leaf = mg.tensor(value, requires_grad=True)
    inner = leaf * 1.0
    for x in (leaf, inner):  # parts of a leaf, and of what an op made
        leaf.grad = None
        terms = [x[part] * mg.tensor(weight) for part, weight in zip(parts, weights, strict=True)]
        sum((term.sum() for term in terms), mg.zeros((), dtype=dtype)).backward()
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=8 * np.finfo(dtype).eps, atol=1e-6)
    (asked,) = mg.autograd.grad((leaf[0] + leaf[1] + leaf[0]).sum(), leaf)
    np.testing.assert_array_equal(asked.numpy()[:, 0, 0], [2, 1, 0, 0, 0, 0])


def test_a_gradient_that_is_held_does_not_change_when_a_part_is_added():
    x = mg.tensor(np.ones((3, 2)), requires_grad=True)
    g = mg.tensor(np.full((3, 2), 2.0))
    y = x * 1.0
    first, whole = y[0], y + 0.0
    mg.autograd.backward([whole, first.sum()], [g, None])
    assert g.tolist() == [[2.0, 2.0]] * 3
    assert x.grad.tolist() == [[3.0, 3.0], [2.0, 2.0], [2.0, 2.0]]
    retained = (x[0] + x[1]).sum()
    retained.backward(retain_graph=True)
    retained.backward()
    with pytest.raises(RuntimeError, match="freed"):
        retained.backward()


def test_a_gradient_that_nobody_may_write_to_is_copied():
    """Read-only, and a view of an array that is nobody else's: NumPy's broadcast_to to the same shape."""

    @mg.op
    def shown(xp, x):
        return xp.broadcast_to(x, x.shape)

    shown.grad(x=lambda g, _y, _x: shown(g * 2.0))
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    for passes in (1, 2):
        shown(x).sum().backward()
        assert x.grad.tolist() == [2.0 * passes] * 2
