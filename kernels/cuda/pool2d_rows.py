"""Launches ``pool2d_rows.cu``: gradients of pooling for its input, several pixels by one thread.

Arrays and options are as in ``pool2d.py``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .pool2d import THREADS, check_taps, divisor_fields, shape_fields
from .vector import starts_at_vector

PIXELS, SQUARE = 4, 4  # as in pool2d_rows.cu
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
# For 3 x 3 windows, by the stride and the padding.
THREES = [(stride, pad) for stride in (1, 2) for pad in (0, 1)]
_max_threes = {
    (stride, pad): CudaKernel(_source, f"max_pool2d_input_grad_threes<T, Tap, {stride}, {pad}>")
    for stride, pad in THREES
}
_avg_threes = {
    (stride, pad): CudaKernel(_source, f"avg_pool2d_input_grad_threes<T, {stride}, {pad}>")
    for stride, pad in THREES
}


def max_pool2d_input_grad_rows(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For any windows: each is looked at once for four pixels of a row; its tap tells which of them won."""
    shape = shape_fields(out, grad_output, *options)
    check_taps(taps, grad_output, *options[:2])
    if in_threes(*options):
        _launch_squares(_max_threes, options, out, grad_output, taps, shape)
    else:
        _launch(_max_pool2d_input_grad, out, grad_output, taps, shape)


def avg_pool2d_input_grad_rows(out: Any, grad_output: Any, *options: Any) -> None:
    """For any windows: each is looked at once for four pixels of a row; one divisor, if all count alike."""
    *window, _, _ = options
    shape = shape_fields(out, grad_output, *window)
    divisor = divisor_fields(out, grad_output, *options)
    if in_threes(*window):
        _launch_squares(_avg_threes, window, out, grad_output, shape, divisor)
    else:
        _launch(_avg_pool2d_input_grad, out, grad_output, shape, divisor)


@lru_cache(maxsize=1024)  # the same few poolings come in every step of a training
def in_threes(*options: int) -> bool:
    """Whether windows are 3 x 3 ones of the kernels for these; ``options`` are ordered as OPTIONS."""
    return (*options, 1, 1)[:8] in [(3, 3, n, n, p, p, 1, 1) for n, p in THREES]


def _launch_squares(
    kernels: dict[tuple[int, int], CudaKernel], window: Any, out: Any, *arguments: Any
) -> None:
    planes, (H, W) = math.prod(out.shape[:2]), out.shape[2:]
    squares = planes * blocks(H, SQUARE) * blocks(W, SQUARE)
    kernels[window[2], window[4]].launch(blocks(squares, THREADS), THREADS, (out, *arguments))


def _launch(kernels: dict[bool, CudaKernel], out: Any, *arguments: Any) -> None:
    planes, (H, W) = math.prod(out.shape[:2]), out.shape[2:]
    columns = planes * blocks(W, PIXELS)
    rows = ROWS if columns * blocks(H, ROWS) >= ENOUGH_THREADS else 1
    wide = W % PIXELS == 0 and starts_at_vector(out)
    kernels[wide].launch(blocks(columns * blocks(H, rows), THREADS), THREADS, (out, *arguments, rows))
