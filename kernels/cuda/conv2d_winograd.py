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
from .matmul import fills_tiles, naive
from .split_k import split_k

STEP, TAPS = 4, 3  # pixels of a tile, and of a kernel, along one side
POINTS = (STEP + TAPS - 1) ** 2
BLOCK = 64, 4  # neighbouring tiles, and channels, of a block of THREADS
WEIGHT_THREADS = 64  # there are few kernels
MAX_GRID_Y = 65535
ROW = 32  # tiles are a multiple of it, so that what a warp reads or writes is a line of 128 bytes
WORKSPACE = 2**28  # bytes of values at points

# An estimate of the time on an H200, in microseconds: of the launches beyond the implicit GEMM's one; of
# multiply-adds by the matrix products and by the implicit GEMM; and of values at points, each of which is
# written and read, as is a pixel for 2.25 of them. Measured there on 26 November 2026, forward, gradients for
# input and weight, beside the best implicit GEMM: 64x64x56x56 -> 64: 310, 313, 236 (353, 344, 408);
# 128x128x28x28 -> 128: 323, 335, 354 (671, 655, 798). The estimate says 271 (336) and 387 (673).
LAUNCHES = 40.0
PRODUCT_RATE, DEFINITION_RATE = 16e6, 22e6
VALUE_RATE = 0.5e6

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_input_to_points = CudaKernel(_source, "winograd_input_to_points")
_grad_to_points = CudaKernel(_source, "winograd_grad_to_points")
_weight_to_points = CudaKernel(_source, "winograd_weight_to_points")
_points_to_output = CudaKernel(_source, "winograd_points_to_output")
_points_to_weight = CudaKernel(_source, "winograd_points_to_weight")


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """Multiplies less: tiles of 4x4 outputs become products at 36 points, summed over channels by matrix
    products; loses about half a digit."""
    shape = _check(x, weight, out, options, bias)
    pad = shape["pad_h"], shape["pad_w"]
    _convolve(out, x, weight, bias, relu, pad, shape["groups"], rotated=False)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """The convolution of grad_output with the kernels rotated by half a turn, as in forward."""
    shape = _check(out, weight, grad_output, options)
    pad = TAPS - 1 - shape["pad_h"], TAPS - 1 - shape["pad_w"]
    _convolve(out, grad_output, weight, None, False, pad, shape["groups"], rotated=True)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tiles of the input and of grad_output become values at 36 points, multiplied and summed over tiles by
    matrix products; the sums become the taps."""
    shape = _check(x, out, grad_output, options)
    groups, rows, columns = shape["groups"], shape["O"] // shape["groups"], out.shape[1]
    pad = shape["pad_h"], shape["pad_w"]
    tiles = _Tiles(grad_output, shape["C"] + shape["O"])
    values = workspace(out, (POINTS, groups, columns, tiles.chunk))
    grads = workspace(out, (POINTS, groups, rows, tiles.chunk))
    sums = workspace(out, (tiles.chunks, POINTS, groups, rows, columns))
    for number, of_chunk in enumerate(sums):
        tiles.launch(_input_to_points, (values, x), x, pad, number)
        tiles.launch(_grad_to_points, (grads, grad_output), grad_output, (0, 0), number)
        _multiply(of_chunk, grads, array_module(out).swapaxes(values, -1, -2))
    count = groups * rows * columns
    grid = blocks(count, WEIGHT_THREADS)
    _points_to_weight.launch(grid, WEIGHT_THREADS, (out, sums, count, tiles.chunks))


def fits(kernel_size: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the algorithm computes such a convolution at all."""
    return (*kernel_size, *stride, *dilation) == (TAPS, TAPS, 1, 1, 1, 1)


