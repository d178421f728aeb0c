"""Joining and splitting tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.kernels.channels_last import NCHW, NHWC, is_channels_last
from minigrad.op import op
from minigrad.ops.index import getitem
from minigrad.ops.numpy_names import renamed
from minigrad.ops.shape import axis_of, broadcast_to, permute, reshape, transpose, unsqueeze


@op(name="concat", promote=True, moves=True)
def _concat(xp, *tensors, dim):
    return xp.concatenate(tensors, axis=dim)


@_concat.grad
def _(g, _y, *_tensors, dim):
    pieces, start = [], 0
    for tensor in _tensors:
        stop = start + tensor.shape[dim]
        pieces.append(getitem(g, index=(*(slice(None),) * dim, slice(start, stop))))
        start = stop
    return pieces


def concat(tensors: Sequence, dim: int = 0, **names: Any) -> Any:
    """``tensors`` joined along ``dim``. Their other sizes must agree; tensors of shape (0,) are left out.

    If all of them are stored channels last, so is the result.
    """
    if names:
        return renamed(concat, names, tensors=tensors, dim=dim)
    tensors = _nonempty("concat", tensors)
    if (0,) in [t.shape for t in tensors]:  # which add nothing, as in PyTorch, whatever the others' shape
        tensors = [t for t in tensors if t.shape != (0,)] or tensors[:1]
    first = tensors[0]
    axis = axis_of("concat", dim, first.ndim)
    for i, t in enumerate(tensors):
        rest, wanted = list(t.shape), list(first.shape)
        if t.ndim == first.ndim:
            rest[axis] = wanted[axis] = 0
        if rest != wanted:
            raise ValueError(
                f"concat: sizes must agree except along dim {dim}; tensor 0 has shape {first.shape}, "
                f"tensor {i} has {t.shape}"
            )
    if all(is_channels_last(t._array) for t in tensors):  # so is the result then, on any device
        return permute(_concat(*[permute(t, NHWC) for t in tensors], dim=NHWC.index(axis)), NCHW)
    return _concat(*tensors, dim=axis)


def stack(tensors: Sequence, dim: int = 0, **names: Any) -> Any:
    """``tensors``, all of one shape, joined along a new axis ``dim``."""
    if names:
        return renamed(stack, names, tensors=tensors, dim=dim)
    tensors = _nonempty("stack", tensors)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ValueError(f"stack: tensor 0 has shape {tensors[0].shape}, tensor {i} has {t.shape}")
    return concat([unsqueeze(t, dim) for t in tensors], dim)


def split(x: Any, split_size: int | Sequence[int], dim: int = 0) -> tuple:
    """Views of ``x`` along ``dim``: pieces of ``split_size`` (the last may be smaller), or of given sizes."""
    axis = axis_of("split", dim, x.ndim)
    total = x.shape[axis]
    if isinstance(split_size, int):
        if split_size < 1:
            raise ValueError(f"split: split_size must be at least 1, got {split_size}")
        sizes = [min(split_size, total - start) for start in range(0, total, split_size)] or [0]
    else:
        sizes = list(split_size)
        if sum(sizes) != total or min(sizes, default=0) < 0:
            raise ValueError(f"split: sizes {sizes} do not add up to {total}, the size of dim {dim}")
    pieces, start = [], 0
    for size in sizes:
        pieces.append(getitem(x, index=(*(slice(None),) * axis, slice(start, start + size))))
        start += size
    return tuple(pieces)


def unbind(x: Any, dim: int = 0) -> tuple:
    """Views of ``x`` at each position along ``dim``, which they no longer have."""
    axis = axis_of("unbind", dim, x.ndim)
    return tuple(getitem(x, index=(*(slice(None),) * axis, i)) for i in range(x.shape[axis]))


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple:
    """``x`` along ``dim`` in at most ``chunks`` pieces of equal size (the last may be smaller)."""
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
    size = x.shape[axis_of("chunk", dim, x.ndim)]
    return split(x, max(1, -(-size // chunks)), dim)


def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    """The ``length`` elements from ``start`` on along ``dim``: a view."""
    axis = axis_of("narrow", dim, x.ndim)
    size = x.shape[axis]
    first = start + size if start < 0 else start
    if length < 0 or not 0 <= first <= size - length:
        raise ValueError(
            f"narrow: start {start} and length {length} do not fit into dim {dim} of size {size}"
        )
    return getitem(x, index=(*(slice(None),) * axis, slice(first, first + length)))


def select(x: Any, dim: int, index: int) -> Any:
    """The part at ``index`` along ``dim``, which it no longer has: a view."""
    axis = axis_of("select", dim, x.ndim)
    if not -x.shape[axis] <= index < x.shape[axis]:
        raise IndexError(f"select: index {index} is out of range for dim {dim} of size {x.shape[axis]}")
    return getitem(x, index=(*(slice(None),) * axis, int(index)))


def hstack(tensors: Sequence) -> Any:
    """``tensors`` one after the other along dim 1; vectors along their only dimension."""
    tensors = [reshape(t, (1,)) if t.ndim == 0 else t for t in _nonempty("hstack", tensors)]
    return concat(tensors, 0 if tensors[0].ndim == 1 else 1)


def vstack(tensors: Sequence) -> Any:
    """``tensors`` one after the other along dim 0; vectors as rows."""
    tensors = _nonempty("vstack", tensors)
    return concat([reshape(t, (1, t.numel())) if t.ndim < 2 else t for t in tensors], 0)


def roll(x: Any, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Any:
    """``x`` with its elements moved on by ``shifts`` along ``dims``; what falls off the end comes in at the
    start. Without ``dims``, the flattened tensor is rolled."""
    if dims is None:
        if not isinstance(shifts, int):
            raise ValueError(f"roll: several shifts ({shifts}) need as many dims")
        return reshape(roll(reshape(x, (x.numel(),)), shifts, 0), x.shape)
    steps, axes = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    if len(steps) != len(axes):
        raise ValueError(f"roll: shifts {shifts} and dims {dims} differ in length")
    for step, dim in zip(steps, axes, strict=True):
        axis = axis_of("roll", dim, x.ndim)
        size = x.shape[axis]
        if size and (first := -step % size):
            x = concat([narrow(x, axis, first, size - first), narrow(x, axis, 0, first)], axis)
    return x


def repeat_interleave(x: Any, repeats: Any, dim: int | None = None) -> Any:
    """Each element ``repeats`` times, one after the other, along ``dim`` or in the flattened tensor.

    ``repeats`` is a number, or a tensor of one for each element along ``dim``.
    """
    if dim is None:
        x, dim = reshape(x, (x.numel(),)), 0
    axis = axis_of("repeat_interleave", dim, x.ndim)
    counts = repeats.tolist() if hasattr(repeats, "tolist") else repeats
    size = x.shape[axis]
    if isinstance(counts, list) and len(counts) not in (1, size):
        raise ValueError(f"repeat_interleave: expected {size} repeats for dim {dim}, got {len(counts)}")
    if np.min(counts, initial=0) < 0:
        raise ValueError(f"repeat_interleave: repeats must not be negative, got {counts}")
    numbers = x.device.from_numpy(np.repeat(np.arange(size), counts))
    return getitem(x, index=(*(slice(None),) * axis, numbers))


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple:
    """Vectors as the coordinates of a grid: of each a tensor of the grid's shape, as a view.

    ``indexing="xy"`` exchanges the first two axes, as Cartesian coordinates have them.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tuple(tensors[0])
    if indexing not in ("ij", "xy"):
        raise ValueError(f"meshgrid: indexing must be 'ij' or 'xy', got {indexing!r}")
    if any(t.ndim > 1 for t in _nonempty("meshgrid", tensors)):
        raise ValueError(f"meshgrid: expected vectors, got shapes {', '.join(str(t.shape) for t in tensors)}")
    shape = tuple(t.numel() for t in tensors)
    axes = [tuple(-1 if i == axis else 1 for i in range(len(shape))) for axis in range(len(shape))]
    grids = [broadcast_to(reshape(t, a), shape) for t, a in zip(tensors, axes, strict=True)]
    return tuple(transpose(g, 0, 1) if indexing == "xy" and len(shape) > 1 else g for g in grids)


@op(name="pad", moves=True)
def _pad(xp, x, *, widths, value):
    return xp.pad(x, widths, constant_values=value)


@_pad.grad
def _(g, _y, _x, *, widths, value):
    return getitem(
        g, index=tuple(slice(before, before + n) for (before, _), n in zip(widths, _x.shape, strict=True))
    )


def _nonempty(name: str, tensors: Sequence) -> list:
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name}: expected at least one tensor")
    for i, tensor in enumerate(tensors):
        if not hasattr(tensor, "shape"):
            raise TypeError(f"{name}: expected tensors, got {type(tensor).__name__} at position {i}")
    return tensors
