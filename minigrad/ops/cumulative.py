"""Products up to each element, and differences of neighbours."""

from __future__ import annotations

from typing import Any

from minigrad.op import op
from minigrad.ops.elementwise import zeros_like
from minigrad.ops.index import getitem
from minigrad.ops.join import concat, stack, unbind
from minigrad.ops.reduce import normalize_dim, widened


@op(name="cumprod")
def _cumprod(xp, x, *, dim):
    """The products up to each element along ``dim``."""
    return xp.cumprod(x, axis=dim)


@_cumprod.grad
def _(g, y, x, *, dim):
    # dx_i = (the product before i) s_i, and s_i = g_i + x_{i+1} s_{i+1}: zeros need no division.
    if x.shape[dim] == 0:
        return zeros_like(x)
    factors, grads = unbind(x, dim), unbind(g, dim)
    sums = [grads[-1]]
    for factor, grad in zip(factors[:0:-1], grads[-2::-1], strict=True):
        sums.append(grad + factor * sums[-1])
    ones = zeros_like(getitem(x, index=_along(dim, slice(1)))) + 1.0
    before = concat([ones, getitem(y, index=_along(dim, slice(-1)))], dim)
    return before * stack(sums[::-1], dim)


def cumprod(x: Any, dim: int) -> Any:
    """The products of the elements up to each along ``dim``; integers and bools are multiplied as int64."""
    axes = normalize_dim("cumprod", dim, x.ndim)
    return _cumprod(widened(x), dim=axes[0]) if axes else widened(x)


def diff(x: Any, n: int = 1, dim: int = -1) -> Any:
    """The differences of neighbours along ``dim``, ``n`` times."""
    if x.ndim == 0 or n < 0:
        raise ValueError(f"diff: needs n >= 0 and at least one dimension, got n = {n} and shape {x.shape}")
    (axis,) = normalize_dim("diff", dim, x.ndim)
    for _ in range(n):
        x = getitem(x, index=_along(axis, slice(1, None))) - getitem(x, index=_along(axis, slice(-1)))
    return x


def _along(dim: int, part: slice) -> tuple:
    return (*(slice(None),) * dim, part)
