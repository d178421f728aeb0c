"""Launches ``pool2d_rolling.cu``: pooling of 3x3 windows, walking down strips.

Arrays are as in ``pool2d.py``. What the kernels do not take, the tiles do.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .pool2d import check_taps, divisor_fields, shape_fields
from .pool2d_tiled import avg_pool2d_tiled, max_pool2d_tiled
from .vector import VECTOR_BYTES, starts_at_vector

# Of windows, that a thread walks down; it reads two rows that its neighbours read, too. Few, so that a card
# has several times the blocks that it runs at a time: the last ones would leave much of it idle.
SEGMENT_ROWS = 16
# Of a segment where such ones are too few to fill a card. No fewer: a thread reads two rows that its
# neighbours read, too.
LEAST_ROWS = 4
WINDOWS = 4  # side by side, of a thread, where rows are not whole vectors; two in float64
THREADS = 128  # as in pool2d_rolling.cu
AT_A_TIME = 132 * 7 * THREADS  # threads that an H200 runs of most of these kernels
MOST = 65535  # of a grid's y and z

_source = CudaSource(Path(__file__).with_suffix(".cu"))
# By the stride, and whether all is made of whole vectors.
_VARIANTS = [(stride, wide) for stride in (1, 2) for wide in (False, True)]
_max_pool2d = {
    (stride, wide): CudaKernel(_source, f"max_pool2d_rolling<T, Tap, {stride}, {wide}>")
    for stride, wide in _VARIANTS
}
_avg_pool2d = {
    (stride, wide): CudaKernel(_source, f"avg_pool2d_rolling<T, {stride}, {wide}>")
    for stride, wide in _VARIANTS
}


def max_pool2d_rolling(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    if not in_strips(x.shape[2:], out.shape[2:], options):
        return max_pool2d_tiled(out, taps, x, *options)
    check_taps(taps, out, *options[:2])
    _launch_strips(_max_pool2d, (out, taps, x), options, shape_fields(x, out, *options))


def avg_pool2d_rolling(out: Any, x: Any, *options: Any) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    *window, _, _ = options
    if not in_strips(x.shape[2:], out.shape[2:], tuple(window)):
        return avg_pool2d_tiled(out, x, *options)
    shape, divisor = shape_fields(x, out, *window), divisor_fields(x, out, *options)
    _launch_strips(_avg_pool2d, (out, x), window, shape, divisor)


def _launch_strips(
    kernels: dict[tuple[int, bool], CudaKernel], arrays: tuple, window: Any, *rest: Any
) -> None:
    out, x, stride = arrays[0], arrays[-1], window[2]
    planes, (OH, OW) = math.prod(out.shape[:2]), out.shape[2:]
    vector = VECTOR_BYTES // out.itemsize
    padded = tuple(window[4:6]) == (1, 1)
    wide = padded and OW * stride == x.shape[3] and OW % vector == 0 and starts_at_vector(*arrays)
    columns = blocks(OW, vector if wide else min(vector, WINDOWS))
    to_fill = min(AT_A_TIME // max(planes * columns, 1), blocks(OH, LEAST_ROWS))
    rows = blocks(OH, min(max(blocks(OH, SEGMENT_ROWS), to_fill), MOST))  # segments of like height
    group = max(min(AT_A_TIME // columns, planes), blocks(planes, MOST), 1)
    grid = blocks(group * columns, THREADS), blocks(OH, rows), blocks(planes, group)
    kernels[stride, wide].launch(grid, THREADS, (*arrays, *rest, group, rows))


@lru_cache(maxsize=1024)  # the same few poolings come in every step of a training
def in_strips(size: tuple, pooled: tuple, options: tuple[int, ...]) -> bool:
    """Whether the rolling rungs take a pooling of planes of ``size`` to planes of ``pooled``.

    They do with 3x3 windows, all of which begin inside of the input or in the padding in front of it.
    """
    (*kernel, stride, other, pad_h, pad_w, dilation_h, dilation_w) = (*options, 1, 1)[:8]
    if kernel != [3, 3] or stride != other or stride > 2 or not dilation_h == dilation_w == 1:
        return False
    axes = zip(size, pooled, (pad_h, pad_w), strict=True)
    return all(pad <= 1 and count > 0 and (count - 1) * stride < n + pad for n, count, pad in axes)
