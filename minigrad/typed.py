"""``FloatTensor``, ``LongTensor`` and so on: PyTorch's old names for tensors of a dtype.

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
    """The metaclass of these classes. Called with data they make a tensor of it, with sizes an empty one.

    ``isinstance(x, FloatTensor)`` is true for a float32 tensor on the CPU; ``x.type(FloatTensor)`` converts.
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


def _of_dtype(name: str, dtype: Any) -> TypedTensor:
    return TypedTensor(
        name, (), {"dtype": np.dtype(dtype), "__module__": __name__, "__doc__": dtype.__name__}
    )


HalfTensor = _of_dtype("HalfTensor", np.float16)
FloatTensor = _of_dtype("FloatTensor", np.float32)
DoubleTensor = _of_dtype("DoubleTensor", np.float64)
ByteTensor = _of_dtype("ByteTensor", np.uint8)
CharTensor = _of_dtype("CharTensor", np.int8)
ShortTensor = _of_dtype("ShortTensor", np.int16)
IntTensor = _of_dtype("IntTensor", np.int32)
LongTensor = _of_dtype("LongTensor", np.int64)
BoolTensor = _of_dtype("BoolTensor", np.bool_)
