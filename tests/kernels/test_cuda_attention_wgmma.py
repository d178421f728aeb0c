"""Attention by wgmma, on the simulator and on a card of compute capability 9.0, and its launch."""

import re

import numpy as np
import pytest
from attention_problems import SCALE, TILE_SIZES, VIEWS, growing, inputs, largest_error, with_errors

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.arguments import address
from minigrad.kernels.cuda import attention_tensor_core, attention_wgmma, matmul_wgmma
from minigrad.kernels.errors import KernelLaunchError
from minigrad.kernels.launch import CudaKernel
from minigrad.op import get_op


def compute(card, q, k, v, causal, scale=SCALE):
    """out and lse; both start as NaN."""
    out = card.put(np.full((*q.shape[:3], v.shape[3]), np.nan, q.dtype))
    lse = card.put(np.full(q.shape[:3], np.nan, np.float32))
    attention_wgmma.forward(out, lse, *map(card.put_strided, (q, k, v)), causal, scale)
    return card.get(out), card.get(lse)


def error_of(found, q, k, v, causal):
    """How far out and lse are from the definition, as a share of what rounding may do."""
    return largest_error(found, with_errors(q, k, v, np.zeros((*q.shape[:3], v.shape[3])), causal)[:2])


def check(card, q, k, v, causal):
    assert error_of(compute(card, q, k, v, causal), q, k, v, causal) <= 1


# ---- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", TILE_SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(card, half, size, causal):
    q, k, v, _ = (x.astype(half) for x in inputs(size, np.float64))
    check(card, q, k, v, causal)


@pytest.mark.parametrize("view", VIEWS)
def test_views(card, view):
    q, k, v, _ = (x.astype(np.float16) for x in inputs((2, 3, 140, 140, 64, 64), np.float64))
    check(card, *map(VIEWS[view], (q, k, v)), True)
    check(card, q, VIEWS[view](k), np.ascontiguousarray(v), False)


def test_nan_stays_in_its_query_and_hidden_keys_stay_hidden(card, half):
    q, k, v, _ = (x.astype(half) for x in inputs((1, 1, 200, 300, 64, 64), np.float64))
    wanted, wanted_lse = compute(card, q, k, v, True)
    q[0, 0, 7, 2] = np.nan
    k[0, 0, 200:] = np.inf  # that no query sees
    k[0, 0, 210:] = np.nan
    found, lse = compute(card, q, k, v, True)
    assert np.isnan(found[0, 0, 7].astype(np.float32)).all()
    others = np.arange(200) != 7
    np.testing.assert_array_equal(
        found[0, 0, others].astype(np.float32), wanted[0, 0, others].astype(np.float32)
    )
    np.testing.assert_array_equal(lse[0, 0, others], wanted_lse[0, 0, others])


def test_infinite_scores(card):
    """-inf in all scores of a tile is a weight of 0 beside finite ones; in all scores, or +inf, it is NaN."""
    q, k, v = (np.ones((1, 1, n, 8), np.float16) for n in (3, 260, 260))
    q[0, 0, 1] = -1
    k[0, 0, 130:] = -np.inf
    v[0, 0, 130:] = 7
    out, lse = compute(card, q, k, v, False)
    np.testing.assert_array_equal(out[0, 0, [0, 2]], 1)
    np.testing.assert_allclose(lse[0, 0, [0, 2]], 8 * SCALE + np.log(130), rtol=1e-6)
    assert np.isnan(out[0, 0, 1]).all()
    k[:] = -np.inf
    out, lse = compute(card, q, k, v, False)
    assert np.isnan(out).all() and np.isnan(lse[0, 0, [0, 2]]).all()


@pytest.mark.parametrize("value", [100, 240])
def test_large_scores_do_not_overflow(card, value):
    q = np.full((1, 1, 140, 64), value, np.float16)
    v = np.arange(140, dtype=np.float16).reshape(1, 1, 140, 1) / 8
    v = np.ascontiguousarray(np.broadcast_to(v, q.shape))
    out, lse = compute(card, q, q, v, False)
    np.testing.assert_allclose(out.astype(float), v.astype(float).mean(), rtol=2.0**-10)
    np.testing.assert_allclose(lse, SCALE * 64 * float(value) ** 2 + np.log(140), rtol=1e-6)


