"""The transposing copy, on the simulator and on a card."""

from itertools import chain, product

import numpy as np
import pytest

from minigrad.kernels.arguments import address
from minigrad.kernels.cuda.transpose import transpose, transpose_together

pytestmark = pytest.mark.usefixtures("checked_accesses")


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.float32, np.int32, np.float64])
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 1, 1), (1, 3, 130), (2, 65, 64), (1, 127, 5), (3, 0, 4), (0, 4, 5)),
        *((2, 260, 9), (5, 6, 25), (1, 68, 16), (2, 68, 132), (2, 3, 530), (1, 12, 258), (1, 29, 260)),
    ],
    ids=str,
)
def test_transposed(backend, dtype, shape, rng):
    batches, rows, columns = shape
    x = rng.integers(-99, 99, shape).astype(dtype)
    out = backend.put(np.zeros((batches, columns, rows + 3), dtype))
    transpose(out[:, :, :rows], backend.put(x))
    np.testing.assert_array_equal(backend.get(out)[:, :, :rows], x.swapaxes(1, 2))
    assert not backend.get(out)[:, :, rows:].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("first", "apart"), [(0, 72), (0, 74), (1, 72), (8, 80)])
def test_rows_that_are_made_of_vectors_or_not(backend, dtype, first, apart, rng):
    """Those of either array: the one that has other rows than the kernel would take."""
    x, narrow = (rng.integers(-99, 99, (2, 68, apart)).astype(dtype) for _ in range(2))
    for view in (x[:, :, first : first + 64], narrow[:, :, first : first + 12]):
        out = backend.put(np.full((*view.swapaxes(1, 2).shape[:2], apart), np.nan, dtype))
        turned = out[:, :, first : first + 68]
        transpose(turned, backend.put_strided(view))
        np.testing.assert_array_equal(backend.get(out)[:, :, first : first + 68], view.swapaxes(1, 2))
        assert np.isnan(backend.get(out)[:, :, first + 68 :]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_out_that_starts_at_any_multiple_of_16_bytes(backend, dtype, rng):
    """It is stored in vectors of 16 bytes at most, though four float64 have 32."""
    x = rng.integers(-99, 99, (2, 64, 12)).astype(dtype)
    for first in (16, 32, 48):
        memory = backend.put(np.zeros(x.nbytes + 64, np.uint8))
        begin = (first - address(memory)) % 64
        out = memory[begin : begin + x.nbytes].view(dtype).reshape(2, 12, 64)
        transpose(out, backend.put(x))
        np.testing.assert_array_equal(backend.get(out), x.swapaxes(1, 2))


def test_longer_rows_end_in_zeros(backend, rng):
    x = rng.integers(1, 99, (2, 67, 70)).astype(np.float16)
    out = backend.put(np.full((2, 70, 75), np.nan, np.float16))
    transpose(out[:, :, :72], backend.put(x))
    found = backend.get(out)
    np.testing.assert_array_equal(found[:, :, :67], x.swapaxes(1, 2))
    assert not found[:, :, 67:72].any() and np.isnan(found[:, :, 72:]).all()


@pytest.mark.parametrize(("rows", "padded"), [(3, 4), (3, 8), (5, 8), (9, 16), (17, 24), (5, 64)])
@pytest.mark.parametrize("columns", [520, 523])
def test_rounded(backend, rows, padded, columns, rng):
    """To nearest, ties to even, as NumPy does; of vectors or not."""
    x = rng.standard_normal((2, rows, columns)).astype(np.float32)
    x[0, 0, :5] = np.inf, np.nan, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1e9
    out = backend.put(np.full((2, columns, padded), np.nan, np.float16))
    transpose(out, backend.put(x))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).swapaxes(1, 2)
    np.testing.assert_array_equal(backend.get(out)[:, :, :rows], expected)
    assert not backend.get(out)[:, :, rows:].any()


@pytest.mark.parametrize(("rows", "padded"), [(3, 4), (3, 8), (5, 8), (9, 16), (17, 24), (5, 64)])
@pytest.mark.parametrize("columns", [520, 523])
def test_few_rows_of_many_columns(backend, rows, padded, columns, rng):
    x = rng.integers(1, 99, (2, rows, columns)).astype(np.float16)
    out = backend.put(np.full((2, columns, padded), np.nan, np.float16))
    transpose(out, backend.put(x))
    np.testing.assert_array_equal(backend.get(out)[:, :, :rows], x.swapaxes(1, 2))
    assert not backend.get(out)[:, :, rows:].any()


def test_views(backend, rng):
    x = rng.standard_normal((3, 40, 70)).astype(np.float32)
    for view in (x[:, ::2, 3:60], x[::-1, ::-1], np.broadcast_to(x[:1], x.shape), x.swapaxes(0, 1)):
        out = backend.put(np.full(view.swapaxes(1, 2).shape, np.nan, np.float32))
        transpose(out, backend.put_strided(view))
        np.testing.assert_array_equal(backend.get(out), view.swapaxes(1, 2))


def test_seen_in_another_shape(backend, rng):
    x = rng.standard_normal((2, 5, 6, 7)).astype(np.float32)
    for given in (x, x.transpose(0, 2, 3, 1)):  # it lies in memory as x does
        out = backend.put(np.zeros((2, 42, 5), np.float32))
        transpose(out, backend.put_strided(given), (2, 5, 42))
        np.testing.assert_array_equal(backend.get(out), x.reshape(2, 5, 42).swapaxes(1, 2))


@pytest.mark.parametrize(
    ("dtype", "of_weight"), [(np.float16, np.float32), (np.float16, np.float16), (np.float32,) * 2]
)
@pytest.mark.parametrize(
    "planes", [((3, 5, 130), (2, 16, 64)), ((2, 8, 520), (2, 70, 49)), ((0, 8, 16), (2, 8, 4))]
)
@pytest.mark.parametrize("weight", [(7, 16, 9), (1, 260, 36), (1, 20, 0)])
def test_together(backend, dtype, of_weight, planes, weight, rng):
    """Images of one or two sizes and a weight, which is rounded; rows that end in zeros."""
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in planes]
    weights = [rng.standard_normal(weight).astype(of_weight)]
    for groups in product((arrays[:1], arrays), ([], weights)):
        copies = [], []
        for copied, group in zip(copies, groups, strict=True):
            for x in group:
                out = np.full((x.shape[0], x.shape[2], x.shape[1] + 3), np.nan, dtype)
                copied.append((backend.put(out), backend.put(x), x.shape))
        transpose_together(*copies)
        for (out, *_), x in zip(chain(*copies), chain(*groups), strict=True):
            found, rows = backend.get(out), x.shape[1]
            np.testing.assert_array_equal(found[:, :, :rows], x.swapaxes(1, 2).astype(dtype))
            assert not found[:, :, rows:].any()


def test_shapes_that_do_not_fit():
    x = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 3\) and \(1, 2, 3\) do not fit"):
        transpose(x, x)
    with pytest.raises(ValueError, match=r"shapes \(1, 3, 65\) and \(1, 2, 3\) do not fit"):
        transpose(np.zeros((1, 3, 65), np.float32), x)
