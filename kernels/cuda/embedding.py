"""Launches ``embedding.cu``: rows of a matrix gathered, and summed, by their numbers; card or simulator.

``gather``: ``weight`` is (rows, columns), ``out`` is (n, columns). ``sum``: ``g`` is (n, columns), ``out`` is
(rows, columns). ``indices`` are (n,), int64. All are C-contiguous; floats are float32 or float64, in the
gathers and the split and found sums also float16 or bfloat16. An index outside of [0, rows) gathers NaN, and
is left out of sums, as is the row ``left_out``. A sum's bits depend on its inputs alone, not on the run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import workspace
from .segments import segments
from .vector import VECTOR_BYTES, is_wide

THREADS = 256  # in a block
CHUNK = 32  # positions from which on a segment is cut
MAX_CHUNKS = 1024  # that a segment is cut into

FEW = 256  # positions that each block looks through as they are
MAX_CHUNK = 256  # as in embedding.cu: positions of which the equal ones are summed first, if there are more
PLACES = 8192  # as in embedding.cu: places for what a block finds for its rows
ENOUGH_BLOCKS = 512  # that look; some four for each multiprocessor
LOOKING = 1 << 26
"""Bytes that the blocks may read while they look, beside what is read and written in any case. From the L2
cache these take about as long as the launches of a sort."""

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_gather_naive = CudaKernel(_source, "gather_naive<T>")
_gather_vector = CudaKernel(_source, "gather_vector<T>")
_sum_naive = CudaKernel(_source, "sum_naive<T>")
_sum_sorted = CudaKernel(_source, "sum_sorted<T>")
_sum_chunks, _sum_segments, _sum_repeated, _sum_found = (
    {wide: CudaKernel(_source, f"{name}<T, C, {wide}>") for wide in (False, True)}
    for name in ("sum_chunks", "sum_segments", "sum_repeated", "sum_found")
)


def gather_naive(out: Any, weight: Any, indices: Any) -> None:
    """A thread for each element: the definition."""
    rows, columns, n = _sizes("gather", weight, out, indices)
    arguments = (out, weight, indices, n, rows, columns)
    _gather_naive.launch(blocks(n * columns, THREADS), THREADS, arguments)


def gather_vector(out: Any, weight: Any, indices: Any) -> None:
    """A thread for each 16 bytes, where rows and arrays are made of such; otherwise as the naive rung."""
    rows, columns, n = _sizes("gather", weight, out, indices)
    if not is_wide(columns, out, weight):
        return gather_naive(out, weight, indices)
    lanes = _lanes(blocks(columns * weight.itemsize, 2 * VECTOR_BYTES))
    grid, block = blocks(n, THREADS // lanes), (lanes, THREADS // lanes)
    return _gather_vector.launch(grid, block, (out, weight, indices, n, rows, columns))


def sum_naive(out: Any, g: Any, indices: Any, left_out: int = -1) -> None:
    """A thread for each element of the sums, which looks through all indices: the definition."""
    rows, columns, n = _sizes("sum", out, g, indices)
    arguments = (out, g, indices, n, rows, columns, left_out)
    _sum_naive.launch(blocks(out.size, THREADS), THREADS, arguments)


def sum_sorted(out: Any, g: Any, indices: Any, left_out: int = -1) -> None:
    """The indices are sorted first, so that each thread finds the rows that it adds side by side."""
    rows, columns, _ = _sizes("sum", out, g, indices)
    order, _, starts = segments(indices, rows)
    _sum_sorted.launch(blocks(out.size, THREADS), THREADS, (out, g, order, starts, rows, columns, left_out))


def sum_split(out: Any, g: Any, indices: Any, left_out: int = -1) -> None:
    """The indices sorted, and what many of them point to cut into chunks; a second launch adds these."""
    rows, columns, n = _sizes("sum", out, g, indices)
    order, in_order, starts = segments(indices, rows)
    chunk = max(CHUNK, blocks(n, MAX_CHUNKS))
    partial = workspace(g, (blocks(n, chunk), 2, columns), computed_dtype(g.dtype))
    wide = is_wide(columns, out, g, partial)
    vectors = columns // (VECTOR_BYTES // g.itemsize) if wide else columns
    lanes = _lanes(vectors)
    sizes = rows, columns, chunk, left_out
    arguments = (partial, g, order, in_order, starts, n, *sizes)
    _sum_chunks[wide].launch((blocks(n, chunk), blocks(vectors, lanes)), lanes, arguments)
    lanes = _lanes(blocks(vectors, 2))  # two vectors for each: rows of few terms have little to load
    grid, block = blocks(rows, THREADS // lanes), (lanes, THREADS // lanes)
    _sum_segments[wide].launch(grid, block, (out, partial, g, order, starts, *sizes))


def sum_found(out: Any, g: Any, indices: Any, left_out: int = -1) -> None:
    """One launch in which each block looks for its rows, or two where equal indices are summed first; nothing
    is sorted, unless that takes less than to look."""
    rows, columns, n = _sizes("sum", out, g, indices)
    chunk = 1 if n <= FEW else min(_power_of_two(math.isqrt(n)), MAX_CHUNK)
    chunks = blocks(n, chunk)
    partial = workspace(g, (n if chunk > 1 else 0, columns), computed_dtype(g.dtype))
    wide = is_wide(columns, out, g, partial)
    vectors = columns // (VECTOR_BYTES // g.itemsize) if wide else columns
    lanes = _lanes(vectors)
    tiles = blocks(vectors, lanes)
    looking = _blocks_that_look(rows, chunks)
    if chunks >= PLACES or looking * tiles * indices.nbytes > LOOKING + out.nbytes + g.nbytes:
        return sum_split(out, g, indices, left_out)
    sizes = n, rows, columns, left_out
    leaders = indices
    if chunk > 1:
        leaders = workspace(indices, n)
        arguments = (partial, leaders, g, indices, *sizes, chunk, lanes)
        _sum_repeated[wide].launch((chunks, tiles), THREADS, arguments)
    chunk_bits, row_bits = chunk.bit_length() - 1, looking.bit_length() - 1
    arguments = (out, partial, g, leaders, *sizes, chunk_bits, chunks, row_bits, lanes)
    return _sum_found[wide].launch((looking, tiles), THREADS, arguments)


def _blocks_that_look(rows: int, chunks: int) -> int:
    """Blocks that rows are dealt out to, a power of two: enough for the card, and for places for all rows."""
    rows_of_block = max(PLACES // (1 + chunks), 1)
    return _power_of_two(max(min(rows, ENOUGH_BLOCKS), blocks(rows, rows_of_block)))


def _lanes(vectors: int) -> int:
    """How many threads walk along a row of so many vectors: a power of two."""
    return min(_power_of_two(vectors), THREADS)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _sizes(what: str, matrix: Any, rows_of_it: Any, indices: Any) -> tuple[int, int, int]:
    """(rows, columns, n), where the shapes fit."""
    n = indices.size
    if matrix.ndim != 2 or indices.ndim != 1 or rows_of_it.shape != (n, matrix.shape[1]):
        raise ValueError(
            f"{what} kernel: {indices.shape} indices into a matrix of {matrix.shape} do not give "
            f"{rows_of_it.shape}"
        )
    return (*matrix.shape, n)
