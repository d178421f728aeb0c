"""Launches ``conv2d_depthwise.cu``: convolution with one input channel in each group, and its gradients.

Arrays and options are those of :mod:`.conv2d`, with ``groups`` = C, and also of float16 or bfloat16; the
number of output channels is any multiple of C. ``fits`` tells whether what a block copies finds room in its
shared memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import reduce, workspace
from .conv2d import shape_fields, tap_steps
from .conv2d_parts import ENOUGH_BLOCKS, cut_into_parts

TILE = 32  # as in conv2d_depthwise.cu
BLOCK_HEIGHT = 8
SOURCE_ELEMENTS = 69 * 69
TAPS = 9
WEIGHT_GRAD_THREADS = 256
PART = 4096  # the fewest outputs that are worth a block of their own in the weight's gradient

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_forward = CudaKernel(_source, "conv2d_depthwise_forward<T>")
_input_grad = CudaKernel(_source, "conv2d_depthwise_input_grad<T>")
_weight_grad = CudaKernel(_source, "conv2d_depthwise_weight_grad<Out, T>")


def fits(kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether a block's shared memory holds what it copies, in ``forward`` and ``input_grad``."""
    rows, columns = (
        (TILE - 1) * s + (k - 1) * d + 1 for k, s, d in zip(kernel_size, stride, dilation, strict=True)
    )
    return rows * columns <= SOURCE_ELEMENTS


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """For groups of one channel: pixels are copied to shared memory once, for all taps and multiples."""
    shape = _shape(x, weight, out, options, bias)
    tiles = blocks(shape["OH"], TILE) * blocks(shape["OW"], TILE)
    grid = shape["N"] * shape["C"] * tiles
    _forward.launch(grid, (TILE, BLOCK_HEIGHT), (out, x, weight, bias, relu, shape))


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """For groups of one channel: gradients are copied to shared memory once, for all taps."""
    shape = _shape(out, weight, grad_output, options)
    grid = shape["N"] * shape["C"]
    for size, stride in ((shape["H"], shape["stride_h"]), (shape["W"], shape["stride_w"])):
        grid *= min(stride, size) * blocks(blocks(size, stride), TILE)
    arguments = (out, grad_output, weight, shape, tap_steps(shape))
    _input_grad.launch(grid, (TILE, BLOCK_HEIGHT), arguments)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """For groups of one channel: a gradient is read once for nine taps, whose sums stay in registers."""
    shape = _shape(x, out, grad_output, options, copies=False)
    outputs = shape["N"] * shape["OH"] * shape["OW"]
    grid = shape["O"] * blocks(shape["KH"] * shape["KW"], TAPS)
    parts, length = cut_into_parts(outputs, grid, ENOUGH_BLOCKS, PART)
    partial = workspace(out, (out.size, parts), computed_dtype(out.dtype)) if parts > 1 else out
    arguments = (partial, grad_output, x, length, parts, shape)
    _weight_grad.launch(grid * parts, WEIGHT_GRAD_THREADS, arguments)
    if parts > 1:
        reduce.vectorized(out.reshape(-1), partial)


def _shape(
    x: Any, weight: Any, output: Any, options: tuple, bias: Any | None = None, copies: bool = True
) -> dict[str, int]:
    """The fields of struct Conv2dShape; ValueError unless they are those of a depthwise convolution."""
    shape = shape_fields(x, weight, output, options, bias)
    if shape["groups"] != shape["C"]:
        raise ValueError(
            f"conv2d depthwise kernel: expected as many groups as channels, {shape['C']}, got "
            f"{shape['groups']}"
        )
    sizes = weight.shape[2:], options[:2], options[4:6]
    if copies and not fits(*sizes):
        kernel, stride, dilation = sizes
        raise ValueError(
            f"conv2d depthwise kernel: kernel {kernel}, stride {stride} and dilation {dilation} reach "
            f"further than the {SOURCE_ELEMENTS} elements that a block copies"
        )
    return shape
