"""Elementwise ops: arithmetic, functions of one variable, comparisons, selection.

Each op stands with its gradient; its kernels are in :mod:`.elementwise_kernels`. In a rule ``g`` is the
gradient of the output ``z``; names that start with an underscore are not kept for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.argument_errors import not_a_tensor
from minigrad.autograd import wrap
from minigrad.dtypes import is_floating
from minigrad.graph import Variable
from minigrad.kernels.cpu import small
from minigrad.kernels.cpu.small import negative, product
from minigrad.op import Op, op
from minigrad.ops.index import nonzero
from minigrad.promotion import get_default_dtype, result_dtype

# ---- arithmetic -----------------------------------------------------------------------------------------


@op(promote=True, arithmetic=True, ops_alone=True, small=small.add)
def add(xp, x, y):
    return x + y


add.grad(x=lambda g, _z, _x, _y: g, y=lambda g, _z, _x, _y: g)


@op(promote=True, arithmetic=True, small=small.sub)
def sub(xp, x, y):
    return x - y


sub.grad(x=lambda g, _z, _x, _y: g, y=lambda g, _z, _x, _y: negative(g))


@op(promote=True, arithmetic=True, small=small.mul)
def mul(xp, x, y):
    return x * y


mul.grad(x=lambda g, _z, _x, y: product(g, y), y=lambda g, _z, x, _y: product(g, x))


@op(promote=True, arithmetic=True, small=small.div, name="div")
def _div(xp, x, y):
    return x / y


@op
def divisor_grad(xp, g, x, y):
    """-g x / y^2, the gradient of x / y for y."""
    return -g * x / (y * y)


divisor_grad.grad(
    g=lambda gg, _z, _g, x, y: divisor_grad(gg, x, y),
    x=lambda gg, _z, g, _x, y: divisor_grad(gg, g, y),
    y=lambda gg, _z, g, x, y: gg * g * x * 2.0 / (y * y * y),
)

_div.grad(
    x=lambda g, _z, _x, y: g / y,
    y=lambda g, _z, x, y: divisor_grad(g, x, y) if isinstance(g, Variable) else -g * x / (y * y),
)


def div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """``x / y``. Integers are divided in the default floating dtype, or in the other operand's.

    With ``rounding_mode`` ``"floor"`` or ``"trunc"`` it is rounded down, or towards 0, and integers stay so.
    """
    if rounding_mode == "floor":
        return floor_divide(x, y)
    if rounding_mode == "trunc":
        quotient = trunc(div(x, y))
        return quotient if _is_floating(x) or _is_floating(y) else cast(quotient, dtype=result_dtype([x, y]))
    if rounding_mode is not None:
        raise ValueError(f"div: rounding_mode is None, 'floor' or 'trunc', got {rounding_mode!r}")
    return _div(*floating_pair(x, y))


def floating_pair(x: Any, y: Any) -> tuple[Any, Any]:
    """``x`` and ``y`` as they are if one of them is a tensor of floats, whose dtype the other will get; else
    both as :func:`floating` gives them."""
    return (x, y) if _is_floating(x) or _is_floating(y) else (floating(x), floating(y))


def _is_floating(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and is_floating(dtype)


@op(promote=True)
def floor_divide(xp, x, y):
    dtype = x.dtype if hasattr(x, "dtype") else y.dtype
    if xp is np or not is_floating(dtype):
        return xp.floor_divide(x, y)
    # CuPy rounds the quotient down, to infinity for inf // 2, which leaves no remainder: NumPy says NaN.
    wide = np.result_type(dtype, np.float32)
    x, y = xp.asarray(x, wide), xp.asarray(y, wide)
    rest = xp.fmod(x, y)
    quotient = (x - rest) / y - ((rest != 0) & ((rest < 0) != (y < 0)))
    whole = xp.floor(quotient)
    return xp.where(y == 0, x / y, whole + (quotient - whole > 0.5)).astype(dtype)


# As that of floor; PyTorch refuses to differentiate it.
floor_divide.grad(x=lambda g, _z, _x, _y: zeros_like(g), y=lambda g, _z, _x, _y: zeros_like(g))


@op(promote=True)
def remainder(xp, x, y):
    return xp.remainder(x, y)


remainder.grad(x=lambda g, _z, _x, _y: g, y=lambda g, _z, x, y: -g * floor_divide(x, y))


@op(arithmetic=True, small=small.neg)
def neg(xp, x):
    return -x


neg.grad(x=lambda g, _z, _x: negative(g))


@op(promote=True)
def pow(xp, x, y):
    if isinstance(y, (int, float)) and y == 2:
        return xp.multiply(x, x)
    return xp.power(x, y)


def _pow_base_grad(g, _z, x, y):
    if isinstance(y, (int, float)):
        return g * (x * 2.0 if y == 2 else y * x ** (y - 1)) if y != 0 else zeros_like(g)
    return g * where(y == 0, 0.0, y * x ** (y - 1))


def _pow_exponent_grad(g, z, x, y):
    if isinstance(x, (int, float)):
        if x == 0:
            return g * where(y >= 0, 0.0, z * -math.inf)
        return g * z * (math.log(x) if x > 0 else math.nan)
    return g * where((x == 0) & (y >= 0), 0.0, z * log(x))


pow.grad(x=_pow_base_grad, y=_pow_exponent_grad)


@op(promote=True)
def maximum(xp, x, y):
    return xp.maximum(x, y)


@op(promote=True)
def minimum(xp, x, y):
    return xp.minimum(x, y)


@op
def larger_share(xp, g, x, y):
    """The gradient of max(x, y) for x: ``g`` where x is larger or either is NaN, half of it at a tie."""
    return xp.where(x < y, xp.zeros((), g.dtype), xp.where(x == y, g / 2, g))


larger_share.grad(
    g=lambda gg, _z, _g, x, y: larger_share(gg, x, y),
    x=lambda gg, _z, _g, _x, _y: zeros_like(gg),
    y=lambda gg, _z, _g, _x, _y: zeros_like(gg),
)
maximum.grad(x=lambda g, _z, x, y: larger_share(g, x, y), y=lambda g, _z, x, y: larger_share(g, y, x))
minimum.grad(x=lambda g, _z, x, y: larger_share(g, y, x), y=lambda g, _z, x, y: larger_share(g, x, y))


@op(moves=True, ops_alone=True)
def cast(xp, x, *, dtype):
    """``x`` converted to ``dtype``."""
    return x.astype(dtype)


cast.dtype(lambda _x, *, dtype: dtype)
cast.grad(x=lambda g, _z, _x, *, dtype: cast(g, dtype=_x.dtype))


@op(moves=True)
def clone(xp, x):
    """A copy of ``x``."""
    return xp.array(x, copy=True, order="C")


clone.grad(x=lambda g, _z, _x: g)


# ---- functions of one variable --------------------------------------------------------------------------


def _function(name: str, numpy_name: str, gradient: Callable) -> Callable[[Any], Any]:
    """An op that is a NumPy function of one variable; integers are taken as the default floating dtype."""

    def reference(xp, x):
        return getattr(xp, numpy_name)(x)

    made = Op(reference, name)
    made.grad(x=gradient)

    def function(x):
        return made(floating(x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The {name} of each element."
    return function


exp = _function("exp", "exp", lambda g, z, _x: g * z)
expm1 = _function("expm1", "expm1", lambda g, z, _x: g * (z + 1.0))
log = _function("log", "log", lambda g, _z, x: g / x)
log1p = _function("log1p", "log1p", lambda g, _z, x: g / (x + 1.0))
log2 = _function("log2", "log2", lambda g, _z, x: g / (x * math.log(2.0)))
log10 = _function("log10", "log10", lambda g, _z, x: g / (x * math.log(10.0)))
sqrt = _function("sqrt", "sqrt", lambda g, z, _x: g / (z * 2.0))
sin: Callable[[Any], Any] = _function("sin", "sin", lambda g, _z, x: g * cos(x))
cos: Callable[[Any], Any] = _function("cos", "cos", lambda g, _z, x: -g * sin(x))
tan = _function("tan", "tan", lambda g, z, _x: g * (z * z + 1.0))
asin = _function("asin", "arcsin", lambda g, _z, x: g / sqrt(1.0 - x * x))
acos = _function("acos", "arccos", lambda g, _z, x: -g / sqrt(1.0 - x * x))
atan = _function("atan", "arctan", lambda g, _z, x: g / (x * x + 1.0))
sinh: Callable[[Any], Any] = _function("sinh", "sinh", lambda g, _z, x: g * cosh(x))
cosh: Callable[[Any], Any] = _function("cosh", "cosh", lambda g, _z, x: g * sinh(x))


def _rounding(name: str) -> Callable[[Any], Any]:
    """An op that rounds as the NumPy function of that name; integers are returned as they are."""
    rounded = _function(name, name, lambda g, _z, _x: zeros_like(g))

    def function(x):
        return x if getattr(x, "dtype", None) is not None and x.dtype.kind in "iu" else rounded(x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The {name} of each element."
    return function


floor = _rounding("floor")
ceil = _rounding("ceil")
round = _rounding("round")
trunc = _rounding("trunc")


@op
def abs(xp, x):
    return xp.abs(x)


@op
def abs_grad(xp, g, x):
    """g sign(x)"""
    return g * xp.sign(x)


abs.grad(x=lambda g, _z, x: abs_grad(g, x))
abs_grad.grad(g=lambda gg, _z, _g, x: abs_grad(gg, x), x=lambda gg, _z, _g, _x: zeros_like(gg))


@op
def sign(xp, x):
    return xp.sign(x)


sign.grad(x=lambda g, _z, _x: zeros_like(g))


@op
def square(xp, x):
    return xp.multiply(x, x)


square.grad(x=lambda g, _z, x: g * (x * 2.0))


def zeros_like(x: Any) -> Any:
    """Zeros of ``x``'s shape, dtype and device."""
    with x.device.active():
        return wrap(x.device.xp.zeros(x.shape, x.dtype), x.device)


