"""Launches ``pool2d.cu``: pooling and its gradients, on a card or on the simulator.

Arrays are C-contiguous: inputs and their gradients (N, C, H, W), outputs and theirs (N, C, OH, OW), all of
one floating dtype; taps (N, C, OH, OW) are uint8 (windows of at most 256 elements) or int32. Windows may
hang over the far border of the input, as with ``ceil_mode``. ``options`` are ordered as OPTIONS; of average
pooling count_include_pad and divisor_override stand in place of the dilation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import reduce
from .vector import VECTOR_BYTES

OPTIONS = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
THREADS = 256  # in a block

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_max_pool2d = CudaKernel(_source, "max_pool2d<T, Tap>")
_max_pool2d_input_grad = CudaKernel(_source, "max_pool2d_input_grad<T, Tap>")
_max_pool2d_gather = CudaKernel(_source, "max_pool2d_gather<T, Tap>")
_avg_pool2d = CudaKernel(_source, "avg_pool2d<T>")
_avg_pool2d_input_grad = CudaKernel(_source, "avg_pool2d_input_grad<T>")
_max_pool2d_input_grad_scatter = CudaKernel(_source, "max_pool2d_input_grad_scatter<T, Tap>")
_adaptive_avg_pool2d = CudaKernel(_source, "adaptive_avg_pool2d<T>")
_adaptive_avg_pool2d_input_grad = CudaKernel(_source, "adaptive_avg_pool2d_input_grad<T>")
_one_window_input_grad = CudaKernel(_source, "one_window_input_grad<T>")


def max_pool2d(out: Any, taps: Any, x: Any, *options: int) -> None:
    """One thread for each window: its largest element into ``out``, and which tap that was into ``taps``."""
    shape = shape_fields(x, out, *options)
    check_taps(taps, out, *options[:2])
    _launch(_max_pool2d, out, taps, x, shape)


def max_pool2d_input_grad(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """One thread for each element of ``out``, which adds the gradients of the windows that it won."""
    shape = shape_fields(out, grad_output, *options)
    check_taps(taps, grad_output, *options[:2])
    _launch(_max_pool2d_input_grad, out, grad_output, taps, shape)


def max_pool2d_gather(out: Any, x: Any, taps: Any, *options: int) -> None:
    """One thread for each window: ``x`` at its winning tap, the adjoint of ``max_pool2d_input_grad``."""
    shape = shape_fields(x, out, *options)
    check_taps(taps, out, *options[:2])
    _launch(_max_pool2d_gather, out, x, taps, shape)


def avg_pool2d(out: Any, x: Any, *options: Any) -> None:
    """One thread for each window: the sum of its elements, over the divisor that PyTorch defines.

    That is ``divisor_override``, the last option, if it is neither None nor 0; else the window's size, in
    which the padding counts if ``count_include_pad``, the one before it, is true, and what hangs over the
    padding's far border never does.
    """
    *window, _, _ = options
    _launch(_avg_pool2d, out, x, shape_fields(x, out, *window), divisor_fields(x, out, *options))


def avg_pool2d_input_grad(out: Any, grad_output: Any, *options: Any) -> None:
    """One thread for each element of ``out``, which adds its share of the windows that cover it."""
    *window, _, _ = options
    shape = shape_fields(out, grad_output, *window)
    _launch(_avg_pool2d_input_grad, out, grad_output, shape, divisor_fields(out, grad_output, *options))


def max_pool2d_input_grad_scatter(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For windows that do not overlap: each writes its gradient to its winner, and zeros around it."""
    if not (grad_output.size and do_not_overlap(*options)):
        return max_pool2d_input_grad(out, grad_output, taps, *options)
    check_taps(taps, grad_output, *options[:2])
    arguments = (out, grad_output, taps, shape_fields(out, grad_output, *options))
    _max_pool2d_input_grad_scatter.launch(blocks(grad_output.size, THREADS), THREADS, arguments)


def adaptive_avg_pool2d(out: Any, x: Any) -> None:
    """One thread for each window; window i of n covers rows floor(i H / n) to ceil((i + 1) H / n)."""
    _launch(_adaptive_avg_pool2d, out, x, adaptive_sizes(x, out))


def adaptive_avg_pool2d_input_grad(out: Any, grad_output: Any) -> None:
    """One thread for each element of ``out``, which adds its share of the windows that cover it."""
    _launch(_adaptive_avg_pool2d_input_grad, out, grad_output, adaptive_sizes(out, grad_output))


def adaptive_avg_pool2d_planes(out: Any, x: Any) -> None:
    """One window for a plane: a mean of a row, which few or many threads share."""
    if not is_one_window(x.shape, out.shape):
        return adaptive_avg_pool2d(out, x)
    reduce.split(out, x, "sum", math.prod(x.shape[2:]))


def adaptive_avg_pool2d_input_grad_planes(out: Any, grad_output: Any) -> None:
    """One window for a plane: a number for all of it, stored in vectors."""
    if not is_one_window(out.shape, grad_output.shape):
        return adaptive_avg_pool2d_input_grad(out, grad_output)
    _launch_one_window_grad(out, grad_output, math.prod(out.shape[2:]))


