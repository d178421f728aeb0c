"""Type promotion: the dtype of a result from those of its operands, by PyTorch's rules.

A dtype belongs to one of three kinds, bool < integer < floating. Tensors with dimensions decide; a 0-d
tensor, and then a Python number, changes the result only by being of a higher kind. So ``int64 * 2.5`` is
the default dtype (float32), and ``float32 * float64(0-d)`` stays float32. Two 16-bit dtypes give float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minigrad.dtypes import FLOAT32, is_floating

__all__ = ["get_default_dtype", "result_dtype", "set_default_dtype"]

_default = np.dtype(np.float32)
_KIND = {"b": 0, "u": 1, "i": 1, "f": 2, "V": 2}  # bfloat16 is of kind V


def get_default_dtype() -> np.dtype:
    """The dtype of tensors made from Python floats; float32 unless set otherwise."""
    return _default


def set_default_dtype(dtype: Any) -> None:
    """Set the dtype of tensors made from Python floats: float32 or float64."""
    global _default
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"set_default_dtype: expected float32 or float64, got {np.dtype(dtype)}")
    _default = np.dtype(dtype)


def result_dtype(operands: Iterable[Any]) -> np.dtype:
    """The common dtype of ``operands``: arrays, Python scalars, or None (ignored)."""
    dimensioned: list[np.dtype] = []
    zero_dim: list[np.dtype] = []
    scalars: list[np.dtype] = []
    for operand in operands:
        if operand is None:
            continue
        if hasattr(operand, "dtype"):
            (dimensioned if operand.ndim else zero_dim).append(operand.dtype)
        else:
            scalars.append(scalar_dtype(operand))
    result = None
    for group in (dimensioned, zero_dim, scalars):
        if group:
            dtype = _join(group)
            if result is None or _KIND[dtype.kind] > _KIND[result.kind]:
                result = dtype
    if result is None:
        raise TypeError("no operand has a dtype")
    return result


def scalar_dtype(value: bool | int | float) -> np.dtype:
    """The dtype of a tensor made from this Python number."""
    if isinstance(value, bool):
        return np.dtype(np.bool_)
    return np.dtype(np.int64) if isinstance(value, int) else _default


def _join(dtypes: list[np.dtype]) -> np.dtype:
    floats = {t for t in dtypes if is_floating(t)}
    if len(floats) > 1:  # float16 and bfloat16 both fit into float32, and neither into the other
        floats = {FLOAT32 if t.kind == "V" else t for t in floats}
    return np.result_type(*(floats or dtypes))
