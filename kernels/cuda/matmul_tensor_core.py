"""Launches ``matmul_tensor_core.cu``: out (..., M, N) = a (..., M, K) @ b (..., K, N), on tensor cores.

``out`` is C-contiguous; ``a`` and ``b`` have its batch shape (broadcast by the caller: a batch stride may be
0) and any strides. All three are float32, all float16, or all uint16 that are the bits of bfloat16. ``out``
shares no memory with the others. Sums are float32; float32 factors are rounded to TF32.

The kernel reads ``a`` and the transposed ``b`` where they lie if K runs along their rows and these are
multiples of 16 bytes apart; else it is given copies that are so. The usual ``x @ weight.T`` copies nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import array_module, compute_capability
from .transpose import transpose
from .vector import starts_at_vector

TILE_M, TILE_N = 128, 128  # as in matmul_tensor_core.cu
THREADS = 128
CHUNK_BYTES, CHUNKS, STAGES = 16, 4, 3
SHARED_BYTES = STAGES * (TILE_M + TILE_N) * CHUNKS * CHUNK_BYTES
MAX_GRID_Z = 65535
COMPUTE_CAPABILITY = 80  # from which on a card has cp.async and these mma

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernel = CudaKernel(_source, "matmul_tensor_core<T>")
_kernel_bfloat16 = CudaKernel(_source, "matmul_tensor_core<__nv_bfloat16>")


def tensor_core(out: Any, a: Any, b: Any, bias: Any = None) -> None:
    """Tensor cores on tiles that are copied ahead; float32 is rounded to TF32, sums are float32.

    A ``bias`` (N,), C-contiguous, is added to the sums before they are rounded and stored.
    """
    _launch(_kernel, out, a, b, bias)


def tensor_core_bfloat16(out: Any, a: Any, b: Any, bias: Any = None) -> None:
    """The same for arrays of uint16 that are the bits of bfloat16."""
    _launch(_kernel_bfloat16, out, a, b, bias)


def is_supported(array: Any) -> bool:
    """Whether the device of ``array`` can run these kernels: the simulator, or a card from Ampere on."""
    return isinstance(array, np.ndarray) or compute_capability(array) >= COMPUTE_CAPABILITY


def _launch(kernel: CudaKernel, out: Any, a: Any, b: Any, bias: Any) -> None:
    *batch_shape, M, N = out.shape
    K = a.shape[-1]
    if a.shape != (*batch_shape, M, K) or b.shape != (*batch_shape, K, N):
        raise ValueError(f"matmul kernel: shapes {a.shape} and {b.shape} do not give {out.shape}")
    a, b = along_k(a), along_k(b.swapaxes(-1, -2))
    batches = a.shape[0]
    shape = {"M": M, "N": N, "K": K, "batches": batches}
    for name, array in (("a", a), ("b", b)):
        shape[f"{name}_batch_stride"] = array.strides[0] // array.itemsize
        shape[f"{name}_row_stride"] = row_pitch(array)
    grid = (blocks(M, TILE_M) * blocks(N, TILE_N), 1, min(batches, MAX_GRID_Z))
    kernel.launch(grid, THREADS, (out, strided(a), strided(b), bias, shape), SHARED_BYTES)


def along_k(x: Any) -> Any:
    """``x`` (..., rows, K) as (batches, rows, K): K along contiguous rows, all at multiples of 16 bytes."""
    x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    steps = [stride for size, stride in zip(x.shape[:2], x.strides[:2], strict=True) if size > 1]
    if x.strides[2] == x.itemsize and starts_at_vector(x) and not any(s % CHUNK_BYTES for s in steps):
        return x
    return padded_rows(x)


def row_pitch(x: Any) -> int:
    """How many elements the rows of :func:`along_k`'s ``x`` are apart: 0, if there is one.

    What a kernel has copied beyond the last row is nothing, but from an address that must be a multiple of 16
    bytes; the stride of a single row may be none.
    """
    return x.strides[1] // x.itemsize if x.shape[1] > 1 else 0


def padded_rows(x: Any) -> Any:
    """A copy of ``x`` (batches, rows, K) whose rows are contiguous and multiples of 16 bytes apart."""
    batches, rows, K = x.shape
    per_chunk = CHUNK_BYTES // x.itemsize
    padded = array_module(x).empty((batches, rows, blocks(K, per_chunk) * per_chunk), x.dtype)[:, :, :K]
    if x.strides[1] == x.itemsize and K > 1 and x.size:
        transpose(padded, x.swapaxes(1, 2))
    else:
        padded[:] = x
    return padded
