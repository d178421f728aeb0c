"""Launches ``conv2d_strips.cu``: depthwise convolution with small kernels, by strips of rows in registers.

Arrays and options are those of :mod:`.conv2d`, with ``groups`` = C, and also of float16 or bfloat16; the
number of output channels is any multiple of C. ``fits`` tells which kernels, strides and dilations there are
instances for.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import conv2d_depthwise, reduce, workspace
from .conv2d import shape_fields
from .conv2d_parts import ENOUGH_BLOCKS
from .vector import starts_at_vector

THREADS = 256  # STRIP_THREADS of conv2d_strips.cu
KERNELS = (3, 5)
STRIDES = (1, 2)
PART = 2 * THREADS  # the fewest strips that are worth a block of their own in the weight's gradient
MOST_STRIPS = 1 << 31  # of a channel there

# Rows of a strip, by the stride, in input_grad those of its source: the best of 2 to 14 on an H200, for
# depthwise 3 x 3 layers of 56 x 56; of input_grad at stride 2, and of wide strips, chosen by their machine
# code: all loads of a wide strip in both gradients are on their way at a time.
ROWS = {"forward": {1: 14, 2: 7}, "input_grad": {1: 7, 2: 4}, "weight_grad": {1: 4, 2: 4}}
WIDE_ROWS = {"forward": 7, "input_grad": 2, "weight_grad": 2}
# Those of kernels of 5 in 16 bits: with the conversions, longer strips would not stay in registers.
SHORT_ROWS = {"forward": {1: 14, 2: 7}, "input_grad": {1: 5, 2: 1}, "weight_grad": {1: 3, 2: 3}}

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _size(function: str, kernel: int, stride: int, itemsize: int, wide: bool) -> tuple[int, int, int, bool]:
    """Of an instance: the kernel's size, the stride, the rows of a strip, and whether strips are wide."""
    rows = SHORT_ROWS if kernel == 5 and itemsize == 2 else ROWS
    return kernel, stride, WIDE_ROWS[function] if wide else rows[function][stride], wide


def _instances(
    function: str,
    types: str = "T",
    more: str = "",
    strides: tuple[int, ...] = STRIDES,
    widths: tuple[bool, ...] = (False, True),
) -> dict[tuple[int, int, int, bool], CudaKernel]:
    kernels = {}
    for kernel, stride, itemsize, wide in itertools.product(KERNELS, strides, (2, 4), widths):
        size = _size(function, kernel, stride, itemsize, wide)
        arguments = f"{types}, {', '.join(map(str, size[:-1]))}{more}, {wide}"
        kernels[size] = CudaKernel(_source, f"conv2d_strips_{function}<{arguments}>")
    return kernels


_forward = _instances("forward", more=", false")
_flipped = _instances("forward", more=", true", strides=(1,))
_input_grad = _instances("input_grad", strides=(1,), widths=(False,)) | _instances("input_grad", strides=(2,))
_weight_grad = _instances("weight_grad", "Out, T")


