"""Launches ``row_statistics.cu``: variances and extrema of rows, on a card or on the simulator.

``x`` is (rows, columns), all arrays are C-contiguous and of one dtype, float32, float64, float16 or bfloat16,
but for indices, int64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel
from ..source import CudaSource
from .reduce import held_threads, row_grid, vector_threads

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_variance = CudaKernel(_source, "squares<T, true>")
_squares = CudaKernel(_source, "squares<T, false>")
_extremum_grad = CudaKernel(_source, "extremum_grad<T>")
_arg_extremum = {name: CudaKernel(_source, f"arg_extremum<T, {name.upper()}>") for name in ("max", "min")}


def holds(columns: int, itemsize: int) -> bool:
    """Whether :func:`squares` takes rows of this length: of up to 32768 elements, or 2048 of float64."""
    return held_threads(columns, itemsize) is not None


def squares(out: Any, x: Any, divisor: float, centred: bool) -> None:
    """The sums of squares of rows, or of their deviations from the mean, divided: one launch, one reading."""
    rows, columns = x.shape
    grid, block = row_grid(rows, held_threads(columns, x.itemsize))
    (_variance if centred else _squares).launch(grid, block, (out, x, rows, columns, divisor))


def extremum_grad(out: Any, grad: Any, y: Any, x: Any) -> None:
    """grad (rows,), shared evenly among the elements of each row that are ``y``, its extremum."""
    grid, block = row_grid(x.shape[0], vector_threads(x.shape[1], x.itemsize))
    _extremum_grad.launch(grid, block, (out, grad, y, x, *x.shape))


def arg_extremum(out: Any, x: Any, operation: str) -> None:
    """The number of each row's first largest (``"max"``) or smallest (``"min"``) element, or first NaN."""
    grid, block = row_grid(x.shape[0], vector_threads(x.shape[1], x.itemsize))
    _arg_extremum[operation].launch(grid, block, (out, x, *x.shape))
