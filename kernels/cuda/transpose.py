"""Launches ``transpose.cu``: out (batches, columns, rows) = x (batches, rows, columns), transposed.

The rows of ``out`` may be longer, up to the next multiple of 64 elements: the rest becomes zeros.
``out`` and ``x`` are of one dtype of 16, 32 or 64 bits, or ``out`` is of 16 bits and ``x`` float32, which is
then rounded. In each, the elements of a row are neighbours, and rows and matrices are any steps apart (those
of ``x`` may be the same one, with a step of 0).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .vector import starts_at_vector

SIDE, THREADS = 4, 256  # as in transpose.cu
TILE = SIDE * SIDE * THREADS  # elements
COLUMNS = NARROW, WIDE, *_ = 16, 64, 128, 256, 512  # of a tile of x
PADDED_TO = 64  # elements of a row of out
MAX_GRID_Z = 65535

Matrices = tuple[int, int, int]
"""(batches, rows, columns)"""

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernels = {
    (columns, vectors): CudaKernel(_source, f"transpose<Out, T, {columns}, {vectors}>")
    for columns in COLUMNS
    for vectors in (False, True)
}


def transpose(out: Any, x: Any, shape: Matrices | None = None) -> None:
    """Tiles by way of shared memory: both arrays are accessed in runs of neighbours.

    ``x`` without gaps may be seen in the ``shape`` (batches, rows, columns), row after row in memory,
    whatever its own: to make a view of it takes the host as long as the launch.
    """
    steps = x.strides[:2] if shape is None else None
    aligned = starts_at_vector(x), starts_at_vector(out)
    sizes = out.shape, out.strides[:2], x.itemsize, out.itemsize
    kernel, grid, fields = _launch(shape or x.shape, steps, *sizes, *aligned)
    kernel.launch(grid, THREADS, (strided(out), strided(x), fields))


@lru_cache(maxsize=1024)
def _launch(
    x: Matrices,
    steps: tuple[int, int] | None,
    out: Matrices,
    out_steps: tuple[int, int],
    x_bytes: int,
    out_bytes: int,
    x_is_aligned: bool,
    out_is_aligned: bool,
) -> tuple[CudaKernel, tuple[int, int, int], unchanging]:
    """The kernel, its grid, and struct TransposeShape, for the shapes of both arrays, their first strides and
    their elements in bytes, and whether they begin at multiples of 16 bytes."""
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
    grid = (blocks(rows, TILE // tile) * blocks(columns, tile), 1, min(batches, MAX_GRID_Z))
    return _kernels[tile, reads_vectors], grid, unchanging(shape)


def _are_vectors(row: int, between_matrices: int, between_rows: int, itemsize: int) -> bool:
    """Whether a ``row`` of so many bytes is made of vectors of SIDE elements, and the next ones are, too."""
    return not any(n % (SIDE * itemsize) for n in (row, between_matrices, between_rows))
