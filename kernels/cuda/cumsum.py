"""Launches ``cumsum.cu``: the sums up to each element along an axis, on a card or on the simulator.

``out`` and ``x`` are C-contiguous, of one shape and of one dtype: float32, float64, float16 or bfloat16.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .reduce import vector_grid

THREADS = 256  # in a block of columns

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_rows = {reverse: CudaKernel(_source, f"cumsum_rows<T, {reverse}>") for reverse in (False, True)}
_columns = CudaKernel(_source, "cumsum_columns<T>")


def cumsum(out: Any, x: Any, dim: int, reverse: bool = False) -> None:
    """One launch: rows by lanes, warps and blocks, whose threads pass sums on; columns by a thread each."""
    outer, length, inner = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
    if inner == 1:
        grid, block = vector_grid(outer, length, x.itemsize)
        _rows[bool(reverse)].launch(grid, block, (out, x, outer, length))
    else:
        grid = blocks(outer * inner, THREADS)
        _columns.launch(grid, THREADS, (out, x, outer, length, inner, int(reverse)))
