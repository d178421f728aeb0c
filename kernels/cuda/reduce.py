"""Launches ``reduce.cu``: the sum, largest or smallest element of rows or columns, on a card or simulated.

For rows ``x`` is (rows, columns) and ``out`` is (rows,); or a row is what the trailing axes of ``x`` hold,
and ``out`` has the axes before them, perhaps with some of size 1 behind. Both are C-contiguous and of one
dtype: float32 or float64; from *vectorized* on also float16 or bfloat16, with sums in float32, and then a
float32 ``out`` too. ``operation`` is ``"sum"``, ``"max"`` or ``"min"``. A row without elements gives 0,
-infinity or infinity; one with a NaN gives NaN. The result's bits depend on the shape alone, not on the card
or on the run.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import workspace
from .vector import VECTOR_BYTES

WARP = 32
THREADS = 256  # in a block
TREE_THREADS = 256  # as in reduce.cu
ELEMENTS_PER_THREAD = 8  # that a thread should have before its row gets more threads
MAX_THREADS = 512  # as in rows.cuh
UNROLL = 4  # as in row_vectors.cuh
# By the size of an element: the vectors of a row that a thread holds, and the most threads that hold one, as
# in row_vectors.cuh.
HELD_VECTORS, MOST_THREADS = {2: 4, 4: 8, 8: 2}, {2: 1024, 4: 1024, 8: 512}
SHORT_HELD = (2, 4)  # those that a lane holds of a short row: the first by which a warp is enough
ROUNDS = 2  # of UNROLL vectors that a thread should do before its row gets more threads
PART = 4096  # elements: a part of a row is a multiple of it, the least that is worth a block of its own
ALONE = 4  # times as much as a part may be left to one block: to combine parts takes a second launch
ENOUGH_BLOCKS = 1024  # as many as an H200 holds at a time, about: 132 multiprocessors x 8 blocks
ENOUGH_PARTS = 4096  # several times as many: the last blocks to end leave little of the card idle
ENOUGH_COLUMN_BLOCKS = 512  # that walk down long columns: fewer, so that there are few partial sums
MAX_OUTER = 65535  # of a grid's third dimension

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _by_operation(rung: str, types: str = "T") -> dict[str, CudaKernel]:
    names = ("sum", "max", "min")
    return {name: CudaKernel(_source, f"reduce_{rung}<{types}, {name.upper()}>") for name in names}


_naive = _by_operation("naive")
_tree = _by_operation("tree")
_shuffle = _by_operation("shuffle")
_vectorized = _by_operation("vectorized", "Out, T")
_split = _by_operation("split", "C, T")
_columns = _by_operation("columns", "Out, T")


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
    grid, block = row_grid(rows, row_threads(columns))
    _chosen(_shuffle, operation).launch(grid, block, (out, x, rows, columns))


def vectorized(out: Any, x: Any, operation: str = "sum", divisor: float = 1) -> None:
    """Loads of 16 bytes, several on their way before the first is used."""
    _vectorized_rows(out, x, *_sizes(out, x), operation, divisor)


def split(out: Any, x: Any, operation: str = "sum", divisor: float = 1) -> None:
    """Long rows, where they are few, are cut into parts for many blocks; a second launch combines these."""
    _split_rows(out, x, *_sizes(out, x), operation, divisor)


def _split_rows(out: Any, x: Any, rows: int, columns: int, operation: str, divisor: float) -> None:
    length, parts = row_parts(rows, columns)
    if parts > 1:
        partial = workspace(x, rows * parts, computed_dtype(x.dtype))
        kernel = _chosen(_split, operation)
        kernel.launch(rows * parts, THREADS, (partial, x, columns, parts, length))
        x, columns = partial, parts
    _vectorized_rows(out, x, rows, columns, operation, divisor)


def _vectorized_rows(out: Any, x: Any, rows: int, columns: int, operation: str, divisor: float) -> None:
    grid, block = vector_grid(rows, columns, x.itemsize)
    _chosen(_vectorized, operation).launch(grid, block, (out, x, rows, columns, divisor))


@lru_cache(maxsize=1024)  # as the other geometries below: the same few come in every step of a training
def row_parts(rows: int, columns: int) -> tuple[int, int]:
    """The length of the parts into which rows are cut, and how many of them a row has."""
    if columns <= ALONE * PART:
        return columns, 1
    length = part_of(columns, ENOUGH_PARTS // max(rows, 1), PART)
    return length, blocks(columns, length)


@lru_cache(maxsize=1024)
def vector_grid(rows: int, columns: int, itemsize: int) -> tuple[int, tuple[int, int]]:
    """The grid and the block for whole rows, each for threads that have UNROLL vectors of it or more."""
    lanes = power_of_two(blocks(columns * itemsize, UNROLL * VECTOR_BYTES))
    return row_grid(rows, lanes if lanes <= WARP else vector_threads(columns, itemsize))


def columns(out: Any, x: Any, operation: str = "sum", divisor: float = 1) -> None:
    """Down the columns of each of some matrices: lanes side by side, parts of the rows for many blocks.

    ``x`` is (outer, rows, columns), ``out`` is (outer, columns).
    """
    if x.ndim != 3 or out.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"reduce kernel: cannot reduce the columns of {x.shape} to {out.shape}")
    if x.shape[0] > MAX_OUTER:
        for first in range(0, x.shape[0], MAX_OUTER):
            columns(out[first : first + MAX_OUTER], x[first : first + MAX_OUTER], operation, divisor)
    else:
        _split_columns(out, x, *x.shape, operation, divisor)


def _split_columns(
    out: Any, x: Any, outer: int, rows: int, width: int, operation: str, divisor: float
) -> None:
    kernel = _chosen(_columns, operation)
    strips, block, length, parts = _column_geometry(outer, rows, width, x.itemsize)
    if parts > 1:
        partial = workspace(x, outer * parts * width, computed_dtype(x.dtype))
        kernel.launch((strips, parts, outer), block, (partial, x, rows, width, length, 1))
        x, rows, length = partial, parts, parts
        strips, block = _strips(width, x.itemsize)
    kernel.launch((strips, 1, outer), block, (out, x, rows, width, length, divisor))


@lru_cache(maxsize=1024)
def _column_geometry(
    outer: int, rows: int, width: int, itemsize: int
) -> tuple[int, tuple[int, int], int, int]:
    """The strips of columns, the block for each, the length of the parts of the rows, and their number."""
    strips, block = _strips(width, itemsize)
    of_block = block[1] * UNROLL
    if rows <= ALONE * of_block:
        return strips, block, max(rows, 1), 1
    length = part_of(rows, ENOUGH_COLUMN_BLOCKS // max(outer * strips, 1), of_block)
    return strips, block, length, blocks(rows, length)


@lru_cache(maxsize=1024)
def _strips(width: int, itemsize: int) -> tuple[int, tuple[int, int]]:
    """How many strips of columns there are, and the block for each: threads across, and down."""
    vectors = blocks(width, VECTOR_BYTES // itemsize)
    across = min(power_of_two(vectors), WARP)
    return blocks(vectors, across), (across, THREADS // across)


def axes(out: Any, x: Any, dim: tuple[int, ...], operation: str = "sum", divisor: float = 1) -> None:
    """Any axes, a run of neighbouring ones at a time, the last first: as the columns, or rows, of matrices.

    ``x`` has any number of axes; of those in ``dim``, which are in rising order, ``out`` has none, or has
    them with size 1.
    """
    passes = _passes(x.shape, dim)
    for i, (outer, rows, inner) in enumerate(passes, start=1):
        is_last = i == len(passes)
        y = out if is_last else workspace(x, outer * inner, computed_dtype(x.dtype))
        rest = operation, divisor if is_last else 1
        if inner == 1:
            _split_rows(y, x, outer, rows, *rest)
        elif outer > MAX_OUTER:
            columns(y.reshape(outer, inner), x.reshape(outer, rows, inner), *rest)
        else:
            _split_columns(y, x, outer, rows, inner, *rest)
        x = y


@lru_cache(maxsize=1024)
def _passes(shape: tuple[int, ...], dim: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """For each run of neighbouring axes of ``dim``, the last first: how many elements there are in front of
    it, along it, and behind it, when it is reduced."""
    passes = []
    while dim:
        end = dim[-1] + 1
        run = next(n for n in range(1, end + 1) if end - n - 1 not in dim)
        begin, dim = end - run, dim[:-run]
        outer, rows, inner = (math.prod(shape[a:b]) for a, b in ((0, begin), (begin, end), (end, len(shape))))
        passes.append((outer, rows, inner))
        shape = (*shape[:begin], *shape[end:])
    return passes


def part_of(length: int, parts: int, least: int) -> int:
    """The length of a part where ``length`` is cut into at most so many, each a multiple of ``least``."""
    return max(blocks(blocks(length, max(parts, 1)), least), 1) * least


def row_grid(rows: int, threads: int) -> tuple[int, tuple[int, int]]:
    """The grid and the block for rows that so many threads share: of up to a warp, a block has several."""
    rows_per_block = THREADS // threads if threads <= WARP else 1
    return blocks(rows, rows_per_block), (threads, rows_per_block)


def vector_threads(columns: int, itemsize: int) -> int:
    """How many threads share a row: whole warps, with UNROLL vectors and more for each thread."""
    warps = columns * itemsize // (WARP * VECTOR_BYTES * UNROLL * ROUNDS)
    return min(max(warps, 1) * WARP, THREADS)


def row_threads(columns: int) -> int:
    """How many threads share a row: whole warps, and about ELEMENTS_PER_THREAD elements for each thread."""
    warps = blocks(columns, WARP * ELEMENTS_PER_THREAD)
    return min(max(warps, 1) * WARP, MAX_THREADS)


def held_threads(columns: int, itemsize: int, arrays: int = 1) -> int | None:
    """How many threads hold a row of each of some arrays in registers; None if it is too long."""
    held = HELD_VECTORS[itemsize] // arrays * VECTOR_BYTES
    warps = max(blocks(columns * itemsize, WARP * held), 1)
    return warps * WARP if warps * WARP <= MOST_THREADS[itemsize] else None


def short_rows(columns: int, itemsize: int) -> tuple[int, int | None]:
    """How many vectors of a short row a lane holds, and how many lanes a row has; (0, None) if it is long."""
    for held in SHORT_HELD:
        lanes = power_of_two(blocks(columns * itemsize, held * VECTOR_BYTES))
        if lanes <= WARP:
            return held, lanes
    return 0, None


def power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``; 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


def _sizes(out: Any, x: Any) -> tuple[int, int]:
    """How many rows there are, and their length."""
    kept = out.shape
    while kept and kept[-1] == 1:
        kept = kept[:-1]
    if x.shape[: len(kept)] != kept:
        raise ValueError(f"reduce kernel: cannot reduce the rows of {x.shape} to {out.shape}")
    rows = out.size
    return rows, x.size // max(rows, 1)


def _chosen(kernels: dict[str, CudaKernel], operation: str) -> CudaKernel:
    if operation not in kernels:
        raise ValueError(
            f"reduce kernel: unknown operation {operation!r}, expected one of {', '.join(kernels)}"
        )
    return kernels[operation]
