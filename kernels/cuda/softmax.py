"""Launches ``softmax.cu``: softmax, its logarithm, that of sums of exponentials, and the gradients of these.

On a card or on the simulator. Arrays are (rows, columns), or have more dimensions before the columns; they
are C-contiguous, and of one dtype: float32 or float64; from *vectorized* on also float16 or bfloat16. In the
gradients, ``grad`` is that of the output and ``y`` the output itself. The naive rungs are the definition;
*registers* keeps a row of up to 2048 float64 or 32768 of the others, half of that in the gradients, and
leaves longer ones to *vectorized*.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .reduce import (
    ENOUGH_PARTS,
    PART,
    SHORT_HELD,
    held_threads,
    part_of,
    row_grid,
    short_rows,
    vector_threads,
)

WARP = 32
THREADS = 256  # in a block, but where a row needs more

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rungs(kernel: str, logarithm: bool) -> dict[Any, CudaKernel]:
    variants = {
        **{rung: f"{rung}<T, {logarithm}>" for rung in ("naive", "warp", "vectorized")},
        **{("registers", short): f"registers<T, {logarithm}, {short}>" for short in (0, *SHORT_HELD)},
    }
    return {rung: CudaKernel(_source, f"{kernel}_{name}") for rung, name in variants.items()}


_softmax = _rungs("softmax", logarithm=False)
_log_softmax = _rungs("softmax", logarithm=True)
_softmax_grad = _rungs("softmax_grad", logarithm=False)
_log_softmax_grad = _rungs("softmax_grad", logarithm=True)
_logsumexp = CudaKernel(_source, "logsumexp<T>")
_logsumexp_grad = CudaKernel(_source, "logsumexp_grad<T>")


def softmax_naive(out: Any, x: Any) -> None:
    """One thread for each row, which it walks three times: the definition."""
    _naive(_softmax, out, x)


def softmax_warp(out: Any, x: Any) -> None:
    """One warp for each row: loads are coalesced, and the lanes combine their values by shuffles."""
    _warp(_softmax, out, x)


def softmax_vectorized(out: Any, x: Any) -> None:
    """Loads of 16 bytes; one walk finds both a row's largest element and the sum, by online normalisers."""
    _vectorized(_softmax, out, x)


def softmax_registers(out: Any, x: Any) -> None:
    """The row stays in registers between its load and its store; an exponential for each element, not two."""
    _registers(_softmax, out, x)


def log_softmax_naive(out: Any, x: Any) -> None:
    """One thread for each row, which it walks three times: the definition."""
    _naive(_log_softmax, out, x)


def log_softmax_warp(out: Any, x: Any) -> None:
    """One warp for each row: loads are coalesced, and the lanes combine their values by shuffles."""
    _warp(_log_softmax, out, x)


def log_softmax_vectorized(out: Any, x: Any) -> None:
    """Loads of 16 bytes; one walk finds both a row's largest element and the sum, by online normalisers."""
    _vectorized(_log_softmax, out, x)


def log_softmax_registers(out: Any, x: Any) -> None:
    """The row stays in registers between its load and its store; an exponential for each element, not two."""
    _registers(_log_softmax, out, x)


def softmax_grad_naive(out: Any, grad: Any, y: Any) -> None:
    """One thread for each row: (grad - sum(grad y)) y."""
    _naive(_softmax_grad, out, grad, y)


def softmax_grad_warp(out: Any, grad: Any, y: Any) -> None:
    """One warp for each row: loads are coalesced, and the lanes combine their sums by shuffles."""
    _warp(_softmax_grad, out, grad, y)


def softmax_grad_vectorized(out: Any, grad: Any, y: Any) -> None:
    """Loads of 16 bytes, several on their way before the first is used."""
    _vectorized(_softmax_grad, out, grad, y)


def softmax_grad_registers(out: Any, grad: Any, y: Any) -> None:
    """The row, of both arrays, stays in registers between its load and its store."""
    _registers(_softmax_grad, out, grad, y)


