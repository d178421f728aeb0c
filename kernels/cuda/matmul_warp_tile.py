"""Launches ``matmul_warp_tile.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N) in float32.

Arrays are those of ``matmul.py``. Which tiling makes a product, and into how many parts its K is cut, is told
by an estimate of the time (:func:`plan`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .elementwise import add_bias
from .matmul import MAX_GRID_Z, MULTIPROCESSORS, Product, describe, vectorized
from .matmul_parts import Plan, quickest
from .vector import starts_at_vector

_source = CudaSource(Path(__file__).with_suffix(".cu"))

FLOAT32 = np.dtype(np.float32)
PADDING = 4  # as in struct WarpTiling
MAX_OFFSET = 2**31 - 1  # from the first element of a tile to the others
SMALLEST_SIDE = 16  # of a product for which these tiles are not too large


class Tiling(NamedTuple):
    """How a block is divided (struct WarpTiling), and how many blocks share a multiprocessor."""

    block_m: int
    block_n: int
    warp_m: int
    warp_n: int
    depth: int
    slices: int
    resident: int

    def kernel(self, length: int) -> CudaKernel:
        return CudaKernel(_source, f"matmul_warp_tile<{', '.join(map(str, (*self, length)))}>")

    def tiles(self, M: int, N: int) -> int:
        return blocks(M, self.block_m) * blocks(N, self.block_n)

    @property
    def threads(self) -> int:
        return 32 * (self.block_m // self.warp_m) * (self.block_n // self.warp_n) * self.slices

    @property
    def shared_bytes(self) -> int:
        tiles = 2 * self.depth * (self.block_m + self.block_n + 2 * PADDING)
        return 4 * max(tiles, self.slices // 2 * self.block_m * self.block_n)


LARGE = Tiling(128, 256, 64, 64, depth=16, slices=1, resident=1)
MEDIUM = Tiling(128, 128, 64, 64, depth=24, slices=2, resident=1)
SMALL = Tiling(64, 64, 64, 64, depth=32, slices=4, resident=2)
TINY = Tiling(32, 64, 32, 32, depth=32, slices=4, resident=2)

# For any strides: half as deep, as a thread has four times as many addresses.
LARGE_ELEMENTS = LARGE._replace(depth=8)

OF_VECTORS = {tiling: tiling.kernel(4) for tiling in (LARGE, MEDIUM, SMALL, TINY)}
OF_ELEMENTS = {tiling: tiling.kernel(1) for tiling in (LARGE_ELEMENTS, TINY)}
"""The kernels by tiling: for arrays that are made of whole vectors, and for any."""

# What a multiprocessor makes of each tiling, in multiply-adds a microsecond: measured on an H200, 2026-11-26,
# in a first form of the kernel, and for MEDIUM in steps of 32; the rate of LARGE_ELEMENTS is a guess. What
# a launch takes besides, about, is in microseconds.
RATES = {LARGE: 183e3, MEDIUM: 170e3, SMALL: 157e3, TINY: 125e3, LARGE_ELEMENTS: 165e3}
LAUNCH = 3.0
ENOUGH_THREADS = 256  # for a multiprocessor: a block of fewer takes as long alone as two of them


class Geometry(NamedTuple):
    """What a launch takes besides its arrays; and whether it can add a bias."""

    kernel: CudaKernel
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    adds_bias: bool


@lru_cache(maxsize=1024)
def plan(batches: int, M: int, N: int, K: int, most_parts: int = 1, elements: bool = False) -> Plan:
    """The quickest way to a product, by its sizes alone: equal sizes get equal bits on any card.

    Args:
        most_parts: into how many parts K may be cut at most.
        elements: whether the arrays are not made of whole vectors.
    """

    def time(tiling: Tiling, count: int, parts: int) -> float:
        together = max(ENOUGH_THREADS // tiling.threads, 1)
        waves = blocks(count, MULTIPROCESSORS * together)
        work = waves * together * tiling.block_m * tiling.block_n * blocks(K, parts)
        return LAUNCH + work / RATES[tiling]

    tilings = OF_ELEMENTS if elements else OF_VECTORS
    tiles = {tiling: batches * tiling.tiles(M, N) for tiling in tilings}
    return quickest(tiles, batches * M * N, most_parts, time)


def suits(dtype: Any, M: int, N: int) -> bool:
    """Whether these tiles are for a product of ``dtype`` and this size, of which one has half of a side."""
    return dtype == FLOAT32 and min(M, N) >= SMALLEST_SIDE


def warp_tile(
    out: Any, a: Any, b: Any, part: int | None = None, tiling: Tiling | None = None, bias: Any = None
) -> None:
    """Tiles of warps: 128 sums in each thread, and what it multiplies next is read ahead.

    Takes float32; where an array's strides do not fit 32 bits within a tile, vectorized does the work. A
    ``tiling`` given here is taken in place of the one that :func:`plan` says. A ``bias`` (N,),
    C-contiguous, is added to the sums before they are stored.
    """
    product, arguments = describe(out, a, b, part)
    if out.dtype != FLOAT32 or not _has_short_strides(product):
        vectorized(out, a, b, part)
        return add_bias(out, bias)
    elements = not (product.a_vectors and product.b_vectors and starts_at_vector(a, b))
    kernel, grid, threads, shared_bytes, adds_bias = _geometry(product, elements, tiling)
    own_bias = bias if adds_bias else None
    kernel.launch(grid, threads, (*arguments, product.layout, own_bias), shared_bytes)
    if own_bias is not bias:
        add_bias(out, bias)


@lru_cache(maxsize=1024)  # a product comes again in every step of a training
def _geometry(product: Product, elements: bool, tiling: Tiling | None) -> Geometry:
    """The launch that makes ``product``, by ``tiling`` or the one that is estimated to be the quickest."""
    if tiling is None:
        products, length = product.batches * product.parts, min(product.K, product.shape["part"])
        tiling = plan(products, product.M, product.N, length, elements=elements).tiling
    return Geometry(
        (OF_ELEMENTS if elements else OF_VECTORS)[tiling],
        (tiling.tiles(product.M, product.N), product.parts, min(product.batches, MAX_GRID_Z)),
        tiling.threads,
        tiling.shared_bytes,
        adds_bias=tiling != LARGE_ELEMENTS,  # that kernel has no registers left for it
    )


@lru_cache(maxsize=1024)
def _has_short_strides(product: Product) -> bool:
    """Whether every element of a tile is less than 2^31 elements from its first one."""
    shape = product.shape
    rows, depth = LARGE.block_n, SMALL.depth  # the largest
    return product.K <= MAX_OFFSET and all(
        rows * abs(row) + depth * abs(k) <= MAX_OFFSET
        for row, k in (
            (shape["a_row_stride"], shape["a_column_stride"]),
            (shape["b_column_stride"], shape["b_row_stride"]),
        )
    )
