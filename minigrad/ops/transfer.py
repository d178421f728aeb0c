"""Moving a tensor from one device to another."""

from __future__ import annotations

from typing import Any

from minigrad.autograd import Node, mode, wrap
from minigrad.devices import Device
from minigrad.op import Op


def _moved(xp: Any, x: Any, *, source: Device, target: Device) -> Any:
    array = source.to_numpy(x)
    return target.from_numpy(array.copy() if target.type != "cuda" and source.type != "cuda" else array)


_move = Op(_moved, "to_device")
_move.grad(x=lambda g, _y, _x, *, source, target: transfer(g, source))


def transfer(x: Any, target: Device) -> Any:
    """``x`` copied to ``target``. The one op whose output is not where its input is."""
    attrs = {"source": x.device, "target": target}
    out = wrap(_moved(None, x._array, **attrs), target)
    if x.requires_grad and mode.grad:
        Node(_move, attrs, x.device, (x,), (out,), (False,), False)
    return out
