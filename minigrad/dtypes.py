"""The dtypes of tensors: NumPy's, and bfloat16, which NumPy lacks.

bfloat16 is float32 with 7 bits of mantissa instead of 23: the same range, two to three decimal digits. Its
arrays are those of the package ml_dtypes (``pip install "minigrad[bfloat16]"``), which NumPy computes with
and CuPy knows. Its kind is ``"V"``, that of plain bytes; tensors hold nothing else of that kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.source import is_bfloat16

try:
    import ml_dtypes
except ImportError:
    BFLOAT16 = None
else:
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

__all__ = [
    "BFLOAT16",
    "FLOATING_KINDS",
    "bfloat16",
    "finfo",
    "is_floating",
    "is_half",
    "is_supported",
    "names_dtype",
    "to_dtype",
]

FLOATING_KINDS = "fV"
"""The kinds of the floating dtypes of tensors: NumPy's own, and bfloat16."""

FLOAT16, FLOAT32, INT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.int64)


def bfloat16() -> np.dtype:
    """The dtype bfloat16. Raises ImportError that says how to install what it needs."""
    if BFLOAT16 is None:
        raise ImportError(
            'bfloat16 needs the package ml_dtypes, as NumPy lacks it: pip install "minigrad[bfloat16]"'
        )
    return BFLOAT16


def finfo(dtype: Any) -> Any:
    """The limits of a floating dtype, bfloat16 among them: ``eps``, ``max`` and so on, as of numpy.finfo."""
    dtype = to_dtype(dtype)
    return ml_dtypes.finfo(dtype) if is_bfloat16(dtype) else np.finfo(dtype)


def is_floating(dtype: np.dtype) -> bool:
    """Whether a tensor of this dtype holds floating numbers."""
    return dtype.kind in FLOATING_KINDS


def is_half(dtype: np.dtype) -> bool:
    """Whether this is float16 or bfloat16: stored in 16 bits, computed with in float32."""
    return dtype.itemsize == 2 and dtype.kind in FLOATING_KINDS


def is_supported(dtype: np.dtype) -> bool:
    """Whether there are tensors of this dtype."""
    return (dtype.itemsize <= 8 and dtype.kind in "fiub") or is_bfloat16(dtype)


def names_dtype(name: str) -> bool:
    """Whether a text is the name of a dtype."""
    try:
        np.dtype(name)
    except TypeError:
        return name == "bfloat16"
    return True


def to_dtype(dtype: Any) -> np.dtype:
    """What names a dtype, as a dtype: ``"bfloat16"`` too, with an error that helps where it is not there."""
    return bfloat16() if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
