"""Launches ``channel_sums.cu``: the gradients of a normalisation's weight and bias, for each channel.

``grad`` and ``x`` are (samples, channels, area), ``outs`` is (dweight, dbias), each (channels,). ``mean`` and
``rstd`` are arrays of any shape, or None. ``at`` is (per_sample, per_channels): the statistics of an element
are number ``sample * per_sample + channel // per_channels`` of them. All arrays are C-contiguous and of one
dtype, float32 or float64. The result's bits depend on the shape alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .reduce import ENOUGH_BLOCKS

WARP = 32
THREADS = 256  # in a block, as in channel_sums.cu
MAX_PARTS = 128  # so that the second pass is short
PART = 2048  # the fewest elements that are worth a block of their own

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_naive = CudaKernel(_source, "channel_sums_naive<T>")
_columns = CudaKernel(_source, "channel_sums_columns<T>")
_planes = CudaKernel(_source, "channel_sums_planes<T>")
_combine = CudaKernel(_source, "channel_sums_combine<T>")


def naive(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> None:
    """One thread for each channel: the definition."""
    samples, channels, area = _sizes(outs, grad, x)
    arguments = (*outs, grad, x, mean, rstd, samples, channels, area, _struct(at))
    _naive.launch(blocks(channels, THREADS), THREADS, arguments)


def split(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, at: tuple[int, int]) -> None:
    """Parts of the samples go to blocks of their own, with coalesced loads; a second launch adds them."""
    samples, channels, area = _sizes(outs, grad, x)
    across = blocks(channels, WARP) if area == 1 else channels
    parts = number_of_parts(across, samples, samples * area * channels // max(across, 1))
    partial = workspace(x, (2, parts, channels))
    inputs = (*partial, grad, x, mean, rstd, samples, channels)
    if area == 1:
        _columns.launch(across * parts, (WARP, THREADS // WARP), (*inputs, parts, _struct(at)))
    else:
        arguments = (*inputs, area, parts, lanes_along(area), _struct(at))
        _planes.launch(across * parts, THREADS, arguments)
    _combine.launch(
        blocks(channels, THREADS // WARP), (WARP, THREADS // WARP), (*outs, *partial, channels, parts)
    )


def number_of_parts(across: int, samples: int, elements: int) -> int:
    """Into how many parts to cut the samples, where there are ``across`` strips of so many elements each."""
    return max(1, min(ENOUGH_BLOCKS // max(across, 1), samples, elements // PART, MAX_PARTS))


def lanes_along(area: int) -> int:
    """How many threads walk along a sample's elements side by side: a power of two, up to a whole block."""
    return min(1 << (area - 1).bit_length(), THREADS)


def _struct(at: tuple[int, int]) -> dict[str, int]:
    return {"per_sample": at[0], "per_channels": at[1]}


def _sizes(outs: tuple, grad: Any, x: Any) -> tuple[int, int, int]:
    if x.ndim != 3 or grad.shape != x.shape or any(out.shape != x.shape[1:2] for out in outs):
        raise ValueError(
            f"channel sums kernel: cannot sum the channels of {grad.shape} and {x.shape} "
            f"to {' and '.join(str(out.shape) for out in outs)}"
        )
    return x.shape
