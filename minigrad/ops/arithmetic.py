"""More arithmetic: functions of two variables, inverse hyperbolic functions, lerp and addcmul."""

from __future__ import annotations

import math
from typing import Any

from minigrad.dtypes import finfo, is_floating
from minigrad.graph import mode
from minigrad.op import op
from minigrad.ops.elementwise import (
    _function,
    add,
    as_dtype,
    clamp,
    div,
    exp,
    floating,
    floating_pair,
    isnan,
    log,
    log1p,
    mul,
    sqrt,
    times,
    trunc,
    where,
)

asinh = _function("asinh", "arcsinh", lambda g, _z, x: g / sqrt(x * x + 1.0))
acosh = _function("acosh", "arccosh", lambda g, _z, x: g / sqrt(x * x - 1.0))
atanh = _function("atanh", "arctanh", lambda g, _z, x: g / (1.0 - x * x))
exp2 = _function("exp2", "exp2", lambda g, z, _x: g * (z * math.log(2.0)))


@op(promote=True, name="atan2")
def _atan2(xp, y, x):
    return xp.arctan2(y, x)


def _over_square(a: Any, y: Any, x: Any) -> Any:
    """a / (x^2 + y^2), and 0 at the origin, where the angle has no derivative."""
    square = x * x + y * y
    return a / where(square == 0, math.inf, square)


_atan2.grad(
    y=lambda g, _z, y, x: g * _over_square(x, y, x),
    x=lambda g, _z, y, x: g * _over_square(-y, y, x),
)


def atan2(y: Any, x: Any) -> Any:
    """The angle in (-pi, pi] of the point (x, y)."""
    return _atan2(*floating_pair(y, x))


@op(promote=True, name="hypot")
def _hypot(xp, x, y):
    return xp.hypot(x, y)


_hypot.grad(x=lambda g, z, x, _y: g * (x / z), y=lambda g, z, _x, y: g * (y / z))


def hypot(x: Any, y: Any) -> Any:
    """sqrt(x^2 + y^2), computed without overflow."""
    return _hypot(*floating_pair(x, y))


@op(promote=True)
def fmod(xp, x, y):
    """The remainder of x / y, with the sign of x."""
    return xp.fmod(x, y)


fmod.grad(x=lambda g, _z, _x, _y: g, y=lambda g, _z, x, y: -g * trunc(div(x, y)))


def frac(x: Any) -> Any:
    """x - trunc(x)"""
    return x - trunc(x)


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """start + weight (end - start)"""
    return add(start, mul(weight, end - start))


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value tensor1 tensor2"""
    return add(input, mul(times(value, tensor1, input), tensor2))


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value tensor1 / tensor2"""
    return add(input, times(value, div(tensor1, tensor2), input))


def logaddexp(x: Any, y: Any) -> Any:
    """log(exp(x) + exp(y)), computed without overflow."""
    x, y = floating_pair(x, y)
    # As softplus: of equal numbers both terms take y for the smaller one, so that their sum is smooth.
    swapped = x < y
    less = where(swapped, x - y, y - x)
    # Of two equal infinities the difference is NaN; their larger one is the answer.
    return where(swapped, y, x) + log1p(exp(where(isnan(less) & (x == y), -math.inf, less)))


def xlogy(x: Any, y: Any) -> Any:
    """x log(y), and 0 where x is 0, unless y is NaN."""
    without_limit = (x == 0) & ((y <= 0) | (y == math.inf))
    return mul(x, log(where(without_limit, 1.0, floating(y))))


def logit(x: Any, eps: float | None = None) -> Any:
    """log(x / (1 - x)), the inverse of the sigmoid; with ``eps``, x is limited to [eps, 1 - eps] first.

    Outside of [0, 1] it is NaN, and so is its gradient.
    """
    x = floating(x)
    if eps is not None:
        x = clamp(x, eps, 1.0 - eps)
    found = log(x) - log1p(-x)
    if x.requires_grad and mode.grad:
        found = found * where((x >= 0) & (x <= 1), 1.0, math.nan).to(x.dtype)
    return found


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    """``x`` with NaN and the infinities replaced by numbers; infinities by the dtype's limits, by default."""
    if not is_floating(x.dtype):
        return x
    limits = finfo(x.dtype)
    replaced = where(isnan(x), as_dtype(nan, x.dtype, x.device), x)
    for infinity, value, limit in ((math.inf, posinf, limits.max), (-math.inf, neginf, limits.min)):
        number = float(limit) if value is None else value
        replaced = where(replaced == infinity, as_dtype(number, x.dtype, x.device), replaced)
    return replaced
