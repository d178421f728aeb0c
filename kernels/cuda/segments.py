"""Launches ``segments.cu``: positions grouped by key, by a stable radix sort; on a card or the simulator.

``keys`` are (n,), int64 and C-contiguous. What is not in [0, size) is in no segment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace

THREADS = 256  # in a block, as in segments.cu
BITS = 8  # of a digit, as in segments.cu
DIGITS = 1 << BITS
TILE = 512  # the fewest keys that are worth a block of their own
MAX_TILES = 256  # each block reads the counts of all

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_count = CudaKernel(_source, "radix_count")
_scatter = CudaKernel(_source, "radix_scatter")
_starts = CudaKernel(_source, "segment_starts")


def sort(keys: Any, size: int) -> tuple[Any, Any]:
    """(order, sorted), int64: the keys' positions in the order of the sorted keys, and these; keys outside of
    [0, size) become ``size``, and the last."""
    n = keys.size
    tile = max(TILE, blocks(n, MAX_TILES))
    tiles = blocks(n, tile)
    counts = workspace(keys, (tiles, DIGITS), np.uint32)
    here, there = workspace(keys, (2, 2, n))
    order = None
    for shift in range(0, max(size.bit_length(), 1), BITS):
        _count.launch(tiles, THREADS, (counts, keys, n, size, tile, shift))
        sorted_keys, sorted_order = here
        arguments = (sorted_keys, sorted_order, keys, order, counts, n, size, tile, tiles, shift)
        _scatter.launch(tiles, THREADS, arguments)
        keys, order = here
        here, there = there, here
    return order, keys


def segments(keys: Any, size: int) -> tuple[Any, Any, Any]:
    """(order, sorted, starts), all int64: :func:`sort`'s, and where segments begin. The positions
    order[starts[k]:starts[k + 1]] are those of the keys that equal ``k``, from first to last."""
    order, in_order = sort(keys, size)
    starts = workspace(keys, size + 1)
    _starts.launch(blocks(size + 1, THREADS), THREADS, (starts, in_order, keys.size, size))
    return order, in_order, starts
