"""Launches ``norm_registers.cu``: layer and group norm, for rows that the registers of a block hold.

The arrays are those of ``norm``. Rows have up to MAX_COLUMNS. Some of these do not fit: of float64,
those that do not start at a multiple of 16 bytes, and where a gradient needs more registers. The rung
*block* of ``norm`` does them. Arrays like ``x`` may be float16 or bfloat16; the others are then float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import channel_sums, norm, workspaces
from .vector import VECTOR_BYTES, is_wide

WARP = 32
THREADS = 128  # in a block of several rows
MAX_THREADS = 512  # as in rows.cuh
VECTORS, GRAD_SHARE = 8, 4  # as in norm_registers.cu
MAX_COLUMNS = MAX_THREADS * VECTORS * 4  # of a row of float32 or of 16 bits, in vectors
GRAD_ROWS = 4  # of a block of short rows, in layer norm's gradient, as in norm_registers.cu
ENOUGH_BLOCKS = 528  # partial sums of layer norm's gradient: 132 multiprocessors x 4 blocks, an H200's

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _widths(kernel: str) -> dict[bool, CudaKernel]:
    return {wide: CudaKernel(_source, f"{kernel}, {wide}>") for wide in (False, True)}


_layer_norm = _widths("norm_registers<C, T, false")
_group_norm = _widths("norm_registers<C, T, true")
# By whether rows are made of vectors, and are short.
_layer_norm_grad = {
    (wide, short): CudaKernel(_source, f"layer_norm_grad_registers<C, T, {wide}, {short}>")
    for wide in (False, True)
    for short in (False, True)
}
_group_norm_grad = _widths("group_norm_grad_registers<C, T")


def layer_norm(outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """A row is read once, all of it before the first use, and kept in registers."""
    y, mean, rstd = outs
    rows, columns = norm.row_sizes(x, y, mean, rstd)
    wide = is_wide(columns, *(a for a in (x, y, weight, bias) if a is not None))
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, norm.layout(1, columns, 1), eps)
    if not _forward(_layer_norm[wide], rows, _threads(x, columns, wide), arguments):
        norm.layer_norm("block", outs, x, weight, bias, eps)


def group_norm(outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """A row is read once, all of it before the first use, and kept in registers."""
    y, mean, rstd = outs
    samples, groups, channels, area = norm.group_sizes(x, y, mean, rstd)
    rows, columns = samples * groups, channels * area
    wide = is_wide(columns, x, y)
    layout = norm.layout(groups, channels, area)
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, layout, eps)
    if not _forward(_group_norm[wide], rows, _threads(x, columns, wide), arguments):
        norm.group_norm("block", outs, x, weight, bias, eps)


def layer_norm_grad(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """One walk over grad and x for dx and for shares of dweight and dbias; a second launch adds these."""
    dx, dweight, dbias = outs
    rows, columns = norm.row_sizes(x, dx, mean, rstd)
    partial = workspaces(mean, (min(rows, ENOUGH_BLOCKS), columns))
    wide = is_wide(columns, dx, grad, x, *partial, *(() if weight is None else (weight,)))
    threads = _threads(x, columns, wide, GRAD_SHARE)
    if threads > MAX_THREADS:
        norm.layer_norm_grad("block", outs, grad, x, mean, rstd, weight)
        return
    short = threads == WARP
    rows_of_block = GRAD_ROWS if short else 1
    parts = min(blocks(rows, rows_of_block), ENOUGH_BLOCKS)
    partial = tuple(part[:parts] for part in partial)
    arguments = (dx, *partial, grad, x, mean, rstd, weight, rows, columns)
    _layer_norm_grad[wide, short].launch(parts, (threads, rows_of_block), arguments)
    channel_sums.add_up((dweight, dbias), partial)


def group_norm_grad(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """One walk over grad and x for dx and for sums over each plane; a second launch adds these."""
    dx, dweight, dbias = outs
    samples, groups, channels, area = norm.group_sizes(x, dx, mean, rstd)
    wide = is_wide(area, dx, grad, x)
    pieces = channels * blocks(_vectors(x, area, wide), WARP)
    of_warp = _vectors_held(x, wide)
    if pieces > MAX_THREADS // WARP * of_warp:
        norm.group_norm_grad("block", outs, grad, x, mean, rstd, weight)
        return
    of_planes = workspaces(mean, (samples, groups * channels))
    arguments = (dx, *of_planes, grad, x, mean, rstd, weight, groups, channels, area)
    _group_norm_grad[wide].launch(samples * groups, blocks(pieces, of_warp) * WARP, arguments)
    channel_sums.add_up((dweight, dbias), of_planes)


def _forward(kernel: CudaKernel, rows: int, threads: int, arguments: tuple) -> bool:
    """Launch ``kernel`` with so many threads for a row; whether they fit."""
    if threads > MAX_THREADS:
        return False
    rows_of_block = THREADS // WARP if threads == WARP else 1
    kernel.launch(blocks(rows, rows_of_block), (threads, rows_of_block), arguments)
    return True


def _vectors(x: Any, columns: int, wide: bool) -> int:
    return columns // (VECTOR_BYTES // x.itemsize) if wide else columns


def _vectors_held(x: Any, wide: bool) -> int:
    """How many vectors of a row a thread holds: of 16 bits half as many, each of twice as many elements."""
    return VECTORS // 2 if wide and x.itemsize == 2 else VECTORS


def _threads(x: Any, columns: int, wide: bool, share: int = 1) -> int:
    """How many threads share a row, each with one in ``share`` of the vectors that it could hold."""
    held = _vectors_held(x, wide) // share
    return max(blocks(_vectors(x, columns, wide), held * WARP), 1) * WARP
