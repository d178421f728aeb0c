"""The CUDA kernels of matrix multiplication against NumPy in float64, on the simulator and on a card."""

import functools
import itertools

import numpy as np
import pytest
from simulated import VIEWS, normal

from minigrad.kernels import sim
from minigrad.kernels.cuda import gemv, matmul, matmul_warp_tile, split_k
from minigrad.kernels.launch import CudaKernel

RUNGS = [
    *(matmul.uncoalesced, matmul.naive, matmul.tiled, matmul.register_tile, matmul.vectorized),
    *(matmul_warp_tile.warp_tile, split_k.split_k),
]
DTYPES = [np.float32, np.float64]
LONG = 2 * split_k.PART  # the shortest K that split_k cuts


pytestmark = pytest.mark.usefixtures("checked_accesses")


def check(backend, kernel, a, b):
    """``kernel`` gives a @ b, but for the rounding of its sums; what it does not write stays NaN."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    out = backend.put(np.full((*batch, a.shape[-2], b.shape[-1]), np.nan, a.dtype))
    kernel(out, backend.put_strided(a), backend.put_strided(b))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    error = np.abs(backend.get(out) - wide_a @ wide_b)
    bound = (a.shape[-1] + 2) * np.finfo(a.dtype).eps * (abs(wide_a) @ abs(wide_b))
    assert (error <= bound).all(), f"largest error {error.max()}"


@pytest.fixture
def launched(monkeypatch):
    """The instances of the kernels that were launched, such as ``matmul_tiled<T>``, in a list."""
    names, launch = [], CudaKernel.launch

    def noted(self, *args):
        names.append(self.expression)
        launch(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", noted)
    return names


# ---- matrices ----------------------------------------------------------------------------------------------

# (M, N, K): smaller than a tile, odd, a whole tile, a little more, of whole vectors, a K to split.
SIZES = [
    (1, 1, 1),
    (5, 7, 3),
    (33, 31, 65),
    (64, 64, 32),
    (65, 70, 17),
    (132, 68, 36),
    (40, 2, 9),
    (3, 36, LONG + 33),
    (33, 36, LONG),
]


@pytest.mark.parametrize("kernel", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(backend, kernel, dtype, sizes):
    M, N, K = sizes
    check(backend, kernel, normal(M, K, dtype=dtype), normal(K, N, dtype=dtype, seed=1))


@pytest.mark.parametrize("kernel", RUNGS)
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_are_read_in_place(backend, kernel, view):
    a, b = normal(36, 40, dtype=np.float32), normal(40, 68, dtype=np.float32, seed=1)
    for a_view, b_view in ((view, "as it is"), ("as it is", view), (view, view)):
        check(backend, kernel, VIEWS[a_view](a), VIEWS[b_view](b))


@pytest.mark.parametrize("kernel", RUNGS)
def test_batches(backend, kernel):
    check(backend, kernel, normal(4, 2, 3, 5), normal(2, 5, 7, seed=1))
    check(backend, kernel, normal(2, 1, 3, 5), normal(1, 4, 5, 2, seed=1))
    check(backend, kernel, normal(2, 3, 4, 5).swapaxes(0, 1), normal(5, 6, seed=1))
    check(backend, kernel, normal(3, 34, 4).swapaxes(1, 2), normal(2, 1, 34, 36, seed=1))
    check(backend, kernel, normal(2, 1, 2, LONG), normal(2, LONG, 3, seed=1))
    # Alternate broadcasting over six dimensions: none of them merge, so the kernel gets copies.
    a, b = normal(2, 1, 2, 1, 2, 1, 3, 4), normal(1, 2, 1, 2, 1, 2, 4, 5, seed=1)
    check(backend, kernel, a, b)


def test_batch_beyond_the_grid_limit(backend):
    a, b = normal(65535 + 3, 1, 2, dtype=np.float32), normal(2, 1, dtype=np.float32)
    with sim.checks(False):  # of so many threads they would take long
        check(backend, matmul.naive, a, b)
        check(backend, gemv.gemv, a, b)


@pytest.mark.parametrize("kernel", [*RUNGS, gemv.gemv])
def test_empty_arrays(backend, kernel):
    for M, N, K in ((1, 4, 0), (3, 1, 0), (1, 0, 5), (0, 1, 5), (0, 1, 0)):
        for batch in ((), (3,), (0,)):
            out = backend.put(np.full((*batch, M, N), np.nan, np.float32))
            a, b = (backend.put(np.ones((*batch, *shape), np.float32)) for shape in ((M, K), (K, N)))
            kernel(out, a, b)
            assert not backend.get(out).any()


@pytest.mark.parametrize("kernel", RUNGS)
@pytest.mark.parametrize("sizes", [(33, 35, 40), (36, 36, 40), (33, 36, LONG)])
def test_nan_and_infinity_stay_in_their_row_and_column(backend, kernel, sizes):
    M, N, K = sizes
    a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
    a[2, 5], a[7, K - 1], a[32, 0], b[3, N - 2], b[K - 1, 4] = np.nan, np.inf, -np.inf, np.inf, np.nan
    out = backend.put(np.full((M, N), 77, np.float32))
    kernel(out, backend.put(a), backend.put(b))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(backend.get(out), a @ b, equal_nan=True)


def test_vectors_are_loaded_only_where_all_of_them_are_whole(backend, launched):
    a, b = normal(36, 40, dtype=np.float32), normal(40, 68, dtype=np.float32, seed=1)
    taken = {}
    for name, view in VIEWS.items():
        check(backend, matmul.vectorized, view(a), view(b))
        taken[name] = launched.pop().startswith("matmul_vectorized")
    assert [name for name in VIEWS if taken[name]] == [
        "as it is",
        "transposed",
        "rows reversed",
        "every other row",
        "one row",
    ]
    for M, N, K in ((36, 66, 40), (36, 68, 42)):  # a row of out, or of a, ends within a vector
        check(backend, matmul.vectorized, normal(M, K, dtype=np.float32), normal(K, N, dtype=np.float32))
        assert launched.pop() == "matmul_register_tile<T, 4>"
    check(backend, matmul.vectorized, normal(36, 42), normal(42, 66))
    assert launched.pop() == "matmul_vectorized<T, 4>"  # in float64 a vector is two elements


@pytest.mark.parametrize("kernel", [matmul.register_tile, matmul.vectorized])
@pytest.mark.parametrize("sizes", [(20, 24, 12), (5, 7, 9), (129, 3, 1)])
def test_large_tiles(backend, kernel, sizes, launched):
    M, N, K = sizes
    a, b = normal(matmul.MULTIPROCESSORS, M, K, dtype=np.float32), normal(K, N, dtype=np.float32)
    check(backend, kernel, a, b)
    check(backend, kernel, a.swapaxes(1, 2).copy().swapaxes(1, 2), b.T.copy().T)
    assert all(name.endswith("<float, 8>") for name in launched) and len(launched) == 2


# ---- warp tiles --------------------------------------------------------------------------------------------

TILINGS = [*matmul_warp_tile.OF_VECTORS, *matmul_warp_tile.OF_ELEMENTS]


@pytest.mark.parametrize("number", range(len(TILINGS)))
def test_every_tiling(backend, number, launched):
    """More than a tile and than a step in every direction, in all layouts, and a rest of K."""
    tiling, vectors = TILINGS[number], number < len(matmul_warp_tile.OF_VECTORS)
    M, N, K = tiling.block_m + 4, tiling.block_n + 4, 2 * tiling.depth + 4
    if not vectors:
        M, N, K = M - 1, N - 1, K - 1
    run = functools.partial(matmul_warp_tile.warp_tile, tiling=tiling)
    a, b = normal(M, K, dtype=np.float32), normal(K, N, dtype=np.float32, seed=1)
    columns_a, columns_b = a.T.copy().T, b.T.copy().T
    check(backend, run, a, columns_b)
    check(backend, run, columns_a, b)
    in_parts(backend, run, a, b, tiling.depth)
    kernels = matmul_warp_tile.OF_VECTORS if vectors else matmul_warp_tile.OF_ELEMENTS
    assert launched == [kernels[tiling].expression] * 3


def in_parts(backend, run, a, b, part):
    """``run`` makes a product of each part of K."""
    M, K, N = *a.shape, b.shape[1]
    out = backend.put(np.full((-(-K // part), M, N), np.nan, a.dtype))
    run(out, backend.put(a), backend.put(b), part)
    for begin, found in zip(range(0, K, part), backend.get(out), strict=True):
        of_part = slice(begin, begin + part)
        expected = a[:, of_part].astype(np.float64) @ b[of_part].astype(np.float64)
        assert np.allclose(found, expected, rtol=0, atol=1e-5 * part**0.5)


@pytest.mark.parametrize("rung", RUNGS[2:-1])
def test_rungs_make_products_of_parts(backend, rung):
    a, b = normal(33, 100, dtype=np.float32), normal(100, 35, dtype=np.float32, seed=1)
    in_parts(backend, rung, a, b, 32)
    in_parts(backend, gemv.gemv, a, b[:, :1].copy(), 32)
    in_parts(backend, gemv.gemv, a[:1], b, 32)
    with pytest.raises(ValueError, match="do not give"):
        rung(backend.put(np.empty((3, 33, 35), np.float32)), backend.put(a), backend.put(b), 32)


def test_plans():
    """Large tiles for large products, small ones and parts of K where tiles are few."""
    plan, tile = matmul_warp_tile.plan, matmul_warp_tile
    assert plan(1, 4096, 4096, 4096)[1:] == (1, tile.LARGE)
    assert plan(1, 512, 512, 512)[1:] == (1, tile.TINY)
    assert plan(1, 4096, 4096, 4096, elements=True)[1:] == (1, tile.LARGE_ELEMENTS)
    assert plan(1, 33, 33, 33, elements=True)[1:] == (1, tile.TINY)
    assert plan(1, 128, 128, 2**17, most_parts=512).parts * 4 >= matmul.MULTIPROCESSORS
    assert plan(1, 128, 128, 2**17).parts == plan(1, 8192, 8192, 8192, most_parts=32).parts == 1


def test_strides_beyond_32_bits_take_vectorized(launched):
    a = np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (2, 2), (4 * 2**30, 4))
    assert not matmul_warp_tile._has_short_strides(matmul.describe(np.empty((2, 2), np.float32), a, a)[0])


# ---- vectors -----------------------------------------------------------------------------------------------

VECTORS = [(1, 1), (7, 1), (1, 33), (31, 32), (33, 31), (70, 300), (40, 1000), (2, 5000)]  # (M, K)


@pytest.mark.parametrize("kernel", [gemv.gemv, split_k.split_k])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [*VECTORS, (1, 2 * split_k.VECTOR_PART + 5), (35, 2 * split_k.VECTOR_PART)])
def test_matrix_times_vector_and_vector_times_matrix(backend, kernel, dtype, sizes):
    M, K = sizes
    matrix, vector = normal(M, K, dtype=dtype), normal(K, dtype=dtype, seed=1)
    for a in (matrix, matrix.T.copy().T):
        check(backend, kernel, a, vector[:, None])
        check(backend, kernel, vector[None], a.T)


@pytest.mark.parametrize("view", VIEWS)
def test_gemv_reads_any_strides_in_place(backend, view):
    matrix = VIEWS[view](normal(40, 68, dtype=np.float32))
    vectors = normal(4, 68, dtype=np.float32, seed=1)
    for vector in (vectors[1], vectors[2, ::-1], vectors.T.copy()[:, 3], np.broadcast_to(vectors[0, :1], 68)):
        check(backend, gemv.gemv, matrix, vector[:, None])
        check(backend, gemv.gemv, vector[None], matrix.T)


def test_gemv_batches(backend):
    check(backend, gemv.gemv, normal(4, 1, 3, 5), normal(2, 5, 1, seed=1))
    check(backend, gemv.gemv, normal(2, 1, 1, 40), normal(3, 40, 34, seed=1))
    check(backend, gemv.gemv, normal(3, 34, 40).swapaxes(1, 2), normal(2, 1, 34, 1, seed=1))


def test_gemv_with_nan_and_infinity(backend):
    a, b = np.ones((33, 40), np.float32), np.ones((40, 1), np.float32)
    a[2, 5], a[7, 39], a[32, 0], a[8, 1], a[8, 2] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = a @ b
    for matrix in (a, a.T.copy().T):
        out = backend.put(np.full((33, 1), 77, np.float32))
        gemv.gemv(out, backend.put_strided(matrix), backend.put(b))
        assert np.array_equal(backend.get(out), expected, equal_nan=True)


# ---- vectors of 16 bits ------------------------------------------------------------------------------------


def check_halves(backend, run, a, b, bias=None):
    """``run`` gives a @ b + bias, with sums in float32 that are rounded once."""
    out = backend.put(np.full((*a.shape[:-1], b.shape[-1]), np.nan, a.dtype))
    extra = {} if bias is None else {"bias": backend.put(bias)}
    run(out, backend.put_strided(a), backend.put_strided(b), **extra)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected, magnitude = wide_a @ wide_b, abs(wide_a) @ abs(wide_b)
    if bias is not None:
        expected, magnitude = expected + bias.astype(np.float64), magnitude + abs(bias.astype(np.float64))
    epsilon, smallest = (2.0**-11, 2.0**-25) if a.dtype == np.float16 else (2.0**-8, 0)
    bound = (a.shape[-1] + 2) * 2.0**-24 * magnitude + epsilon * abs(expected) + smallest
    assert (abs(backend.get(out).astype(np.float64) - expected) <= bound * 1.001).all()


@pytest.mark.parametrize("run", [gemv.gemv, split_k.split_k])
@pytest.mark.parametrize("sizes", [*VECTORS, (40, 72), (9, 2 * split_k.VECTOR_PART + 8)])
def test_halves_times_vectors(backend, run, half, sizes):
    M, K = sizes
    matrix, vector = normal(M, K, dtype=np.float32).astype(half), normal(K, seed=1).astype(half)
    for a in (matrix, matrix.T.copy().T):
        check_halves(backend, run, a, vector[:, None], normal(1, seed=2).astype(half))
        check_halves(backend, run, vector[None], a.T, normal(M, seed=2).astype(half))


@pytest.mark.parametrize("view", VIEWS)
def test_gemv_reads_halves_of_any_strides_in_place(backend, half, view):
    matrix = VIEWS[view](normal(40, 72).astype(half))
    vectors = normal(4, 72, seed=1).astype(half)
    for vector in (vectors[1], vectors[2, ::-1], vectors.T.copy()[:, 3]):
        check_halves(backend, gemv.gemv, matrix, vector[:, None])
        check_halves(backend, gemv.gemv, vector[None], matrix.T)


def test_gemv_of_halves_in_batches(backend, half):
    a, b = normal(3, 2, 1, 40).astype(half), normal(3, 2, 40, 34, seed=1).astype(half)
    check_halves(backend, gemv.gemv, a, b, normal(34, seed=2).astype(half))
    check_halves(backend, gemv.gemv, b, normal(3, 2, 34, 1).astype(half), normal(1, seed=2).astype(half))
    for M, N, K in ((1, 4, 0), (3, 1, 0), (1, 0, 5), (0, 1, 5)):
        check_halves(backend, gemv.gemv, *(np.ones(shape, half) for shape in ((M, K), (K, N))))


def test_gemv_of_halves_with_nan_and_infinity(backend, half):
    a, b = np.ones((33, 40), half), np.ones((40, 1), half)
    a[2, 5], a[7, 39], a[32, 0] = np.nan, np.inf, -np.inf
    for matrix in (a, a.T.copy().T):
        out = backend.put(np.full((33, 1), 77, half))
        gemv.gemv(out, backend.put_strided(matrix), backend.put(b))
        found = backend.get(out).astype(np.float32)
        assert np.array_equal(found, a.astype(np.float32).sum(1, keepdims=True), equal_nan=True)


# ---- a long K ----------------------------------------------------------------------------------------------


def test_parts_of_a_long_K():
    """As many parts as there are idle multiprocessors and K can feed."""
    part, vector_part, blocks = split_k.PART, split_k.VECTOR_PART, 2 * matmul.MULTIPROCESSORS

    def parts(*sizes, dtype=np.float64):
        return split_k.parts_of(np.dtype(dtype), *sizes)

    assert parts(1, 64, 64, 4 * part) == 4
    assert parts(1, 64, 64, 10**9) == blocks
    assert parts(2, 128, 128, 10**9) == blocks // 8
    assert parts(1, 64 * blocks, 64, 10**9) == 1
    assert parts(1, 1, 1, 2 * vector_part - 1) == 1
    assert parts(1, 1, 1, 2 * vector_part) == 2
    assert parts(0, 64, 64, 10**9) == parts(1, 0, 64, 10**9) == 1
    assert parts(1, 64, 64, 2 * part - 1, dtype=np.float32) == 1
    assert parts(1, 64, 64, 64 * part, dtype=np.float32) > 32


@pytest.mark.parametrize("parts", [1, 2, 5, 300])
@pytest.mark.parametrize("size", [1, 33, 1000])
def test_parts_are_added_up(backend, parts, size):
    partial, out = normal(parts, size), backend.put(np.full(size, np.nan))
    split_k.add_up(out, backend.put(partial))
    assert np.allclose(backend.get(out), partial.sum(0), rtol=0, atol=1e-13 * parts)


def test_parts_of_channels_are_added_up(backend, half):
    """Images of 3 channels, plus a bias of each, through ReLU, and rounded once."""
    partial, bias = normal(5, 2, 3, 7, dtype=np.float32), normal(3, seed=1).astype(half)
    out = backend.put(np.full((2, 3, 7), np.nan, half))
    split_k.add_up(out, backend.put(partial), backend.put(bias), relu=True, channels=3, plane=7)
    sums = partial.astype(np.float64).sum(0) + bias.astype(np.float64)[:, None]
    found = backend.get(out).astype(np.float64)
    assert np.allclose(found, np.maximum(sums, 0), rtol=2.0**-8, atol=1e-6)


def test_split_k_launches_a_product_of_parts_and_their_sum(backend, launched):
    check(backend, split_k.split_k, normal(33, LONG + 4), normal(LONG + 4, 34, seed=1))
    assert launched == ["matmul_vectorized<T, 4>", "split_k_sum<double, double>"]
    check(backend, split_k.split_k, normal(7, LONG, dtype=np.float32), normal(LONG, 8, dtype=np.float32))
    assert launched[2:] == ["matmul_tiled<T>", "split_k_sum<float, float>"]


# ---- a bias ------------------------------------------------------------------------------------------------


def check_bias(backend, run, a, b):
    """With a bias the result is that without, plus the bias of each column: in float32, the same bits."""
    bias = normal(b.shape[1], dtype=a.dtype, seed=3)
    bias[::7] = np.nan
    out = [backend.put(np.full((a.shape[0], b.shape[1]), np.nan, a.dtype)) for _ in range(2)]
    run(out[0], backend.put_strided(a), backend.put_strided(b))
    run(out[1], backend.put_strided(a), backend.put_strided(b), bias=backend.put(bias))
    np.testing.assert_array_equal(backend.get(out[1]), backend.get(out[0]) + bias)


@pytest.mark.parametrize("number", range(len(TILINGS)))
def test_every_tiling_adds_a_bias(backend, number, launched):
    tiling = TILINGS[number]
    rest = 4 if number < len(matmul_warp_tile.OF_VECTORS) else 3
    run = functools.partial(matmul_warp_tile.warp_tile, tiling=tiling)
    a = normal(tiling.block_m + rest, 12, dtype=np.float32)
    check_bias(backend, run, a, normal(12, tiling.block_n + rest, dtype=np.float32, seed=1))
    assert len(launched) == 2 + (tiling is matmul_warp_tile.LARGE_ELEMENTS)
    check_bias(backend, matmul_warp_tile.warp_tile, a[:, :0], np.empty((0, 20), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_k_adds_a_bias(backend, dtype, launched):
    """In the last launch; where K is not cut, and the rung that makes the product knows none, in one more."""
    for (M, N, K), launches in (
        ((33, 34, 64 * split_k.PART), 2 + 2),
        ((33, 34, 40), 1 + (1 if dtype == np.float32 else 2)),
        ((1, 34, 40), 1 + 1),
        ((1, 34, 2 * split_k.VECTOR_PART), 2 + 2),
        ((33, 1, 40), 1 + 1),
    ):
        a, b = normal(M, K, dtype=dtype), normal(K, N, dtype=dtype, seed=1)
        del launched[:]
        check_bias(backend, split_k.split_k, a, b)
        assert len(launched) == launches


# ---- all of them -------------------------------------------------------------------------------------------


def test_products_refuse_what_does_not_fit():
    a = np.ones((3, 4), np.float32)
    for kernel in RUNGS:
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 4\) do not give \(3, 4\)"):
            kernel(np.empty_like(a), a, a)
        with pytest.raises(
            TypeError, match=r"argument `const (T|float)\* b` expects an array of float32, got one of float64"
        ):
            kernel(np.empty((3, 3), np.float32), a, a.T.astype(np.float64))
    with pytest.raises(ValueError, match=r"neither M nor N is 1 in an output of shape \(3, 3\)"):
        gemv.gemv(np.empty((3, 3), np.float32), a, a.T)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("aligned", [True, False])
def test_every_thread_order_gives_the_same_bits(aligned):
    M, N, K = (36, 36, LONG) if aligned else (35, 33, LONG + 1)
    a, b = normal(M, K, dtype=np.float32), normal(K, N, dtype=np.float32, seed=1)

    def results():
        found = [np.empty((M, N), np.float32) for _ in RUNGS]
        for out, kernel in zip(found, RUNGS, strict=True):
            kernel(out, a, b)
        for matrix in (a, a.T.copy().T):
            found.append(np.empty((M, 1), np.float32))
            gemv.gemv(found[-1], matrix, b[:, :1])
        return b"".join(out.tobytes() for out in found)

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.checks(False), sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
