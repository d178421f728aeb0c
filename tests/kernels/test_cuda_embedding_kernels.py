"""Gathering and summing rows, and single elements along an axis, on CUDA against NumPy in float64."""

import functools
import itertools

import numpy as np
import pytest
from simulated import normal

from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import embedding, gather, segments
from minigrad.kernels.launch import CudaKernel

DTYPES = [np.float32, np.float64]
# rows, columns, indices: few and many of each; the first rows of vectors, of odd sizes, of none at all.
SIZES = [(5, 8, 7), (3, 5, 40), (1, 1, 1), (300, 33, 10), (4, 600, 9), (6, 1, 2000), (2, 256, 300), (9, 7, 0)]
EMPTY = [(0, 4, 0), (4, 0, 3)]
GATHERS = [embedding.gather_naive, embedding.gather_vector]
SUMS = [embedding.sum_naive, embedding.sum_sorted, embedding.sum_split, embedding.sum_found]
PUTS = [gather.put_walk, gather.put_sorted]


@pytest.fixture(params=["sim", "cuda"])
def run(request):
    """``run(kernel, shape, *arrays)``: the output, which starts as 77; arrays begin at element ``shift``."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    put, get = (np.array, np.array) if request.param == "sim" else (cuda.cupy().asarray, cuda.cupy().asnumpy)

    def place(array, shift):
        padded = np.concatenate([np.full(shift, 77, array.dtype), array.ravel()])
        return put(padded)[shift:].reshape(array.shape)

    def run(kernel, shape, *arrays, shift=0):
        out = place(np.full(shape, 77, arrays[0].dtype), shift)
        kernel(out, *(place(array, shift) for array in arrays))
        return get(out)

    return run


def numbers(high, *shape, seed=0, low=0):
    """Indices of which small ones are frequent, as in a text."""
    spread = np.random.default_rng(seed).random(shape) ** 3
    return (low + spread * (high - low)).astype(np.int64)


def whole_numbers(*shape):
    """Of which sums are exact in any order."""
    return np.random.default_rng(3).integers(-99, 99, shape).astype(np.float64)


def assert_sums(actual, expected, magnitude, count):
    """``count`` additions, each of which rounds a sum of at most ``magnitude``."""
    assert (np.abs(actual - expected) <= count * np.finfo(actual.dtype).eps * magnitude).all()


def rows_added(rows, g, indices):
    out = np.zeros((rows, g.shape[1]))
    for i, row in enumerate(indices):
        if 0 <= row < rows:
            out[row] += g[i]
    return out


# ---- rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", GATHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "n"), SIZES + EMPTY)
def test_gathering_rows(run, kernel, dtype, rows, columns, n):
    weight, indices = normal(rows, columns, dtype=dtype), numbers(rows, n)
    for shift in (0, 1):
        found = run(kernel, (n, columns), weight, indices, shift=shift)
        assert np.array_equal(found, weight[indices])


@pytest.mark.parametrize("kernel", SUMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "n"), SIZES + EMPTY)
def test_summing_rows(run, kernel, dtype, rows, columns, n):
    g, indices = normal(n, columns, dtype=dtype), numbers(rows, n, seed=1)
    wide = g.astype(np.float64)
    found = run(kernel, (rows, columns), g, indices)
    magnitude = rows_added(rows, np.abs(wide), indices)
    assert_sums(found, rows_added(rows, wide, indices), magnitude, max(n, 1))


@pytest.mark.parametrize("columns", [4, 200])
def test_indices_out_of_range(run, columns):
    indices = np.array([2, -1, 3, 0, 2**40, -(2**40)])
    weight, g = normal(3, columns), normal(6, columns)
    for kernel in GATHERS:
        found = run(kernel, (6, columns), weight, indices)
        assert np.array_equal(found[[0, 3]], weight[[2, 0]]) and np.isnan(found[[1, 2, 4, 5]]).all()
    for kernel in SUMS:
        assert np.array_equal(run(kernel, (3, columns), g, indices), rows_added(3, g, indices))


@pytest.mark.parametrize("kernel", SUMS)
@pytest.mark.parametrize("n", [3, 100])
def test_nan_and_infinity_stay_in_their_row(run, kernel, n):
    g, indices = np.ones((n, 40)), np.arange(n) % 3
    g[0, 0], g[1, 1] = np.nan, np.inf
    found = run(kernel, (3, 40), g, indices)
    assert np.isnan(found[0, 0]) and found[1, 1] == np.inf
    assert np.isfinite(found).sum() == 118


@pytest.mark.parametrize("before", [0, 1, 20, 32])
@pytest.mark.parametrize("length", [31, 32, 33, 65, 500])
@pytest.mark.parametrize("columns", [1, 8, 70])
def test_segments_that_are_cut_into_chunks(run, before, length, columns):
    """Integers are added exactly: no term is lost or counted twice."""
    n = before + length + 1
    g = np.arange(n * columns, dtype=np.float64).reshape(n, columns)
    indices = np.full(n, 1)
    indices[:before], indices[-1] = 0, 2
    for kernel in (embedding.sum_split, embedding.sum_found):
        found = run(kernel, (4, columns), g, indices)
        assert np.array_equal(found, rows_added(4, g, indices))


@pytest.mark.parametrize("kernel", SUMS)
@pytest.mark.parametrize("left_out", [0, 2, 4])
@pytest.mark.parametrize(("columns", "n"), [(3, 10), (8, 400)])
def test_a_row_that_is_left_out(run, kernel, left_out, columns, n):
    g, indices = whole_numbers(n, columns), numbers(5, n, seed=2)
    found = run(functools.partial(kernel, left_out=left_out), (5, columns), g, indices)
    assert np.array_equal(found, rows_added(5, g, np.where(indices == left_out, -1, indices)))


# n: up to 256 in one launch; more than 4096 in longer chunks. Rows: fewer than blocks, more of them, and so
# many that a block has no places for more. The simulator takes seconds for those: they come with the limits
# of n.
@pytest.mark.parametrize(
    ("rows", "columns", "n"),
    [
        (*size, n)
        for size in [(1, 5), (2, 16), (65, 4), (513, 3), (70000, 1)]
        for n in [1, 2, 255, 256, 257, 300, 1024, 4096, 4097]
        if size[0] < 70000 or n in (1, 256, 257, 4097)
    ],
)
def test_sums_that_are_found(run, n, rows, columns):
    """Some rows come often, most of them never; integers are added exactly."""
    g, indices = whole_numbers(n, columns), numbers(rows, n, seed=n)
    indices[n // 2 :: 3], indices[-1] = indices[0], rows - 1
    found = run(embedding.sum_found, (rows, columns), g, indices)
    assert np.array_equal(found, rows_added(rows, g, indices))


@pytest.mark.parametrize(
    ("rows", "columns", "n", "launches"),
    [
        (50257, 4, 256, 1),
        (9, 4, 257, 2),
        (50257, 4, 2000, 2),
        (5, 1, 8191 * 256 + 1, 5),
        (2**20, 1, 20000, 9),
    ],
)
def test_launches_of_sums_that_are_found(monkeypatch, rows, columns, n, launches):
    """One for few positions, two for more of them, and a sort where to look would take longer."""
    counted = []
    monkeypatch.setattr(CudaKernel, "launch", lambda kernel, *_, **__: counted.append(kernel.name))
    indices = np.zeros(n, np.int64)
    embedding.sum_found(np.empty((rows, columns), np.float32), np.empty((n, columns), np.float32), indices)
    assert len(counted) == launches


# ---- segments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 255, 256, 70000, 2**40])
@pytest.mark.parametrize("n", [0, 1, 300, 2500])
def test_sorted_positions(backend, size, n):
    """As NumPy's stable sort gives them; what is out of range stands behind."""
    keys = np.random.default_rng(n).integers(-1, min(size, 90) + 1, n)
    keys[::7] = size - 1
    counted = np.where((keys >= 0) & (keys < size), keys, size)
    expected = np.argsort(counted, kind="stable")
    order, in_order = map(backend.get, segments.sort(backend.put(keys), size))
    assert np.array_equal(order, expected)
    assert np.array_equal(in_order, counted[expected])