@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_scores_that_leave_the_reference_behind(card, half, order):
    q, k, v, _ = inputs((1, 1, 140, 600, 64, 64), np.float64)
    q, k, v = (x.astype(half) for x in (q, growing(k)[:, :, ::order], v))
    check(card, q, k, v, False)
    check(card, q, k, v, True)


def test_the_same_bits_in_every_order(card):
    q, k, v, _ = (x.astype(np.float16) for x in inputs((1, 2, 200, 270, 64, 64), np.float64))
    first = compute(card, q, k, v, True)
    with sim.stress(4):
        second = compute(card, q, k, v, True)
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


# ---- what the simulator, or a comparison, finds when a line of the kernel is changed -----------------------

RACE = r"race on dynamic\[\d+\] of the shared variable .*is ordered by waiting for it alone"
DEADLOCK = r"deadlock(.|\n)*the barrier barriers.* lacks"
WRONG = "wrong"  # no message, but another result

# (what stands in the kernel, what is put in its place, what is said)
MUTANTS = [
    ("ring.full[turn.stage].wait(turn.parity);", "", RACE),
    ("ring.full[turn.stage].wait(turn.parity);", "ring.full[turn.stage].wait(turn.parity ^ 1);", RACE),
    ("ring.empty[turn.stage].wait(turn.parity ^ 1);", "", "one arrival too many|" + RACE),
    ("ring.empty[turn.stage].wait(turn.parity ^ 1);", "ring.empty[turn.stage].wait(turn.parity);", DEADLOCK),
    (
        "barriers.ring.empty[i].init(CONSUMERS)",
        "barriers.ring.empty[i].init(1)",
        RACE + "|one arrival too many",
    ),
    ("barriers.ring.empty[i].init(CONSUMERS)", "barriers.ring.empty[i].init(3)", DEADLOCK),
    ("expect(TILE_BOXES<D> * BOX_BYTES)", "expect((TILE_BOXES<D> + 1) * BOX_BYTES)", DEADLOCK),
    ("expect(TILE_BOXES<D> * BOX_BYTES)", "expect((TILE_BOXES<D> - 1) * BOX_BYTES)", RACE + "|" + DEADLOCK),
    ("barriers.queries.wait(0);", "", RACE),
    ("tiles.give_back(1);\n", "", DEADLOCK),
    ("tiles.give_back(0);\n        rescale", "rescale", DEADLOCK),
    ("tiles.give_back(1);\n", "tiles.give_back(0);\n", DEADLOCK),
    ("wgmma_wait<1>();", "", WRONG),
    ("wgmma_wait<1>();", "wgmma_wait<2>();", WRONG),
    ("wgmma_wait<0>();\n        wgmma_is", "wgmma_is", RACE),
    ("wgmma_wait<0>();\n        wgmma_is", "wgmma_wait<1>();\n        wgmma_is", RACE),
    ("wgmma_wait<0>();\n    wgmma_is_done(sums);", "", "has written to|returns before its wgmma"),
    ("wgmma_fence();\n        start", "start", r"call wgmma_fence\(\) before"),
    ("fence_barrier_init();", "", r"call fence_barrier_init\(\) after its init\(\)"),
    (
        "    __syncthreads();\n    if (warpgroup",
        "    if (warpgroup",
        "race on barriers|nothing has made a barrier",
    ),
    ("fence_for_copies();", "", r"with no fence_for_copies\(\) after it"),
    ("wait_for_stores<0>();\n    } else", ";\n    } else", r"returns before its store_box\(\)"),
    ("if (consumer == 1) pass_to(0);", "", "deadlock"),
    ("--left > 0 || consumer == 0", "true", "arrivals that nobody waits for"),
    ("pass_to(consumer ^ 1)", "pass_to(consumer)", "deadlock|barrier .* has had"),
    ("rescale_rows(sums, factor);\n        pack", "pack", WRONG),
    ("hide(scores, shape, query,", "hide(scores, shape, query + 1,", WRONG),
    ("(long long)(count - 1) * KEYS", "(long long)count * KEYS", WRONG),
    ("query + 8 * half, first_key", "query, first_key", WRONG),
    ("first_row + threadIdx.x % WARPGROUP / WARP", "first_row + threadIdx.x / WARP", WRONG),
    ("load(k, tile, 1, KEYS / BOX_ROWS)", "load(k, tile, ROW_BOXES<D>, 1)", WRONG),
    ("load(v, tile + 1, ROW_BOXES<D>, 1)", "load(v, tile + 1, 1, KEYS / BOX_ROWS)", WRONG),
    ("load(v, tile + 1,", "load(v, tile,", WRONG),
    ("i / STEPS * ROW_BOXES<D> * NEXT_BOX", "i / STEPS * NEXT_BOX", WRONG),
    ("wgmma<T, true>", "wgmma<T, false>", RACE),
    ("b + box * (8 * N / BOX_ROWS)", "b + box", WRONG),
    ("i > 0);", "true);", WRONG),
    ("reference / LOG2_E", "reference", WRONG),
    ("stride[1] ? matrix % heads : 0", "0", WRONG),
    ("stride[0] ? matrix / heads : 0", "0", WRONG),
    ("pack_left<T>(p[k], scores, k)", "pack_left<T>(p[k], scores, k ^ 1)", WRONG),
    ("wgmma_is_done(scores);\n        tiles", "p[0][0] ^= 1;\n        tiles", "has written to factors"),
]


