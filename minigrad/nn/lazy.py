"""Layers that take their number of inputs from the first input, by PyTorch's names.

The parameters exist from the start, without elements, so that an optimizer may be made of them; the first
call, or a state that is loaded, gives them their sizes, and makes of the layer one of the plain class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from minigrad.autograd import no_grad
from minigrad.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from minigrad.nn.linear import Linear
from minigrad.nn.module import Module
from minigrad.nn.norm import BatchNorm1d, BatchNorm2d
from minigrad.tensor import Tensor

__all__ = [
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyLinear",
]


class _Lazy(Module):
    plain: ClassVar[Any]
    axis: ClassVar[int] = 1
    size: ClassVar[str] = "in_channels"
    weight_axis: ClassVar[int] = 1  # of the inputs, by groups if that is 1

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(0, *arguments, **options)  # type: ignore[call-arg]
        self._made_with = arguments, options

    def forward(self, input: Tensor, *others: Any) -> Tensor:
        """What the plain layer makes of ``input``, which tells the sizes."""
        self._settle(input.shape[self.axis])
        return self.forward(input, *others)

    def _settle(self, inputs: int) -> None:
        """Become the plain layer of so many ``inputs``."""
        arguments, options = self._made_with
        made = self.plain(inputs, *arguments, **options)
        with no_grad():
            for name, tensor in (*made.named_parameters(), *made.named_buffers()):
                own = getattr(self, name)
                own.data = tensor.detach().to(own.device, own.dtype)
        setattr(self, self.size, getattr(made, self.size))
        del self._made_with
        self.__class__ = self.plain

    def _before_loading(self, state: Mapping[str, Any], prefix: str) -> None:
        found = state.get(prefix + "weight", state.get(prefix + "running_mean"))
        if isinstance(found, Tensor) and found.ndim > self.weight_axis and 0 not in found.shape:
            groups = getattr(self, "groups", 1) if self.weight_axis else 1
            self._settle(found.shape[self.weight_axis] * groups)


class LazyLinear(_Lazy, Linear):
    """A :class:`Linear` without its first argument."""

    plain, axis, size = Linear, -1, "in_features"


class LazyConv1d(_Lazy, Conv1d):
    """A :class:`Conv1d` without its first argument."""

    plain = Conv1d


class LazyConv2d(_Lazy, Conv2d):
    """A :class:`Conv2d` without its first argument."""

    plain = Conv2d


class LazyConvTranspose1d(_Lazy, ConvTranspose1d):
    """A :class:`ConvTranspose1d` without its first argument."""

    plain, weight_axis = ConvTranspose1d, 0


class LazyConvTranspose2d(_Lazy, ConvTranspose2d):
    """A :class:`ConvTranspose2d` without its first argument."""

    plain, weight_axis = ConvTranspose2d, 0


class LazyBatchNorm1d(_Lazy, BatchNorm1d):
    """A :class:`BatchNorm1d` without its first argument."""

    plain, size, weight_axis = BatchNorm1d, "num_features", 0


class LazyBatchNorm2d(_Lazy, BatchNorm2d):
    """A :class:`BatchNorm2d` without its first argument."""

    plain, size, weight_axis = BatchNorm2d, "num_features", 0
