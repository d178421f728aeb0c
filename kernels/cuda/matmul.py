"""Launches ``matmul.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on a card or on the simulator.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32 or all float64, and ``out`` shares no memory with the others.

The rungs from ``tiled`` on take the length of a ``part`` of K: they make a product of each part, for which
``out`` has a dimension more, in front (see :func:`describe`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .vector import VECTOR_BYTES, starts_at_vector

TILE = 32
SMALL_TILE, LARGE_TILE = 64, 128  # of the register rungs: 16 x 16 threads with 4 x 4 or 8 x 8 elements each
REGISTER_THREADS = 256
MULTIPROCESSORS = 132  # of an H200, which the rules of choice are made for; an A100 has 108
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


def uncoalesced(out: Any, a: Any, b: Any) -> None:
    """The definition, by warps that walk down columns: each thread loads from a line of memory of its own."""
    _launch_two_dimensional(_naive, (1, 256), out, a, b)


def naive(out: Any, a: Any, b: Any) -> None:
    """One thread for each element of ``out``: the definition, by warps that walk along rows."""
    _launch_two_dimensional(_naive, (32, 8), out, a, b)


def tiled(out: Any, a: Any, b: Any, part: int | None = None) -> None:
    """Tiles of ``a`` and ``b`` in shared memory, so that each element is loaded once for 32 threads."""
    _launch_two_dimensional(_tiled, (TILE, TILE), out, a, b, part)


def register_tile(out: Any, a: Any, b: Any, part: int | None = None) -> None:
    """A patch of ``out`` in the registers of each thread, so that one shared load serves 4 or 8 sums."""
    _launch_register_tiles(_register_tile, out, a, b, part)


def vectorized(out: Any, a: Any, b: Any, part: int | None = None) -> None:
    """Loads of 16 bytes, and the next tiles fetched during the arithmetic.

    Where rows and columns do not start at multiples of 16 bytes, register_tile does the work.
    """
    _launch_register_tiles(_vectorized, out, a, b, part)


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix product as the kernels take it; it says everything but where the arrays are.

    Equal products are one object, as long as the cache of :func:`_describe` holds it: what follows from a
    product can be kept by it.

    Attributes:
        M, N, K: the sizes.
        batches: how many products of these sizes there are.
        parts: into how many parts K is cut.
        shape, batch, layout: the fields of the structs MatmulShape, Batch and Layout.
        a_vectors, b_vectors: whether the rows or columns of ``a``, of ``b``, are contiguous and begin and
            end with whole vectors if the array begins with one.
        out_vectors: the same for the rows of ``out``.
    """

    M: int
    N: int
    K: int
    batches: int
    parts: int
    shape: unchanging
    batch: unchanging
    layout: unchanging
    a_vectors: bool
    b_vectors: bool
    out_vectors: bool


def describe(
    out: Any, a: Any, b: Any, part: int | None = None, transposed: bool = False
) -> tuple[Product, tuple]:
    """The product, and the arguments that all kernels begin with.

    Args:
        part: the length of the parts of K that become products of their own (the last one may be shorter):
            ``out`` then has a dimension in front of the others, of these parts.
        transposed: make the same numbers as ``b' @ a'``, for an ``out`` that lies as its transposed one.

    Raises:
        ValueError: the shapes do not fit.
    """
    a, b = in_few_batch_dims(a, b)
    product = _describe(
        out.shape, a.shape, a.strides, b.shape, b.strides, a.itemsize, part, transposed
    )  # fmt: skip
    if transposed:
        a, b = b, a
    return product, (out, strided(a), strided(b), product.shape, product.batch)


def in_few_batch_dims(a: Any, b: Any) -> tuple[Any, Any]:
    """``a`` and ``b``, or copies of both, if their batch has more dimensions that do not merge than the
    kernels take: those of copies merge."""
    if not a.ndim == b.ndim > MAX_BATCH_DIMS + 2:
        return a, b
    if len(collapse_batch(a.shape[:-2], a.strides[:-2], b.strides[:-2])) <= MAX_BATCH_DIMS:
        return a, b
    return a.copy(order="C"), b.copy(order="C")


