"""Launches ``conv2d_wgmma.cu``: convolution and its two gradients on a card of compute capability 9.0.

Arrays and options are those of :mod:`.conv2d_tensor_core`, but float32 images, which are rounded to TF32, are
not for the gradient for the weight. The copy engine reads images and weights where they lie if that is
channels last (:mod:`minigrad.kernels.channels_last`), at multiples of 16 bytes; else it is given copies that
are so. Images may be made C-contiguous, too; if their planes are no multiples of 16 bytes, or are of floats,
a launch behind transposes them. Of kernels of 1 x 1 in 16 bits, without a bias, contiguous planes are neither
copied nor transposed: ``matmul_wgmma.cu`` makes their products.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import is_contiguous, unchanging
from ..channels_last import is_channels_last, nhwc
from ..launch import CudaKernel, blocks, strided
from ..source import BFLOAT16, CudaSource
from . import (
    array_module,
    conv2d_pointwise,
    conv2d_tensor_core,
    conv2d_tensor_core_weight_grad,
    elementwise,
    matmul_wgmma,
    tensor_map,
    unused,
    workspace,
)
from .conv2d_parts import add_results
from .conv2d_tensor_core import channels_last, in_order, lies_last, one_group, rounded, taps_of_columns
from .conv2d_walk import NO_LATTICE, Walk, fits, fits_backwards, walk_forwards, walks_backwards
from .matmul import MULTIPROCESSORS
from .matmul_parts import quickest
from .matmul_tensor_core import element_of
from .matmul_wgmma import (
    BOX_ROWS,
    CLUSTER,
    LAUNCH,
    PART_STEPS,
    SHARED_BYTES,
    THREADS,
    TILE_M,
    is_supported,
    require,
)
from .tensor_map import ALIGNMENT, BOX_ROW_BYTES
from .transpose import Copy, transpose, transpose_together
from .vector import starts_at_vector

__all__ = [
    "ALIGNMENT",
    "fits",
    "fits_backwards",
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
TIME, BOX_TIME, BYTES_IN_TIME = 0.18, 0.7, 750_000
MOST_IN_PARTS = 128  # columns of a tile, whose sums may be cut into parts
BY_THREADS, BY_BOXES, CHANNELS_FIRST, TO_LATTICE = range(4)  # enum Stores
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
} | {("float", tile): _forward["float", tile] for tile in COLUMNS}  # of weights that were transposed
_weight_grad = {
    (element, tile): CudaKernel(_source, f"conv2d_weight_grad_wgmma<{element}, {tile}>")
    for element in HALVES
    for tile in COLUMNS
}
_add_parts = {
    element: CudaKernel(_source, f"conv2d_add_parts_wgmma<{element}>") for element in (*HALVES, "float")
}


def forward(
    out: Any,
    x: Any,
    weight: Any,
    bias: Any | None,
    *options: int,
    relu: bool = False,
    tile: int | None = None,
    parts: int | None = None,
) -> None:
    """Tiles of compute capability 9.0, which the copy engine gathers from the images; float32 becomes TF32.

    Where tiles are few, the sums are cut into parts, which a second launch adds up. A ``tile`` of so many
    columns, of :data:`COLUMNS`, and ``parts`` (one, unless given) are taken in place of those that suit the
    sizes.

    Raises:
        ValueError: ``parts`` are given without a ``tile``, or several for a tile of more than 128 columns.
    """
    shape = _shape(x, weight, out, options, bias)
    if _is_for_another(shape, out):
        return conv2d_tensor_core.forward(out, x, weight, bias, *options, relu=relu)
    if bias is None and tile is parts is None and _is_product(out, x, weight, options):
        return _multiply(out, _matrix(weight, x.dtype), x, relu)
    walk = walk_forwards(out.shape[2:], weight.shape[2:], options)
    of_weight: list[Copy] = []
    weights = _pixels(weight, x.dtype, of_weight).swapaxes(0, 1)
    _convolve(_forward, out, x, weights, of_weight, [(walk, None)], in_order(bias), relu, tile, parts)


def input_grad(
    out: Any,
    grad_output: Any,
    weight: Any,
    *options: int,
    tile: int | None = None,
    parts: int | None = None,
    weights: Any = None,
) -> None:
    """As forward, from the output's gradient; the taps run backwards. With a stride, in a launch for each of
    its phases: the pixels that the same taps reach. Several ``parts`` then raise ValueError, too.

    ``weights`` is what :func:`weights_backwards` returned for the weight, if that was called before.
    """
    shape = _shape(out, weight, grad_output, options, backwards=True)
    whole = out.shape[1] * out.itemsize % ALIGNMENT == 0 and starts_at_vector(out)  # which phases have to be
    if _is_for_another(shape, out) or not (whole or options[:2] == (1, 1)):
        return conv2d_tensor_core.input_grad(out, grad_output, weight, *options)
    if tile is parts is None and _is_product(out, grad_output, weight, options):
        return _multiply(out, _matrix(weight, out.dtype).T, grad_output)
    phases = walks_backwards(out.shape[2:], grad_output.shape[2:], weight.shape[2:], options)
    of_weight: list[Copy] = []
    if weights is None:
        weights = weights_backwards(weight, out.dtype, of_weight)
    _convolve(_input_grad, out, grad_output, weights, of_weight, phases, None, False, tile, parts)


def weights_backwards(weight: Any, dtype: Any, later: list[Copy]) -> Any:
    """What :func:`input_grad` reads of the ``weight``: if it is a copy, ``later`` says how to make it."""
    if dtype.itemsize == 2:
        return _pixels(weight, dtype, later).swapaxes(0, 1)
    return _exchanged(weight, later)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int, tile: int | None = None) -> None:
    """The same, with sums over all pixels. Blocks share them, if they are few: a second launch adds up their
    parts."""
    shape = _shape(x, out, grad_output, options)
    if _is_for_another(shape, grad_output):
        return conv2d_tensor_core_weight_grad.weight_grad(out, grad_output, x, *options)
    walk = walk_forwards(grad_output.shape[2:], out.shape[2:], options)
    made, channels, *kernel = out.shape
    taps, element = kernel[0] * kernel[1], element_of(x)
    pixels = shape["N"] * shape["OH"] * shape["OW"]
    at_once = matmul_wgmma.multiprocessors(out) // CLUSTER
    tile, clusters, parts = _cut(taps, channels, made, pixels, at_once, tile)
    length = blocks(blocks(pixels, parts), BOX_ROWS) * BOX_ROWS
    parts = blocks(pixels, length)
    images: list[Copy] = []
    source, grads = channels_last(x, later=images), _pixels(grad_output, later=images)
    transpose_together(images, [])
    grads = grads.reshape(1, pixels, made)
    results = _taps_of(out) if parts == 1 and out.dtype == x.dtype else None
    to_out = results is not None
    target = out if out.dtype == x.dtype else unused(x, x.dtype)
    sums = (parts, taps, channels, made)
    partial = unused(out, np.float32) if to_out else workspace(out, sums, np.float32)
    source_map = _map_of_images(x, source, walk)
    out_map = tensor_map.describe(results) if to_out else source_map  # which is then not used
    arguments = (
        *(strided(target), partial, to_out, strided(source[0]), strided(grads)),
        *(source_map, tensor_map.describe(grads), out_map, walk.filter),
        *(pixels, length, parts, made, channels),
    )
    grid = CLUSTER * min(clusters * parts, at_once)
    _weight_grad[element, tile].launch(grid, THREADS, arguments, SHARED_BYTES)
    if not to_out:
        squares = blocks(taps * channels, SQUARE) * blocks(made, SQUARE)
        arguments = (strided(out), partial, parts, taps, channels, made, is_channels_last(out))
        _add_parts[element_of(out)].launch(
            squares, (SQUARE, ROW_THREADS, min(parts, PART_THREADS)), arguments
        )


def share_at_work(array: Any, pixels: int, made: int, steps: int) -> float:
    """Of the places that the card of ``array`` has for clusters, those that a result of so many pixels and
    channels fills, each the sum of so many steps."""
    rows, at_once = blocks(pixels, CLUSTER * TILE_M), matmul_wgmma.multiprocessors(array) // CLUSTER
    tile, parts = _tile_and_parts(rows, made, steps, at_once)
    return min(rows * blocks(made, tile) * parts / at_once, 1)


def weight_grad_share_at_work(array: Any, taps: int, channels: int, made: int, pixels: int) -> float:
    """The same for the gradient of a weight, from an output of so many pixels."""
    at_once = matmul_wgmma.multiprocessors(array) // CLUSTER
    _, clusters, parts = _cut(taps, channels, made, pixels, at_once)
    return min(clusters * parts / at_once, 1)


def _shape(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any = None, backwards: bool = False
) -> dict[str, int]:
    """As :func:`.conv2d_tensor_core.one_group`, if the card and the copy engine can do it."""
    shape = one_group(x, weight, output, options, bias)
    require(x, "conv2d_wgmma")
    kernel, each = weight.shape[2:], (options[:2], options[2:4], options[4:6])
    takes = fits_backwards(x.shape[2:], output.shape[2:], kernel, *each) if backwards else fits(kernel, *each)
    if not takes:
        raise ValueError(
            f"conv2d wgmma kernel: the copy engine takes no kernel of {tuple(kernel)} with stride, "
            f"padding and dilation {options[:6]}"
        )
    return shape


def _is_for_another(shape: dict[str, int], images: Any) -> bool:
    """Whether there is nothing to do, or ``images`` have more pixels than the copy engine counts."""
    pixels = shape["N"] * prod(images.shape[2:])
    return 0 in (pixels, shape["C"], shape["O"]) or pixels > tensor_map.LARGEST_SIZE


def _is_product(out: Any, images: Any, weight: Any, options: tuple[int, ...]) -> bool:
    """Whether a kernel of 1 x 1 makes planes in 16 bits of planes: that is a product of matrices for each
    image, which the copy engine finds where they lie."""
    return (
        out.itemsize == 2
        and conv2d_pointwise.fits(images, weight.shape[2:], options[:2], options[2:4])
        and all(is_contiguous(x) and starts_at_vector(x) for x in (out, images))
    )


def _matrix(weight: Any, dtype: Any) -> Any:
    """``weight`` (O, C, 1, 1) as (O, C), of ``dtype``."""
    return rounded(weight, dtype).reshape(weight.shape[:2])


def _multiply(out: Any, weight: Any, images: Any, relu: bool = False) -> None:
    """out (N, M, H, W) = weight (M, K) times images (N, K, H, W)."""
    (N, M), pixels = out.shape[:2], prod(out.shape[2:])
    weights = array_module(out).broadcast_to(weight, (N, *weight.shape))
    matmul_wgmma.wgmma(out.reshape(N, M, pixels), weights, images.reshape(N, weight.shape[1], pixels))
    if relu:
        numbers = out.view(BFLOAT16) if out.dtype == np.uint16 else out
        elementwise.ACTIVATIONS["relu"](numbers, numbers)


def _convolve(
    kernels: dict[tuple[str, int], CudaKernel],
    out: Any,
    images: Any,
    weights: Any,
    of_weight: list[Copy],
    walks: list[tuple[Walk | None, unchanging | None]],
    bias: Any | None,
    relu: bool,
    tile: int | None,
    parts: int | None,
) -> None:
    """out (N, made, H, W) from the images at all taps, by a launch for each of ``walks``. ``weights``, for a
    tensor map, are (taps, O, C), or of floats always (taps, made, channels); ``of_weight`` makes them."""
    N, made, height, width = out.shape
    apart = walks[0][1] is not None
    in_one_part = apart or (tile or 0) > MOST_IN_PARTS
    if parts is not None and (tile is None or (parts > 1 and in_one_part)):
        raise ValueError(
            f"conv2d wgmma kernel: parts go with a tile, several with one of at most {MOST_IN_PARTS} columns "
            f"and not with an input's gradient with a stride, got parts={parts}, tile={tile}"
        )
    as_tf32, at_once = out.itemsize == 4, matmul_wgmma.multiprocessors(out) // CLUSTER
    of_images: list[Copy] = []
    source = channels_last(images, later=of_images)
    transpose_together(of_images, of_weight)
    weights_map = tensor_map.describe(weights, as_tf32)
    if in_one_part:
        parts = 1
    elif tile is None:
        rows, steps = blocks(N * height * width, CLUSTER * TILE_M), _steps_of(out, walks[0][0], images)
        tile, parts = _tile_and_parts(rows, made, steps, at_once)
    else:
        parts = _whole_parts(_steps_of(out, walks[0][0], images), parts or 1)
    if parts > 1:
        results, stores = out, BY_THREADS if lies_last(out) else CHANNELS_FIRST
    else:
        results, stores = _results_of(out, apart)
    partial = workspace(out, (parts, out.size), np.float32) if parts > 1 else unused(out, np.float32)
    if any(walk is None for walk, _ in walks):
        results[...] = 0
    for walk, lattice in walks:
        if walk is None:
            continue
        pixels, steps = N * prod(walk.size), _steps_of(out, walk, images)
        source_map = _map_of_images(images, source, walk, as_tf32)
        out_map = tensor_map.describe(results) if stores == BY_BOXES else source_map  # which is then not used
        rows = blocks(pixels, CLUSTER * TILE_M)
        columns = tile or _tile(rows, made, at_once)
        arguments = (
            *(strided(results), strided(source[0]), strided(weights), bias, source_map, weights_map, out_map),
            *(walk.filter, lattice or NO_LATTICE, pixels, made, images.shape[1], relu, stores),
            *(partial, parts, blocks(steps, parts)),
        )
        grid = CLUSTER * min(rows * blocks(made, columns) * parts, at_once)
        kernels[element_of(out), columns].launch(grid, THREADS, arguments, SHARED_BYTES)
    if parts > 1:
        add_results(out, partial, bias, relu)
    elif stores != CHANNELS_FIRST and not is_channels_last(out):
        transpose(out.reshape(N, made, height * width), results, (N, height * width, made))


def _results_of(out: Any, apart: bool) -> tuple[Any, int]:
    """Where results of ``out`` (N, made, H, W) are stored, as matrices for a tensor map, and in which way:
    there, or as pixels that have yet to be transposed. ``apart``: pixel by pixel."""
    N, made, height, width = out.shape
    if lies_last(out):
        results = nhwc(out).reshape(1, N * height * width, made)
    else:
        results = out.reshape(N, made, height * width)
        if out.itemsize == 2 and not apart and tensor_map.fits(results):
            return results, CHANNELS_FIRST
        results = workspace(out, (1, N * height * width, made))
    if apart:
        return results, TO_LATTICE
    return results, BY_BOXES if tensor_map.fits(results) else BY_THREADS


def _steps_of(out: Any, walk: Walk, images: Any) -> int:
    """How many steps of K a result has: whole ones of each tap's channels."""
    taps = walk.filter["taps_down"] * walk.filter["taps_across"]
    return taps * blocks(images.shape[1] * out.itemsize, STEP_BYTES)


