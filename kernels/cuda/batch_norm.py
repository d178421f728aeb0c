"""Launches ``batch_norm.cu``: batch norm with its gradients, and with given statistics.

``x``, ``y`` and their gradients are (samples, channels, area), all other arrays (channels,). ``outs`` is (y,
mean, rstd), of the gradients (dx, dweight, dbias). Weight and bias may be None. All arrays are C-contiguous
and of one dtype, float32 or float64. The result's bits depend on the shape alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import channel_sums, workspace
from .channel_sums import lanes_along, number_of_parts

WARP = 32
THREADS = 256  # in a block, as in batch_norm.cu
EACH_CHANNEL = (0, 1)  # where channel_sums finds the statistics

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_naive = CudaKernel(_source, "batch_norm_naive<T>")
_moments = CudaKernel(_source, "batch_norm_moments<T>")
_combine = CudaKernel(_source, "batch_norm_combine<T>")
_normalize = CudaKernel(_source, "batch_norm_normalize<T, false>")
_inference = CudaKernel(_source, "batch_norm_normalize<T, true>")
_grad_naive = CudaKernel(_source, "batch_norm_grad_naive<T>")
_grad = CudaKernel(_source, "batch_norm_grad<T>")


def batch_norm_naive(outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """One thread for each channel, which it walks three times: the definition."""
    samples, channels, area = _sizes(outs[0], x, *outs[1:])
    arguments = (*outs, x, weight, bias, samples, channels, area, eps)
    _naive.launch(blocks(channels, THREADS), THREADS, arguments)


def batch_norm_split(outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """Several blocks for each channel find moments, which are combined; then one elementwise kernel."""
    y, mean, rstd = outs
    sizes = samples, channels, area = _sizes(y, x, mean, rstd)
    parts = number_of_parts(channels, samples, samples * area)
    partial = workspace(x, (2, parts, channels))
    _moments.launch(channels * parts, THREADS, (*partial, x, *sizes, parts, lanes_along(area)))
    grid, block = blocks(channels, THREADS // WARP), (WARP, THREADS // WARP)
    _combine.launch(grid, block, (mean, rstd, *partial, *sizes, parts, eps))
    _normalize.launch(*_by_planes(sizes), (y, x, mean, rstd, weight, bias, *sizes, eps))


def batch_norm_inference(y: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> None:
    """One elementwise kernel."""
    sizes = _sizes(y, x, mean, var)
    _inference.launch(*_by_planes(sizes), (y, x, mean, var, weight, bias, *sizes, eps))


def batch_norm_grad_naive(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """One thread for each channel, which it walks twice: the definition."""
    dx, dweight, dbias = outs
    sizes = _, channels, _ = _sizes(dx, x, mean, rstd)
    channel_sums.naive((dweight, dbias), grad, x, mean, rstd, EACH_CHANNEL)
    arguments = (dx, grad, x, mean, rstd, weight, dweight, dbias, *sizes)
    _grad_naive.launch(blocks(channels, THREADS), THREADS, arguments)


def batch_norm_grad_split(outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """Several blocks for each channel find the two sums; then one elementwise kernel."""
    dx, dweight, dbias = outs
    sizes = _sizes(dx, x, mean, rstd)
    channel_sums.split((dweight, dbias), grad, x, mean, rstd, EACH_CHANNEL)
    _grad.launch(*_by_planes(sizes), (dx, grad, x, mean, rstd, weight, dweight, dbias, *sizes))


def batch_norm_weight_grad(dweight: Any, grad: Any, x: Any, mean: Any) -> None:
    """Several blocks for each channel; a second launch adds their sums."""
    unused = workspace(dweight, dweight.shape)
    channel_sums.split((dweight, unused), grad, x, mean, None, EACH_CHANNEL)


def _by_planes(sizes: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    """Grid and block of the elementwise kernels."""
    samples, channels, area = sizes
    lanes = lanes_along(area)
    return blocks(samples * channels, THREADS // lanes), (lanes, THREADS // lanes)


def _sizes(y: Any, x: Any, *statistics: Any) -> tuple[int, int, int]:
    if x.ndim != 3 or y.shape != x.shape or any(s.shape != x.shape[1:2] for s in statistics):
        shapes = ", ".join(str(array.shape) for array in (y, *statistics))
        raise ValueError(
            f"batch norm kernel: for x (samples, channels, area) = {x.shape}, expected an array of its shape "
            f"and statistics of its channels; got {shapes}"
        )
    return x.shape
