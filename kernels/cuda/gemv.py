"""Launches ``gemv.cu``: products of matrices and vectors, on a card or on the simulator.

Arrays are those of ``matmul.py``: out (..., M, N) = a (..., M, K) @ b (..., K, N), with M = 1 or N = 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .matmul import describe
from .reduce import row_threads

WARP = 32
THREADS = 256  # in a block of several rows
MAX_WARPS = 16  # of a block, as in rows.cuh
STEPS = 16  # along K that a warp should have before the rows get one more

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_rows = CudaKernel(_source, "gemv_rows<T>")
_columns = CudaKernel(_source, "gemv_columns<T>")


def gemv(out: Any, a: Any, b: Any) -> None:
    """For vectors: the matrix is read once, along its rows or its columns, and threads share out K."""
    if out.shape[-1] != 1:
        # x A is A' x, in the same memory.
        if out.shape[-2] != 1:
            raise ValueError(f"gemv kernel: neither M nor N is 1 in an output of shape {out.shape}")
        out, a, b = out.reshape(*out.shape[:-2], out.shape[-1], 1), b.swapaxes(-1, -2), a.swapaxes(-1, -2)
    product, arguments = describe(out, a, b)
    if product.M > 1 and not product.layout["a_along_k"]:
        warps = min(max(blocks(product.K, STEPS), 1), MAX_WARPS)
        _columns.launch(product.batches * blocks(product.M, WARP), (WARP, warps), arguments)
        return
    threads = row_threads(product.K)
    rows_per_block = THREADS // WARP if threads == WARP else 1
    _rows.launch(blocks(product.batches * product.M, rows_per_block), (threads, rows_per_block), arguments)
