"""Launches ``matmul_skinny.cu``: products of a matrix and a few vectors, on a card or on the simulator.

Arrays are those of ``matmul.py``: out (..., M, N) = a (..., M, K) @ b (..., K, N), with M or N up to 16, of
float32, or of float16 or bfloat16, which tensor cores multiply. Sums are float32.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import workspace
from .matmul import MULTIPROCESSORS, Product, describe, in_few_batch_dims
from .matmul_parts import Plan, quickest
from .matmul_tensor_core import padded_once
from .split_k import add_up
from .vector import VECTOR_BYTES, starts_at_vector

ROWS, WARP, STEP_BYTES = 32, 32, 64  # as in matmul_skinny.cu, as is what follows
VECTORS = FEWEST, MOST = 8, 16  # for which there are kernels
WARPS_OF_FLOATS, WARPS = 8, 16  # at most, of a block
FARTHEST = 2**32  # chunks of 16 bytes from the first vector to the last: 64 GB
AT_ONCE = 2  # steps that a warp has, before a block gets more of them

# What an estimate of the time reckons with, of an H200: microseconds, and bytes a microsecond. gemv took 11.5
# for 4096 x 4096 in 16 bits and 18.7 in float32; what a multiprocessor can load alone is a guess.
LAUNCH, RATE, RATE_OF_BLOCK = 3.0, 4.1e6, 60e3
PART_STEPS = 128  # the fewest that are worth a block of their own

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernels = {
    (vectors, along_k, wide): CudaKernel(_source, f"matmul_skinny<T, Out, {vectors}, {along_k}, {wide}>")
    for vectors, along_k, wide in product(VECTORS, (False, True), (False, True))
}
"""By (how many vectors, whether the matrix' neighbours run along K, whether it is made of whole vectors)."""


def suits(M: int, N: int) -> bool:
    """Whether one of the two is so small that the other factor is nearly all there is to read."""
    return min(M, N) <= MOST


def skinny(out: Any, a: Any, b: Any, bias: Any = None, parts: int | None = None) -> None:
    """For a few rows or columns: the matrix is read once, straight into what registers multiply.

    Where it has few rows and K is long, K is cut into parts, which a second launch adds up: into as many as
    :func:`plan` says, or as ``parts``. A ``bias`` (N,), C-contiguous, is added to the sums before they are
    rounded and stored.
    """
    *batch, M, N = out.shape
    K = a.shape[-1]
    if not suits(M, N):
        raise ValueError(
            f"matmul_skinny kernel: neither M nor N is at most {MOST} in an output of shape {out.shape}"
        )
    if out.size == 0:
        return None
    steps = blocks(K * a.itemsize, STEP_BYTES)
    if parts is None:
        parts = plan(math.prod(batch), max(M, N), min(M, N), steps).parts
    part = blocks(steps, parts) * STEP_BYTES // a.itemsize
    if part >= K:
        return _launch(out, a, b, bias=bias)
    partial = workspace(out, (blocks(K, part), *out.shape), np.float32)
    _launch(partial, a, b, part)
    return add_up(out, partial, bias)


def _launch(out: Any, a: Any, b: Any, part: int | None = None, bias: Any = None) -> None:
    a, b = in_few_batch_dims(a, b)
    # x A is A' x', in the same memory. Of a square output the vectors are a's rows: b's columns would have to
    # be copied.
    transposed = out.shape[-2] <= out.shape[-1]
    if transposed:
        a, vectors = _in_chunks(a)
    else:
        b, vectors = _in_chunks(b.swapaxes(-1, -2))
        b = b.swapaxes(-1, -2)
    problem, (_, matrix, _, *described) = describe(out, a, b, part, transposed)
    wide, along_k = problem.a_vectors and starts_at_vector(matrix.array), problem.layout["a_along_k"]
    kernel = _kernels[FEWEST if problem.N <= FEWEST else MOST, along_k, wide]
    grid = (problem.batches * blocks(problem.M, ROWS), problem.parts)
    arguments = (out, matrix, strided(vectors), *described, bias, transposed)
    kernel.launch(grid, _threads(problem, a.itemsize), arguments)


def _in_chunks(vectors: Any) -> tuple[Any, Any]:
    """``vectors`` (..., number, K), if each is a row of whole chunks of 16 bytes, or a copy in such rows; and
    the array whose first elements these are, with the zeros behind each row."""
    number, K = vectors.shape[-2:]
    distance = (number - 1) * vectors.strides[-2]  # from the first to the last
    steps = [step for size, step in zip(vectors.shape[:-1], vectors.strides[:-1], strict=True) if size > 1]
    in_chunks = not any(step % VECTOR_BYTES for step in (K * vectors.itemsize, *steps))
    in_chunks = in_chunks and 0 <= distance < FARTHEST * VECTOR_BYTES
    if in_chunks and vectors.strides[-1] == vectors.itemsize and starts_at_vector(vectors):
        return vectors, vectors
    padded = padded_once(vectors)
    return padded[..., :K], padded


@lru_cache(maxsize=1024)
def _threads(problem: Product, itemsize: int) -> int:
    """Whole warps: each has AT_ONCE steps, if the largest block is enough for that."""
    steps = blocks(min(problem.K, problem.shape["part"]) * itemsize, STEP_BYTES)
    most = WARPS if itemsize == 2 else WARPS_OF_FLOATS
    return max(min(blocks(steps, AT_ONCE), most), 1) * WARP


@lru_cache(maxsize=1024)
def plan(batches: int, M: int, N: int, steps: int) -> Plan:
    """The quickest way to products of so many ``steps`` of K, by its sizes alone.

    Equal sizes get equal bits on any card.
    """

    def time_of(_: None, count: int, parts: int) -> float:
        busiest = blocks(count, MULTIPROCESSORS) * ROWS * STEP_BYTES * blocks(steps, parts) / RATE_OF_BLOCK
        moved = batches * M * (steps * STEP_BYTES + 4 * N)
        return LAUNCH + max(busiest if count < MULTIPROCESSORS else 0, moved / RATE)

    return quickest({None: batches * blocks(M, ROWS)}, batches * M * N, max(steps // PART_STEPS, 1), time_of)
