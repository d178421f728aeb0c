"""Tensor maps: what the copy engine of compute capability 9.0 is told about an array (``TensorMap``).

A card's driver alone knows their 128 bytes: ``cuTensorMapEncodeTiled`` and, for images that a filter moves
over, ``cuTensorMapEncodeIm2col``, called here through ctypes. For the simulator they hold what the driver is
told, after the driver's own checks (``TensorMap`` of asynchronous.h).
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

# Of a filter that moves over images: its steps, the distances of its corners from those of the image, and the
# distances of taps from its corner.
LARGEST_FILTER_STRIDE = 8
LEAST_CORNER, LARGEST_CORNER = -128, 127
LARGEST_OFFSET = 255

_SIMULATORS, _SIMULATORS_OF_IMAGES = 0x5D0B0C5, 0x5D0B0C6  # as in TensorMap of asynchronous.h

# Of cuda.h. 16-bit elements and sums are copied bit by bit; floats are rounded to TF32 on their way.
_BITS_16, _BITS_32, _TF32 = 1, 2, 11
_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_256B, _ZEROS_OUTSIDE = 0, 3, 3, 0

Filter = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""How a filter moves over images: its first and last corners, and its strides; of each, (across, down)."""


Lying = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape and the strides of an array, as which to see another one: a view takes CuPy a microsecond."""


def fits(x: Any, lying: Lying | None = None) -> bool:
    """Whether the engine can copy boxes of ``x``, (batches, rows, columns) or (batches, heads, rows,
    columns): columns are neighbours, and rows and matrices start at multiples of 16 bytes. Matrices may all
    be the same one, with a stride of 0. ``lying`` replaces the shape and the strides of ``x``."""
    return address(x) % ALIGNMENT == 0 and lies_fitting(*(lying or (x.shape, x.strides)), x.itemsize)


@lru_cache(maxsize=1024)  # the same few come in every step of a training
def lies_fitting(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """The same of an array that starts at a multiple of 16 bytes."""
    *_, rows, columns = shape
    *_, row_stride, column_stride = strides
    return (
        (column_stride == itemsize or columns == 1)
        and (rows == 1 or row_stride > 0)
        and all(
            size == 1 or (0 <= stride < LARGEST_STRIDE and stride % ALIGNMENT == 0)
            for size, stride in zip(shape[:-1], strides[:-1], strict=True)
        )
        and min(shape) > 0
        and max(shape) <= LARGEST_SIZE
    )


def describe(x: Any, as_tf32: bool = False, lying: Lying | None = None) -> unchanging:
    """The fields of ``TensorMap`` for ``x``, (batches, rows, columns) or (batches, heads, rows, columns),
    which :func:`fits`.

    Boxes are 64 rows of 128 bytes. Matrices that are all the same are one. ``as_tf32``: floats are rounded
    when they are loaded.
    """
    shape, strides = lying or (x.shape, x.strides)
    return _of_matrices(_encoder(x), address(x), shape, strides, x.itemsize, as_tf32)


@lru_cache(maxsize=1024)  # the driver takes its time, and memory comes back at the same addresses
def _of_matrices(
    encode: Any,
    start: int,
    shape: tuple[int, ...],
    apart: tuple[int, ...],
    itemsize: int,
    as_tf32: bool,
) -> unchanging:
    *matrices, rows, columns = shape
    *matrix_strides, row_stride, _ = apart
    if rows == 1:
        row_stride = -(-columns * itemsize // ALIGNMENT) * ALIGNMENT
    sizes, strides = [columns, rows], [row_stride]
    for size, stride in zip(reversed(matrices), reversed(matrix_strides), strict=True):
        several = size > 1 and stride > 0
        sizes.append(size if several else 1)
        strides.append(stride if several else row_stride * rows)
    return encode(start, _kind(itemsize, as_tf32), itemsize, tuple(sizes), tuple(strides))


def describe_images(
    x: Any,
    shape: tuple[int, int, int, int],
    pitch: int,
    lower: tuple[int, ...],
    upper: tuple[int, ...],
    stride: tuple[int, ...],
    as_tf32: bool = False,
) -> unchanging:
    """The fields of ``TensorMap`` for images ``shape`` (N, H, W, C), which begin where ``x`` does, with
    pixels ``pitch`` elements apart, a multiple of 16 bytes.

    A filter's corner moves over each image by ``stride`` pixels, from ``lower`` pixels from its first one to
    ``upper`` pixels from its last one at most; of each, (vertical, horizontal). Boxes are 64 pixels that one
    tap reads, of 128 bytes of channels.
    """
    return _of_images(_encoder(x), address(x), x.itemsize, shape, pitch, lower, upper, stride, as_tf32)


@lru_cache(maxsize=1024)
def _of_images(
    encode: Any,
    start: int,
    itemsize: int,
    shape: tuple[int, int, int, int],
    pitch: int,
    lower: tuple[int, ...],
    upper: tuple[int, ...],
    stride: tuple[int, ...],
    as_tf32: bool,
) -> unchanging:
    N, H, W, C = shape
    pixel = pitch * itemsize
    strides, filter = (pixel, W * pixel, H * W * pixel), (lower[::-1], upper[::-1], stride[::-1])
    return encode(start, _kind(itemsize, as_tf32), itemsize, (C, W, H, N), strides, filter)


def _kind(itemsize: int, as_tf32: bool) -> int:
    return _BITS_16 if itemsize == 2 else _TF32 if as_tf32 else _BITS_32


def _encoder(x: Any) -> Any:
    return _encode_for_simulator if isinstance(x, np.ndarray) else _encode


def _encode(
    start: int,
    kind: int,
    itemsize: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    filter: Filter | None = None,
) -> unchanging:
    words = (ctypes.c_uint64 * 24)()
    at = -ctypes.addressof(words) % 64 // 8  # the driver wants the map at a multiple of 64 bytes
    columns = BOX_ROW_BYTES // itemsize
    rank = len(sizes)
    if filter is None:
        name = "cuTensorMapEncodeTiled"
        shape = columns, BOX_ROWS, *(1,) * (rank - 2)
        box: tuple = (_array(ctypes.c_uint32, shape), _array(ctypes.c_uint32, (1,) * rank))
    else:
        name = "cuTensorMapEncodeIm2col"
        lower, upper, steps = filter
        corners = _array(ctypes.c_int, lower), _array(ctypes.c_int, upper)
        box = (*corners, columns, BOX_ROWS, _array(ctypes.c_uint32, (1, *steps, 1)))
    status = getattr(_driver(), name)(
        ctypes.c_void_p(ctypes.addressof(words) + 8 * at),
        kind,
        rank,
        ctypes.c_void_p(start),
        _array(ctypes.c_uint64, sizes),
        _array(ctypes.c_uint64, strides),
        *box,
        _INTERLEAVE_NONE,
        _SWIZZLE_128B,
        _L2_PROMOTION_256B,
        _ZEROS_OUTSIDE,
    )
    if status:
        raise KernelLaunchError(
            f"{name}: error {status} for sizes {sizes}, strides {strides}, elements of {itemsize} bytes"
            + (f", a filter with corners and strides {filter}" if filter else "")
        )
    return unchanging(words=tuple(words[at : at + 16]))


def _array(kind: Any, values: tuple[int, ...]) -> ctypes.Array:
    return (kind * len(values))(*values)


def _encode_for_simulator(
    start: int,
    kind: int,
    itemsize: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    filter: Filter | None = None,
) -> unchanging:
    lower, upper, steps = filter or ((), (), ())
    wrong = [
        start % ALIGNMENT and f"the address is no multiple of {ALIGNMENT}",
        not all(1 <= size <= 2**32 for size in sizes) and "sizes are from 1 to 2^32",
        not all(0 < s < LARGEST_STRIDE and s % ALIGNMENT == 0 for s in strides)
        and f"strides are multiples of {ALIGNMENT} below 2^40",
        not all(LEAST_CORNER <= corner <= LARGEST_CORNER for corner in lower + upper)
        and f"corners are from {LEAST_CORNER} to {LARGEST_CORNER}",
        not all(0 < step <= LARGEST_FILTER_STRIDE for step in steps)
        and f"the filter's strides are from 1 to {LARGEST_FILTER_STRIDE}",
    ]
    if any(wrong):
        raise KernelLaunchError(
            f"a tensor map of sizes {sizes}, strides {strides}, elements of {itemsize} bytes"
            + (f", a filter with corners and strides {filter}: " if filter else ": ")
            + ", ".join(rule for rule in wrong if rule)
        )
    if filter:  # a byte for each number
        words = (*sizes, *strides, int.from_bytes([n % 256 for n in (*lower, *upper, *steps)], "little"))
    else:  # of a fourth dimension, size and stride come last
        words = (*sizes[:3], *strides[:2], BOX_ROW_BYTES // itemsize, BOX_ROWS, 1, *sizes[3:], *strides[2:])
    words = (start, kind, itemsize, *words)
    magic = _SIMULATORS_OF_IMAGES if filter else _SIMULATORS
    return unchanging(words=(*words, *(0,) * (15 - len(words)), magic))


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