@pytest.mark.parametrize("n", [0, 40])
def test_segments(backend, n):
    keys = np.random.default_rng(n).integers(-2, 12, n)
    order, in_order, starts = map(backend.get, segments.segments(backend.put(keys), 10))
    for key in range(10):
        assert np.array_equal(order[starts[key] : starts[key + 1]], np.flatnonzero(keys == key))
    assert (in_order[starts[10] :] == 10).all()


# ---- along an axis ----------------------------------------------------------------------------------------

# outer, size, inner, indices along the axis
PLANES = [
    (2, 5, 3, 4),
    (1, 1, 1, 1),
    (3, 70, 1, 2),
    (1, 4, 33, 90),
    (2, 3, 2, 0),
    (0, 3, 2, 2),
    (300, 2, 3, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "size", "inner", "n"), PLANES)
def test_taking_along_an_axis(run, dtype, outer, size, inner, n):
    x, indices = normal(outer, size, inner, dtype=dtype), numbers(size, outer, n, inner, low=-size)
    found = run(gather.take, indices.shape, x, indices)
    assert np.array_equal(found, np.take_along_axis(x, indices, 1))


@pytest.mark.parametrize("kernel", PUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "size", "inner", "n"), PLANES)
def test_putting_along_an_axis(run, kernel, dtype, outer, size, inner, n):
    g, indices = normal(outer, n, inner, dtype=dtype), numbers(size, outer, n, inner, low=-size)
    expected, magnitude = np.zeros((2, outer, size, inner))
    for a, j, b in np.ndindex(*indices.shape):
        expected[a, indices[a, j, b], b] += np.float64(g[a, j, b])
        magnitude[a, indices[a, j, b], b] += abs(np.float64(g[a, j, b]))
    assert_sums(run(kernel, (outer, size, inner), g, indices), expected, magnitude, max(n, 1))


