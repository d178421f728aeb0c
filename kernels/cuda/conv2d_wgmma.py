"""Launches ``conv2d_wgmma.cu``: convolution and its two gradients on a card of compute capability 9.0.

Arrays and options are those of :mod:`.conv2d_tensor_core`, but float32, whose factors are rounded to TF32, is
for the forward pass alone. The copy engine reads images and weights where they lie if that is channels last
(:mod:`minigrad.kernels.channels_last`), at multiples of 16 bytes; else it is given copies that are so. Images
may be made C-contiguous, too; if their planes are no multiples of 16 bytes, or are of floats, a launch behind
transposes them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arguments import unchanging
from ..channels_last import is_channels_last, nhwc
from ..errors import KernelLaunchError
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import conv2d_tensor_core, conv2d_tensor_core_weight_grad, matmul_wgmma, tensor_map, workspace
from .conv2d_tensor_core import channels_last, in_order, lies_last, one_group
from .matmul_tensor_core import element_of
from .matmul_wgmma import BOX_ROWS, CLUSTER, SHARED_BYTES, THREADS, TILE_M, is_supported
from .tensor_map import ALIGNMENT, BOX_ROW_BYTES
from .transpose import transpose

__all__ = [
    "ALIGNMENT",
    "fits",
    "forward",
    "input_grad",
    "is_supported",
    "share_at_work",
    "weight_grad",
    "weight_grad_share_at_work",
]

COLUMNS = (64, 128, 192, 256)  # of a tile
STEP_BYTES = BOX_ROW_BYTES  # of the channels of a pixel
HALVES = ("__half", "__nv_bfloat16")
# On an H200 the products of a step and 64 columns take 0.18 us, at cuBLAS' rate; a step of tiles of 64, 128
# and 256 took 0.32, 0.39 and 0.69. So a box takes 0.7 of this time, in which a copy moves 0.75 MB.
BOX_TIME, BYTES_IN_TIME = 0.7, 750_000
BY_THREADS, BY_BOXES, CHANNELS_FIRST = range(3)  # enum Stores
SQUARE, ROW_THREADS, PART_THREADS = 32, 8, 4  # of conv2d_add_parts_wgmma

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")
_forward = {
    (element, tile): CudaKernel(_source, f"conv2d_wgmma<{element}, {tile}, false>")
    for element in (*HALVES, "float")
    for tile in COLUMNS
}
_input_grad = {
    (element, tile): CudaKernel(_source, f"conv2d_wgmma<{element}, {tile}, true>")
    for element in HALVES
    for tile in COLUMNS
}
_weight_grad = {
    (element, tile): CudaKernel(_source, f"conv2d_weight_grad_wgmma<{element}, {tile}>")
    for element in HALVES
    for tile in COLUMNS
}
_add_parts = {element: CudaKernel(_source, f"conv2d_add_parts_wgmma<{element}>") for element in HALVES}


def forward(
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    *options: int,
    relu: bool = False,
    tile: int | None = None,
) -> None:
    """Tiles of compute capability 9.0, which the copy engine gathers from the images; float32 becomes TF32.

    A ``tile`` of so many columns, of :data:`COLUMNS`, is taken in place of the one that suits the sizes.
    """
    shape = _shape(x, weight, out, options, bias)
    walk = _forwards(out.shape[2:], weight.shape[2:], options)
    if _is_for_another(shape, walk):
        return conv2d_tensor_core.forward(out, x, weight, bias, *options, relu=relu)
    _convolve(_forward, out, x, weight, walk, in_order(bias), relu, tile)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int, tile: int | None = None) -> None:
    """As forward, from the output's gradient, for a stride of 1; the taps run backwards."""
    shape = _shape(out, weight, grad_output, options)
    if shape["stride_h"] != 1 or shape["stride_w"] != 1:
        raise ValueError("conv2d wgmma kernel: the gradient for the input is for a stride of 1")
    walk = _backwards(out.shape[2:], grad_output.shape[2:], weight.shape[2:], options)
    if _is_for_another(shape, walk):
        return conv2d_tensor_core.input_grad(out, grad_output, weight, *options)
    _convolve(_input_grad, out, grad_output, weight, walk, None, False, tile)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int, tile: int | None = None) -> None:
    """The same, with sums over all pixels. Blocks share them, if they are few: a second launch adds up their
    parts."""
    shape = _shape(x, out, grad_output, options)
    walk = _forwards(grad_output.shape[2:], out.shape[2:], options)
    if _is_for_another(shape, walk):
        return conv2d_tensor_core_weight_grad.weight_grad(out, grad_output, x, *options)
    made, channels, *kernel = out.shape
    taps, element = kernel[0] * kernel[1], element_of(out)
    pixels = shape["N"] * shape["OH"] * shape["OW"]
    at_once = matmul_wgmma.multiprocessors(out) // CLUSTER
    tile, clusters, parts = _cut(taps, channels, made, pixels, at_once, tile)
    length = blocks(blocks(pixels, parts), BOX_ROWS) * BOX_ROWS
    parts = blocks(pixels, length)
    source, grads = channels_last(x), _pixels(grad_output)
    grads = grads.reshape(1, pixels, made)
    results = _taps_of(out) if parts == 1 else None
    to_out = results is not None
    partial = workspace(out, (0 if to_out else parts, taps, channels, made), np.float32)
    source_map = _map_of_images(x, source, walk)
    out_map = tensor_map.describe(results) if to_out else source_map  # which is then not used
    arguments = (
        *(strided(out), partial, to_out, strided(source[0]), strided(grads)),
        *(source_map, tensor_map.describe(grads), out_map, walk.filter),
        *(pixels, length, parts, made, channels),
    )
    grid = CLUSTER * min(clusters * parts, at_once)
    _weight_grad[element, tile].launch(grid, THREADS, arguments, SHARED_BYTES)
    if not to_out:
        squares = blocks(taps * channels, SQUARE) * blocks(made, SQUARE)
        arguments = (strided(out), partial, parts, taps, channels, made, is_channels_last(out))
        _add_parts[element].launch(squares, (SQUARE, ROW_THREADS, min(parts, PART_THREADS)), arguments)