def _whole_parts(steps: int, parts: int) -> int:
    """How many parts there are, if ``parts`` were asked for and each but the last has as many steps."""
    return blocks(steps, blocks(steps, parts))


@lru_cache(maxsize=1024)
def _tile_and_parts(rows: int, made: int, steps: int, at_once: int) -> tuple[int, int]:
    """How many columns a tile has, and into how many parts K is cut: the latter follows from the sizes alone,
    so that equal sizes get equal bits on any card."""

    def time_of(tile: int, count: int, parts: int) -> float:
        if parts > 1 and tile > MOST_IN_PARTS:
            return inf
        return LAUNCH + blocks(count, MULTIPROCESSORS) * blocks(steps, parts) * _step_time(tile) * TIME

    tiles = {tile: CLUSTER * rows * blocks(made, tile) for tile in COLUMNS}
    results = rows * CLUSTER * TILE_M * made
    _, parts, tile = quickest(tiles, results, max(steps // PART_STEPS, 1), time_of)
    parts = _whole_parts(steps, parts)
    return (tile, parts) if parts > 1 else (_tile(rows, made, at_once), 1)


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


def _pixels(x: Any, dtype: Any = None, later: list[Copy] | None = None) -> Any:
    """``x`` (N, C, H, W), as ``dtype``, as (N, H W, C), for the copy engine: ``x`` itself where it lies like
    that."""
    source, _ = channels_last(x, dtype, later)
    N, C, H, W = x.shape
    return nhwc(source).reshape(N, H * W, C) if source.ndim == 4 else source[:, :, :C]


def _exchanged(weight: Any, later: list[Copy]) -> Any:
    """``weight`` (O, C, KH, KW) as (KH KW, C, O), in a copy: of TF32, factors lie along K."""
    O, C, KH, KW = weight.shape  # noqa: E741
    copy, *_ = taps_of_columns(weight, weight.dtype, later=later)
    if is_channels_last(weight):
        return copy.reshape(KH * KW, C, -1)[..., :O]
    return copy.reshape(C, KH * KW, -1).swapaxes(0, 1)[..., :O]


def _taps_of(weight: Any) -> Any | None:
    """``weight`` (O, C, KH, KW) as (KH KW, O, C), if the copy engine can store there."""
    O, C, KH, KW = weight.shape  # noqa: E741
    if KH * KW > 1 and not is_channels_last(weight):
        return None
    taps = nhwc(weight).reshape(O, KH * KW, C).swapaxes(0, 1)
    return taps if tensor_map.fits(taps) else None


def _map_of_images(x: Any, source: tuple[Any, int], walk: Walk, as_tf32: bool = False) -> Any:
    """The tensor map of x (N, C, H, W), which lies as ``source`` from :func:`channels_last` says."""
    N, C, H, W = x.shape
    return tensor_map.describe_images(
        source[0], (N, H, W, C), source[1], walk.lower, walk.upper, walk.stride, as_tf32
    )
