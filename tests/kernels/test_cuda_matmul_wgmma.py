"""Matrix products by wgmma, on the simulator and on a card of compute capability 9.0, and their launch."""

import re

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.arguments import address, bfloat16_bits
from minigrad.kernels.cuda import matmul_tensor_core, matmul_wgmma
from minigrad.kernels.errors import KernelLaunchError
from minigrad.kernels.launch import CudaKernel

# By name: to what the kernel takes, to numbers, the rounding errors of a product, and of the result.
FORMATS = {
    "tf32": (lambda x: x, lambda x: x, 2.0**-10 + 2.0**-22, 0),
    "f16": (lambda x: x.astype(np.float16), lambda x: x, 0, 2.0**-11),
    "bf16": (bfloat16_bits, lambda x: (x.astype(np.uint32) << 16).view(np.float32), 0, 2.0**-8),
}

VIEWS = {
    "as it is": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "rows reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "shifted": lambda x: np.pad(x, ((0, 0), (1, 4)))[:, 1:-4],
    "in longer rows": lambda x: np.pad(x, ((0, 0), (8, 8)))[:, 8:-8],
    "in longer columns": lambda x: np.pad(x.T, ((0, 0), (8, 8)))[:, 8:-8].T,
    "one row": lambda x: np.broadcast_to(x[:1], x.shape),
}


