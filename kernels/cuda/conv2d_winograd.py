"""Launches ``conv2d_winograd.cu``: 3x3 convolution with stride 1 by Winograd's algorithm, and its gradients.

Arrays and options are those of :mod:`.conv2d`, but for the dtype: float32 alone. Values at points take 36
floats for each tile of 4 x 4 pixels and each channel, of both sides of the convolution. They are workspaces
from the device's pool; where they would outgrow ``WORKSPACE`` bytes, tiles are transformed and multiplied a
part at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import array_module, workspace
from .conv2d import shape_fields
from .matmul import fills_tiles, naive, vectorized

STEP, TAPS = 4, 3  # pixels of a tile, and of a kernel, along one side
POINTS = (STEP + TAPS - 1) ** 2
THREADS = 256
BLOCK = 64, 4  # neighbouring tiles, and channels
ROW = 32  # tiles are a multiple of it, so that what a warp reads or writes is a line of 128 bytes
WORKSPACE = 2**28  # bytes of values at points
ENOUGH_BLOCKS = 512  # as many as an H200 works on, in products that are sums over tiles
PRODUCT_TILE = 64
SHORTEST_PART = 256  # tiles

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_input_to_points = CudaKernel(_source, "winograd_input_to_points")
_grad_to_points = CudaKernel(_source, "winograd_grad_to_points")
_weight_to_points = CudaKernel(_source, "winograd_weight_to_points")
_points_to_output = CudaKernel(_source, "winograd_points_to_output")
_points_to_weight = CudaKernel(_source, "winograd_points_to_weight")


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int) -> None:
    """Multiplies less: tiles of 4x4 outputs become products at 36 points, summed over channels by matrix
    products; loses about half a digit."""
    shape = _check(x, weight, out, options, bias)
    pad = shape["pad_h"], shape["pad_w"]
    _convolve(out, x, weight, bias, pad, shape["groups"], rotated=False)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """The convolution of grad_output with the kernels rotated by half a turn, as in forward."""
    shape = _check(out, weight, grad_output, options)
    pad = TAPS - 1 - shape["pad_h"], TAPS - 1 - shape["pad_w"]
    _convolve(out, grad_output, weight, None, pad, shape["groups"], rotated=True)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tiles of the input and of grad_output become values at 36 points, multiplied and summed over tiles by
    matrix products; the sums become the taps."""
    shape = _check(x, out, grad_output, options)
    groups, (rows, columns) = shape["groups"], out.shape[:2]
    pad = shape["pad_h"], shape["pad_w"]
    cut = _Tiles(grad_output, x.shape[1] + grad_output.shape[1])
    products = POINTS * groups * blocks(rows // groups, PRODUCT_TILE) * blocks(columns, PRODUCT_TILE)
    parts = max(min(ENOUGH_BLOCKS // max(products, 1), cut.chunk // SHORTEST_PART), 1)
    length = blocks(blocks(cut.chunk, parts), ROW) * ROW
    sums = workspace(out, (max(len(cut), 1) * parts, POINTS, groups, rows // groups, columns))
    if not len(cut):
        sums[:] = 0
    xp = array_module(out)
    for number, begin in enumerate(cut):
        pitch = parts * length
        values, grads = (
            cut.to_points(kernel, images, pads, begin, pitch)
            for kernel, images, pads in ((_input_to_points, x, pad), (_grad_to_points, grad_output, (0, 0)))
        )
        in_parts = (
            xp.moveaxis(a.reshape(POINTS, groups, -1, parts, length), 3, 0) for a in (grads, values)
        )
        of_grads, of_values = in_parts
        _multiply(sums[number * parts : (number + 1) * parts], of_grads, xp.swapaxes(of_values, -1, -2))
    count = rows * columns
    _points_to_weight.launch(blocks(count, THREADS), THREADS, (out, sums, count, len(sums)))


def fits(kernel_size: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the algorithm computes such a convolution at all."""
    return (*kernel_size, *stride, *dilation) == (TAPS, TAPS, 1, 1, 1, 1)


def is_faster(
    x: tuple[int, ...], weight: tuple[int, ...], pad_h: int, pad_w: int, of_input: bool
) -> bool:
    """Whether the algorithm beats the implicit GEMM on an input (N, C, H, W)."""
    return False


def _check(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any | None = None
) -> dict[str, int]:
    shape = shape_fields(x, weight, output, options, bias)
    if x.dtype != np.float32 or not fits(weight.shape[2:], options[:2], options[4:6]):
        raise ValueError(
            f"conv2d winograd kernel: float32, 3x3 kernels, and stride and dilation 1 expected, got {x.dtype}, "
            f"{weight.shape[2:]}, {options[:2]} and {options[4:6]}"
        )
    return shape


def _convolve(
    out: Any, source: Any, weight: Any, bias: Any | None, pad: tuple[int, int], groups: int, rotated: bool
) -> None:
    count = weight.shape[0] * weight.shape[1]
    kernels = workspace(out, (POINTS, groups, weight.shape[0] // groups, weight.shape[1]))
    _weight_to_points.launch(blocks(count, THREADS), THREADS, (kernels, weight, count, rotated))
    if rotated:
        kernels = array_module(out).swapaxes(kernels, -1, -2)
    cut = _Tiles(out, source.shape[1] + out.shape[1])
    for begin in cut:
        pitch = blocks(cut.count(begin), ROW) * ROW
        values = cut.to_points(_input_to_points, source, pad, begin, pitch)
        products = workspace(out, (POINTS, groups, out.shape[1] // groups, pitch))
        _multiply(products, kernels, values.reshape(POINTS, groups, -1, pitch))
        images, fields = cut.describe(out, (0, 0), begin, pitch)
        grid = blocks(pitch, BLOCK[0]), min(blocks(out.shape[1], BLOCK[1]), 65535)
        _points_to_output.launch(grid, BLOCK, (images, products, bias, fields))


def _multiply(out: Any, a: Any, b: Any) -> None:
    """out = a @ b at each point; in tiles, where there is enough of them."""
    (vectorized if fills_tiles(*out.shape[-2:]) else naive)(out, a, b)


class _Tiles:
    """The tiles of the images ``like``, in chunks that fit the workspace; iterating gives their beginnings."""

    def __init__(self, like: Any, channels: int):
        self.rows, self.columns = (blocks(size, STEP) for size in like.shape[2:])
        self.total = like.shape[0] * self.rows * self.columns
        affordable = WORKSPACE // (POINTS * like.itemsize * max(channels, 1))
        chunks = blocks(self.total, max(affordable // ROW * ROW, ROW))
        self.chunk = blocks(blocks(self.total, max(chunks, 1)), ROW) * ROW

    def __iter__(self):
        return iter(range(0, self.total, max(self.chunk, 1)))

    def __len__(self):
        return len(range(0, self.total, max(self.chunk, 1)))

    def count(self, begin: int) -> int:
        return min(self.chunk, self.total - begin)

    def describe(self, images: Any, pad: tuple[int, int], begin: int, pitch: int) -> tuple[Any, dict]:
        image, first = divmod(begin, self.rows * self.columns)
        return images[image:], {
            "channels": images.shape[1],
            "height": images.shape[2],
            "width": images.shape[3],
            "pad_h": pad[0],
            "pad_w": pad[1],
            "rows": self.rows,
            "columns": self.columns,
            "first": first,
            "count": self.count(begin),
            "pitch": pitch,
        }

    def to_points(self, kernel: CudaKernel, images: Any, pad: tuple, begin: int, pitch: int) -> Any:
        """The values at points of the tiles from ``begin`` on: (POINTS, C, pitch)."""
        values = workspace(images, (POINTS, images.shape[1], pitch))
        images, fields = self.describe(images, pad, begin, pitch)
        grid = blocks(pitch, BLOCK[0]), min(blocks(values.shape[1], BLOCK[1]), 65535)
        kernel.launch(grid, BLOCK, (values, images, fields))
        return values
