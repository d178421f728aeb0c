"""The gradients of attention by wgmma, on the simulator and on a card of compute capability 9.0."""

import re

import numpy as np
import pytest
from attention_problems import SCALE, TILE_SIZES, VIEWS, by_definition, inputs, largest_error, with_errors

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.cuda import attention_tensor_core, attention_wgmma_grad, matmul_wgmma
from minigrad.kernels.errors import KernelLaunchError
from minigrad.op import get_op


def compute(card, q, k, v, grad, causal):
    """The gradients of q, k and v, which start as NaN; out and lse are rounded from the definition's."""
    out, lse, *_ = by_definition(q, k, v, grad, causal)
    out, lse = out.astype(q.dtype), lse.astype(np.float32)
    grad, out, lse = (card.put(np.ascontiguousarray(x)) for x in (grad, out, lse))
    grads = [card.put(np.full(x.shape, np.nan, x.dtype)) for x in (q, k, v)]
    qkv = list(map(card.put_strided, (q, k, v)))
    attention_wgmma_grad.backward(grads, grad, qkv, out, lse, causal, SCALE)
    return [card.get(x) for x in grads]


def error_of(found, *problem):
    """How far the gradients are from the definition, as a share of what rounding may do."""
    return largest_error(found, with_errors(*problem)[2:])


# ---- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", TILE_SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(card, half, size, causal):
    problem = *(x.astype(half) for x in inputs(size, np.float64)), causal
    assert error_of(compute(card, *problem), *problem) <= 1


@pytest.mark.parametrize("view", VIEWS)
def test_views(card, view):
    q, k, v, grad = (x.astype(np.float16) for x in inputs((2, 3, 140, 140, 64, 64), np.float64))
    problem = *map(VIEWS[view], (q, k, v)), grad, True
    assert error_of(compute(card, *problem), *problem) <= 1


def test_keys_that_no_query_sees(card):
    """Their gradients are zeros, whatever they are; and those of the others do not see them."""
    q, k, v, grad = (x.astype(np.float16) for x in inputs((1, 1, 100, 400, 64, 64), np.float64))
    wanted = compute(card, q, k, v, grad, True)
    k[0, 0, 100:], v[0, 0, 256:] = np.nan, np.nan
    with np.errstate(invalid="ignore"):
        dq, dk, dv = compute(card, q, k[:, :, :100], v[:, :, :100], grad, True)
    np.testing.assert_array_equal(dq, wanted[0])
    np.testing.assert_array_equal(dk, wanted[1][:, :, :100])
    np.testing.assert_array_equal(dv, wanted[2][:, :, :100])
    assert not wanted[1][:, :, 100:].any() and not wanted[2][:, :, 100:].any()


def test_the_same_bits_in_every_order(card):
    problem = *(x.astype(np.float16) for x in inputs((1, 2, 200, 270, 64, 64), np.float64)), True
    first = compute(card, *problem)
    with sim.stress(4):
        second = compute(card, *problem)
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


# ---- what the simulator, or a comparison, finds when a line of a kernel is changed -------------------------

RACE = r"race on dynamic\[\d+\] of the shared variable .*is ordered by waiting for it alone"
DEADLOCK = r"deadlock(.|\n)*the barrier shared.* lacks"
WRONG = "wrong"  # no message, but another result

