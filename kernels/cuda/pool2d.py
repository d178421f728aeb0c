"""Launches ``pool2d.cu``: pooling and its gradients, on a card or on the simulator.

Arrays are C-contiguous: inputs and their gradients (N, C, H, W), outputs and theirs (N, C, OH, OW), all of
one floating dtype; taps (N, C, OH, OW) are uint8 (windows of at most 256 elements) or int32. Windows may
hang over the far border of the input, as with ``ceil_mode``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .vector import VECTOR_BYTES, starts_at_vector

OPTIONS = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
SQUARES = (2, 2, 2, 2, 0, 0, 1, 1)  # the options of 2x2 windows side by side
THREADS = 256  # in a block
TILE_WINDOWS = 1024  # in a tile, at most
TILE_BYTES = 24 * 1024  # of shared memory, at most: pool2d.cu tells why
BANKS_BYTES = 128  # of shared memory, that are served at a time: 32 banks of 4 bytes
WARP = 32
SQUARES_OF_THREAD = 2  # SQUARES in pool2d.cu
SEGMENT_ROWS = 28  # of windows, that a thread of the rolling rungs walks down

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_max_pool2d = CudaKernel(_source, "max_pool2d<T, Tap>")
_max_pool2d_input_grad = CudaKernel(_source, "max_pool2d_input_grad<T, Tap>")
_max_pool2d_gather = CudaKernel(_source, "max_pool2d_gather<T, Tap>")
_avg_pool2d = CudaKernel(_source, "avg_pool2d<T>")
_avg_pool2d_input_grad = CudaKernel(_source, "avg_pool2d_input_grad<T>")
_max_pool2d_tiled = CudaKernel(_source, "max_pool2d_tiled<T, Tap>")
_avg_pool2d_tiled = CudaKernel(_source, "avg_pool2d_tiled<T>")
_max_pool2d_vectorized = CudaKernel(_source, "max_pool2d_vectorized<T, Tap>")
_max_pool2d_input_grad_scatter = CudaKernel(_source, "max_pool2d_input_grad_scatter<T, Tap>")
_max_pool2d_input_grad_vectorized = CudaKernel(_source, "max_pool2d_input_grad_vectorized<T, Tap>")
_avg_pool2d_vectorized = CudaKernel(_source, "avg_pool2d_vectorized<T>")
_avg_pool2d_input_grad_vectorized = CudaKernel(_source, "avg_pool2d_input_grad_vectorized<T>")
# By the stride.
_max_pool2d_rolling = {n: CudaKernel(_source, f"max_pool2d_rolling<T, Tap, {n}>") for n in (1, 2)}
_avg_pool2d_rolling = {n: CudaKernel(_source, f"avg_pool2d_rolling<T, {n}>") for n in (1, 2)}
_adaptive_avg_pool2d = CudaKernel(_source, "adaptive_avg_pool2d<T>")
_adaptive_avg_pool2d_input_grad = CudaKernel(_source, "adaptive_avg_pool2d_input_grad<T>")


def max_pool2d(
    out: Any,
    taps: Any,
    x: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dil_h: int,
    dil_w: int,
) -> None:
    """One thread for each window: its largest element into ``out``, and which tap that was into ``taps``."""
    shape = _shape(x, out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w)
    _check_taps(taps, out, kernel_h, kernel_w)
    _launch(_max_pool2d, out, taps, x, shape)


def max_pool2d_input_grad(
    out: Any,
    grad_output: Any,
    taps: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dil_h: int,
    dil_w: int,
) -> None:
    """One thread for each element of ``out``, which adds the gradients of the windows that it won."""
    shape = _shape(out, grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w)
    _check_taps(taps, grad_output, kernel_h, kernel_w)
    _launch(_max_pool2d_input_grad, out, grad_output, taps, shape)


def max_pool2d_gather(
    out: Any,
    x: Any,
    taps: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dil_h: int,
    dil_w: int,
) -> None:
    """One thread for each window: ``x`` at its winning tap, the adjoint of ``max_pool2d_input_grad``."""
    shape = _shape(x, out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w)
    _check_taps(taps, out, kernel_h, kernel_w)
    _launch(_max_pool2d_gather, out, x, taps, shape)


def avg_pool2d(
    out: Any,
    x: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """One thread for each window: the sum of its elements, over the divisor that PyTorch defines.

    That is ``divisor_override`` if it is neither None nor 0; else the window's size, in which the padding
    counts if ``count_include_pad`` is true, and what hangs over the padding's far border never does.
    """
    shape = _shape(x, out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)
    _launch(_avg_pool2d, out, x, shape, _divisor(count_include_pad, divisor_override))


def avg_pool2d_input_grad(
    out: Any,
    grad_output: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """One thread for each element of ``out``, which adds its share of the windows that cover it."""
    shape = _shape(out, grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)
    _launch(_avg_pool2d_input_grad, out, grad_output, shape, _divisor(count_include_pad, divisor_override))


def max_pool2d_tiled(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For windows that overlap: a block stages their input in shared memory, and reads it once."""
    shape = _shape(x, out, *options)
    tile = tile_of(out.shape[2:], options, x.itemsize)
    if tile is None:
        return max_pool2d(out, taps, x, *options)
    _check_taps(taps, out, *options[:2])
    _launch_tiles(_max_pool2d_tiled, tile, out, taps, x, shape)


