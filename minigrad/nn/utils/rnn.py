"""Sequences of several lengths in one batch: padded to the longest, or packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad.creation import tensor
from minigrad.ops.elementwise import where
from minigrad.ops.index import getitem, scatter_index
from minigrad.ops.join import stack
from minigrad.ops.padding import pad
from minigrad.tensor import Tensor

__all__ = [
    "PackedSequence",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpad_sequence",
]


class PackedSequence(NamedTuple):
    """A batch of sequences without padding, made by :func:`pack_padded_sequence`.

    Attributes:
        data: the elements (total, ...), all that are first in time, then all second ones, and so on.
        batch_sizes: (T,), how many sequences have an element at each time; int64, on the CPU.
        sorted_indices: (N,), which sequence stands at each place, the longest first; None if as they came.
        unsorted_indices: (N,), at which place each sequence stands.
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    def to(self, *args: Any, **options: Any) -> PackedSequence:
        """With the data on another device, or of another dtype."""
        return self._replace(data=self.data.to(*args, **options))


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Leave the padding out of a batch of sequences.

    Args:
        input: (T, N, ...), or (N, T, ...) if ``batch_first``.
        lengths: of the sequences, (N,): a tensor on the CPU, an array or a list; at least 1.
        batch_first: see ``input``.
        enforce_sorted: the lengths must not increase; otherwise the sequences are sorted.

    Raises:
        ValueError: a length is below 1 or above T, or they are not sorted.
    """
    x = input.transpose(0, 1) if batch_first else input
    sizes = np.asarray(lengths.tolist() if isinstance(lengths, Tensor) else lengths, np.int64)
    if sizes.shape != x.shape[1:2] or sizes.min(initial=1) < 1 or sizes.max(initial=0) > x.shape[0]:
        raise ValueError(
            f"pack_padded_sequence: expected {x.shape[1]} lengths from 1 to {x.shape[0]}, "
            f"got {sizes.tolist()}"
        )
    order = np.argsort(-sizes, kind="stable")
    places: tuple = (None, None)
    if enforce_sorted:
        if (np.diff(sizes) > 0).any():
            raise ValueError(
                "pack_padded_sequence: the lengths must not increase; pass enforce_sorted=False to sort them"
            )
    else:
        places = (tensor(order), tensor(np.argsort(order)))
    times, columns, batch_sizes = _layout(sizes[order])
    data = getitem(x, index=_on(x, times, order[columns]))
    return PackedSequence(data, tensor(batch_sizes), *places)


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The padded batch (T, N, ...), in its first order, and the lengths (N,): pack_padded_sequence undone.

    ``total_length`` is the T, by default that of the longest sequence.
    """
    sizes = packed_lengths(sequence)
    longest = int(sizes.max(initial=0))
    T = longest if total_length is None else total_length
    if longest > T:
        raise ValueError(f"pad_packed_sequence: total_length {T} is less than the longest length, {longest}")
    order = np.arange(len(sizes))
    if sequence.sorted_indices is not None:
        order = np.asarray(sequence.sorted_indices.tolist(), np.int64)
    times, columns, _ = _layout(sizes)
    index = _on(sequence.data, times, order[columns])
    padded = scatter_index(sequence.data, index=index, shape=(T, len(sizes), *sequence.data.shape[1:]))
    lengths = np.empty_like(sizes)
    lengths[order] = sizes
    if padding_value:
        is_padding = np.arange(T)[:, None] >= lengths
        mask = tensor(is_padding.reshape(*is_padding.shape, *(1,) * (padded.ndim - 2)), device=padded.device)
        padded = where(mask, padding_value, padded)
    return (padded.transpose(0, 1) if batch_first else padded), tensor(lengths)


def packed_lengths(sequence: PackedSequence) -> np.ndarray:
    """The lengths of the sequences, the longest first."""
    batch_sizes = np.asarray(sequence.batch_sizes.tolist(), np.int64)
    count = int(batch_sizes[0]) if len(batch_sizes) else 0
    return (np.arange(count) < batch_sizes[:, None]).sum(0)


def _layout(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For lengths that do not increase: the time and the place of each packed element; the batch sizes."""
    is_there = np.arange(sizes.max(initial=0))[:, None] < sizes
    times, columns = np.nonzero(is_there)
    return times, columns, is_there.sum(1)


def _on(x: Tensor, *arrays: np.ndarray) -> tuple:
    return tuple(x.device.from_numpy(array) for array in arrays)


def pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0
) -> Tensor:
    """Sequences (L, ...) of several lengths as one batch (T, N, ...), or (N, T, ...) if ``batch_first``."""
    longest = max(len(s) for s in sequences)
    padded = [pad(s, (0, 0) * (s.ndim - 1) + (0, longest - len(s)), value=padding_value) for s in sequences]
    return stack(padded, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """:func:`pad_sequence` undone."""
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [x[i, : int(n)] for i, n in enumerate(lengths)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """:func:`pad_sequence` and :func:`pack_padded_sequence` in one."""
    lengths = [len(s) for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)
