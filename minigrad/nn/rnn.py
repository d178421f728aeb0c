"""Recurrent layers: the long short-term memory. https://doi.org/10.1162/neco.1997.9.8.1735"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minigrad.creation import empty, zeros
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops.join import concat, stack
from minigrad.ops.lstm import lstm
from minigrad.tensor import Tensor

__all__ = ["LSTM", "LSTMCell"]


class _Recurrent(Module):
    """What both layers have: the sizes, and parameters that start uniform in +-1 / sqrt(hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool):
        super().__init__()
        for name, size, least in (("input_size", input_size, 0), ("hidden_size", hidden_size, 1)):
            if not isinstance(size, int) or size < least:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be an integer of at least {least}, got {size!r}"
                )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias

    def _add_parameters(self, input_size: int, suffix: str, device: Any, dtype: Any) -> None:
        rows = 4 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, Parameter(empty(*shape, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _run(self, x: Tensor, state: Sequence[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, Tensor]:
        """(T, N, input_size) and states (N, hidden_size) to hidden and cell states (T, N, hidden_size)."""
        bias = None
        if self.bias:
            bias = getattr(self, "bias_ih" + suffix) + getattr(self, "bias_hh" + suffix)
        weights = (getattr(self, name + suffix) for name in ("weight_ih", "weight_hh"))
        hidden, cells, _ = lstm(x, *state, *weights, bias, reverse=reverse)
        return hidden, cells

    def _check_state(self, hx: Any, shape: tuple[int, ...]) -> None:
        for name, state in zip(("h", "c"), hx, strict=True):
            if state.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: the state {name} must have shape {shape}, got {state.shape}"
                )

    def _check_input(self, input: Tensor, dims: tuple[int, int]) -> None:
        if input.ndim not in dims or input.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__}: expected {dims[0]} or {dims[1]} dimensions, the last of size "
                f"{self.input_size}, got shape {input.shape}"
            )


class LSTMCell(_Recurrent):
    """One step of a long short-term memory.

    i, f, o = sigmoid and g = tanh of the quarters (in the order i, f, g, o) of
    W_ih x + b_ih + W_hh h + b_hh;  c' = f c + i g;  h' = o tanh(c').

    Args:
        input_size, hidden_size: the sizes of x and of the states h and c.
        bias: whether there are b_ih and b_hh.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight_ih, weight_hh: (4 hidden_size, input_size) and (4 hidden_size, hidden_size).
        bias_ih, bias_hh: (4 hidden_size,); all start uniform in +-1 / sqrt(hidden_size).
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__(input_size, hidden_size, bias)
        self._add_parameters(input_size, "", device, dtype)
        self.reset_parameters()

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next (h, c).

        Args:
            input: (N, input_size) or (input_size,).
            hx: the states (h, c), each (N, hidden_size) or (hidden_size,); zeros by default.
        """
        self._check_input(input, (1, 2))
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            hx = (zeros(*shape, device=input.device, dtype=input.dtype),) * 2
        self._check_state(hx, shape)
        x, *state = (part if input.ndim == 2 else part.unsqueeze(0) for part in (input, *hx))
        hidden, cells = self._run(x.unsqueeze(0), state, "", reverse=False)
        return hidden.reshape(shape), cells.reshape(shape)

    def extra_repr(self) -> str:
        """The sizes, and bias where it is not True."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", bias={self.bias}")


class LSTM(_Recurrent):
    """Layers of long short-term memory over a sequence, each on the hidden states of the one below.

    Args:
        input_size, hidden_size: the sizes of an element of the sequence, and of the states h and c.
        num_layers: how many layers.
        bias: whether there are b_ih and b_hh, see :class:`LSTMCell`.
        batch_first: input and output are (N, T, ...) rather than (T, N, ...).
        dropout: the probability with which, in training, an output of any layer but the last is dropped.
        bidirectional: a second set of cells walks back from the end; the output has both side by side.
        proj_size: there for PyTorch's sake; must be 0.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: of layer 0, and so on, shaped as in
            :class:`LSTMCell`; those that walk back end in ``_reverse``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(input_size, hidden_size, bias)
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"LSTM: num_layers must be an integer of at least 1, got {num_layers!r}")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"LSTM: dropout must be a probability in [0, 1], got {dropout}")
        if proj_size != 0:
            raise ValueError(f"LSTM: projections are not supported: proj_size must be 0, got {proj_size}")
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._suffixes = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * len(self._suffixes)
            for suffix in self._suffixes:
                self._add_parameters(size, f"_l{layer}{suffix}", device, dtype)
        self.reset_parameters()

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states of the last layer at all times, and (h, c) of all layers at the last time.

        Args:
            input: (T, N, input_size), (N, T, input_size) if ``batch_first``, or (T, input_size).
            hx: the initial (h, c), each (D num_layers, N, hidden_size), without N if the input has none,
                where D is 2 if ``bidirectional``, else 1; zeros by default.

        Returns:
            output: (T, N, D hidden_size), or as the input is ordered.
            (h, c): shaped as ``hx``.
        """
        self._check_input(input, (2, 3))
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if x.shape[0] == 0:
            raise ValueError(f"LSTM: the sequence must not be empty, got input of shape {input.shape}")
        x, hidden, cells = self._layers(x, self._initial(input, x.shape[1], hx))
        if not batched:
            return x.squeeze(1), (hidden.squeeze(1), cells.squeeze(1))
        return (x.transpose(0, 1) if self.batch_first else x), (hidden, cells)

    def _initial(self, input: Tensor, N: int, hx: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """The states (D num_layers, N, hidden_size)."""
        cells = self.num_layers * len(self._suffixes)
        if hx is None:
            return [zeros(cells, N, self.hidden_size, device=input.device, dtype=input.dtype)] * 2
        batch = (N,) if input.ndim == 3 else ()
        self._check_state(hx, (cells, *batch, self.hidden_size))
        return [state if batch else state.unsqueeze(1) for state in hx]

    def _layers(self, x: Tensor, initial: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The last layer's hidden states, and all layers' last states."""
        last_hidden: list[Tensor] = []
        last_cells: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training and self.dropout > 0)
            directions = []
            for suffix in self._suffixes:
                state = [states[len(last_hidden)] for states in initial]
                reverse = suffix != ""
                hidden, cells = self._run(x, state, f"_l{layer}{suffix}", reverse)
                last_hidden.append(hidden[0 if reverse else -1])
                last_cells.append(cells[0 if reverse else -1])
                directions.append(hidden)
            x = concat(directions, 2) if len(directions) > 1 else directions[0]
        return x, stack(last_hidden), stack(last_cells)

    def extra_repr(self) -> str:
        """The sizes, and what differs from its default."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        others = (f", {k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v)
        return f"{self.input_size}, {self.hidden_size}" + "".join(others)
