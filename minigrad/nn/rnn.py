"""Recurrent layers: the long short-term memory, https://doi.org/10.1162/neco.1997.9.8.1735; the gated
recurrent unit, https://arxiv.org/abs/1406.1078; and the plain one (Elman 1990)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import empty, zeros
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    packed_lengths,
    pad_packed_sequence,
)
from minigrad.ops.join import concat
from minigrad.ops.lstm import lstm
from minigrad.ops.repeated_rows import linear_of_repeated, repeated_rows
from minigrad.ops.rnn import gru, rnn
from minigrad.ops.scatter import index_select
from minigrad.tensor import Tensor

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class _Recurrent(Module):
    """What all layers have: the sizes, and parameters that start uniform in +-1 / sqrt(hidden_size)."""

    gates: ClassVar[int]
    """How many vectors of hidden_size W_ih x makes."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)

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
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, Parameter(empty(*shape, device=device, dtype=dtype)))

    def _parameters_of(self, suffix: str) -> tuple[Any, Any, Any, Any]:
        """Both weights and both biases of a layer; None for biases that are not there."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, name + suffix, None) for name in names)  # type: ignore[return-value]

    @property
    def _flat_weights_names(self) -> list[str]:
        """The parameters' names. PyTorch's is a private one, too, but textbooks initialise weights by it."""
        return [name for name, _ in self.named_parameters()]

    def flatten_parameters(self) -> None:
        """Does nothing: kernels read the parameters where they are."""

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _run(self, x: Tensor, state: Sequence[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, ...]:
        """(T, N, input_size) and states (N, hidden_size) to the states (T, N, hidden_size) at all times."""
        raise NotImplementedError

    def _check_state(self, hx: Any, shape: tuple[int, ...]) -> None:
        for name, state in zip(self.state_names, hx, strict=True):
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


class _LongShortTermMemory(_Recurrent):
    """The step of both LSTM layers."""

    gates = 4
    state_names = ("h", "c")

    def _run(self, x: Tensor, state: Sequence[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, ...]:
        """(T, N, input_size) and states (N, hidden_size) to hidden and cell states (T, N, hidden_size)."""
        bias = None
        if self.bias:
            bias = getattr(self, "bias_ih" + suffix) + getattr(self, "bias_hh" + suffix)
        weights = (getattr(self, name + suffix) for name in ("weight_ih", "weight_hh"))
        numbers = repeated_rows(x, self.gates * self.hidden_size)
        hidden, cells, _ = lstm(x, *state, *weights, bias, numbers, reverse=reverse)
        return hidden, cells


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the inputs of all steps contribute: one product."""
    numbers = repeated_rows(x, weight.shape[0])
    return F.linear(x, weight, bias) if numbers is None else linear_of_repeated(x, weight, bias, numbers)


class _PlainUnit(_Recurrent):
    """The step of both plain layers: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or ReLU in its place."""

    gates = 1
    nonlinearity: str

    def _check_nonlinearity(self, nonlinearity: str) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"{type(self).__name__}: nonlinearity is 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def _run(self, x: Tensor, state: Sequence[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = self._parameters_of(suffix)
        z = _project(x, weight_ih, None if bias_ih is None else bias_ih + bias_hh)
        return (rnn(z, *state, weight_hh, nonlinearity=self.nonlinearity, reverse=reverse),)


