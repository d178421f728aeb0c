"""Launches ``transpose.cu``: out (batches, columns, rows) = x (batches, rows, columns), transposed.

The rows of ``out`` may be longer, up to the next multiple of 64 elements: the rest becomes zeros.
``out`` and ``x`` are of one dtype of 16, 32 or 64 bits, or ``out`` is of 16 bits and ``x`` float32, which is
then rounded. In each, the elements of a row are neighbours, and rows and matrices are any steps apart (those
of ``x`` may be the same one, with a step of 0).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .vector import starts_at_vector

SIDE, THREADS = 4, 256  # as in transpose.cu
TILE = SIDE * SIDE * THREADS  # elements
COLUMNS = NARROW, WIDE, *_ = 16, 64, 128, 256, 512  # of a tile of x
COLUMNS_TOGETHER = 64, 128, 256  # the same of images, where several arrays are transposed in one launch
PADDED_TO = 64  # elements of a row of out
MAX_GRID_Z = 65535

Matrices = tuple[int, int, int]
"""(batches, rows, columns)"""

Copy = tuple[Any, Any, Matrices]
"""(out, x, the shape of x), the arguments of :func:`transpose`"""

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernels = {
    (columns, vectors): CudaKernel(_source, f"transpose<Out, T, {columns}, {vectors}>")
    for columns in COLUMNS
    for vectors in (False, True)
}
_together = {
    (*of_images, of_weight): CudaKernel(
        _source, "transpose_together<Out, T, {}, {}, {}>".format(*of_images, of_weight)
    )
    for of_images in product(COLUMNS_TOGETHER, (False, True))
    for of_weight in (NARROW, WIDE)
}


def transpose(out: Any, x: Any, shape: Matrices | None = None) -> None:
    """Tiles by way of shared memory: both arrays are accessed in runs of neighbours.

    ``x`` without gaps may be seen in the ``shape`` (batches, rows, columns), row after row in memory,
    whatever its own: to make a view of it takes the host as long as the launch.
    """
    plan = _plan(*_layout(out, x, shape))
    grid = (plan.tiles, 1, min(plan.shape["batches"], MAX_GRID_Z))
    _kernels[plan.columns, plan.reads_vectors].launch(grid, THREADS, (strided(out), strided(x), plan.shape))


def transpose_together(images: list[Copy], weight: list[Copy]) -> None:
    """:func:`transpose` for each of up to two copies of images and one of a weight, in one launch.

    All copies are of one dtype, and images have it before.
    """
    copies = [*images, *weight]
    if not images or len(copies) == 1:
        for copy in copies:
            transpose(*copy)
        return
    layouts = [tuple([_layout(*copy) for copy in group]) for group in (images, weight)]
    kernel, grid, shapes, starts = _launch_together(*layouts)
    # Where there is one of them alone, or no weight, something of the right types to which no block comes.
    three = images[0], images[-1], *(weight or images[:1])
    arguments: list[Any] = []
    for (out, x, _), shape in zip(three, shapes, strict=True):
        arguments += (strided(out), strided(x), shape)
    kernel.launch(grid, THREADS, (*arguments, *starts))


Layout = tuple[Matrices, tuple[int, int] | None, Matrices, tuple[int, int], int, int, bool, bool]
"""The arguments of :func:`_plan`"""


class _Plan(NamedTuple):
    """How matrices are transposed: the fields of struct TransposeShape, the columns of a tile, the tiles of a
    matrix, and whether ``x`` is read in vectors."""

    shape: unchanging
    columns: int
    tiles: int
    reads_vectors: bool


def _layout(out: Any, x: Any, shape: Matrices | None) -> Layout:
    steps = x.strides[:2] if shape is None else None
    sizes = out.shape, out.strides[:2], x.itemsize, out.itemsize
    return shape or x.shape, steps, *sizes, starts_at_vector(x), starts_at_vector(out)


@lru_cache(maxsize=1024)
def _plan(
    x: Matrices,
    steps: tuple[int, int] | None,
    out: Matrices,
    out_steps: tuple[int, int],
    x_bytes: int,
    out_bytes: int,
    x_is_aligned: bool,
    out_is_aligned: bool,
) -> _Plan:
    """For the shapes of both arrays, their first strides and their elements in bytes, and whether they begin
    at multiples of 16 bytes."""
    batches, rows, columns = x
    if out[:2] != (batches, columns) or not rows <= out[2] <= blocks(rows, PADDED_TO) * PADDED_TO:
        raise ValueError(f"transpose kernel: shapes {out} and {x} do not fit")
    steps = steps or (rows * columns * x_bytes, columns * x_bytes)
    shape = {"rows": rows, "columns": columns, "batches": batches, "out_columns": out[2]}
    for name, own, itemsize in (("x", steps, x_bytes), ("out", out_steps, out_bytes)):
        shape[f"{name}_batch_stride"], shape[f"{name}_row_stride"] = (step // itemsize for step in own)
    shape["stores_vectors"] = out_is_aligned and _are_vectors(out[2] * out_bytes, *out_steps, out_bytes)
    reads_vectors = x_is_aligned and _are_vectors(columns * x_bytes, *steps, x_bytes)
    tile = NARROW
    if columns > NARROW:
        tile = max(tile for tile in COLUMNS if tile == WIDE or tile * out[2] <= TILE)
    return _Plan(unchanging(shape), tile, _tiles(rows, columns, tile), reads_vectors)


@lru_cache(maxsize=1024)
def _launch_together(
    images: tuple[Layout, ...], weight: tuple[Layout, ...]
) -> tuple[CudaKernel, int, tuple[unchanging, ...], tuple[int, int]]:
    """The kernel, its grid, the shapes of its three copies, and where the blocks of the second and of the
    weight begin."""
    plans, of_weight = [_plan(*layout) for layout in images], [_plan(*layout) for layout in weight]
    widest = min(plan.columns for plan in plans)
    columns = max(tile for tile in COLUMNS_TOGETHER if tile == WIDE or tile <= widest)
    weight_columns = min([WIDE] + [plan.columns for plan in of_weight])
    kernel = _together[columns, all(plan.reads_vectors for plan in plans), weight_columns]

    def blocks_of(plan: _Plan, tile: int) -> int:
        return plan.shape["batches"] * _tiles(plan.shape["rows"], plan.shape["columns"], tile)

    second = blocks_of(plans[0], columns)
    last = second + sum(blocks_of(plan, columns) for plan in plans[1:])
    end = last + sum(blocks_of(plan, weight_columns) for plan in of_weight)
    shapes = tuple([plan.shape for plan in (plans[0], plans[-1], *of_weight, plans[0])[:3]])
    return kernel, end, shapes, (second, last)


def _tiles(rows: int, columns: int, tile: int) -> int:
    """How many tiles of so many columns a matrix has."""
    return blocks(rows, TILE // tile) * blocks(columns, tile)


def _are_vectors(row: int, between_matrices: int, between_rows: int, itemsize: int) -> bool:
    """Whether a ``row`` of so many bytes is made of vectors of SIDE elements, and the next ones are, too."""
    return not any(n % (SIDE * itemsize) for n in (row, between_matrices, between_rows))
