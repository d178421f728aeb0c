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
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import NUMBER_TYPES, CudaSource
from . import array_module, compute_capability, workspace
from .matmul import MAX_GRID_Z, MULTIPROCESSORS
from .matmul_parts import Plan, quickest
from .split_k import add_up
from .transpose import transpose
from .vector import starts_at_vector

Tile = tuple[int, int]  # rows and columns: as in matmul_tensor_core.cu
TILES = HALF, SMALL, LARGE, WIDE = (64, 128), (128, 128), (256, 128), (256, 192)
RESIDENT = {HALF: 3, SMALL: 2, LARGE: 1, WIDE: 1}  # blocks of a multiprocessor
THREADS = 128  # of a block, or as many as a tile has rows
CHUNK_BYTES, CHUNKS, STAGES = 16, 4, 3
STEP_BYTES = CHUNKS * CHUNK_BYTES
RING_BYTES = 48 * 1024  # of a block's pairs of tiles, if that is more than STAGES: RING of the .cu file
PART_STEPS = 8  # the fewest that are worth a block of their own

# What an estimate of the time reckons with, in microseconds of an H200. A step of a tile: LARGE in products
# of 4096 and 8192, SMALL in those of 2048 and 8192. With 0.18 for HALF, half of SMALL's, products of few
# tiles take 0.975 of the time that they take with 0.26 (benchmarks/results/2026-11-28-h200.txt).
WIDE_RATE = 1.1  # of what a multiprocessor makes of LARGE in the time; by the cycles counted, not measured
STEP_TIMES = {HALF: 0.18, SMALL: 0.35, LARGE: 0.64, WIDE: 0.64 * 1.5 / WIDE_RATE}
# Products of 512 and 1024 by SMALL, alone on a multiprocessor, took LAUNCH and 0.45 for each step: copies had
# begun a step and a half ahead of what waited for them (benchmarks/results/2026-11-27-h200.md).
LAUNCH, LATENCY = 3.6, 0.68
MAX_LINES = 2**31 - 1
COMPUTE_CAPABILITY = 80  # from which on a card has cp.async and these mma

LAYOUTS = {"float": (False,), "__half": (False, True), "__nv_bfloat16": (False, True)}
"""By the elements: whether neighbours may run along K alone, or along the other side as well."""
ELEMENTS = tuple(LAYOUTS)


def _largest_tile(element: str, along_m: bool = False, along_n: bool = False) -> Tile:
    """What there is a kernel for: the addresses of neighbours along M and N leave no registers for more; and
    in TF32 WIDE took 7.9 ms for a product of 8192 on an H200, LARGE between 6 and 7, while tiles began 32
    bytes behind a line of shared memory."""
    return LARGE if element == "float" or (along_m and along_n) else WIDE


_source = CudaSource(Path(__file__).with_suffix(".cu"))


_kernels = {
    (element, tile, along_m, along_n): CudaKernel(
        _source, f"matmul_tensor_core<{element}, {tile[0]}, {tile[1]}, {along_m}, {along_n}>"
    )
    for element, layouts in LAYOUTS.items()
    for tile, along_m, along_n in product(TILES, layouts, layouts)
    if tile <= _largest_tile(element, along_m, along_n)
}
"""By (the elements, the tile, whether a's neighbours run along M, whether b's run along N)."""


