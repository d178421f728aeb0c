"""Launches ``matmul_wgmma.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on a card of capability 9.0.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32, all float16, or all bfloat16 (or uint16 that are its bits). ``out``
shares no memory with the others. Sums are float32; float32 factors are rounded to TF32.

The copy engine reads ``a`` and ``b`` where they lie if K or, in 16 bits, the other side runs along contiguous
rows, which are multiples of 16 bytes apart; else it is given copies that are so.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import address, unchanging
from ..errors import KernelLaunchError
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import attribute, compute_capability, tensor_map, unused, workspace
from .matmul import MULTIPROCESSORS
from .matmul_parts import Plan, quickest
from .matmul_tensor_core import LAYOUTS, MAX_LINES, element_of, operand, tensor_core
from .split_k import add_up

TILE_M = 128  # as in wgmma_tiles.cuh
COLUMNS = (64, 128, 256)  # of a tile
LARGEST = COLUMNS[-1]  # whose kernels take all of K
THREADS = 384
CLUSTER = 2
RING_BOXES, OUT_BOXES = 24, 4  # the last for both consumers
BOX_ROWS, BOX_BYTES, BOX_ALIGNMENT = 64, 8192, 1024
SHARED_BYTES = (RING_BOXES + OUT_BOXES) * BOX_BYTES + BOX_ALIGNMENT
SIMULATED_MULTIPROCESSORS = 4  # few, so that small products have blocks make several tiles
COMPUTE_CAPABILITY = 90  # sm_90a is of this one alone
PART_STEPS = 8  # the fewest that are worth a place of their own
# In microseconds of an H200: products of 512 to 4096 by tiles of 256 columns, in 16 bits and in TF32, took
# LAUNCH and for each step of a tile, so many bytes of K, its STEP_TIMES; the other steps took those in
# convolutions (benchmarks/results/2026-11-27-h200.md).
LAUNCH, STEP_TIMES, STEP_BYTES = 4.7, {64: 0.32, 128: 0.39, 256: 0.69}, 128

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")

_kernels = {
    (element, tile, along_m, along_n): CudaKernel(
        _source, f"matmul_wgmma<{element}, {tile}, {along_m}, {along_n}>"
    )
    for element, layouts in LAYOUTS.items()
    for tile, along_m, along_n in product(COLUMNS, layouts, layouts)
}
"""By (the elements, the columns of a tile, whether a's neighbours run along M, whether b's run along N)."""


def wgmma(out: Any, a: Any, b: Any, bias: Any = None, tile: int | None = None, parts: int = 1) -> None:
    """On capability 9.0: tiles in shared memory, which the copy engine fills; float32 is rounded to TF32.

    Where tiles are few, K is cut into parts, which a second launch adds up. A ``bias`` (N,), C-contiguous, is
    added to the sums before they are rounded and stored. A ``tile`` of so many columns, of :data:`COLUMNS`,
    is taken in place of the one that suits the sizes, and K is then cut into ``parts``, unless it is the
    largest.
    """
    *batch_shape, M, N = out.shape
    K = a.shape[-1]
    if a.shape != (*batch_shape, M, K) or b.shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a.shape} and {b.shape} do not give {out.shape}")
    require(out, "matmul_wgmma")
    if 0 in (*out.shape, K) or max(M, N, K) > tensor_map.LARGEST_SIZE:
        return tensor_core(out, a, b, bias)
    a, a_lies, along_m = _operand(a)
    b, b_lies, along_n = _operand(b, turned=True)
    batches, item = a_lies[0][0], out.itemsize
    a_map, b_map = (tensor_map.describe(x, item == 4, lies) for x, lies in ((a, a_lies), (b, b_lies)))
    out_lies = (batches, M, N), (M * N * item, N * item, item)
    by_boxes = tensor_map.fits(out, out_lies)
    steps = blocks(K * a.itemsize, STEP_BYTES)
    if tile is None:
        _, parts, tile = plan(batches, M, N, steps)
    part_steps = blocks(steps, parts if tile < LARGEST else 1)
    parts = blocks(steps, part_steps)
    part = part_steps * STEP_BYTES // a.itemsize
    shape = _shape(M, N, K, batches, part, parts, a_lies[1][0] > 0, b_lies[1][0] > 0, by_boxes)
    out_map = tensor_map.describe(out, lying=out_lies) if by_boxes else a_map  # which is then not used
    clusters = batches * parts * blocks(M, CLUSTER * TILE_M) * blocks(N, tile)
    grid = CLUSTER * min(clusters, multiprocessors(out) // CLUSTER)
    partial = workspace(out, (parts, *out.shape), np.float32) if parts > 1 else unused(out, np.float32)
    kernel = _kernels[element_of(out), tile, along_m, along_n]
    arguments = (out, partial, strided(a), strided(b), bias, a_map, b_map, out_map, shape)
    kernel.launch(grid, THREADS, arguments, SHARED_BYTES)
    if parts > 1:
        add_up(out, partial, bias)


def _operand(x: Any, turned: bool = False) -> tuple[Any, tensor_map.Lying, bool]:
    """``x`` (..., rows, K), or ``turned`` (..., K, rows), or a copy; how that lies as (batches, rows, K), or
    as (batches, K, rows) and True."""
    if address(x) % tensor_map.ALIGNMENT == 0:
        lying = _as_batches(x.shape, x.strides, x.itemsize, turned)
        if lying is not None:
            return x, *lying
    x, along_rows = operand(x.swapaxes(-1, -2) if turned else x, tensor_map.fits)
    return x, (x.shape, x.strides), along_rows


@lru_cache(maxsize=1024)  # the same few come in every step of a training
def _as_batches(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, turned: bool
) -> tuple[tensor_map.Lying, bool] | None:
    """How an array that starts at a multiple of 16 bytes lies for the copy engine; None if it must be copied,
    or has several dimensions of batches."""
    if len(shape) == 2:
        shape, strides = (1, *shape), (shape[0] * abs(strides[0]), *strides)
    if len(shape) != 3:
        return None
    other = (shape[0], shape[2], shape[1]), (strides[0], strides[2], strides[1])
    along_k, along_rows = (other, (shape, strides)) if turned else ((shape, strides), other)
    if tensor_map.lies_fitting(*along_k, itemsize):
        return along_k, False
    takes_rows = itemsize == 2 and along_rows[0][1] <= MAX_LINES
    return (along_rows, True) if takes_rows and tensor_map.lies_fitting(*along_rows, itemsize) else None


@lru_cache(maxsize=1024)
def _shape(*values: int) -> unchanging:
    """The fields of struct WgmmaShape."""
    names = "M", "N", "K", "batches", "part", "parts", "a_batched", "b_batched", "out_by_boxes"
    return unchanging(zip(names, map(int, values), strict=True))


def is_supported(array: Any) -> bool:
    """Whether the device of ``array`` can run these kernels: a card of capability 9.0, or its simulator
    (``sim.architecture("sm_90a")``)."""
    return compute_capability(array) == COMPUTE_CAPABILITY


def require(array: Any, name: str) -> None:
    """Raise KernelLaunchError, in the name of a kernel, unless :func:`is_supported`."""
    if not is_supported(array):
        raise KernelLaunchError(
            f"{name} needs a card of compute capability 9.0, or sim.architecture('sm_90a')"
        )


def fills_tiles(M: int, N: int) -> bool:
    """Whether an (M, N) product is large enough for a tile: half of its rows are used."""
    return 2 * min(M, N) >= TILE_M


@lru_cache(maxsize=1024)
def plan(batches: int, M: int, N: int, steps: int) -> Plan:
    """The quickest way to products of so many ``steps`` of K.

    It follows from the sizes alone: equal sizes get equal bits on any card.
    """

    def time_of(tile: int, count: int, parts: int) -> float:
        if parts > 1 and tile == LARGEST:
            return math.inf
        return LAUNCH + blocks(count, MULTIPROCESSORS) * blocks(steps, parts) * STEP_TIMES[tile]

    tiles = {tile: batches * CLUSTER * blocks(M, CLUSTER * TILE_M) * blocks(N, tile) for tile in COLUMNS}
    return quickest(tiles, batches * M * N, max(steps // PART_STEPS, 1), time_of)


def estimated_time(like: Any, batches: int, M: int, N: int, K: int) -> float:
    """An estimate of the microseconds that products take whose elements are as those of ``like``."""
    return plan(batches, M, N, blocks(K * like.itemsize, STEP_BYTES)).time


def multiprocessors(array: Any) -> int:
    """How many the device of ``array`` has."""
    if isinstance(array, np.ndarray):
        return SIMULATED_MULTIPROCESSORS
    return attribute(array, "MultiProcessorCount")
