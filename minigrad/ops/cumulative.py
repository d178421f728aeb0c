"""Sums and products up to each element, and differences of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.graph import wrap
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op
from minigrad.ops.elementwise import zeros_like
from minigrad.ops.index import getitem, take_along_dim
from minigrad.ops.join import concat, stack, unbind
from minigrad.ops.numpy_names import renamed
from minigrad.ops.order import Ordered
from minigrad.ops.reduce import widened
from minigrad.ops.shape import axis_of


@op(name="cumsum")
def _cumsum(xp, x, *, dim, reverse=False):
    """The sums up to each element along ``dim``; with ``reverse``, from each element on."""
    if reverse:
        return xp.flip(xp.cumsum(xp.flip(x, dim), axis=dim), dim)
    return xp.cumsum(x, axis=dim)


_cumsum.grad(x=lambda g, _y, _x, *, dim, reverse: _cumsum(g, dim=dim, reverse=not reverse))


@_cumsum.kernel("cpu", name="together")
def _cumsum_cpu(out, x, *, dim, reverse):
    """Several rows or columns together, as each sum waits for the one before; carried in float64."""
    cpu.cumsum.cumsum(out, x, dim, reverse, get_num_threads())


def _has_columns(x: Any, *, dim: int, reverse: bool) -> bool:
    """Whether rows are walked along, or columns, of which a thread has each, are many or short."""
    length = x.shape[dim]
    return dim == x.ndim - 1 or length <= 4096 or x.size >= 4096 * length


@_cumsum.kernel("cuda", "sim", name="scan", dtypes="f4 f8 f2 bf16", when=_has_columns)
def _(out, x, *, dim, reverse):
    """Rows by warps and blocks, whose threads pass their sums on; columns by a thread each."""
    cuda.cumsum.cumsum(out, x, dim, reverse)


def cumsum(x: Any, dim: Any = None, *, dtype: Any = None, **names: Any) -> Any:
    """The sums of the elements up to each along ``dim``; integers and bools are summed as int64."""
    if names:
        return renamed(cumsum, names, x=x, dim=dim, dtype=dtype)
    x, axis = _prepared("cumsum", x, dim, dtype)
    return x if axis is None else _cumsum(x, dim=axis)


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


def cumprod(x: Any, dim: Any = None, *, dtype: Any = None, **names: Any) -> Any:
    """The products of the elements up to each along ``dim``; integers and bools are multiplied as int64."""
    if names:
        return renamed(cumprod, names, x=x, dim=dim, dtype=dtype)
    x, axis = _prepared("cumprod", x, dim, dtype)
    return x if axis is None else _cumprod(x, dim=axis)


def cummax(x: Any, dim: int) -> Ordered:
    """(values, indices): the largest element up to each along ``dim``, and the place of the last such."""
    return _extreme_so_far("cummax", x, dim, np.maximum)


def cummin(x: Any, dim: int) -> Ordered:
    """As :func:`cummax`, the smallest."""
    return _extreme_so_far("cummin", x, dim, np.minimum)


def _extreme_so_far(name: str, x: Any, dim: int, better: np.ufunc) -> Ordered:
    axis = axis_of(name, dim, max(x.ndim, 1))
    array = np.atleast_1d(x.device.to_numpy(x._array))  # CuPy's ufuncs do not accumulate
    so_far = better.accumulate(array, axis)
    place = np.arange(array.shape[axis]).reshape(-1, *(1,) * (array.ndim - axis - 1))
    found = np.maximum.accumulate(np.where((array == so_far) | (array != array), place, 0), axis)
    indices = wrap(x.device.from_numpy(found.reshape(x.shape)), x.device)
    return Ordered(take_along_dim(x, indices, axis), indices)


def _prepared(name: str, x: Any, dim: Any, dtype: Any) -> tuple[Any, int | None]:
    """``x`` as it is summed or multiplied, and the axis; None where there is no axis."""
    axis = axis_of(name, dim, max(x.ndim, 1))
    return widened(x) if dtype is None else x.to(dtype), axis if x.ndim else None


def diff(x: Any, n: int = 1, dim: int = -1) -> Any:
    """The differences of neighbours along ``dim``, ``n`` times."""
    if x.ndim == 0 or n < 0:
        raise ValueError(f"diff: needs n >= 0 and at least one dimension, got n = {n} and shape {x.shape}")
    axis = axis_of("diff", dim, x.ndim)
    for _ in range(min(n, x.shape[axis])):  # after which nothing is left
        x = getitem(x, index=_along(axis, slice(1, None))) - getitem(x, index=_along(axis, slice(-1)))
    return x


def _along(dim: int, part: slice) -> tuple:
    return (*(slice(None),) * dim, part)
