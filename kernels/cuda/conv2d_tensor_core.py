"""Launches ``conv2d_tensor_core.cu``: convolution and the gradient for its input, on tensor cores.

Arrays and options are those of :mod:`.conv2d`, but all are float32, all float16, or all uint16 that are the
bits of bfloat16, and groups is 1; the output alone has to be C-contiguous. Sums are float32; float32 factors
are rounded to TF32.

The kernels read images and weights whose channels come last. What lies like that, at multiples of 16 bytes,
is read where it is: images (N, H, W, C) seen as (N, C, H, W), and the weights of 1x1 kernels. The rest is
transposed by a launch in front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import array_module, workspace
from .conv2d import shape_fields, tap_steps
from .matmul import MULTIPROCESSORS
from .matmul_tensor_core import CHUNK_BYTES, CHUNKS, STAGES, is_supported
from .transpose import transpose
from .vector import starts_at_vector

__all__ = [
    *("forward", "forward_bfloat16", "pooled", "pooled_bfloat16", "input_grad", "input_grad_bfloat16"),
    "is_supported",
]

TILE_N = 128  # pixels, as in conv2d_tensor_core.cu
THREADS = 128
PLACE_BYTES = 24  # of a pixel

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _by_rows(kernel: str, element: str) -> dict[int, CudaKernel]:
    """By the rows of a tile."""
    return {rows: CudaKernel(_source, f"{kernel}<{element}, {rows}>") for rows in (64, 128)}


_forward = _by_rows("conv2d_forward_tensor_core", "T")
_pooled = _by_rows("conv2d_pooled_tensor_core", "T")
_pooled_bfloat16 = _by_rows("conv2d_pooled_tensor_core", "__nv_bfloat16")
_forward_bfloat16 = _by_rows("conv2d_forward_tensor_core", "__nv_bfloat16")
_input_grad = _by_rows("conv2d_input_grad_tensor_core", "T")
_input_grad_bfloat16 = _by_rows("conv2d_input_grad_tensor_core", "__nv_bfloat16")


def forward(
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    *options: int,
    relu: bool = False,
    tile: int | None = None,
) -> None:
    """Tensor cores on tiles that are copied ahead, channels last; float32 is rounded to TF32.

    A ``tile`` of so many rows, 64 or 128, is taken in place of the one that suits the sizes.
    """
    _run_forward(_forward, out, x, weight, bias, options, relu, tile)


def forward_bfloat16(
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    *options: int,
    relu: bool = False,
    tile: int | None = None,
) -> None:
    """The same for arrays of uint16 that are the bits of bfloat16."""
    _run_forward(_forward_bfloat16, out, x, weight, bias, options, relu, tile)


def pooled(
    outs: tuple[Any, Any], x: Any, weight: Any, bias: Any | None, *options: int, tile: int | None = None
) -> None:
    """Forward, then ReLU and the largest of windows of 2 x 2, from registers.

    ``outs`` are these (N, O, OH // 2, OW // 2), and which of the four each is, as uint8.
    """
    _run_pooled(_pooled, outs, x, weight, bias, options, tile)


def pooled_bfloat16(
    outs: tuple[Any, Any], x: Any, weight: Any, bias: Any | None, *options: int, tile: int | None = None
) -> None:
    """The same for arrays of uint16 that are the bits of bfloat16."""
    _run_pooled(_pooled_bfloat16, outs, x, weight, bias, options, tile)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int, tile: int | None = None) -> None:
    """As forward, one product for each phase of the stride, with the weight's rows and channels exchanged."""
    _run_input_grad(_input_grad, out, grad_output, weight, options, tile)


def input_grad_bfloat16(
    out: Any, grad_output: Any, weight: Any, *options: int, tile: int | None = None
) -> None:
    """The same for arrays of uint16 that are the bits of bfloat16."""
    _run_input_grad(_input_grad_bfloat16, out, grad_output, weight, options, tile)


def _run_forward(
    kernels: dict,
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    options: tuple,
    relu: bool,
    tile: int | None,
) -> None:
    shape = one_group(x, weight, out, options, bias)
    source, source_pitch = channels_last(x)
    weights, weight_pitch = channels_last(weight)
    bias = None if bias is None else array_module(bias).ascontiguousarray(bias)
    columns = blocks(shape["N"] * shape["OH"] * shape["OW"], TILE_N)
    tile = tile or tile_rows(shape["O"], columns)
    arguments = (out, strided(source), strided(weights), bias, relu, source_pitch, weight_pitch, shape)
    kernels[tile].launch(blocks(shape["O"], tile) * columns, THREADS, arguments, _shared_bytes(tile))


def _run_pooled(
    kernels: dict,
    outs: tuple[Any, Any],
    x: Any,
    weight: Any,
    bias: Any | None,
    options: tuple,
    tile: int | None,
) -> None:
    out, taps = outs
    shape = one_group(x, weight, _Output(_output_shape(x, weight, options)), options, bias)
    if not out.shape == taps.shape == (shape["N"], shape["O"], shape["OH"] // 2, shape["OW"] // 2):
        raise ValueError(f"conv2d pooled kernel: outputs of shape {out.shape} and {taps.shape} do not fit")
    source, source_pitch = channels_last(x)
    weights, weight_pitch = channels_last(weight)
    bias = None if bias is None else array_module(bias).ascontiguousarray(bias)
    columns = blocks(4 * shape["N"] * out.shape[2] * out.shape[3], TILE_N)
    tile = tile or tile_rows(shape["O"], columns)
    arguments = (out, taps, strided(source), strided(weights), bias, source_pitch, weight_pitch, shape)
    kernels[tile].launch(blocks(shape["O"], tile) * columns, THREADS, arguments, _shared_bytes(tile))


class _Output(NamedTuple):
    """An output that is never stored as a whole."""

    shape: tuple[int, ...]
    ndim: int = 4


def _output_shape(x: Any, weight: Any, options: tuple[int, ...]) -> tuple[int, ...]:
    stride, padding, dilation = options[:2], options[2:4], options[4:6]
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return x.shape[0], weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def _run_input_grad(
    kernels: dict, out: Any, grad_output: Any, weight: Any, options: tuple, tile: int | None
) -> None:
    shape = one_group(out, weight, grad_output, options)
    source, source_pitch = channels_last(grad_output)
    weights, weight_pitch = _outputs_last(weight)
    pixels, phases = shape["N"], 1
    for size, stride in ((shape["H"], shape["stride_h"]), (shape["W"], shape["stride_w"])):
        phases *= min(stride, size)
        pixels *= blocks(size, stride)  # of the largest phase
    columns = blocks(pixels, TILE_N) * phases
    tile = tile or tile_rows(shape["C"], columns)
    pitches = source_pitch, weight_pitch
    arguments = (out, strided(source), strided(weights), *pitches, shape, tap_steps(shape))
    kernels[tile].launch(blocks(shape["C"], tile) * columns, THREADS, arguments, _shared_bytes(tile))


def one_group(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any | None = None
) -> dict[str, int]:
    """The fields of struct Conv2dShape; ValueError if the arrays do not fit together, or for groups."""
    shape = shape_fields(x, weight, output, options, bias)
    if shape["groups"] != 1:
        raise ValueError(f"conv2d tensor core kernel: expected 1 group, got {shape['groups']}")
    return shape


def channels_last(x: Any) -> tuple[Any, int]:
    """``x`` (N, C, H, W) for reading as (N, H, W, C), and how many elements its pixels are apart.

    That is a multiple of 16 bytes, and ``x`` itself where it lies like that; else a copy.
    """
    N, C, H, W = x.shape
    pitch = _pitch(x)
    if pitch is not None:
        return x, pitch
    pitch = padded_pitch(C, x.itemsize)
    copy = workspace(x, (N, H * W, pitch))
    transpose(copy[:, :, :C], array_module(x).ascontiguousarray(x).reshape(N, C, H * W))
    return copy, pitch


def padded_pitch(channels: int, itemsize: int) -> int:
    """``channels``, rounded up to 16 bytes of elements."""
    per_chunk = CHUNK_BYTES // itemsize
    return blocks(channels, per_chunk) * per_chunk


def _pitch(x: Any) -> int | None:
    """How many elements the pixels of ``x`` are apart, if its channels come last; else None."""
    (N, C, H, W), (image, channel, row, pixel) = x.shape, x.strides
    if 0 in x.shape or (C > 1 and channel != x.itemsize) or not starts_at_vector(x):
        return None
    steps = [(W, pixel, 1), (H, row, W), (N, image, H * W)]
    apart = [(stride, pixels) for size, stride, pixels in steps if size > 1]
    if not apart:
        return padded_pitch(C, x.itemsize)
    step = apart[0][0] // apart[0][1]
    fits = step >= C * x.itemsize and step % CHUNK_BYTES == 0
    return step // x.itemsize if fits and all(s == pixels * step for s, pixels in apart) else None


def _outputs_last(weight: Any) -> tuple[Any, int]:
    """``weight`` (O, C, KH, KW) for reading as (C, KH, KW, O), and how many elements its taps are apart."""
    outputs, taps = weight.shape[0], weight[0].size if weight.shape[0] else 0
    pitch = padded_pitch(outputs, weight.itemsize)
    copy = workspace(weight, (1, taps, pitch))
    transpose(copy[:, :, :outputs], array_module(weight).ascontiguousarray(weight).reshape(1, outputs, taps))
    return copy, pitch


def tile_rows(rows: int, column_tiles: int) -> int:
    """The height of a tile: the larger, if it covers ``rows`` with no more, and there are tiles enough."""
    large = blocks(rows, 128)
    return 128 if 2 * large == blocks(rows, 64) and large * column_tiles >= MULTIPROCESSORS else 64


def _shared_bytes(tile: int) -> int:
    return STAGES * (tile + TILE_N) * CHUNKS * CHUNK_BYTES + TILE_N * PLACE_BYTES
