"""Launches ``norm.cu``: layer norm and group norm, and their gradients, on a card or on the simulator.

For layer norm ``x`` is (rows, columns), with weight and bias (columns,); for group norm it is (N, groups,
channels of a group, area), with weight and bias (groups * channels,). Weight and bias may be None. ``outs``
is (y, mean, rstd), of the gradients (dx, dweight, dbias); mean and rstd have an element for each row, or
group of a sample. All arrays are C-contiguous and of one dtype, float32 or float64. The naive rungs are the
definition; of the others, *warp* is made for rows of up to a thousand elements, *block* for longer ones. For
*block*, arrays like ``x`` may also be float16 or bfloat16, and the others float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    return {
        rung: CudaKernel(_source, f"{kernel}_{rung}<{types[rung]}, {str(per_channel).lower()}>")
        for rung in types
    }


_layer_norm = _rungs("norm", per_channel=False)
_group_norm = _rungs("norm", per_channel=True)
_layer_norm_grad = _rungs("norm_grad", per_channel=False)
_group_norm_grad = _rungs("norm_grad", per_channel=True)


def layer_norm(rung: str, outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """Layer norm by the rung of this name."""
    y, mean, rstd = outs
    rows, columns = sizes("layer norm", 2, x, y, mean, rstd)
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, layout(1, columns, 1), eps)
    _launch(_layer_norm, rung, rows, columns, arguments)


def layer_norm_grad(rung: str, outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """The gradients of layer norm; dx by the rung of this name."""
    dx, *parameters = outs
    rows, columns = sizes("layer norm", 2, x, dx, mean, rstd)
    arguments = (dx, grad, x, mean, rstd, weight, rows, columns, layout(1, columns, 1))
    _launch(_layer_norm_grad, rung, rows, columns, arguments)
    shape = (rows, columns, 1)
    _sums(rung)(tuple(parameters), grad.reshape(shape), x.reshape(shape), mean, rstd, (1, columns))


def group_norm(rung: str, outs: tuple, x: Any, weight: Any, bias: Any, eps: float) -> None:
    """Group norm by the rung of this name."""
    y, mean, rstd = outs
    samples, groups, channels, area = sizes("group norm", 4, x, y, mean, rstd)
    rows, columns = samples * groups, channels * area
    arguments = (y, mean, rstd, x, weight, bias, rows, columns, layout(groups, channels, area), eps)
    _launch(_group_norm, rung, rows, columns, arguments)


def group_norm_grad(rung: str, outs: tuple, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> None:
    """The gradients of group norm; dx by the rung of this name."""
    dx, *parameters = outs
    samples, groups, channels, area = sizes("group norm", 4, x, dx, mean, rstd)
    rows, columns = samples * groups, channels * area
    arguments = (dx, grad, x, mean, rstd, weight, rows, columns, layout(groups, channels, area))
    _launch(_group_norm_grad, rung, rows, columns, arguments)
    shape = (samples, groups * channels, area)
    _sums(rung)(tuple(parameters), grad.reshape(shape), x.reshape(shape), mean, rstd, (groups, channels))


def _sums(rung: str) -> Any:
    return channel_sums.naive if rung == "naive" else channel_sums.split


def layout(groups: int, channels: int, area: int) -> dict[str, int]:
    """The kernels' struct ``Layout``."""
    return {"groups": groups, "channels": channels, "area": area}


def _launch(rungs: dict[str, CudaKernel], rung: str, rows: int, columns: int, arguments: tuple) -> None:
    grid, block = {
        "naive": (blocks(rows, THREADS), (THREADS,)),
        "warp": (blocks(rows, THREADS // WARP), (WARP, THREADS // WARP)),
        "block": (rows, (row_threads(columns),)),
    }[rung]
    rungs[rung].launch(grid, block, arguments)


def sizes(name: str, ndim: int, x: Any, y: Any, mean: Any, rstd: Any) -> tuple[int, ...]:
    """The shape of ``x``, of ``ndim`` dimensions; ValueError if the other arrays do not fit it."""
    rows = 1
    for size in x.shape[: ndim // 2]:
        rows *= size
    if x.ndim != ndim or y.shape != x.shape or mean.size != rows or rstd.size != rows:
        raise ValueError(
            f"{name} kernel: expected arrays of {ndim} dimensions with statistics of their rows; got "
            f"{x.shape}, {y.shape}, {mean.shape} and {rstd.shape}"
        )
    if ndim == 4 and x.size >= MAX_COLUMNS * max(rows, 1):
        raise ValueError(f"{name} kernel: a row has {x.size // rows} elements, it must have less than 2^32")
    return x.shape
