"""Methods that convert a tensor to another device or dtype: ``to``, ``cuda``, ``float``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.devices import Device, cpu, find_card, is_pinned, pinned_copy
from minigrad.devices import device as find_device
from minigrad.dtypes import bfloat16, is_supported, names_dtype, to_dtype
from minigrad.errors import DeviceError
from minigrad.graph import Variable
from minigrad.memory_format import MemoryFormat
from minigrad.ops import elementwise
from minigrad.ops.transfer import transfer

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["Conversions", "arguments_of_to"]


_TYPES = {
    "float16": "Half",
    "bfloat16": "BFloat16",
    "float32": "Float",
    "float64": "Double",
    "uint8": "Byte",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "bool": "Bool",
}
_DTYPES = {f"{tensor}Tensor": dtype for dtype, tensor in _TYPES.items()}


def arguments_of_to(args: tuple, device: Any, dtype: Any, non_blocking: bool) -> tuple[Any, Any, bool]:
    """(device, dtype, non_blocking) of a call of ``to``, whose positional arguments tell by their types."""
    for arg in args:
        if isinstance(arg, Variable):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, Device) or (isinstance(arg, str) and not names_dtype(arg)):
            device = arg
        elif isinstance(arg, bool):
            non_blocking = arg
        elif isinstance(arg, int):
            device = find_card(arg)
        elif arg is not None:
            dtype = arg
    return device, dtype, non_blocking


class Conversions:
    """What gives this tensor another device or dtype, by :meth:`to`."""

    def to(
        self: Any,
        *args: Any,
        device: Any = None,
        dtype: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: MemoryFormat | None = None,
    ) -> Tensor:
        """This tensor with another device, dtype or memory format (itself, if all are as they should be).

        ``to("cuda")``, ``to(1)`` (the card of this number), ``to(mg.float64)``, ``to("cuda", mg.float32)``,
        ``to(other_tensor)``; a bool behind these is ``non_blocking``.

        Args:
            non_blocking: a copy from pinned memory to a card returns at once, and joins the card's current
                stream; do not change the source until it is done. Other copies are plain ones.
            copy: make a copy even where nothing changes.
            memory_format: as for :meth:`minigrad.Tensor.contiguous`.
        """
        device, dtype, non_blocking = arguments_of_to(args, device, dtype, non_blocking)
        out = self
        if dtype is not None and (dtype := to_dtype(dtype)) != self.dtype:
            if not is_supported(dtype):
                raise TypeError(f"to: tensors hold floats, integers and bools, got {dtype}")
            out = elementwise.cast(out, dtype=dtype)
        if device is not None and find_device(device) is not out.device:
            out = transfer(out, find_device(device), non_blocking)
        if memory_format is not None:
            out = out.contiguous(memory_format)
        return elementwise.clone(out) if copy and out is self else out

    def cpu(self) -> Tensor:
        """This tensor on the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Tensor:
        """This tensor on a CUDA device: a name or number, by default the current card."""
        return self.to(find_card(device), non_blocking=non_blocking)

    def is_pinned(self: Any) -> bool:
        """Whether it lies in page-locked memory of the host: see :meth:`pin_memory`."""
        return self.device is cpu and is_pinned(self._array)

    def pin_memory(self: Any) -> Tensor:
        """A copy in page-locked memory (itself, if it is there), outside the graph; only on ``cpu``.

        A card reads such memory by itself: ``to("cuda", non_blocking=True)`` returns while the copy runs.

        Raises:
            DeviceError: there is no card, or the tensor is not on ``cpu``.
        """
        if self.device is not cpu:
            raise DeviceError(f"pin_memory: only tensors on cpu can be pinned, this one is on {self.device}")
        return self if self.is_pinned() else wrap(pinned_copy(self._array), cpu)

    def float(self) -> Tensor:
        """As float32."""
        return self.to(np.float32)

    def double(self) -> Tensor:
        """As float64."""
        return self.to(np.float64)

    def half(self) -> Tensor:
        """As float16."""
        return self.to(np.float16)

    def bfloat16(self) -> Tensor:
        """As bfloat16; ImportError without the package ml_dtypes."""
        return self.to(bfloat16())

    def int(self) -> Tensor:
        """As int32."""
        return self.to(np.int32)

    def long(self) -> Tensor:
        """As int64."""
        return self.to(np.int64)

    def short(self) -> Tensor:
        """As int16."""
        return self.to(np.int16)

    def byte(self) -> Tensor:
        """As uint8."""
        return self.to(np.uint8)

    def char(self) -> Tensor:
        """As int8."""
        return self.to(np.int8)

    def bool(self) -> Tensor:
        """As bool: whether each element is not zero."""
        return self.to(np.bool_)

    def type(self: Any, dtype: Any = None) -> Any:
        """With another dtype, or as ``FloatTensor`` and its like; without one, that type's name."""
        if dtype is None:
            return f"torch.{'cuda.' if self.is_cuda else ''}{_TYPES[self.dtype.name]}Tensor"
        if isinstance(dtype, str) and dtype.endswith("Tensor"):
            dtype = _DTYPES[dtype.rpartition(".")[2]]
        return self.to(getattr(dtype, "device", None), dtype=dtype)

    def type_as(self, other: Tensor) -> Tensor:
        """With ``other``'s dtype."""
        return self.to(other.dtype)
