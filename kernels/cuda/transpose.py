"""Launches ``transpose.cu``: out (batches, columns, rows) = x (batches, rows, columns), transposed.

The rows of ``out`` may be longer, up to the next multiple of 64 elements: the rest becomes zeros.
``out`` and ``x`` are of one dtype of 16, 32 or 64 bits; in each, the elements of a row are neighbours, and
rows and matrices are any steps apart (those of ``x`` may be the same one, with a step of 0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource

TILE, THREADS = 64, 256  # as in transpose.cu
MAX_GRID_Z = 65535

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernels = {
    2: CudaKernel(_source, "transpose<unsigned short>"),
    4: CudaKernel(_source, "transpose<unsigned int>"),
    8: CudaKernel(_source, "transpose<unsigned long long>"),
}


def transpose(out: Any, x: Any) -> None:
    """Tiles by way of shared memory: both arrays are accessed in runs of neighbours."""
    batches, rows, columns = x.shape
    if out.shape[:2] != (batches, columns) or not rows <= out.shape[2] <= blocks(rows, TILE) * TILE:
        raise ValueError(f"transpose kernel: shapes {out.shape} and {x.shape} do not fit")
    bits = np.dtype(f"u{x.itemsize}")
    shape = {"rows": rows, "columns": columns, "batches": batches, "out_columns": out.shape[2]}
    for name, array in (("x", x), ("out", out)):
        shape[f"{name}_batch_stride"], shape[f"{name}_row_stride"] = (
            stride // array.itemsize for stride in array.strides[:2]
        )
    grid = (blocks(rows, TILE) * blocks(columns, TILE), 1, min(batches, MAX_GRID_Z))
    _kernels[x.itemsize].launch(grid, THREADS, (strided(out.view(bits)), strided(x.view(bits)), shape))