def is_faster(x: tuple[int, ...], weight: tuple[int, ...], pad_h: int, pad_w: int, of_input: bool) -> bool:
    """Whether the algorithm beats the implicit GEMM on an input (N, C, H, W): an estimate of both.

    ``of_input``: the tiles are those of the input, as for its gradient.
    """
    N, _, H, W = x
    M, K = weight[0] * weight[1] // max(x[1], 1), weight[1]  # channels of a group
    if not fills_tiles(M, K):
        return False
    OH, OW = H + 2 * pad_h - TAPS + 1, W + 2 * pad_w - TAPS + 1
    rows, columns = (H, W) if of_input else (OH, OW)
    groups, tiles = x[1] // K, N * blocks(rows, STEP) * blocks(columns, STEP)
    winograd = LAUNCHES + groups * POINTS * tiles * (M * K / PRODUCT_RATE + (M + K) / VALUE_RATE)
    return winograd < groups * N * OH * OW * M * K * TAPS**2 / DEFINITION_RATE


def _check(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any | None = None
) -> dict[str, int]:
    shape = shape_fields(x, weight, output, options, bias)
    if x.dtype != np.float32 or not fits(weight.shape[2:], options[:2], options[4:6]):
        raise ValueError(
            f"conv2d winograd kernel: float32, 3x3 kernels, and stride and dilation 1 expected, got "
            f"{x.dtype}, {weight.shape[2:]}, {options[:2]} and {options[4:6]}"
        )
    return shape


def _convolve(
    out: Any,
    source: Any,
    weight: Any,
    bias: Any | None,
    relu: bool,
    pad: tuple[int, int],
    groups: int,
    rotated: bool,
) -> None:
    K, M = source.shape[1] // groups, out.shape[1] // groups  # of the products
    kernels = workspace(out, (POINTS, groups, K, M))
    count = groups * K * M
    arguments = kernels, weight, count, K, M, rotated
    _weight_to_points.launch(blocks(count, WEIGHT_THREADS), WEIGHT_THREADS, arguments)
    tiles = _Tiles(out, source.shape[1] + out.shape[1])
    values = workspace(out, (POINTS, groups, K, tiles.chunk))
    products = workspace(out, (POINTS, groups, M, tiles.chunk))
    for number in range(tiles.chunks):
        tiles.launch(_input_to_points, (values, source), source, pad, number)
        _multiply(products, array_module(out).swapaxes(kernels, -1, -2), values)
        tiles.launch(_points_to_output, (out, products, bias, relu), out, (0, 0), number)


def _multiply(out: Any, a: Any, b: Any) -> None:
    """out = a @ b at each point: by the rung that suits its size; without tiles where they would be idle."""
    (split_k if fills_tiles(*out.shape[-2:]) else naive)(out, a, b)


class _Tiles:
    """The tiles of the images ``like``, cut into ``chunks`` of about equal size, ``chunk``.

    The values at points of a chunk, for ``channels`` on both sides together, fit the workspace.
    """

    def __init__(self, like: Any, channels: int):
        self.rows, self.columns = (blocks(size, STEP) for size in like.shape[2:])
        self.total = like.shape[0] * self.rows * self.columns
        affordable = WORKSPACE // (POINTS * like.itemsize * max(channels, 1))
        chunks = blocks(self.total, max(affordable, ROW))
        self.chunk = blocks(blocks(self.total, max(chunks, 1)), ROW) * ROW
        self.chunks = blocks(self.total, self.chunk) if self.total else 0

    def launch(
        self, kernel: CudaKernel, arguments: tuple, images: Any, pad: tuple[int, int], number: int
    ) -> None:
        """Transform chunk ``number`` of ``images``, whose windows begin ``pad`` before the tiles.

        ``arguments`` are the kernel's but for the shape. Values of tiles beyond the last one become zeros.
        """
        _, channels, height, width = images.shape
        begin = number * self.chunk
        image, first = divmod(begin, self.rows * self.columns)
        shape = {
            "channels": channels,
            "height": height,
            "width": width,
            "pad_h": pad[0],
            "pad_w": pad[1],
            "rows": self.rows,
            "columns": self.columns,
            "image": image,
            "first": first,
            "count": min(self.chunk, self.total - begin),
            "pitch": self.chunk,
        }
        grid = blocks(self.chunk, BLOCK[0]), min(blocks(channels, BLOCK[1]), MAX_GRID_Y)
        kernel.launch(grid, BLOCK, (*arguments, shape))