# (what stands in a kernel, what is put in its place, what is said)
MUTANTS = [
    ("shared.ring.full[turn.stage].wait(turn.parity);", "", RACE),
    ("shared.own.wait(0);", "", RACE),
    ("shared.ring.empty[turn.stage].wait(turn.parity ^ 1);  //", "//", RACE + "|one arrival too many"),
    ("shared.ring.empty[turn.stage].wait(turn.parity ^ 1);\n#", "\n#", "race on shared|one arrival too many"),
    ("init(CONSUMERS * WARPGROUP / WARP)", "init(CONSUMERS * WARPGROUP / WARP - 1)", "race|one arrival"),
    ("init(CONSUMERS * WARPGROUP / WARP)", "init(CONSUMERS * WARPGROUP / WARP + 1)", DEADLOCK),
    ("init(shared, WARP)", "init(shared, WARP - 1)", "race on shared|one arrival too many"),
    ("init(shared, WARP)", "init(shared, WARP + 1)", DEADLOCK),
    ("expect(PAIR_BOXES<D> * BOX_BYTES)", "expect((PAIR_BOXES<D> - 1) * BOX_BYTES)", RACE + "|" + DEADLOCK),
    ("__syncwarp();  // all lanes", "// all lanes", "race on shared"),
    ("wgmma_wait<2>();", "", "race|has written to"),
    ("wgmma_wait<1>();", "", "has written to"),
    ("wgmma_wait<0>();\n        wgmma_is_done(grad);", "", "has written to"),
    ("wgmma_wait<0>();\n    wgmma_is_done(k_sums);", "", "returns before its wgmma|" + WRONG),
    ("        wgmma_fence();\n        start_rows", "        start_rows", r"call wgmma_fence\(\) before"),
    ("before = turn.stage;", "before = 0;", DEADLOCK),
    ("{g_map, task.matrix}, int(", "{g_map, 0}, int(", WRONG),
    ("queries ? OfQuery", "queries - 1 ? OfQuery", WRONG),
    ("row_sums[query]}", "0}", WRONG),
    ("column < begin + r", "column <= begin + r", WRONG),
    ("row - first + lane_row", "row - first", WRONG),
    ("is_causal ? row + BOX_ROWS : 0", "is_causal ? row : 0", WRONG),
    ("row < walk.end ? row : walk.end", "row < walk.end ? row + 64 : walk.end", WRONG),
    ("others + ROW_BOXES<D> * NEXT_BOX);", "others);", WRONG),
    (
        "start_times_rows<T, D>(k_sums, ds_factors, others)",
        "start_times_rows<T, D>(k_sums, p_factors, others)",
        WRONG,
    ),
    ("y(x + OWN_BOXES<D> * NEXT_BOX)", "y(x)", WRONG),
    ("dk_map, k_by_boxes, k_sums, shape.scale", "dk_map, k_by_boxes, k_sums, 1", WRONG),
    ("query + r, first, OTHERS)", "query, first, OTHERS)", WRONG),
    (
        "shape.is_causal ? int(task.first_row) : 0",
        "shape.is_causal ? int(task.first_row) + 64 : 0",
        WRONG,
    ),
]


@pytest.mark.parametrize(("old", "new", "says"), MUTANTS)
def test_a_change_is_found(simulator, change, old, new, says):
    change(attention_wgmma_grad, old, new)
    problem = *(x.astype(np.float16) for x in inputs((1, 2, 460, 460, 64, 64), np.float64)), True
    with sim.checks():
        if says == WRONG:
            assert error_of(compute(simulator, *problem), *problem) > 1
        else:
            with pytest.raises(KernelLaunchError) as caught:
                compute(simulator, *problem)
            assert re.search(says, str(caught.value)), str(caught.value)


# ---- the launch --------------------------------------------------------------------------------------------


def test_nothing_to_do_is_left_to_the_other_kernel(monkeypatch):
    left = []
    monkeypatch.setattr(attention_wgmma_grad, "is_supported", lambda array: True)
    monkeypatch.setattr(attention_tensor_core, "backward", lambda *args: left.append(args))
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)):
        x = np.zeros(shape, np.float16)
        attention_wgmma_grad.backward((x, x, x), x, (x, x, x), x, np.zeros(shape[:3], np.float32), False, 1.0)
    assert len(left) == 4


def test_the_simulator_in_the_place_of_another_card():
    x, lse = np.zeros((1, 1, 4, 8), np.float16), np.zeros((1, 1, 4), np.float32)
    needs = r"needs a card of compute capability 9\.0, or sim.architecture\('sm_90a'\)"
    with sim.architecture("sm_80"), pytest.raises(KernelLaunchError, match=needs):
        attention_wgmma_grad.backward((x, x, x), x, (x, x, x), x, lse, False, 1.0)


def test_the_rung_is_preferred_for_many_queries_and_keys(monkeypatch):
    monkeypatch.setattr(matmul_wgmma, "multiprocessors", lambda array: 132)
    for module in attention_wgmma_grad, attention_tensor_core:
        monkeypatch.setattr(module, "is_supported", lambda array: True)
    q, k, lse = (
        np.zeros((1, 2, 30, 64), np.float16),
        np.zeros((1, 2, 40, 64), np.float16),
        np.zeros((1, 2, 30)),
    )

    def choose(grad_lse=None, mask=None, dropout_p=0.0):
        options = {"is_causal": True, "scale": -0.1, "dropout_p": dropout_p, "seed": 0, "offset": 0}
        arrays, kernels = [q, q, k, k, q, lse, grad_lse, mask], get_op("attention_grad").kernels
        kernel = kernels.choose("cuda", q.dtype, arrays, options)
        return kernel and kernel.name

    assert choose() == "tensor_core"
    q = k = np.empty((8, 12, 1024, 64), np.float16)
    assert choose() == "wgmma"
    assert choose(mask=np.ones((1024, 1024), bool)) == choose(dropout_p=0.1) == "tensor_core"
    q, k = q[:1, :2, :30], k[:1, :2, :40]
    with mg.use_kernel("attention_grad", "wgmma"):
        assert choose() == "wgmma" and choose(lse) is None
