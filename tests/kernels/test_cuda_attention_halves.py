"""The CUDA kernels of attention in 16 bits, against the definition in float64 on the rounded inputs."""

import numpy as np
import pytest
from attention_problems import (
    SCALE,
    growing,
    inputs,
    largest_error,
    with_errors,
    with_strides_of_their_own,
)

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


def compute(backend, q, k, v, grad, causal, scale=SCALE):
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
    attention.forward(out, lse, q, k, v, causal, scale)
    grad = backend.put(np.ascontiguousarray(grad))
    attention.backward((dq, dk, dv), grad, (q, k, v), out, lse, causal, scale)
    return tuple(map(backend.get, (out, lse, dq, dk, dv)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(backend, half, size, causal):
    problem = [x.astype(half) for x in inputs(size, np.float64)]
    assert largest_error(compute(backend, *problem, causal), with_errors(*problem, causal)) <= 1


@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_scores_that_leave_the_reference_behind(backend, half, order):
    q, k, v, grad = inputs((1, 1, 140, 300, 64, 64), np.float64)
    problem = [x.astype(half) for x in (q, growing(k)[:, :, ::order], v, grad)]
    for causal in (False, True):
        assert largest_error(compute(backend, *problem, causal), with_errors(*problem, causal)) <= 1


@pytest.mark.parametrize("causal", [False, True])
def test_a_negative_scale(backend, half, causal):
    q, k, v, grad = (x.astype(half) for x in inputs((1, 2, 140, 150, 24, 16), np.float64))
    out, lse, dq, dk, dv = compute(backend, -q, k, v, grad, causal, -SCALE)
    assert largest_error((out, lse, -dq, dk, dv), with_errors(q, k, v, grad, causal)) <= 1


def test_a_scale_of_zero(backend, half):
    """Weights are all the same, but where a key is hidden or a score infinite."""
    q, k, v, grad = (np.ones((1, 1, n, 8), half) for n in (3, 70, 70, 3))
    v[0, 0, 64:] = 7
    out, lse, dq, dk, _ = compute(backend, q, k, v, grad, True, 0.0)
    np.testing.assert_array_equal(out.astype(float), 1)
    np.testing.assert_allclose(lse[0, 0], np.log([1, 2, 3]), rtol=1e-6, atol=1e-6)
    assert not dq.astype(float).any() and not dk.astype(float).any()
    k[0, 0, 1] = -np.inf
    out = compute(backend, q, k, v, grad, True, 0.0)[0].astype(float)
    np.testing.assert_array_equal(out[0, 0, 0], 1)
    assert np.isnan(out[0, 0, 1:]).all()


def test_views_are_read_where_they_lie_or_copied(backend, half):
    """Heads side by side, as a layer has them; strides of their own; and rows that start between vectors."""
    q, k, v, grad = (x.astype(half) for x in inputs((1, 2, 20, 20, 16, 16), np.float64))
    wanted = compute(backend, q, k, v, grad, True)
    side_by_side = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    shifted = [np.concatenate([x[..., :1], x], -1)[..., 1:] for x in (q, k, v)]
    for views in (side_by_side, with_strides_of_their_own(q, k, v), shifted):
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


def test_keys_that_no_query_sees(backend):
    """Their gradients are zeros, whatever they are."""
    q, k, v, grad = (x.astype(np.float16) for x in inputs((1, 1, 100, 270, 64, 64), np.float64))
    wanted = compute(backend, q, k, v, grad, True)[3:]
    k[0, 0, 100:] = np.nan
    for found, other in zip(compute(backend, q, k, v, grad, True)[3:], wanted, strict=True):
        np.testing.assert_array_equal(found[0, 0, 100:], 0)
        np.testing.assert_array_equal(found, other)
    v[0, 0, 100:] = np.inf
    for found in compute(backend, q, k, v, grad, True)[3:]:
        np.testing.assert_array_equal(found[0, 0, 100:], 0)


def test_the_same_bits_every_time(backend):
    problem = [x.astype(np.float16) for x in inputs((1, 2, 100, 70, 20, 20), np.float64)]
    first, second = (compute(backend, *problem, True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()
