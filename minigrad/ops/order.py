"""Extrema with their positions, sorting, and searching in what is sorted.

NaN counts as larger than every number, as in PyTorch.
"""

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

import numpy as np

from minigrad.autograd import wrap
from minigrad.dispatch import Spec
from minigrad.dtypes import is_floating
from minigrad.graph import Variable
from minigrad.op import op
from minigrad.ops.elementwise import isnan, le, lt, maximum, minimum, where
from minigrad.ops.index import getitem, take_along_dim
from minigrad.ops.join import stack
from minigrad.ops.numpy_names import renamed
from minigrad.ops.reduce import amax, amin, argmax, argmin, sum
from minigrad.ops.shape import axis_of, flip, movedim, reshape, squeeze, unsqueeze


class Ordered(NamedTuple):
    """Values, and where along the axis they were found (int64)."""

    values: Any
    indices: Any


def max(x: Any, dim: Any = None, keepdim: bool = False, **names: Any) -> Any:
    """The largest element; with ``dim``, (values, indices) along it; or of two tensors, elementwise."""
    if names:
        return renamed(max, names, x=x, dim=dim, keepdim=keepdim)
    if dim is None:
        return amax(x)
    return maximum(x, dim) if isinstance(dim, Variable) else _extremum(x, dim, keepdim, argmax)


def min(x: Any, dim: Any = None, keepdim: bool = False, **names: Any) -> Any:
    """The smallest element; with ``dim``, (values, indices) along it; or of two tensors, elementwise."""
    if names:
        return renamed(min, names, x=x, dim=dim, keepdim=keepdim)
    if dim is None:
        return amin(x)
    return minimum(x, dim) if isinstance(dim, Variable) else _extremum(x, dim, keepdim, argmin)


def _extremum(x: Any, dim: int, keepdim: bool, find: Any) -> Ordered:
    """The extremum along one axis; the gradient goes to the element found."""
    indices = find(x, dim, keepdim=True)
    values = take_along_dim(x, indices, dim)
    if not keepdim:
        shape = values.shape[: dim % x.ndim] + values.shape[dim % x.ndim + 1 :] if x.ndim else ()
        values, indices = reshape(values, shape=shape), reshape(indices, shape=shape)
    return Ordered(values, indices)


@op(name="argsort", differentiable=False)
def _argsort(xp, x, *, dim):
    # CuPy knows no kind; its sort is stable.
    return xp.argsort(x, axis=dim, kind="stable") if xp is np else xp.argsort(x, axis=dim)


@_argsort.shape
def _(x, *, dim):
    return Spec(x.shape, np.dtype(np.int64))


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True, **names: Any) -> Any:
    """The indices (int64) that sort ``x`` along ``dim``; equal elements stay in their order, always."""
    if names:
        return renamed(argsort, names, x=x, dim=dim, descending=descending)
    if x.ndim == 0:
        return argmax(x)
    axis = axis_of("argsort", dim, x.ndim)
    if not descending:
        return _argsort(x, dim=axis)
    # Read backwards, so that equal elements are in their order again when the result is reversed.
    return flip(x.shape[axis] - 1 - _argsort(flip(x, (axis,)), dim=axis), (axis,))


def sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True, **names: Any) -> Ordered:
    """``x`` sorted along ``dim``, and the indices that sort it; equal elements always stay in order."""
    if names:
        return renamed(sort, names, x=x, dim=dim, descending=descending)
    indices = argsort(x, dim, descending)
    return Ordered(take_along_dim(x, indices, dim), indices)


def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Ordered:
    """The ``k`` largest (or smallest) elements along ``dim``, the best one first, and their indices.

    ``sorted`` is ignored: they always are.
    """
    if x.ndim == 0 or not 0 <= k <= x.shape[axis_of("topk", dim, x.ndim)]:
        raise ValueError(f"topk: k = {k} does not fit into dim {dim} of a tensor of shape {x.shape}")
    axis = axis_of("topk", dim, x.ndim)
    indices = getitem(argsort(x, axis, largest), index=(*(slice(None),) * axis, slice(k)))
    return Ordered(take_along_dim(x, indices, axis), indices)


def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Ordered:
    """The ``k``-th smallest element along ``dim``, counted from 1, and its index."""
    if x.ndim == 0:
        return Ordered(x, argmax(x))
    axis = axis_of("kthvalue", dim, x.ndim)
    if not 1 <= k <= x.shape[axis]:
        raise ValueError(f"kthvalue: k = {k} does not fit into dim {dim} of a tensor of shape {x.shape}")
    place = (*(slice(None),) * axis, slice(k - 1, k))
    indices = getitem(_argsort(x, dim=axis), index=place)
    values = take_along_dim(x, indices, axis)
    return Ordered(values, indices) if keepdim else Ordered(squeeze(values, axis), squeeze(indices, axis))