def reciprocal(x: Any) -> Any:
    """``1 / x``."""
    return div(1.0, x)


def rsqrt(x: Any) -> Any:
    """``1 / sqrt(x)``."""
    return div(1.0, sqrt(x))


@op(name="erf")
def _erf(xp, x):
    if xp is np:  # NumPy has no erf
        return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)
    from cupyx.scipy.special import erf

    return erf(x)


_erf.grad(x=lambda g, _z, x: g * (exp(-x * x) * (2.0 / math.sqrt(math.pi))))


def erf(x: Any) -> Any:
    """The error function of each element."""
    return _erf(floating(x))


# ---- comparison and logic ---------------------------------------------------------------------------------


def _comparison(name: str, numpy_name: str) -> Op:
    def reference(xp, x, y):
        return getattr(xp, numpy_name)(x, y)

    return Op(reference, name, promote=True, differentiable=False)


eq = _comparison("eq", "equal")
ne = _comparison("ne", "not_equal")
lt = _comparison("lt", "less")
le = _comparison("le", "less_equal")
gt = _comparison("gt", "greater")
ge = _comparison("ge", "greater_equal")
logical_and = _comparison("logical_and", "logical_and")
logical_or = _comparison("logical_or", "logical_or")
logical_xor = _comparison("logical_xor", "logical_xor")
bitwise_and = _comparison("bitwise_and", "bitwise_and")
bitwise_or = _comparison("bitwise_or", "bitwise_or")
bitwise_xor = _comparison("bitwise_xor", "bitwise_xor")
bitwise_left_shift = _comparison("bitwise_left_shift", "left_shift")
bitwise_right_shift = _comparison("bitwise_right_shift", "right_shift")


