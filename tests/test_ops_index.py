"""Indexing: everything that NumPy takes, reading and writing, with gradients; gathering along an axis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg

X = np.arange(60.0).reshape(3, 4, 5)
MASK = X % 7 < 2

INDICES = {
    "int": 1,
    "negative_int": -1,
    "slice": slice(1, 3),
    "steps": (slice(None, None, 2), slice(None, None, -1), slice(3, 0, -2)),
    "ellipsis": (..., 2),
    "new_axis": (None, slice(None), None, 1),
    "empty_slice": slice(2, 1),
    "one_element": (1, 2, 3),
    "everything": (),
    "array": np.array([2, 0, 2]),
    "list": [0, 1, 1],
    "array_2d": np.array([[0, 1], [2, -1]]),
    "two_arrays": (np.array([0, 1, 1]), np.array([3, 2, 2])),
    "broadcast_arrays": (np.array([[0], [2]]), np.array([1, 1, 3])),
    "array_and_slice": (slice(None), np.array([3, 3]), slice(1, 4)),
    "arrays_apart": (np.array([0, 1]), slice(None), np.array([4, 0])),
    "array_and_int": (np.array([0, 1]), 2),
    "array_and_new_axis": (None, np.array([0, 1]), ..., slice(1)),
    "mask": MASK,
    "mask_of_rows": np.array([True, False, True]),
    "mask_and_slice": (np.array([True, False, True]), slice(1, 3)),
    "mask_of_nothing": np.zeros((3, 4), bool),
    "zero_d_array": np.array(2),
    "empty_array": np.zeros(0, np.int64),
    "numpy_int": np.int64(1),
    "bool": True,
}


def as_tensors(index):
    """The same index with tensors for arrays."""
    if isinstance(index, tuple):
        return tuple(as_tensors(part) for part in index)
    return mg.tensor(index) if isinstance(index, np.ndarray) else index


@pytest.mark.parametrize("name", INDICES)
def test_reading(name, device):
    x = mg.tensor(X, device=device)
    for index in (INDICES[name], as_tensors(INDICES[name])):
        y = x[index]
        assert y.device is device
        np.testing.assert_array_equal(device.to_numpy(y._array), X[INDICES[name]])


@pytest.mark.parametrize("name", INDICES)
def test_gradient_of_reading(name, check_gradients):
    check_gradients(lambda x: x[INDICES[name]], X / 10)


@pytest.mark.parametrize("name", INDICES)
def test_writing(name):
    wanted = X.copy()
    values = -1.0 - np.arange(X[INDICES[name]].size).reshape(X[INDICES[name]].shape)
    wanted[INDICES[name]] = values
    for index in (INDICES[name], as_tensors(INDICES[name])):
        x = mg.tensor(X)
        x[index] = mg.tensor(values)
        np.testing.assert_array_equal(x.numpy(), wanted)


@pytest.mark.parametrize("name", INDICES)
def test_gradient_of_writing(name, rng, check_gradients):
    index = INDICES[name]

    def write(x, value):
        y = x * 1.0
        y[index] = value
        return y * y

    check_gradients(write, X / 10, rng.standard_normal(X[index].shape))
    check_gradients(write, X / 10, rng.standard_normal(()))


PAIR = np.array([2, 0])


@pytest.mark.parametrize(
    ("index", "number", "rest"),
    [
        ((0, slice(None), PAIR), np.s_[0], np.s_[:, PAIR]),
        ((1, slice(1, 3), [2, 0]), np.s_[1], np.s_[1:3, PAIR]),
        ((slice(None), PAIR, None, -1), np.s_[..., -1], np.s_[:, PAIR, None]),
        ((None, PAIR, ..., 1), np.s_[..., 1], np.s_[None, PAIR]),
        ((1, ..., np.array([True, False, True, True, False])), np.s_[1], np.s_[:, [0, 2, 3]]),
        (
            (np.array(0), slice(None), PAIR[:, None] * [1, 1, 1]),
            np.s_[0],
            np.s_[:, PAIR[:, None] * [1, 1, 1]],
        ),
        ((0, PAIR, slice(None)), np.s_[0], np.s_[PAIR]),
        ((PAIR, slice(None), 1), np.s_[..., 1], np.s_[PAIR]),
    ],
)
def test_a_number_apart_from_an_array(index, number, rest, device, rng, check_gradients):
    """As in PyTorch, and not as in NumPy: the number chooses first, and the array's axes stay where it is."""
    wanted = X[number][rest]
    values = rng.standard_normal(wanted.shape)
    written = X.copy()
    written[number][rest] = values
    for i in (index, as_tensors(index)):
        x = mg.tensor(X, device=device)
        found = x[tuple(part.to(device) if isinstance(part, mg.Tensor) else part for part in i)]
        np.testing.assert_array_equal(device.to_numpy(found._array), wanted)
        x = mg.tensor(X)
        x[i] = mg.tensor(values)
        np.testing.assert_array_equal(x.numpy(), written)
        x[i] = mg.tensor(values[..., :1])
        np.testing.assert_array_equal(x[i].numpy(), np.broadcast_to(values[..., :1], values.shape))

    def write(x, value):
        y = x * 1.0
        y[index] = value
        return y * y

    check_gradients(write, X / 10, values)
    check_gradients(lambda x: x[index], X / 10)


