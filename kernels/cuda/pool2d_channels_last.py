"""Launches ``pool2d_channels_last.cu``: pooling and its gradients of images that lie channels last.

Arrays and options are those of :mod:`.pool2d`, but all lie as :mod:`minigrad.kernels.channels_last` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..channels_last import nhwc
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import reduce
from .pool2d import THREADS, adaptive_sizes, check_taps, divisor_fields, is_one_window, shape_fields
from .vector import VECTOR_BYTES, is_wide

WARP = 32
ROWS = 4  # of a column, that a thread makes in the gradients of windows
ENOUGH_BLOCKS = 4096  # some 4 waves of blocks on a card of 132 multiprocessors
MAX_IMAGES = 65535  # of a launch: the most that a grid has along z

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _widths(kernel: str, types: str = "T") -> dict[bool, CudaKernel]:
    return {wide: CudaKernel(_source, f"{kernel}<{types}, {wide}>") for wide in (False, True)}


_max_pool2d = _widths("max_pool2d_last", "T, Tap")
_max_pool2d_input_grad = _widths("max_pool2d_input_grad_last", "T, Tap")
_avg_pool2d = _widths("avg_pool2d_last")
_avg_pool2d_input_grad = _widths("avg_pool2d_input_grad_last")
_adaptive_avg_pool2d = _widths("adaptive_avg_pool2d_last")
_adaptive_avg_pool2d_input_grad = _widths("adaptive_avg_pool2d_input_grad_last")


def max_pool2d(out: Any, taps: Any, x: Any, *options: int) -> None:
    """A thread for 16 bytes of channels of a window: they have one window, and their lines are used whole."""
    check_taps(taps, out, *options[:2])
    _launch(_max_pool2d, (out, taps, x), shape_fields(x, out, *options))


def max_pool2d_input_grad(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """A thread for 16 bytes of channels of a pixel, which adds the gradients of the windows that it won."""
    check_taps(taps, grad_output, *options[:2])
    sizes = shape_fields(out, grad_output, *options)
    _launch(_max_pool2d_input_grad, (out, grad_output, taps), sizes, rows=ROWS)


def avg_pool2d(out: Any, x: Any, *options: int) -> None:
    """A thread for 16 bytes of channels of a window; the last two options are those of the divisor."""
    *window, _, divisor = options
    if is_one_window(x.shape, out.shape, *window):
        return _mean_of_planes(out, x, divisor)
    _launch(_avg_pool2d, (out, x), shape_fields(x, out, *window), divisor_fields(x, out, *options))


def avg_pool2d_input_grad(out: Any, grad_output: Any, *options: int) -> None:
    """A thread for 16 bytes of channels of a pixel, which adds its share of the windows that cover it."""
    *window, _, _ = options
    fields = shape_fields(out, grad_output, *window), divisor_fields(out, grad_output, *options)
    _launch(_avg_pool2d_input_grad, (out, grad_output), *fields, rows=ROWS)


def adaptive_avg_pool2d(out: Any, x: Any) -> None:
    """A thread for 16 bytes of channels of a window; of one window for a plane, sums of columns."""
    if is_one_window(x.shape, out.shape):
        return _mean_of_planes(out, x)
    _launch(_adaptive_avg_pool2d, (out, x), adaptive_sizes(x, out))


def adaptive_avg_pool2d_input_grad(out: Any, grad_output: Any) -> None:
    """A thread for 16 bytes of channels of a pixel, which adds its share of the windows that cover it."""
    _launch(_adaptive_avg_pool2d_input_grad, (out, grad_output), adaptive_sizes(out, grad_output))


def _mean_of_planes(out: Any, x: Any, divisor: int | None = None) -> None:
    N, C, H, W = x.shape
    reduce.columns(nhwc(out).reshape(N, C), nhwc(x).reshape(N, H * W, C), "sum", divisor or H * W)


def _launch(kernels: dict[bool, CudaKernel], arrays: tuple, *rest: Any, rows: int | None = None) -> None:
    """Kernels that take ``rows`` make as many of a column by a thread, where that leaves enough blocks."""
    images, channels, height, width = arrays[0].shape
    for first in range(0, images, MAX_IMAGES):
        some = [x[first : first + MAX_IMAGES] for x in arrays] if images > MAX_IMAGES else arrays
        wide = is_wide(channels, *some)
        row = width * channels // (VECTOR_BYTES // arrays[0].itemsize if wide else 1)
        parts = blocks(row, THREADS)
        threads = blocks(blocks(row, parts), WARP) * WARP if parts else WARP
        arguments, lines = (*map(nhwc, some), channels, *rest), height
        if rows:
            enough = blocks(height, rows) * parts * len(some[0]) >= ENOUGH_BLOCKS
            lines = blocks(height, rows) if enough else height
            arguments += (rows if enough else 1,)
        kernels[wide].launch((lines, parts, len(some[0])), threads, arguments)
