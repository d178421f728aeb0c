"""Launches ``batch_norm_cluster.cu``: batch norm and its gradient, a channel in a cluster's shared memory.

For cards of compute capability 9.0. The functions, their arguments and results are those of
:mod:`.batch_norm`, which computes what does not fit: channels too large, or too few to fill a card; and
arrays whose vectors of 16 bytes lie across two planes, as where channels come last. ``cluster`` is for
tests: how many blocks a cluster has, in place of as many as are best.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import batch_norm
from .matmul_wgmma import is_supported, multiprocessors
from .vector import VECTOR_BYTES, starts_at_vector

THREADS = 256  # in a block, as in batch_norm_cluster.cu
CLUSTERS = (1, 2, 4, 8, 16)  # blocks of one; more than 8 are not possible on every card that has clusters
SHARED_BYTES = 227 * 1024  # of a multiprocessor, a block's kilobyte for the system apart
OWN_BYTES = 2048  # of that, at most: for the system and for a block's sums and barriers
MOST_SHARED_BYTES = SHARED_BYTES - OWN_BYTES
HALF_SHARED_BYTES = MOST_SHARED_BYTES // 2 - OWN_BYTES  # with which there is room for two blocks
# Whether there are no more clusters than run at a time, each of which takes channel after channel.
PERSISTENT = False

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")
# By the blocks of a cluster.
_forward = {n: CudaKernel(_source, f"batch_norm_cluster<C, T, {n}>") for n in CLUSTERS}
_backward = {n: CudaKernel(_source, f"batch_norm_grad_cluster<C, T, {n}>") for n in CLUSTERS}


def takes(x: Any, arrays: int) -> bool:
    """Whether clusters can hold the channels of so many arrays like ``x``, and these fill the card."""
    return _cluster(x, arrays) is not None


def batch_norm_cluster(
    outs: tuple,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    running: Any = None,
    *,
    cluster: int | None = None,
) -> None:
    """A cluster of blocks keeps a channel in its shared memory, which is read once."""
    y, mean, rstd = outs
    sizes = batch_norm.sizes_of(y, x, mean, rstd)
    cluster = cluster or _cluster(x, 1)
    if cluster is None or not starts_at_vector(x, y):
        batch_norm.batch_norm_split(outs, x, weight, bias, eps, running)
        return
    arguments = (y, mean, rstd, x, weight, bias, *sizes, eps, *batch_norm.followed(running, mean))
    _launch(_forward, cluster, 1, x, sizes, arguments)


def batch_norm_grad_cluster(
    outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, *, cluster: int | None = None
) -> None:
    """A cluster of blocks keeps a channel of both arrays in its shared memory; they are read once."""
    dx, dweight, dbias = outs
    sizes = batch_norm.sizes_of(dx, x, mean, rstd)
    cluster = cluster or _cluster(x, 2)
    if cluster is None or not starts_at_vector(dx, grad, x):
        batch_norm.batch_norm_grad_split(outs, grad, x, mean, rstd, weight)
        return
    arguments = (dx, dweight, dbias, grad, x, mean, rstd, weight, *sizes)
    _launch(_backward, cluster, 2, x, sizes, arguments)


@lru_cache(maxsize=1024)  # as in batch_norm.py
def blocks_of_cluster(shape: tuple[int, ...], itemsize: int, arrays: int, multiprocessors: int) -> int | None:
    """How many blocks share a channel: as few as leave room for two on each multiprocessor, and are enough
    for that; or else as many as there can be. None if the channels do not fit, or are too few."""
    samples, channels, *plane = shape
    plane_bytes = prod(plane) * itemsize
    if not plane_bytes or plane_bytes % VECTOR_BYTES:
        return None
    most = None
    for cluster in CLUSTERS:
        shared = arrays * blocks(samples, cluster) * plane_bytes
        if cluster > samples or shared > MOST_SHARED_BYTES:
            continue
        most = cluster
        if shared <= HALF_SHARED_BYTES and cluster * channels >= 2 * multiprocessors:
            return cluster
    return most if most and most * channels >= multiprocessors else None


def _cluster(x: Any, arrays: int) -> int | None:
    if not is_supported(x):
        return None
    return blocks_of_cluster(x.shape, x.itemsize, arrays, multiprocessors(x))


def _launch(
    kernels: dict[int, CudaKernel], cluster: int, arrays: int, x: Any, sizes: tuple, arguments: tuple
) -> None:
    samples, channels, area = sizes
    shared = arrays * blocks(samples, cluster) * area * x.itemsize
    clusters, ahead = channels, False
    if PERSISTENT:
        each = 2 * shared if 2 * shared <= MOST_SHARED_BYTES else shared
        of_each = min(SHARED_BYTES // (each + OWN_BYTES), 2048 // THREADS)  # blocks of a multiprocessor
        at_once = max(1, of_each * multiprocessors(x) // cluster)
        if at_once < channels:
            clusters, ahead, shared = at_once, each > shared, each
    kernels[cluster].launch(clusters * cluster, THREADS, (*arguments, ahead), shared)
