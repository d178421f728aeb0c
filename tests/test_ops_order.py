"""Order: extrema with positions, sorting, the largest few: values against NumPy, gradients, ties, NaN."""

import numpy as np
import pytest

import minigrad as mg


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(dim, descending, device, rng):
    x = rng.permutation(24).reshape(2, 3, 4).astype(np.float32)
    values, indices = mg.sort(mg.tensor(x, device=device), dim, descending)
    expected = -np.sort(-x, dim) if descending else np.sort(x, dim)
    np.testing.assert_array_equal(device.to_numpy(values._array), expected)
    np.testing.assert_array_equal(np.take_along_axis(x, device.to_numpy(indices._array), dim), expected)


def test_sort_keeps_the_order_of_equals_and_puts_nan_above_all():
    x = mg.tensor([1.0, mg.nan, 0.0, 1.0])
    assert x.sort().indices.tolist() == [2, 0, 3, 1]
    assert x.argsort(descending=True).tolist() == [1, 0, 3, 2]
    assert [part.tolist() for part in mg.tensor(2.0).sort(0)] == [2.0, 0]


def test_topk(check_gradients, rng):
    x = mg.tensor([[3.0, 1.0, 2.0], [4.0, 6.0, 5.0]])
    values, indices = x.topk(2)
    assert values.tolist() == [[3.0, 2.0], [6.0, 5.0]] and indices.tolist() == [[0, 2], [1, 2]]
    assert mg.topk(x, 1, dim=0, largest=False).values.tolist() == [[3.0, 1.0, 2.0]]
    check_gradients(lambda x: mg.topk(x, 2, dim=1).values, rng.permutation(12).reshape(3, 4) / 4.0)
    with pytest.raises(ValueError, match=r"topk: k = 4 does not fit into dim -1 .* \(2, 3\)"):
        x.topk(4)


def test_extrema_have_names():
    x = mg.tensor([[3.0, 1.0], [4.0, 6.0]])
    assert mg.max(x).item() == 6.0 and mg.min(x).item() == 1.0
    assert mg.max(x, dim=1).values.tolist() == [3.0, 6.0] and mg.min(x, 0).indices.tolist() == [0, 0]
    assert mg.max(x, mg.full((2, 2), 3.5)).tolist() == [[3.5, 3.5], [4.0, 6.0]]
