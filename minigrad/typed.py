"""``FloatTensor``, ``LongTensor`` and so on: tensors of a dtype, by the names of PyTorch's first years."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minigrad.creation import empty, tensor
from minigrad.devices import cpu
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
]


class TypedTensor(type):
    """The class of these classes. Called with data, they make a tensor of it; with sizes, an empty one.

    A tensor on the CPU is an instance of the one that has its dtype, and ``x.type(FloatTensor)`` converts.
    """

    dtype: np.dtype

    def __call__(cls, *data: Any) -> Tensor:
        if len(data) == 1 and not isinstance(data[0], numbers.Integral):
            return tensor(data[0], cls.dtype)
        return empty(*data or (0,), dtype=cls.dtype)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and instance.device is cpu and instance.dtype == cls.dtype


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