def test_indices_out_of_range_along_an_axis(run):
    indices = np.array([0, -3, -4, 3, 2]).reshape(1, 5, 1)
    x, g = normal(1, 3, 1), normal(1, 5, 1)
    found = run(gather.take, (1, 5, 1), x, indices).ravel()
    assert np.array_equal(found, [x[0, 0, 0], x[0, 0, 0], np.nan, np.nan, x[0, 2, 0]], equal_nan=True)
    for kernel in PUTS:
        found = run(kernel, (1, 3, 1), g, indices).ravel()
        assert np.array_equal(found, [g[0, 0, 0] + g[0, 1, 0], 0, g[0, 4, 0]])


# ---- all of them ------------------------------------------------------------------------------------------


def test_kernels_refuse_what_does_not_fit():
    x, indices = np.ones((3, 4)), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match=r"gather kernel: \(2,\) .* \(3, 4\) do not give \(2, 5\)"):
        embedding.gather_vector(np.empty((2, 5)), x, indices)
    with pytest.raises(ValueError, match=r"sum kernel: \(2,\) .* \(3, 4\) do not give \(3, 4\)"):
        embedding.sum_split(np.empty((3, 4)), x, indices)
    with pytest.raises(TypeError, match=r"indices.*int64.*int32"):
        embedding.gather_naive(np.empty((2, 4)), x, indices.astype(np.int32))
    with pytest.raises(ValueError, match="put kernel: indices of"):
        gather.put_walk(np.empty((1, 3, 4)), np.ones((1, 2, 4)), np.zeros((1, 2, 5), np.int64))


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_every_thread_order_gives_the_same_bits_and_the_checks_pass():
    weight, g = normal(6, 40, dtype=np.float32), normal(300, 40, dtype=np.float32)
    indices, planes = numbers(6, 300), numbers(6, 10, 30, 40)

    def results():
        found = []
        for kernel in GATHERS:
            found.append(np.empty((300, 40), np.float32))
            kernel(found[-1], weight, indices)
        for kernel in SUMS:
            found.append(np.empty((6, 40), np.float32))
            kernel(found[-1], g, indices)
        for kernel, size in ((gather.take, 30), (gather.put_walk, 6), (gather.put_sorted, 6)):
            found.append(np.empty((10, size, 40), np.float32))
            given = np.ascontiguousarray(g.reshape(10, 30, 40)[:, : 6 if kernel is gather.take else 30])
            kernel(found[-1], given, planes)
        return [out.tobytes() for out in found]

    expected = results()
    for seed, workers in itertools.product((1, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
    with sim.checks():
        assert results() == expected
