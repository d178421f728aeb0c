"""The logarithm of the gamma function with its derivatives, and the inverse of the error function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.op import op
from minigrad.ops.elementwise import exp, floating

SHIFT = 10  # from where on the asymptotic series has all digits of float64
EVEN_BERNOULLI_NUMBERS = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)

# Of the inverse normal distribution by ratios of polynomials, M. J. Wichura's algorithm AS 241,
# https://doi.org/10.2307/2347330: coefficients of numerator and denominator, of the highest power first, ...
MIDDLE = (  # ... in the middle, ...
    (2509.0809287301226727, 5226.495278852854561),
    (33430.575583588128105, 28729.085735721942674),
    (67265.770927008700853, 39307.89580009271061),
    (45921.953931549871457, 21213.794301586595867),
    (13731.693765509461125, 5394.1960214247511077),
    (1971.5909503065514427, 687.1870074920579083),
    (133.14166789178437745, 42.313330701600911252),
    (3.387132872796366608, 1.0),
)
OUTER = (  # ... outside of it, ...
    (7.7454501427834140764e-4, 1.05075007164441684324e-9),
    (0.0227238449892691845833, 5.475938084995344946e-4),
    (0.24178072517745061177, 0.0151986665636164571966),
    (1.27045825245236838258, 0.14810397642748007459),
    (3.64784832476320460504, 0.68976733498510000455),
    (5.7694972214606914055, 1.6763848301838038494),
    (4.6303378461565452959, 2.05319162663775882187),
    (1.42343711074968357734, 1.0),
)
TAILS = (  # ... and far out.
    (2.01033439929228813265e-7, 2.04426310338993978564e-15),
    (2.71155556874348757815e-5, 1.4215117583164458887e-7),
    (0.0012426609473880784386, 1.8463183175100546818e-5),
    (0.026532189526576123093, 7.868691311456132591e-4),
    (0.29656057182850489123, 0.0148753612908506148525),
    (1.7848265399172913358, 0.13692988092273580531),
    (5.4637849111641143699, 0.59983220655588793769),
    (6.6579046435011037772, 1.0),
)


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


@op(name="erfinv")
def _erfinv(xp, x):
    wide = x.astype(np.float64)
    middle = 0.180625 - wide * wide / 4
    outside = xp.sqrt(-xp.log((1 - abs(wide)) / 2))  # NaN beyond 1
    far = outside > 5
    normal = xp.where(far, _ratio(TAILS, outside - 5), _ratio(OUTER, outside - 1.6)) * xp.sign(wide)
    normal = xp.where(abs(wide) <= 0.85, _ratio(MIDDLE, middle) * wide / 2, normal)
    return xp.where(abs(wide) == 1, wide * math.inf, normal / math.sqrt(2)).astype(x.dtype)


def _ratio(coefficients: tuple, x: Any) -> Any:
    above = below = 0.0
    for a, b in coefficients:
        above, below = above * x + a, below * x + b
    return above / below


_erfinv.grad(x=lambda g, y, _x: g * exp(y * y) * (math.sqrt(math.pi) / 2))


def erfinv(x: Any) -> Any:
    """The number whose :func:`erf` is ``x``; infinite at -1 and 1, NaN beyond."""
    return _erfinv(floating(x))


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
