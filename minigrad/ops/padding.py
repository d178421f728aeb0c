"""Padding: with a constant, or by reflection, replication and wrapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.ops.index import getitem
from minigrad.ops.join import _pad, concat
from minigrad.ops.shape import broadcast_to, flip


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """``x`` with borders.

    Args:
        x: a tensor.
        pad: (before, after) of the last axis, then of the one before, and so on. In mode ``"constant"`` a
            negative width cuts off.
        mode: ``"constant"``, for borders of ``value``; ``"reflect"``, the inside mirrored at its outermost
            elements; ``"replicate"``, these elements repeated; ``"circular"``, the inside from the other end.
        value: of a constant border; 0 by default.

    Raises:
        ValueError: the widths do not fit the tensor, or the mode does not exist.
    """
    if not isinstance(pad, (tuple, list)):
        raise TypeError(f"pad: the widths must be a tuple or a list, got {pad!r:.60}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: expected at most {x.ndim} pairs (before, after), got {tuple(pad)}")
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    if mode == "constant":
        return _constant(x, pairs, 0.0 if value is None else value)
    if mode not in _BORDERS:
        raise ValueError(f"pad: mode is 'constant', {', '.join(map(repr, _BORDERS))}, got {mode!r}")
    if value is not None:
        raise ValueError(f"pad: mode {mode!r} takes no value, got {value}")
    for i, (before, after) in enumerate(pairs):
        axis = x.ndim - 1 - i
        _check_widths(x, axis, before, after, mode)
        border = _BORDERS[mode]
        pieces = [border(x, axis, before, True), x, border(x, axis, after, False)]
        pieces = [piece for piece in pieces if piece is not None]
        x = concat(pieces, axis) if len(pieces) > 1 else x
    return x


def _constant(x: Any, pairs: list[tuple[int, int]], value: float) -> Any:
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    inside = []
    for size, (before, after) in zip(x.shape, widths, strict=True):
        start, stop = max(-before, 0), size - max(-after, 0)
        if size + before + after < 0 or start > size or stop < 0:
            raise ValueError(f"pad: widths {(before, after)} cut off more than a dim of size {size} has")
        inside.append(slice(start, stop))
    if any(min(pair) < 0 for pair in pairs):
        x = getitem(x, index=tuple(inside))
    added = tuple((max(before, 0), max(after, 0)) for before, after in widths)
    return _pad(x, widths=added, value=value) if any(map(any, added)) else x


def _check_widths(x: Any, axis: int, before: int, after: int, mode: str) -> None:
    size = x.shape[axis]
    most = {"reflect": size - 1, "circular": size}.get(mode)
    if min(before, after) < 0 or (most is not None and max(before, after) > most) or size == 0:
        raise ValueError(
            f"pad: mode {mode!r} takes widths from 0{'' if most is None else f' to {most}'} for dim {axis} "
            f"of size {size}, got {(before, after)}"
        )


def _part(x: Any, axis: int, start: int, stop: int) -> Any:
    return getitem(x, index=(*(slice(None),) * axis, slice(start, stop)))


def _reflected(x: Any, axis: int, width: int, is_before: bool) -> Any:
    if width == 0:
        return None
    last = x.shape[axis] - 1
    inside = _part(x, axis, 1, width + 1) if is_before else _part(x, axis, last - width, last)
    return flip(inside, (axis,))


def _replicated(x: Any, axis: int, width: int, is_before: bool) -> Any:
    if width == 0:
        return None
    edge = _part(x, axis, 0, 1) if is_before else _part(x, axis, x.shape[axis] - 1, x.shape[axis])
    return broadcast_to(edge, (*x.shape[:axis], width, *x.shape[axis + 1 :]))


def _wrapped(x: Any, axis: int, width: int, is_before: bool) -> Any:
    if width == 0:
        return None
    size = x.shape[axis]
    return _part(x, axis, size - width, size) if is_before else _part(x, axis, 0, width)


_BORDERS = {"reflect": _reflected, "replicate": _replicated, "circular": _wrapped}
