"""Changes in place: right with the graph, or a clear error; never silently wrong."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn


def leaf(*values, dtype=np.float64):
    return mg.tensor(np.array(values, dtype), requires_grad=True)


# ---- what was saved must not change ---------------------------------------------------------------------


def _directly(y):
    y.add_(1.0)


def _through_a_view(y):
    y[:1].add_(1.0)


def _through_a_view_of_a_view(y):
    y.reshape(2, 1)[0].fill_(7.0)


def _through_detach(y):
    y.detach().add_(1.0)


def _by_setitem(y):
    y[0] = 5.0


def _by_data(y):
    y.data = mg.zeros(2, dtype=mg.float64)


CHANGES = [_directly, _through_a_view, _through_a_view_of_a_view, _through_detach, _by_setitem, _by_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("saved", ["input", "output"])
def test_a_saved_tensor_changed_in_place_is_an_error(change, saved):
    x = leaf(1.0, 2.0)
    y = x.exp()  # saves its output
    z = y * y if saved == "input" else y.sum()
    with mg.no_grad():
        change(y)
    with pytest.raises(RuntimeError, match=r"'(mul|exp)'.*changed in place"):
        z.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_was_not_saved_is_allowed(change):
    x = leaf(1.0, 2.0)
    y = x + 1.0
    z = (y * 3.0).sum()
    with mg.no_grad():
        change(y)
    z.backward()
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.LayerNorm(4)])
def test_an_activation_may_overwrite_what_a_layer_returned(layer):
    x = mg.randn(2, 3, 4, 4, requires_grad=True)
    nn.Sequential(layer, nn.ReLU(inplace=True))(x).sum().backward()
    found, x.grad = x.grad.tolist(), None
    nn.Sequential(layer, nn.ReLU())(x).sum().backward()
    assert found == x.grad.tolist()


def test_an_update_of_the_weights_before_backward_is_an_error():
    w, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    loss = (w * x).sum()
    with mg.no_grad():
        w -= 0.1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_an_index_changed_after_the_op_does_not_matter():
    for index in (np.array([0, 1]), mg.tensor([0, 1]), [0, 1]):
        x = leaf(1.0, 2.0, 3.0)
        y = x[index]
        index[0] = 2
        y.sum().backward()
        assert x.grad.tolist() == [1.0, 1.0, 0.0]


# ---- in place, with the graph ---------------------------------------------------------------------------


def _check_in_place(change, *shapes):
    """``change(y, *others)``, which changes y = x * 2 and returns nothing, has the right gradient."""
    rng = np.random.default_rng(2)
    inputs = [mg.tensor(rng.uniform(0.5, 1.5, s), requires_grad=True) for s in shapes]

    def function(x, *others):
        y = x * 2.0
        change(y, *others)
        return y * y

    assert mg.testing.gradcheck(function, inputs)
    assert mg.testing.gradgradcheck(function, inputs)


def _power(y):
    y.pow_(3)


def _times_itself(y):
    y *= y


def _add_itself(y):
    y += y


def _clamp(y):
    y.clamp_(0.9, 1.1)


def _relu(y):
    y.sub_(1.0).relu_()


def _zero(y):
    y.zero_()


def _chain(y):
    y.mul_(3.0)
    y.add_(y)
    y.div_(3.0)


def _last_view(y):
    """The only tensor left that shows its memory may be changed, be it made as a view or not."""
    z = (y * 2.0).reshape(6)[::-1]
    z += 1.0
    z *= z
    y.copy_(z.reshape(3, 2))


def _set_number(y):
    y[1] = 3.0


@pytest.mark.parametrize(
    "change", [_power, _times_itself, _add_itself, _clamp, _relu, _chain, _set_number, _last_view]
)
def test_in_place_ops_have_the_right_gradient(change):
    _check_in_place(change, (3, 2))


def test_zeroing_cuts_the_gradient():
    x = leaf(1.0, 2.0)
    y = x * 2.0
    y.zero_()
    (y + x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def _set_row(y, v):
    y[1] = v


def _set_broadcast(y, v):
    y[...] = v


def _set_mask(y, v):
    y[np.array([[True, False], [False, False], [True, True]])] = v


def _set_twice(y, v):
    y[[0, 2, 0]] = v


def _iadd(y, v):
    y += v


def _copy(y, v):
    y.copy_(v)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (_set_row, (2,)),
        (_set_row, ()),
        (_set_row, (1, 1, 2)),
        (_set_broadcast, (2,)),
        (_set_mask, (3,)),
        (_set_twice, (3, 2)),
        (_iadd, (2,)),
        (_copy, (3, 2)),
    ],
)
def test_what_is_written_has_the_right_gradient(change, shape):
    _check_in_place(change, (3, 2), shape)


def test_writing_a_tracked_value_into_a_plain_tensor():
    x = leaf(1.0, 2.0)
    out = mg.zeros(3, dtype=mg.float64)
    out[1:] = x * 3.0
    (out * out).sum().backward()
    assert x.grad.tolist() == [18.0, 36.0]


@pytest.mark.parametrize("change", [_directly, _by_setitem, _zero, _relu, _power])
def test_a_leaf_that_requires_a_gradient_is_not_changed_in_place(change):
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match=r"leaf.*no_grad"):
        change(x)
    assert x.tolist() == [1.0, 2.0]


def _write_to_a_view(y):
    y[0] += 1.0


def _write_to_the_base(y):
    view = y[:1]
    y += 1.0
    return view


def _write_to_a_row(y):
    y.reshape(2, 1)[0].mul_(y[1:])


def _write_to_detached(y):
    d = y.detach()
    d += y


@pytest.mark.parametrize(
    "change", [_write_to_a_view, _write_to_the_base, _write_to_a_row, _write_to_detached]
)
def test_writes_with_views_are_right_or_refused(change):
    """Through a view the graph of the base would have to change: a clear error, never a wrong gradient."""
    x = leaf(1.0, 2.0)

    def function(x):
        y = x * 2.0
        kept = change(y)
        return y * y if kept is None else (y * y).sum() + kept.sum()

    try:
        function(x)
    except RuntimeError as error:
        assert "clone()" in str(error)
    else:
        assert mg.testing.gradcheck(function, [x])


def test_in_place_shape_and_dtype_must_fit():
    x = mg.ones(2)
    with pytest.raises(ValueError, match=r"add_.*\(3, 2\).*\(2,\)"):
        x += mg.ones(3, 2)
    with pytest.raises(TypeError, match=r"float32.*int64"):
        mg.tensor([1, 2]).add_(mg.ones(2))
    assert x.tolist() == [1.0, 1.0]


def test_masked_fill():
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3.0
    y.masked_fill_(y > 4.0, -1.0)
    assert y.tolist() == [3.0, -1.0]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 0.0]


def test_a_reshaped_copy_may_be_written_to():
    """Its memory is its own: off-diagonal elements are reshaped views, which have to be copied."""
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = x * 1.0
    y.t().flatten().pow_(2).sum().backward()
    assert x.grad.tolist() == [[2, 4], [6, 8]]
    with pytest.raises(RuntimeError, match="shows the same memory"):
        (x * 1.0).exp().flatten().pow_(2)


def twice(x):
    return (x * 2.0).reshape(2, 2)


@pytest.mark.parametrize("change", ["set", "mul_", "add_", "exp_"])
def test_a_view_changes_and_takes_its_history_along(change):
    """As attention masks its scores: reshaped, set to a large negative number, reshaped back."""

    def function(x, w):
        scores = twice(x)
        rows = scores.view(4)
        if change == "set":
            rows[1:3] = w
            rows[rows > 3.0] = -1.0
        elif change == "exp_":
            rows.exp_()
        else:
            getattr(rows, change)(w.sum())
        return (rows.view(2, 2) ** 3).sum(0)

    x, w = (mg.tensor(v, dtype=mg.float64, requires_grad=True) for v in ([0.1, 0.2, 1.3, 1.7], [0.3, 0.4]))
    assert mg.testing.gradcheck(function, [x, w])


@pytest.mark.parametrize(
    "use",
    [
        lambda scores: (scores * 1.0).sum(),
        lambda scores: scores.view(4),
        lambda scores: scores.backward(mg.ones(2, 2)),
        lambda scores: mg.autograd.grad(scores, [], mg.ones(2, 2)),
        lambda scores: scores.mul_(2.0),
    ],
)
@pytest.mark.parametrize("through_the_view", [True, False])
def test_what_else_shows_that_memory_is_stale(use, through_the_view):
    """Its history lacks the change: a gradient through it would be wrong."""
    scores = twice(mg.ones(4, requires_grad=True))
    view = scores.view(2, 2)
    changed, stale = (view, scores) if through_the_view else (scores, view)
    changed[0] = 5.0
    before = changed.tolist()
    with pytest.raises(RuntimeError, match=r"shape \(2, 2\) was changed in place through another one"):
        use(stale)
    assert changed.tolist() == stale.tolist() == before == [[5.0, 5.0], [2.0, 2.0]]
    assert not stale.detach().sum().requires_grad
    changed.sum().backward()


def test_parts_that_change_in_place():
    """x[key] *= y changes a view of x, which Python writes back: x learns of it."""

    def function(x, w):
        y = x * 1.0
        y[1:3] *= w[1:3]
        y[0] += w[0]
        for k in range(3, 6):
            y[k] += y[k - 1]
        table = (y * 2.0).view(2, 3)
        table[:, 0] /= 4.0
        table[1] **= 2
        return table.sum(0)

    x, w = (mg.randn(6, dtype=mg.float64, requires_grad=True) for _ in range(2))
    assert mg.testing.gradcheck(function, [x, w])


def of_another_alias(y):
    other = y.view(6)
    other[5] = 7.0
    part = other[0:1]
    return part.mul_(2.0), slice(0, 1)


def of_a_changed_part(y):
    part = y[0:3].mul_(2.0)
    return part[0:1].add_(1.0), slice(0, 1)


def elsewhere(y):
    return y[1:3].mul_(2.0), slice(0, 2)


@pytest.mark.parametrize("make", [of_another_alias, of_a_changed_part, elsewhere])
def test_parts_that_know_more_than_the_whole(make):
    y = mg.ones(6, requires_grad=True) * 1.0
    part, key = make(y)
    with pytest.raises(RuntimeError, match="was changed in place through another one"):
        y[key] = part


class ShowsTheSecond(mg.autograd.Function):
    @staticmethod
    def forward(ctx, a, leaf):
        return leaf.view(3)

    @staticmethod
    def backward(ctx, grad):
        return None, grad


class Doubled(mg.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.0


def test_functions_whose_output_shows_a_leaf():
    leaf = mg.ones(3, requires_grad=True)
    out = ShowsTheSecond.apply(leaf * 1.0, leaf)
    with pytest.raises(RuntimeError, match="shows the same memory"):
        out.mul_(3.0)
    assert leaf.tolist() == [1.0, 1.0, 1.0]


def test_functions_that_change_their_input_make_its_views_stale():
    for view_first in (True, False):
        x = mg.ones(3, requires_grad=True)
        whole = x * 1.0
        view = whole.view(3)
        changed, stale = (view, whole) if view_first else (whole, view)
        Doubled.apply(changed)
        with pytest.raises(RuntimeError, match="was changed in place through another one"):
            (stale * stale).sum()
        (changed * changed).sum().backward()
        assert x.grad.tolist() == [8.0, 8.0, 8.0]


def test_copies_of_leaves_may_change():
    x = mg.arange(6.0).reshape(2, 3).requires_grad_()
    for copy in (x[[0, 1]], x.t().reshape(6), x.t().contiguous()):
        view = copy.view(6)
        view[0] = 7.0
        view.sum().backward()
    assert x.grad.tolist() == [[0.0, 3.0, 3.0], [3.0, 3.0, 3.0]]


def test_what_was_computed_of_a_tensor_before_it_was_stale():
    x = mg.ones(4, requires_grad=True)
    scores = twice(x)
    view = scores.view(4)
    linear, square = (view * 3.0).sum(), (view * view).sum()
    view[0] = 7.0
    (linear + view.sum()).backward(retain_graph=True)
    assert x.grad.tolist() == [6.0, 8.0, 8.0, 8.0]
    with pytest.raises(RuntimeError, match="the gradient of 'mul' needs was changed in place"):
        square.backward()


@pytest.mark.parametrize(
    ("shown", "part"),
    [
        (lambda x: x, "a leaf"),
        (lambda x: x.exp(), "what a gradient needs"),
        (lambda x: mg.zeros(4), "no part of the graph"),
    ],
)
def test_changes_of_views_that_are_refused(shown, part):
    x = mg.ones(4, requires_grad=True)
    whole = shown(x)
    view = whole.view(2, 2).view(4)
    with pytest.raises(RuntimeError, match="shows the same memory"):
        view[0] = x.sum()
    assert whole[0].item() != 4.0


def test_what_comes_in_another_dtype_has_its_gradient():
    x, y = mg.ones(2).half().requires_grad_(), mg.tensor([0.5, 2.0], requires_grad=True)
    x.clone().clamp_min_(y).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0] and y.grad.tolist() == [0.0, 1.0]
    assert x.grad.dtype == mg.float16 and y.grad.dtype == mg.float32
