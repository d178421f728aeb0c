"""Launches ``loss.cu``: losses of elements, their sums and gradients, on a card or on the simulator.

All arrays are C-contiguous, and all float32 or all float64, but for targets that are class numbers, int64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .elementwise import THREADS as ELEMENT_THREADS
from .reduce import THREADS, row_parts, vectorized
from .vector import VECTOR_BYTES

MAX_THREADS = 512  # as in rows.cuh
WARP = 32

_source = CudaSource(Path(__file__).with_suffix(".cu"))
LOSSES = {
    "l1_loss": "ABSOLUTE",
    "mse_loss": "SQUARED",
    "huber_loss": "HUBER",
    "binary_cross_entropy": "PROBABILITY",
    "binary_cross_entropy_with_logits": "LOGISTIC",
    "kl_div": "DIVERGENCE",
    "kl_div_of_logs": "LOG_DIVERGENCE",
    "weighted_logits_loss": "WEIGHTED",
}
"""What loss.cu calls the losses of elements, by their ops' names."""

_sums = {loss: CudaKernel(_source, f"loss_sum<T, {name}>") for loss, name in LOSSES.items()}
_each = {loss: CudaKernel(_source, f"loss_each<T, {name}>") for loss, name in LOSSES.items()}
_grads = {loss: CudaKernel(_source, f"loss_grad<T, {name}>") for loss, name in LOSSES.items()}
_class_mean = CudaKernel(_source, "class_mean<T>")


def total(
    out: Any,
    x: Any,
    target: Any,
    loss: str,
    divisor: float,
    scale: float = 1.0,
    delta: float = 1.0,
    weight: Any = None,
) -> None:
    """The sum of a loss over all elements, divided and scaled: one launch, or two where there are many.

    Args:
        out: of one element; ``x`` and ``target``, None for zeros, of any shape, one that is not empty.
        loss: one of LOSSES; ``delta`` is the Huber loss's.
        weight: (period,), the weighted loss's, which repeats along the flat ``x``.
    """
    length, parts = row_parts(1, x.size)
    sums = out if parts == 1 else workspace(x, parts)
    sizes = x.size, _period(weight), length
    _sums[loss].launch(parts, THREADS, (sums, x, target, weight, *sizes, divisor, scale, delta))
    if parts > 1:
        vectorized(out, sums)


def each(
    out: Any, x: Any, target: Any, loss: str, scale: float, delta: float = 1.0, weight: Any = None
) -> None:
    """``scale`` times the loss of each element."""
    _launch_elements(_each[loss], out, x, target, weight, x.size, _period(weight), scale, delta)


def gradient(
    out: Any, g: Any, x: Any, target: Any, loss: str, scale: float, delta: float = 1.0, weight: Any = None
) -> None:
    """g times ``scale`` times the slope of each element's loss; ``g`` has one element, or one for each."""
    arguments = (g, x, target, weight, x.size, _period(weight), scale, delta, g.size != 1)
    _launch_elements(_grads[loss], out, *arguments)


def _period(weight: Any) -> int:
    return 1 if weight is None else weight.size


def _launch_elements(kernel: CudaKernel, out: Any, *arguments: Any) -> None:
    grid = blocks(out.size, ELEMENT_THREADS * (VECTOR_BYTES // out.itemsize))
    kernel.launch(grid, ELEMENT_THREADS, (out, *arguments))


def class_mean(out: Any, values: Any, target: Any, weight: Any, ignore_index: int) -> None:
    """Every element of ``out`` becomes the sum of ``values``, over the weights of the targets that count.

    ``target``: (rows,), or None for the sum alone; ``weight``: (classes,), or None for ones.
    """
    rows = 0 if target is None else target.size
    most = max(values.size, rows, out.size)
    threads = min(blocks(most, WARP) * WARP, MAX_THREADS)
    arguments = (out, values, target, weight, values.size, rows, out.size, ignore_index)
    _class_mean.launch(1, threads, arguments)
