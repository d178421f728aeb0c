"""The CUDA kernels of attention in 16 bits, against the definition in float64 on the rounded inputs."""

import numpy as np
import pytest
from attention_problems import SCALE, inputs, with_errors

from minigrad.kernels.cuda import attention_tensor_core as attention

# B, H, L, S, E, V: one tile and several, features of whole chunks and others, on both sides of 64.
SIZES = [
    (1, 1, 1, 1, 8, 8),
    (1, 3, 1, 2, 3, 5),
    (2, 2, 37, 70, 16, 24),
    (1, 1, 140, 70, 5, 7),
    (1, 1, 33, 66, 128, 72),
    (1, 1, 9, 130, 7, 100),
]


def compute(backend, q, k, v, grad, causal):
    """out, lse and the gradients of q, k and v; every output starts as NaN."""
    B, H, L, E = q.shape
    S, V = v.shape[2:]
    out, lse, dq, dk, dv = (
        backend.put(np.full((B, H, *shape), np.nan, dtype))
        for shape, dtype in (
            *(((L, V), q.dtype), ((L,), np.float32), ((L, E), q.dtype)),
            *(((S, E), q.dtype), ((S, V), q.dtype)),
        )
    )
    q, k, v = map(backend.put_strided, (q, k, v))
    attention.forward(out, lse, q, k, v, causal, SCALE)
    grad = backend.put(np.ascontiguousarray(grad))
    attention.backward((dq, dk, dv), grad, (q, k, v), out, lse, causal, SCALE)
    return tuple(map(backend.get, (out, lse, dq, dk, dv)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(backend, half, size, causal):
    problem = [x.astype(half) for x in inputs(size, np.float64)]
    wanted = with_errors(*problem, causal)
    for found, (value, error) in zip(compute(backend, *problem, causal), wanted, strict=True):
        off = np.abs(found.astype(np.float64) - value)
        assert (off <= error).all(), off.max()


def test_views_are_read_where_they_lie_or_copied(backend, half):
    """Heads side by side, as a layer has them; and rows that start between vectors."""
    q, k, v, grad = (x.astype(half) for x in inputs((1, 2, 20, 20, 16, 16), np.float64))
    wanted = compute(backend, q, k, v, grad, True)
    side_by_side = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    shifted = [np.concatenate([x[..., :1], x], -1)[..., 1:] for x in (q, k, v)]
    for views in (side_by_side, shifted):
        for found, other in zip(compute(backend, *views, grad, True), wanted, strict=True):
            np.testing.assert_array_equal(found.astype(np.float32), other.astype(np.float32))


def test_nan_stays_in_its_query_and_hidden_infinities_stay_hidden(backend, half):
    q, k, v, grad = (x.astype(half) for x in inputs((1, 1, 30, 40, 5, 6), np.float64))
    wanted = compute(backend, q, k, v, grad, True)[0]
    q[0, 0, 7, 2] = np.nan
    k[0, 0, 30:] = np.inf  # that no query sees
    found = compute(backend, q, k, v, grad, True)[0]
    assert np.isnan(found[0, 0, 7].astype(np.float32)).all()
    others = np.arange(30) != 7
    np.testing.assert_array_equal(
        found[0, 0, others].astype(np.float32), wanted[0, 0, others].astype(np.float32)
    )


def test_the_same_bits_every_time(backend):
    problem = [x.astype(np.float16) for x in inputs((1, 2, 100, 70, 20, 20), np.float64)]
    first, second = (compute(backend, *problem, True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()
