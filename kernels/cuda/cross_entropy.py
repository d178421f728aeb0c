"""Launches ``cross_entropy.cu``: the cross-entropy of rows of logits, and its gradient.

``x`` is (rows, columns), ``target`` (rows,), int64; ``loss`` and ``grad``, the loss's gradient, are (rows,),
``weight`` is (columns,), or None for ones; all C-contiguous, and all but the target float32 or all float64.
From *vectorized* on ``x`` and its gradient may also be float16 or bfloat16, with all else in float32. Targets
must lie in [0, columns), which is not checked here, or be ``ignore_index``. ``smoothing`` is the share of the
target that is spread evenly over all classes. The naive rungs are the definition; *registers* keeps a row of
up to 2048 float64 or 32768 of the others, and leaves longer ones to *vectorized*.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .reduce import SHORT_HELD, held_threads, row_grid, vector_threads
from .vector import VECTOR_BYTES

WARP = 32
THREADS = 256  # in a block of the naive rungs

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rungs(kernel: str, *names: str) -> dict[tuple[str, bool], CudaKernel]:
    """The kernel of each rung, without smoothing and with it."""
    types = {"naive": "T", "warp": "T"}
    kernels = {}
    for rung, smoothed in product(names, (False, True)):
        arguments = f"{types.get(rung, 'T, C')}, {smoothed}"
        if rung == "registers":
            kernels["short", smoothed] = CudaKernel(_source, f"{kernel}_{rung}<{arguments}, {SHORT_HELD[0]}>")
            arguments += ", 0"
        kernels[rung, smoothed] = CudaKernel(_source, f"{kernel}_{rung}<{arguments}>")
    return kernels


_cross_entropy = _rungs("cross_entropy", "naive", "warp", "vectorized")
_cross_entropy_grad = _rungs("cross_entropy_grad", "naive", "warp", "vectorized", "registers")


def cross_entropy_naive(
    loss: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """One thread for each row, which it walks twice: the definition."""
    _check(x, target, weight, loss)
    _launch(_cross_entropy, "naive", (loss, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_warp(
    loss: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """One warp for each row, which it walks once: loads are coalesced, and online normalisers combined."""
    _check(x, target, weight, loss)
    _launch(_cross_entropy, "warp", (loss, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_vectorized(
    loss: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """Loads of 16 bytes, several on their way before the first is used; a long row takes a block."""
    _check(x, target, weight, loss)
    _launch(_cross_entropy, "vectorized", (loss, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_grad_naive(
    out: Any, grad: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """One thread for each row: grad (softmax(x) - onehot(target))."""
    _check(x, target, weight, grad, out)
    _launch(_cross_entropy_grad, "naive", (out, grad, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_grad_warp(
    out: Any, grad: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """One warp for each row: one walk to find the softmax, one to write."""
    _check(x, target, weight, grad, out)
    _launch(_cross_entropy_grad, "warp", (out, grad, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_grad_vectorized(
    out: Any, grad: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """Loads of 16 bytes, several on their way before the first is used; a long row takes a block."""
    _check(x, target, weight, grad, out)
    _launch(_cross_entropy_grad, "vectorized", (out, grad, x, target, weight), x, ignore_index, smoothing)


def cross_entropy_grad_registers(
    out: Any, grad: Any, x: Any, target: Any, ignore_index: int, weight: Any = None, smoothing: float = 0.0
) -> None:
    """The row stays in registers between its load and its store; an exponential for each element, not two."""
    _check(x, target, weight, grad, out)
    held = held_threads(x.shape[1], x.itemsize) is not None
    rung = "registers" if held else "vectorized"
    _launch(_cross_entropy_grad, rung, (out, grad, x, target, weight), x, ignore_index, smoothing)


def _launch(
    rungs: dict[tuple[str, bool], CudaKernel],
    rung: str,
    arrays: tuple,
    x: Any,
    ignore_index: int,
    smoothing: float,
) -> None:
    rows, columns = x.shape
    if rung == "naive":
        grid, block = blocks(rows, THREADS), (THREADS, 1)
    elif rung == "warp":
        grid, block = row_grid(rows, WARP)
    elif rung == "vectorized":
        grid, block = row_grid(rows, vector_threads(columns, x.itemsize))
    elif columns * x.itemsize <= WARP * SHORT_HELD[0] * VECTOR_BYTES:
        rung, (grid, block) = "short", row_grid(rows, WARP)
    else:
        grid, block = row_grid(rows, held_threads(columns, x.itemsize))
    arguments = (*arrays, rows, columns, ignore_index, smoothing)
    rungs[rung, smoothing != 0].launch(grid, block, arguments)


def _check(x: Any, target: Any, weight: Any, of_rows: Any, out: Any = None) -> None:
    if x.ndim != 2 or target.shape != x.shape[:1] or of_rows.shape != x.shape[:1]:
        raise ValueError(
            f"cross-entropy kernel: for x (rows, columns) = {x.shape} target and loss must be (rows,), "
            f"got {target.shape} and {of_rows.shape}"
        )
    if weight is not None and weight.shape != x.shape[1:]:
        raise ValueError(
            f"cross-entropy kernel: the weights of {x.shape[1]} classes cannot have the shape {weight.shape}"
        )
    if out is not None and out.shape != x.shape:
        raise ValueError(f"cross-entropy kernel: the gradient must have x's shape {x.shape}, got {out.shape}")
