"""Launches ``split_k.cu``: matrix products of a long K and few outputs, on a card or on the simulator.

Arrays are those of ``matmul.py``: out (..., M, N) = a (..., M, K) @ b (..., K, N); products with a vector may
be of float16 or bfloat16, too.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource, computed_dtype, type_of_dtype
from . import workspace
from .elementwise import add_bias
from .gemv import gemv
from .matmul import MULTIPROCESSORS, SMALL_TILE, TILE, fills_tiles, tiled, vectorized
from .matmul_warp_tile import plan, suits, warp_tile

SUM_THREADS = 256  # in a block, as in split_k.cu
ENOUGH_THREADS = 2**17  # for the second pass: about 1000 for each multiprocessor
PART = 256  # the shortest part of K that is worth a block of its own
VECTOR_PART = 4096  # the same for a product with a vector, which does far less for each k

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_sums = {
    "float": CudaKernel(_source, "split_k_sum<float, float>"),
    "double": CudaKernel(_source, "split_k_sum<double, double>"),
    "__half": CudaKernel(_source, "split_k_sum<__half, float>"),
    "__nv_bfloat16": CudaKernel(_source, "split_k_sum<__nv_bfloat16, float>"),
}
_sums["unsigned short"] = _sums["__nv_bfloat16"]  # its bits


def split_k(out: Any, a: Any, b: Any, bias: Any = None) -> None:
    """Cuts a long K into parts, products of their own for idle multiprocessors; a second launch adds them up.

    Where that is not worth it, one of the other rungs makes the product. A ``bias`` (N,), C-contiguous, is
    added, too.
    """
    *batch, M, N = out.shape
    K = a.shape[-1]
    run: Any
    if 1 in (M, N):
        run = gemv
    elif suits(out.dtype, M, N):
        run = warp_tile
    else:
        run = vectorized if fills_tiles(M, N) else tiled
    parts = parts_of(out.dtype, math.prod(batch), M, N, K)
    if parts < 2:
        if run in (warp_tile, gemv):
            return run(out, a, b, bias=bias)
        run(out, a, b)
        return add_bias(out, bias)
    part = blocks(blocks(K, parts), TILE) * TILE  # begins with a whole vector
    partial = workspace(out, (blocks(K, part), *out.shape), computed_dtype(out.dtype))
    run(partial, a, b, part)
    add_up(out, partial, bias)


def add_up(
    out: Any, partial: Any, bias: Any = None, relu: bool = False, channels: int | None = None, plane: int = 1
) -> None:
    """out = the sum of the parts, the first dimension of ``partial``, plus ``bias``, and through ReLU if so.

    The bias is one for each of ``channels``, of ``plane`` elements side by side: by default for each column.
    """
    size, parts = out.size, len(partial)
    grid, block = _sum_geometry(size, parts)
    channels = out.shape[-1] if channels is None else channels
    arguments = (strided(out), partial, bias, relu, size, parts, channels, plane)
    _sums[type_of_dtype(out.dtype)].launch(grid, block, arguments)


@lru_cache(maxsize=1024)
def _sum_geometry(size: int, parts: int) -> tuple[int, tuple[int, int]]:
    """The grid and the block that add up ``parts`` products of ``size`` elements."""
    # A thread for each element, and more for one only where there are too few elements for that.
    per_element = 1
    while per_element < min(parts, SUM_THREADS) and size * per_element < ENOUGH_THREADS:
        per_element *= 2
    elements = SUM_THREADS // per_element
    return blocks(size, elements), (elements, per_element)


@lru_cache(maxsize=1024)
def parts_of(dtype: Any, batches: int, M: int, N: int, K: int) -> int:
    """Into how many parts K should be cut; 1 if that is not worth it."""
    if 0 in (batches, M, N):
        return 1
    if 1 not in (M, N) and suits(dtype, M, N):
        return plan(batches, M, N, K, most_parts=max(K // PART, 1)).parts
    tile = SMALL_TILE if fills_tiles(M, N) else TILE
    busy = batches * blocks(M, tile) * blocks(N, tile)
    part = VECTOR_PART if 1 in (M, N) else PART
    return max(min(2 * MULTIPROCESSORS // busy, K // part), 1)
