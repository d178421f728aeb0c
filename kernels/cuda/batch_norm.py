"""Launches ``batch_norm.cu``: batch norm with its gradients, and with given statistics.

``x``, ``y`` and their gradients are (samples, channels, area), or have more dimensions behind the channels,
whose product is the area; all other arrays have an element for each channel. ``outs`` is (y, mean, rstd), of
the gradients (dx, dweight, dbias). Weight and bias may be None. All arrays are C-contiguous and of one dtype,
float32 or float64; or, but for the naive rungs, those like ``x`` are float16 or bfloat16 and the others
float32. The result's bits depend on the shape alone.

``running``, unless None, has arrays of the channels' running ``mean`` and ``var``, which the launch that
finds the statistics moves by ``momentum`` towards those of the batch, ``unbiased`` being count / (count - 1);
and ``batches``, an int64 array of one element, which it counts up by one, or None.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import channel_sums, unused, workspace, workspaces
from .channel_sums import NARROW, columns_grid, number_of_parts
from .matmul import MULTIPROCESSORS
from .vector import is_wide

WARP = 32
THREADS = 256  # in a block, as in planes.cuh
EACH_CHANNEL = (0, 1)  # where channel_sums finds the statistics
# Blocks of the second launches that an H200 runs at a time, as their registers allow: with a few more the
# last ones would run alone, and each begins by combining what the first launch has left.
NORMALIZE_BLOCKS, GRAD_BLOCKS = 4 * MULTIPROCESSORS, 6 * MULTIPROCESSORS

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _widths(kernel: str, rest: str = "") -> dict[bool, CudaKernel]:
    return {wide: CudaKernel(_source, f"{kernel}<C, T, {wide}{rest}>") for wide in (False, True)}


_naive = CudaKernel(_source, "batch_norm_naive<T>")
_moments = _widths("batch_norm_moments")
_normalize = _widths("batch_norm_normalize")
_inference = _widths("batch_norm_inference")
_grad_naive = CudaKernel(_source, "batch_norm_grad_naive<T>")
_grad = _widths("batch_norm_grad")
_moments_columns = _widths("batch_norm_moments_columns")
_combine = CudaKernel(_source, "batch_norm_combine<T>")
_normalize_columns = _widths("batch_norm_normalize_columns", ", false")
_inference_columns = _widths("batch_norm_normalize_columns", ", true")
_grad_columns = _widths("batch_norm_grad_columns")


def batch_norm_naive(outs: tuple, x: Any, weight: Any, bias: Any, eps: float, running: Any = None) -> None:
    """One thread for each channel, which it walks three times: the definition."""
    samples, channels, area = sizes_of(outs[0], x, *outs[1:])
    arguments = (*outs, x, weight, bias, samples, channels, area, eps, *followed(running, outs[1]))
    _naive.launch(blocks(channels, THREADS), THREADS, arguments)


def batch_norm_split(outs: tuple, x: Any, weight: Any, bias: Any, eps: float, running: Any = None) -> None:
    """Several blocks for each channel find moments; then one elementwise kernel, which combines them."""
    y, mean, rstd = outs
    sizes = samples, channels, area = sizes_of(y, x, mean, rstd)
    if area < NARROW:
        _columns_split(outs, x, weight, bias, sizes, eps, running)
        return
    wide, parts = is_wide(area, x, y), number_of_parts(channels, samples, samples * area)
    partial = workspaces(mean, (parts, channels))
    _moments[wide].launch(channels * parts, THREADS, (*partial, x, *sizes, parts))
    pieces = number_of_parts(channels, samples, samples * area, at_a_time=NORMALIZE_BLOCKS)
    arguments = (y, mean, rstd, x, *partial, weight, bias, *sizes, parts, pieces, eps)
    arguments += followed(running, mean)
    _normalize[wide].launch(channels * pieces, THREADS, arguments)


def _columns_split(
    outs: tuple, x: Any, weight: Any, bias: Any, sizes: tuple, eps: float, running: Any
) -> None:
    y, mean, rstd = outs
    wide, grid, block, parts = _by_columns(sizes, x, y)
    partial = workspaces(mean, (parts, sizes[1] * sizes[2]))
    _moments_columns[wide].launch(grid, block, (*partial, x, *sizes, parts))
    warps = THREADS // WARP
    arguments = (mean, rstd, *partial, *sizes, parts, eps, *followed(running, mean))
    _combine.launch(blocks(sizes[1], warps), (WARP, warps), arguments)
    _normalize_columns[wide].launch(grid, block, (y, x, mean, rstd, weight, bias, *sizes, parts, eps))


def followed(running: Any, mean: Any) -> tuple[Any, Any, Any, unchanging]:
    """The arguments by which kernels move ``running``, or nothing; ``mean`` is the batch's."""
    if running is None:
        none = unused(mean, mean.dtype)
        return none, none, unused(mean, np.int64), _following(0.0, 0.0, False, False)
    counts = running.batches is not None
    batches = running.batches if counts else unused(mean, np.int64)
    return running.mean, running.var, batches, _following(running.momentum, running.unbiased, True, counts)