def _predicate(name: str, numpy_name: str) -> Op:
    def reference(xp, x):
        return getattr(xp, numpy_name)(x)

    return Op(reference, name, differentiable=False)


logical_not = _predicate("logical_not", "logical_not")
bitwise_not = _predicate("bitwise_not", "invert")
isnan = _predicate("isnan", "isnan")
isinf = _predicate("isinf", "isinf")
isfinite = _predicate("isfinite", "isfinite")

for _op in (eq, ne, lt, le, gt, ge, isnan, isinf, isfinite):
    _op.dtype(lambda *_inputs: np.dtype(np.bool_))


def isclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """Whether abs(x - y) <= atol + rtol abs(y); equal infinities are close."""
    distance = maximum(x, y) - minimum(x, y)  # which unsigned integers have, too
    close = (x == y) | ((distance <= atol + rtol * abs(y)) & isfinite(y))
    return close | (isnan(x) & isnan(y)) if equal_nan else close


def allclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether :func:`isclose` holds for all elements."""
    return _all(isclose(x, y, rtol, atol, equal_nan))


def equal(x: Any, y: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    return x.shape == y.shape and _all(eq(x, y))


def _all(x: Any) -> bool:
    with x.device.active():
        return bool(x._array.all())


# ---- selection --------------------------------------------------------------------------------------------


@op(name="where", moves=True)
def _where(xp, condition, x, y):
    chosen, dtype = xp.where(condition, x, y), _where_dtype(condition, x, y)
    return chosen if chosen.dtype == dtype else chosen.astype(dtype)  # a number widens bfloat16


@_where.dtype
def _where_dtype(_condition, x, y):
    return x.dtype if hasattr(x, "dtype") else y.dtype


_where.grad(
    x=lambda g, _z, condition, _x, _y: _where(condition, g, 0.0),
    y=lambda g, _z, condition, _x, _y: _where(condition, 0.0, g),
)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """``x`` where ``condition`` (a bool tensor) is true, ``y`` elsewhere; all three broadcast.

    Without ``x`` and ``y``, the positions where it is true: one tensor of indices for each axis.
    """
    if x is None and y is None:
        return nonzero(condition, as_tuple=True)
    if x is None or y is None:
        raise TypeError("where: give both x and y, or neither")
    if not isinstance(condition, Variable) or condition.dtype != np.bool_:
        got = getattr(condition, "dtype", type(condition).__name__)
        raise TypeError(f"where: condition must be a bool tensor, got {got}")
    dtype = result_dtype(getattr(v, "_array", v) for v in (x, y))
    return _where(condition, *(as_dtype(v, dtype, condition.device) for v in (x, y)))


def tril(x: Any, diagonal: int = 0) -> Any:
    """The last two dimensions with zeros above the diagonal, or the one ``diagonal`` steps over it."""
    return where(_below("tril", x, diagonal), x, False)


def triu(x: Any, diagonal: int = 0) -> Any:
    """The last two dimensions with zeros below the diagonal, or the one ``diagonal`` steps over it."""
    return where(_below("triu", x, diagonal - 1), False, x)


def _below(name: str, x: Any, diagonal: int) -> Any:
    if not hasattr(x, "ndim"):
        raise not_a_tensor(name, "x", x)
    if x.ndim < 2:
        raise ValueError(f"{name}: needs at least two dimensions, got shape {x.shape}")
    with x.device.active():
        return wrap(x.device.xp.tri(*x.shape[-2:], diagonal, dtype=bool), x.device)


@op(name="clamp")
def _clamp(xp, x, *, min, max):
    return xp.clip(x, min, max)


@op
def clamp_grad(xp, g, x, *, min, max):
    """``g`` where min <= x <= max, else 0."""
    low, high = bounds(min, max)
    return xp.where((x >= low) & (x <= high), g, xp.zeros((), g.dtype))


_clamp.grad(x=lambda g, _y, x, *, min, max: clamp_grad(g, x, min=min, max=max))
clamp_grad.grad(
    g=lambda gg, _z, _g, x, *, min, max: clamp_grad(gg, x, min=min, max=max),
    x=lambda gg, _z, _g, _x, *, min, max: zeros_like(gg),
)


def bounds(min: Any, max: Any) -> tuple[Any, Any]:
    """The numbers ``min`` and ``max``, and infinities for those that are None."""
    return -math.inf if min is None else min, math.inf if max is None else max


def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    """Each element limited to [min, max], numbers or tensors that broadcast; NaN stays NaN."""
    if min is None and max is None:
        raise ValueError("clamp: needs min, max or both")
    if isinstance(min, Variable) or isinstance(max, Variable):
        x = x if min is None else maximum(x, min)
        return x if max is None else minimum(x, max)
    if isinstance(min, float) or isinstance(max, float):
        x = floating(x)
    return _clamp(x, min=min, max=max)


def floating(x: Any) -> Any:
    """``x``, converted to the default floating dtype if it is a tensor of integers or bools."""
    dtype = getattr(x, "dtype", None)
    return x if dtype is None or is_floating(dtype) else cast(x, dtype=get_default_dtype())


def times(alpha: Any, other: Any, x: Any) -> Any:
    """alpha other, to be added to ``x``: in the dtype of that sum, or float16 would round it before."""
    if alpha == 1:
        return other
    if isinstance(other, Variable) and isinstance(x, Variable) and other.dtype != x.dtype:
        other = as_dtype(other, result_dtype((x._array, other._array)), other.device)
    return other * alpha


def as_dtype(value: Any, dtype: np.dtype, device: Any) -> Any:
    """A tensor in ``dtype``; a Python number as a 0-d tensor of it."""
    if isinstance(value, Variable):
        return value if value.dtype == dtype else cast(value, dtype=dtype)
    if value is None:  # of which NumPy makes NaN
        raise TypeError("expected a tensor or a number, got None")
    with device.active():
        return wrap(device.xp.asarray(value, dtype), device)