def encoded(name, rng, *shapes):
    """Random matrices as the kernel takes them."""
    return [FORMATS[name][0](rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


# ---- products ----------------------------------------------------------------------------------------------


def check(card, name, a, b, batch=(), bias=None, **how):
    """The kernel's product against float64, of the same factors; what it does not write stays NaN."""
    encode, numbers, of_product, of_result = FORMATS[name]
    out = card.put(encode(np.full((*batch, a.shape[-2], b.shape[-1]), np.nan, np.float32)))
    factors = [card.put_strided(np.broadcast_to(x, (*batch, *x.shape[-2:]))) for x in (a, b)]
    matmul_wgmma.wgmma(out, *factors, None if bias is None else card.put(bias), **how)
    a, b = (numbers(np.ascontiguousarray(x)).astype(np.float64) for x in (a, b))
    expected, magnitude = a @ b, np.abs(a) @ np.abs(b)
    if bias is not None:
        bias = numbers(bias).astype(np.float64)
        expected, magnitude = expected + bias, magnitude + np.abs(bias)
    # A card cuts off the last bits of its sums: https://doi.org/10.7717/peerj-cs.330
    allowed = (of_product + (a.shape[-1] + 1) * 2.0**-22) * magnitude + of_result * np.abs(expected)
    smallest = 2.0**-25 if name == "f16" else 0
    assert (np.abs(numbers(card.get(out)) - expected) <= 1.001 * allowed + smallest).all()


# (M, N, K): single elements, odd, whole tiles, a little more, a long K, more tiles than the simulator's
# multiprocessors, and than a card's. The columns of a tile follow from the sizes.
SIZES = [
    (1, 1, 1),
    (5, 7, 3),
    (128, 256, 64),
    (257, 264, 72),
    (130, 515, 333),
    (64, 40, 4096),
    (300, 700, 40),
    (2500, 4100, 40),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products(card, name, size, rng):
    M, N, K = size
    if size == SIZES[-1] and isinstance(card.put(np.zeros(1)), np.ndarray):
        pytest.skip("on the simulator fewer tiles keep all multiprocessors busy")
    check(card, name, *encoded(name, rng, (M, K), (K, N)))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tile", matmul_wgmma.COLUMNS)
@pytest.mark.parametrize("name", FORMATS)
def test_products_by_each_tile(card, name, tile, parts, rng):
    """In parts the last one is shorter; the largest tile takes all of K."""
    a, b, bias = encoded(name, rng, (2, 261, 450), (450, 331), (331,))
    check(card, name, a, b, (2,), bias, tile=tile, parts=parts)
    transposed = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)  # along M
    check(card, name, transposed[:, :72], b.T[:40].T, (2,), tile=tile, parts=parts)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", FORMATS)
def test_products_of_views(card, name, view, rng):
    a, b = encoded(name, rng, (264, 136), (136, 320))
    for a_view, b_view in ((view, "as it is"), ("as it is", view), (view, view)):
        check(card, name, VIEWS[a_view](a), VIEWS[b_view](b))


@pytest.mark.parametrize("name", FORMATS)
def test_products_of_batches(card, name, rng):
    a, b = encoded(name, rng, (3, 140, 72), (3, 72, 264))
    check(card, name, a, b, (3,))
    check(card, name, a, b[1], (3,))
    check(card, name, a[2], b, (3,))
    check(card, name, a[:, None, :20], b[:2, :, :9], (3, 2))
    check(card, name, a.reshape(3, 2, 70, 72).swapaxes(0, 1), b, (2, 3))
    heads = np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1)  # matrices side by side, in longer rows
    check(card, name, heads, b, (3,))


@pytest.mark.parametrize("size", [(5, 7, 3), (70, 264, 72), (257, 515, 33)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_with_a_bias(card, name, size, rng):
    M, N, K = size
    a, b, bias = encoded(name, rng, (M, K), (K, N), (N,))
    check(card, name, a, b, bias=9 * bias if name != "bf16" else bias)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_a_linear_map_adds_its_bias_in_the_launch_of_its_product():
    x, weight, bias = (mg.randn(*shape, device="sim").to(mg.float16) for shape in ((70, 24), (80, 24), (80,)))
    with mg.use_kernel("matmul", "wgmma", "sim"), sim.profile() as launches:
        y = mg.nn.functional.linear(x, weight, bias)
    assert [launch.kernel.split("<")[0] for launch in launches] == ["matmul_wgmma"]
    expected = x.numpy().astype(np.float64) @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_nan_and_infinity_stay_in_their_rows(card, rng):
    for name in ("tf32", "f16"):
        a, b = encoded(name, rng, (300, 200), (200, 64))
        a[3, 7], a[4, 199], b[:] = np.nan, np.inf, 1
        out = card.put(np.empty((300, 64), a.dtype))
        matmul_wgmma.wgmma(out, card.put(a), card.put(b))
        out = card.get(out)
        assert np.isnan(out[3]).all() and np.isposinf(out[4]).all()
        assert np.isfinite(np.delete(out, [3, 4], axis=0)).all()


def test_an_output_that_starts_between_two_vectors(card, rng):
    a, b = encoded("f16", rng, (200, 64), (64, 264))
    whole, shifted = (
        card.put(np.full(200 * 264 + n, np.nan, np.float16))[n:].reshape(200, 264) for n in (0, 1)
    )
    for out in (whole, shifted):
        matmul_wgmma.wgmma(out, card.put(a), card.put(b))
    np.testing.assert_array_equal(card.get(shifted), card.get(whole))


# ---- what the simulator finds when a line of the kernel is changed ----------------------------------------

RACE = r"race on dynamic\[\d+\] of the shared variable .*is ordered by waiting for it alone"
DEADLOCK = r"deadlock(.|\n)*the barrier ring\[\d+\], in phase \d+, lacks"

# (what stands in the kernel, what is put in its place, what is said)
MUTANTS = [
    ("ring.full[turn.stage].wait(turn.parity);", "", RACE),
    ("ring.full[turn.stage].wait(turn.parity);", "ring.full[turn.stage].wait(turn.parity ^ 1);", RACE),
    ("ring.empty[turn.stage].wait(turn.parity ^ 1);", "", "one arrival too many"),
    ("ring.empty[turn.stage].wait(turn.parity ^ 1);", "ring.empty[turn.stage].wait(turn.parity);", DEADLOCK),
    ("init(CLUSTER * CONSUMERS)", "init(CONSUMERS)", RACE),
    ("expect(STAGE_BOXES<TILE_N> * BOX_BYTES)", "expect((STAGE_BOXES<TILE_N> + 1) * BOX_BYTES)", DEADLOCK),
    ("expect(STAGE_BOXES<TILE_N> * BOX_BYTES)", "expect((STAGE_BOXES<TILE_N> - 1) * BOX_BYTES)", RACE),
    ("(1 << CLUSTER) - 1", "1", DEADLOCK),
    ("wgmma_wait<1>();", "", RACE),
    ("wgmma_wait<1>();", "wgmma_wait<2>();", RACE),
    ("wgmma_wait<0>();", "", RACE),
    ("wgmma_fence();", "", r"call wgmma_fence\(\) before"),
    ("fence_for_copies();", "", r"with no fence_for_copies\(\) after it"),
    ("wait_for_stores<IN_TURN - 1>();", ";", RACE),
    ("if (thread == 0) wait_for_stores<0>();", "", r"returns before its store_box\(\)"),
    ("fence_barrier_init();", "", r"call fence_barrier_init\(\) after its init\(\)"),
    ("sync_cluster_relaxed();\n    if (warpgroup", ";\n    if (warpgroup", r"race on ring\[0\]"),
    ("sync_cluster();  // no block", ";  // no block", r"no sync_cluster\(\) after|has ended"),
    (
        "give_registers<40>();",
        "if (threadIdx.x < 96) give_registers<40>();",
        "192 wait in give_reg",
    ),
]


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize(("old", "new", "says"), MUTANTS)
def test_a_change_is_found(change, old, new, says, rng):
    change(matmul_wgmma, old, new)
    a, b = encoded("f16", rng, (300, 640), (640, 264))
    with sim.checks(), pytest.raises(KernelLaunchError) as caught:
        matmul_wgmma.wgmma(np.zeros((300, 264), np.float16), a, b, tile=256)
    assert re.search(says, str(caught.value)), str(caught.value)


# ---- the launch --------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """What would be launched on a card of 132 multiprocessors: (kernel, grid, maps, shape) of each launch."""
    seen, launch_other = [], CudaKernel.launch

    def launch(self, grid, block, args, shared_bytes=0):
        if self.name != "matmul_wgmma":  # which makes a copy
            return launch_other(self, grid, block, args, shared_bytes)
        assert (block, shared_bytes) == (matmul_wgmma.THREADS, matmul_wgmma.SHARED_BYTES)
        self._binder.bind(args)  # the arguments fit the kernel's parameters
        _, _, _, _, _, *maps, shape = args
        seen.append((self.expression, grid, [m["words"] for m in maps], shape))

    monkeypatch.setattr(CudaKernel, "launch", launch)

    monkeypatch.setattr(matmul_wgmma, "is_supported", lambda array: True)
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    return seen


def aligned(*shape, dtype=np.float16):
    """Zeros that start at a multiple of 16 bytes."""
    memory = np.zeros(int(np.prod(shape)) + 16, dtype)
    start = -address(memory) % 16 // memory.itemsize
    return memory[start : start + int(np.prod(shape))].reshape(shape)


def launched(launches, a, b, batch=()):
    matmul_wgmma.wgmma(aligned(*batch, a.shape[-2], b.shape[-1], dtype=a.dtype), a, b)
    return launches.pop()


def test_operands_in_16_bits_are_read_where_they_lie(launches):
    a, b = aligned(40, 72), aligned(72, 64)
    for left, right, layouts in (
        (a, b, "false, true"),
        (a, aligned(64, 72).T, "false, false"),
        (aligned(72, 40).T, b, "true, true"),
        (a[8:24, 8:64], b[8:64, 8:], "false, true"),
    ):
        name, _, maps, shape = launched(launches, left, right)
        assert name == f"matmul_wgmma<__half, 64, {layouts}>"
        assert [m[0] for m in maps[:2]] == [address(left), address(right)] and shape["out_by_boxes"]
    name, _, (a_map, b_map, out_map), _ = launched(launches, a, b)
    assert a_map[1:8] == (1, 2, 72, 40, 1, 144, 5760)  # 16 bits: inner size first, strides in bytes
    assert b_map[1:8] == (1, 2, 64, 72, 1, 128, 9216)
    assert out_map[1:8] == (1, 2, 64, 40, 1, 128, 5120)


def test_other_operands_are_copied_to_rows_of_whole_vectors(launches):
    a, b = aligned(40, 72), aligned(72, 64)
    for left in (aligned(40, 73)[:, 1:], a[::-1], np.broadcast_to(a[:1], (40, 72)), aligned(40, 80)[:, 4:76]):
        name, _, (a_map, *_), _ = launched(launches, left, b)
        assert name == "matmul_wgmma<__half, 64, false, true>" and a_map[0] != address(left)
        assert a_map[3:8] == (72, 40, 1, 144, 5760)
    name, _, (a_map, *_), _ = launched(launches, aligned(72, 41).T[:40], b)
    assert name == "matmul_wgmma<__half, 64, true, true>" and a_map[3:7] == (40, 72, 1, 80)
    assert launched(launches, a[:, :5], b[:5])[2][0][3:7] == (5, 40, 1, 144)


def test_float32_operands_lie_along_k_and_are_rounded(launches):
    a, b = aligned(40, 36, dtype=np.float32), aligned(36, 64, dtype=np.float32)
    name, _, (a_map, b_map, out_map), _ = launched(launches, a, b)
    assert name == "matmul_wgmma<float, 64, false, false>"
    assert a_map[0] == address(a) and b_map[0] != address(b) and b_map[3:5] == (36, 64)
    assert [m[1] for m in (a_map, b_map, out_map)] == [11, 11, 2]  # TFLOAT32, TFLOAT32, UINT32
    b = aligned(64, 36, dtype=np.float32).T
    assert launched(launches, a, b)[2][1][0] == address(b)


def test_batches_share_what_is_broadcast(launches):
    a, b = np.broadcast_to(aligned(40, 72), (3, 40, 72)), aligned(3, 72, 64)
    _, _, (a_map, b_map, out_map), shape = launched(launches, a, b, (3,))
    assert (shape["batches"], shape["a_batched"], shape["b_batched"]) == (3, 0, 1)
    assert [m[5] for m in (a_map, b_map, out_map)] == [1, 3, 3] and a_map[0] == address(a)
    _, _, (a_map, *_), _ = launched(launches, a[..., :70], b[:, :70], (3,))
    assert a_map[3:6] == (70, 40, 1)  # a copy, in whole vectors


def test_the_grid_has_a_block_for_each_multiprocessor_at_most(launches):
    for (M, N), clusters in (((1, 1), 1), ((257, 257), 10), ((4096, 4096), 66)):
        _, grid, _, _ = launched(launches, aligned(M, 8), aligned(8, N))
        assert grid == matmul_wgmma.CLUSTER * clusters


def test_an_output_between_vectors_is_stored_by_the_threads(launches):
    a, b = aligned(40, 72), aligned(72, 64)
    assert launched(launches, a, b[:, :60])[3]["out_by_boxes"] == 0
    matmul_wgmma.wgmma(aligned(40 * 64 + 1)[1:].reshape(40, 64), a, b)
    assert launches.pop()[3]["out_by_boxes"] == 0


def test_empty_products_are_left_to_the_other_kernel(launches, monkeypatch):
    left = []
    monkeypatch.setattr(matmul_wgmma, "tensor_core", lambda *arrays: left.append(arrays))
    for M, N, K in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        matmul_wgmma.wgmma(*(np.zeros(shape, np.float16) for shape in ((M, N), (M, K), (K, N))))
    assert len(left) == 3 and not launches


PREFERRED = [  # (batch, M, K, N), and whether it is computed by wgmma on 132 multiprocessors
    ((4096, 4096, 4096), True),
    ((8192, 1024, 4096), True),
    ((2048, 2048, 2048), True),
    ((2049, 2048, 2049), True),  # a second round of tiles, most of it for nothing, and still ahead
    ((1024, 768, 3072), True),
    ((1024, 1024, 1024), True),  # by tiles of 64 columns
    ((4096, 512, 128), True),
    ((768, 8192, 768), True),  # in parts of K
    ((128, 4096, 4096), False),  # one of a cluster's blocks has no rows
    ((64, 512, 1024, 256), True),
    ((4096, 64, 4096), False),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("size", "preferred"), PREFERRED, ids=str)
def test_it_is_preferred_where_it_is_estimated_to_be_ahead(monkeypatch, size, preferred, dtype):
    for module in matmul_wgmma, matmul_tensor_core:
        monkeypatch.setattr(module, "is_supported", lambda array: True)
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    *batch, M, K, N = size
    a, b = np.empty((*batch, M, K), dtype), np.empty((*batch, K, N), dtype)
    monkeypatch.setattr("minigrad.precision._precision", "high")
    kernel = mg.get_op("matmul").kernels.choose("cuda", a.dtype, [a, b], {})
    assert kernel.name == ("wgmma" if preferred else "tensor_core")


def test_shapes_that_do_not_fit():
    a = np.zeros((3, 4), np.float16)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 4\) do not give \(3, 4\)"):
        matmul_wgmma.wgmma(a, a, a)


def test_the_simulator_in_the_place_of_another_card():
    a = np.zeros((4, 4), np.float16)
    needs = r"needs a card of compute capability 9\.0, or sim.architecture\('sm_90a'\)"
    with sim.architecture("sm_80"), pytest.raises(KernelLaunchError, match=needs):
        assert not matmul_wgmma.is_supported(a)
        matmul_wgmma.wgmma(a, a, a)