def fits(kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the kernel is square, of 3 or 5, the stride 1 or 2 on both axes, and the dilation 1."""
    (height, width), (down, right) = kernel_size, stride
    return height == width and height in KERNELS and down == right and down in STRIDES and dilation == (1, 1)


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """For groups of one channel: each thread makes a strip of results, whose pixels it keeps in registers."""
    shape = _shape(x, weight, out, options, bias)
    _launch_forward(_forward, (out, x, weight, bias, relu), shape)


def _launch_forward(kernels: dict[tuple, CudaKernel], arguments: tuple, shape: Any) -> None:
    out, x, *_ = arguments
    wide = _is_wide(shape, out, x)
    size = _size("forward", shape["KH"], shape["stride_h"], x.itemsize, wide)
    strips = shape["N"] * shape["O"] * blocks(shape["OH"], size[2]) * shape["OW"]
    threads = strips * shape["stride_w"] // _pixels(x) if wide else strips
    kernels[size].launch(blocks(threads, THREADS), THREADS, (*arguments, shape))


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """For groups of one channel: each thread makes a strip of pixels, of all phases of the stride.

    With a stride of 1 and one output channel each, it is the forward pass over the gradient, with the weights
    flipped and the padding that brings it back to the input's size.
    """
    shape = _shape(out, weight, grad_output, options)
    pads = shape["KH"] - 1 - shape["pad_h"], shape["KW"] - 1 - shape["pad_w"]
    if shape["stride_h"] == 1 and shape["O"] == shape["C"] and min(pads) >= 0:
        flipped = _shape(grad_output, weight, out, (1, 1, *pads, 1, 1, shape["C"]))
        return _launch_forward(_flipped, (out, grad_output, weight, None, False), flipped)
    stride = shape["stride_h"]
    wide = stride == 2 and shape["pad_h"] == shape["KH"] // 2 and _is_wide(shape, out, grad_output)
    size = _size("input_grad", shape["KH"], stride, out.itemsize, wide)
    columns, pads = (_pixels(out) // stride, (0, 0)) if wide else (1, (shape["pad_h"], shape["pad_w"]))
    strips = shape["N"] * shape["C"]
    for length, pad, of_strip in zip((shape["H"], shape["W"]), pads, (size[2], columns), strict=True):
        strips *= blocks((length - 1 + pad) // stride - pad // stride + 1, of_strip)
    _input_grad[size].launch(blocks(strips, THREADS), THREADS, (out, grad_output, weight, shape))


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """For groups of one channel: the sums of all taps stay in registers, over strips of rows."""
    shape = _shape(x, out, grad_output, options)
    wide, stride = _is_wide(shape, grad_output, x), shape["stride_h"]
    size = _size("weight_grad", shape["KH"], stride, x.itemsize, wide)
    columns = shape["OW"] * stride // _pixels(x) if wide else shape["OW"]
    strips = shape["N"] * blocks(shape["OH"], size[2]) * columns
    if strips >= MOST_STRIPS:
        return conv2d_depthwise.weight_grad(out, grad_output, x, *options)
    parts = max(min(ENOUGH_BLOCKS // max(shape["O"], 1), strips // PART), 1)
    partial = workspace(out, (out.size, parts), computed_dtype(out.dtype)) if parts > 1 else out
    arguments = (partial, grad_output, x, parts, shape)
    _weight_grad[size].launch(shape["O"] * parts, THREADS, arguments)
    if parts > 1:
        reduce.vectorized(out.reshape(-1), partial)


def _pixels(array: Any) -> int:
    """Of the input, in a row of a wide strip: STRIP_PIXELS of conv2d_strips.cu."""
    return 2 if array.itemsize == 8 else 4


def _is_wide(shape: dict[str, int], *arrays: Any) -> bool:
    """Whether strips can be wide: rows of output and input lie alike, and those are whole vectors."""
    same = shape["OW"] * shape["stride_w"] == shape["W"] and shape["pad_w"] == shape["KW"] // 2
    return same and shape["W"] % _pixels(arrays[0]) == 0 and starts_at_vector(*arrays)


def _shape(x: Any, weight: Any, output: Any, options: tuple, bias: Any | None = None) -> dict[str, int]:
    """The fields of struct Conv2dShape; ValueError unless there is an instance for them."""
    shape = shape_fields(x, weight, output, options, bias)
    if shape["groups"] != shape["C"]:
        raise ValueError(
            f"conv2d strips kernel: expected as many groups as channels, {shape['C']}, got {shape['groups']}"
        )
    kernel, stride, dilation = weight.shape[2:], options[:2], options[4:6]
    if not fits(kernel, stride, dilation):
        raise ValueError(
            f"conv2d strips kernel: expected a square kernel of {KERNELS}, a stride of {STRIDES} and no "
            f"dilation, got kernel {kernel}, stride {stride}, dilation {dilation}"
        )
    return shape
