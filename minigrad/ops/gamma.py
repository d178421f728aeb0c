"""The logarithm of the gamma function, and its derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.op import op
from minigrad.ops.elementwise import floating

SHIFT = 10  # from where on the asymptotic series has all digits of float64
EVEN_BERNOULLI_NUMBERS = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


def _log_gamma(x: float) -> float:
    try:
        return math.lgamma(x)
    except (ValueError, OverflowError):  # at 0 and below, a pole; or larger than any number
        return math.inf


@op(name="lgamma")
def _lgamma(xp, x):
    if xp is np:  # NumPy has no lgamma
        return np.asarray(np.frompyfunc(_log_gamma, 1, 1)(x), x.dtype)
    from cupyx.scipy.special import gammaln

    return gammaln(x)


@op(name="polygamma")
def _polygamma(xp, x, *, n):
    """psi_n from its asymptotic series at x + SHIFT, for a negative x from that at 1 - x.

    By https://dlmf.nist.gov/5.15: psi_n(x) = (-1)^n psi_n(1 - x) - pi d^n/dx^n cot(pi x), and as the
    derivative of cot is -(1 + cot^2), the n-th is a polynomial of cot.
    """
    wide = x.astype(np.float64)
    negative, fraction = xp.signbit(wide), wide - xp.rint(wide)
    z = xp.where(negative, 1 - wide, wide)
    top = z + SHIFT
    total = -xp.log(top) if n == 0 else math.factorial(n - 1) / top**n
    total = total + math.factorial(n) * (
        0.5 / top ** (n + 1) + sum(1 / (z + k) ** (n + 1) for k in range(SHIFT))
    )
    for k, bernoulli in enumerate(EVEN_BERNOULLI_NUMBERS, 1):
        total = total + bernoulli * (math.factorial(2 * k + n - 1) / math.factorial(2 * k)) / top ** (
            2 * k + n
        )
    cot = 1 / xp.tan(math.pi * fraction)
    derivative = np.polynomial.Polynomial([0, math.pi])
    for _ in range(n):
        derivative = derivative.deriv() * np.polynomial.Polynomial([-math.pi, 0, -math.pi])
    other = sum(c * cot**k for k, c in enumerate(derivative.coef) if c)
    result = (-1.0) ** (n + 1) * total
    result = xp.where(negative, (-1.0) ** n * result - other, result)
    # A pole has another sign on its other side if n is even.
    is_pole = (wide < 0) & (fraction == 0)
    return xp.where(is_pole, math.inf if n % 2 else math.nan, result).astype(x.dtype)


_lgamma.grad(x=lambda g, _y, x: g * _polygamma(x, n=0))
_polygamma.grad(x=lambda g, _y, x, *, n: g * _polygamma(x, n=n + 1))


def lgamma(x: Any) -> Any:
    """log |Gamma(x)|; infinity at 0, -1, -2, ..."""
    return _lgamma(floating(x))


def digamma(x: Any) -> Any:
    """The derivative of :func:`lgamma`; NaN at -1, -2, ..."""
    return _polygamma(floating(x), n=0)


def polygamma(n: int, x: Any) -> Any:
    """The ``n``-th derivative of :func:`digamma`; at -1, -2, ... NaN if ``n`` is even, else infinity."""
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"polygamma: n must be an integer of at least 0, got {n!r:.60}")
    return _polygamma(floating(x), n=n)
