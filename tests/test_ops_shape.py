"""Ops that rearrange: values against NumPy, views that share memory, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg
from minigrad.ops.shape import reshaped

X = np.arange(24.0).reshape(2, 3, 4)

CALLS = {
    "reshape": (lambda x: x.reshape(4, 6), lambda x: x.reshape(4, 6)),
    "reshape_tuple": (lambda x: x.reshape((3, -1)), lambda x: x.reshape(3, 8)),
    "view": (lambda x: x.view(24), lambda x: x.reshape(24)),
    "permute": (lambda x: x.permute(2, 0, 1), lambda x: x.transpose(2, 0, 1)),
    "permute_negative": (lambda x: mg.permute(x, (-1, 0, 1)), lambda x: x.transpose(2, 0, 1)),
    "transpose": (lambda x: x.transpose(0, -1), lambda x: x.swapaxes(0, 2)),
    "mT": (lambda x: x.mT, lambda x: x.swapaxes(1, 2)),
    "flatten": (mg.flatten, lambda x: x.reshape(-1)),
    "flatten_some": (lambda x: x.flatten(1), lambda x: x.reshape(2, 12)),
    "unsqueeze": (lambda x: x.unsqueeze(1).unsqueeze(-1), lambda x: x[:, None, :, :, None]),
    "squeeze": (lambda x: x.unsqueeze(0).unsqueeze(2).squeeze(), lambda x: x),
    "squeeze_one": (lambda x: x.unsqueeze(0).unsqueeze(0).squeeze(0), lambda x: x[None]),
    "squeeze_nothing": (lambda x: x.squeeze(1), lambda x: x),
    "flip": (lambda x: x.flip(0, 2), lambda x: x[::-1, :, ::-1]),
    "expand": (lambda x: x.unsqueeze(0).expand(5, -1, 3, 4), lambda x: np.broadcast_to(x, (5, 2, 3, 4))),
    "broadcast_to": (lambda x: mg.broadcast_to(x, (2, 2, 3, 4)), lambda x: np.broadcast_to(x, (2, 2, 3, 4))),
    "contiguous": (lambda x: x.mT.contiguous(), lambda x: x.swapaxes(1, 2)),
    "reshape_of_a_view": (lambda x: x.mT.reshape(6, 4), lambda x: x.swapaxes(1, 2).reshape(6, 4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_value(name, device):
    function, expected = CALLS[name]
    y = function(mg.tensor(X, device=device))
    assert y.device is device
    np.testing.assert_array_equal(y.device.to_numpy(y._array), expected(X))


@pytest.mark.parametrize("name", CALLS)
def test_gradient(name, check_gradients):
    check_gradients(CALLS[name][0], X / 10)


@pytest.mark.parametrize("name", ["reshape", "view", "permute", "transpose", "flatten", "unsqueeze"])
def test_views_share_memory(name):
    x = mg.tensor(X)
    view = CALLS[name][0](x)
    assert np.shares_memory(view.numpy(), x.numpy())
    with mg.no_grad():
        view.fill_(7.0)
    assert (x == 7.0).all()


def test_flip_is_a_copy():
    x = mg.tensor(X)
    x.flip(0).fill_(7.0)
    np.testing.assert_array_equal(x.numpy(), X)


def test_contiguous():
    x = mg.tensor(X)
    assert x.contiguous() is x and not x.mT.is_contiguous() and x.mT.contiguous().is_contiguous()


def test_view_refuses_to_copy():
    with pytest.raises(ValueError, match=r"view.*\(6, 4\).*reshape\(\)"):
        mg.tensor(X).mT.view(6, 4)


def test_a_broadcast_view_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        mg.ones(1).expand(3).add_(1.0)


def test_T_is_for_matrices():
    assert mg.ones(2, 3).T.shape == (3, 2) and mg.ones(2, 3).t().shape == (3, 2)
    with pytest.raises(ValueError, match=r"T.*\(2, 3, 4\).*mT"):
        _ = mg.tensor(X).T


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x.reshape(5, 5), ValueError, r"24 elements.*\(2, 3, 4\).*\(5, 5\)"),
        (lambda x: x.reshape(-1, -1), ValueError, r"\(-1, -1\)"),
        (lambda x: x.reshape(-2, 12), ValueError, r"\(-2, 12\)"),
        (lambda x: x.reshape(-1, 7), ValueError, "7"),
        (lambda x: x[:0].reshape(-1, 0), ValueError, "0 elements"),
        (lambda x: x.permute(0, 1), ValueError, r"\(0, 1\).*3 axes"),
        (lambda x: x.permute(0, 1, 1), ValueError, r"\(0, 1, 1\)"),
        (lambda x: x.transpose(0, 3), IndexError, "dim 3.*3 dimensions"),
        (lambda x: x.squeeze(3), IndexError, "dim 3"),
        (lambda x: x.unsqueeze(-5), IndexError, "dim -5"),
        (lambda x: x.flatten(2, 1), ValueError, "start_dim 2"),
        (lambda x: x.flip(3), IndexError, "dim 3"),
        (lambda x: x.expand(2, 3, 5), ValueError, r"\(2, 3, 4\).*\(2, 3, 5\)"),
        (lambda x: mg.broadcast_to(x, (3, 4)), ValueError, r"\(2, 3, 4\).*\(3, 4\)"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call(mg.tensor(X))


@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), st.data())
def test_any_permutation_and_back(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    x = mg.tensor(np.arange(np.prod(shape), dtype=np.float64).reshape(shape), requires_grad=True)
    y = mg.permute(x, order)
    np.testing.assert_array_equal(y.detach().numpy(), x.detach().numpy().transpose(order))
    weights = mg.tensor(np.arange(y.numel(), dtype=np.float64).reshape(y.shape))
    (y * weights).sum().backward()
    back = np.argsort(order) if order else ()
    np.testing.assert_array_equal(x.grad.numpy(), weights.numpy().transpose(back))


@given(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.data())
def test_reshape_of_any_view(shape, data):
    """Slices with any strides, reshaped to all the ways that the size splits."""
    base = np.arange(int(np.prod([2 * n + 1 for n in shape])), dtype=np.float64).reshape(
        [2 * n + 1 for n in shape]
    )
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in shape]
    index = tuple(slice(None, None, s) for s in steps)
    view = mg.tensor(base)[index] if shape else mg.tensor(base)
    wanted = base[index] if shape else base
    for target in ((wanted.size,), (1, wanted.size), (wanted.size, 1), wanted.shape[::-1]):
        np.testing.assert_array_equal(view.reshape(target).numpy(), wanted.reshape(target))


@pytest.mark.parametrize("sizes", [(2, 3), (1, 1), (4, 1, 2), (0, 2)])
def test_repeat(sizes, rng, check_gradients):
    x = rng.standard_normal((2, 3))
    np.testing.assert_array_equal(mg.tensor(x).repeat(*sizes).numpy(), np.tile(x, sizes))
    check_gradients(lambda x: x.repeat(sizes), x)


def test_repeat_needs_a_count_for_each_axis():
    with pytest.raises(ValueError, match=r"repeat: \(2,\) is no count for each axis of shape \(2, 3\)"):
        mg.ones(2, 3).repeat(2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, bool])
def test_reshape_of_large_views(dtype):
    """Large copies are the kernel's; where memory can be seen in the other shape, none is made."""
    array = np.random.default_rng(0).integers(0, 2, (40, 48, 3, 20)).astype(dtype)
    for view, shape, shares in (
        (array.transpose(1, 0, 2, 3), (48 * 40, 60), False),
        (array.transpose(1, 0, 2, 3), (48, 40, 60), True),
        (array[:, ::2], (40, 24 * 3, 20), False),
        (array[:, :, :, 3:], (40 * 48 * 3, 17), True),
        (array[::-1], (array.size,), False),
    ):
        for found in (reshaped(view, shape), mg.from_numpy(view).reshape(*shape).numpy()):
            np.testing.assert_array_equal(found, view.reshape(shape))
            assert np.may_share_memory(found, array) is shares
