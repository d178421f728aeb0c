"""Order: extrema with their positions, sorting. All put NaN above every number, as PyTorch does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minigrad.autograd import Variable
from minigrad.dispatch import Spec
from minigrad.op import op
from minigrad.ops.elementwise import maximum, minimum
from minigrad.ops.index import getitem, take_along_dim
from minigrad.ops.reduce import amax, amin, argmax, argmin, normalize_dim
from minigrad.ops.shape import flip, reshape


class Ordered(NamedTuple):
    """Values, and where along the axis they were found (int64)."""

    values: Any
    indices: Any


def max(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with ``dim``, (values, indices) along it; or of two tensors, elementwise."""
    if dim is None:
        return amax(x)
    return maximum(x, dim) if isinstance(dim, Variable) else _extremum(x, dim, keepdim, argmax)


def min(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with ``dim``, (values, indices) along it; or of two tensors, elementwise."""
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


def argsort(x: Any, dim: int = -1, descending: bool = False) -> Any:
    """The indices (int64) that sort ``x`` along ``dim``; equal elements stay in their order."""
    if x.ndim == 0:
        return argmax(x)
    (axis,) = normalize_dim("argsort", dim, x.ndim)
    if not descending:
        return _argsort(x, dim=axis)
    # Read backwards, so that equal elements are in their order again when the result is reversed.
    return flip(x.shape[axis] - 1 - _argsort(flip(x, (axis,)), dim=axis), (axis,))


def sort(x: Any, dim: int = -1, descending: bool = False) -> Ordered:
    """``x`` sorted along ``dim``, and the indices that sort it; equal elements stay in their order."""
    indices = argsort(x, dim, descending)
    return Ordered(take_along_dim(x, indices, dim), indices)


def topk(x: Any, k: int, dim: int = -1, largest: bool = True) -> Ordered:
    """The ``k`` largest (or smallest) elements along ``dim``, the best one first, and their indices."""
    if x.ndim == 0 or not 0 <= k <= x.shape[normalize_dim("topk", dim, x.ndim)[0]]:
        raise ValueError(f"topk: k = {k} does not fit into dim {dim} of a tensor of shape {x.shape}")
    (axis,) = normalize_dim("topk", dim, x.ndim)
    indices = getitem(argsort(x, axis, largest), index=(*(slice(None),) * axis, slice(k)))
    return Ordered(take_along_dim(x, indices, axis), indices)
