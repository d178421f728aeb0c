"""Products of a matrix and a few vectors against NumPy in float64, on the simulator and on a card."""

import itertools

import numpy as np
import pytest
from simulated import VIEWS, normal

from minigrad.kernels import sim
from minigrad.kernels.cuda import matmul_skinny
from minigrad.kernels.cuda.matmul_skinny import AT_ONCE, MOST, PART_STEPS, STEP_BYTES, WARPS, skinny

pytestmark = pytest.mark.usefixtures("checked_accesses")


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request):
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(request.param)


def check(backend, a, b, bias=None, parts=None):
    """a @ b + bias comes out, with sums in float32 that are rounded once, and the same transposed."""
    for left, right, own_bias in ((a, b, bias), (b.swapaxes(-1, -2), a.swapaxes(-1, -2), None)):
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left, right = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (left, right))
        out = backend.put(np.full((*batch, left.shape[-2], right.shape[-1]), np.nan, left.dtype))
        extra = {} if own_bias is None else {"bias": backend.put(own_bias)}
        skinny(out, backend.put_strided(left), backend.put_strided(right), parts=parts, **extra)
        wide = [x.astype(np.float64) for x in (left, right)]
        expected, magnitude = wide[0] @ wide[1], abs(wide[0]) @ abs(wide[1])
        if own_bias is not None:
            expected, magnitude = expected + own_bias.astype(float), magnitude + abs(own_bias.astype(float))
        rounding, smallest = {"float32": (2.0**-24, 0), "float16": (2.0**-11, 2.0**-25)}.get(
            left.dtype.name, (2.0**-8, 0)
        )
        bound = (left.shape[-1] + 2) * 2.0**-24 * magnitude + rounding * abs(expected) + smallest
        assert (abs(backend.get(out).astype(np.float64) - expected) <= bound * 1.001).all()


# (rows of the matrix, vectors, K): less than a block, a step or a vector; whole ones; a little more; as many
# steps as warps have at once, and then some.
SIZES = [
    (1, 1, 1),
    (3, 2, 5),
    (32, 8, 32),
    (40, 5, 72),
    (33, 16, 65),
    (70, 9, 200),
    (24, 3, WARPS * AT_ONCE * STEP_BYTES // 2 + 40),
    (37, MOST, 2 * WARPS * AT_ONCE * STEP_BYTES // 2 + 33),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(backend, dtype, sizes):
    M, N, K = sizes
    a, b, bias = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate(((M, K), (K, N), (N,))))
    check(backend, a, b, bias)
    check(backend, a.T.copy().T, b.T.copy().T)


@pytest.mark.parametrize("view", VIEWS)
def test_a_matrix_of_any_strides_is_read_in_place(backend, dtype, view):
    matrix, vectors = normal(40, 72).astype(dtype), normal(72, 6, seed=1).astype(dtype)
    for turned in (matrix, matrix.T.copy().T):
        check(backend, VIEWS[view](turned), vectors)


@pytest.mark.parametrize("view", VIEWS)
def test_vectors_of_any_strides(backend, dtype, view):
    check(backend, normal(40, 72).astype(dtype), VIEWS[view](normal(12, 72, seed=1).astype(dtype)).T)


def test_batches(backend, dtype):
    def factors(left, right):
        return normal(*left).astype(dtype), normal(*right, seed=1).astype(dtype)

    check(backend, *factors((3, 2, 40, 24), (3, 2, 24, 6)), normal(6, seed=2).astype(dtype))
    check(backend, *factors((40, 24), (3, 2, 24, 6)))  # which share the matrix
    check(backend, *factors((3, 1, 40, 24), (2, 24, 6)))
    check(backend, *factors((3, 2, 9, 13), (13, 6)))  # or the vectors, which are copied
    a, b = factors((3, 40, 24), (24, 3, 6))
    check(backend, a.swapaxes(0, 1).copy().swapaxes(0, 1), b.swapaxes(0, 1))


@pytest.mark.parametrize("K", [8, 7])  # of 7 the vectors are copied, too
def test_more_batch_dimensions_than_the_kernel_takes(backend, dtype, K):
    matrix, vectors = normal(2, 1, 2, 1, 2, 40, K), normal(1, 2, 1, 2, 1, K, 4, seed=1)
    check(backend, matrix.astype(dtype), vectors.astype(dtype))
    turned = vectors.astype(dtype).swapaxes(-1, -2).copy().swapaxes(-1, -2)
    check(backend, matrix.astype(dtype), turned)


def test_empty_arrays(backend, dtype):
    for M, N, K in ((40, 4, 0), (3, 2, 0), (0, 3, 5), (4, 0, 5), (0, 0, 0)):
        for batch in ((), (3,), (0,)):
            check(backend, np.ones((*batch, M, K), dtype), np.ones((*batch, K, N), dtype))
    bias = normal(4, seed=2).astype(dtype)
    check(backend, np.ones((40, 0), dtype), np.ones((0, 4), dtype), bias)


def test_nan_and_infinity_stay_in_their_rows_and_columns(backend, dtype):
    for K in (64, 41):
        a, b = np.ones((35, K), dtype), np.ones((K, 5), dtype)
        a[2, 5], a[7, K - 1], a[32, 0] = np.nan, np.inf, -np.inf
        b[K - 1, 1], b[0, 3] = np.inf, np.nan
        for matrix in (a, a.T.copy().T):
            out = backend.put(np.full((35, 5), 77, dtype))
            skinny(out, backend.put_strided(matrix), backend.put(b))
            with np.errstate(invalid="ignore"):
                expected = a.astype(np.float32) @ b.astype(np.float32)
            assert np.array_equal(backend.get(out).astype(np.float32), expected, equal_nan=True)


@pytest.mark.parametrize("K", [300, 512])
def test_parts_of_K_are_added_up(backend, dtype, K):
    a, b, bias = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate(((40, K), (K, 6), (6,))))
    for parts in (2, 3, 50):
        check(backend, a, b, bias, parts)
        check(backend, a.T.copy().T, b, None, parts)


def test_the_plan_cuts_a_long_K_of_few_rows():
    assert matmul_skinny.plan(1, 4096, 8, 128).parts == 1
    assert matmul_skinny.plan(1, 32, 8, PART_STEPS).parts == 1
    assert matmul_skinny.plan(1, 32, 8, 64 * PART_STEPS).parts == 64
    assert matmul_skinny.plan(500, 32, 8, 64 * PART_STEPS).parts == 1  # many products fill a card as they are


def test_shapes_that_are_not_skinny():
    with pytest.raises(ValueError, match=r"neither M nor N is at most 16 in an output of shape \(17, 20\)"):
        skinny(*(np.ones(shape, np.float32) for shape in ((17, 20), (17, 3), (3, 20))))


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_every_thread_order_gives_the_same_bits(dtype):
    a, b = normal(36, 1000).astype(dtype), normal(1000, 6, seed=1).astype(dtype)

    def results():
        out = np.empty((36, 6), dtype)
        skinny(out, a, b, parts=2)
        return out.tobytes()

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.checks(False), sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