def avg_pool2d_tiled(out: Any, x: Any, *options: Any) -> None:
    """For windows that overlap: a block stages their input in shared memory, and reads it once."""
    *window, include_pad, divisor = options
    shape = _shape(x, out, *window)
    tile = tile_of(out.shape[2:], (*window, 1, 1), x.itemsize)
    if tile is None:
        return avg_pool2d(out, x, *options)
    _launch_tiles(_avg_pool2d_tiled, tile, out, x, shape, _divisor(include_pad, divisor))


def max_pool2d_rolling(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    if not (in_strips(x.shape[2:], out.shape[2:], options, x.itemsize) and starts_at_vector(x, out, taps)):
        return max_pool2d_tiled(out, taps, x, *options)
    _check_taps(taps, out, *options[:2])
    _launch_strips(_max_pool2d_rolling[options[2]], out, taps, x, _shape(x, out, *options))


def avg_pool2d_rolling(out: Any, x: Any, *options: Any) -> None:
    """For 3x3 windows: a thread walks down a strip, and keeps the last rows' results in registers."""
    *window, include_pad, divisor = options
    if not (in_strips(x.shape[2:], out.shape[2:], tuple(window), x.itemsize) and starts_at_vector(x, out)):
        return avg_pool2d_tiled(out, x, *options)
    kernel, shape = _avg_pool2d_rolling[window[2]], _shape(x, out, *window)
    _launch_strips(kernel, out, x, shape, _divisor(include_pad, divisor))


def max_pool2d_vectorized(out: Any, taps: Any, x: Any, *options: int) -> None:
    """For 2x2 windows side by side: loads of 16 bytes, of two rows at a time; neighbours stored as one."""
    if not _takes_vectors(options, x, out, taps):
        return max_pool2d(out, taps, x, *options)
    _check_taps(taps, out, *options[:2])
    _launch_vectors(_max_pool2d_vectorized, out, out, taps, x, _shape(x, out, *options))


def max_pool2d_input_grad_scatter(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For windows that do not overlap: each writes its gradient to its winner, and zeros around it."""
    if not (grad_output.size and do_not_overlap(*options)):
        return max_pool2d_input_grad(out, grad_output, taps, *options)
    _check_taps(taps, grad_output, *options[:2])
    arguments = (out, grad_output, taps, _shape(out, grad_output, *options))
    _max_pool2d_input_grad_scatter.launch(blocks(grad_output.size, THREADS), THREADS, arguments)


def max_pool2d_input_grad_vectorized(out: Any, grad_output: Any, taps: Any, *options: int) -> None:
    """For 2x2 windows side by side: stores of 16 bytes, of two rows at a time."""
    if not _takes_vectors(options, out, grad_output, taps, whole=True):
        return max_pool2d_input_grad_scatter(out, grad_output, taps, *options)
    _check_taps(taps, grad_output, *options[:2])
    shape = _shape(out, grad_output, *options)
    _launch_vectors(_max_pool2d_input_grad_vectorized, grad_output, out, grad_output, taps, shape)


def avg_pool2d_vectorized(out: Any, x: Any, *options: Any) -> None:
    """For 2x2 windows side by side: loads of 16 bytes, of two rows at a time; neighbours stored as one."""
    *window, _, divisor = options
    if not _takes_vectors(tuple(window), x, out):
        return avg_pool2d(out, x, *options)
    _launch_vectors(_avg_pool2d_vectorized, out, out, x, _shape(x, out, *window), divisor or 4)


def avg_pool2d_input_grad_vectorized(out: Any, grad_output: Any, *options: Any) -> None:
    """For 2x2 windows side by side: stores of 16 bytes, of two rows at a time."""
    *window, _, divisor = options
    if not _takes_vectors(tuple(window), out, grad_output, whole=True):
        return avg_pool2d_input_grad(out, grad_output, *options)
    shape = _shape(out, grad_output, *window)
    _launch_vectors(_avg_pool2d_input_grad_vectorized, grad_output, out, grad_output, shape, divisor or 4)


def adaptive_avg_pool2d(out: Any, x: Any) -> None:
    """One thread for each window; window i of n covers rows floor(i H / n) to ceil((i + 1) H / n)."""
    _launch(_adaptive_avg_pool2d, out, x, _sizes(x, out))


def adaptive_avg_pool2d_input_grad(out: Any, grad_output: Any) -> None:
    """One thread for each element of ``out``, which adds its share of the windows that cover it."""
    _launch(_adaptive_avg_pool2d_input_grad, out, grad_output, _sizes(out, grad_output))


def _launch(kernel: CudaKernel, out: Any, *arguments: Any) -> None:
    kernel.launch(blocks(out.size, THREADS), THREADS, (out, *arguments))


def _launch_vectors(kernel: CudaKernel, small: Any, *arguments: Any) -> None:
    """``small`` has an element for each window; a thread takes those under some vectors of its dtype."""
    windows = SQUARES_OF_THREAD * (VECTOR_BYTES // (2 * small.itemsize))
    kernel.launch(blocks(small.size, windows * THREADS), THREADS, arguments)


def _launch_strips(kernel: CudaKernel, out: Any, *arguments: Any) -> None:
    planes, (OH, OW) = math.prod(out.shape[:2]), out.shape[2:]
    rows = blocks(OH, blocks(OH, SEGMENT_ROWS))  # segments of like height
    threads = planes * blocks(OH, rows) * (OW * out.itemsize // VECTOR_BYTES)
    kernel.launch(blocks(threads, THREADS), THREADS, (out, *arguments, rows))


def _launch_tiles(kernel: CudaKernel, tile: dict[str, int], out: Any, *arguments: Any) -> None:
    planes, (OH, OW) = math.prod(out.shape[:2]), out.shape[2:]
    columns = tile["columns"]
    block = (columns, min(THREADS // columns, tile["rows"]))
    grid = planes * blocks(OH, tile["rows"]) * blocks(OW, columns)
    shared_bytes = tile["input_rows"] * tile["pitch"] * out.itemsize
    kernel.launch(grid, block, (out, *arguments, tile), shared_bytes)


@lru_cache(maxsize=1024)  # the same few poolings come in every step of a training
def tile_of(pooled: tuple[int, int], options: tuple[int, ...], itemsize: int) -> dict[str, int] | None:
    """The fields of struct PoolTile, for planes of ``pooled`` windows; None if no tile fits."""
    (OH, OW), (kernel_h, kernel_w, stride_h, stride_w, _, _, dilation_h, dilation_w) = pooled, options
    columns = next((n for n in (8, 16) if n >= OW), WARP)
    reach_h, reach_w = (kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1
    input_columns = blocks((columns - 1) * stride_w + reach_w, columns) * columns
    phase, pitch = _without_conflicts(columns, input_columns, stride_h, stride_w, BANKS_BYTES // itemsize)
    fitting = (TILE_BYTES // (pitch * itemsize) - reach_h) // stride_h + 1
    most = min(fitting, TILE_WINDOWS // columns, OH)
    if most < 1:
        return None
    rows = blocks(OH, blocks(OH, most))  # tiles of like height
    return {
        "rows": rows,
        "columns": columns,
        "input_rows": (rows - 1) * stride_h + reach_h,
        "input_columns": input_columns,
        "phase": phase,
        "pitch": pitch,
    }


def _without_conflicts(
    columns: int, input_columns: int, stride_h: int, stride_w: int, lanes: int
) -> tuple[int, int]:
    """The least phase and pitch of struct PoolTile by which ``lanes`` threads fall into banks of their own.

    As many threads as the banks serve at a time stand in rows of ``columns`` windows. A store of theirs goes
    to all phases, which must be a share of the banks apart; where they take several rows, a load reads rows
    that lie ``stride_h * pitch`` apart, and that must follow each other in the banks.
    """
    phase = blocks(input_columns, stride_w)
    if stride_w > 1:
        apart = pow(stride_w, -1, lanes) if stride_w % 2 else blocks(lanes, stride_w)
        phase += (apart - phase) % lanes
    pitch = phase * stride_w
    if columns < lanes:
        fitting = (p for p in range(pitch, pitch + lanes) if (stride_h * p - columns) % lanes == 0)
        pitch = next(fitting, pitch)
    return phase, pitch


def worth_tiles(pooled: tuple[int, int], options: tuple[int, ...], itemsize: int) -> bool:
    """Whether the tiled rungs gain by a pooling to planes of ``pooled`` windows: these overlap, and fill a
    warp."""
    kernel, stride, dilation = options[:2], options[2:4], options[6:]
    axes = zip(pooled, kernel, stride, dilation, strict=True)
    overlap = any(n > 1 and (k - 1) * d >= s for n, k, s, d in axes)
    return overlap and math.prod(pooled) >= WARP and tile_of(pooled, options, itemsize) is not None


def in_strips(size: tuple, pooled: tuple, options: tuple[int, ...], itemsize: int) -> bool:
    """Whether the rolling rungs take a pooling of planes of ``size`` to planes of ``pooled``.

    They do with 3x3 windows, all of which begin above the input's end, and rows of whole vectors.
    """
    (H, W), (OH, OW), stride = size, pooled, options[2]
    if stride not in (1, 2) or (*options, 1, 1)[:8] != (3, 3, stride, stride, 1, 1, 1, 1):
        return False
    return 0 < OH <= (H + stride) // stride and OW * stride == W and OW * itemsize % VECTOR_BYTES == 0


def do_not_overlap(*options: int) -> bool:
    """Whether no element is in two windows; ``options`` are ordered as OPTIONS."""
    kernel, stride, dilation = options[:2], options[2:4], options[6:]
    return all((k - 1) * d < s for k, s, d in zip(kernel, stride, dilation, strict=True))


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


def _sizes(large: Any, small: Any) -> dict[str, int]:
    """The sizes of a pooling from ``large`` (N, C, H, W) to ``small`` (N, C, OH, OW)."""
    if large.ndim != 4 or small.ndim != 4 or large.shape[:2] != small.shape[:2]:
        raise ValueError(
            f"pooling kernel: {large.shape} and {small.shape} are not (N, C, H, W), (N, C, OH, OW)"
        )
    if small.size and not large.size:
        raise ValueError(f"pooling kernel: cannot pool empty planes (shape {large.shape}) to {small.shape}")
    (H, W), (OH, OW) = large.shape[2:], small.shape[2:]
    return {"planes": math.prod(large.shape[:2]), "H": H, "W": W, "OH": OH, "OW": OW}


def _shape(large: Any, small: Any, *options: int) -> dict[str, int]:
    """The fields of struct Pool2dShape, with ``options`` ordered as OPTIONS; ValueError if they cannot be."""
    fields = dict(zip(OPTIONS, (*options, 1, 1)[: len(OPTIONS)], strict=True))  # no dilation is dilation 1
    if min(options[:4] + options[6:]) < 1 or min(options[4:6]) < 0:
        raise ValueError("pooling kernel: kernel, stride and dilation must be at least 1, and padding 0")
    return _sizes(large, small) | fields


def _check_taps(taps: Any, like: Any, kernel_h: int, kernel_w: int) -> None:
    if taps.dtype not in (np.uint8, np.int32):
        raise TypeError(f"pooling kernel: taps must be uint8 or int32, got {taps.dtype}")
    if taps.shape != like.shape:
        raise ValueError(f"pooling kernel: taps have shape {taps.shape}, expected {like.shape}")
    if taps.dtype == np.uint8 and kernel_h * kernel_w > 256:
        raise ValueError(f"pooling kernel: taps of a {kernel_h} x {kernel_w} window do not fit uint8")


def _divisor(count_include_pad: bool, divisor_override: int | None) -> dict[str, int | bool]:
    """The fields of struct AvgDivisor."""
    return {"divisor": divisor_override or 0, "count_include_pad": bool(count_include_pad)}
