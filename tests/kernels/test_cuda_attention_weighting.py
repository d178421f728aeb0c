"""The CUDA kernels of attention with masks and dropout, against the definition in float64."""

import math

import numpy as np
import pytest
from attention_problems import SCALE, by_definition, inputs, largest_error, with_errors

from minigrad.kernels import philox
from minigrad.kernels.cuda import attention, attention_tensor_core
from minigrad.kernels.cuda.live import Live

FLOAT = np.float32
P, SEED, OFFSET = 0.3, 7 << 40, (5 << 33) + 1  # of a dropout; both words of each number count

# B, H, L, S, E, V: keys in whole blocks of random words and not, features on both sides of 32 and 64.
SIZES = [
    (2, 3, 5, 7, 4, 9),
    (2, 2, 1, 70, 21, 18),
    (1, 2, 150, 132, 64, 40),
    (2, 1, 70, 141, 100, 72),
    (1, 1, 270, 35, 3, 20),
]
EMPTY = [(0, 2, 3, 4, 5, 6), (2, 1, 0, 4, 5, 6), (1, 1, 3, 4, 0, 2)]


def padding(rng, B, H, L, S):
    return rng.random((B, 1, 1, S)) < 0.6


def pairs(rng, B, H, L, S):
    """Added, and broadcast along the matrices; some queries see nothing."""
    mask = np.where(rng.random((L, S)) < 0.7, 2 * rng.standard_normal((L, S)), -np.inf)
    mask[::3] = -np.inf
    return mask.astype(FLOAT)


def turned(rng, B, H, L, S):
    """One for each weight, with keys and queries exchanged in memory, and both from the last one on."""
    return (rng.random((B, H, S, L)) < 0.5)[:, :, ::-1, ::-1].swapaxes(2, 3)


def of_queries(rng, B, H, L, S):
    """Added to whole rows, in every other place of memory."""
    return np.where(rng.random((H, 2 * L, 1)) < 0.7, 0.5, -np.inf).astype(FLOAT)[:, ::2]


def nothing(rng, B, H, L, S):
    return None


MASKS = [padding, pairs, turned, of_queries, nothing]
masks = pytest.mark.parametrize("make", MASKS, ids=lambda make: make.__name__)


def mask_for(make, size):
    return make(np.random.default_rng(sum(size)), *size[:4])


