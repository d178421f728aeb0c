"""Launches ``pool2d_rolling.cu``: pooling of 3x3 windows, walking down strips.

Arrays are as in ``pool2d.py``. What the kernels do not take, the tiles do.
"""

from __future__ import annotations

import math
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
THREADS = 128  # as in pool2d_rolling.cu
AT_A_TIME = 132 * 7 * THREADS  # threads that an H200 runs of most of these kernels
MOST = 65535  # of a grid's y and z

_source = CudaSource(Path(__file__).with_suffix(".cu"))
# By the stride.
_max_pool2d = {n: CudaKernel(_source, f"max_pool2d_rolling<T, Tap, {n}>") for n in (1, 2)}
_avg_pool2d = {n: CudaKernel(_source, f"avg_pool2d_rolling<T, {n}>") for n in (1, 2)}


def max_pool2d_rolling(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    if not (in_strips(x.shape[2:], out.shape[2:], options, x.itemsize) and starts_at_vector(x, out, taps)):
        return max_pool2d_tiled(out, taps, x, *options)
    check_taps(taps, out, *options[:2])
    _launch_strips(_max_pool2d[options[2]], out, taps, x, shape_fields(x, out, *options))


def avg_pool2d_rolling(out: Any, x: Any, *options: Any) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    *window, _, _ = options
    if not (in_strips(x.shape[2:], out.shape[2:], tuple(window), x.itemsize) and starts_at_vector(x, out)):
        return avg_pool2d_tiled(out, x, *options)
    kernel, shape = _avg_pool2d[window[2]], shape_fields(x, out, *window)
    _launch_strips(kernel, out, x, shape, divisor_fields(x, out, *options))


def _launch_strips(kernel: CudaKernel, out: Any, *arguments: Any) -> None:
    planes, (OH, OW) = math.prod(out.shape[:2]), out.shape[2:]
    rows = blocks(OH, min(blocks(OH, SEGMENT_ROWS), MOST))  # segments of like height
    columns = OW * out.itemsize // VECTOR_BYTES
    group = max(min(AT_A_TIME // columns, planes), blocks(planes, MOST), 1)
    grid = blocks(group * columns, THREADS), blocks(OH, rows), blocks(planes, group)
    kernel.launch(grid, THREADS, (out, *arguments, group, rows))


def in_strips(size: tuple, pooled: tuple, options: tuple[int, ...], itemsize: int) -> bool:
    """Whether the rolling rungs take a pooling of planes of ``size`` to planes of ``pooled``.

    They do with 3x3 windows, all of which begin above the input's end, and rows of whole vectors.
    """
    (H, W), (OH, OW), stride = size, pooled, options[2]
    if stride not in (1, 2) or (*options, 1, 1)[:8] != (3, 3, stride, stride, 1, 1, 1, 1):
        return False
    return 0 < OH <= (H + stride) // stride and 0 < OW * stride == W and OW * itemsize % VECTOR_BYTES == 0
