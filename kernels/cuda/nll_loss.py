"""Launches ``nll_loss.cu``: the negative log-likelihood of classes and its gradient; card or simulator.

``x`` is (rows, columns), ``target`` (rows,), int64; ``loss`` and ``grad``, its gradient, are (rows,),
``weight`` (columns,) or None; all C-contiguous, and all but the target float32 or all float64. Targets must
lie in [0, columns), which is not checked here, or be ``ignore_index``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .reduce import row_grid, row_threads

THREADS = 256  # in a block that has a thread for each row

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_nll_loss = CudaKernel(_source, "nll_loss<T>")
_nll_loss_grad = CudaKernel(_source, "nll_loss_grad<T>")


def nll_loss(loss: Any, x: Any, target: Any, weight: Any, ignore_index: int) -> None:
    """One thread for each row: -x[target] weight[target]."""
    arguments = (loss, x, target, weight, *x.shape, ignore_index)
    _nll_loss.launch(blocks(x.shape[0], THREADS), THREADS, arguments)


def nll_loss_grad(out: Any, grad: Any, target: Any, weight: Any, ignore_index: int) -> None:
    """One walk over the output: -grad weight[target] at the target, 0 elsewhere."""
    grid, block = row_grid(out.shape[0], row_threads(out.shape[1]))
    _nll_loss_grad.launch(grid, block, (out, grad, target, weight, *out.shape, ignore_index))
