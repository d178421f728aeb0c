"""Launches ``matmul.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on a card or on the simulator.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32 or all float64, and ``out`` shares no memory with the others.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource

TILE = 32
MAX_BATCH_DIMS = 4  # of struct Batch
MAX_GRID_Z = 65535

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_naive = CudaKernel(_source, "matmul_naive<T>")
_tiled = CudaKernel(_source, "matmul_tiled<T>")


def naive(out: Any, a: Any, b: Any) -> None:
    """One thread for each element of ``out``: the definition."""
    _launch(_naive, (32, 8), out, a, b)


def tiled(out: Any, a: Any, b: Any) -> None:
    """Tiles of ``a`` and ``b`` in shared memory, so that each element is loaded once for 32 threads."""
    _launch(_tiled, (TILE, TILE), out, a, b)


def _launch(kernel: CudaKernel, block: tuple[int, int], out: Any, a: Any, b: Any) -> None:
    *batch_shape, M, N = out.shape
    K = a.shape[-1]
    if a.shape != (*batch_shape, M, K) or b.shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a.shape} and {b.shape} do not give {out.shape}")
    batch = collapse_batch(batch_shape, _strides(a)[:-2], _strides(b)[:-2])
    if len(batch) > MAX_BATCH_DIMS:
        # More dimensions than the kernel takes, with strides that do not merge: as copies, they merge.
        return _launch(kernel, block, out, a.copy(order="C"), b.copy(order="C"))
    batch = [(1, 0, 0)] * (MAX_BATCH_DIMS - len(batch)) + batch
    batches = math.prod(batch_shape)
    shape = {"M": M, "N": N, "K": K, "batches": batches}
    for name, array in (("a", a), ("b", b)):
        shape[f"{name}_row_stride"], shape[f"{name}_column_stride"] = _strides(array)[-2:]
    size, a_stride, b_stride = zip(*batch, strict=True)
    grid = (blocks(N, block[0]) * blocks(M, block[1]), 1, min(batches, MAX_GRID_Z))
    arguments = (
        out,
        strided(a),
        strided(b),
        shape,
        {"size": size, "a_stride": a_stride, "b_stride": b_stride},
    )
    kernel.launch(grid, block, arguments)


def _strides(array: Any) -> tuple[int, ...]:
    """The array's strides in elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


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