def share_at_work(array: Any, pixels: int, made: int) -> float:
    """Of the places that the card of ``array`` has for clusters, those that a result of so many pixels and
    channels fills."""
    rows, at_once = blocks(pixels, CLUSTER * TILE_M), matmul_wgmma.multiprocessors(array) // CLUSTER
    return min(rows * blocks(made, _tile(rows, made, at_once)) / at_once, 1)


def weight_grad_share_at_work(array: Any, taps: int, channels: int, made: int, pixels: int) -> float:
    """The same for the gradient of a weight, from an output of so many pixels."""
    at_once = matmul_wgmma.multiprocessors(array) // CLUSTER
    _, clusters, parts = _cut(taps, channels, made, pixels, at_once)
    return min(clusters * parts / at_once, 1)


@lru_cache(maxsize=1024)  # here and below: the same few convolutions come in every step of a training
def fits(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple) -> bool:
    """Whether the copy engine can move such a filter over images."""
    reach = _reach(kernel, dilation)
    corners = [corner for p, r in zip(padding, reach, strict=True) for corner in (-p, p - r)]
    return (
        max(stride) <= tensor_map.LARGEST_FILTER_STRIDE
        and max(reach) <= tensor_map.LARGEST_OFFSET
        and all(tensor_map.LEAST_CORNER <= corner <= tensor_map.LARGEST_CORNER for corner in corners)
    )


class _Walk(NamedTuple):
    """How the filter moves over the images that are read; of each, (vertical, horizontal)."""

    size: tuple[int, ...]  # of an image of the result
    lower: tuple[int, ...]  # from the image's first pixel to the filter's first corner
    upper: tuple[int, ...]  # from the image's last pixel to the filter's last corner, or a few beyond it
    stride: tuple[int, ...]
    filter: unchanging  # the fields of struct Filter


