"""Results in 16 bits of what is computed in float32 and rounded once, against float64."""

import numpy as np

EPS = np.finfo(np.float32).eps


def normal(dtype, *shape, seed=0, scale=1.0):
    """Random numbers as ``dtype``, and the same in float64."""
    x = (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    return x, x.astype(np.float64)


def assert_rounded(actual, exact, error):
    """``actual``, in 16 bits, is ``exact`` but for ``error`` and one rounding."""
    tiny, unit = (2.0**-25, 2.0**-11) if actual.dtype == np.float16 else (2.0**-134, 2.0**-8)
    assert actual.shape == exact.shape
    off, bound = np.abs(actual.astype(np.float64) - exact), error + unit * (np.abs(exact) + error) + tiny
    assert (off <= bound).all(), f"off by {off.max()}"
