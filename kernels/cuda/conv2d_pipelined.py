"""Launches ``conv2d_pipelined.cu``: convolution and its gradients in float32, as products of matrices.

Arrays and options are those of :mod:`.conv2d`, float32 alone. ``fits`` tells whether the taps are few enough,
and offsets between them, and within the weight, can be counted in 32 bits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .conv2d import fields_of, largest_phase, tap_steps
from .conv2d_parts import add_results, add_taps, cut_into_parts
from .matmul import MULTIPROCESSORS

DEPTH = 16  # as in conv2d_pipelined.cu
MAX_TAPS = 128
PIXELS = 8
GRAD_ROWS = 64
COLUMNS = 128  # of a tile, in forward and input_grad
STAGES = {32: 3, 64: 3, 128: 2}  # by the rows of a tile: no more than 48 KB of shared memory
THREADS = 256  # in a block that packs weights
PART = 256  # the fewest pixels that are worth a block of their own in the weight's gradient
PART_STEPS = 12  # the same of steps, in forward and input_grad
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


class _Plan(NamedTuple):
    """How a product is launched: what follows from the shapes, for which it is found once.

    Attributes:
        shape: the fields of struct Conv2dShape.
        tile: the rows of a tile.
        pitch, packed: the elements of a row of the packed weight, and of all of it.
        grid: (tiles, parts); threads: of a block; part: the steps of a part.
    """

    shape: unchanging
    tile: int
    pitch: int
    packed: int
    grid: tuple[int, int]
    threads: int
    part: int


@lru_cache(maxsize=1024)
def _plan(shapes: tuple, exchanged: bool) -> _Plan:
    """The plan of ``forward`` or, with the weight's rows and channels ``exchanged``, of ``input_grad``."""
    fields = _fields(*shapes)
    groups, taps = fields["groups"], fields["KH"] * fields["KW"]
    rows, channels = fields["O"] // groups, fields["C"] // groups
    pixels, phases, all_taps = fields["N"] * fields["OH"] * fields["OW"], 1, taps
    if exchanged:
        rows, channels = channels, rows
        # A phase of fewer taps than the largest has no steps left for the last parts, which are zeros.
        phases, pixels, taps = largest_phase(fields)
    tile, slices = _tile_rows(rows), blocks(channels, DEPTH)
    pitch = blocks(rows, tile) * tile
    tiles = blocks(rows, tile) * blocks(pixels, COLUMNS) * groups * phases
    packed = groups * slices * all_taps * DEPTH * pitch
    return _Plan(fields, tile, pitch, packed, *_in_parts(tiles, tile, slices * taps))


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """Tiles of up to 128 x 128, with 8 x 8 results a thread; copies run ahead, of weights in their order."""
    bias_shape = None if bias is None else bias.shape
    plan = _plan((x.shape, weight.shape, out.shape, options, bias_shape), exchanged=False)
    packed = _packed(weight, plan, exchanged=False)
    results, epilogue = _results(out, plan), (bias, relu) if plan.grid[1] == 1 else (None, False)
    arguments = (results, x, packed, *epilogue, plan.part, plan.shape)
    _forward[plan.tile].launch(plan.grid, plan.threads, arguments)
    if results is not out:
        add_results(out, results, bias, relu)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """As forward, one product for each phase of the stride, with the weight's rows and channels exchanged."""
    plan = _plan((out.shape, weight.shape, grad_output.shape, options), exchanged=True)
    packed, results = _packed(weight, plan, exchanged=True), _results(out, plan)
    arguments = (results, grad_output, packed, plan.part, plan.shape, tap_steps(plan.shape))
    _input_grad[plan.tile].launch(plan.grid, plan.threads, arguments)
    if results is not out:
        add_results(out, results)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tiles of 64 rows and the channels of up to three taps; blocks share the long sums over all pixels."""
    shapes = x.shape, out.shape, grad_output.shape, options
    shape, tile, grid, threads, parts, length = _weight_grad_plan(shapes)
    partial = workspace(out, (parts, out.size))
    _weight_grad[tile].launch(grid, threads, (partial, grad_output, x, length, shape))
    add_taps(out, partial)


@lru_cache(maxsize=1024)
def _weight_grad_plan(shapes: tuple) -> tuple[unchanging, tuple[int, int], int, int, int, int]:
    """(the fields of struct Conv2dShape, a tile's channels and taps, the grid, the threads of a block, the
    parts, the pixels of one)."""
    fields = _fields(*shapes)
    groups, taps = fields["groups"], fields["KH"] * fields["KW"]
    rows, channels = fields["O"] // groups, fields["C"] // groups
    tile = 64 if channels > 32 else 32, 3 if taps > 2 else 1
    threads = GRAD_ROWS * tile[0] * tile[1] // 64
    tiles = blocks(rows, GRAD_ROWS) * blocks(channels, tile[0]) * blocks(taps, tile[1]) * groups
    at_a_time = MULTIPROCESSORS * (THREADS_AT_A_TIME // threads)
    pixels = fields["N"] * fields["OH"] * fields["OW"]
    parts, length = cut_into_parts(pixels, tiles, at_a_time, PART, PIXELS)
    return fields, tile, tiles * parts, threads, parts, length


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


def _packed(weight: Any, plan: _Plan, exchanged: bool) -> Any:
    """The weight in the order in which the kernels read it, in whole tiles."""
    packed = workspace(weight, plan.packed)
    arguments = (packed, weight, plan.pitch, exchanged, plan.shape)
    _pack.launch(blocks(plan.packed, THREADS), THREADS, arguments)
    return packed


def _results(out: Any, plan: _Plan) -> Any:
    """Where the kernels store what they make of ``out``: there, or of several parts in an array for each."""
    parts = plan.grid[1]
    return out if parts == 1 else workspace(out, (parts, out.size))


def _fields(x: tuple, weight: tuple, output: tuple, options: tuple, bias: tuple | None = None) -> unchanging:
    """The fields of struct Conv2dShape; ValueError unless the kernels can count the offsets."""
    shape = fields_of(x, weight, output, options, bias)
    if not fits(weight, max(shape["W"], shape["OW"]), options[4:6]):
        raise ValueError(
            f"conv2d pipelined kernel: weight {weight} with dilation {options[4:6]} has more than "
            f"{MAX_TAPS} taps, or reaches too far"
        )
    return shape
