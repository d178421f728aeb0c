"""Launches ``conv2d_tensor_core.cu``: convolution and the gradient for its input, on tensor cores.

Arrays and options are those of :mod:`.conv2d`, but all are float32, all float16, or all bfloat16 (or uint16
that are its bits). The output alone has to be C-contiguous, or lie channels last
(:mod:`minigrad.kernels.channels_last`). Sums are float32; float32 factors are rounded to TF32. Beside images
of float16 or bfloat16 the weight of a single group, and its gradient, may be float32: the launch that brings
the weight in order rounds it, too.

The kernels read images and weights whose channels come last. What lies like that, in whole chunks of 16
bytes, is read where it is: images (N, H, W, C) seen as (N, C, H, W), such weights, and those of 1x1 kernels.
The rest is transposed by a launch in front. Groups of few channels are merged (:mod:`.conv2d_merge_groups`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arguments import is_contiguous, unchanging
from ..channels_last import is_channels_last, nchw, nhwc
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import array_module, workspace
from .cast import cast
from .conv2d import fields_of, largest_phase, shape_fields, tap_steps
from .conv2d_merge_groups import SMALLEST_TILE, groups_of_product, merged_weights
from .conv2d_parts import add_results, cut_into_parts
from .matmul import MULTIPROCESSORS
from .matmul_tensor_core import CHUNK_BYTES, CHUNKS, ELEMENTS, STAGES, element_of, is_supported
from .transpose import Copy, transpose, transpose_together
from .vector import starts_at_vector

__all__ = ["forward", "input_grad", "is_supported", "pooled"]

TILE_N = 128  # pixels, as in conv2d_tensor_core.cu
THREADS = 128
ALL_STEPS = 1 << 30  # in one part
PLACE_BYTES = 24  # of a pixel
PART_TILE = 64  # rows of the tiles whose sums may be cut into parts
PART_STEPS = 16  # the fewest that are worth a block of their own: it stores 32 KB for 192 KB that it reads

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _kernels(name: str) -> dict[tuple[str, str, int], CudaKernel]:
    """By the element, that of the results, which of parts are floats, and the rows of a tile."""
    whole = [(element, element, rows) for element in ELEMENTS for rows in (SMALLEST_TILE, 64, 128)]
    parts = [(element, "float", PART_TILE) for element in ELEMENTS]
    return {
        (element, out, rows): CudaKernel(_source, f"{name}<{element}, {out}, {rows}>")
        for element, out, rows in whole + parts
    }


_forward = _kernels("conv2d_forward_tensor_core")
_input_grad = _kernels("conv2d_input_grad_tensor_core")
_pooled = {
    (element, rows): CudaKernel(_source, f"conv2d_pooled_tensor_core<{element}, {rows}>")
    for element in ELEMENTS
    for rows in (64, 128)
}


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

    A ``tile`` of so many rows, 32, 64 or 128, is taken in place of the one that suits the sizes.
    """
    shapes = x.shape, weight.shape, out.shape, options, None if bias is None else bias.shape
    plan, products = _products(shapes, x.itemsize, tile, exchanged=False)
    images: list[Copy] = []
    of_weight: list[Copy] = []
    source, pixel = channels_last(x, later=images)
    weights, tap, row = _taps_of_rows(weight, x.dtype, products.groups, products.merged, of_weight)
    transpose_together(images, of_weight)
    results, bias = results_of(out, plan.parts), in_order(bias)
    epilogue = (bias, relu) if plan.parts == 1 else (None, False)
    layout = _pitches(pixel, tap, row), lies_last(out), products.group
    arguments = (strided(weights), *epilogue, *layout, plan.part_steps, products.shape)
    _launch(_forward, plan, strided(results), strided(source), *arguments)
    if plan.parts > 1:
        add_results(out, results, bias, relu)


