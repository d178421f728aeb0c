"""Launches ``batch_norm_registers.cu``: batch norm of rows of features and its gradient, in one launch each.

The functions, their arguments and results are those of :mod:`.batch_norm`, which computes what does not fit:
areas of more than one element, and more samples than a block holds.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import batch_norm
from .matmul import MULTIPROCESSORS
from .vector import VECTOR_BYTES, is_wide

WARP = 32
THREADS = 256  # in a block, as in planes.cuh
HELD_SAMPLES = 8  # as in batch_norm_registers.cu
LINES = (128, 64, 32)  # bytes of a sample that a block reads: whole lines of memory, or no less than sectors

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_forward, _backward = (
    {wide: CudaKernel(_source, f"{kernel}_registers<C, T, {wide}>") for wide in (False, True)}
    for kernel in ("batch_norm", "batch_norm_grad")
)


def takes(shape: tuple[int, ...], itemsize: int, arrays: int) -> bool:
    """Whether blocks hold the columns of so many arrays of ``shape`` (samples, channels, ...)."""
    samples, channels, *plane = shape
    wide = channels * itemsize % VECTOR_BYTES == 0
    return prod(plane) == 1 and _across(samples, channels, itemsize, arrays, wide) is not None


def batch_norm_registers(
    outs: tuple, x: Any, weight: Any, bias: Any, eps: float, running: Any = None
) -> None:
    """A block keeps neighbouring columns of all samples in registers: one launch, and x is read once."""
    y, mean, rstd = outs
    samples, channels, area = batch_norm.sizes_of(y, x, mean, rstd)
    wide = is_wide(channels, x, y)
    across = _across(samples, channels, x.itemsize, 1, wide) if area == 1 else None
    if across is None:
        batch_norm.batch_norm_split(outs, x, weight, bias, eps, running)
        return
    arguments = (y, mean, rstd, x, weight, bias, samples, channels, eps)
    _launch(_forward, wide, across, x, (*arguments, *batch_norm.followed(running, mean)))


def batch_norm_grad_registers(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """A block keeps neighbouring columns of both arrays in registers: one launch, and they are read once."""
    dx = outs[0]
    samples, channels, area = batch_norm.sizes_of(dx, x, mean, rstd)
    wide = is_wide(channels, x, grad, dx)
    across = _across(samples, channels, x.itemsize, 2, wide) if area == 1 else None
    if across is None:
        batch_norm.batch_norm_grad_split(outs, grad, x, mean, rstd, weight)
        return
    _launch(_backward, wide, across, x, (*outs, grad, x, mean, rstd, weight, samples, channels))


def _launch(kernels: dict[bool, CudaKernel], wide: bool, across: int, x: Any, arguments: tuple) -> None:
    columns = across * _width(x.itemsize, wide)
    kernels[wide].launch(blocks(x.shape[1], columns), (across, THREADS // across), arguments)


@lru_cache(maxsize=1024)  # as in batch_norm.py
def _across(samples: int, channels: int, itemsize: int, arrays: int, wide: bool) -> int | None:
    """The threads side by side of a block: fewer where blocks are, or hold more samples; None if too many."""
    for line in LINES:
        width = _width(itemsize, wide)
        across = min(line // (itemsize * width), WARP)
        fits = 0 < samples <= THREADS // across * HELD_SAMPLES // arrays
        if fits and (line == LINES[-1] or blocks(channels, across * width) >= MULTIPROCESSORS):
            return across
    return None


def _width(itemsize: int, wide: bool) -> int:
    return VECTOR_BYTES // itemsize if wide else 1
