"""``FloatTensor``, ``LongTensor`` and so on: tensors of a dtype, by the names of PyTorch's first years.

Those of :mod:`minigrad.cuda`, ``cuda.FloatTensor``, are on the current card.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minigrad.creation import empty, tensor
from minigrad.promotion import set_default_dtype
from minigrad.tensor import Tensor

__all__ = [
    "BoolTensor",
    "ByteTensor",
    "CharTensor",
    "DoubleTensor",
    "FloatTensor",
    "HalfTensor",
    "IntTensor",
    "LongTensor",
    "ShortTensor",
    "set_default_tensor_type",
]


class TypedTensor(type):
    """The class of these classes. Called with data, they make a tensor of it; with sizes, an empty one.

    A tensor on the CPU is an instance of the one that has its dtype, and ``x.type(FloatTensor)`` converts.
    """

    dtype: np.dtype
    device = "cpu"

    def __call__(cls, *data: Any) -> Tensor:
        if len(data) == 1 and not isinstance(data[0], numbers.Integral):
            return tensor(data[0], cls.dtype, cls.device)
        return empty(*data or (0,), dtype=cls.dtype, device=cls.device)

    def __instancecheck__(cls, instance: Any) -> bool:
        if not isinstance(instance, Tensor) or instance.dtype != cls.dtype:
            return False
        return instance.device.type == cls.device


def on_cuda(name: str) -> TypedTensor:
    """``cuda.FloatTensor`` and so on: the class of tensors of a dtype on a card."""
    if name not in __all__:
        raise AttributeError(f"module 'minigrad.cuda' has no attribute {name!r}")
    return TypedTensor(name, (globals()[name],), {"device": "cuda", "__module__": "minigrad.cuda"})


def set_default_tensor_type(t: Any) -> None:
    """Set the default dtype by ``DoubleTensor`` or ``FloatTensor``, or by such a name."""
    name = (t if isinstance(t, str) else t.__name__).rpartition(".")[2]
    if name not in ("FloatTensor", "DoubleTensor"):
        raise TypeError(f"set_default_tensor_type: expected FloatTensor or DoubleTensor, got {t!r}")
    set_default_dtype(globals()[name].dtype)


class HalfTensor(metaclass=TypedTensor):
    """float16"""

    dtype = np.dtype(np.float16)


class FloatTensor(metaclass=TypedTensor):
    """float32"""

    dtype = np.dtype(np.float32)


class DoubleTensor(metaclass=TypedTensor):
    """float64"""

    dtype = np.dtype(np.float64)


class ByteTensor(metaclass=TypedTensor):
    """uint8"""

    dtype = np.dtype(np.uint8)


class CharTensor(metaclass=TypedTensor):
    """int8"""

    dtype = np.dtype(np.int8)


class ShortTensor(metaclass=TypedTensor):
    """int16"""

    dtype = np.dtype(np.int16)


class IntTensor(metaclass=TypedTensor):
    """int32"""

    dtype = np.dtype(np.int32)


class LongTensor(metaclass=TypedTensor):
    """int64"""

    dtype = np.dtype(np.int64)


class BoolTensor(metaclass=TypedTensor):
    """bool"""

    dtype = np.dtype(np.bool_)