@lru_cache(maxsize=1024)
def _describe(
    out_shape: tuple,
    a_shape: tuple,
    a_strides: tuple,
    b_shape: tuple,
    b_strides: tuple,
    itemsize: int,
    part: int | None,
    transposed: bool,
) -> Product:
    """From shapes, and strides in bytes."""
    *batch_shape, M, N = out_shape if part is None else out_shape[1:]
    K = a_shape[-1]
    parts = 1 if part is None else blocks(K, part)
    fits = a_shape == (*batch_shape, M, K) and b_shape == (*batch_shape, K, N)
    if not fits or (part is not None and out_shape[0] != parts):
        raise ValueError(f"matmul kernel: shapes {a_shape} and {b_shape} do not give {out_shape}")
    a_strides, b_strides = (tuple(stride // itemsize for stride in s) for s in (a_strides, b_strides))
    if transposed:
        M, N = N, M
        a_strides, b_strides = (
            (*strides[:-2], strides[-1], strides[-2]) for strides in (b_strides, a_strides)
        )
    batch = collapse_batch(batch_shape, a_strides[:-2], b_strides[:-2])
    size, a_stride, b_stride = zip(*[(1, 0, 0)] * (MAX_BATCH_DIMS - len(batch)), *batch, strict=True)
    (a_row, a_column), (b_row, b_column) = a_strides[-2:], b_strides[-2:]
    a_along_k, b_along_k = _is_nearer(a_column, K, a_row, M), _is_nearer(b_row, K, b_column, N)
    batches = math.prod(batch_shape)
    vector = VECTOR_BYTES // itemsize
    return Product(
        *(M, N, K, batches, parts),
        shape=unchanging(
            M=M,
            N=N,
            K=K,
            a_row_stride=a_row,
            a_column_stride=a_column,
            b_row_stride=b_row,
            b_column_stride=b_column,
            batches=batches,
            part=part or max(K, 1),
        ),
        batch=unchanging(size=size, a_stride=a_stride, b_stride=b_stride),
        layout=unchanging(a_along_k=a_along_k, b_along_k=b_along_k),
        a_vectors=_in_vectors(vector, a_along_k, (a_column, K), (a_row, M), a_stride),
        b_vectors=_in_vectors(vector, b_along_k, (b_row, K), (b_column, N), b_stride),
        out_vectors=N % vector == 0,
    )


def _is_nearer(stride: int, size: int, other: int, other_size: int) -> bool:
    """Whether neighbours ``stride`` apart are the better ones to load together than those ``other`` apart."""
    if 1 in (size, other_size):
        return other_size == 1
    if (stride == 1) != (other == 1):
        return stride == 1
    return abs(stride) < abs(other)


def _in_vectors(vector: int, along_k: bool, k: tuple, other: tuple, batch_strides: tuple) -> bool:
    """Whether a matrix is made of whole vectors; ``k`` and ``other`` are the (stride, size) of its axes."""
    (near, size), (far, lines) = (k, other) if along_k else (other, k)
    steps = (size, *batch_strides, *([far] if lines > 1 else []))
    return near == 1 and all(step % vector == 0 for step in steps)


def fills_tiles(M: int, N: int) -> bool:
    """Whether an (M, N) product is large enough for the register rungs: half of a small tile is used."""
    return 2 * min(M, N) >= SMALL_TILE


def _launch_two_dimensional(
    kernel: CudaKernel, block: tuple[int, int], out: Any, a: Any, b: Any, part: int | None = None
) -> None:
    product, arguments = describe(out, a, b, part)
    kernel.launch(_grid(product, *block), block, arguments)


def _launch_register_tiles(
    kernels: dict[int, CudaKernel], out: Any, a: Any, b: Any, part: int | None
) -> None:
    product, arguments = describe(out, a, b, part)
    if not (product.a_vectors and product.b_vectors and product.out_vectors and starts_at_vector(out, a, b)):
        kernels = _register_tile
    large = product.parts * product.batches * blocks(product.M, LARGE_TILE) * blocks(product.N, LARGE_TILE)
    tile = LARGE_TILE if out.dtype == np.float32 and large >= MULTIPROCESSORS else SMALL_TILE
    kernels[tile].launch(_grid(product, tile, tile), REGISTER_THREADS, (*arguments, product.layout))


@lru_cache(maxsize=1024)
def _grid(product: Product, tile_n: int, tile_m: int) -> tuple[int, int, int]:
    tiles = blocks(product.N, tile_n) * blocks(product.M, tile_m)
    return tiles, product.parts, min(product.batches, MAX_GRID_Z)


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
