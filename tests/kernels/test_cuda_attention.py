"""The CUDA kernels of attention and its gradients, against the definition in float64."""

import numpy as np
import pytest
from attention_problems import SCALE, SIZES, by_definition, inputs

from minigrad.kernels.cuda import attention

FLOAT = np.float32
LARGE_FEATURES = [(1, 1, 70, 40, 64, 50), (1, 2, 33, 66, 128, 7), (1, 1, 9, 5, 3, 100)]


def compute(backend, q, k, v, grad, causal):
    """out, lse and the gradients of q, k and v; every output starts as NaN."""
    B, H, L, E = q.shape
    S, V = v.shape[2:]
    out, lse, dq, dk, dv = (
        backend.put(np.full((B, H, *shape), np.nan, FLOAT))
        for shape in ((L, V), (L,), (L, E), (S, E), (S, V))
    )
    q, k, v = map(backend.put_strided, (q, k, v))
    attention.forward(out, lse, q, k, v, causal, SCALE)
    grad = backend.put(np.ascontiguousarray(grad))
    attention.backward((dq, dk, dv), grad, (q, k, v), out, lse, causal, SCALE)
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
