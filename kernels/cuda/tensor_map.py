"""Tensor maps: what the copy engine of compute capability 9.0 is told about an array (``TensorMap``).

A card's driver alone knows their 128 bytes: ``cuTensorMapEncodeTiled``, called here through ctypes. For the
simulator they hold what the driver is told, after the driver's own checks (``TensorMap`` of asynchronous.h).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..arguments import address, unchanging
from ..errors import KernelLaunchError

ALIGNMENT = 16  # bytes, of the array's start and of its strides
LARGEST_STRIDE = 2**40
LARGEST_SIZE = 2**31 - 2**16  # of a dimension: the engine takes coordinates as int
BOX_ROWS, BOX_ROW_BYTES = 64, 128  # as in hopper.cuh

_SIMULATORS = 0x5D0B0C5  # TensorMap::MAGIC of asynchronous.h

# Of cuda.h. 16-bit elements and sums are copied bit by bit; floats are rounded to TF32 on their way.
_BITS_16, _BITS_32, _TF32 = 1, 2, 11
_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_256B, _ZEROS_OUTSIDE = 0, 3, 3, 0


def fits(x: Any) -> bool:
    """Whether the engine can copy boxes of ``x`` (batches, rows, columns): columns are neighbours, and rows
    and matrices start at multiples of 16 bytes. Matrices may all be the same one, with a stride of 0."""
    batches, rows, columns = x.shape
    batch_stride, row_stride, column_stride = x.strides
    return (
        (column_stride == x.itemsize or columns == 1)
        and (rows == 1 or (0 < row_stride < LARGEST_STRIDE and row_stride % ALIGNMENT == 0))
        and (batches == 1 or (0 <= batch_stride < LARGEST_STRIDE and batch_stride % ALIGNMENT == 0))
        and address(x) % ALIGNMENT == 0
        and min(x.shape) > 0
        and max(x.shape) <= LARGEST_SIZE
    )


def describe(x: Any, as_tf32: bool = False) -> unchanging:
    """The fields of ``TensorMap`` for ``x`` (batches, rows, columns), which :func:`fits`.

    Boxes are 64 rows of 128 bytes. ``as_tf32``: floats are rounded when they are loaded.
    """
    batches, rows, columns = x.shape
    batch_stride, row_stride, _ = x.strides
    if rows == 1:
        row_stride = -(-columns * x.itemsize // ALIGNMENT) * ALIGNMENT
    if batches == 1 or batch_stride == 0:
        batches, batch_stride = 1, row_stride * rows
    kind = _BITS_16 if x.itemsize == 2 else _TF32 if as_tf32 else _BITS_32
    encode = _encode_for_simulator if isinstance(x, np.ndarray) else _encode
    return encode(address(x), kind, x.itemsize, (columns, rows, batches), (row_stride, batch_stride))


@lru_cache(maxsize=1024)
def _encode(
    start: int, kind: int, itemsize: int, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> unchanging:
    words = (ctypes.c_uint64 * 24)()
    at = -ctypes.addressof(words) % 64 // 8  # the driver wants the map at a multiple of 64 bytes
    box = BOX_ROW_BYTES // itemsize, BOX_ROWS, 1
    status = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(ctypes.addressof(words) + 8 * at),
        kind,
        len(sizes),
        ctypes.c_void_p(start),
        (ctypes.c_uint64 * 3)(*sizes),
        (ctypes.c_uint64 * 2)(*strides),
        (ctypes.c_uint32 * 3)(*box),
        (ctypes.c_uint32 * 3)(1, 1, 1),
        _INTERLEAVE_NONE,
        _SWIZZLE_128B,
        _L2_PROMOTION_256B,
        _ZEROS_OUTSIDE,
    )
    if status:
        raise KernelLaunchError(
            f"cuTensorMapEncodeTiled: error {status} for sizes {sizes}, strides {strides}, elements of "
            f"{itemsize} bytes"
        )
    return unchanging(words=tuple(words[at : at + 16]))


@lru_cache(maxsize=1024)
def _encode_for_simulator(
    start: int, kind: int, itemsize: int, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> unchanging:
    box = BOX_ROW_BYTES // itemsize, BOX_ROWS, 1
    wrong = [
        start % ALIGNMENT and f"the address is no multiple of {ALIGNMENT}",
        not all(1 <= size <= 2**32 for size in sizes) and "sizes are from 1 to 2^32",
        not all(0 < s < LARGEST_STRIDE and s % ALIGNMENT == 0 for s in strides)
        and f"strides are multiples of {ALIGNMENT} below 2^40",
    ]
    if any(wrong):
        raise KernelLaunchError(
            f"a tensor map of sizes {sizes}, strides {strides}, elements of {itemsize} bytes: "
            + ", ".join(filter(None, wrong))
        )
    words = (start, kind, itemsize, *sizes, *strides, *box)
    return unchanging(words=(*words, *(0,) * (15 - len(words)), _SIMULATORS))


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
