"""Launches ``pool2d_vectorized.cu``: pooling of 2x2 windows side by side, and its gradients.

Arrays are as in ``pool2d.py``. What the kernels do not take, the rung below does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .pool2d import (
    THREADS,
    avg_pool2d,
    avg_pool2d_input_grad,
    check_taps,
    max_pool2d,
    max_pool2d_input_grad_scatter,
    shape_fields,
)
from .vector import VECTOR_BYTES, starts_at_vector

SQUARES = (2, 2, 2, 2, 0, 0, 1, 1)  # the options of 2x2 windows side by side
SQUARES_OF_THREAD = 2  # SQUARES in pool2d_vectorized.cu

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_max_pool2d = CudaKernel(_source, "max_pool2d_vectorized<T, Tap>")
_max_pool2d_input_grad = CudaKernel(_source, "max_pool2d_input_grad_vectorized<T, Tap>")
_avg_pool2d = CudaKernel(_source, "avg_pool2d_vectorized<T>")
_avg_pool2d_input_grad = CudaKernel(_source, "avg_pool2d_input_grad_vectorized<T>")


def max_pool2d_vectorized(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For 2x2 windows side by side: loads of 16 bytes, of two rows at a time; neighbours stored as one."""
    if not _takes_vectors(options, x, out, taps):
        return max_pool2d(out, taps, x, *options)
    check_taps(taps, out, *options[:2])
    _launch_vectors(_max_pool2d, out, out, taps, x, shape_fields(x, out, *options))


def max_pool2d_input_grad_vectorized(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For 2x2 windows side by side: stores of 16 bytes, of two rows at a time."""
    if not _takes_vectors(options, out, grad_output, taps, whole=True):
        return max_pool2d_input_grad_scatter(out, grad_output, taps, *options)
    check_taps(taps, grad_output, *options[:2])
    shape = shape_fields(out, grad_output, *options)
    _launch_vectors(_max_pool2d_input_grad, grad_output, out, grad_output, taps, shape)


def avg_pool2d_vectorized(out: Any, x: Any, *options: Any) -> None:
    """For 2x2 windows side by side: loads of 16 bytes, of two rows at a time; neighbours stored as one."""
    *window, _, divisor = options
    if not _takes_vectors(tuple(window), x, out):
        return avg_pool2d(out, x, *options)
    _launch_vectors(_avg_pool2d, out, out, x, shape_fields(x, out, *window), divisor or 4)


def avg_pool2d_input_grad_vectorized(out: Any, grad_output: Any, *options: Any) -> None:
    """For 2x2 windows side by side: stores of 16 bytes, of two rows at a time."""
    *window, _, divisor = options
    if not _takes_vectors(tuple(window), out, grad_output, whole=True):
        return avg_pool2d_input_grad(out, grad_output, *options)
    shape = shape_fields(out, grad_output, *window)
    _launch_vectors(_avg_pool2d_input_grad, grad_output, out, grad_output, shape, divisor or 4)


def _launch_vectors(kernel: CudaKernel, small: Any, *arguments: Any) -> None:
    """``small`` has an element for each window; a thread takes those under some vectors of its dtype."""
    windows = SQUARES_OF_THREAD * (VECTOR_BYTES // (2 * small.itemsize))
    kernel.launch(blocks(small.size, windows * THREADS), THREADS, arguments)


def in_squares(size: tuple, pooled: tuple, options: tuple[int, ...], itemsize: int, whole: bool) -> bool:
    """Whether the vectorized rungs take a pooling of planes of ``size`` to planes of ``pooled``.

    ``whole``: every element must be in a window, so that a gradient that writes the windows writes all.
    """
    (H, W), (OH, OW) = size, pooled
    inside = (2 * OH, 2 * OW) == (H, W) if whole else 2 * OH <= H and 2 * OW == W
    return (*options, 1, 1)[:8] == SQUARES and inside and W * itemsize % VECTOR_BYTES == 0


def _takes_vectors(options: tuple[int, ...], large: Any, small: Any, *taps: Any, whole: bool = False) -> bool:
    size, pooled = large.shape[2:], small.shape[2:]
    return in_squares(size, pooled, options, large.itemsize, whole) and starts_at_vector(large, small, *taps)
