"""Launches ``reduce.cu``: the sum, largest or smallest element of each row, on a card or on the simulator.

``x`` is (rows, columns), ``out`` is (rows,), both C-contiguous and both float32 or both float64.
``operation`` is ``"sum"``, ``"max"`` or ``"min"``. A row without elements gives 0, -infinity or infinity; one
with a NaN gives NaN. The result's bits depend on the shape alone, not on the card or on the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace

WARP = 32
THREADS = 256  # in a block
TREE_THREADS = 256  # as in reduce.cu
ELEMENTS_PER_THREAD = 8  # that a thread should have before its row gets more threads
MAX_THREADS = 512  # as in rows.cuh
PART = 4096  # the fewest elements that are worth a block of their own
ENOUGH_BLOCKS = 1024  # as many as an H200 holds at a time, about: 132 multiprocessors x 8 blocks

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _by_operation(rung: str) -> dict[str, CudaKernel]:
    return {name: CudaKernel(_source, f"reduce_{rung}<T, {name.upper()}>") for name in ("sum", "max", "min")}


_naive = _by_operation("naive")
_tree = _by_operation("tree")
_shuffle = _by_operation("shuffle")
_split = _by_operation("split")


def naive(out: Any, x: Any, operation: str = "sum") -> None:
    """One thread for each row: the definition."""
    rows, columns = _sizes(out, x)
    _chosen(_naive, operation).launch(blocks(rows, THREADS), THREADS, (out, x, rows, columns))


def tree(out: Any, x: Any, operation: str = "sum") -> None:
    """A block for each row, so that loads are coalesced; its values are halved in shared memory."""
    rows, columns = _sizes(out, x)
    _chosen(_tree, operation).launch(rows, TREE_THREADS, (out, x, rows, columns))


def shuffle(out: Any, x: Any, operation: str = "sum") -> None:
    """Values are combined between registers; a short row takes one warp, a longer one up to a block."""
    rows, columns = _sizes(out, x)
    threads = row_threads(columns)
    rows_per_block = THREADS // WARP if threads == WARP else 1
    kernel = _chosen(_shuffle, operation)
    kernel.launch(blocks(rows, rows_per_block), (threads, rows_per_block), (out, x, rows, columns))


def split(out: Any, x: Any, operation: str = "sum") -> None:
    """Long rows, where they are few, are cut into parts for many blocks; a second launch combines these."""
    rows, columns = _sizes(out, x)
    parts = min(ENOUGH_BLOCKS // max(rows, 1), columns // PART)
    if parts <= 1:
        return shuffle(out, x, operation)
    partial = workspace(x, (rows, parts))
    _chosen(_split, operation).launch(rows * parts, THREADS, (partial, x, columns, parts))
    return shuffle(out, partial, operation)


def row_threads(columns: int) -> int:
    """How many threads share a row: whole warps, and about ELEMENTS_PER_THREAD elements for each thread."""
    warps = blocks(columns, WARP * ELEMENTS_PER_THREAD)
    return min(max(warps, 1) * WARP, MAX_THREADS)


def _sizes(out: Any, x: Any) -> tuple[int, int]:
    if x.ndim != 2 or out.shape != x.shape[:1]:
        raise ValueError(f"reduce kernel: cannot reduce the rows of {x.shape} to {out.shape}")
    return x.shape


def _chosen(kernels: dict[str, CudaKernel], operation: str) -> CudaKernel:
    if operation not in kernels:
        raise ValueError(
            f"reduce kernel: unknown operation {operation!r}, expected one of {', '.join(kernels)}"
        )
    return kernels[operation]
