"""Joining and splitting tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.op import op
from minigrad.ops.index import getitem
from minigrad.ops.shape import unsqueeze


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


def concat(tensors: Sequence, dim: int = 0) -> Any:
    """``tensors`` one after the other along ``dim``; all other sizes agree."""
    tensors = _nonempty("concat", tensors)
    first = tensors[0]
    axis = _axis("concat", dim, first.ndim)
    for i, t in enumerate(tensors):
        rest, wanted = list(t.shape), list(first.shape)
        if t.ndim == first.ndim:
            rest[axis] = wanted[axis] = 0
        if rest != wanted:
            raise ValueError(
                f"concat: sizes must agree except along dim {dim}; tensor 0 has shape {first.shape}, "
                f"tensor {i} has {t.shape}"
            )
    return _concat(*tensors, dim=axis)


def stack(tensors: Sequence, dim: int = 0) -> Any:
    """``tensors``, all of one shape, side by side along a new axis at ``dim``."""
    tensors = _nonempty("stack", tensors)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ValueError(f"stack: tensor 0 has shape {tensors[0].shape}, tensor {i} has {t.shape}")
    return concat([unsqueeze(t, dim) for t in tensors], dim)


def split(x: Any, split_size: int | Sequence[int], dim: int = 0) -> tuple:
    """Views of ``x`` along ``dim``: pieces of ``split_size`` (the last may be smaller), or of given sizes."""
    axis = _axis("split", dim, x.ndim)
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
    axis = _axis("unbind", dim, x.ndim)
    return tuple(getitem(x, index=(*(slice(None),) * axis, i)) for i in range(x.shape[axis]))


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple:
    """``x`` along ``dim`` in at most ``chunks`` pieces of equal size (the last may be smaller)."""
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
    size = x.shape[_axis("chunk", dim, x.ndim)]
    return split(x, max(1, -(-size // chunks)), dim)


@op(name="pad", moves=True)
def _pad(xp, x, *, widths, value):
    return xp.pad(x, widths, constant_values=value)


@_pad.grad
def _(g, _y, _x, *, widths, value):
    return getitem(
        g, index=tuple(slice(before, before + n) for (before, _), n in zip(widths, _x.shape, strict=True))
    )


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Any:
    """``x`` with borders of ``value``; ``pad`` is (before, after) of the last axis, of the one before, ..."""
    if mode != "constant":
        raise ValueError(f"pad: mode must be 'constant', got {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: expected at most {x.ndim} pairs (before, after), got {tuple(pad)}")
    if min(pad, default=0) < 0:
        raise ValueError(f"pad: widths must not be negative, got {tuple(pad)}")
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    widths = ((0, 0),) * (x.ndim - len(pairs)) + tuple(reversed(pairs))
    return _pad(x, widths=widths, value=value)


def _nonempty(name: str, tensors: Sequence) -> list:
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name}: expected at least one tensor")
    return tensors


def _axis(name: str, dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise IndexError(f"{name}: dim {dim} is out of range for a tensor of {ndim} dimensions")
    return dim % ndim
