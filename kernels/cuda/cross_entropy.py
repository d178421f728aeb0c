"""Launches ``cross_entropy.cu``: the cross-entropy of rows of logits, and its gradient.

``x`` is (rows, columns), ``target`` (rows,), int64; ``loss`` and ``grad``, the loss's gradient, are (rows,);
all C-contiguous, and all but the target float32 or all float64. From *vectorized* on ``x`` and its gradient
may also be float16 or bfloat16, with loss and grad in float32. Targets must lie in [0, columns), which is
not checked here, or be ``ignore_index``. The naive rungs are the definition; *registers* keeps a row of up to
2048 float64 or 32768 of the others, and leaves longer ones to *vectorized*.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .reduce import held_threads, row_grid, vector_threads

WARP = 32
THREADS = 256  # in a block of the naive rungs

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rungs(kernel: str, *names: str) -> dict[str, CudaKernel]:
    types = {"naive": "T", "warp": "T"}
    return {rung: CudaKernel(_source, f"{kernel}_{rung}<{types.get(rung, 'T, C')}>") for rung in names}


_cross_entropy = _rungs("cross_entropy", "naive", "warp", "vectorized")
_cross_entropy_grad = _rungs("cross_entropy_grad", "naive", "warp", "vectorized", "registers")


def cross_entropy_naive(loss: Any, x: Any, target: Any, ignore_index: int) -> None:
    """One thread for each row, which it walks twice: the definition."""
    _check(x, target, loss)
    _launch(_cross_entropy, "naive", x.shape, (loss, x, target), ignore_index)


def cross_entropy_warp(loss: Any, x: Any, target: Any, ignore_index: int) -> None:
    """One warp for each row, which it walks once: loads are coalesced, and online normalisers combined."""
    _check(x, target, loss)
    _launch(_cross_entropy, "warp", x.shape, (loss, x, target), ignore_index)


def cross_entropy_vectorized(loss: Any, x: Any, target: Any, ignore_index: int) -> None:
    """Loads of 16 bytes, several on their way before the first is used; a long row takes a block."""
    _check(x, target, loss)
    _launch(_cross_entropy, "vectorized", x.shape, (loss, x, target), ignore_index)


def cross_entropy_grad_naive(out: Any, grad: Any, x: Any, target: Any, ignore_index: int) -> None:
    """One thread for each row: grad (softmax(x) - onehot(target))."""
    _check(x, target, grad, out)
    _launch(_cross_entropy_grad, "naive", x.shape, (out, grad, x, target), ignore_index)


def cross_entropy_grad_warp(out: Any, grad: Any, x: Any, target: Any, ignore_index: int) -> None:
    """One warp for each row: one walk to find the softmax, one to write."""
    _check(x, target, grad, out)
    _launch(_cross_entropy_grad, "warp", x.shape, (out, grad, x, target), ignore_index)


def cross_entropy_grad_vectorized(out: Any, grad: Any, x: Any, target: Any, ignore_index: int) -> None:
    """Loads of 16 bytes, several on their way before the first is used; a long row takes a block."""
    _check(x, target, grad, out)
    _launch(_cross_entropy_grad, "vectorized", x.shape, (out, grad, x, target), ignore_index)


def cross_entropy_grad_registers(out: Any, grad: Any, x: Any, target: Any, ignore_index: int) -> None:
    """The row stays in registers between its load and its store; an exponential for each element, not two."""
    _check(x, target, grad, out)
    held = held_threads(x.shape[1], x.itemsize) is not None
    rung = "registers" if held else "vectorized"
    _launch(_cross_entropy_grad, rung, x.shape, (out, grad, x, target), ignore_index)


def _launch(
    rungs: dict[str, CudaKernel], rung: str, shape: tuple[int, int], arrays: tuple, ignore_index: int
) -> None:
    rows, columns = shape
    itemsize = arrays[-2].itemsize  # of x
    if rung == "naive":
        grid, block = blocks(rows, THREADS), (THREADS, 1)
    elif rung == "warp":
        grid, block = row_grid(rows, WARP)
    elif rung == "vectorized":
        grid, block = row_grid(rows, vector_threads(columns, itemsize))
    else:
        grid, block = row_grid(rows, held_threads(columns, itemsize))
    rungs[rung].launch(grid, block, (*arrays, rows, columns, ignore_index))


def _check(x: Any, target: Any, of_rows: Any, out: Any = None) -> None:
    if x.ndim != 2 or target.shape != x.shape[:1] or of_rows.shape != x.shape[:1]:
        raise ValueError(
            f"cross-entropy kernel: for x (rows, columns) = {x.shape} target and loss must be (rows,), "
            f"got {target.shape} and {of_rows.shape}"
        )
    if out is not None and out.shape != x.shape:
        raise ValueError(f"cross-entropy kernel: the gradient must have x's shape {x.shape}, got {out.shape}")
