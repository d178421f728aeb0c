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
from . import reduce, workspace
from .conv2d import shape_fields

THREADS = 256  # STRIP_THREADS of conv2d_strips.cu
KERNELS = (3, 5)
STRIDES = (1, 2)
PART = 8  # the fewest images that are worth a block of their own in the weight's gradient
ENOUGH_BLOCKS = 1024  # as many as an H200 holds at a time, about: 132 multiprocessors x 8 blocks

# Results in a strip, by the stride: the best of 2 to 14 on an H200, for depthwise 3 x 3 layers of 56 x 56.
ROWS = {"forward": {1: 14, 2: 7}, "input_grad": {1: 7, 2: 2}, "weight_grad": {1: 4, 2: 4}}
# Those of kernels of 5 in 16 bits: with the conversions, longer strips would not stay in registers.
SHORT_ROWS = {"forward": {1: 14, 2: 7}, "input_grad": {1: 5, 2: 1}, "weight_grad": {1: 3, 2: 3}}

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rows_of(function: str, kernel: int, stride: int, itemsize: int) -> int:
    return (SHORT_ROWS if kernel == 5 and itemsize == 2 else ROWS)[function][stride]


def _instances(
    function: str, types: str = "T", more: str = "", strides: tuple[int, ...] = STRIDES
) -> dict[tuple[int, int, int], CudaKernel]:
    """By the size of the kernel, the stride and the results in a strip."""
    sizes = {
        (kernel, stride, _rows_of(function, kernel, stride, itemsize))
        for kernel, stride, itemsize in itertools.product(KERNELS, strides, (2, 4))
    }
    name = f"conv2d_strips_{function}<{types}"
    kernels = {size: f"{name}, {', '.join(map(str, size))}{more}>" for size in sorted(sizes)}
    return {size: CudaKernel(_source, kernel) for size, kernel in kernels.items()}


_forward = _instances("forward", more=", false")
_flipped = _instances("forward", more=", true", strides=(1,))
_input_grad = _instances("input_grad")
_weight_grad = _instances("weight_grad", "Out, T")


def fits(kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the kernel is square, of 3 or 5, the stride 1 or 2 on both axes, and the dilation 1."""
    (height, width), (down, right) = kernel_size, stride
    return height == width and height in KERNELS and down == right and down in STRIDES and dilation == (1, 1)


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """For groups of one channel: each thread makes a strip of results, whose pixels it keeps in registers."""
    shape = _shape(x, weight, out, options, bias)
    _launch_forward(_forward, (out, x, weight, bias, relu), shape)


def _launch_forward(kernels: dict[tuple[int, int, int], CudaKernel], arguments: tuple, shape: Any) -> None:
    instance = _instance("forward", shape, arguments[0])
    strips = shape["N"] * shape["O"] * blocks(shape["OH"], instance[-1]) * shape["OW"]
    kernels[instance].launch(blocks(strips, THREADS), THREADS, (*arguments, shape))


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
    instance = _instance("input_grad", shape, grad_output)
    _, stride, rows = instance
    strips = shape["N"] * shape["C"]
    for size, pad, length in (
        (shape["H"], shape["pad_h"], rows),
        (shape["W"], shape["pad_w"], 1),
    ):
        strips *= blocks((size - 1 + pad) // stride - pad // stride + 1, length)
    _input_grad[instance].launch(blocks(strips, THREADS), THREADS, (out, grad_output, weight, shape))


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """For groups of one channel: the sums of all taps stay in registers, over strips of rows."""
    shape = _shape(x, out, grad_output, options)
    parts = max(min(ENOUGH_BLOCKS // max(shape["O"], 1), shape["N"] // PART), 1)
    parts = max(parts, blocks(shape["N"] * shape["OH"] * shape["OW"], 1 << 31))  # counted in 32 bits
    partial = workspace(out, (out.size, parts), computed_dtype(out.dtype)) if parts > 1 else out
    arguments = (partial, grad_output, x, parts, shape)
    _weight_grad[_instance("weight_grad", shape, x)].launch(shape["O"] * parts, THREADS, arguments)
    if parts > 1:
        reduce.vectorized(out.reshape(-1), partial)


def _instance(function: str, shape: dict[str, int], array: Any) -> tuple[int, int, int]:
    kernel, stride = shape["KH"], shape["stride_h"]
    return kernel, stride, _rows_of(function, kernel, stride, array.itemsize)


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
