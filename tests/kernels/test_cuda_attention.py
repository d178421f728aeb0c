"""The CUDA kernels of attention and its gradients, against the definition in float64."""

import numpy as np
import pytest
from attention_problems import SCALE, SIZES, by_definition, growing, inputs, with_strides_of_their_own

from minigrad.kernels.cuda import attention, most_shared_bytes

FLOAT = np.float32
LARGE_FEATURES = [(1, 1, 70, 40, 64, 50), (1, 2, 33, 66, 128, 7), (1, 1, 9, 5, 3, 100)]


def compute(backend, q, k, v, grad, causal, tile=None, grad_tile=None):
    """out, lse and the gradients of q, k and v; every output starts as NaN."""
    B, H, L, E = q.shape
    S, V = v.shape[2:]
    out, lse, dq, dk, dv = (
        backend.put(np.full((B, H, *shape), np.nan, FLOAT))
        for shape in ((L, V), (L,), (L, E), (S, E), (S, V))
    )
    q, k, v = map(backend.put_strided, (q, k, v))
    attention.forward(out, lse, q, k, v, causal, SCALE, tile)
    grad = backend.put(np.ascontiguousarray(grad))
    attention.backward((dq, dk, dv), grad, (q, k, v), out, lse, causal, SCALE, grad_tile)
    return tuple(map(backend.get, (out, lse, dq, dk, dv)))


@pytest.mark.parametrize("size", SIZES + LARGE_FEATURES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(backend, size, causal):
    """Scores are sums of E products, all else sums of at most L or S terms of about unit size."""
    tolerance = 4 * (sum(size[2:]) + 10) * np.finfo(FLOAT).eps
    problem = inputs(size, FLOAT)
    for found, wanted in zip(
        compute(backend, *problem, causal), by_definition(*problem, causal), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_views(backend):
    q, k, v, grad = inputs((2, 2, 20, 20, 16, 16), FLOAT)
    wanted = compute(backend, q, k, v, grad, True)
    found = compute(backend, *with_strides_of_their_own(q, k, v), grad, True)
    for ours, value in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, value)


def skip_without_room(backend, shared_bytes):
    if most_shared_bytes(backend.put(np.zeros(1))) < shared_bytes:
        pytest.skip(f"a block of this card cannot have {shared_bytes} bytes of shared memory")


@pytest.mark.parametrize(("D", "tile"), attention._forward)
def test_every_tile(backend, D, tile):
    skip_without_room(backend, attention._forward_bytes(D, tile))
    q, k, v, grad = inputs((1, 2, 150, 140, D, D - 5), FLOAT)
    tolerance = 4 * (300 + 2 * D) * np.finfo(FLOAT).eps
    for causal in (False, True):
        wanted = by_definition(q, k, v, grad, causal)
        for found, value in zip(compute(backend, q, k, v, grad, causal, tile)[:2], wanted, strict=False):
            np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("D", "tile"), attention._grad_keys)
def test_every_tile_of_the_gradients(backend, D, tile):
    """With more keys than queries, and fewer."""
    skip_without_room(backend, attention._backward_bytes(D, tile))
    for L, S, causal in ((100, 150, True), (140, 70, True), (70, 140, False)):
        q, k, v, grad = inputs((1, 2, L, S, D - 5, D), FLOAT)
        tolerance = 4 * (L + S + 2 * D) * np.finfo(FLOAT).eps
        wanted = by_definition(q, k, v, grad, causal)[2:]
        for found, value in zip(compute(backend, q, k, v, grad, causal, None, tile)[2:], wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("together", [1, 2, 3, 7])
def test_matrices_whose_blocks_are_numbered_together(backend, together, monkeypatch):
    """All matrices are made, whether or not their number is a multiple."""
    monkeypatch.setattr(attention, "matrices_together", lambda *_: together)
    attention._shape_of.cache_clear()
    problem = inputs((1, 7, 130, 70, 8, 8), FLOAT)
    found, wanted = compute(backend, *problem, True), by_definition(*problem, True)
    attention._shape_of.cache_clear()
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_matrices_together_are_equal_parts_of_what_the_cache_holds():
    def together(heads, length, features):
        shape = 1, heads, length, features
        return attention.matrices_together(shape, shape, 4)

    assert together(96, 1024, 64) == 48  # of 0.5 MB each
    assert together(64, 1024, 128) == 32
    assert together(3, 10**6, 128) == 1
    assert together(5, 16, 16) == 5
    assert together(0, 16, 16) == 1


@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_scores_that_leave_the_reference_behind(backend, order):
    q, k, v, grad = inputs((1, 1, 70, 300, 40, 24), FLOAT)
    k = growing(k)[:, :, ::order].astype(FLOAT)
    for causal in (False, True):
        found, wanted = compute(backend, q, k, v, grad, causal), by_definition(q, k, v, grad, causal)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())


def test_scales_that_are_not_positive(backend):
    q, k, v, _ = inputs((1, 2, 70, 100, 12, 8), FLOAT)
    q, k, v = map(backend.put_strided, (-q, k, v))
    out, lse = (backend.put(np.full(shape, np.nan, FLOAT)) for shape in ((1, 2, 70, 8), (1, 2, 70)))
    attention.forward(out, lse, q, k, v, True, -SCALE)
    wanted = by_definition(*inputs((1, 2, 70, 100, 12, 8), FLOAT), True)
    np.testing.assert_allclose(backend.get(out), wanted[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backend.get(lse), wanted[1], rtol=1e-4, atol=1e-4)
    attention.forward(out, lse, q, k, v, True, 0.0)
    seen = np.arange(1, 71)
    means = np.cumsum(backend.get(v)[:, :, :70], axis=2, dtype=float) / seen[:, None]
    np.testing.assert_allclose(backend.get(out), means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backend.get(lse), np.broadcast_to(np.log(seen), (1, 2, 70)), atol=1e-5)


def test_large_scores_do_not_overflow(backend):
    q = np.full((1, 1, 2, 4), 1000, FLOAT)
    v = np.arange(8, dtype=FLOAT).reshape(1, 1, 2, 4)
    out, lse, *_ = compute(backend, q, q, v, np.ones_like(v), False)
    np.testing.assert_array_equal(out, v.mean(2, keepdims=True).repeat(2, 2))
    np.testing.assert_allclose(lse, SCALE * 4e6 + np.log(2), rtol=1e-6)


def test_nan_stays_in_its_query_and_hidden_infinities_stay_hidden(backend):
    q, k, v, grad = inputs((1, 1, 30, 40, 5, 6), FLOAT)
    wanted = compute(backend, q, k, v, grad, True)[0]
    q[0, 0, 7, 2] = np.nan
    k[0, 0, 30:] = np.inf  # that no query sees
    found = compute(backend, q, k, v, grad, True)[0]
    assert np.isnan(found[0, 0, 7]).all()
    others = np.arange(30) != 7
    np.testing.assert_array_equal(found[0, 0, others], wanted[0, 0, others])


def test_the_same_bits_every_time(backend):
    problem = inputs((1, 2, 100, 70, 20, 20), FLOAT)
    first, second = (compute(backend, *problem, True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
