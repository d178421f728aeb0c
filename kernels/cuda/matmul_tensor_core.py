"""Launches ``matmul_tensor_core.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on tensor cores.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32, all float16, or all bfloat16 (or uint16 that are its bits). ``out``
shares no memory with the others. Sums are float32; float32 factors are rounded to TF32.

The kernel reads ``a`` and ``b`` where they lie if K or, in 16 bits, the other side runs along contiguous rows
of whole chunks of 16 bytes; else it is given copies that are so. ``x @ weight.T`` copies nothing; nor do, in
16 bits, its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks, strided
from ..source import NUMBER_TYPES, CudaSource
from . import array_module, compute_capability
from .matmul import MAX_GRID_Z, MULTIPROCESSORS
from .transpose import transpose
from .vector import starts_at_vector

Tile = tuple[int, int]  # rows, which are the threads of its block, and columns: as in matmul_tensor_core.cu
TILES = SMALL, LARGE, WIDE = (128, 128), (256, 128), (256, 192)
WIDE_RATE = 1.1  # of what a multiprocessor makes of LARGE in the time; by the cycles counted, not measured
CHUNK_BYTES, CHUNKS, STAGES = 16, 4, 3
MAX_LINES = 2**31 - 1
COMPUTE_CAPABILITY = 80  # from which on a card has cp.async and these mma

ELEMENTS = ("float", "__half", "__nv_bfloat16")
LAYOUTS = {element: (False,) if element == "float" else (False, True) for element in ELEMENTS}
"""By the elements: whether neighbours may run along K alone, or along the other side as well."""


def _largest_tile(along_m: bool, along_n: bool) -> Tile:
    """What there is a kernel for: the addresses of neighbours along M and N leave no registers for more."""
    return LARGE if along_m and along_n else WIDE


_source = CudaSource(Path(__file__).with_suffix(".cu"))


_kernels = {
    (element, tile, along_m, along_n): CudaKernel(
        _source, f"matmul_tensor_core<{element}, {tile[0]}, {tile[1]}, {along_m}, {along_n}>"
    )
    for element, layouts in LAYOUTS.items()
    for tile, along_m, along_n in product(TILES, layouts, layouts)
    if tile <= _largest_tile(along_m, along_n)
}
"""By (the elements, the tile, whether a's neighbours run along M, whether b's run along N)."""


def tensor_core(out: Any, a: Any, b: Any, bias: Any = None, tile: Tile | None = None) -> None:
    """Tensor cores on tiles that are copied ahead; float32 is rounded to TF32, sums are float32.

    A ``bias`` (N,), C-contiguous, is added to the sums before they are rounded and stored. A ``tile`` is
    taken in place of the one that suits the sizes, if it is not too large for the layout; the results are the
    same.
    """
    *batch_shape, M, N = out.shape
    K = a.shape[-1]
    if a.shape != (*batch_shape, M, K) or b.shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a.shape} and {b.shape} do not give {out.shape}")
    a, along_m = operand(a, _has_whole_chunks)
    b, along_n = operand(b.swapaxes(-1, -2), _has_whole_chunks)
    batches = a.shape[0]
    shape = {"M": M, "N": N, "K": K, "batches": batches}
    for name, array in (("a", a), ("b", b)):
        shape[f"{name}_batch_stride"] = array.strides[0] // array.itemsize
        shape[f"{name}_row_stride"] = row_pitch(array)
    rows, columns = tile = min(tile or tile_of(batches, M, N), _largest_tile(along_m, along_n))
    grid = (blocks(M, rows) * blocks(N, columns), blocks(batches, MAX_GRID_Z), min(batches, MAX_GRID_Z))
    shared_bytes = STAGES * (rows + columns) * CHUNKS * CHUNK_BYTES
    kernel = _kernels[element_of(out), tile, along_m, along_n]
    kernel.launch(grid, rows, (out, strided(a), strided(b), bias, shape), shared_bytes)


def is_supported(array: Any) -> bool:
    """Whether the device of ``array`` can run these kernels: a card from Ampere on, or its simulator."""
    return compute_capability(array) >= COMPUTE_CAPABILITY


_ELEMENT_OF_DTYPE = {NUMBER_TYPES[element]: element for element in ("float", "__half")}


def element_of(array: Any) -> str:
    """The type of the elements of ``array`` in C++; uint16 are the bits of bfloat16."""
    return _ELEMENT_OF_DTYPE.get(array.dtype, "__nv_bfloat16")


def tile_of(batches: int, M: int, N: int) -> Tile:
    """The tile for a product: a larger one if there are enough for all multiprocessors, and of two the one
    whose waves of blocks take less time."""

    def time(tile: Tile, rate: float) -> float:
        tiles = blocks(M, tile[0]) * blocks(N, tile[1]) * batches
        return blocks(tiles, MULTIPROCESSORS) * tile[1] / rate

    if blocks(M, SMALL[0]) < 2 or blocks(M, LARGE[0]) * blocks(N, LARGE[1]) * batches < MULTIPROCESSORS:
        return SMALL
    return WIDE if time(WIDE, WIDE_RATE) < time(LARGE, 1) else LARGE


def operand(x: Any, fits: Callable[[Any], bool]) -> tuple[Any, bool]:
    """``x`` (..., rows, K) as (batches, rows, K), or (batches, K, rows) and True: what ``fits``, or a copy in
    :func:`padded_rows`."""
    x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    turned = x.swapaxes(1, 2)
    if fits(x):
        return x, False
    if x.itemsize == 2 and turned.shape[1] <= MAX_LINES and fits(turned):
        return turned, True
    along_rows = (
        x.itemsize == 2 and 0 < abs(x.strides[1]) < abs(x.strides[2]) and turned.shape[1] <= MAX_LINES
    )
    return padded_rows(turned if along_rows else x), along_rows


def along_k(x: Any) -> Any:
    """``x`` (batches, rows, K), if K lies along contiguous rows of whole chunks, or a copy in
    :func:`padded_rows`."""
    return x if _has_whole_chunks(x) else padded_rows(x)


def _has_whole_chunks(x: Any) -> bool:
    """Whether the rows of ``x`` (batches, rows, columns) are contiguous chunks of 16 bytes, all at multiples
    of these."""
    steps = [stride for size, stride in zip(x.shape[:2], x.strides[:2], strict=True) if size > 1]
    apart = [x.shape[2] * x.itemsize, *steps]
    return x.strides[2] == x.itemsize and starts_at_vector(x) and not any(n % CHUNK_BYTES for n in apart)


def row_pitch(x: Any) -> int:
    """How many elements the rows of ``x`` (batches, rows, columns) are apart: 0, if there is one.

    What a kernel has copied beyond the last row is nothing, but from an address that must be a multiple of 16
    bytes; the stride of a single row may be none.
    """
    return x.strides[1] // x.itemsize if x.shape[1] > 1 else 0


def padded_rows(x: Any) -> Any:
    """A copy of ``x`` (batches, rows, columns) in whole chunks: zeros follow each row up to 16 bytes."""
    batches, rows, columns = x.shape
    per_chunk = CHUNK_BYTES // x.itemsize
    padded = array_module(x).empty((batches, rows, blocks(columns, per_chunk) * per_chunk), x.dtype)
    if x.strides[1] == x.itemsize and columns > 1 and x.size:
        transpose(padded, x.swapaxes(1, 2))
    else:
        padded[:, :, :columns], padded[:, :, columns:] = x, 0
    return padded
