"""Scatter and index ops: reading and writing at indices along an axis, or where a mask is true.

Each is a composition of indexing (:mod:`minigrad.ops.index`), whose gradients sum what is written to one
place in a fixed order. None changes its input; the forms that do are methods whose names end in an
underscore.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dtypes import is_floating
from minigrad.graph import Variable, mode, wrap
from minigrad.ops.elementwise import as_dtype, clone, isfinite, where
from minigrad.ops.index import (
    gather,
    getitem,
    put_along_dim,
    raw_index,
    scatter_index,
    setitem,
)
from minigrad.ops.join import _pad
from minigrad.ops.reduce import normalize_dim
from minigrad.ops.shape import broadcast_to, reshape
from minigrad.recording import refuse_shape_from_values

# ---- one index for each element ---------------------------------------------------------------------------


def scatter(x: Any, dim: int, index: Any, src: Any, *, reduce: str | None = None) -> Any:
    """``x`` with ``src`` written to ``y[i][index[i][j][k]][k] = src[i][j][k]``, for dim = 1.

    Args:
        x: the tensor that is copied.
        dim: the axis along which ``index`` counts.
        index: integers, of as many dimensions as ``x``; it may be smaller than ``x`` and ``src``.
        src: a tensor, or a number that is written everywhere. Of what is written to one place twice, the last
            stays (on a card, any).
        reduce: ``"add"`` adds instead, as :func:`scatter_add`.

    Raises:
        TypeError: ``index`` does not hold integers; IndexError: one of them is out of bounds.
        ValueError: shapes do not fit.
    """
    if reduce not in (None, "add"):
        raise ValueError(f"scatter: reduce must be None or 'add', got {reduce!r}")
    if not isinstance(src, Variable):
        src = broadcast_to(as_dtype(src, x.dtype, x.device), index.shape)
    if reduce == "add":
        return scatter_add(x, dim, index, src)
    axis, src = _checked("scatter", x, dim, index, src)
    with x.device.active():
        grid = list(x.device.xp.ogrid[tuple(slice(n) for n in index.shape)])
        grid[axis] = raw_index(index, copy=True)
    return setitem(clone(x), src, index=tuple(grid))


def scatter_add(x: Any, dim: int, index: Any, src: Any) -> Any:
    """``x`` with ``y[i][index[i][j][k]][k] += src[i][j][k]``, for dim = 1; the arguments are those of
    :func:`scatter`. What is written to one place is summed, in a fixed order."""
    axis, src = _checked("scatter_add", x, dim, index, src)
    window = (*index.shape[:axis], x.shape[axis], *index.shape[axis + 1 :])
    sums = put_along_dim(src, index, dim=axis, shape=window)
    widths = tuple((0, n - own) for n, own in zip(x.shape, window, strict=True))
    return x + (sums if window == x.shape else _pad(sums, widths=widths, value=0))


def scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """``x`` with, at each place, what ``reduce`` makes of all that :func:`scatter` would write there.

    Args:
        x, dim, index, src: as for :func:`scatter_add`.
        reduce: ``"sum"``, ``"prod"``, ``"mean"``, ``"amax"`` or ``"amin"``; a gradient of the last two is
            shared evenly among equals.
        include_self: whether what ``x`` holds there counts, too; where nothing is written, it stays.
    """
    if reduce not in ("sum", "prod", "mean", "amax", "amin"):
        raise ValueError(
            f"scatter_reduce: reduce must be 'sum', 'prod', 'mean', 'amax' or 'amin', got {reduce!r}"
        )
    axis, src = _checked("scatter_reduce", x, dim, index, src)
    one = as_dtype(1.0 if is_floating(x.dtype) else 1, x.dtype, x.device)
    count = scatter_add(broadcast_to(one * 0, x.shape), axis, index, broadcast_to(one, src.shape))
    own = broadcast_to(one, x.shape) if include_self else as_dtype(count == 0, x.dtype, x.device)
    if reduce in ("sum", "mean"):
        total = scatter_add(x * own, axis, index, src)
        if reduce == "sum":
            return total
        return total / (count + own) if is_floating(x.dtype) else total // (count + own)
    if reduce == "prod":
        return _scattered_products(where(own != 0, x, one), axis, index, src)
    with x.device.active():
        best = x.device.xp.where(own._array != 0, x._array, _worst(x.dtype, reduce))
        places = list(x.device.xp.ogrid[tuple(slice(n) for n in index.shape)])
        places[axis] = raw_index(index, copy=True)
        write = x.device.xp.maximum.at if reduce == "amax" else x.device.xp.minimum.at
        write(best, tuple(places), src._array)
    found = wrap(best, x.device)
    if not (mode.grad and (x.requires_grad or src.requires_grad)):
        return found
    # The gradient is that of a mean of what equals the extremum; the value stays the extremum itself.
    own_part, given = where((x == found) & (own != 0), x, 0.0), src == gather(found, axis, index)
    ties = scatter_add((x == found).to(x.dtype) * own, axis, index, given.to(x.dtype))
    shares = scatter_add(own_part, axis, index, where(given, src, 0.0)) / ties
    return where(isfinite(found), found + (shares - shares.detach()), shares)


def _scattered_products(x: Any, axis: int, index: Any, src: Any) -> Any:
    """``x`` times all that ``src`` holds for each place.

    The factors of a place are multiplied in pairs, then their products, and so on. The gradient divides by
    nothing, which may be 0.
    """
    device, dtype = x.device, x.dtype

    def chosen(values: Any, numbers: np.ndarray) -> Any:
        return getitem(values, index=(device.from_numpy(numbers),))

    def among_ones(values: Any, numbers: np.ndarray, count: int) -> Any:
        ones = wrap(device.from_numpy(np.ones(count, dtype)), device)
        return setitem(ones, values, index=(device.from_numpy(numbers),))

    places = np.indices(index.shape)
    places[axis] = device.to_numpy(index._array) % max(x.shape[axis], 1)
    places = np.ravel_multi_index(tuple(places), x.shape).reshape(-1)
    order = np.argsort(places, kind="stable")
    places, factors = places[order], chosen(reshape(src, (order.size,)), order)
    while True:
        turns = np.arange(places.size) - np.searchsorted(places, places)  # of a factor among its place's
        odd, even = np.flatnonzero(turns % 2), np.flatnonzero(turns % 2 == 0)
        if not odd.size:
            break
        partners = among_ones(chosen(factors, odd), np.searchsorted(even, odd - 1), even.size)
        places, factors = places[even], chosen(factors, even) * partners
    return x * reshape(among_ones(factors, places, x.numel()), x.shape)


def _worst(dtype: Any, reduce: str) -> Any:
    """What any other value of the dtype is better than."""
    if is_floating(dtype):
        return -np.inf if reduce == "amax" else np.inf
    return np.iinfo(dtype).min if reduce == "amax" else np.iinfo(dtype).max


def _checked(name: str, x: Any, dim: int, index: Any, src: Any) -> tuple[int, Any]:
    """``dim`` counted from the start, and the part of ``src`` that ``index`` speaks of."""
    _check_integers(name, index)
    if not x.ndim == index.ndim == src.ndim:
        raise ValueError(
            f"{name}: input, index and src need as many dimensions, got shapes {x.shape}, {index.shape} and "
            f"{src.shape}"
        )
    if src.dtype != x.dtype:
        raise TypeError(f"{name}: input is {x.dtype}, src is {src.dtype}; convert one with .to(dtype)")
    axes = normalize_dim(name, dim, x.ndim)
    if not axes:
        raise ValueError(f"{name}: needs at least one dimension, got shape {x.shape}")
    (axis,) = axes
    for d, (own, wanted, given) in enumerate(zip(x.shape, index.shape, src.shape, strict=True)):
        if wanted > given or (wanted > own and d != axis):
            raise ValueError(
                f"{name}: an index of shape {index.shape} must not be larger than src (shape {src.shape}), "
                f"nor, except along dim {axis}, than the input (shape {x.shape})"
            )
    _check_bounds(name, index, x.shape[axis], axis)
    if src.shape != index.shape:
        src = getitem(src, index=tuple(slice(n) for n in index.shape))
    return axis, src


# ---- one index for each position along an axis ------------------------------------------------------------


def index_select(x: Any, dim: int, index: Any) -> Any:
    """The parts of ``x`` at the numbers ``index`` (n,) along ``dim``, as a copy."""
    return getitem(x, index=_positions("index_select", x, dim, index))


def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    """``x`` with alpha times ``source`` added at the numbers ``index`` (n,) along ``dim``."""
    positions = _positions("index_add", x, dim, index, source)
    sums = scatter_index(source, index=positions, shape=x.shape)
    return x + (sums if alpha == 1 else sums * alpha)


def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    """``x`` with ``source`` written at the numbers ``index`` (n,) along ``dim``."""
    return setitem(clone(x), source, index=_positions("index_copy", x, dim, index, source))


def index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    """``x`` with ``value`` written at the numbers ``index`` (n,) along ``dim``."""
    positions = _positions("index_fill", x, dim, index)
    return setitem(clone(x), as_dtype(value, x.dtype, x.device), index=positions)


def _positions(name: str, x: Any, dim: int, index: Any, source: Any = None) -> tuple:
    """The NumPy index that ``index`` along ``dim`` is."""
    _check_integers(name, index)
    if index.ndim > 1:
        raise ValueError(f"{name}: index must have one dimension, got shape {index.shape}")
    axes = normalize_dim(name, dim, x.ndim)
    if not axes:
        raise ValueError(f"{name}: needs at least one dimension, got shape {x.shape}")
    (axis,) = axes
    _check_bounds(name, index, x.shape[axis], axis)
    expected = (*x.shape[:axis], index.numel(), *x.shape[axis + 1 :])
    if source is not None and source.shape != expected:
        raise ValueError(f"{name}: source must have shape {expected}, got {source.shape}")
    return (*(slice(None),) * axis, raw_index(reshape(index, (-1,)), copy=True))


# ---- masks and flat positions -----------------------------------------------------------------------------


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """``value`` where ``mask`` (bool, broadcast with ``x``) is true, ``x`` elsewhere, of x's dtype."""
    return where(mask, as_dtype(value, x.dtype, x.device), x)


def masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    """``x`` with the elements of ``source``, in their order, where ``mask`` (bool, broadcast) is true."""
    if mask.dtype != np.bool_:
        raise TypeError(f"masked_scatter: mask must be a bool tensor, got {mask.dtype}")
    refuse_shape_from_values("masked_scatter()")
    shape = np.broadcast_shapes(x.shape, mask.shape)
    places = raw_index(broadcast_to(mask, shape), copy=True)
    count = int(places.sum())
    if count > source.numel():
        raise ValueError(f"masked_scatter: mask has {count} true elements, source only {source.numel()}")
    values = getitem(reshape(source, (source.numel(),)), index=slice(count))
    return setitem(clone(broadcast_to(x, shape)), as_dtype(values, x.dtype, x.device), index=places)


def masked_select(x: Any, mask: Any) -> Any:
    """The elements of ``x`` where ``mask`` is true, in a row; both broadcast."""
    if mask.dtype != np.bool_:
        raise TypeError(f"masked_select: mask must be a bool tensor, got {mask.dtype}")
    refuse_shape_from_values("masked_select()")
    shape = np.broadcast_shapes(x.shape, mask.shape)
    return getitem(broadcast_to(x, shape), index=raw_index(broadcast_to(mask, shape), copy=True))


def take(x: Any, index: Any) -> Any:
    """The elements at the numbers ``index`` in the flattened ``x``, in the shape of ``index``."""
    _check_integers("take", index)
    _check_bounds("take", index, x.numel(), 0)
    return getitem(reshape(x, (x.numel(),)), index=raw_index(index, copy=True))


def _check_integers(name: str, index: Any) -> None:
    if not isinstance(index, Variable) or index.dtype.kind not in "iu":
        got = index.dtype if isinstance(index, Variable) else type(index).__name__
        raise TypeError(f"{name}: index must be a tensor of integers, got {got}")


def _check_bounds(name: str, index: Any, size: int, axis: int) -> None:
    """IndexError for a number out of bounds; on a card, which would have to be waited for, CuPy wraps it."""
    numbers = index._array
    if isinstance(numbers, np.ndarray) and numbers.size:
        wrong = (numbers < -size) | (numbers >= size)
        if wrong.any():
            raise IndexError(
                f"{name}: index {numbers[wrong].flat[0]} is out of bounds for dim {axis}, which has {size} "
                "elements"
            )