def avg_pool2d_planes(out: Any, x: Any, *options: Any) -> None:
    """One window for a plane: a mean of a row, which few or many threads share."""
    *window, _, divisor = options
    if not is_one_window(x.shape, out.shape, *window):
        return avg_pool2d(out, x, *options)
    reduce.split(out, x, "sum", divisor or math.prod(x.shape[2:]))


def avg_pool2d_input_grad_planes(out: Any, grad_output: Any, *options: Any) -> None:
    """One window for a plane: a number for all of it, stored in vectors."""
    *window, _, divisor = options
    if not is_one_window(out.shape, grad_output.shape, *window):
        return avg_pool2d_input_grad(out, grad_output, *options)
    _launch_one_window_grad(out, grad_output, divisor or math.prod(out.shape[2:]))


def is_one_window(large: tuple, small: tuple, *options: int) -> bool:
    """Whether a pooling of ``large`` to ``small`` has one window for a plane, which is all of it.

    ``options`` are ordered as OPTIONS; without them it is an adaptive pooling.
    """
    whole = not options or (tuple(options[:2]) == tuple(large[2:]) and not any(options[4:6]))
    return whole and small == (*large[:2], 1, 1) and 0 < math.prod(large[2:]) < 1 << 31


def _launch_one_window_grad(out: Any, grad_output: Any, divisor: int) -> None:
    threads = blocks(out.size, VECTOR_BYTES // out.itemsize)
    arguments = (out, grad_output, out.size, math.prod(out.shape[2:]), divisor)
    _one_window_input_grad.launch(blocks(threads, THREADS), THREADS, arguments)


def _launch(kernel: CudaKernel, out: Any, *arguments: Any) -> None:
    kernel.launch(blocks(out.size, THREADS), THREADS, (out, *arguments))


def do_not_overlap(*options: int) -> bool:
    """Whether no element is in two windows; ``options`` are ordered as OPTIONS."""
    kernel, stride, dilation = options[:2], options[2:4], options[6:]
    return all((k - 1) * d < s for k, s, d in zip(kernel, stride, dilation, strict=True))


def adaptive_sizes(large: Any, small: Any) -> unchanging:
    """The sizes of a pooling from ``large`` (N, C, H, W) to ``small`` (N, C, OH, OW)."""
    return _sizes(large.shape, small.shape)


@lru_cache(maxsize=1024)  # the same few poolings come in every step of a training
def _sizes(large: tuple, small: tuple) -> unchanging:
    if len(large) != 4 or len(small) != 4 or large[:2] != small[:2]:
        raise ValueError(f"pooling kernel: {large} and {small} are not (N, C, H, W), (N, C, OH, OW)")
    if 0 in large and 0 not in small:
        raise ValueError(f"pooling kernel: cannot pool empty planes (shape {large}) to {small}")
    planes, (H, W), (OH, OW) = math.prod(large[:2]), large[2:], small[2:]
    return unchanging(planes=planes, H=H, W=W, OH=OH, OW=OW)


def shape_fields(large: Any, small: Any, *options: int) -> unchanging:
    """The fields of struct Pool2dShape, with ``options`` ordered as OPTIONS; ValueError if they cannot be."""
    return _shape_fields(large.shape, small.shape, options)


@lru_cache(maxsize=1024)
def _shape_fields(large: tuple, small: tuple, options: tuple[int, ...]) -> unchanging:
    fields = dict(zip(OPTIONS, (*options, 1, 1)[: len(OPTIONS)], strict=True))  # no dilation is dilation 1
    if min(options[:4] + options[6:]) < 1 or min(options[4:6]) < 0:
        raise ValueError("pooling kernel: kernel, stride and dilation must be at least 1, and padding 0")
    return unchanging(_sizes(large, small) | fields)


def check_taps(taps: Any, like: Any, kernel_h: int, kernel_w: int) -> None:
    if taps.dtype not in (np.uint8, np.int32):
        raise TypeError(f"pooling kernel: taps must be uint8 or int32, got {taps.dtype}")
    if taps.shape != like.shape:
        raise ValueError(f"pooling kernel: taps have shape {taps.shape}, expected {like.shape}")
    if taps.dtype == np.uint8 and kernel_h * kernel_w > 256:
        raise ValueError(f"pooling kernel: taps of a {kernel_h} x {kernel_w} window do not fit uint8")


def divisor_fields(large: Any, small: Any, *options: Any) -> unchanging:
    """The fields of struct AvgDivisor: where all windows count alike, what they count is the divisor."""
    return _divisor_fields(large.shape[2:], small.shape[2:], options)


@lru_cache(maxsize=1024)
def _divisor_fields(size: tuple, outputs: tuple, options: tuple) -> unchanging:
    *window, include_pad, divisor = options
    kernel, stride, pad = window[:2], window[2:4], window[4:]
    alike = all(
        (include_pad or p == 0) and (o - 1) * s + k <= n + 2 * p
        for n, o, k, s, p in zip(size, outputs, kernel, stride, pad, strict=True)
    )
    if alike and math.prod(kernel) < 1 << 31:
        divisor = divisor or math.prod(kernel)
    return unchanging(divisor=divisor or 0, count_include_pad=bool(include_pad))
