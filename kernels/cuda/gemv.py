"""Launches ``gemv.cu``: products of matrices and vectors, on a card or on the simulator.

Arrays are those of ``matmul.py``: out (..., M, N) = a (..., M, K) @ b (..., K, N), with M = 1 or N = 1. They
may be of float16 or bfloat16, too; parts of these are float32, as the sums are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .matmul import Product, describe
from .vector import VECTOR_BYTES, starts_at_vector

WARP = 32
ROWS_PER_BLOCK = 8  # of rows for which a warp is enough
ROW_THREADS = 256  # as in gemv.cu: at most, for a long row
COLUMN_THREADS = 1024  # as in gemv.cu: at most, for 32 rows
LOADS = 4  # for each thread of a block, before it gets more threads: AT_ONCE of gemv.cu

_source = CudaSource(Path(__file__).with_suffix(".cu"))
# By whether the arrays are made of whole vectors.
_rows, _columns = (
    {wide: CudaKernel(_source, f"gemv_{name}<T, Out, {wide}>") for wide in (False, True)}
    for name in ("rows", "columns")
)


def gemv(out: Any, a: Any, b: Any, part: int | None = None, bias: Any = None) -> None:
    """For vectors: the matrix is read once, along its rows or its columns, and threads share out K.

    A ``bias`` (N,), C-contiguous, is added to the sums before they are rounded and stored.
    """
    if out.shape[-1] != 1 and out.shape[-2] != 1:
        raise ValueError(f"gemv kernel: neither M nor N is 1 in an output of shape {out.shape}")
    transposed = out.shape[-1] != 1  # x A is A' x, in the same memory
    product, arguments = describe(out, a, b, part, transposed)
    arguments = (*arguments, bias, not transposed)
    vector = VECTOR_BYTES // a.itemsize
    if product.M > 1 and not product.layout["a_along_k"]:
        wide = product.a_vectors and starts_at_vector(arguments[1].array)
        _launch_columns(product, arguments, wide, vector)
    else:
        wide = product.a_vectors and product.b_vectors and starts_at_vector(a, b)
        _launch_rows(product, arguments, wide, vector)


def _launch_rows(product: Product, arguments: tuple, wide: bool, vector: int) -> None:
    threads = _threads(min(product.K, product.shape["part"]), vector if wide else 1, ROW_THREADS)
    rows_per_block = ROWS_PER_BLOCK if threads == WARP else 1
    grid = (blocks(product.batches * product.M, rows_per_block), product.parts)
    _rows[wide].launch(grid, (threads, rows_per_block), arguments)


def _launch_columns(product: Product, arguments: tuple, wide: bool, vector: int) -> None:
    threads = _threads(WARP * min(product.K, product.shape["part"]), vector if wide else 1, COLUMN_THREADS)
    grid = (product.batches * blocks(product.M, WARP), product.parts)
    _columns[wide].launch(grid, threads, arguments)


def _threads(elements: int, vector: int, most: int) -> int:
    """Whole warps for so many elements: LOADS vectors for each thread, if ``most`` are enough for that."""
    return max(min(blocks(elements, LOADS * vector * WARP) * WARP, most), WARP)