@pytest.mark.parametrize(("old", "new", "says"), MUTANTS)
def test_a_change_is_found(simulator, change, old, new, says):
    change(attention_wgmma, old, new)
    q, k, v, _ = inputs((2, 2, 140, 700, 128, 128), np.float64)
    q, k, v = (x.astype(np.float16) for x in (q, growing(k)[:, :, ::-1], v))  # the last keys come first
    with sim.checks():
        if says == WRONG:
            assert error_of(compute(simulator, q, k, v, True), q, k, v, True) > 1
        else:
            with pytest.raises(KernelLaunchError) as caught:
                compute(simulator, q, k, v, False)
            assert re.search(says, str(caught.value)), str(caught.value)


# ---- the launch --------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """What would be launched on a card: (kernel, grid, maps, out_by_boxes, shape) of each launch."""
    seen, launch_other = [], CudaKernel.launch

    def launch(self, grid, block, args, shared_bytes=0):
        if self.name != "attention_wgmma":  # which makes a copy
            return launch_other(self, grid, block, args, shared_bytes)
        self._binder.bind(args)  # the arguments fit the kernel's parameters
        *_, q_map, k_map, v_map, out_map, by_boxes, shape = args
        maps = [m["words"] for m in (q_map, k_map, v_map, out_map)]
        seen.append((self.expression, grid, maps, by_boxes, shape))
        assert block == attention_wgmma.THREADS and shared_bytes <= 227 * 1024

    monkeypatch.setattr(CudaKernel, "launch", launch)
    monkeypatch.setattr(attention_wgmma, "is_supported", lambda array: True)
    return seen


