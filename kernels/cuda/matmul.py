"""Launches ``matmul.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on a card or on the simulator.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32 or all float64, and ``out`` shares no memory with the others.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .vector import VECTOR_BYTES, starts_at_vector

TILE = 32
SMALL_TILE, LARGE_TILE = 64, 128  # of the register rungs: 16 x 16 threads with 4 x 4 or 8 x 8 elements each
REGISTER_THREADS = 256
MULTIPROCESSORS = 128  # that a product should keep busy, about: an A100 has 108, an H200 132
MAX_BATCH_DIMS = 4  # of struct Batch
MAX_GRID_Z = 65535

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_naive = CudaKernel(_source, "matmul_naive<T>")
_tiled = CudaKernel(_source, "matmul_tiled<T>")
# By the side of a tile. In float64 a patch of 8 x 8 would take twice the registers.
_register_tile = {
    SMALL_TILE: CudaKernel(_source, "matmul_register_tile<T, 4>"),
    LARGE_TILE: CudaKernel(_source, "matmul_register_tile<float, 8>"),
}
_vectorized = {
    SMALL_TILE: CudaKernel(_source, "matmul_vectorized<T, 4>"),
    LARGE_TILE: CudaKernel(_source, "matmul_vectorized<float, 8>"),
}


def naive(out: Any, a: Any, b: Any) -> None:
    """One thread for each element of ``out``: the definition."""
    _launch_two_dimensional(_naive, (32, 8), out, a, b)


def tiled(out: Any, a: Any, b: Any) -> None:
    """Tiles of ``a`` and ``b`` in shared memory, so that each element is loaded once for 32 threads."""
    _launch_two_dimensional(_tiled, (TILE, TILE), out, a, b)


def register_tile(out: Any, a: Any, b: Any) -> None:
    """A patch of ``out`` in the registers of each thread, so that one shared load serves 4 or 8 sums."""
    _launch_register_tiles(_register_tile, out, a, b)


def vectorized(out: Any, a: Any, b: Any) -> None:
    """Loads of 16 bytes, and the next tiles fetched during the arithmetic.

    Where rows and columns do not start at multiples of 16 bytes, register_tile does the work.
    """
    _launch_register_tiles(_vectorized, out, a, b)


class Product(NamedTuple):
    """A matrix product as the kernels take it; it says everything but where the arrays are.

    Attributes:
        M, N, K: the sizes.
        batches: how many products of these sizes there are.
        shape, batch, layout: the fields of the structs MatmulShape, Batch and Layout.
        whole_vectors: whether rows or columns, of ``a`` and of ``b``, are contiguous and begin and end
            with whole vectors if the array begins with one; and the rows of ``out`` too.
    """

    M: int
    N: int
    K: int
    batches: int
    shape: dict[str, int]
    batch: dict[str, tuple[int, ...]]
    layout: dict[str, bool]
    whole_vectors: bool


def describe(out: Any, a: Any, b: Any) -> tuple[Product, tuple]:
    """The product, and the arguments that all kernels begin with. ValueError if the shapes do not fit."""
    product = _describe(out.shape, a.shape, a.strides, b.shape, b.strides, out.itemsize)
    if product is None:
        # More dimensions than the kernels take, with strides that do not merge: as copies, they merge.
        return describe(out, a.copy(order="C"), b.copy(order="C"))
    return product, (out, strided(a), strided(b), product.shape, product.batch)


@lru_cache(maxsize=1024)
def _describe(
    out_shape: tuple, a_shape: tuple, a_strides: tuple, b_shape: tuple, b_strides: tuple, itemsize: int
) -> Product | None:
    """From shapes, and strides in bytes; None if the batch does not fit struct Batch."""
    *batch_shape, M, N = out_shape
    K = a_shape[-1]
    if a_shape != (*batch_shape, M, K) or b_shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a_shape} and {b_shape} do not give {out_shape}")
    a_strides, b_strides = (tuple(stride // itemsize for stride in s) for s in (a_strides, b_strides))
    batch = collapse_batch(batch_shape, a_strides[:-2], b_strides[:-2])
    if len(batch) > MAX_BATCH_DIMS:
        return None
    size, a_stride, b_stride = zip(*[(1, 0, 0)] * (MAX_BATCH_DIMS - len(batch)), *batch, strict=True)
    (a_row, a_column), (b_row, b_column) = a_strides[-2:], b_strides[-2:]
    a_along_k, b_along_k = _is_nearer(a_column, a_row), _is_nearer(b_row, b_column)
    a_near, a_far, a_size = (a_column, a_row, K) if a_along_k else (a_row, a_column, M)
    b_near, b_far, b_size = (b_row, b_column, K) if b_along_k else (b_column, b_row, N)
    steps = (a_far, a_size, b_far, b_size, N, *a_stride, *b_stride)
    batches = math.prod(batch_shape)
    return Product(
        *(M, N, K, batches),
        shape={
            "M": M,
            "N": N,
            "K": K,
            "a_row_stride": a_row,
            "a_column_stride": a_column,
            "b_row_stride": b_row,
            "b_column_stride": b_column,
            "batches": batches,
        },
        batch={"size": size, "a_stride": a_stride, "b_stride": b_stride},
        layout={"a_along_k": a_along_k, "b_along_k": b_along_k},
        whole_vectors=a_near == b_near == 1 and all(step * itemsize % VECTOR_BYTES == 0 for step in steps),
    )


def _is_nearer(stride: int, other: int) -> bool:
    """Whether neighbours ``stride`` apart are the better ones to load together than those ``other`` apart."""
    if (stride == 1) != (other == 1):
        return stride == 1
    return abs(stride) < abs(other)


def fills_tiles(M: int, N: int) -> bool:
    """Whether an (M, N) product is large enough for the register rungs: half of a small tile is used."""
    return 2 * min(M, N) >= SMALL_TILE


def _launch_two_dimensional(kernel: CudaKernel, block: tuple[int, int], *arrays: Any) -> None:
    product, arguments = describe(*arrays)
    tiles = blocks(product.N, block[0]) * blocks(product.M, block[1])
    kernel.launch((tiles, 1, min(product.batches, MAX_GRID_Z)), block, arguments)


def _launch_register_tiles(kernels: dict[int, CudaKernel], *arrays: Any) -> None:
    product, arguments = describe(*arrays)
    if not (product.whole_vectors and starts_at_vector(*arrays)):
        kernels = _register_tile
    large = product.batches * blocks(product.M, LARGE_TILE) * blocks(product.N, LARGE_TILE)
    tile = LARGE_TILE if arrays[0].dtype == np.float32 and large >= MULTIPROCESSORS else SMALL_TILE
    tiles = blocks(product.N, tile) * blocks(product.M, tile)
    grid = (tiles, 1, min(product.batches, MAX_GRID_Z))
    kernels[tile].launch(grid, REGISTER_THREADS, (*arguments, product.layout))


def collapse_batch(shape, *strides) -> list[tuple[int, ...]]:
    """Dimensions as few (size, the arrays' strides) as describe them; ``strides`` are those of each array.

    Two neighbouring dimensions are one if, in all arrays, a step in the outer one is as far as all steps in
    the inner one together; dimensions of size 1 vanish.
    """
    merged: list[tuple[int, ...]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if merged and list(merged[-1][1:]) == [size * step for step in steps]:
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged
