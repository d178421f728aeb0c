"""Launches ``loss.cu``: sums and means of losses, on a card or on the simulator.

All arrays are C-contiguous, and all float32 or all float64, but for targets that are class numbers, int64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import elementwise, workspace
from .reduce import ENOUGH_PARTS, PART, THREADS, part_of, vectorized

MAX_THREADS = 512  # as in rows.cuh
WARP = 32

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_sums = {
    "l1_loss": CudaKernel(_source, "loss_sum<T, ABSOLUTE>"),
    "mse_loss": CudaKernel(_source, "loss_sum<T, SQUARED>"),
    "binary_cross_entropy_with_logits": CudaKernel(_source, "loss_sum<T, LOGISTIC>"),
}
_class_mean = CudaKernel(_source, "class_mean<T>")


def total(out: Any, x: Any, target: Any, loss: str, divisor: float) -> None:
    """The sum of a loss over all elements, divided: one launch, or two where there are many.

    Args:
        out: of one element; ``x`` and ``target``, None for zeros, of any shape, one that is not empty.
        loss: ``"l1_loss"``, ``"mse_loss"`` or ``"binary_cross_entropy_with_logits"``.
    """
    length = part_of(x.size, ENOUGH_PARTS, PART)
    parts = blocks(x.size, length)
    sums = out if parts == 1 else workspace(x, (1, parts))
    _sums[loss].launch(parts, THREADS, (sums, x, target, x.size, length, divisor))
    if parts > 1:
        vectorized(out.reshape(1), sums)


def gradient(out: Any, g: Any, x: Any, target: Any, loss: str, scale: float) -> None:
    """g times ``scale`` times the slope of each element's loss; ``g`` has one element."""
    elementwise.LOSS_GRADS[loss](out, g.reshape(()), x, target, scale)


def class_mean(out: Any, values: Any, target: Any, ignore_index: int) -> None:
    """Every element of ``out`` becomes the sum of ``values``, over the number of targets that count.

    ``target``: (rows,), or None for the sum alone.
    """
    rows = 0 if target is None else target.size
    most = max(values.size, rows, out.size)
    threads = min(blocks(most, WARP) * WARP, MAX_THREADS)
    _class_mean.launch(1, threads, (out, values, target, values.size, rows, out.size, ignore_index))