def aligned(*shape):
    """Zeros of float16 that start at a multiple of 16 bytes."""
    memory = np.zeros(int(np.prod(shape)) + 8, np.float16)
    return memory[-address(memory) % 16 // 2 :][: int(np.prod(shape))].reshape(shape)


def launched(launches, q, k, v):
    out, lse = aligned(*q.shape[:3], v.shape[3]), np.zeros(q.shape[:3], np.float32)
    attention_wgmma.forward(out, lse, q, k, v, False, 1.0)
    return launches.pop()


def test_inputs_are_read_where_they_lie(launches):
    heads_inside = aligned(2, 300, 3, 64).swapaxes(1, 2)
    name, grid, maps, by_boxes, _ = launched(launches, heads_inside, heads_inside, heads_inside)
    assert name == "attention_wgmma<T, 64>" and grid == 2 * 3 * 3 and by_boxes
    assert [m[0] for m in maps[:3]] == [address(heads_inside)] * 3
    # 16 bits: sizes of the inner three, strides in bytes of the second and third; of the fourth at the end
    assert maps[0][1:] == (1, 2, 64, 300, 3, 384, 128, 64, 64, 1, 2, 115200, 0, 0, 0x5D0B0C5)
    assert maps[3][1:8] == (1, 2, 64, 300, 6, 128, 38400)
    qkv = aligned(2, 300, 3, 3, 40)  # as one projection makes them
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    _, _, maps, _, _ = launched(launches, q, k, v)
    assert [m[0] for m in maps[:3]] == [address(x) for x in (q, k, v)]


def test_what_is_broadcast_is_read_once(launches):
    q, k = aligned(2, 4, 20, 64), np.broadcast_to(aligned(2, 1, 30, 64), (2, 4, 30, 64))
    _, _, maps, _, shape = launched(launches, q, k, k)
    assert maps[1][0] == address(k) and maps[1][5] == 1 and maps[1][11] == 2
    assert tuple(shape["k_stride"]) == (1920, 0, 64)


def test_other_inputs_are_copied_to_rows_of_whole_vectors(launches):
    q = aligned(2, 4, 20, 64)
    for k in (
        aligned(2, 4, 30, 65)[..., 1:],
        aligned(2, 4, 30, 64)[:, :, ::-1],
        aligned(2, 4, 64, 30).swapaxes(2, 3),
    ):
        _, _, maps, _, _ = launched(launches, q, k, q[:, :, :1].repeat(30, 2))
        assert maps[1][0] != address(k) and maps[1][3:7] == (64, 30, 4, 128)


def test_an_output_between_vectors_is_stored_by_the_threads(launches):
    q = aligned(1, 1, 20, 64)
    assert launched(launches, q, q, q)[3] and not launched(launches, q, q, q[..., :60])[3]


def test_the_features_decide_which_instance_runs(launches):
    for E, V, D in ((1, 1, 64), (64, 64, 64), (65, 3, 128), (8, 128, 128)):
        assert launched(launches, aligned(1, 1, 5, E), aligned(1, 1, 7, E), aligned(1, 1, 7, V))[0].endswith(
            f"{D}>"
        )


def test_nothing_to_do_is_left_to_the_other_kernel(launches, monkeypatch):
    left = []
    monkeypatch.setattr(attention_tensor_core, "forward", lambda *args: left.append(args))
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)):
        x = np.zeros(shape, np.float16)
        attention_wgmma.forward(x, np.zeros(shape[:3], np.float32), x, x, x, False, 1.0)
    assert len(left) == 4 and not launches


def test_the_simulator_in_the_place_of_another_card():
    x, lse = np.zeros((1, 1, 4, 8), np.float16), np.zeros((1, 1, 4), np.float32)
    needs = r"needs a card of compute capability 9\.0, or sim.architecture\('sm_90a'\)"
    with sim.architecture("sm_80"), pytest.raises(KernelLaunchError, match=needs):
        attention_wgmma.forward(x, lse, x, x, x, False, 1.0)


def test_a_scale_that_is_not_positive(launches):
    x, lse = np.zeros((1, 1, 4, 8), np.float16), np.zeros((1, 1, 4), np.float32)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a positive scale"):
            attention_wgmma.forward(x, lse, x, x, x, False, scale)


def test_the_rung_is_preferred_for_many_queries_and_keys(monkeypatch):
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    for module in attention_wgmma, attention_tensor_core:
        monkeypatch.setattr(module, "is_supported", lambda array: True)
    q, k = np.zeros((1, 2, 30, 64), np.float16), np.zeros((1, 2, 40, 64), np.float16)

    def choose(q, k, v, mask=None, **options):
        options = {"is_causal": True, "scale": 0.1, "dropout_p": 0.0, "seed": 0, "offset": 0} | options
        kernel = get_op("attention").kernels.choose("cuda", q.dtype, [q, k, v, mask], options)
        return kernel and kernel.name

    assert choose(q, k, k) == "tensor_core"
    for shape, rung in (
        ((8, 12, 1024, 64), "wgmma"),
        ((8, 12, 512, 128), "wgmma"),
        ((8, 12, 511, 64), "tensor_core"),
        ((1, 8, 1024, 64), "tensor_core"),  # 64 blocks of 128 queries
        ((8, 12, 1024, 32), "tensor_core"),  # half of each tile of features
        ((8, 12, 1024, 80), "tensor_core"),
    ):
        x = np.empty(shape, np.float16)
        assert choose(x, x, x) == rung
    x = np.empty((8, 12, 1024, 64), np.float16)
    assert choose(x, x, x, np.ones((1024, 1024), bool)) == choose(x, x, x, dropout_p=0.1) == "tensor_core"
    with mg.use_kernel("attention", "wgmma"):
        assert choose(q, k, k) == "wgmma"
        assert choose(q, k[:, :, :0], k[:, :, :0]) is None
        assert choose(q, k, k, scale=-1.0) is None
        assert choose(q.astype(np.float32), k, k) is None
        assert choose(q, k, np.zeros((1, 2, 40, 129), np.float16)) is None
