"""Moving a tensor from one device to another."""

from __future__ import annotations

from typing import Any

from minigrad.autograd import Node, mode, wrap
from minigrad.devices import Device, cpu
from minigrad.kernels.channels_last import copied
from minigrad.op import Op


def _moved(xp: Any, x: Any, *, source: Device, target: Device, non_blocking=False) -> Any:
    if source.is_card and target.is_card:
        return target.from_card(x, source)
    array = x if source is cpu else source.to_numpy(x)
    moved = target.from_numpy(array, non_blocking)
    return moved if source.is_card or target.is_card else copied(moved, moved)


_move = Op(_moved, "to_device")
_move.grad(x=lambda g, _y, _x, *, source, target: transfer(g, source))


def transfer(x: Any, target: Device, non_blocking: bool = False) -> Any:
    """``x`` copied to ``target``. The one op whose output is not where its input is."""
    attrs = {"source": x.device, "target": target}
    out = wrap(_moved(None, x._array, **attrs, non_blocking=non_blocking), target)
    if x.requires_grad and mode.grad:
        Node(_move, attrs, x.device, (x,), (out,), (False,), False).output_device = target
    return out
