"""Asynchronous copies and tensor cores: the simulator's twins of the instructions, and the matmul on them."""

import functools
import itertools
import re

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.arguments import bfloat16_bits
from minigrad.kernels.cuda import matmul_tensor_core
from minigrad.kernels.launch import CudaKernel

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

LANES = np.arange(32)
G, T = LANES // 4, LANES % 4  # NVIDIA's groupID and threadID_in_group


@pytest.fixture
def place(backend):
    """Where the instructions are tested: the simulator, and a card that has them."""
    if not matmul_tensor_core.is_supported(backend.put(np.zeros(1))):
        pytest.skip("the card's compute capability is below 8.0: it has neither cp.async nor these mma")
    return backend


def run(code, *args, block=32, place=None):
    """What the kernel ``k`` makes of its first argument; on the simulator, unless another place is given."""
    if place is not None:
        args = [place.put(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    CudaKernel(code, "k").launch(1, block, args)
    return args[0] if place is None else place.get(args[0])


def widened(bfloat16):
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def packed(x):
    """Pairs of 16-bit elements (..., 2 n) as (..., n) words, the first in the lower half."""
    x = x.view(np.uint16).astype(np.uint32)
    return x[..., 0::2] | x[..., 1::2] << 16


# ---- mma: (16, K) @ (K, 8), with the fragments as the PTX ISA draws them -----------------------------------


def tf32_bits(x):
    """Rounded to 10 bits of mantissa, ties away from zero, by way of decimal exponents."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = np.abs(mantissa) * 2**11
    return np.copysign(np.ldexp(np.floor(scaled + 0.5) / 2**11, exponent), x).astype(np.float32)


FORMATS = {  # name: (K, to the bits of an array, from the bits to the numbers)
    "tf32": (8, lambda x: tf32_bits(x), lambda x: x),
    "f16": (16, lambda x: x.astype(np.float16), lambda x: x),
    "bf16": (16, bfloat16_bits, widened),
}


def a_fragments(name, a):
    """(16, K) as the four registers of each lane: the formulas of "Matrix Fragments for mma"."""
    fragments = np.zeros((32, 4), np.uint32)
    if name == "tf32":  # row = g or g + 8, column = t or t + 4
        for i in range(4):
            fragments[:, i] = a.view(np.uint32)[G + 8 * (i % 2), T + 4 * (i // 2)]
        return fragments
    for i in range(4):  # elements 2 i and 2 i + 1: column = 2 t + (i & 1), from the second half on + 8
        row, column = G + 8 * (i % 2), 2 * T + 8 * (i // 2)
        fragments[:, i] = packed(np.stack([a[row, column], a[row, column + 1]], axis=-1))[:, 0]
    return fragments


def b_fragments(name, b):
    """(K, 8) as the two registers of each lane."""
    fragments = np.zeros((32, 2), np.uint32)
    for i in range(2):
        if name == "tf32":  # row = t or t + 4, column = g
            fragments[:, i] = b.view(np.uint32)[T + 4 * i, G]
        else:
            row = 2 * T + 8 * i
            fragments[:, i] = packed(np.stack([b[row, G], b[row + 1, G]], axis=-1))[:, 0]
    return fragments


def c_fragments(c):
    """(16, 8) as the four registers of each lane."""
    return np.stack([c[G + 8 * (i // 2), 2 * T + i % 2] for i in range(4)], axis=-1)


MMA = """
#include "tensor_core.cuh"
__global__ void k(float* out, const float* c, const unsigned* a, const unsigned* b) {
    int lane = threadIdx.x;
    float sums[4];
    unsigned left[4], right[2];
    for (int i = 0; i < 4; i++) sums[i] = c[4 * lane + i], left[i] = a[4 * lane + i];
    for (int i = 0; i < 2; i++) right[i] = b[2 * lane + i];
    mma_NAME(sums, left, right);
    for (int i = 0; i < 4; i++) out[4 * lane + i] = sums[i];
}"""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_mma(place, name, seed, rng):
    """The simulator rounds once. A card adds a few products at a time, and cuts all of them, and their sum,
    off at the last of the largest one's 24 bits (https://doi.org/10.7717/peerj-cs.330)."""
    K, to_bits, to_numbers = FORMATS[name]
    a, b = to_bits(rng.standard_normal((16, K))), to_bits(rng.standard_normal((K, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    fragments = np.zeros((32, 4), np.float32), c_fragments(c), a_fragments(name, a), b_fragments(name, b)
    with sim.seed(seed), sim.checks():
        out = run(MMA.replace("NAME", name), *fragments, place=place)
    left, right = to_numbers(a).astype(np.float64), to_numbers(b).astype(np.float64)
    magnitude = np.abs(c) + np.abs(left) @ np.abs(right)
    error = np.abs(out - c_fragments(c + left @ right))
    each = 2.0**-24 if isinstance(place.put(c), np.ndarray) else 2.0**-22  # for a term, and its share of sums
    assert (error <= (K + 1) * each * c_fragments(magnitude)).all()


def test_mma_tf32_ignores_the_lower_bits(rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    zero = np.zeros((32, 4), np.float32)
    code = MMA.replace("NAME", "tf32")
    full = run(code, zero.copy(), zero, a_fragments("tf32", a), b_fragments("tf32", b))
    cut_a, cut_b = ((x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32) for x in (a, b))
    cut = run(code, zero.copy(), zero, a_fragments("tf32", cut_a), b_fragments("tf32", cut_b))
    np.testing.assert_array_equal(full, cut)


@pytest.mark.parametrize("name", FORMATS)
def test_mma_takes_what_missing_lanes_would_hold_for_nan(name, rng):
    """Of the first half of a warp, which has the left columns of b."""
    K, to_bits, to_numbers = FORMATS[name]
    a, b = to_bits(rng.standard_normal((16, K))), to_bits(rng.standard_normal((K, 8)))
    c = np.zeros((32, 4), np.float32)
    out = run(MMA.replace("NAME", name), c.copy(), c, a_fragments(name, a), b_fragments(name, b), block=16)
    expected = c_fragments(to_numbers(a).astype(np.float64) @ to_numbers(b).astype(np.float64))
    left = T[:16] < 2
    np.testing.assert_allclose(out[:16][left], expected[:16][left], rtol=0, atol=1e-5)
    assert np.isnan(out[:16][~left]).all() and not out[16:].any()


def test_to_tf32_rounds_to_nearest_and_ties_away_from_zero(place, rng):
    x = rng.standard_normal(256).astype(np.float32)
    x[:64] = tf32_bits(x[:64]) + np.ldexp(np.float32(1), np.frexp(x[:64])[1] - 12).astype(np.float32)  # ties
    x[64:68] = [np.inf, -np.inf, np.nan, 0.0]
    x.view(np.uint32)[68:70] = 0x7FFFFFFF  # the NaN that cards make, twice: a NaN's partner stays
    code = """
    #include "tensor_core.cuh"
    __global__ void k(float* out, const float* x) {
        unsigned own = __float_as_uint(x[threadIdx.x]), partner = __float_as_uint(x[threadIdx.x ^ 1]);
        to_tf32(own, partner);
        out[threadIdx.x] = __uint_as_float(own & ~0x1FFF);  // which mma ignores
    }"""
    out = run(code, np.zeros(256, np.float32), x, block=256, place=place)
    expected = np.where(np.isfinite(x), tf32_bits(np.where(np.isfinite(x), x, 0)), x)
    np.testing.assert_array_equal(out, expected)


# ---- ldmatrix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(place, count, transposed):
    pitch = 24  # elements from row to row: 48 bytes; and the rows are taken from the last to the first
    code = f"""
    #include "tensor_core.cuh"
    __global__ void k(unsigned* out, const unsigned short* in) {{
        __shared__ __align__(16) unsigned short tile[{8 * count * pitch}];
        for (int i = threadIdx.x; i < {8 * count * pitch}; i += 32) tile[i] = in[i];
        __syncthreads();
        unsigned words[{count}];
        int row = {8 * count} - 1 - threadIdx.x % {8 * count};
        ldmatrix{"_trans" if transposed else ""}(words, &tile[row * {pitch} + 8]);
        for (int i = 0; i < {count}; i++) out[i * 32 + threadIdx.x] = words[i];
    }}"""
    tile = np.arange(8 * count * pitch, dtype=np.uint16).reshape(8 * count, pitch)
    for seed in (0, 4):
        with sim.seed(seed), sim.checks():
            out = run(code, np.zeros((count, 32), np.uint32), tile, place=place)
        matrices = tile[::-1, 8:16].reshape(count, 8, 8)
        for got, matrix in zip(out, matrices, strict=True):
            held = matrix.T if transposed else matrix
            np.testing.assert_array_equal(got, packed(np.ascontiguousarray(held)).ravel())


# ---- asynchronous copies -----------------------------------------------------------------------------------

COPY = """
#include "async_copy.cuh"
__global__ void k(unsigned char* out, const unsigned char* x, int valid) {
    __shared__ __align__(16) unsigned char tile[4 * 32 * BYTES];
    AsyncCopies copies;
    int i = threadIdx.x * BYTES;
    for (int group = 0; group < 4; group++) {
        copies.copy<BYTES>(&tile[group * 32 * BYTES + i], &x[group * 32 * BYTES + i], valid);
        copies.commit();
    }
    WAIT
    __syncthreads();
    for (int group = 0; group < 4; group++)  // what another thread has copied
        for (int j = 0; j < BYTES; j++)
            out[group * 32 * BYTES + i + j] = tile[(group + 1) * 32 * BYTES - 1 - i - j];
}"""


def copied(wait, bytes, valid, rng, place=None):
    """What each group has copied, and what a missing copy leaves, from groups of 32 copies."""
    x = rng.integers(0, 255, (4, 32 * bytes), dtype=np.uint8)
    code = COPY.replace("BYTES", str(bytes)).replace("WAIT", wait)
    out = run(code, np.zeros_like(x), x, valid, place=place)
    expected = x.reshape(4, 32, bytes).copy()
    expected[:, :, valid:] = 0
    return out[:, ::-1], expected.reshape(x.shape)


@pytest.mark.parametrize("bytes", [4, 8, 16])
@pytest.mark.parametrize("short", [0, 2, 3, 4])
def test_copies_with_a_tail_of_zeros(place, bytes, short, rng):
    for seed in (0, 2):
        with sim.seed(seed), sim.checks():
            out, expected = copied("copies.wait<0>();", bytes, bytes - short, rng, place)
        np.testing.assert_array_equal(out, expected)


def test_copies_arrive_at_the_wait_and_not_before(rng):
    poison = np.full(32 * 16, 0xFF, np.uint8)
    for wait, arrived in (
        ("", 0),
        ("copies.wait<4>();", 0),
        ("copies.wait<1>();", 3),
        ("copies.wait<0>();", 4),
    ):
        with sim.checks(False):
            out, expected = copied(wait, 16, 16, rng)
        np.testing.assert_array_equal(out[:arrived], expected[:arrived])
        assert (out[arrived:] == poison).all()


def test_a_missing_wait_is_found(rng):
    with sim.checks(), pytest.raises(mg.errors.KernelAccessError, match=r"which no thread .* has written"):
        copied("copies.wait<1>();", 16, 16, rng)


def test_copies_without_a_commit_are_not_waited_for(rng):
    code = """
    #include "async_copy.cuh"
    __global__ void k(float* out, const float* x) {
        __shared__ float tile[32];
        AsyncCopies copies;
        copies.copy<4>(&tile[threadIdx.x], &x[threadIdx.x]);
        copies.wait<0>();
        out[threadIdx.x] = tile[threadIdx.x];
        copies.commit();
        copies.wait<0>();
        out[32 + threadIdx.x] = tile[threadIdx.x];
    }"""
    x = rng.standard_normal(32).astype(np.float32)
    with sim.checks(False):
        out = run(code, np.zeros((2, 32), np.float32), x)
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1], x)


def test_the_accesses_of_copies_are_checked(rng):
    code = """
    #include "async_copy.cuh"
    __global__ void k(float* out, const float* x) {
        __shared__ float tile[32];
        AsyncCopies copies;
        copies.copy<4>(&tile[threadIdx.x], &x[threadIdx.x]);
        copies.commit();
        copies.wait<0>();
        __syncthreads();
        out[threadIdx.x] = tile[threadIdx.x];
    }"""
    x = rng.standard_normal(31).astype(np.float32)
    with sim.checks(), pytest.raises(mg.errors.KernelAccessError, match=r"reads 4 bytes at x\[31\]"):
        run(code, np.zeros(32, np.float32), x)


@pytest.mark.parametrize("valid", [16, 4, 0])
def test_copies_between_no_multiples_of_their_size_are_refused(valid, rng):
    """Also those of nothing: cp.async wants such addresses whatever it reads."""
    code = """
    #include "async_copy.cuh"
    __global__ void k(float* out, const float* x, int valid) {
        __shared__ float4 tile[1];
        AsyncCopies copies;
        copies.copy<16>(tile, x + 1, valid);
        copies.wait<0>();
        out[0] = tile[0].x;
    }"""
    with pytest.raises(mg.errors.KernelLaunchError, match="copy of 16 bytes: its addresses are no multiples"):
        run(code, np.zeros(1, np.float32), np.zeros(8, np.float32), valid, block=1)


def test_a_copy_may_not_begin_while_others_still_read(rng):
    code = """
    #include "async_copy.cuh"
    __global__ void k(float* out, const float* x) {
        __shared__ float tiles[2][32];
        AsyncCopies copies;
        int t = threadIdx.x;
        copies.copy<4>(&tiles[0][t], &x[t]);
        copies.commit();
        float sum = 0;
        for (int i = 0; i < 4; i++) {
            if (i < 3) copies.copy<4>(&tiles[(i + 1) % 2][t], &x[(i + 1) * 32 + t]);
            copies.commit();
            copies.wait<1>();
            __syncthreads();
            sum += tiles[i % 2][31 - t];
            @
        }
        out[t] = sum;
    }"""
    x = rng.integers(-9, 9, (4, 32)).astype(np.float32)
    with sim.checks(), sim.stress(8):
        out = run(code.replace("@", "__syncthreads();"), np.zeros(32, np.float32), x)
    np.testing.assert_array_equal(out, x.sum(0)[::-1])
    with sim.checks(), pytest.raises(mg.errors.KernelAccessError) as failure:
        run(code.replace("@", ""), np.zeros(32, np.float32), x)
    assert "race on tiles[" in str(failure.value)
    assert re.search(
        r"this thread reads it at kernel.cu:15, .* writes it at kernel.cu:11", str(failure.value)
    )


# ---- matmul ------------------------------------------------------------------------------------------------

SIZES = [(1, 1, 1), (16, 8, 16), (130, 7, 33), (3, 260, 65), (128, 128, 32), (40, 40, 200), (5, 6, 0)]
LARGEST_ERROR = {  # of a product, from the rounding of its factors; and of the result
    "tf32": (2.0**-10 + 2.0**-22, 2.0**-23),
    "f16": (0, 2.0**-11),
    "bf16": (0, 2.0**-8),
}


def factors(name, a, b):
    """``a`` and ``b`` as the kernel takes them."""
    if name == "bf16":
        a, b = bfloat16_bits(a), bfloat16_bits(b)
    else:
        a, b = (x.astype(np.float32 if name == "tf32" else np.float16) for x in (a, b))
    return a, b


def check_product(name, a, b, batch=(), place=None, tile=None, parts=1):
    """The kernel's ``a @ b``, after comparing it with the float64 product of the same factors."""
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    left, right = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    if place is None:
        matmul_tensor_core.tensor_core(out, left, right, tile=tile, parts=parts)
    else:
        placed = place.put(out)
        left, right = place.put_strided(left), place.put_strided(right)
        matmul_tensor_core.tensor_core(placed, left, right, tile=tile, parts=parts)
        out = place.get(placed)
    wide_a, wide_b, got = (widened(x) if name == "bf16" else x for x in (a, b, out))
    wide_a, wide_b = wide_a.astype(np.float64), wide_b.astype(np.float64)
    expected, magnitude = wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b)
    of_product, of_result = LARGEST_ERROR[name]
    allowed = (of_product + (a.shape[-1] + 1) * 2.0**-23) * magnitude + of_result * np.abs(expected)
    smallest = 2.0**-25 if name == "f16" else 0
    assert (np.abs(got - expected) <= allowed * 1.001 + smallest).all()
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products(place, name, size, rng):
    M, N, K = size
    a, b = factors(name, rng.standard_normal((M, K)), rng.standard_normal((K, N)))
    check_product(name, a, b, place=place)


TILES = matmul_tensor_core.TILES


@pytest.mark.parametrize("size", [(1, 1, 1), (300, 140, 200), (256, 192, 96), (5, 6, 0)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_tiles_of_every_size_give_the_same_bits(place, name, size, rng):
    M, N, K = size
    a, b = factors(name, rng.standard_normal((M, K)), rng.standard_normal((K, N)))
    assert len({check_product(name, a, b, place=place, tile=tile).tobytes() for tile in TILES}) == 1


def test_plans():
    """By what a card would be given: on the simulator they would take minutes. Large tiles where these fill a
    card; small ones, and parts of K, where tiles are few."""
    half, small, large, wide = TILES

    def plan(M, K, N, batches=1, largest=wide):
        steps = -(-K * 2 // matmul_tensor_core.STEP_BYTES)
        _, parts, tile = matmul_tensor_core.plan(batches, M, N, steps, largest)
        return tile, parts

    assert plan(4096, 4096, 4096) == (large, 1)  # 4 waves, not 3 that make half as much more each
    assert plan(8192, 8192, 8192) == (wide, 1)
    assert plan(8192, 8192, 8192, largest=large) == (large, 1)
    assert plan(250, 100, 256, batches=132) == (large, 1)
    assert plan(128, 512, 65536) == plan(384, 64, 65536) == (small, 1)
    assert plan(1024, 1024, 1024) == plan(5, 7, 3) == plan(5, 0, 3) == (half, 1)
    assert plan(768, 8192, 768)[0] == small and 100 < 36 * plan(768, 8192, 768)[1] <= 264
    assert plan(32, 4096, 4096)[1] > 1
    assert plan(0, 64, 64) == plan(64, 1024, 64, batches=0) == (half, 1)


IN_PARTS = list(itertools.product(TILES[:2], (2, 5)))


@pytest.mark.parametrize(("tile", "parts"), IN_PARTS, ids=str)
@pytest.mark.parametrize(
    "size", [(1, 2, 33), (70, 133, 200), (129, 40, 353), (40, 24, 0), (0, 5, 90)], ids=str
)
@pytest.mark.parametrize("name", FORMATS)
def test_products_in_parts(place, name, size, tile, parts, rng):
    """In all layouts, and with a bias; of every order of threads the same bits."""
    M, N, K = size
    a, b = factors(name, rng.standard_normal((M, K)), rng.standard_normal((K, N)))
    lefts, rights = (a, np.asfortranarray(a)), (b, np.asfortranarray(b))
    layouts = [(left, right) for left in lefts for right in rights]
    run = functools.partial(check_product, name, place=place, tile=tile, parts=parts)
    assert len({run(left, right).tobytes() for left, right in layouts}) == 1
    with sim.seed(3):
        assert run(a, b).tobytes() == run(*layouts[-1]).tobytes()


@pytest.mark.parametrize(("tile", "parts"), IN_PARTS, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_in_parts_with_a_bias(place, name, tile, parts, rng):
    """Of small whole numbers, so that no sum is rounded; in batches that share a factor."""
    a, b = factors(name, rng.integers(-2, 3, (3, 20, 168)), rng.integers(-2, 3, (168, 137)))
    bias, _ = factors(name, rng.integers(-9, 10, 137), np.zeros(1))
    out = place.put(np.empty((3, 20, 137), a.dtype))
    right = np.broadcast_to(b, (3, *b.shape))
    arguments = place.put(a), place.put_strided(right), place.put(bias), tile, parts
    with sim.profile() as launches:
        matmul_tensor_core.tensor_core(out, *arguments)
    assert not launches or launches[-1].kernel.startswith("split_k_sum<")
    got, *wide = (widened(x) if name == "bf16" else x for x in (place.get(out), a, b, bias))
    wide_a, wide_b, wide_bias = (x.astype(np.float64) for x in wide)
    rounded, _ = factors(name, wide_a @ wide_b + wide_bias, np.zeros(1))
    np.testing.assert_array_equal(got, widened(rounded) if name == "bf16" else rounded)


@pytest.mark.parametrize("name", FORMATS)
def test_the_plan_cuts_a_long_K(name, rng):
    """Bit for bit as the same tile and parts do when asked for."""
    a, b = factors(name, rng.standard_normal((20, 1200)), rng.standard_normal((1200, 40)))
    steps = -(-1200 * a.itemsize // matmul_tensor_core.STEP_BYTES)
    _, parts, tile = matmul_tensor_core.plan(1, 20, 40, steps)
    assert parts > 1
    bits = check_product(name, a, b).tobytes()
    assert check_product(name, a, b, tile=tile, parts=parts).tobytes() == bits


def test_nan_and_infinity_in_parts_stay_in_their_rows(place, rng):
    a, b = factors("f16", rng.standard_normal((20, 200)), np.ones((200, 5)))
    a[3, 7], a[4, 199], a[5, 1], a[5, 198] = np.nan, np.inf, np.inf, -np.inf
    out = place.put(np.empty((20, 5), np.float16))
    matmul_tensor_core.tensor_core(out, place.put(a), place.put(b), None, TILES[0], 3)
    out = place.get(out)
    assert np.isnan(out[[3, 5]]).all() and np.isposinf(out[4]).all()
    assert np.isfinite(np.delete(out, [3, 4, 5], axis=0)).all()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("size", [(5, 7, 3), (130, 133, 40), (20, 24, 0)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_with_a_bias(place, name, size, tile, rng):
    """Of small whole numbers, so that no sum is rounded."""
    M, N, K = size
    a, b = factors(name, rng.integers(-2, 3, (M, K)), rng.integers(-2, 3, (K, N)))
    bias, _ = factors(name, rng.integers(-9, 10, N), np.zeros(1))
    out = place.put(np.empty((M, N), a.dtype))
    matmul_tensor_core.tensor_core(out, place.put(a), place.put(b), place.put(bias), tile)
    got, wide_a, wide_b, wide_bias = (
        widened(x) if name == "bf16" else x for x in (place.get(out), a, b, bias)
    )
    expected = wide_a.astype(np.float64) @ wide_b.astype(np.float64) + wide_bias
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_of_views(place, name, tile, rng):
    a, b = factors(name, rng.standard_normal((40, 96)), rng.standard_normal((96, 40)))
    transposed = (np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T)
    reversed = (np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1], np.ascontiguousarray(b[::-1])[::-1])
    padded = (np.pad(a, ((0, 0), (8, 8)))[:, 8:-8], np.pad(b, ((0, 0), (3, 2)))[:, 3:-2])
    in_longer_columns = (np.pad(a.T, ((0, 0), (8, 8)))[:, 8:-8].T, np.pad(b, ((0, 0), (16, 8)))[:, 16:-8])
    one_by_one = [(transposed[0], b), (a, transposed[1])]
    bits = check_product(name, a, b, place=place, tile=tile).tobytes()
    for left, right in (transposed, *one_by_one, reversed, padded, in_longer_columns):
        assert check_product(name, left, right, place=place, tile=tile).tobytes() == bits


def test_products_in_16_bits_read_either_layout_where_it_lies(rng):
    a, b = factors("f16", rng.standard_normal((40, 96)), rng.standard_normal((96, 40)))
    for left in (a, np.ascontiguousarray(a.T).T):
        for right in (b, np.ascontiguousarray(b.T).T):
            with sim.profile() as launches:
                check_product("f16", left, right)
            assert [launch.kernel.split("<")[0] for launch in launches] == ["matmul_tensor_core"]


def test_products_of_batches(place, rng):
    a, b = factors("f16", rng.standard_normal((3, 1, 20, 24)), rng.standard_normal((2, 24, 9)))
    check_product("f16", a, b, (3, 2), place)
    check_product("f16", a[:, 0, :, :7], b[1, :7], (3,), place)
    check_product("f16", a[:0, 0], b[1], (0,), place)
    check_product("f16", a[:, 0, :0], b[1], (3,), place)


def test_matrices_that_are_the_same_one_are_copied_once(rng):
    matrices = rng.standard_normal((4, 5, 7)).astype(np.float16)
    x = np.broadcast_to(matrices[:, None], (2, 4, 3, 5, 7))
    padded = matmul_tensor_core.padded_once(x)
    assert padded.shape == (2, 4, 3, 5, 8) and padded.strides == (0, 80, 0, 16, 2)
    np.testing.assert_array_equal(padded[..., :7], x)
    assert (padded[..., 7:] == 0).all()
    assert matmul_tensor_core.padded_once(x[:0]).shape == (0, 4, 3, 5, 8)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("M", "N"), [(300, 424), (257, 193), (40, 56), (256, 8)])
def test_tiles_along_either_side(place, M, N, tile, rng):
    a, b = factors("f16", rng.standard_normal((M, 72)), rng.standard_normal((72, N)))
    bits = set()
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            bits.add(check_product("f16", left, right, place=place, tile=tile).tobytes())
    assert len(bits) == 1


def test_products_of_more_batches_than_a_grid_is_deep(monkeypatch, rng):
    monkeypatch.setattr(matmul_tensor_core, "MAX_GRID_Z", 3)
    a, b = factors("f16", rng.standard_normal((7, 20, 24)), rng.standard_normal((24, 9)))
    check_product("f16", a, b, (7,))


@pytest.mark.parametrize("name", FORMATS)
def test_products_have_the_same_bits_in_every_order(name, rng):
    a, b = factors(name, rng.standard_normal((70, 72)), rng.standard_normal((72, 33)))
    bits = check_product(name, a, b).tobytes()
    for seed in (1, 2):
        with sim.seed(seed):
            assert check_product(name, a, b).tobytes() == bits
    with sim.checks():
        assert check_product(name, a, b).tobytes() == bits


def test_nan_and_infinity_stay_in_their_rows(place, rng):
    a, b = factors("f16", rng.standard_normal((20, 40)), np.ones((40, 5)))
    a[3, 7], a[4, 39] = np.nan, np.inf
    out = place.put(np.empty((20, 5), np.float16))
    matmul_tensor_core.tensor_core(out, place.put(a), place.put(b))
    out = place.get(out)
    assert np.isnan(out[3]).all() and np.isposinf(out[4]).all()
    assert np.isfinite(np.delete(out, [3, 4], axis=0)).all()


def test_an_output_that_starts_between_two_pairs(rng):
    a, b = factors("f16", rng.standard_normal((20, 16)), rng.standard_normal((16, 6)))
    out = np.empty(20 * 6 + 1, np.float16)[1:].reshape(20, 6)
    with sim.checks():
        matmul_tensor_core.tensor_core(out, a, b)
    np.testing.assert_array_equal(out, check_product("f16", a, b))


def test_shapes_that_do_not_fit():
    a = np.zeros((3, 4), np.float16)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 4\) do not give \(3, 4\)"):
        matmul_tensor_core.tensor_core(np.zeros((3, 4), np.float16), a, a)


# ---- the op ------------------------------------------------------------------------------------------------


@pytest.fixture
def high_precision():
    before = mg.get_float32_matmul_precision()
    mg.set_float32_matmul_precision("high")
    yield
    mg.set_float32_matmul_precision(before)


def products(rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((33, 64), (64, 20)))
    return a, b, (mg.tensor(a, device="sim") @ mg.tensor(b, device="sim")).numpy()


def test_float32_is_exact_unless_allowed_otherwise(rng):
    assert mg.get_float32_matmul_precision() == "highest"
    a, b, out = products(rng)
    mg.testing.assert_close(out, a.astype(np.float64) @ b, length=64)


def test_high_precision_is_tf32(rng, high_precision):
    a, b, out = products(rng)
    np.testing.assert_array_equal(out, check_product("tf32", a, b))


def test_a_card_before_ampere_multiplies_halves_in_float32(rng):
    a, b = (
        mg.tensor(rng.standard_normal(shape).astype(np.float16), device="sim")
        for shape in ((9, 40), (40, 12))
    )
    with sim.architecture("sm_75"), sim.profile() as launches:
        assert not matmul_tensor_core.is_supported(a.numpy())
        out = a @ b
    assert launches and not any("tensor_core" in launch.kernel for launch in launches)
    np.testing.assert_array_equal(out.numpy(), (a.float() @ b.float()).half().numpy())


def test_unknown_precision():
    with pytest.raises(ValueError, match="expected one of highest, high, medium, got 'low'"):
        mg.set_float32_matmul_precision("low")
    assert mg.get_float32_matmul_precision() == "highest"


def test_float16_tensors_and_their_gradients(rng):
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((9, 40), (40, 12)))
    x, y = (mg.tensor(v, device="sim", requires_grad=True) for v in (a, b))
    out = x @ y
    np.testing.assert_array_equal(out.detach().numpy(), check_product("f16", a, b))
    out.backward(mg.ones(9, 12, dtype=mg.float16, device="sim"))
    ones = np.ones((9, 12), np.float16)
    np.testing.assert_array_equal(x.grad.numpy(), check_product("f16", ones, b.T))
    np.testing.assert_array_equal(y.grad.numpy(), check_product("f16", a.T, ones))