@lru_cache(maxsize=1024)
def _following(momentum: float, unbiased: float, moves: bool, counts: bool) -> unchanging:
    """The fields of struct Following."""
    return unchanging(momentum=momentum, unbiased=unbiased, moves=moves, counts=counts)


def batch_norm_inference(y: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> None:
    """One elementwise kernel."""
    sizes = samples, channels, area = sizes_of(y, x, mean, var)
    arrays = (y, x, mean, var, weight, bias)
    if area < NARROW:
        wide, grid, block, parts = _by_columns(sizes, x, y)
        _inference_columns[wide].launch(grid, block, (*arrays, *sizes, parts, eps))
        return
    parts = number_of_parts(channels, samples, samples * area)
    _inference[is_wide(area, x, y)].launch(channels * parts, THREADS, (*arrays, *sizes, parts, eps))


def batch_norm_grad_naive(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """One thread for each channel, which it walks twice: the definition."""
    dx, dweight, dbias = outs
    sizes = _, channels, _ = sizes_of(dx, x, mean, rstd)
    channel_sums.naive((dweight, dbias), grad, x, mean, rstd, EACH_CHANNEL)
    arguments = (dx, grad, x, mean, rstd, weight, dweight, dbias, *sizes)
    _grad_naive.launch(blocks(channels, THREADS), THREADS, arguments)


def batch_norm_grad_split(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """Several blocks for each channel find the two sums; then one elementwise kernel, which adds these up."""
    dx, dweight, dbias = outs
    sizes = samples, channels, area = sizes_of(dx, x, mean, rstd)
    if area < NARROW:
        channel_sums.split((dweight, dbias), grad, x, mean, rstd, EACH_CHANNEL)
        wide, grid, block, parts = _by_columns(sizes, x, grad, dx)
        arguments = (dx, grad, x, mean, rstd, weight, dweight, dbias, *sizes, parts)
        _grad_columns[wide].launch(grid, block, arguments)
        return
    partial = channel_sums.by_planes(grad, x, mean, rstd, EACH_CHANNEL)
    parts = number_of_parts(channels, samples, samples * area, at_a_time=GRAD_BLOCKS)
    arguments = (dx, dweight, dbias, grad, x, mean, rstd, weight, *partial, *sizes, len(partial[0]), parts)
    _grad[is_wide(area, dx, grad, x)].launch(channels * parts, THREADS, arguments)


def batch_norm_weight_grad(dweight: Any, grad: Any, x: Any, mean: Any) -> None:
    """Several blocks for each channel; a second launch adds their sums."""
    dbias = workspace(dweight, dweight.shape)
    channel_sums.split((dweight, dbias), grad, x, mean, None, EACH_CHANNEL)


def _by_columns(sizes: tuple[int, int, int], *arrays: Any) -> tuple[bool, int, tuple[int, int], int]:
    """Where blocks go across channels: whether by vectors, the grid, the block, the parts of the samples."""
    samples, columns = sizes[0], sizes[1] * sizes[2]
    wide = is_wide(columns, *arrays)
    return wide, *columns_grid(samples, columns, arrays[0].itemsize, wide)


def sizes_of(y: Any, x: Any, *statistics: Any) -> tuple[int, int, int]:
    return _fitting(y.shape, x.shape, *[s.shape for s in statistics])


@lru_cache(maxsize=1024)  # the same few sizes come in every step of a training
def _fitting(y: tuple, x: tuple, *statistics: tuple) -> tuple[int, int, int]:
    """(samples, channels, area) of arrays of these shapes; ValueError unless they fit together."""
    samples, channels, *plane = x
    if y != x or any(prod(s) != channels for s in statistics):
        raise ValueError(
            f"batch norm kernel: for x (samples, channels, area) = {x}, expected an array of its shape and "
            f"statistics of its channels; got {', '.join(map(str, (y, *statistics)))}"
        )
    return samples, channels, prod(plane)
