"""Diagonals: reading one, and making a matrix of one, which are each other's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dispatch import Spec
from minigrad.op import op
from minigrad.ops.reduce import sum
from minigrad.ops.shape import axis_of


@op(name="diagonal", view=True)
def _diagonal(xp, x, *, offset, dim1, dim2):
    view = x.diagonal(offset, dim1, dim2)
    if xp is np:  # whose diagonals cannot be written to until they are told so
        view.flags.writeable = x.flags.writeable
    return view


@op
def diagonal_backward(xp, g, *, shape, offset, dim1, dim2):
    """Zeros of ``shape`` whose diagonal is ``g``: the gradient of looking at it."""
    out = xp.zeros(shape, g.dtype)
    count = xp.arange(g.shape[-1])
    index: list[Any] = [slice(None)] * len(shape)
    index[dim1], index[dim2] = count + max(-offset, 0), count + max(offset, 0)
    # With the two axes in front, the places along the diagonal are the first axis of what is written.
    view = xp.moveaxis(out, (dim1, dim2), (0, 1))
    view[index[dim1], index[dim2]] = xp.moveaxis(g, -1, 0)
    return out


_diagonal.grad(x=lambda g, _y, _x, **attrs: diagonal_backward(g, shape=_x.shape, **attrs))
diagonal_backward.grad(g=lambda gg, _y, _g, *, shape, **attrs: _diagonal(gg, **attrs))


@diagonal_backward.shape
def _(g, *, shape, offset, dim1, dim2):
    return Spec(shape, g.dtype)


def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The diagonal of the axes ``dim1`` and ``dim2``, as a last axis: a view.

    ``offset`` above 0 gives one that lies above the main diagonal, below 0 one beneath it.
    """
    first, second = _two_axes("diagonal", x, dim1, dim2)
    return _diagonal(x, offset=int(offset), dim1=first, dim2=second)


def diag_embed(x: Any, offset: int = 0) -> Any:
    """(..., n) to square matrices (..., n + |offset|, n + |offset|), zeros but for a diagonal."""
    if x.ndim == 0:
        raise ValueError("diag_embed: needs at least one dimension, got a 0-d tensor")
    size = x.shape[-1] + abs(offset)
    shape, last = (*x.shape[:-1], size, size), x.ndim
    return diagonal_backward(x, shape=shape, offset=int(offset), dim1=last - 1, dim2=last)


def diag(x: Any, diagonal: int = 0) -> Any:
    """The matrix whose diagonal is the vector ``x``; the diagonal, if ``x`` is a matrix."""
    if x.ndim not in (1, 2):
        raise ValueError(f"diag: expected a vector or a matrix, got shape {x.shape}")
    if x.ndim == 1:
        return diag_embed(x, diagonal)
    return _diagonal(x, offset=int(diagonal), dim1=0, dim2=1)


def trace(x: Any) -> Any:
    """The sum of the diagonal of a matrix."""
    if x.ndim != 2:
        raise ValueError(f"trace: expected a matrix, got shape {x.shape}")
    return sum(diagonal(x))


def _two_axes(name: str, x: Any, dim1: int, dim2: int) -> tuple[int, int]:
    axes = axis_of(name, dim1, x.ndim), axis_of(name, dim2, x.ndim)
    if axes[0] == axes[1]:
        raise ValueError(f"{name}: dim1 and dim2 must differ, got {dim1} and {dim2}")
    return axes
