"""Launches ``transpose.cu``: out (batches, columns, rows) = x (batches, rows, columns), transposed.

The rows of ``out`` may be longer, up to the next multiple of 64 elements: the rest becomes zeros.
``out`` and ``x`` are of one dtype of 16, 32 or 64 bits; in each, the elements of a row are neighbours, and
rows and matrices are any steps apart (those of ``x`` may be the same one, with a step of 0).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource

TILE, THREADS = 64, 256  # as in transpose.cu
MAX_GRID_Z = 65535

Matrices = tuple[int, int, int]
"""(batches, rows, columns)"""

_kernel = CudaKernel(CudaSource(Path(__file__).with_suffix(".cu")), "transpose<T>")


def transpose(out: Any, x: Any, shape: Matrices | None = None) -> None:
    """Tiles by way of shared memory: both arrays are accessed in runs of neighbours.

    ``x`` without gaps may be seen in the ``shape`` (batches, rows, columns), row after row in memory,
    whatever its own: to make a view of it takes the host as long as the launch.
    """
    steps = x.strides[:2] if shape is None else None
    grid, fields = _geometry(shape or x.shape, steps, out.shape, out.strides[:2], x.itemsize)
    _kernel.launch(grid, THREADS, (strided(out), strided(x), fields))


@lru_cache(maxsize=1024)
def _geometry(
    x: Matrices, steps: tuple[int, int] | None, out: Matrices, out_steps: tuple[int, int], itemsize: int
) -> tuple[tuple[int, int, int], unchanging]:
    """The grid, and struct TransposeShape, for the shapes of both arrays and their first strides in bytes."""
    batches, rows, columns = x
    if out[:2] != (batches, columns) or not rows <= out[2] <= blocks(rows, TILE) * TILE:
        raise ValueError(f"transpose kernel: shapes {out} and {x} do not fit")
    shape = {"rows": rows, "columns": columns, "batches": batches, "out_columns": out[2]}
    for name, own in (("x", steps or (rows * columns * itemsize, columns * itemsize)), ("out", out_steps)):
        shape[f"{name}_batch_stride"], shape[f"{name}_row_stride"] = (step // itemsize for step in own)
    grid = (blocks(rows, TILE) * blocks(columns, TILE), 1, min(batches, MAX_GRID_Z))
    return grid, unchanging(shape)
