"""The attention kernels, at every instruction-set level, against the definition in float64."""

import numpy as np
import pytest
from attention_problems import SCALE, SIZES, by_definition, inputs
from in_one_test import in_one_test

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
variants = pytest.mark.parametrize(("threads", "causal"), [(1, False), (2, True), (3, False), (3, True)])


def compute(module, size, dtype, causal, threads):
    """The same by the kernels."""
    B, H, L, S, E, V = size
    q, k, v, grad = inputs(size, dtype)
    out, lse = np.full((B, H, L, V), np.nan, dtype), np.full((B, H, L), np.nan, dtype)
    module.forward(out, lse, q, k, v, causal, SCALE, threads)
    grads = [np.full((B, H, n, d), np.nan, dtype) for n, d in ((L, E), (S, E), (S, V))]
    module.backward(*grads, grad, q, k, v, out, lse, causal, SCALE, threads)
    return out, lse, *grads


@sizes
@variants
def test_matches_the_definition(kernel_module, size, dtype, threads, causal):
    """Scores are sums of E products, all else sums of at most L or S terms of about unit size."""
    tolerance = 4 * (sum(size[2:]) + 10) * np.finfo(dtype).eps
    expected = by_definition(*inputs(size, dtype), causal)
    for found, wanted in zip(
        compute(kernel_module("attention"), size, dtype, causal, threads), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_large_scores_do_not_overflow(kernel_module, dtype):
    q = np.full((1, 1, 2, 4), 300, dtype)
    v = np.arange(8, dtype=dtype).reshape(1, 1, 2, 4)
    out, lse = np.empty((1, 1, 2, 4), dtype), np.empty((1, 1, 2), dtype)
    kernel_module("attention").forward(out, lse, q, q, v, False, 1.0, 1)
    np.testing.assert_array_equal(out, v.mean(2, keepdims=True).repeat(2, 2))
    np.testing.assert_allclose(lse, 360000 + np.log(2), rtol=np.finfo(dtype).eps)


def test_nan_stays_in_its_query(kernel_module, dtype):
    size = (1, 1, 30, 40, 5, 6)
    q, k, v, _ = inputs(size, dtype)
    q[0, 0, 7, 2] = np.nan
    out, lse = np.empty((1, 1, 30, 6), dtype), np.empty((1, 1, 30), dtype)
    kernel_module("attention").forward(out, lse, q, k, v, False, SCALE, 1)
    assert np.isnan(out[0, 0, 7]).all() and np.isnan(lse[0, 0, 7])
    assert np.isfinite(np.delete(out, 7, axis=2)).all()


@in_one_test("threads", [1, 2, 3])
def test_same_thread_count_gives_same_bits(kernel_module, dtype, threads):
    size = (2, 2, 60, 140, 16, 16)
    first = compute(kernel_module("attention"), size, dtype, True, threads)
    for found, again in zip(
        compute(kernel_module("attention"), size, dtype, True, threads), first, strict=True
    ):
        np.testing.assert_array_equal(found, again)


def test_rejects_what_would_corrupt_memory(kernel_module):
    size = (2, 3, 5, 7, 4, 9)
    q, k, v, _ = inputs(size, np.float64)
    out, lse = np.empty((2, 3, 5, 9)), np.empty((2, 3, 5))
    good = [out, lse, q, k, v]
    for position, bad, error in [
        (0, out[:1], ValueError),
        (0, out.astype(np.float32), TypeError),
        (1, lse[..., :2], ValueError),
        (2, q[0], ValueError),
        (2, np.ones((2, 3, 5, 8))[..., ::2], ValueError),
        (3, k.astype(np.float32), TypeError),
        (3, k[..., :3], ValueError),
        (4, v[:, :, :5], ValueError),
        (4, v[:1], ValueError),
        (4, None, TypeError),
    ]:
        arguments = [bad if i == position else array for i, array in enumerate(good)]
        with pytest.raises(error):
            kernel_module("attention").forward(*arguments, False, SCALE, 1)
    with pytest.raises(ValueError, match="at least one key"):
        kernel_module("attention").forward(out, lse, q, k[:, :, :0], v[:, :, :0], False, SCALE, 1)
