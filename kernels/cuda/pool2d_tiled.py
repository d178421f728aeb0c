"""Launches ``pool2d_tiled.cu``: pooling of windows that overlap, in tiles.

Arrays are as in ``pool2d.py``. What no tile fits, the definition does.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .pool2d import THREADS, avg_pool2d, check_taps, divisor_fields, max_pool2d, shape_fields

TILE_WINDOWS = 1024  # in a tile, at most
TILE_BYTES = 24 * 1024  # of shared memory, at most: pool2d_tiled.cu tells why
BANKS_BYTES = 128  # of shared memory, that are served at a time: 32 banks of 4 bytes
WARP = 32

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_max_pool2d = CudaKernel(_source, "max_pool2d_tiled<T, Tap>")
_avg_pool2d = CudaKernel(_source, "avg_pool2d_tiled<T>")


def max_pool2d_tiled(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For windows that overlap: a block stages their input in shared memory, and reads it once."""
    shape = shape_fields(x, out, *options)
    tile = tile_of(out.shape[2:], options, x.itemsize)
    if tile is None:
        return max_pool2d(out, taps, x, *options)
    check_taps(taps, out, *options[:2])
    _launch_tiles(_max_pool2d, tile, out, taps, x, shape)


def avg_pool2d_tiled(out: Any, x: Any, *options: Any) -> None:
    """For windows that overlap: a block stages their input in shared memory, and reads it once."""
    *window, _, _ = options
    shape = shape_fields(x, out, *window)
    tile = tile_of(out.shape[2:], (*window, 1, 1), x.itemsize)
    if tile is None:
        return avg_pool2d(out, x, *options)
    _launch_tiles(_avg_pool2d, tile, out, x, shape, divisor_fields(x, out, *options))


def _launch_tiles(kernel: CudaKernel, tile: dict[str, int], out: Any, *arguments: Any) -> None:
    planes, (OH, OW) = math.prod(out.shape[:2]), out.shape[2:]
    columns = tile["columns"]
    block = (columns, min(THREADS // columns, tile["rows"]))
    grid = planes * blocks(OH, tile["rows"]) * blocks(OW, columns)
    shared_bytes = tile["input_rows"] * tile["pitch"] * out.itemsize
    kernel.launch(grid, block, (out, *arguments, tile), shared_bytes)


@lru_cache(maxsize=1024)  # the same few poolings come in every step of a training
def tile_of(pooled: tuple[int, int], options: tuple[int, ...], itemsize: int) -> dict[str, int] | None:
    """The fields of struct PoolTile, for planes of ``pooled`` windows; None if no tile fits."""
    (OH, OW), (kernel_h, kernel_w, stride_h, stride_w, _, _, dilation_h, dilation_w) = pooled, options
    columns = next((n for n in (8, 16) if n >= OW), WARP)
    reach_h, reach_w = (kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1
    input_columns = blocks((columns - 1) * stride_w + reach_w, columns) * columns
    phase, pitch = _without_conflicts(columns, input_columns, stride_h, stride_w, BANKS_BYTES // itemsize)
    fitting = (TILE_BYTES // (pitch * itemsize) - reach_h) // stride_h + 1
    most = min(fitting, TILE_WINDOWS // columns, OH)
    if most < 1:
        return None
    rows = blocks(OH, blocks(OH, most))  # tiles of like height
    return {
        "rows": rows,
        "columns": columns,
        "input_rows": (rows - 1) * stride_h + reach_h,
        "input_columns": input_columns,
        "phase": phase,
        "pitch": pitch,
    }


def _without_conflicts(
    columns: int, input_columns: int, stride_h: int, stride_w: int, lanes: int
) -> tuple[int, int]:
    """The least phase and pitch of struct PoolTile by which ``lanes`` threads fall into banks of their own.

    As many threads as the banks serve at a time stand in rows of ``columns`` windows. A store of theirs goes
    to all phases, which must be a share of the banks apart; where they take several rows, a load reads rows
    that lie ``stride_h * pitch`` apart, and that must follow each other in the banks.
    """
    phase = blocks(input_columns, stride_w)
    if stride_w > 1:
        apart = pow(stride_w, -1, lanes) if stride_w % 2 else blocks(lanes, stride_w)
        phase += (apart - phase) % lanes
    pitch = phase * stride_w
    if columns < lanes:
        fitting = (p for p in range(pitch, pitch + lanes) if (stride_h * p - columns) % lanes == 0)
        pitch = next(fitting, pitch)
    return phase, pitch


def worth_tiles(pooled: tuple[int, int], options: tuple[int, ...], itemsize: int) -> bool:
    """Whether the tiled rungs gain by a pooling to planes of ``pooled`` windows: these overlap, and fill a
    warp."""
    kernel, stride, dilation = options[:2], options[2:4], options[6:]
    axes = zip(pooled, kernel, stride, dilation, strict=True)
    overlap = any(n > 1 and (k - 1) * d >= s for n, k, s, d in axes)
    return overlap and math.prod(pooled) >= WARP and tile_of(pooled, options, itemsize) is not None
