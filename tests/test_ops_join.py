"""Joining, splitting, padding: values against NumPy, gradients, bad arguments."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concat(dim, device, rng, check_gradients):
    shapes = [(2, 3, 4), (2, 3, 4), (2, 3, 4)]
    shapes[1] = tuple(0 if k == dim % 3 else n for k, n in enumerate(shapes[1]))
    shapes[2] = tuple(5 if k == dim % 3 else n for k, n in enumerate(shapes[2]))
    arrays = [rng.standard_normal(s) for s in shapes]
    joined = mg.concat([mg.tensor(a, device=device) for a in arrays], dim)
    np.testing.assert_array_equal(device.to_numpy(joined._array), np.concatenate(arrays, dim))
    if device.type == "cpu":
        check_gradients(lambda *ts: mg.concat(ts, dim), *arrays)


@pytest.mark.parametrize("dim", [0, 1, -1, 2])
def test_stack(dim, rng, check_gradients):
    arrays = [rng.standard_normal((2, 3)) for _ in range(4)]
    np.testing.assert_array_equal(
        mg.stack([mg.tensor(a) for a in arrays], dim).numpy(), np.stack(arrays, dim)
    )
    check_gradients(lambda *ts: mg.stack(ts, dim), *arrays)


def test_cat_is_concat_and_promotes():
    assert mg.cat is mg.concat
    assert mg.concat([mg.ones(1), mg.ones(1, dtype=mg.float64)]).dtype == mg.float64
    assert mg.concat([mg.ones(1), mg.tensor([1])]).dtype == mg.float32


def test_the_same_tensor_twice():
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    (mg.concat([x, x]) * mg.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [4.0, 6.0]


def test_split(check_gradients):
    x = mg.tensor(np.arange(20.0).reshape(2, 10))
    assert [p.shape[1] for p in x.split(4, 1)] == [4, 4, 2]
    assert [p.shape[1] for p in x.split([1, 0, 9], -1)] == [1, 0, 9]
    assert [p.shape[1] for p in x.chunk(3, 1)] == [4, 4, 2]
    assert len(mg.ones(0).split(3)) == 1
    pieces = x.split(4, 1)
    assert all(np.shares_memory(p.numpy(), x.numpy()) for p in pieces)
    np.testing.assert_array_equal(mg.concat(pieces, 1).numpy(), x.numpy())
    check_gradients(lambda t: t.split([1, 2, 3], 1), (2, 6))
    check_gradients(lambda t: t.split(4, 1)[1], (2, 6))


def test_pad(check_gradients):
    x = np.arange(6.0).reshape(2, 3)
    padded = F.pad(mg.tensor(x), (1, 2, 0, 3), value=9.0)
    np.testing.assert_array_equal(padded.numpy(), np.pad(x, ((0, 3), (1, 2)), constant_values=9.0))
    check_gradients(lambda t: F.pad(t, (1, 0, 2, 1)), x)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mg.concat([]), ValueError, "at least one"),
        (lambda: mg.concat([mg.ones(2, 3), mg.ones(2, 4)]), ValueError, r"\(2, 3\).*tensor 1.*\(2, 4\)"),
        (lambda: mg.concat([mg.ones(2, 3), mg.ones(3)]), ValueError, r"\(2, 3\).*\(3,\)"),
        (lambda: mg.concat([mg.ones(2)], 1), IndexError, "dim 1"),
        (lambda: mg.concat([mg.ones(())]), IndexError, "dim 0.*0 dimensions"),
        (lambda: mg.stack([mg.ones(2), mg.ones(3)]), ValueError, r"\(2,\).*\(3,\)"),
        (lambda: mg.ones(4).split(0), ValueError, "at least 1"),
        (lambda: mg.ones(4).split([1, 2]), ValueError, "add up to 4"),
        (lambda: mg.ones(4).split([5, -1]), ValueError, "add up to 4"),
        (lambda: mg.ones(4).chunk(0), ValueError, "at least 1"),
        (lambda: F.pad(mg.ones(2), (1,)), ValueError, "pairs"),
        (lambda: F.pad(mg.ones(2), (1, 1, 1, 1)), ValueError, "at most 1 pairs"),
        (lambda: F.pad(mg.ones(2), (-3, 0)), ValueError, "cut off more"),
        (lambda: F.pad(mg.ones(2), (2, 1), mode="reflect"), ValueError, "widths from 0 to 1"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_unbind(rng, check_gradients):
    x = rng.standard_normal((2, 3))
    columns = mg.unbind(mg.tensor(x), 1)
    assert [c.tolist() for c in columns] == x.T.tolist()
    check_gradients(lambda x: mg.unbind(x, -1)[1], x)