def _walk(
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    lower: tuple[int, ...],
    upper: tuple[int, ...],
    stride: tuple[int, ...],
    first: tuple[int, ...],
    step: tuple[int, ...],
) -> _Walk:
    """``first``: from the filter's corner to its first tap; ``step``: from tap to tap."""
    names = (
        *("height", "width", "corner_y", "corner_x", "stride_y", "stride_x"),
        *("taps_down", "taps_across", "first_down", "first_right", "step_down", "step_right"),
    )
    values = *size, *lower, *stride, *kernel, *first, *step
    return _Walk(size, lower, upper, stride, unchanging(zip(names, values, strict=True)))


def _shape(x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any = None) -> dict[str, int]:
    """As :func:`.conv2d_tensor_core.one_group`, if the card and the copy engine can do it."""
    shape = one_group(x, weight, output, options, bias)
    if not is_supported(x):
        raise KernelLaunchError(
            "conv2d_wgmma needs a card of compute capability 9.0, or sim.architecture('sm_90a')"
        )
    if not fits(weight.shape[2:], options[:2], options[2:4], options[4:6]):
        raise ValueError(
            f"conv2d wgmma kernel: the copy engine takes no kernel of {tuple(weight.shape[2:])} with stride, "
            f"padding and dilation {options[:6]}"
        )
    return shape


def _is_for_another(shape: dict[str, int], walk: _Walk) -> bool:
    """Whether there is nothing to do, or a result of more pixels than the copy engine counts."""
    pixels = shape["N"] * walk.size[0] * walk.size[1]
    return 0 in (shape["N"], shape["C"], shape["O"]) or pixels > tensor_map.LARGEST_SIZE


@lru_cache(maxsize=1024)
def _forwards(output: tuple[int, ...], kernel: tuple[int, ...], options: tuple[int, ...]) -> _Walk:
    """From the input's pixels to those of an ``output`` (H, W)."""
    stride, pad, dilation = options[:2], options[2:4], options[4:6]
    lower, upper = tuple(-p for p in pad), tuple(map(sub, pad, _reach(kernel, dilation)))
    return _walk(kernel, output, lower, upper, stride, (0, 0), dilation)


@lru_cache(maxsize=1024)
def _backwards(
    input: tuple[int, ...], output: tuple[int, ...], kernel: tuple[int, ...], options: tuple[int, ...]
) -> _Walk:
    """From the output's pixels to the input's, for a stride of 1: from the last tap to the first."""
    pad, dilation = options[2:4], options[4:6]
    reach = _reach(kernel, dilation)
    lower = tuple(map(sub, pad, reach))
    upper = tuple(first + to - n for first, to, n in zip(lower, input, output, strict=True))
    return _walk(kernel, input, lower, upper, (1, 1), reach, tuple(-d for d in dilation))


def _reach(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """How far the last tap is from the first."""
    return tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))


def _convolve(
    kernels: dict[tuple[str, int], CudaKernel],
    out: Any,
    images: Any,
    weight: Any,
    walk: _Walk,
    bias: Any | None,
    relu: bool,
    tile: int | None,
) -> None:
    """out (N, made, H, W) from the images at all taps."""
    N, made, height, width = out.shape
    pixels, as_tf32 = N * height * width, out.itemsize == 4
    source, weights = channels_last(images), _pixels(weight).swapaxes(0, 1)
    results, stores = _results_of(out)
    source_map = _map_of_images(images, source, walk, as_tf32)
    weights_map = tensor_map.describe(weights, as_tf32)
    out_map = source_map if stores == BY_THREADS else tensor_map.describe(results)
    rows, at_once = blocks(pixels, CLUSTER * TILE_M), matmul_wgmma.multiprocessors(out) // CLUSTER
    tile = tile or _tile(rows, made, at_once)
    arguments = (
        *(strided(results), strided(source[0]), strided(weights), bias, source_map, weights_map, out_map),
        *(walk.filter, pixels, made, images.shape[1], relu, stores),
    )
    grid = CLUSTER * min(rows * blocks(made, tile), at_once)
    kernels[element_of(out), tile].launch(grid, THREADS, arguments, SHARED_BYTES)
    if stores != CHANNELS_FIRST and not is_channels_last(out):
        transpose(out.reshape(N, made, height * width), results, (N, height * width, made))


