"""Launches ``norm.cu``: layer norm and group norm, and their gradients, on a card or on the simulator.

For layer norm ``x`` is (rows, columns), or an array of more dimensions of which the last ones are a row, with
weight and bias of as many elements as a row; for group norm it is (N, groups, channels of a group, area),
with weight and bias (groups * channels,). Weight and bias may be None. ``outs`` is (y, mean, rstd), of the
gradients (dx, dweight, dbias); mean and rstd have an element for each row, or group of a sample. All arrays
are C-contiguous and of one dtype, float32 or float64. The naive rungs are the definition; of the others,
*warp* is made for rows of up to a thousand elements, *block* for longer ones. For *block*, arrays like ``x``
may also be float16 or bfloat16, and the others float32.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import channel_sums
from .reduce import row_threads

WARP = 32
THREADS = 256  # in a block, but for the block rungs
MAX_COLUMNS = 2**32  # of a row of group norm, exclusive

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rungs(kernel: str, per_channel: bool) -> dict[str, CudaKernel]:
    types = {"naive": "T", "warp": "T", "block": "C, T"}
    return {rung: CudaKernel(_source, f"{kernel}_{rung}<{types[rung]}, {per_channel}>") for rung in types}


_layer_norm = _rungs("norm", per_channel=False)
_group_norm = _rungs("norm", per_channel=True)
_layer_norm_grad = _rungs("norm_grad", per_channel=False)
_group_norm_grad = _rungs("norm_grad", per_channel=True)


def layer_norm(rung: str, outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """Layer norm by the rung of this name."""
    y, mean, rstd = outs
    rows, columns = row_sizes(x, y, mean, rstd)
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, layout(1, columns, 1), eps)
    _launch(_layer_norm, rung, rows, columns, arguments)


def layer_norm_grad(rung: str, outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """The gradients of layer norm; dx by the rung of this name."""
    dx, *parameters = outs
    rows, columns = row_sizes(x, dx, mean, rstd)
    arguments = (dx, grad, x, mean, rstd, weight, rows, columns, layout(1, columns, 1))
    _launch(_layer_norm_grad, rung, rows, columns, arguments)
    shape = (rows, columns, 1)
    _sums(rung)(tuple(parameters), grad.reshape(shape), x.reshape(shape), mean, rstd, (1, columns))


def group_norm(rung: str, outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """Group norm by the rung of this name."""
    y, mean, rstd = outs
    samples, groups, channels, area = group_sizes(x, y, mean, rstd)
    rows, columns = samples * groups, channels * area
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, layout(groups, channels, area), eps)
    _launch(_group_norm, rung, rows, columns, arguments)


def group_norm_grad(rung: str, outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """The gradients of group norm; dx by the rung of this name."""
    dx, *parameters = outs
    samples, groups, channels, area = group_sizes(x, dx, mean, rstd)
    rows, columns = samples * groups, channels * area
    arguments = (dx, grad, x, mean, rstd, weight, rows, columns, layout(groups, channels, area))
    _launch(_group_norm_grad, rung, rows, columns, arguments)
    shape = (samples, groups * channels, area)
    _sums(rung)(tuple(parameters), grad.reshape(shape), x.reshape(shape), mean, rstd, (groups, channels))


def _sums(rung: str) -> Any:
    return channel_sums.naive if rung == "naive" else channel_sums.split


@lru_cache(maxsize=1024)
def layout(groups: int, channels: int, area: int) -> unchanging:
    """The kernels' struct ``Layout``."""
    return unchanging(groups=groups, channels=channels, area=area)


def _launch(rungs: dict[str, CudaKernel], rung: str, rows: int, columns: int, arguments: tuple) -> None:
    grid, block = {
        "naive": (blocks(rows, THREADS), (THREADS,)),
        "warp": (blocks(rows, THREADS // WARP), (WARP, THREADS // WARP)),
        "block": (rows, (row_threads(columns),)),
    }[rung]
    rungs[rung].launch(grid, block, arguments)


def row_sizes(x: Any, y: Any, mean: Any, rstd: Any) -> tuple[int, int]:
    """For layer norm: how many rows there are, and their length; ValueError if the arrays do not fit."""
    rows = mean.size
    columns = x.size // rows if rows else x.shape[-1]
    if y.shape != x.shape or rstd.size != rows or rows * columns != x.size:
        raise _misfit("layer norm", x, y, mean, rstd)
    return rows, columns


def group_sizes(x: Any, y: Any, mean: Any, rstd: Any) -> tuple[int, int, int, int]:
    """For group norm: samples, groups, channels of a group and area; ValueError if the arrays do not fit."""
    samples, groups, channels, area = x.shape
    rows = samples * groups
    if y.shape != x.shape or mean.size != rows or rstd.size != rows:
        raise _misfit("group norm", x, y, mean, rstd)
    if channels * area >= MAX_COLUMNS:
        raise ValueError(
            f"group norm kernel: a row has {channels * area} elements, it must have less than 2^32"
        )
    return samples, groups, channels, area


def _misfit(name: str, *arrays: Any) -> ValueError:
    shapes = ", ".join(str(array.shape) for array in arrays)
    return ValueError(
        f"{name} kernel: expected two arrays of one shape, and two of statistics of their rows; got {shapes}"
    )