def test_what_basic_indexing_gives_is_a_view():
    x = mg.tensor(X)
    for index in (1, slice(1, 2), (..., 0), (1, 2, 3)):
        assert np.shares_memory(x[index].numpy(), x.numpy())
    x[1, 2, 3].fill_(-5.0)
    assert x.numpy()[1, 2, 3] == -5.0


def test_writing_numbers_lists_and_other_dtypes():
    x = mg.zeros(3)
    x[0], x[1:] = 1, [2, 3.5]
    assert x.tolist() == [1.0, 2.0, 3.5]
    x[:2] = np.array([7, 8])
    x[2] = mg.tensor(9, mg.int64)
    assert x.tolist() == [7.0, 8.0, 9.0] and x.dtype == mg.float32


def test_iteration_and_len():
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert len(x) == 2
    rows = list(x)
    (rows[0] * rows[1]).sum().backward()
    assert x.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    with pytest.raises(TypeError, match="0-d"):
        len(mg.ones(()))


@pytest.mark.parametrize("index", [3, -4, (0, 4), np.array([0, 3]), (slice(None), [7])])
def test_out_of_bounds(index):
    x = mg.tensor(X)
    with pytest.raises(IndexError, match="out of bounds"):
        x[index]
    with pytest.raises(IndexError, match="out of bounds"):
        x[index] = 0.0
    np.testing.assert_array_equal(x.numpy(), X)


@pytest.mark.parametrize("index", [1.5, "a", mg.tensor([1.0]), (0, 0, 0, 0), np.zeros((2, 2), bool)])
def test_what_is_no_index(index):
    with pytest.raises((IndexError, TypeError), match=r"ind(ex|ices)"):
        mg.tensor(X)[index]


def test_a_value_that_does_not_fit():
    x = mg.tensor(X)
    with pytest.raises(ValueError, match="broadcast"):
        x[0] = mg.ones(3)
    np.testing.assert_array_equal(x.numpy(), X)


@st.composite
def shape_and_index(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    if 0 in shape or draw(st.booleans()):
        return shape, draw(basic)
    result = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
    return shape, draw(hnp.integer_array_indices(shape, result_shape=result))


@given(shape_and_index())
def test_any_index(shape_and_index):
    shape, index = shape_and_index
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = mg.tensor(array, requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.detach().numpy(), array[index])
    weights = np.arange(1.0, y.numel() + 1).reshape(y.shape)
    (y * mg.tensor(weights)).sum().backward()
    wanted = np.zeros(shape)
    np.add.at(wanted, index, weights)
    np.testing.assert_array_equal(x.grad.numpy(), wanted)


# ---- along an axis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_take_along_dim(dim, device, rng, check_gradients):
    shape = tuple(2 if k == dim % 3 else n for k, n in enumerate(X.shape))
    indices = rng.integers(-X.shape[dim], X.shape[dim], shape)
    y = mg.take_along_dim(mg.tensor(X, device=device), mg.tensor(indices, device=device), dim)
    np.testing.assert_array_equal(device.to_numpy(y._array), np.take_along_axis(X, indices, dim))
    if device.type == "cpu":
        check_gradients(lambda x: mg.take_along_dim(x, mg.tensor(indices), dim), X / 10)


def test_gather_by_its_definition(rng, check_gradients):
    index = rng.integers(0, 4, (2, 6, 3))  # smaller than X in the axes beside dim 1
    y = mg.gather(mg.tensor(X), 1, mg.tensor(index)).numpy()
    for i, j, k in np.ndindex(*index.shape):
        assert y[i, j, k] == X[i, index[i, j, k], k]
    check_gradients(lambda x: mg.gather(x, 1, mg.tensor(index)), X / 10)


@pytest.mark.parametrize(
    ("indices", "dim", "error", "words"),
    [
        (mg.zeros(3, 4, 5), 0, TypeError, "integers.*float32"),
        (mg.zeros(3, 4, dtype=mg.int64), 0, ValueError, r"\(3, 4\).*\(3, 4, 5\)"),
        (mg.zeros(1, 2, 5, dtype=mg.int64), 1, ValueError, r"\(1, 2, 5\).*\(3, 4, 5\)"),
        (mg.zeros(3, 4, 5, dtype=mg.int64), 3, IndexError, "dim 3"),
        (mg.full((3, 4, 5), 5), 0, IndexError, "out of bounds"),
    ],
)
def test_bad_indices_along_an_axis(indices, dim, error, words):
    with pytest.raises(error, match=words):
        mg.take_along_dim(mg.tensor(X), indices, dim)


def test_nonzero(device):
    x = mg.tensor([[0.0, 2.0], [3.0, 0.0]], device=device)
    assert mg.nonzero(x).tolist() == [[0, 1], [1, 0]]
    assert [axis.tolist() for axis in x.nonzero(as_tuple=True)] == [[0, 1], [1, 0]]
    assert [axis.tolist() for axis in mg.where(x > 2.5)] == [[1], [0]]


def test_nonzero_of_a_zero_dimensional_tensor():
    assert mg.nonzero(mg.tensor(3)).shape == (1, 0) and mg.nonzero(mg.tensor(0)).shape == (0, 0)
    assert mg.where(mg.tensor(3))[0].tolist() == [0]
