"""Every rung of the matmul ladder, at every instruction-set level, against np.matmul in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_one_test import in_one_test

from minigrad.kernels import cpu

RUNGS = ["naive", "tiled", "packed", "threaded"]
CASES = [(rung, threads) for rung in RUNGS for threads in ((1, 2) if rung == "threaded" else (1,))]

rungs = pytest.mark.parametrize(("rung", "threads"), CASES)


def random_array(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype)


def compute(module, rung, a, b, threads=1):
    """The product by one rung, with ``a`` and ``b`` broadcast as the op layer does it."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.full((*batch, a.shape[-2], b.shape[-1]), np.nan, a.dtype)
    a = np.broadcast_to(a, batch + a.shape[-2:])
    b = np.broadcast_to(b, batch + b.shape[-2:])
    getattr(module, rung)(out, a, b, threads)
    return out


def assert_product(out, a, b):
    """``out`` is ``a @ b``, within the error bound of a sum of K products in any order.

    |error| <= gamma(K) (|a| @ |b|) with gamma(K) = K u / (1 - K u), u the unit roundoff: Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.5. One u more for rounding the float64 oracle.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    roundoff = np.finfo(out.dtype).eps / 2
    terms = a.shape[-1] * roundoff
    # The float64 oracle obeys the same bound with its own roundoff, which doubles it for float64.
    bound = (2 * terms / (1 - terms) + roundoff) * (np.abs(a) @ np.abs(b))
    error = np.abs(out - a @ b)
    assert out.shape == error.shape
    assert np.all(error <= bound), f"largest error {error.max()}, bound there {bound.flat[error.argmax()]}"


def views(shape, dtype, seed):
    """Arrays of this (rows, columns) shape in all kinds of strides."""
    rows, columns = shape
    yield "contiguous", random_array(shape, dtype, seed)
    yield "transposed", random_array((columns, rows), dtype, seed).T
    yield "sliced", random_array((2 * rows + 1, 3 * columns + 2), dtype, seed)[1::2, 2::3]
    yield "wide rows", random_array((rows, columns + 5), dtype, seed)[:, 3 : 3 + columns]
    yield "reversed", random_array(shape, dtype, seed)[::-1, ::-1]
    yield "reversed columns, transposed", random_array((columns, rows), dtype, seed)[:, ::-1].T
    yield "one row repeated", np.broadcast_to(random_array((1, columns), dtype, seed), shape)
    yield "one column repeated", np.broadcast_to(random_array((rows, 1), dtype, seed), shape)


# Around the edges of vectors (4, 8, 16), register tiles (6, 8, 12 rows; 8 to 32 columns) and cache blocks.
SIZES = [
    (1, 1, 1),
    (2, 3, 4),
    (5, 7, 9),
    (6, 16, 8),
    (7, 17, 31),
    (11, 31, 5),
    (12, 32, 64),
    (13, 33, 65),
    (25, 65, 63),
    (23, 15, 130),
    (67, 129, 17),
    (150, 150, 150),
    (800, 70, 30),
]


@rungs
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_numpy_around_tile_edges(kernel_module, rung, threads, size, dtype):
    M, N, K = size
    a, b = random_array((M, K), dtype), random_array((K, N), dtype, seed=1)
    assert_product(compute(kernel_module("matmul"), rung, a, b, threads), a, b)


@pytest.mark.parametrize(
    "size",
    [
        (340, 70, 800),  # several blocks along M and K
        (20, 2100, 40),  # along N; thin
        (190, 2100, 130),
        (30, 40, 2500),  # several blocks of K without packing
        (3, 600, 700),
        (400, 300, 310),
        (65, 2100, 600),  # more of b than is packed whole
        (134, 125, 90),  # few panels of b, and rows or columns of a in place
        (134, 61, 1023),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rung", "threads"), [("packed", 1), ("threaded", 1), ("threaded", 2), ("threaded", 3)]
)
@in_one_test("transpose", ["nn", "nt", "tn", "tt"])
def test_matches_numpy_across_cache_blocks(kernel_module, rung, threads, size, transpose, dtype):
    M, N, K = size
    a = random_array((K, M), dtype).T if transpose[0] == "t" else random_array((M, K), dtype)
    b = random_array((N, K), dtype, 1).T if transpose[1] == "t" else random_array((K, N), dtype, 1)
    assert_product(compute(kernel_module("matmul"), rung, a, b, threads), a, b)


@rungs
def test_any_strides(kernel_module, rung, threads, dtype):
    module = kernel_module("matmul")
    for M, N, K in [(14, 35, 19), (1, 37, 21), (37, 1, 21), (3, 40, 70)]:
        for a_name, a in views((M, K), dtype, seed=2):
            for b_name, b in views((K, N), dtype, seed=3):
                out = compute(module, rung, a, b, threads)
                try:
                    assert_product(out, a, b)
                except AssertionError as error:
                    raise AssertionError(f"a {a_name}, b {b_name}, {(M, N, K)}: {error}") from error


# Hypothesis runs inside one test per case; fixtures of a function would be shared between its examples.
@pytest.mark.parametrize("level", cpu.available_levels())
@rungs
def test_random_shapes(level, rung, threads):
    module = cpu.kernel_module("matmul", level)
    size = st.integers(0, 70)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(size, size, size, st.sampled_from([np.float32, np.float64]), st.data())
    def check(M, N, K, dtype, data):
        a_batch = data.draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1), (0,)]))
        b_batch = data.draw(st.sampled_from([(), (1,)] if 0 in a_batch else [(), (1,), (3,), (2, 1)]))
        a, b = random_array((*a_batch, M, K), dtype), random_array((*b_batch, K, N), dtype, seed=1)
        if data.draw(st.booleans()):
            a = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
        if data.draw(st.booleans()):
            b = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
        assert_product(compute(module, rung, a, b, threads), a, b)

    check()


@rungs
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((5, 9, 8), (8, 33)),  # folds into one product of 45 rows
        ((5, 1, 8), (8, 33)),  # the same, with one row in each
        ((9, 8), (5, 8, 33)),
        ((2, 3, 9, 8), (3, 8, 33)),
        ((2, 1, 9, 8), (1, 3, 8, 33)),
        ((1, 1, 9, 8), (1, 1, 8, 33)),
        ((3, 70, 64), (3, 64, 200)),  # more work than one thread's, in fewer products than even shares
        ((40, 40, 40), (40, 40, 40)),
    ],
    ids=str,
)
def test_batches(kernel_module, rung, threads, a_shape, b_shape, dtype):
    a, b = random_array(a_shape, dtype), random_array(b_shape, dtype, seed=1)
    assert_product(compute(kernel_module("matmul"), rung, a, b, threads), a, b)


BATCH_VIEWS = {
    "batch reversed": lambda base: base[::-1],
    "every second matrix": lambda base: base[:, ::2],
    "rows reversed": lambda base: base[..., ::-1, :],
    "batch axes swapped": lambda base: base.swapaxes(0, 1),
    "batch and row axes swapped": lambda base: base.swapaxes(1, 2),
    "rows and columns swapped": lambda base: base.swapaxes(2, 3),
    "batch inside the matrices": lambda base: base.transpose(2, 3, 0, 1),
}


@rungs
@pytest.mark.parametrize("view", BATCH_VIEWS.values(), ids=BATCH_VIEWS.keys())
def test_batches_of_views(kernel_module, rung, threads, view, dtype):
    a = view(random_array((4, 6, 9, 8), dtype))
    K = a.shape[-1]
    b = random_array((K, 21), dtype, seed=1)
    assert_product(compute(kernel_module("matmul"), rung, a, b, threads), a, b)
    batch_of_b = random_array((21, *a.shape[:2], K), dtype, seed=2).transpose(1, 2, 3, 0)
    assert_product(compute(kernel_module("matmul"), rung, a, batch_of_b, threads), a, batch_of_b)


@rungs
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0), (1, 4, 0), (4, 1, 0)], ids=str)
def test_empty_dimensions(kernel_module, rung, threads, shape, dtype):
    M, N, K = shape
    for batch in [(), (2,), (0,)]:
        out = compute(
            kernel_module("matmul"), rung, np.ones((*batch, M, K), dtype), np.ones((*batch, K, N), dtype)
        )
        np.testing.assert_array_equal(out, np.zeros((*batch, M, N), dtype))


@rungs
@pytest.mark.parametrize("size", [(9, 21, 13), (1, 21, 13), (21, 1, 13), (40, 40, 40)], ids=str)
def test_nan_and_infinity_stay_in_their_rows_and_columns(kernel_module, rung, threads, size, dtype):
    M, N, K = size
    a, b = np.abs(random_array((M, K), dtype)) + 1, np.abs(random_array((K, N), dtype, seed=1)) + 1
    a[0, 3], b[5, N - 1] = np.nan, np.inf
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            out = compute(kernel_module("matmul"), rung, left, right, threads)
            assert np.isnan(out[0]).all()
            assert np.isposinf(out[1:, -1]).all()
            assert np.isfinite(out[1:, :-1]).all()
    a[:, 5] = 0  # 0 * inf
    out = compute(kernel_module("matmul"), rung, a, b, threads)
    assert np.isnan(out[:, -1]).all()


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [(1250, 100, 70), (1207, 33, 513), (1205, 137, 389)], ids=str)
def test_many_rows_against_one_packed_b(kernel_module, size, threads, dtype):
    """At every level so many rows that each thread reads its own, in place or as copies, beside a bias."""
    M, N, K = size
    a, b, bias = (
        random_array((M, K + 3), dtype)[:, 1:-2],
        random_array((N, K), dtype, 1).T,
        random_array((N,), dtype, 2),
    )
    out = np.full((M, N), np.nan, dtype)
    kernel_module("matmul").threaded(out, a, b, threads, bias)
    assert_product(out, np.hstack([a, np.ones((M, 1), dtype)]), np.vstack([b, bias]))


@in_one_test("threads", [2, 3])
@pytest.mark.parametrize(
    "size",
    [(16, 16, 8192), (5, 7, 10007), (1, 1, 6144), (32, 32, 6145), (1, 1024, 6200), (150, 101, 6149)],
    ids=str,
)
def test_threads_share_a_long_depth(kernel_module, size, threads, dtype):
    """Few outputs, or short sides, each a long sum: the threads take parts of it."""
    M, N, K = size
    module = kernel_module("matmul")
    bias = random_array((N,), dtype, seed=2)
    for a, b in (
        (random_array((M, K), dtype), random_array((K, N), dtype, seed=1)),
        (random_array((K, M), dtype).T, random_array((N, 2 * K), dtype, seed=1)[:, ::-2].T),
    ):
        out = compute(module, "threaded", a, b, threads)
        assert_product(out, a, b)
        np.testing.assert_array_equal(compute(module, "threaded", a, b, threads), out)
        with_bias = np.empty_like(out)
        module.threaded(with_bias, a, b, threads, bias)
        column = np.ones((M, 1), dtype)
        assert_product(with_bias, np.hstack([a, column]), np.vstack([b, bias[None]]))


@in_one_test("threads", [1, 2, 3])
def test_same_thread_count_gives_same_bits(kernel_module, threads, dtype):
    a, b = random_array((230, 301), dtype), random_array((301, 190), dtype, seed=1)
    module = kernel_module("matmul")
    first = compute(module, "threaded", a, b, threads)
    shifted = np.empty(b.size + 1, dtype)[1:].reshape(b.shape)  # at another alignment
    shifted[...] = b
    for _ in range(3):
        np.testing.assert_array_equal(compute(module, "threaded", a, shifted, threads), first)


@rungs
def test_writes_nothing_outside_out(kernel_module, rung, threads, dtype):
    for M, N, K in [(7, 19, 5), (13, 33, 40), (1, 5, 3), (5, 1, 3), (130, 131, 132)]:
        guarded = np.full(M * N + 128, -1, dtype)
        out = guarded[64:-64].reshape(M, N)
        getattr(kernel_module("matmul"), rung)(out, np.ones((M, K), dtype), np.ones((K, N), dtype), threads)
        np.testing.assert_array_equal(out, np.full((M, N), K, dtype))
        assert (guarded[:64] == -1).all() and (guarded[-64:] == -1).all()


@rungs
def test_read_only_inputs(kernel_module, rung, threads):
    a, b = random_array((4, 5), np.float32), random_array((5, 6), np.float32)
    a.flags.writeable = b.flags.writeable = False
    assert_product(compute(kernel_module("matmul"), rung, a, b, threads), a, b)


@pytest.mark.parametrize("rung", RUNGS)
def test_rejects_what_would_corrupt_memory(kernel_module, rung):
    run = getattr(kernel_module("matmul"), rung)
    a, b, out = np.ones((2, 3)), np.ones((3, 4)), np.ones((2, 4))
    packed_record = np.zeros((2, 3), np.dtype([("byte", "i1"), ("value", "f8")]))["value"]
    read_only = out.copy()
    read_only.flags.writeable = False
    for arguments, error in [
        ((out, a, b.T), ValueError),
        ((out.T, a, b), ValueError),
        ((np.ones((1, 4)), a, b), ValueError),
        ((np.ones((4, 8))[::2, ::2][:2], a, b), ValueError),
        ((read_only, a, b), ValueError),
        ((out, a, b[None]), ValueError),
        ((np.ones((5, 2, 4)), np.ones((5, 2, 3)), np.ones((4, 3, 4))), ValueError),
        ((np.ones(2), np.ones(2), np.ones(2)), ValueError),
        ((out, packed_record, b), ValueError),
        ((out, a.astype(">f8"), b), ValueError),
        ((out, a.astype(np.float32), b), TypeError),
        ((out.astype(np.float32), a, b), TypeError),
        ((out, a, b.astype(np.int64)), TypeError),
        ((out.astype(int), a.astype(int), b.astype(int)), TypeError),
        ((out.astype(np.float16), a.astype(np.float16), b.astype(np.float16)), TypeError),
        ((None, a, b), TypeError),
        ((out, None, b), TypeError),
        ((out, a, [[1.0]]), TypeError),
    ]:
        with pytest.raises(error):
            run(*arguments, 1)
    for threads in (0, -1):  # as few as there can be
        run(out, a, b, threads)
        np.testing.assert_array_equal(out, 3)


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "size",
    [*SIZES, (1, 300, 200), (300, 1, 200), (3, 70, 40), (340, 70, 800), (150, 2100, 40), (9, 21, 0)],
    ids=str,
)
def test_bias_is_added_to_every_row(kernel_module, threads, size, dtype):
    M, N, K = size
    a, b, bias = (random_array(s, dtype, seed) for seed, s in enumerate([(M, K), (N, K), (N,)]))
    out = np.full((2, M, N), np.nan, dtype)
    batch = np.broadcast_to(a, (2, M, K)), np.broadcast_to(b.T, (2, K, N))
    kernel_module("matmul").threaded(out, *batch, threads, bias)
    # The bias is one more term of the sum: a column of ones and a row of biases.
    longer = np.hstack([a, np.ones((M, 1), dtype)]), np.vstack([b.T, bias])
    assert_product(out[0], *longer)
    np.testing.assert_array_equal(out[1], out[0])


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "size",
    [
        *SIZES,
        *((1, 300, 200), (300, 1, 200), (3, 70, 40), (340, 70, 800), (150, 2100, 40), (9, 21, 0)),
        *((70, 150, 1601), (1250, 200, 1900), (5, 7, 10007)),  # several blocks of K, or parts of threads
    ],
    ids=str,
)
def test_relu_comes_last(kernel_module, threads, size, dtype):
    """Bit for bit: of the whole sum and the bias, never of a part of it; and NaN stays."""
    M, N, K = size
    module = kernel_module("matmul")
    a, b, bias = (random_array(s, dtype, seed) for seed, s in enumerate([(M, K), (N, K), (N,)]))
    if K:
        a[-1, K // 2] = np.nan
    for left, right in ((a, b.T), (np.asfortranarray(a), np.ascontiguousarray(b.T))):
        for addend in (None, bias):
            out, rectified = np.full((2, M, N), np.nan, dtype)
            module.threaded(out, left, right, threads, addend)
            module.threaded(rectified, left, right, threads, addend, True)
            np.testing.assert_array_equal(rectified, np.maximum(out, 0))


def test_rejects_a_bias_that_does_not_fit(kernel_module):
    out, a, b = np.ones((2, 4)), np.ones((2, 3)), np.ones((3, 4))
    for bias, error in [
        (np.ones(3), ValueError),
        (np.ones((1, 4)), ValueError),
        (np.ones(8)[::2], ValueError),
        (np.ones(4, np.float32), TypeError),
    ]:
        with pytest.raises(error):
            kernel_module("matmul").threaded(out, a, b, 1, bias)


@in_one_test("threads", [1, 2])
@pytest.mark.parametrize("shape", [(9, 21), (0, 21), (2, 3, 21), (140, 150), (3, 50, 150)], ids=str)
def test_product_makes_the_array(kernel_module, threads, shape, dtype):
    """Of a matrix, or a batch of them, with a matrix that lies in any way, and perhaps a bias and ReLU."""
    product, N = kernel_module("matmul").product, 35
    a, bias = random_array(shape, dtype), random_array((N,), dtype, seed=2)
    for b in (random_array((shape[-1], N), dtype, 1), random_array((N, shape[-1]), dtype, 1).T):
        assert_product(product(a, b, threads), a, b)
        with_bias = np.concatenate([a, np.ones((*shape[:-1], 1), dtype)], axis=-1), np.vstack([b, bias])
        found = product(a, b, threads, bias)
        assert_product(found, *with_bias)
        np.testing.assert_array_equal(product(a, b, threads, bias, True), np.maximum(found, 0))


@in_one_test("threads", [1, 2])
@pytest.mark.parametrize("batch", [(5,), (2, 3), (0,), (1, 1, 4)], ids=str)
def test_product_of_batches(kernel_module, threads, batch, dtype):
    """Two batches of one shape, whose matrices lie in any way."""
    product, (M, K, N) = kernel_module("matmul").product, (33, 20, 35)
    a, bias = random_array((*batch, M, K), dtype), random_array((N,), dtype, seed=2)
    for b in (
        random_array((*batch, K, N), dtype, 1),
        random_array((*batch, N, K), dtype, 1).swapaxes(-1, -2),
    ):
        found = product(a, b, threads)
        assert found.shape == (*batch, M, N)
        assert_product(found, a, b)
        np.testing.assert_array_equal(product(a[..., ::-1, :], b, threads), found[..., ::-1, :])
        np.testing.assert_array_equal(product(a, b, threads, bias), found + bias)


def test_product_leaves_what_it_does_not_take(kernel_module):
    product = kernel_module("matmul").product
    a, batch, b, bias = np.ones((2, 3)), np.ones((5, 2, 3)), np.ones((3, 4)), np.ones(4)
    for arguments in [
        (batch, np.ones((1, 3, 4))),
        (batch, np.ones((4, 3, 4))),
        (batch, np.ones((5, 5, 3, 4))),
        (batch[None], np.ones((5, 3, 4))),
        (a[0], b),
        (a, b[0]),
        (a, batch.swapaxes(1, 2)),
        (batch[::2], b),
        (batch[:0], b),
        (a, b.T),
        (a.astype(np.float32), b),
        (a.astype(int), b.astype(int)),
        (a.tolist(), b),
    ]:
        assert product(*arguments, 1) is None
    for unfit in (np.ones(3), np.ones((1, 4)), np.ones(8)[::2], np.ones(4, np.float32), 1.0):
        assert product(a, b, 1, unfit) is None
    np.testing.assert_array_equal(product(batch, b, 1, bias), np.full((5, 2, 4), 4.0))
