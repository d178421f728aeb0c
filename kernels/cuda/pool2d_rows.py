"""Launches ``pool2d_rows.cu``: gradients of pooling for its input, several pixels by one thread.

Arrays and options are as in ``pool2d.py``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .pool2d import THREADS, check_taps, divisor_fields, shape_fields
from .vector import starts_at_vector

PIXELS = 4  # as in pool2d_rows.cu
ROWS = 4  # that a thread makes, where that leaves enough threads
ENOUGH_THREADS = 132 * 2048  # as many as an H200 runs at a time

_source = CudaSource(Path(__file__).with_suffix(".cu"))
# By whether rows are whole vectors.
_max_pool2d_input_grad = {
    wide: CudaKernel(_source, f"max_pool2d_input_grad_rows<T, Tap, {wide}>") for wide in (False, True)
}
_avg_pool2d_input_grad = {
    wide: CudaKernel(_source, f"avg_pool2d_input_grad_rows<T, {wide}>") for wide in (False, True)
}


def max_pool2d_input_grad_rows(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For any windows: each is looked at once for four pixels of a row; its tap tells which of them won."""
    shape = shape_fields(out, grad_output, *options)
    check_taps(taps, grad_output, *options[:2])
    _launch(_max_pool2d_input_grad, out, grad_output, taps, shape)


def avg_pool2d_input_grad_rows(out: Any, grad_output: Any, *options: Any) -> None:
    """For any windows: each is looked at once for four pixels of a row; one divisor, if all count alike."""
    *window, _, _ = options
    shape = shape_fields(out, grad_output, *window)
    divisor = divisor_fields(out, grad_output, *options)
    _launch(_avg_pool2d_input_grad, out, grad_output, shape, divisor)


def _launch(kernels: dict[bool, CudaKernel], out: Any, *arguments: Any) -> None:
    planes, (H, W) = math.prod(out.shape[:2]), out.shape[2:]
    columns = planes * blocks(W, PIXELS)
    rows = ROWS if columns * blocks(H, ROWS) >= ENOUGH_THREADS else 1
    wide = W % PIXELS == 0 and starts_at_vector(out)
    kernels[wide].launch(blocks(columns * blocks(H, rows), THREADS), THREADS, (out, *arguments, rows))