def log_softmax_grad_naive(out: Any, grad: Any, y: Any) -> None:
    """One thread for each row: grad - exp(y) sum(grad)."""
    _naive(_log_softmax_grad, out, grad, y)


def log_softmax_grad_warp(out: Any, grad: Any, y: Any) -> None:
    """One warp for each row: loads are coalesced, and the lanes combine their sums by shuffles."""
    _warp(_log_softmax_grad, out, grad, y)


def log_softmax_grad_vectorized(out: Any, grad: Any, y: Any) -> None:
    """Loads of 16 bytes, several on their way before the first is used."""
    _vectorized(_log_softmax_grad, out, grad, y)


def log_softmax_grad_registers(out: Any, grad: Any, y: Any) -> None:
    """The row, of both arrays, stays in registers between its load and its store."""
    _registers(_log_softmax_grad, out, grad, y)


def logsumexp(out: Any, x: Any) -> None:
    """log(sum(exp(x))) of rows, ``out`` being (rows,): one launch, or two where rows are long and few."""
    length = part_of(x.shape[1], ENOUGH_PARTS // max(x.shape[0], 1), PART)
    parts = blocks(x.shape[1], length)
    if parts == 1:
        return _launch_parts(_logsumexp, length, x, out, x)
    partial = workspace(x, (x.shape[0], parts))
    _launch_parts(_logsumexp, length, x, partial, x)
    return _launch_parts(_logsumexp, parts, partial, out, partial)


def logsumexp_grad(out: Any, grad: Any, x: Any, y: Any) -> None:
    """grad exp(x - y), with ``y`` the output of :func:`logsumexp`, which like its gradient is (rows,)."""
    length = part_of(x.shape[1], ENOUGH_PARTS // max(x.shape[0], 1), PART)
    _launch_parts(_logsumexp_grad, length, x, out, grad, x, y)


def _launch_parts(kernel: CudaKernel, length: int, rows: Any, *arrays: Any) -> None:
    """A row of a grid for each part, of ``length`` elements, of each of the ``rows``."""
    parts = blocks(rows.shape[1], length)
    grid, block = row_grid(rows.shape[0] * parts, vector_threads(min(length, rows.shape[1]), rows.itemsize))
    kernel.launch(grid, block, (*arrays, *rows.shape, parts, length))


def _naive(rungs: dict[Any, CudaKernel], out: Any, *inputs: Any) -> None:
    rows, columns = _sizes(out, *inputs)
    rungs["naive"].launch(blocks(rows, THREADS), THREADS, (out, *inputs, rows, columns))


def _warp(rungs: dict[Any, CudaKernel], out: Any, *inputs: Any) -> None:
    rows, columns = _sizes(out, *inputs)
    block = (WARP, THREADS // WARP)
    rungs["warp"].launch(blocks(rows, block[1]), block, (out, *inputs, rows, columns))


def _vectorized(rungs: dict[Any, CudaKernel], out: Any, *inputs: Any) -> None:
    rows, columns = _sizes(out, *inputs)
    grid, block = row_grid(rows, vector_threads(columns, out.itemsize))
    rungs["vectorized"].launch(grid, block, (out, *inputs, rows, columns))


def _registers(rungs: dict[Any, CudaKernel], out: Any, *inputs: Any) -> None:
    rows, columns = _sizes(out, *inputs)
    short, threads = short_rows(columns, out.itemsize)
    if not short:
        threads = held_threads(columns, out.itemsize, len(inputs))
    if threads is None:
        return _vectorized(rungs, out, *inputs)
    grid, block = row_grid(rows, threads)
    rungs["registers", short].launch(grid, block, (out, *inputs, rows, columns))


def _sizes(out: Any, *inputs: Any) -> tuple[int, int]:
    *rows, columns = shape = out.shape
    for x in inputs:
        if x.shape != shape:
            raise ValueError(
                f"softmax kernel: expected (rows, columns) arrays of one shape, got {shape}, {x.shape}"
            )
    return prod(rows), columns