def tensor_core(out: Any, a: Any, b: Any, bias: Any = None, tile: Tile | None = None, parts: int = 1) -> None:
    """Tensor cores on tiles that are copied ahead; float32 is rounded to TF32, sums are float32.

    Where tiles are few, K is cut into parts, which a second launch adds up. A ``bias`` (N,), C-contiguous, is
    added to the sums before they are rounded and stored. A ``tile`` is taken in place of the one that suits
    the sizes, if it is not too large for the layout, and K is then cut into ``parts``, if the tile is one of
    the two smaller ones. The results of every tile are the same.
    """
    *batch_shape, M, N = out.shape
    K = a.shape[-1]
    if a.shape != (*batch_shape, M, K) or b.shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a.shape} and {b.shape} do not give {out.shape}")
    a, along_m = operand(a, _has_whole_chunks)
    b, along_n = operand(b.swapaxes(-1, -2), _has_whole_chunks)
    batches, steps, element = a.shape[0], blocks(K * a.itemsize, STEP_BYTES), element_of(out)
    largest = _largest_tile(element, along_m, along_n)
    if tile is None:
        _, parts, tile = plan(batches, M, N, steps, largest)
    rows, columns = tile = min(tile, largest)
    part_steps = blocks(steps, parts if tile <= SMALL else 1) or 1
    parts = blocks(steps, part_steps) or 1
    shape = {"M": M, "N": N, "K": K, "batches": batches}
    shape |= {"part": part_steps * STEP_BYTES // a.itemsize, "parts": parts}
    for name, array in (("a", a), ("b", b)):
        shape[f"{name}_batch_stride"] = array.strides[0] // array.itemsize
        shape[f"{name}_row_stride"] = row_pitch(array)
    products = batches * parts
    grid = (blocks(M, rows) * blocks(N, columns), blocks(products, MAX_GRID_Z), min(products, MAX_GRID_Z))
    partial = workspace(out, (parts, *out.shape) if parts > 1 else 0, np.float32)
    kernel = _kernels[element, tile, along_m, along_n]
    arguments = (out, partial, strided(a), strided(b), bias, shape)
    kernel.launch(grid, max(rows, THREADS), arguments, stages(tile) * _pair_bytes(tile))
    if parts > 1:
        add_up(out, partial, bias)


def _pair_bytes(tile: Tile) -> int:
    return sum(tile) * STEP_BYTES


def stages(tile: Tile) -> int:
    """How many pairs of tiles lie in shared memory."""
    return max(RING_BYTES // _pair_bytes(tile), STAGES)


def is_supported(array: Any) -> bool:
    """Whether the device of ``array`` can run these kernels: a card from Ampere on, or its simulator."""
    return compute_capability(array) >= COMPUTE_CAPABILITY


_ELEMENT_OF_DTYPE = {NUMBER_TYPES[element]: element for element in ("float", "__half")}


def element_of(array: Any) -> str:
    """The type of the elements of ``array`` in C++; uint16 are the bits of bfloat16."""
    return _ELEMENT_OF_DTYPE.get(array.dtype, "__nv_bfloat16")


@lru_cache(maxsize=1024)
def plan(batches: int, M: int, N: int, steps: int, largest: Tile = WIDE) -> Plan:
    """The quickest way to products of so many ``steps`` of K, by tiles that are not larger than ``largest``.

    It follows from the sizes alone: equal sizes get equal bits on any card.
    """

    def time_of(tile: Tile, count: int, parts: int) -> float:
        if parts > 1 and tile > SMALL:
            return math.inf  # the kernels of larger tiles know none
        of_busiest = blocks(count, MULTIPROCESSORS)  # how many blocks the busiest multiprocessor has
        latency = LATENCY / (stages(tile) - 1.5) * blocks(of_busiest, RESIDENT[tile])
        return LAUNCH + blocks(steps, parts) * max(of_busiest * STEP_TIMES[tile], latency)

    tiles = {t: batches * blocks(M, t[0]) * blocks(N, t[1]) for t in TILES if t <= largest}
    return quickest(tiles, batches * M * N, max(steps // PART_STEPS, 1), time_of)


def estimated_time(like: Any, batches: int, M: int, N: int, K: int) -> float:
    """An estimate of the microseconds that products take whose elements are as those of ``like``."""
    return plan(batches, M, N, blocks(K * like.itemsize, STEP_BYTES), _largest_tile(element_of(like))).time


def operand(x: Any, fits: Callable[[Any], bool]) -> tuple[Any, bool]:
    """``x`` (..., rows, K) as (batches, rows, K), or (batches, K, rows) and True: what ``fits``, or a copy by
    :func:`padded_once`."""
    if x.ndim != 3:
        x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    if fits(x):
        return x, False
    turned = x.swapaxes(1, 2)
    if x.itemsize == 2 and turned.shape[1] <= MAX_LINES and fits(turned):
        return turned, True
    along_rows = (
        x.itemsize == 2 and 0 < abs(x.strides[1]) < abs(x.strides[2]) and turned.shape[1] <= MAX_LINES
    )
    return padded_once(turned if along_rows else x), along_rows


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


def padded_once(x: Any) -> Any:
    """A copy of ``x`` (..., rows, columns) as by :func:`padded_rows`, of one matrix where all along a
    dimension are the same one, with a stride of 0."""
    once = x[tuple([slice(None if stride else 1) for stride in x.strides[:-2]])]
    padded = padded_rows(once.reshape(math.prod(once.shape[:-2]), *once.shape[-2:]))
    width = padded.shape[-1]
    return array_module(x).broadcast_to(padded.reshape(*once.shape[:-1], width), (*x.shape[:-1], width))


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