class _GatedUnit(_Recurrent):
    """The step of both gated layers."""

    gates = 3

    def _run(self, x: Tensor, state: Sequence[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = self._parameters_of(suffix)
        hidden, _ = gru(_project(x, weight_ih, bias_ih), *state, weight_hh, bias_hh, reverse=reverse)
        return (hidden,)


class LSTMCell(_LongShortTermMemory):
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


class _StepOfOneState(_Recurrent):
    """A cell whose only state is h."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__(input_size, hidden_size, bias)
        self._add_parameters(input_size, "", device, dtype)
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h, (N, hidden_size) or (hidden_size,).

        Args:
            input: (N, input_size) or (input_size,).
            hx: the state h; zeros by default.
        """
        self._check_input(input, (1, 2))
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            hx = zeros(*shape, device=input.device, dtype=input.dtype)
        self._check_state((hx,), shape)
        x, h = (part if input.ndim == 2 else part.unsqueeze(0) for part in (input, hx))
        (hidden,) = self._run(x.unsqueeze(0), (h,), "", reverse=False)
        return hidden.reshape(shape)

    def extra_repr(self) -> str:
        """The sizes, and bias where it is not True."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", bias={self.bias}")


class GRUCell(_StepOfOneState, _GatedUnit):
    """One step of a gated recurrent unit.

    r, z = sigmoid and n = tanh(a + r b) of the thirds of a = W_ih x + b_ih and b = W_hh h + b_hh (in the
    order r, z, n);  h' = (1 - z) n + z h. The arguments are those of :class:`LSTMCell`; weights and biases
    have 3 hidden_size rows.
    """


class RNNCell(_StepOfOneState, _PlainUnit):
    """One step of a plain recurrent layer: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or ReLU in its place.

    The arguments are those of :class:`LSTMCell`, and ``nonlinearity``, ``"tanh"`` or ``"relu"``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._check_nonlinearity(nonlinearity)

    def extra_repr(self) -> str:
        """The sizes, and what is not its default."""
        text = super().extra_repr()
        return text if self.nonlinearity == "tanh" else text + f", nonlinearity={self.nonlinearity}"


class _Stacked(_Recurrent):
    """Recurrent layers over a sequence, each on the hidden states of the one below.

    Args:
        input_size, hidden_size: the sizes of an element of the sequence, and of the states h and c.
        num_layers: how many layers.
        bias: whether there are b_ih and b_hh, see :class:`LSTMCell`.
        batch_first: input and output are (N, T, ...) rather than (T, N, ...).
        dropout: the probability with which, in training, an output of any layer but the last is dropped.
        bidirectional: a second set of cells walks back from the end; the output has both side by side.
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
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(input_size, hidden_size, bias)
        name = type(self).__name__
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"{name}: num_layers must be an integer of at least 1, got {num_layers!r}")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"{name}: dropout must be a probability in [0, 1], got {dropout}")
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self._suffixes = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * len(self._suffixes)
            for suffix in self._suffixes:
                self._add_parameters(size, f"_l{layer}{suffix}", device, dtype)
        self.reset_parameters()

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """The hidden states of the last layer at all times, and the states of all layers at the last time.

        Args:
            input: (T, N, input_size), (N, T, input_size) if ``batch_first``, (T, input_size), or a
                :class:`~minigrad.nn.utils.rnn.PackedSequence`.
            hx: the initial h, (D num_layers, N, hidden_size), without N if the input has none, where D is 2
                if ``bidirectional``, else 1; of an LSTM the pair (h, c). Zeros by default.

        Returns:
            output: (T, N, D hidden_size), or as the input is ordered, or packed.
            the last states, shaped as ``hx``.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        self._check_input(input, (2, 3))
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if x.shape[0] == 0:
            name = type(self).__name__
            raise ValueError(f"{name}: the sequence must not be empty, got input of shape {input.shape}")
        x, last = self._layers(x, self._initial(input, x.shape[1], hx))
        if not batched:
            return x.squeeze(1), self._as_given([state.squeeze(1) for state in last])
        return (x.transpose(0, 1) if self.batch_first else x), self._as_given(last)

    def _forward_packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """As for padded sequences, in the order in which they are packed."""
        in_order = PackedSequence(input.data, input.batch_sizes)
        x, _ = pad_packed_sequence(in_order)
        self._check_input(x, (2, 3))
        lengths = packed_lengths(in_order)
        initial = self._initial(x, x.shape[1], hx)
        if hx is not None and input.sorted_indices is not None:
            initial = [index_select(state, 1, input.sorted_indices) for state in initial]
        x, last = self._layers(x, initial, lengths)
        if input.unsorted_indices is not None:
            last = [index_select(state, 1, input.unsorted_indices) for state in last]
        packed = pack_padded_sequence(x, lengths)
        return input._replace(data=packed.data), self._as_given(last)

    def _as_given(self, states: Sequence[Tensor]) -> Any:
        """The states as ``hx`` is given: one tensor, or a tuple of several."""
        return tuple(states) if len(self.state_names) > 1 else states[0]

    def _initial(self, input: Tensor, N: int, hx: Any) -> list[Sequence[Tensor]]:
        """The states (D num_layers, N, hidden_size), as tensors or as their parts."""
        cells = self.num_layers * len(self._suffixes)
        if hx is None:
            start = zeros(N, self.hidden_size, device=input.device, dtype=input.dtype)
            return [[start] * cells] * len(self.state_names)
        states = hx if len(self.state_names) > 1 else (hx,)
        batch = (N,) if input.ndim == 3 else ()
        self._check_state(states, (cells, *batch, self.hidden_size))
        return [state if batch else state.unsqueeze(1) for state in states]

    def _layers(
        self, x: Tensor, initial: list[Sequence[Tensor]], lengths: np.ndarray | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last layer's hidden states, and all layers' last states; of sequences of ``lengths``."""
        last: list[list[Tensor]] = [[] for _ in self.state_names]
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training and self.dropout > 0)
            directions = []
            for suffix in self._suffixes:
                state = [states[len(last[0])] for states in initial]
                hidden, final = self._walk(x, state, f"_l{layer}{suffix}", suffix != "", lengths)
                for own, one in zip(last, final, strict=True):
                    own.append(one)
                directions.append(hidden)
            x = concat(directions, 2) if len(directions) > 1 else directions[0]
        return x, [concat(states) for states in last]

    def _walk(
        self, x: Tensor, state: list[Tensor], suffix: str, reverse: bool, lengths: np.ndarray | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The hidden states of one layer in one direction, and its last states (1, N, hidden_size)."""
        if lengths is None:
            states = self._run(x, state, suffix, reverse)
            return states[0], [s[:1] if reverse else s[-1:] for s in states]
        # What is behind a sequence's end comes after it. To walk back, each sequence is turned around.
        numbers = x.device.from_numpy(np.arange(len(lengths)))
        steps = np.arange(x.shape[0])[:, None]
        turned = x.device.from_numpy(np.where(steps < lengths, lengths - 1 - steps, steps))
        states = self._run(x[turned, numbers] if reverse else x, state, suffix, reverse=False)
        ends = x.device.from_numpy(lengths - 1)
        hidden = states[0][turned, numbers] if reverse else states[0]
        return hidden, [s[ends, numbers].unsqueeze(0) for s in states]

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


class LSTM(_Stacked, _LongShortTermMemory):
    """Layers of long short-term memory over a sequence; the arguments are those of :class:`_Stacked`.

    ``proj_size`` must be 0: projections are not supported.
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
        if proj_size != 0:
            raise ValueError(f"LSTM: projections are not supported: proj_size must be 0, got {proj_size}")
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        )
        self.proj_size = proj_size


class GRU(_Stacked, _GatedUnit):
    """Layers of gated recurrent units over a sequence; see :class:`GRUCell` and :class:`LSTM`."""


class RNN(_Stacked, _PlainUnit):
    """Plain recurrent layers over a sequence; see :class:`RNNCell` and :class:`LSTM`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        )
        self._check_nonlinearity(nonlinearity)
