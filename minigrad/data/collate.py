"""Collating: a list of samples becomes a batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minigrad.creation import from_numpy
from minigrad.devices import Device, cpu
from minigrad.ops.join import stack
from minigrad.tensor import Tensor

__all__ = ["default_collate", "default_convert", "move", "pin"]


def default_collate(samples: Sequence[Any]) -> Any:
    """Combine ``samples``, all of one structure, into a batch with a new leading dimension.

    ==========================  ====================================================================
    samples                     batch
    ==========================  ====================================================================
    Tensor, NumPy array         their stack; the dtype stays
    int, float, bool            1-D tensor; int64, float64 and bool, as in PyTorch
    NumPy scalar                1-D tensor; the dtype stays
    str, bytes                  list
    tuple, list                 list with one batch for each position (a named tuple stays one)
    mapping                     dict with one batch for each key
    ==========================  ====================================================================

    Raises:
        TypeError: samples of any other type, or of several.
        ValueError: no samples, or samples of different shapes or lengths.
    """
    if not len(samples):
        raise ValueError("default_collate: there are no samples to combine")
    first = samples[0]
    if isinstance(first, Tensor):
        _require_type(samples, Tensor)
        _require_equal([sample.shape for sample in samples], "shape")
        return _stack_tensors(samples)
    if isinstance(first, np.ndarray):
        _require_type(samples, np.ndarray)
        _require_equal([sample.shape for sample in samples], "shape")
        return from_numpy(np.stack(samples))
    if isinstance(first, (bool, int, float, np.generic)):
        return from_numpy(np.array(samples))
    if isinstance(first, (str, bytes)):
        return list(samples)
    if isinstance(first, Mapping):
        _require_type(samples, Mapping)
        return {key: default_collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Sequence):
        _require_type(samples, Sequence)
        _require_equal([len(sample) for sample in samples], "length")
        columns = [default_collate(column) for column in zip(*samples, strict=True)]
        return type(first)(*columns) if _is_named_tuple(first) else columns
    raise TypeError(
        f"default_collate: cannot combine samples of type {type(first).__name__}; expected tensors, arrays, "
        f"numbers, strings, or tuples, lists and mappings of these. Give the DataLoader a collate_fn"
    )


def default_convert(sample: Any) -> Any:
    """``sample`` with its NumPy arrays as tensors, all else as it is: a single sample needs no batch."""
    if isinstance(sample, np.ndarray):
        return from_numpy(sample)
    return _map_parts(default_convert, sample)


def pin(batch: Any) -> Any:
    """``batch`` with its CPU tensors in pinned memory, all else as it is; a card must be there."""
    if isinstance(batch, Tensor):
        return batch.pin_memory() if batch.device is cpu else batch
    return _map_parts(pin, batch)


def move(batch: Any, device: Device) -> Any:
    """``batch`` with its tensors on ``device``, all else as it is; nothing is waited for."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return _map_parts(lambda part: move(part, device), batch)


def _map_parts(function: Callable[[Any], Any], sample: Any) -> Any:
    """``sample`` with ``function`` applied to its parts: a dict or a list of them; itself if it has none."""
    if isinstance(sample, Mapping):
        return {key: function(value) for key, value in sample.items()}
    if _is_named_tuple(sample):
        return type(sample)(*map(function, sample))
    if isinstance(sample, (tuple, list)):
        return [function(value) for value in sample]
    return sample


Collate = Callable[[Any], Any]


def _stack_tensors(samples: Sequence[Tensor]) -> Tensor:
    if any(sample.requires_grad or sample.device is not cpu for sample in samples):
        return stack(samples)
    # Nothing to record and nothing to move: one copy, in place of one op for each sample.
    return from_numpy(np.stack([sample.numpy() for sample in samples]))


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _require_type(samples: Sequence[Any], kind: type) -> None:
    for index, sample in enumerate(samples):
        if not isinstance(sample, kind):
            raise TypeError(
                "default_collate: the samples of a batch must be of one type; sample 0 is a "
                f"{type(samples[0]).__name__}, sample {index} a {type(sample).__name__}"
            )


def _require_equal(values: list[Any], what: str) -> None:
    for index, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"default_collate: the samples of a batch must have one {what}; sample 0 has "
                f"{what} {values[0]}, sample {index} has {value}. A collate_fn of your own could pad them"
            )