def median(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median, the lower of the two of an even number; NaN where there is one.

    With ``dim``, (values, indices) along it; without, its gradient is shared evenly among equals.
    """
    if dim is None:
        found = median(reshape(x, (x.numel(),)), 0).values
        if x.requires_grad:
            found = where(isnan(found), found, where(x == found.detach(), x, -math.inf).amax())
        return found
    if x.ndim == 0:
        return Ordered(x, argmax(x))
    axis = axis_of("median", dim, x.ndim)
    if x.shape[axis] == 0:
        raise ValueError(f"median: no elements along dim {dim} of a tensor of shape {x.shape}")
    order = _argsort(x, dim=axis)
    middle, last = (x.shape[axis] - 1) // 2, x.shape[axis] - 1
    lower, top = (getitem(order, index=(*(slice(None),) * axis, slice(i, i + 1))) for i in (middle, last))
    if is_floating(x.dtype):  # NaN is sorted to the end
        lower = where(isnan(take_along_dim(x, top, axis)), top, lower)
    values = take_along_dim(x, lower, axis)
    return Ordered(values, lower) if keepdim else Ordered(squeeze(values, axis), squeeze(lower, axis))


def mode(x: Any, dim: int = -1, keepdim: bool = False) -> Ordered:
    """The value that comes most often along ``dim``, the smallest of several, and a place of it."""
    ordered, indices = sort(x, dim)
    axis = axis_of("mode", dim, x.ndim)
    rows, places = (movedim(t, axis, -1) for t in (ordered, indices))
    counts = (unsqueeze(rows, -1) == unsqueeze(rows, -2)).sum(-1)
    best = unsqueeze(argmax(counts, -1), -1) + amax(counts, -1, keepdim=True) - 1  # the last of its kind
    found = [movedim(take_along_dim(t, best, -1), -1, axis) for t in (rows, places)]
    return Ordered(*(found if keepdim else [squeeze(t, axis) for t in found]))


def quantile(
    x: Any, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Any:
    """The ``q``-quantiles of ``x`` along ``dim``, or of all elements; NaN where there is one.

    Args:
        x: a floating tensor.
        q: a number in [0, 1], or a vector of them, whose axis is then the output's first.
        dim: the axis.
        keepdim: keep it, with size 1.
        interpolation: between the two elements nearby: ``"linear"``, ``"lower"``, ``"higher"``,
            ``"nearest"`` or ``"midpoint"``.
    """
    if interpolation not in _SHARES:
        raise ValueError(f"quantile: interpolation is one of {', '.join(_SHARES)}, got {interpolation!r}")
    shares = np.asarray(q.tolist() if hasattr(q, "tolist") else q, np.float64)
    if shares.ndim > 1 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"quantile: q must be a number in [0, 1] or a vector of such, got {q}")
    kept = (1,) * x.ndim if dim is None else None
    if dim is None:
        x, dim = reshape(x, (x.numel(),)), 0
    axis = axis_of("quantile", dim, x.ndim)
    if x.shape[axis] == 0:
        raise ValueError(f"quantile: no elements along dim {dim} of a tensor of shape {x.shape}")
    ordered = sort(x, axis).values
    has_nan = isnan(getitem(ordered, index=(*(slice(None),) * axis, slice(-1, None))))
    found = []
    for share in shares.reshape(-1):
        place = float(share) * (x.shape[axis] - 1)
        low = math.floor(place)
        high = builtins.min(low + 1, x.shape[axis] - 1)
        below, above = (
            getitem(ordered, index=(*(slice(None),) * axis, slice(i, i + 1))) for i in (low, high)
        )
        weight = _SHARES[interpolation](place - low)
        value = where(has_nan, math.nan, below + (above - below) * weight if weight else below)
        found.append(reshape(value, kept) if keepdim and kept else value if keepdim else squeeze(value, axis))
    return stack(found) if shares.ndim else found[0]


_SHARES: dict[str, Any] = {
    "linear": lambda beyond: beyond,
    "lower": lambda beyond: 0.0,
    "higher": lambda beyond: float(beyond > 0),
    "nearest": lambda beyond: float(builtins.round(beyond)),
    "midpoint": lambda beyond: 0.5 if beyond else 0.0,
}
"""By how much of their difference the result is above the lower of the two elements nearby."""


def searchsorted(sorted_sequence: Any, values: Any, *, right: bool = False) -> Any:
    """Where each of the ``values`` would be put into the vector ``sorted_sequence`` to keep it in order.

    Before equal elements, or with ``right`` behind them; int64, in the shape of ``values``. Sequences
    (..., n) are searched for the values (..., k) of their own row.
    """
    if sorted_sequence.ndim != 1:
        if sorted_sequence.ndim == 0 or sorted_sequence.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"searchsorted: expected a vector, or as many rows as values have, got shapes "
                f"{sorted_sequence.shape} and {values.shape}"
            )
        smaller = le if right else lt  # than a value, or equal to it: so many stand before it
        return sum(smaller(sorted_sequence.unsqueeze(-2), values.unsqueeze(-1)), -1)
    device = sorted_sequence.device
    with device.active():
        found = device.xp.searchsorted(
            sorted_sequence._array, values._array, side="right" if right else "left"
        )
        return wrap(device.xp.asarray(found).astype(np.int64, copy=False), device)


def bucketize(input: Any, boundaries: Any, *, right: bool = False) -> Any:
    """:func:`searchsorted` of ``input`` among the vector ``boundaries``."""
    return searchsorted(boundaries, input, right=right)
