"""Launches ``recurrent_sequence.cu``: all steps of a recurrent layer, or of its gradient, in one launch.

The functions, their arguments and results are those of :mod:`.recurrent`, which launches each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from .recurrent import transposed

THREADS, VECTOR_BYTES, WARP, FORWARD_PARTS = 256, 16, 32, 8  # as in recurrent_sequence.cu
ROWS = 2  # of the batch, that a block takes where there are more blocks than MANY_ROWS

# From where on a launch a step is the better way; see recurrent_sequence.cu. Reckoned, not measured yet.
MOST_WEIGHT_BYTES = 256 * 1024  # half of which stays in registers, and the rest in an L1 cache
MOST_ROWS = 512
MANY_ROWS = 64

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _by_rows(name: str, options: str = "") -> dict[int, CudaKernel]:
    return {rows: CudaKernel(_source, f"{name}<T, {rows}{options}>") for rows in (1, ROWS)}


_lstm, _lstm_grad = _by_rows("lstm_sequence"), _by_rows("lstm_grad_sequence")
_gru, _gru_grad = _by_rows("gru_sequence"), _by_rows("gru_grad_sequence")
_tanh, _tanh_grad = _by_rows("rnn_sequence", ", false"), _by_rows("rnn_grad_sequence", ", false")
_relu, _relu_grad = _by_rows("rnn_sequence", ", true"), _by_rows("rnn_grad_sequence", ", true")
_rnn = {"tanh": (_tanh, _tanh_grad), "relu": (_relu, _relu_grad)}


def takes(weight_hh: Any) -> bool:
    """Whether these kernels can run: each unit of a state has its thread."""
    return 0 < weight_hh.shape[-1] <= THREADS


def is_reckoned_faster(rows: int, weight_hh: Any) -> bool:
    """Whether one launch for all steps takes less time than one for each, for a batch of ``rows``."""
    return rows <= MOST_ROWS and weight_hh.size * weight_hh.itemsize <= MOST_WEIGHT_BYTES


def lstm(outs: tuple, h0: Any, c0: Any, weight_hh: Any, bias: Any, reverse: bool) -> None:
    """All steps in one launch; see :func:`.recurrent.lstm`."""
    _launch(
        _lstm, weight_hh, FORWARD_PARTS, (*outs, h0, c0, weight_hh, bias), h0.shape, len(outs[0]), reverse
    )


def lstm_grad(
    outs: tuple, weight_hh: Any, c0: Any, cells: Any, gates: Any, grad_y: Any, grad_c: Any, reverse: bool
) -> None:
    """All steps in one launch; see :func:`.recurrent.lstm_grad`."""
    weight = transposed(weight_hh)
    arrays = (*outs, weight, c0, cells, gates, grad_y, grad_c)
    _launch(_lstm_grad, weight, WARP, arrays, c0.shape, len(gates), reverse)


def gru(outs: tuple, z: Any, h0: Any, weight_hh: Any, bias: Any, reverse: bool) -> None:
    """All steps in one launch; see :func:`.recurrent.gru`."""
    _launch(_gru, weight_hh, FORWARD_PARTS, (*outs, z, h0, weight_hh, bias), h0.shape, len(z), reverse)


def gru_grad(outs: tuple, weight_hh: Any, h0: Any, y: Any, gates: Any, grad_y: Any, reverse: bool) -> None:
    """All steps in one launch; see :func:`.recurrent.gru_grad`."""
    weight = transposed(weight_hh)
    _launch(_gru_grad, weight, WARP, (*outs, weight, h0, y, gates, grad_y), h0.shape, len(y), reverse)


def rnn(y: Any, z: Any, h0: Any, weight_hh: Any, nonlinearity: str, reverse: bool) -> None:
    """All steps in one launch; see :func:`.recurrent.rnn`."""
    kernels = _rnn[nonlinearity][0]
    _launch(kernels, weight_hh, FORWARD_PARTS, (y, z, h0, weight_hh), h0.shape, len(z), reverse)


def rnn_grad(dz: Any, grad_y: Any, y: Any, weight_hh: Any, nonlinearity: str, reverse: bool) -> None:
    """All steps in one launch; see :func:`.recurrent.rnn_grad`."""
    weight, kernels = transposed(weight_hh), _rnn[nonlinearity][1]
    _launch(kernels, weight, FORWARD_PARTS, (dz, grad_y, y, weight), y.shape[1:], len(y), reverse)


def _launch(
    kernels: dict[int, CudaKernel],
    weight: Any,
    parts: int,
    arrays: tuple,
    shape: tuple[int, int],
    steps: int,
    reverse: bool,
) -> None:
    """Launch for a batch and units of ``shape``, with shared memory for operands and products."""
    N, H = shape
    rows = ROWS if N > MANY_ROWS and ROWS * H <= THREADS else 1
    columns, K = weight.shape
    vectors = parts * VECTOR_BYTES // weight.dtype.itemsize
    elements = rows * (blocks(K, vectors) * vectors + columns)
    shared = elements * computed_dtype(weight.dtype).itemsize
    kernels[rows].launch(blocks(N, rows), THREADS, (*arrays, N, H, steps, reverse), shared)
