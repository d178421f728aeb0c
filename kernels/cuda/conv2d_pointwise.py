"""Launches ``conv2d_pointwise.cu``: convolution with 1x1 kernels, and its gradients, on tensor cores.

Arrays and options are those of :mod:`.conv2d`, but all are float32, all float16, or all bfloat16 (or uint16
that are its bits), groups is 1, the stride 1, and there is no padding. Sums are float32; float32 factors are
rounded to TF32. Beside images of 16 bits the weight, which is then rounded, and its gradient may be float32.

Images are read and written where they lie: (N, C, H, W), C-contiguous, or but for the gradient for the weight
channels last (:mod:`minigrad.kernels.channels_last`). What does not :func:`fits` is for
:mod:`.conv2d_tensor_core`. A weight whose rows are not multiples of 16 bytes is copied.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import is_contiguous
from ..channels_last import is_channels_last, nhwc
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import conv2d_tensor_core_weight_grad as of_weight
from . import workspace
from .conv2d_parts import add_results, add_taps
from .conv2d_tensor_core import (
    PART_TILE,
    cut_steps,
    in_order,
    one_group,
    results_of,
    rounded,
    steps_of,
    tile_rows,
)
from .matmul_tensor_core import CHUNK_BYTES, CHUNKS, STAGES, along_k, element_of, row_pitch
from .vector import starts_at_vector

TILE_N, THREADS = 128, 128  # as in conv2d_pointwise.cu
SMALL, LARGE = 64, 128  # rows of a tile

PARTS = "float", PART_TILE  # what parts are stored as, and the rows of their tiles

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_of_images = {
    (*key, *flags): CudaKernel(_source, f"conv2d_pointwise<{', '.join(map(str, (*key, *flags)))}>")
    for element in of_weight.ROWS
    for key in [*((element, element, rows) for rows in of_weight.ROWS[element]), (element, *PARTS)]
    for flags in product((False, True), repeat=2)  # the weight is transposed; channels come last
}
_weight_grad = {
    (element, rows): CudaKernel(_source, f"conv2d_pointwise_weight_grad<{element}, {rows}>")
    for element in of_weight.ROWS
    for rows in of_weight.ROWS[element]
}


def fits(
    images: Any,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    last: bool = False,
) -> bool:
    """Whether the kernels take such a layer, and ``images`` (N, C, H, W), its input or the gradient of its
    output, as they lie: planes, or channels where these come ``last``, of whole chunks of 16 bytes."""
    is_pointwise = (*kernel_size, *stride, *padding) == (1, 1, 1, 1, 0, 0)
    if not is_pointwise or images.size == 0 or is_channels_last(images) is not last:
        return False
    neighbours = images.shape[1] if last else images.shape[2] * images.shape[3]
    return (last or is_contiguous(images)) and neighbours * images.itemsize % CHUNK_BYTES == 0


def forward(
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    *options: int,
    relu: bool = False,
    tile: int | None = None,
) -> None:
    """1x1 kernels on tensor cores, from images as they lie; float32 is rounded to TF32.

    A ``tile`` of so many rows is taken in place of the one that suits the sizes.
    """
    shape = one_group(x, weight, out, options, bias)
    _run(out, x, weight, bias, options, relu, shape, tile, transposed=False)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int, tile: int | None = None) -> None:
    """As forward, of the gradient of the output, with the transposed weight."""
    shape = one_group(out, weight, grad_output, options)
    _run(out, grad_output, weight, None, options, False, shape, tile, transposed=True)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int, tile: int | None = None) -> None:
    """Sums over the pixels of all images, along which both factors lie; blocks share them."""
    shape = one_group(x, out, grad_output, options)
    for images in (x, grad_output):
        _check(images, out.shape[2:], options)
    rows, channels, pixels = shape["O"], shape["C"], shape["N"] * shape["H"] * shape["W"]
    element = element_of(x)
    columns = blocks(channels, TILE_N)
    tile = tile or of_weight.tile_rows(element, rows, columns)
    tiles = blocks(rows, tile) * columns
    parts, length = of_weight.cut_pixels(pixels, tiles, element, tile)
    partial = workspace(out, (parts, out.size), np.float32)
    fields = _fields(shape, rows, channels, channels)
    arguments = (partial, _aligned(grad_output), _aligned(x), length, fields)
    _weight_grad[element, tile].launch(tiles * parts, THREADS, arguments, _shared_bytes(tile))
    add_taps(out, partial)


def _run(
    out: Any,
    source: Any,
    weight: Any,
    bias: Any | None,
    options: tuple[int, ...],
    relu: bool,
    shape: dict[str, int],
    tile: int | None,
    transposed: bool,
) -> None:
    last = is_channels_last(source)
    _check(source, weight.shape[2:], options, last)
    if not is_contiguous(nhwc(out) if last else out):
        raise ValueError(
            f"conv2d pointwise kernel: expected an output that lies as the images do, with strides "
            f"{source.strides}, got {out.strides}"
        )
    element = element_of(out)
    weight = along_k(rounded(weight, source.dtype).reshape(1, *weight.shape[:2]))
    rows, channels = out.shape[1], source.shape[1]
    columns = blocks(shape["N"] * shape["H"] * shape["W"], TILE_N)
    tile = tile or (tile_rows(rows, columns) if LARGE in of_weight.ROWS[element] else SMALL)
    tiles, bias = blocks(rows, tile) * columns, in_order(bias)
    parts, part_steps = cut_steps(steps_of(1, channels, out.itemsize), tiles, tile)
    results, epilogue = results_of(out, parts), (bias, relu) if parts == 1 else (None, False)
    fields = _fields(shape, rows, channels, row_pitch(weight))
    kernel = _of_images[element, element_of(results), tile, transposed, last]
    arguments = (strided(_aligned(source)), strided(weight), *epilogue, part_steps, fields)
    kernel.launch((tiles, parts), THREADS, (strided(results), *arguments), _shared_bytes(tile))
    if parts > 1:
        add_results(out, results, bias, relu)


def _aligned(images: Any) -> Any:
    """``images``, or a copy of those that begin within a chunk, as a view may."""
    return images if starts_at_vector(images) else images.copy(order="K")


def _check(images: Any, kernel_size: tuple[int, ...], options: tuple[int, ...], last: bool = False) -> None:
    """Raise ValueError unless such a layer and ``images`` fit."""
    if not fits(images, kernel_size, options[:2], options[2:4], last):
        raise ValueError(
            "conv2d pointwise kernel: expected a 1x1 kernel, stride 1, no padding, and images whose planes "
            f"(or channels last whose pixels) are multiples of {CHUNK_BYTES} bytes, got kernel "
            f"{tuple(kernel_size)}, stride {options[:2]}, padding {options[2:4]}, images {images.shape} of "
            f"{images.dtype} with strides {images.strides}"
        )


def _fields(shape: dict[str, int], rows: int, channels: int, weight_pitch: int) -> dict[str, int]:
    """The fields of struct PointwiseShape."""
    pixels = shape["H"] * shape["W"]
    sizes = {"images": shape["N"], "pixels": pixels, "rows": rows, "channels": channels}
    return sizes | {"weight_pitch": weight_pitch}


def _shared_bytes(tile: int) -> int:
    return STAGES * (tile + TILE_N) * CHUNKS * CHUNK_BYTES