def factors(size, p):
    """What the weights of a dropout are multiplied by: a row takes whole blocks of four random words."""
    B, H, L, S = size[:4]
    words = -(-S // 4) * 4
    kept = philox.kept(np, B * H * L * words, p, SEED, OFFSET).reshape(B, H, L, words)[..., :S]
    return kept / (1 - p) if p < 1 else np.zeros(kept.shape)


def compute(backend, module, problem, causal, mask, dropout):
    """out, lse and the gradients of q, k and v; every output starts as NaN."""
    q, k, v, grad = problem
    B, H, L, E = q.shape
    S, V = v.shape[2:]
    out, lse, dq, dk, dv = (
        backend.put(np.full((B, H, *shape), np.nan, dtype))
        for shape, dtype in (
            *(((L, V), q.dtype), ((L,), FLOAT), ((L, E), q.dtype)),
            *(((S, E), q.dtype), ((S, V), q.dtype)),
        )
    )
    q, k, v = map(backend.put_strided, (q, k, v))
    if mask is not None:
        mask = backend.put_strided(np.broadcast_to(mask, (B, H, L, S)))
    module.forward(out, lse, q, k, v, causal, SCALE, mask=mask, dropout=dropout)
    grad = backend.put(np.ascontiguousarray(grad))
    module.backward((dq, dk, dv), grad, (q, k, v), out, lse, causal, SCALE, mask=mask, dropout=dropout)
    return tuple(map(backend.get, (out, lse, dq, dk, dv)))


def check(backend, size, causal, mask, p=0.0, half=None):
    dropout, kept = ((p, SEED, OFFSET), factors(size, p)) if p else (None, 1)
    problem = inputs(size, FLOAT if half is None else np.float64)
    if half is not None:
        problem = [x.astype(half) for x in problem]
        found = compute(backend, attention_tensor_core, problem, causal, mask, dropout)
        assert largest_error(found, with_errors(*problem, causal, mask, kept)) <= 1
        return
    tolerance = 4 * (sum(size[2:]) + 10) * np.finfo(FLOAT).eps
    found = compute(backend, attention, problem, causal, mask, dropout)
    for x, y in zip(found, by_definition(*problem, causal, mask, kept), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES + EMPTY, ids=str)
@masks
def test_matches_the_definition(backend, size, make):
    check(backend, size, False, mask_for(make, size), P if size[3] % 2 or make is nothing else 0.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@masks
def test_matches_the_definition_in_16_bits(backend, half, size, make):
    check(backend, size, False, mask_for(make, size), P if size[3] % 2 or make is nothing else 0.0, half)


@pytest.mark.parametrize("half", [None, np.float16])
def test_causal_with_a_mask_and_dropout(backend, half):
    size = 1, 2, 140, 70, 16, 24
    check(backend, size, True, mask_for(padding, size), P, half)


@pytest.mark.parametrize("half", [None, np.float16])
def test_everything_is_dropped(backend, half):
    size = 1, 2, 33, 34, 8, 8
    check(backend, size, False, None, 1.0, half)


@pytest.mark.parametrize("half", [None, np.float16])
def test_live_seed_and_offset_are_those_of_numbers(backend, half):
    module = attention if half is None else attention_tensor_core
    problem = [x.astype(half or FLOAT) for x in inputs((1, 2, 33, 34, 8, 8), np.float64)]
    words = backend.put(np.array([SEED, OFFSET], np.uint64))
    live = Live("QQ", words, lambda: (SEED, OFFSET))
    results = [
        compute(backend, module, problem, False, None, (P, *stream))
        for stream in ((SEED, OFFSET), (live, live), (SEED, OFFSET + 1))
    ]
    for x, y, other in zip(*results, strict=True):
        assert x.tobytes() == y.tobytes()
        assert (x.dtype == FLOAT and x.ndim == 3) or x.tobytes() != other.tobytes()  # but for lse


@pytest.mark.parametrize("half", [None, np.float16])
def test_nan_stays_in_its_query_and_hidden_keys_stay_hidden(backend, half):
    module = attention if half is None else attention_tensor_core
    problem = q, k, _, _ = [x.astype(half or FLOAT) for x in inputs((1, 1, 30, 40, 5, 6), np.float64)]
    for mask in (np.arange(40) < 30, np.where(np.arange(40) < 30, FLOAT(0.5), FLOAT(-np.inf))):
        mask = np.tile(mask, (1, 1, 30, 1))
        wanted = compute(backend, module, problem, False, mask, None)[0]
        q[0, 0, 7, 2] = np.nan
        k[0, 0, 30:] = np.nan  # that no query sees
        if mask.dtype == FLOAT:
            mask[0, 0, 9, 3] = np.nan
        found = compute(backend, module, problem, False, mask, None)[0].astype(FLOAT)
        hurt = [7, 9] if mask.dtype == FLOAT else [7]
        assert np.isnan(found[0, 0, hurt]).all()
        others = np.delete(np.arange(30), hurt)
        np.testing.assert_array_equal(found[0, 0, others], wanted[0, 0, others].astype(FLOAT))
        q[0, 0, 7, 2] = k[0, 0, 30:] = 1


@pytest.mark.parametrize("half", [None, np.float16])
@pytest.mark.parametrize("mask", ["none", "all", "zeros", "some"])
def test_scores_of_minus_infinity_are_nan_where_a_key_is_seen(backend, half, mask):
    """By themselves, in query 7; what the mask hides altogether, in query 9, is zero."""
    size = 1, 1, 30, 140, 5, 6
    module = attention if half is None else attention_tensor_core
    problem = q, k, _, _ = [x.astype(half or FLOAT) for x in inputs(size, np.float64)]
    k[...] = abs(k)
    seen = np.ones((1, 1, 30, 140), bool)
    if mask == "some":
        seen[:, :, 7, :100] = seen[:, :, 9] = False
    masks = {"none": None, "zeros": np.zeros(seen.shape, FLOAT)}
    arguments = False, masks.get(mask, seen), (0.5, SEED, OFFSET)
    wanted, wanted_lse, *_ = compute(backend, module, problem, *arguments)
    q[0, 0, 7] = -np.inf
    found, lse, *_ = compute(backend, module, problem, *arguments)
    assert np.isnan(found[0, 0, 7]).all() and np.isnan(lse[0, 0, 7])
    np.testing.assert_array_equal(np.delete(found, 7, 2), np.delete(wanted, 7, 2))
    np.testing.assert_array_equal(np.delete(lse, 7, 2), np.delete(wanted_lse, 7, 2))
    assert mask != "some" or (not found[0, 0, 9].any() and lse[0, 0, 9] == np.inf)


def test_as_many_are_dropped_as_should_be():
    kept = factors((1, 1, 200, 250), P) > 0
    assert abs(kept.mean() - (1 - P)) < 5 * math.sqrt(P * (1 - P) / kept.size)
