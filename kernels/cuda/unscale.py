"""Launches ``unscale.cu``: gradients divided by the scale of their loss, on a card or on the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .vector import VECTOR_BYTES

THREADS = 256  # as in unscale.cu

_kernel = CudaKernel(CudaSource(Path(__file__).with_suffix(".cu")), "unscale<T>")


def unscale(grad: Any, inverse: float, found: Any) -> None:
    """``grad``, float32 or float64, times ``inverse``; ``found[0]`` (int32) becomes 1 if it is not finite."""
    per_block = THREADS * (VECTOR_BYTES // grad.itemsize)
    _kernel.launch(blocks(grad.size, per_block), THREADS, (grad, grad.size, inverse, found))