def _results_of(out: Any) -> tuple[Any, int]:
    """Where results of ``out`` (N, made, H, W) are stored, as matrices for a tensor map, and in which way:
    there, or as pixels that have yet to be transposed."""
    N, made, height, width = out.shape
    if lies_last(out):
        results = nhwc(out).reshape(1, N * height * width, made)
    else:
        results = out.reshape(N, made, height * width)
        if out.itemsize == 2 and tensor_map.fits(results):
            return results, CHANNELS_FIRST
        results = workspace(out, (1, N * height * width, made))
    return results, BY_BOXES if tensor_map.fits(results) else BY_THREADS


@lru_cache(maxsize=1024)
def _tile(rows: int, made: int, at_once: int) -> int:
    """How many columns a tile of so many rows of clusters has, of which there are places for ``at_once``."""
    return min(COLUMNS, key=lambda tile: blocks(rows * blocks(made, tile), at_once) * _step_time(tile))


@lru_cache(maxsize=1024)
def _cut(
    taps: int, channels: int, made: int, pixels: int, at_once: int, tile: int | None = None
) -> tuple[int, int, int]:
    """Of the gradient for a weight: the columns of a tile, how many clusters make each part, and how many
    parts of the pixels there are.

    Those that take the least time: of the places for clusters as many waves as it takes, each with the steps
    of a part, and the parts stored and read once more.
    """
    rows = blocks(taps * blocks(channels, BOX_ROWS) * BOX_ROWS, CLUSTER * TILE_M)
    steps = blocks(pixels, BOX_ROWS)

    def time(cut: tuple[int, int]) -> float:
        tile, parts = cut
        waves = blocks(rows * blocks(made, tile) * parts, at_once)
        moved = 2 * 4 * parts * taps * channels * made
        return waves * blocks(steps, parts) * _step_time(tile) + moved / BYTES_IN_TIME

    tiles = COLUMNS if tile is None else (tile,)
    tile, parts = min(product(tiles, range(1, min(at_once, steps) + 1)), key=time)
    return tile, rows * blocks(made, tile), parts


def _step_time(tile: int) -> float:
    """How long a step of a tile with so many columns takes, in that of the products of 64 columns: as these
    take, or as the boxes that a block loads for it do."""
    return max(tile / BOX_ROWS, BOX_TIME * (TILE_M / BOX_ROWS + tile / BOX_ROWS / CLUSTER))


def _pixels(x: Any) -> Any:
    """``x`` (N, C, H, W) as (N, H W, C), for the copy engine: ``x`` itself where it lies like that."""
    source, _ = channels_last(x)
    N, C, H, W = x.shape
    return nhwc(source).reshape(N, H * W, C) if source is x else source[:, :, :C]


def _taps_of(weight: Any) -> Any | None:
    """``weight`` (O, C, KH, KW) as (KH KW, O, C), if the copy engine can store there."""
    O, C, KH, KW = weight.shape  # noqa: E741
    if KH * KW > 1 and not is_channels_last(weight):
        return None
    taps = nhwc(weight).reshape(O, KH * KW, C).swapaxes(0, 1)
    return taps if tensor_map.fits(taps) else None


def _map_of_images(x: Any, source: tuple[Any, int], walk: _Walk, as_tf32: bool = False) -> Any:
    """The tensor map of x (N, C, H, W), which lies as ``source`` from :func:`channels_last` says."""
    N, C, H, W = x.shape
    return tensor_map.describe_images(
        source[0], (N, H, W, C), source[1], walk.lower, walk.upper, walk.stride, as_tf32
    )
