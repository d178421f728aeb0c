"""Launches ``embedding.cu``: rows of a matrix gathered, and summed, by their numbers; card or simulator.

``gather``: ``weight`` is (rows, columns), ``out`` is (n, columns). ``sum``: ``g`` is (n, columns), ``out`` is
(rows, columns). ``indices`` are (n,), int64. All are C-contiguous; floats are float32 or float64. An index
outside of [0, rows) gathers NaN, and is left out of sums. A sum's bits depend on its inputs alone, not on the
run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import array_module
from .vector import VECTOR_BYTES, starts_at_vector

THREADS = 256  # in a block, but for sum_block
BLOCK = 256  # of sum_block, as in embedding.cu
NEIGHBOURS = 32  # columns that the threads of sum_block read side by side, where there are so many

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_gather_naive = CudaKernel(_source, "gather_naive<T>")
_gather_vector = CudaKernel(_source, "gather_vector<T>")
_sum_naive = CudaKernel(_source, "sum_naive<T>")
_sum_sorted = CudaKernel(_source, "sum_sorted<T>")
_sum_block = CudaKernel(_source, "sum_block<T>")


def gather_naive(out: Any, weight: Any, indices: Any) -> None:
    """A thread for each element: the definition."""
    rows, columns, n = _sizes("gather", weight, out, indices)
    arguments = (out, weight, indices, n, rows, columns)
    _gather_naive.launch(blocks(n * columns, THREADS), THREADS, arguments)


def gather_vector(out: Any, weight: Any, indices: Any) -> None:
    """A thread for each 16 bytes, where rows and arrays are made of such; otherwise as the naive rung."""
    rows, columns, n = _sizes("gather", weight, out, indices)
    length = VECTOR_BYTES // weight.itemsize
    if columns % length or not starts_at_vector(out, weight):
        return gather_naive(out, weight, indices)
    arguments = (out, weight, indices, n, rows, columns)
    return _gather_vector.launch(blocks(n * columns // length, THREADS), THREADS, arguments)


def sum_naive(out: Any, g: Any, indices: Any) -> None:
    """A thread for each element of the sums, which looks through all indices: the definition."""
    rows, columns, n = _sizes("sum", out, g, indices)
    arguments = (out, g, indices, n, rows, columns)
    _sum_naive.launch(blocks(out.size, THREADS), THREADS, arguments)


def sum_sorted(out: Any, g: Any, indices: Any) -> None:
    """The indices are sorted first, so that each thread finds the rows that it adds side by side."""
    rows, columns, _ = _sizes("sum", out, g, indices)
    order, starts = segments(indices, rows)
    _sum_sorted.launch(blocks(out.size, THREADS), THREADS, (out, g, order, starts, rows, columns))


def sum_block(out: Any, g: Any, indices: Any) -> None:
    """A block for each row of the sums, whose threads share what many indices point to."""
    rows, columns, _ = _sizes("sum", out, g, indices)
    order, starts = segments(indices, rows)
    neighbours = min(1 << max(columns - 1, 0).bit_length(), NEIGHBOURS)
    _sum_block.launch(rows, (neighbours, BLOCK // neighbours), (out, g, order, starts, columns))


def segments(indices: Any, rows: int) -> tuple[Any, Any]:
    """(order, starts), both int64: the positions order[starts[row]:starts[row + 1]] are those of the indices
    that equal ``row``, from first to last."""
    xp = array_module(indices)
    # CuPy knows no kind; its sort is stable.
    order = np.argsort(indices, kind="stable") if xp is np else xp.argsort(indices)
    return order, xp.searchsorted(indices[order], xp.arange(rows + 1))


def _sizes(what: str, matrix: Any, rows_of_it: Any, indices: Any) -> tuple[int, int, int]:
    """(rows, columns, n), where the shapes fit."""
    n = indices.size
    if matrix.ndim != 2 or indices.ndim != 1 or rows_of_it.shape != (n, matrix.shape[1]):
        raise ValueError(
            f"{what} kernel: {indices.shape} indices into a matrix of {matrix.shape} do not give "
            f"{rows_of_it.shape}"
        )
    return (*matrix.shape, n)
