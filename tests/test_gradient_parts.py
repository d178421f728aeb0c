"""The gradients of tensors of which ops look at parts, gathered in one array."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.gradient_parts import PartedGradient
from minigrad.ops.index import _part

SHAPE = (6, 4, 5)

USES = {
    "all rows": [0, 1, 2, 3, 4, 5],
    "some rows": [4, 1],
    "negative and slices": [-1, slice(0, 2), slice(2, 5)],
    "an axis in the middle": [(slice(None), 2), (slice(None), slice(0, 2)), (slice(None), np.int64(3))],
    "with an ellipsis": [(..., 0), (..., slice(1, 3)), (0, ...)],
    "overlapping": [slice(0, 4), slice(2, 6), 3],
    "two axes": [(1, 2), 1, (slice(None), 2)],
    "with steps": [slice(None, None, 2), slice(None, None, -1)],
    "new axes": [(None, 2), (2, None), None],
    "nothing": [slice(3, 3), 0, (slice(None), slice(4, None))],
    "rows by number": [[0, 2, 2], 1, [5, 1]],
    "the whole": [slice(None), 2, ...],
    "after the whole": [..., 2, 3],
}


def _loss(x, uses):
    """The sum of squares of all parts, each weighted by its number."""
    return sum((k + 1) * (x[use] ** 2).sum() for k, use in enumerate(uses))


def _expected(x, uses):
    grad = np.zeros_like(x)
    for k, use in enumerate(uses):
        np.add.at(grad, use, 2 * (k + 1) * x[use])
    return grad


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
@pytest.mark.parametrize("is_leaf", [True, False], ids=["leaf", "computed"])
def test_gradients_of_parts(device, uses, is_leaf):
    values = np.random.default_rng(1).standard_normal(SHAPE)
    x = mg.tensor(values, device=device, requires_grad=True)
    _loss(x if is_leaf else x * 1, uses).backward()
    np.testing.assert_allclose(x.grad.numpy(), _expected(values, uses), rtol=1e-12)
    (with_graph,) = mg.autograd.grad(_loss(x if is_leaf else x * 1, uses), x, create_graph=True)
    np.testing.assert_allclose(with_graph.detach().numpy(), x.grad.numpy(), rtol=1e-12)
    (second,) = mg.autograd.grad(with_graph.sum(), x)
    np.testing.assert_allclose(second.numpy(), _expected(np.ones(SHAPE), uses), rtol=1e-12)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
@pytest.mark.parametrize("dim", [0, -1])
def test_gradients_of_chunks_in_16_bits_beside_another_use(device, pieces, dim):
    values = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float16)
    x = mg.tensor(values, device=device, requires_grad=True)
    y = x * 1
    chunks = y.chunk(pieces, dim)
    expected = np.concatenate([np.full(c.shape, k) for k, c in enumerate(chunks)], axis=dim) + np.where(
        np.arange(5) < 3, 10, 0
    )
    (sum(k * c.float().sum() for k, c in enumerate(chunks)) + 10 * y[..., :3].float().sum()).backward()
    assert x.grad.dtype == np.float16
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_a_gradient_in_parts_is_nobody_elses_memory():
    x = mg.ones(4, 3, requires_grad=True)
    g = mg.ones(3)
    seen = []
    x.register_hook(seen.append)
    mg.autograd.backward([x[0], x[1]], [g, g])
    assert seen[0].shape == (4, 3)
    x.grad.fill_(7.0)
    np.testing.assert_array_equal(g.numpy(), 1)
    with pytest.raises(RuntimeError, match="freed"):
        y = (x * 2)[1]
        y.backward(g)
        y.backward(g)


def test_targets_that_are_looked_at_in_parts():
    x = mg.ones(3, 2, requires_grad=True)
    y = x * 2
    gy, gx = mg.autograd.grad((y[0] * 3 + y[2]).sum(), [y, x])
    np.testing.assert_array_equal(gy.numpy(), [[3, 3], [0, 0], [1, 1]])
    np.testing.assert_array_equal(gx.numpy(), 2 * gy.numpy())


def test_what_the_parts_wrote_is_not_cleared_and_the_rest_is():
    gradient = PartedGradient((5, 2), np.dtype("f4"), mg.device("cpu"), 0)
    gradient._array[...] = np.nan
    assert gradient.write((0, 1, 2), np.array([1.0, -0.0]))
    assert gradient.write((0, 3, 5), np.full((2, 2), 2.0))
    assert not gradient.write((0, 2, 4), np.zeros((2, 2)))
    assert not gradient.write((1, 0, 1), np.zeros((5, 1)))
    whole = gradient.whole()
    np.testing.assert_array_equal(whole, [[0, 0], [1, 0], [0, 0], [2, 2], [2, 2]])
    assert np.signbit(whole[1, 1]) and gradient.whole() is whole


@pytest.mark.parametrize(
    ("index", "part"),
    [
        (2, (0, 2, 3)),
        (-1, (0, 5, 6)),
        ((slice(None), np.int64(-4)), (1, 0, 1)),
        ((..., slice(1, None)), (2, 1, 5)),
        ((1, ...), (0, 1, 2)),
        (slice(4, 2), (0, 4, 4)),
        ((slice(None), slice(-2, 9), slice(None)), (1, 2, 4)),
        (..., None),
        (slice(None), None),
        (slice(0, 6, 2), None),
        ((0, 0), None),
        ((0, slice(1, 2)), None),
        ((None, 0), None),
        ([0, 1], None),
        (np.array([True] * 6), None),
    ],
)
def test_which_part_an_index_looks_at(index, part):
    assert _part(SHAPE, index=index) == part
