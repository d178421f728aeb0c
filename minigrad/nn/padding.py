"""Layers that put borders around images and signals."""

from __future__ import annotations

from typing import ClassVar

from minigrad.nn import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ZeroPad1d",
    "ZeroPad2d",
]


class _Pad(Module):
    """A border of the widths (left, right), in two dimensions (left, right, top, bottom); or one for all."""

    axes: ClassVar[int]
    mode: ClassVar[str]

    def __init__(self, padding: int | tuple[int, ...]):
        super().__init__()
        widths = (padding,) * (2 * self.axes) if isinstance(padding, int) else tuple(padding)
        if len(widths) != 2 * self.axes:
            raise ValueError(f"{type(self).__name__}: expected {2 * self.axes} widths, got {padding}")
        self.padding = widths

    def forward(self, input: Tensor) -> Tensor:
        """The last axis, or the last two, larger by the widths."""
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        """The widths."""
        return f"{self.padding}"


class ReflectionPad1d(_Pad):
    """The inside mirrored at its outermost elements."""

    axes, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """The inside mirrored at its outermost pixels."""

    axes, mode = 2, "reflect"


class ReplicationPad1d(_Pad):
    """The outermost elements repeated."""

    axes, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """The outermost pixels repeated."""

    axes, mode = 2, "replicate"


class CircularPad1d(_Pad):
    """The inside from the other end."""

    axes, mode = 1, "circular"


class CircularPad2d(_Pad):
    """The inside from the other end."""

    axes, mode = 2, "circular"


class _ConstantPad(_Pad):
    mode = "constant"

    def __init__(self, padding: int | tuple[int, ...], value: float):
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """The last axis, or the last two, larger by the widths."""
        return F.pad(input, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        """The widths and the number."""
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """A number."""

    axes = 1


class ConstantPad2d(_ConstantPad):
    """A number."""

    axes = 2


class ZeroPad1d(ConstantPad1d):
    """Zeros."""

    def __init__(self, padding: int | tuple[int, ...]):
        super().__init__(padding, 0.0)

    extra_repr = _Pad.extra_repr


class ZeroPad2d(ConstantPad2d):
    """Zeros."""

    def __init__(self, padding: int | tuple[int, ...]):
        super().__init__(padding, 0.0)

    extra_repr = _Pad.extra_repr
