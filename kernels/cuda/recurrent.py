"""Launches ``recurrent.cu``: the steps of LSTM, GRU and plain recurrent layers, and of their gradients.

All arrays are C-contiguous, and all of one dtype: float32, float64, float16 or bfloat16. Of 16 bits, sums are
float32, and so is what a cell, or a gru's state, carries from step to step; see recurrent.cu. Of T steps of a
batch of N rows, with H units: states and their gradients are (T, N, H), states before the first step (N, H),
``weight_hh`` (gates * H, H), ``bias`` (gates * H,) or None. ``reverse``: the first step is the last in time.
What the inputs contribute to all steps is one product, which the caller makes.

Each step is a launch: the stream keeps the steps in order, and a CUDA graph can hold all of them. Small
layers have one for all steps: see ``recurrent_sequence.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from . import workspace
from .transpose import transpose

WARP, UNITS = 32, 4  # as in recurrent.cu
ROWS = 8  # of the batch, that a block takes where there is more than one

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _by_rows(name: str, options: str = "", types: str = "T") -> dict[int, CudaKernel]:
    return {rows: CudaKernel(_source, f"{name}<{types}, {rows}{options}>") for rows in (1, ROWS)}


_lstm, _lstm_grad = (_by_rows(name, types="C, T") for name in ("lstm_step", "lstm_grad_step"))
_gru, _gru_grad = (_by_rows(name, types="C, T") for name in ("gru_step", "gru_grad_step"))
_tanh, _tanh_grad = _by_rows("rnn_step", ", false"), _by_rows("rnn_grad_step", ", false")
_relu, _relu_grad = _by_rows("rnn_step", ", true"), _by_rows("rnn_grad_step", ", true")
_rnn = {"tanh": (_tanh, _tanh_grad), "relu": (_relu, _relu_grad)}


def lstm(outs: tuple, h0: Any, c0: Any, weight_hh: Any, bias: Any, reverse: bool) -> None:
    """Product, gates and new state of a step in one launch; the weights stay in the L2 cache.

    Args:
        outs: the hidden states, the cell states and the gates, (T, N, 4 H); these hold, when called, what
            the inputs contribute to their pre-activations.
    """
    hidden, cells, gates = outs
    arguments = (hidden, cells, gates, _carried(c0), h0, c0, weight_hh, bias, *h0.shape)
    for at, before, _ in _steps(len(hidden), reverse):
        _launch(_lstm, 4, h0.shape, (*arguments, at, before))


def lstm_grad(
    outs: tuple, weight_hh: Any, c0: Any, cells: Any, gates: Any, grad_y: Any, grad_c: Any, reverse: bool
) -> None:
    """The gradients of the pre-activations z, (T, N, 4 H), of h0 and of c0: a launch for each step.

    Args:
        grad_y, grad_c: the gradients of the hidden states, and of the cell states or None.
    """
    given = transposed(weight_hh), c0, cells, gates, grad_y, grad_c
    arguments = (*outs, _carried(c0), *given, *c0.shape)
    for at, before, after in reversed(_steps(len(gates), reverse)):
        _launch(_lstm_grad, 4, c0.shape, (*arguments, at, after, before))
    _launch(_lstm_grad, 4, c0.shape, (*arguments, -1, at, -1))


def gru(outs: tuple, z: Any, h0: Any, weight_hh: Any, bias: Any, reverse: bool) -> None:
    """Product, gates and new state of a step in one launch; the weights stay in the L2 cache.

    Args:
        outs: the states, and r, u, n and c for the gradient, (T, 4, N, H).
        z: what the inputs contribute, (T, N, 3 H).
    """
    arguments = (*outs, _carried(h0), z, h0, weight_hh, bias, *h0.shape)
    for at, before, _ in _steps(len(z), reverse):
        _launch(_gru, 3, h0.shape, (*arguments, at, before))


def gru_grad(outs: tuple, weight_hh: Any, h0: Any, y: Any, gates: Any, grad_y: Any, reverse: bool) -> None:
    """The gradients of a and b, (T, N, 3 H), and of h0: a launch for each step."""
    arguments = (*outs, _carried(h0), transposed(weight_hh), h0, y, gates, grad_y, *h0.shape)
    for at, before, after in reversed(_steps(len(y), reverse)):
        _launch(_gru_grad, 3, h0.shape, (*arguments, at, after, before))
    _launch(_gru_grad, 3, h0.shape, (*arguments, -1, at, -1))


def rnn(y: Any, z: Any, h0: Any, weight_hh: Any, nonlinearity: str, reverse: bool) -> None:
    """Product and new state of a step in one launch; the weights stay in the L2 cache."""
    arguments = (y, z, h0, weight_hh, *h0.shape)
    for at, before, _ in _steps(len(z), reverse):
        _launch(_rnn[nonlinearity][0], 1, h0.shape, (*arguments, at, before))


def rnn_grad(dz: Any, grad_y: Any, y: Any, weight_hh: Any, nonlinearity: str, reverse: bool) -> None:
    """The gradient of the pre-activations, (T, N, H): a launch for each step."""
    _, N, H = y.shape
    arguments = (dz, grad_y, y, transposed(weight_hh), N, H)
    for at, _, after in reversed(_steps(len(y), reverse)):
        _launch(_rnn[nonlinearity][1], 1, (N, H), (*arguments, at, after))


def _steps(T: int, reverse: bool) -> list[tuple[int, int, int]]:
    """The steps in the order in which they are made: the place of each, of that before and of that after it.

    -1 stands for none.
    """
    places = [*range(T - 1, -1, -1)] if reverse else [*range(T)]
    return list(zip(places, [-1, *places[:-1]], [*places[1:], -1], strict=True))


def _carried(state: Any) -> Any:
    """Room for what each element of a state takes from one step to the next."""
    return workspace(state, state.shape, computed_dtype(state.dtype))


def transposed(weight: Any) -> Any:
    copy = workspace(weight, weight.shape[::-1])
    transpose(copy[None], weight[None])
    return copy


def _launch(kernels: dict[int, CudaKernel], gates: int, shape: tuple[int, int], arguments: tuple) -> None:
    N, H = shape
    rows = ROWS if N > 1 else 1
    kernels[rows].launch(blocks(N, rows) * blocks(H, UNITS), gates * WARP, arguments)
