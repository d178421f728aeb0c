"""Launches ``conv2d_pipelined.cu``: convolution and its gradients in float32, as products of matrices.

Arrays and options are those of :mod:`.conv2d`, float32 alone. ``fits`` tells whether the taps are few enough,
and offsets between them, and within the weight, can be counted in 32 bits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .conv2d import shape_fields, tap_steps
from .conv2d_parts import add_results, add_taps, cut_into_parts

DEPTH = 16  # as in conv2d_pipelined.cu
MAX_TAPS = 128
PIXELS = 8
GRAD_ROWS = 64
COLUMNS = 128  # of a tile, in forward and input_grad
STAGES = {32: 3, 64: 3, 128: 2}  # by the rows of a tile: no more than 48 KB of shared memory
THREADS = 256  # in a block that packs weights
PART = 256  # the fewest pixels that are worth a block of their own in the weight's gradient
PART_STEPS = 12  # the same of steps, in forward and input_grad
MULTIPROCESSORS = 132  # of an H200
THREADS_AT_A_TIME = 384  # of a multiprocessor: conv2d_pipelined.cu's RESIDENT_BLOCKS

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_pack = CudaKernel(_source, "conv2d_pack_weight")
_forward = {
    rows: CudaKernel(_source, f"conv2d_forward_pipelined<{rows}, {COLUMNS}, {stages}>")
    for rows, stages in STAGES.items()
}
_input_grad = {
    rows: CudaKernel(_source, f"conv2d_input_grad_pipelined<{rows}, {COLUMNS}, {stages}>")
    for rows, stages in STAGES.items()
}
_weight_grad = {
    (channels, taps): CudaKernel(_source, f"conv2d_weight_grad_pipelined<{channels}, {taps}>")
    for channels in (32, 64)
    for taps in (1, 3)
}


@lru_cache(maxsize=1024)
def fits(weight_shape: tuple[int, ...], width: int, dilation: tuple[int, int]) -> bool:
    """Whether there are few enough taps, and offsets between them, in rows of ``width``, are below 2**31."""
    outputs, channels, KH, KW = weight_shape
    reach = (KH - 1) * dilation[0] * width + (KW - 1) * dilation[1]
    return KH * KW <= MAX_TAPS and max(reach, KH * KW * DEPTH * (max(outputs, channels) + 128)) < 1 << 31


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """Tiles of up to 128 x 128, with 8 x 8 results a thread; copies run ahead, of weights in their order."""
    shape = _shape(x, weight, out, options, bias)
    rows = shape["O"] // shape["groups"]
    tile = _tile_rows(rows)
    packed = _packed(weight, shape, tile, exchanged=False)
    tiles = blocks(rows, tile) * blocks(shape["N"] * shape["OH"] * shape["OW"], COLUMNS) * shape["groups"]
    steps = blocks(shape["C"] // shape["groups"], DEPTH) * shape["KH"] * shape["KW"]
    grid, threads, part = _in_parts(tiles, tile, steps)
    if grid[1] == 1:
        _forward[tile].launch(grid, threads, (out, x, packed, bias, relu, part, shape))
        return
    partial = workspace(out, (grid[1], out.size))
    _forward[tile].launch(grid, threads, (partial, x, packed, None, False, part, shape))
    add_results(out, partial, bias, relu)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """As forward, one product for each phase of the stride, with the weight's rows and channels exchanged."""
    shape = _shape(out, weight, grad_output, options)
    rows, pixels, phases = shape["C"] // shape["groups"], shape["N"], 1
    for size, stride in ((shape["H"], shape["stride_h"]), (shape["W"], shape["stride_w"])):
        phases *= min(stride, size)
        pixels *= blocks(size, stride)  # of the largest phase
    tile = _tile_rows(rows)
    packed = _packed(weight, shape, tile, exchanged=True)
    tiles = blocks(rows, tile) * blocks(pixels, COLUMNS) * shape["groups"] * phases
    apart = tap_steps(shape)
    # Of the largest phase: one of fewer taps has no steps left for the last parts, which are zeros.
    taps = blocks(shape["KH"], apart["step_h"]) * blocks(shape["KW"], apart["step_w"])
    grid, threads, part = _in_parts(tiles, tile, blocks(shape["O"] // shape["groups"], DEPTH) * taps)
    partial = out if grid[1] == 1 else workspace(out, (grid[1], out.size))
    _input_grad[tile].launch(grid, threads, (partial, grad_output, packed, part, shape, apart))
    if grid[1] > 1:
        add_results(out, partial)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tiles of 64 rows and the channels of up to three taps; blocks share the long sums over all pixels."""
    shape = _shape(x, out, grad_output, options)
    groups, taps = shape["groups"], shape["KH"] * shape["KW"]
    rows, channels = shape["O"] // groups, shape["C"] // groups
    tile = 64 if channels > 32 else 32, 3 if taps > 2 else 1
    threads = GRAD_ROWS * tile[0] * tile[1] // 64
    tiles = blocks(rows, GRAD_ROWS) * blocks(channels, tile[0]) * blocks(taps, tile[1]) * groups
    at_a_time = MULTIPROCESSORS * (THREADS_AT_A_TIME // threads)
    pixels = shape["N"] * shape["OH"] * shape["OW"]
    parts, length = cut_into_parts(pixels, tiles, at_a_time, PART, PIXELS)
    partial = workspace(out, (parts, out.size))
    _weight_grad[tile].launch(tiles * parts, threads, (partial, grad_output, x, length, shape))
    add_taps(out, partial)


def _in_parts(tiles: int, tile_rows: int, steps: int) -> tuple[tuple[int, int], int, int]:
    """The grid (tiles, parts), the threads of a block, and the steps of a part."""
    threads = tile_rows * COLUMNS // 64
    resident = 2 if threads == 256 else THREADS_AT_A_TIME // threads  # RESIDENT_BLOCKS
    parts, length = cut_into_parts(steps, tiles, resident * MULTIPROCESSORS, PART_STEPS)
    return (tiles, parts), threads, length


def _tile_rows(rows: int) -> int:
    """The height of a tile: the largest that covers ``rows`` with no more than the others do."""
    if rows <= 32:
        return 32
    return 128 if blocks(rows, 128) * 2 == blocks(rows, 64) else 64


def _packed(weight: Any, shape: dict[str, int], tile: int, exchanged: bool) -> Any:
    """The weight in the order in which the kernels read it, in whole tiles."""
    groups = shape["groups"]
    rows, channels = shape["O"] // groups, shape["C"] // groups
    if exchanged:
        rows, channels = channels, rows
    pitch = blocks(rows, tile) * tile
    size = groups * blocks(channels, DEPTH) * shape["KH"] * shape["KW"] * DEPTH * pitch
    packed = workspace(weight, size)
    _pack.launch(blocks(size, THREADS), THREADS, (packed, weight, pitch, exchanged, shape))
    return packed


def _shape(x: Any, weight: Any, output: Any, options: tuple, bias: Any | None = None) -> dict[str, int]:
    """The fields of struct Conv2dShape; ValueError unless the kernels can count the offsets."""
    shape = shape_fields(x, weight, output, options, bias)
    if not fits(weight.shape, max(shape["W"], shape["OW"]), options[4:6]):
        raise ValueError(
            f"conv2d pipelined kernel: weight {weight.shape} with dilation {options[4:6]} has more than "
            f"{MAX_TAPS} taps, or reaches too far"
        )
    return shape
