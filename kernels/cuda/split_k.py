"""Launches ``split_k.cu``: matrix products of a long K and few outputs, on a card or on the simulator.

Arrays are those of ``matmul.py``: out (..., M, N) = a (..., M, K) @ b (..., K, N).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import array_module, workspace
from .gemv import gemv
from .matmul import SMALL_TILE, TILE, fills_tiles, tiled, vectorized

THREADS = 256  # in a block
ENOUGH_BLOCKS = 256  # two for each multiprocessor, about
PART = 256  # the shortest part of K that is worth a block of its own
VECTOR_PART = 4096  # the same for a product with a vector, which does far less for each k

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_sum = CudaKernel(_source, "split_k_sum<T>")


def split_k(out: Any, a: Any, b: Any) -> None:
    """Cuts a long K into parts, products of their own for idle multiprocessors; a second launch adds them up.

    Where that is not worth it, one of the other rungs makes the product.
    """
    *batch, M, N = out.shape
    K = a.shape[-1]
    parts = parts_of(math.prod(batch), M, N, K)
    if parts < 2 or b.shape[-2] != K:
        return _unsplit(out, a, b)
    # Parts of equal length, of which the first element lies as a whole vector's does, and a rest.
    length = K // parts // TILE * TILE
    parts, rest = divmod(K, length)
    xp = array_module(out)
    partial = workspace(out, (parts + (rest > 0), *out.shape))
    in_parts_a = a[..., : K - rest].reshape(*batch, M, parts, length)
    in_parts_b = b[..., : K - rest, :].reshape(*batch, parts, length, N)
    _unsplit(partial[:parts], xp.moveaxis(in_parts_a, -2, 0), xp.moveaxis(in_parts_b, -3, 0))
    if rest:
        _unsplit(partial[parts], a[..., K - rest :], b[..., K - rest :, :])
    _sum.launch(blocks(out.size, THREADS), THREADS, (out, partial, out.size, len(partial)))


def parts_of(batches: int, M: int, N: int, K: int) -> int:
    """Into how many parts K should be cut; 1 if that is not worth it."""
    tile = SMALL_TILE if fills_tiles(M, N) else TILE
    busy = batches * blocks(M, tile) * blocks(N, tile)
    part = VECTOR_PART if 1 in (M, N) else PART
    return max(min(ENOUGH_BLOCKS // max(busy, 1), K // part), 1) if busy else 1


def _unsplit(out: Any, a: Any, b: Any) -> None:
    M, N = out.shape[-2:]
    if 1 in (M, N):
        gemv(out, a, b)
    elif fills_tiles(M, N):
        vectorized(out, a, b)
    else:
        tiled(out, a, b)
