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
    """psi_n from its asymptotic series at x + SHIFT; https://dlmf.nist.gov/5.15.

    Below 1/2 by reflection: psi_0(1 - x) = psi_0(x) + pi / tan(pi x), psi_1(1 - x) = (pi / sin(pi x))^2 -
    psi_1(x); of higher orders there, where nothing asks for them, NaN.
    """
    wide = x.astype(np.float64)
    mirrored = wide < 0.5
    z = xp.where(mirrored, 1 - wide, wide)
    top = z + SHIFT
    total = -xp.log(top) if n == 0 else math.factorial(n - 1) / top**n
    total = total + math.factorial(n) * (
        0.5 / top ** (n + 1) + sum(1 / (z + k) ** (n + 1) for k in range(SHIFT))
    )
    for k, bernoulli in enumerate(EVEN_BERNOULLI_NUMBERS, 1):
        total = total + bernoulli * (math.factorial(2 * k + n - 1) / math.factorial(2 * k)) / top ** (
            2 * k + n
        )
    found = (-1.0) ** (n + 1) * total
    angle = wide * math.pi
    if n == 0:
        reflected = found - math.pi / xp.tan(angle)
    else:
        reflected = (math.pi / xp.sin(angle)) ** 2 - found if n == 1 else xp.full_like(found, math.nan)
    is_pole = (wide < 0) & (wide == xp.floor(wide))
    return xp.where(is_pole, math.nan, xp.where(mirrored, reflected, found)).astype(x.dtype)


_lgamma.grad(x=lambda g, _y, x: g * _polygamma(x, n=0))
_polygamma.grad(x=lambda g, _y, x, *, n: g * _polygamma(x, n=n + 1))


def lgamma(x: Any) -> Any:
    """log |Gamma(x)|; infinity at 0, -1, -2, ..."""
    return _lgamma(floating(x))


def digamma(x: Any) -> Any:
    """The derivative of :func:`lgamma`; NaN at -1, -2, ..."""
    return _polygamma(floating(x), n=0)


def polygamma(n: int, x: Any) -> Any:
    """The ``n``-th derivative of :func:`digamma`. From the second on NaN below 1/2."""
    if n < 0:
        raise ValueError(f"polygamma: n must not be negative, got {n}")
    return _polygamma(floating(x), n=int(n))
