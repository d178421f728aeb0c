"""Launches ``channel_sums.cu``: the gradients of a normalisation's weight and bias, for each channel.

``grad`` and ``x`` are (samples, channels, area), or have more dimensions behind the channels, whose product
is the area; ``outs`` is (dweight, dbias), of an element for each channel. ``mean`` and ``rstd`` are arrays of
any shape, or None. ``at`` is (per_sample, per_channels): the statistics of an element are number ``sample *
per_sample + channel // per_channels`` of them. All arrays are C-contiguous and of one dtype, float32 or
float64; or, but for the naive rung, ``grad`` and ``x`` are float16 or bfloat16 and the others float32. The
result's bits depend on the shape alone.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import workspaces
from .reduce import ENOUGH_BLOCKS
from .vector import VECTOR_BYTES, is_wide

WARP = 32
THREADS = 256  # in a block, as in planes.cuh
NARROW = 8  # areas below it are walked across channels: a block's lines of memory would hold other channels
MAX_PARTS, MAX_COLUMN_PARTS = 128, 512  # so that the second pass is short
PART = 2048  # the fewest elements that are worth a block of their own
LARGEST_PART = 2**30  # elements that a block takes: it counts them in 32 bits

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_naive = CudaKernel(_source, "channel_sums_naive<T>")
_columns, _planes = (
    {wide: CudaKernel(_source, f"{name}<C, T, {wide}>") for wide in (False, True)}
    for name in ("channel_sums_columns", "channel_sums_planes")
)
_combine = CudaKernel(_source, "channel_sums_combine<T>")


def naive(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> None:
    """One thread for each channel: the definition."""
    samples, channels, area = _sizes(outs, grad, x)
    arguments = (*outs, grad, x, mean, rstd, samples, channels, area, _struct(at))
    _naive.launch(blocks(channels, THREADS), THREADS, arguments)


def split(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> None:
    """Parts of the samples go to blocks of their own, with coalesced loads; a second launch adds them."""
    _, _, area = _sizes(outs, grad, x)
    find = by_columns if area < NARROW else by_planes
    add_up(outs, find(grad, x, mean, rstd, at))


def by_columns(grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> tuple:
    """Two partial sums (parts, channels, area): lanes take neighbours in a sample."""
    samples, channels, area = _sizes((), grad, x)
    columns = channels * area
    wide = is_wide(columns, grad, x)
    grid, block, parts = columns_grid(samples, columns, x.itemsize, wide)
    partial = workspaces(x, (parts, channels, area), computed_dtype(x.dtype))
    struct = _struct((at[0], at[1] * area))
    _columns[wide].launch(grid, block, (*partial, grad, x, mean, rstd, samples, columns, parts, struct))
    return partial


def columns_grid(samples: int, columns: int, itemsize: int, wide: bool) -> tuple[int, tuple[int, int], int]:
    """The grid, the block and the parts of the samples, where blocks go down columns (``columns.cuh``)."""
    width = VECTOR_BYTES // itemsize if wide else 1
    vectors = blocks(columns, width)
    across = min(1 << (vectors - 1).bit_length(), WARP)
    strips = blocks(vectors, across)
    parts = number_of_parts(strips, samples, samples * across * width, MAX_COLUMN_PARTS)
    return strips * parts, (across, THREADS // across), parts


def by_planes(grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> tuple:
    """Two partial sums (parts, channels): a block walks along the elements of a channel."""
    samples, channels, area = _sizes((), grad, x)
    parts = number_of_parts(channels, samples, samples * area)
    partial = workspaces(x, (parts, channels), computed_dtype(x.dtype))
    arguments = (*partial, grad, x, mean, rstd, samples, channels, area, parts, _struct(at))
    _planes[is_wide(area, grad, x)].launch(channels * parts, THREADS, arguments)
    return partial


def add_up(outs: tuple, partial: tuple) -> None:
    """(dweight, dbias), (channels,), from two partial sums (parts, channels) or (parts, channels, area)."""
    parts, channels, *plane = partial[0].shape
    arguments = (*outs, *partial, channels, prod(plane), parts)
    _combine.launch(blocks(channels, WARP), (WARP, WARP), arguments)


@lru_cache(maxsize=1024)
def number_of_parts(
    across: int, samples: int, elements: int, most: int = MAX_PARTS, at_a_time: int = ENOUGH_BLOCKS
) -> int:
    """Into how many parts to cut the samples, where there are ``across`` strips of so many elements each.

    A card runs so many blocks ``at_a_time``.
    """
    if elements > LARGEST_PART * samples:
        raise ValueError(f"channel sums kernel: a plane has more than 2^30 elements: {elements // samples}")
    wanted = min(at_a_time // max(across, 1), samples, elements // PART, most)
    # Parts differ by a sample: one of half the size is never too large.
    return max(1, wanted, min(samples, blocks(elements, LARGEST_PART // 2)))


@lru_cache(maxsize=256)
def _struct(at: tuple[int, int]) -> unchanging:
    return unchanging(per_sample=at[0], per_channels=at[1])


def _sizes(outs: tuple, grad: Any, x: Any) -> tuple[int, int, int]:
    samples, channels, *plane = x.shape
    if grad.shape != x.shape or any(out.size != channels for out in outs):
        raise ValueError(
            f"channel sums kernel: cannot sum the channels of {grad.shape} and {x.shape} "
            f"to {' and '.join(str(out.shape) for out in outs)}"
        )
    return samples, channels, prod(plane)
