"""Rows copied and summed by their numbers, on the CPU, against their definitions."""

import numpy as np
import pytest
from in_one_test import in_one_test


@pytest.fixture
def sum_rows(kernel_module):
    return kernel_module("embedding").sum_rows


@pytest.fixture
def gather(kernel_module):
    return kernel_module("embedding").gather


@in_one_test("threads", [1, 2, 3])
@in_one_test("columns", [0, 1, 7, 500])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (5, 301), (300, 5), (3, 0), (9, 2000)])
def test_rows(gather, dtype, rows, n, columns, threads):
    rng = np.random.default_rng(n + columns)
    weight, indices = rng.standard_normal((rows, columns)).astype(dtype), rng.integers(0, rows, n)
    out = np.full((n, columns), 77, dtype)
    gather(out, weight, indices, threads)
    assert np.array_equal(out, weight[indices])


@in_one_test("threads", [1, 3])
@pytest.mark.parametrize("wrong", [-1, 4, 2**62])
def test_an_index_that_names_no_row(gather, wrong, threads):
    indices = np.zeros(2000, np.int64)
    indices[[0, 1999]] = wrong
    with pytest.raises(IndexError, match="2 of 2000 indices are none of the 4 rows"):
        gather(np.empty((2000, 300)), np.ones((4, 300)), indices, threads)


def rows_added(rows, g, indices):
    out = np.zeros((rows, g.shape[1]))
    for i, row in enumerate(indices):
        if 0 <= row < rows:
            out[row] += g[i]
    return out


@in_one_test("threads", [1, 2, 3])
@in_one_test("columns", [0, 1, 7, 16, 33, 500])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (5, 300), (300, 5), (0, 4), (3, 0), (3001, 70)])
def test_sums(sum_rows, dtype, rows, n, columns, threads):
    rng = np.random.default_rng(n + columns)
    g, indices = rng.standard_normal((n, columns)).astype(dtype), rng.integers(-1, rows + 1, n)
    out = np.full((rows, columns), np.nan, dtype)
    sum_rows(out, g, indices, threads)
    wide = g.astype(np.float64)
    error = np.abs(out - rows_added(rows, wide, indices))
    assert (error <= n * np.finfo(dtype).eps * rows_added(rows, np.abs(wide), indices)).all()


def test_any_number_of_threads_gives_the_same_bits(sum_rows, dtype):
    rng = np.random.default_rng(0)
    g, indices = rng.standard_normal((700, 200)).astype(dtype), rng.integers(0, 9, 700)
    results = []
    for threads in (1, 2, 5):
        results.append(np.empty((9, 200), dtype))
        sum_rows(results[-1], g, indices, threads)
    assert len({out.tobytes() for out in results}) == 1


def test_nan_and_infinity_stay_in_their_place(sum_rows, dtype):
    g = np.ones((4, 3), dtype)
    g[0, 0], g[1, 1], g[2, 1] = np.nan, np.inf, -np.inf
    out = np.empty((2, 3), dtype)
    sum_rows(out, g, np.array([0, 1, 1, 1]), 1)
    assert np.array_equal(np.isnan(out), [[True, False, False], [False, True, False]])


def test_what_does_not_fit(gather, sum_rows):
    with pytest.raises(ValueError, match=r"gather: \(4,\) indices .* \(5, 3\) with those of \(2, 3\)"):
        gather(np.empty((5, 3)), np.ones((2, 3)), np.zeros(4, np.int64), 1)
    with pytest.raises(TypeError, match="int32"):
        gather(np.empty((4, 3)), np.ones((2, 3)), np.zeros(4, np.int32), 1)
    out, g = np.empty((2, 3)), np.ones((4, 3))
    with pytest.raises(ValueError, match=r"\(5,\) indices .* rows of \(4, 3\) with those of \(2, 3\)"):
        sum_rows(out, g, np.zeros(5, np.int64), 1)
    with pytest.raises(TypeError, match="int32"):
        sum_rows(out, g, np.zeros(4, np.int32), 1)
    with pytest.raises(TypeError, match="output has dtype float32"):
        sum_rows(np.empty((2, 3), np.float32), g, np.zeros(4, np.int64), 1)