def pooled(
    outs: tuple[Any, Any], x: Any, weight: Any, bias: Any | None, *options: int, tile: int | None = None
) -> None:
    """Forward, then ReLU and the largest of windows of 2 x 2, from registers.

    ``outs`` are these (N, O, OH // 2, OW // 2), and which of the four each is, as uint8.
    """
    out, taps = outs
    shape = one_group(x, weight, _Output(_output_shape(x, weight, options)), options, bias)
    if not out.shape == taps.shape == (shape["N"], shape["O"], shape["OH"] // 2, shape["OW"] // 2):
        raise ValueError(f"conv2d pooled kernel: outputs of shape {out.shape} and {taps.shape} do not fit")
    if lies_last(out) != lies_last(taps):
        raise ValueError(f"conv2d pooled kernel: outputs of strides {out.strides} and {taps.strides} differ")
    columns = blocks(4 * shape["N"] * out.shape[2] * out.shape[3], TILE_N)
    source, pixel = channels_last(x)
    weights, tap, row = _taps_of_rows(weight, x.dtype)
    pitches = _pitches(pixel, tap, row)
    tile = tile or tile_rows(shape["O"], columns)
    arguments = (strided(source), strided(weights), in_order(bias), pitches, lies_last(out), shape)
    grid = blocks(shape["O"], tile) * columns
    kernel = _pooled[element_of(out), tile]
    kernel.launch(grid, THREADS, (strided(out), strided(taps), *arguments), _shared_bytes(tile))


def input_grad(
    out: Any,
    grad_output: Any,
    weight: Any,
    *options: int,
    tile: int | None = None,
    weights: tuple[Any, int, int] | None = None,
) -> None:
    """As forward, one product for each phase of the stride, with the weight's rows and channels exchanged.

    ``weights`` is what :func:`weights_backwards` returned for the weight, if that was called before.
    """
    shapes = out.shape, weight.shape, grad_output.shape, options
    plan, products = _products(shapes, out.itemsize, tile, exchanged=True)
    images: list[Copy] = []
    of_weight: list[Copy] = []
    source, pixel = channels_last(grad_output, later=images)
    if weights is None:
        weights = taps_of_columns(weight, out.dtype, products.groups, products.merged, of_weight)
    transpose_together(images, of_weight)
    factors, tap, row = weights
    results, apart = results_of(out, plan.parts), tap_steps(products.shape)
    layout = _pitches(pixel, tap, row), lies_last(out), products.group
    arguments = (strided(factors), *layout, plan.part_steps, products.shape, apart)
    _launch(_input_grad, plan, strided(results), strided(source), *arguments)
    if plan.parts > 1:
        add_results(out, results)


def weights_backwards(weight: Any, dtype: Any, later: list[Copy]) -> tuple[Any, int, int]:
    """What :func:`input_grad` reads of the ``weight`` of a single group: a copy, which ``later`` says how to
    make."""
    return taps_of_columns(weight, dtype, later=later)


def is_cut(x: Any, weight: Any, *options: int) -> bool:
    """Whether :func:`forward` of one group adds up parts of its sums: not in the order of :func:`pooled`."""
    N, rows, OH, OW = _output_shape(x, weight, options)
    steps = steps_of(weight.shape[2] * weight.shape[3], weight.shape[1], x.dtype.itemsize)
    return _plan(rows, blocks(N * OH * OW, TILE_N), steps).parts > 1


class _Plan(NamedTuple):
    """How a product is made: the rows of a tile, how many tiles, in how many parts, and the steps of one."""

    tile: int
    tiles: int
    parts: int
    part_steps: int


@lru_cache(maxsize=1024)
def _plan(rows: int, columns: int, steps: int, tile: int | None = None, merged: int = 1) -> _Plan:
    """For ``columns`` tiles side by side. Products of ``merged`` groups are not cut."""
    small = blocks(rows, PART_TILE) * columns
    parts, part_steps = cut_steps(steps, small, tile or PART_TILE)
    if parts > 1 and merged == 1:
        return _Plan(PART_TILE, small, parts, part_steps)
    tile = tile or (SMALLEST_TILE if rows <= SMALLEST_TILE else tile_rows(rows, columns))
    return _Plan(tile, blocks(rows, tile) * columns, 1, ALL_STEPS)


class _Products(NamedTuple):
    """What is multiplied: of ``groups``, so many ``merged`` in a product, with the fields of struct
    Conv2dShape, whose groups are the products, and those of struct Group."""

    groups: int
    merged: int
    shape: unchanging
    group: unchanging


@lru_cache(maxsize=1024)  # the same few convolutions come in every step of a training
def _products(shapes: tuple, itemsize: int, tile: int | None, exchanged: bool) -> tuple[_Plan, _Products]:
    """For :func:`forward` or, with the weight's rows and channels ``exchanged``, for :func:`input_grad`.

    ``shapes`` are the arguments of :func:`fields_of`.
    """
    shape = fields_of(*shapes)
    groups = shape["groups"]
    rows, channels = shape["O"] // groups, shape["C"] // groups
    phases, pixels, taps = 1, shape["N"] * shape["OH"] * shape["OW"], shape["KH"] * shape["KW"]
    if exchanged:
        rows, channels = channels, rows
        # A phase of fewer taps than the largest has no steps left for the last parts, which are zeros.
        phases, pixels, taps = largest_phase(shape)
    merged = groups_of_product(groups, rows, (channels,), CHUNK_BYTES // itemsize)
    columns = blocks(pixels, TILE_N) * phases * (groups // merged)
    plan = _plan(rows * merged, columns, steps_of(taps, channels, itemsize), tile, merged)
    group = unchanging(rows=rows, channels=channels)
    return plan, _Products(groups, merged, of_products(shape, groups // merged), group)


@lru_cache(maxsize=1024)
def _pitches(pixel: int, tap: int, row: int) -> unchanging:
    """The fields of struct Pitches."""
    return unchanging(pixel=pixel, tap=tap, row=row)


def cut_steps(steps: int, tiles: int, tile: int) -> tuple[int, int]:
    """Into how many parts to cut sums of ``steps``, and the steps of one.

    That is done where multiprocessors would be idle, which then make no larger tiles than of PART_TILE rows.
    """
    return cut_into_parts(steps, tiles, MULTIPROCESSORS, PART_STEPS) if tile == PART_TILE else (1, ALL_STEPS)


def steps_of(taps: int, channels: int, itemsize: int) -> int:
    """How many steps of a tile a sum over all taps and channels takes."""
    return blocks(taps * padded_pitch(channels, itemsize) * itemsize, CHUNKS * CHUNK_BYTES)


def results_of(out: Any, parts: int) -> Any:
    """Where kernels store what they make of ``out``: there, or of several ``parts`` in an array for each."""
    return out if parts == 1 else workspace(out, (parts, out.size), np.float32)


def _launch(kernels: dict, plan: _Plan, results: strided, source: strided, *arguments: Any) -> None:
    kernel = kernels[element_of(source), element_of(results), plan.tile]
    grid, shared_bytes = (plan.tiles, plan.parts), _shared_bytes(plan.tile)
    kernel.launch(grid, THREADS, (results, source, *arguments), shared_bytes)


def _shared_bytes(tile: int) -> int:
    return STAGES * (tile + TILE_N) * CHUNKS * CHUNK_BYTES + TILE_N * PLACE_BYTES


class _Output(NamedTuple):
    """An output that is never stored as a whole."""

    shape: tuple[int, ...]
    ndim: int = 4


def _output_shape(x: Any, weight: Any, options: tuple[int, ...]) -> tuple[int, ...]:
    stride, padding, dilation = options[:2], options[2:4], options[4:6]
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return x.shape[0], weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def one_group(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any | None = None
) -> dict[str, int]:
    """The fields of struct Conv2dShape; ValueError if the arrays do not fit together, or for groups."""
    shape = shape_fields(x, weight, output, options, bias)
    if shape["groups"] != 1:
        raise ValueError(f"conv2d tensor core kernel: expected 1 group, got {shape['groups']}")
    return shape


@lru_cache(maxsize=1024)
def _of_products(products: int, *sizes: tuple[str, int]) -> unchanging:
    return unchanging(dict(sizes) | {"groups": products})


def of_products(shape: unchanging, products: int) -> unchanging:
    """The fields of struct Conv2dShape for the convolution whose groups are what ``products`` make."""
    return shape if shape["groups"] == products else _of_products(products, *shape.items())


def lies_last(out: Any) -> bool:
    """Whether the output lies channels last; ValueError unless it does, or is C-contiguous."""
    last = is_channels_last(out)
    if not (last or is_contiguous(out)):
        raise ValueError(
            "conv2d tensor core kernel: expected an output that is C-contiguous, or lies channels last, "
            f"got strides {out.strides} for shape {out.shape}"
        )
    return last


def in_order(x: Any | None) -> Any | None:
    """``x``, or a C-contiguous copy of it; None for None."""
    return x if x is None or is_contiguous(x) else array_module(x).ascontiguousarray(x)


def rounded(x: Any, dtype: Any) -> Any:
    """``x`` as ``dtype``: itself, or a copy that lies channels last as it does, or else in C order."""
    if x.dtype == dtype:
        return x
    last = is_channels_last(x)
    source = nhwc(x) if last else in_order(x)
    copy = workspace(x, source.shape, dtype)
    cast(copy, source)
    return nchw(copy) if last else copy


def channels_last(x: Any, dtype: Any = None, later: list[Copy] | None = None) -> tuple[Any, int]:
    """``x`` (N, C, H, W), rounded to ``dtype``, for reading as (N, H, W, C), and how many elements its pixels
    are apart.

    That is a multiple of 16 bytes, and so are the channels of ``x`` where it is read itself. In a copy zeros
    follow them up to there. One that is to be made ``later`` is added to that list instead.
    """
    N, C, H, W = x.shape
    dtype = x.dtype if dtype is None else dtype
    if x.dtype != dtype and (H * W == 1 or is_channels_last(x)):  # which need not be transposed
        x = rounded(x, dtype)
    is_ready = x.dtype == dtype and starts_at_vector(x)
    pitch = _pitch(x.shape, x.strides, x.itemsize) if is_ready else None
    if pitch is not None:
        return x, pitch
    pitch = padded_pitch(C, dtype.itemsize)
    copy = workspace(x, (N, H * W, pitch), dtype)
    if is_channels_last(x):  # pixels that are no multiples of 16 bytes
        copy[:, :, :C], copy[:, :, C:] = nhwc(x).reshape(N, H * W, C), 0
    else:
        _transpose(copy, in_order(x), (N, C, H * W), later)
    return copy, pitch


def _transpose(out: Any, x: Any, shape: tuple[int, int, int], later: list[Copy] | None) -> None:
    """``transpose``, or a reminder to do it ``later``."""
    if later is None:
        transpose(out, x, shape)
    else:
        later.append((out, x, shape))


def padded_pitch(channels: int, itemsize: int) -> int:
    """``channels``, rounded up to 16 bytes of elements."""
    per_chunk = CHUNK_BYTES // itemsize
    return blocks(channels, per_chunk) * per_chunk


@lru_cache(maxsize=1024)
def _pitch(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int | None:
    """How many elements the pixels of images are apart, if channels come last in whole chunks, or None."""
    (N, C, H, W), (image, channel, row, pixel) = shape, strides
    if 0 in shape or (C > 1 and channel != itemsize) or C * itemsize % CHUNK_BYTES:
        return None
    steps = [(W, pixel, 1), (H, row, W), (N, image, H * W)]
    apart = [(stride, pixels) for size, stride, pixels in steps if size > 1]
    if not apart:
        return padded_pitch(C, itemsize)
    step = apart[0][0] // apart[0][1]
    fits = step >= C * itemsize and step % CHUNK_BYTES == 0
    return step // itemsize if fits and all(s == pixels * step for s, pixels in apart) else None


def _taps_of_rows(
    weight: Any, dtype: Any, groups: int = 1, merged: int = 1, later: list[Copy] | None = None
) -> tuple[Any, int, int]:
    """``weight`` (O, C, KH, KW), rounded to ``dtype``, for reading as (O, KH, KW, C), and how many elements
    its taps, and its rows, are apart."""
    if merged > 1:
        return _merged(weight, groups, merged, weight.shape[1], transposed=False)
    weights, pitch = channels_last(weight, dtype, later)
    return weights, pitch, math.prod(weight.shape[2:]) * pitch


def _merged(weight: Any, groups: int, merged: int, columns: int, transposed: bool) -> tuple[Any, int, int]:
    pitch = padded_pitch(merged * columns, weight.itemsize)
    weights = merged_weights(weight, element_of(weight), groups, merged, pitch, transposed)
    return weights, pitch, math.prod(weight.shape[2:]) * pitch


def taps_of_columns(
    weight: Any, dtype: Any, groups: int = 1, merged: int = 1, later: list[Copy] | None = None
) -> tuple[Any, int, int]:
    """The same for reading as (C, KH, KW, O), by a transposed copy."""
    outputs, channels, *kernel = weight.shape
    if groups > 1:
        return _merged(weight, groups, merged, outputs // groups, transposed=True)
    taps, pitch = kernel[0] * kernel[1], padded_pitch(outputs, dtype.itemsize)
    last = is_channels_last(weight)
    copy = workspace(weight, (1, taps * channels, pitch), dtype)
    _transpose(copy, weight if last else in_order(weight), (1, outputs, taps * channels), later)
    return (copy, channels * pitch, pitch) if last else (copy, pitch, taps * pitch)


def tile_rows(rows: int, column_tiles: int) -> int:
    """The height of a tile: the larger, if it covers ``rows`` with no more, and there are tiles enough."""
    large = blocks(rows, 128)
    return 128 if 2 * large == blocks(rows, 64) and large * column_tiles >= MULTIPROCESSORS else 64
