"""Data sets: what a :class:`DataLoader` reads from. Names and behaviour are PyTorch's."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from minigrad.data.collate import default_collate
from minigrad.data.sampler import choose_generator
from minigrad.random import Generator
from minigrad.tensor import Tensor

__all__ = ["ConcatDataset", "Dataset", "IterableDataset", "Subset", "TensorDataset", "random_split"]

Sample = TypeVar("Sample", covariant=True)


class Dataset(Generic[Sample]):
    """Base of the data sets whose samples have an index: define ``__getitem__`` and ``__len__``.

    Two optional methods make loading faster. ``__getitems__(indices)``, as in PyTorch, returns the list of
    samples at ``indices`` in one go. ``get_batch(indices)`` returns the finished batch, as
    :func:`default_collate` would have made it, say by one fancy index into an array.
    """

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def __add__(self, other: Any) -> ConcatDataset[Sample]:
        """This data set, and ``other`` behind it."""
        return ConcatDataset([self, other])


class IterableDataset(Dataset[Sample]):
    """Base of the data sets that are streams: define ``__iter__``. Shuffling them is their own business."""

    def __iter__(self) -> Iterator[Sample]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples are the slices of ``tensors`` along their first dimension, which must be of one length."""

    def __init__(self, *tensors: Tensor):
        if not tensors:
            raise ValueError("TensorDataset needs at least one tensor")
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"TensorDataset: expected tensors, got {type(tensor).__name__}")
            if tensor.ndim == 0 or tensor.shape[0] != tensors[0].shape[0]:
                raise ValueError(
                    "TensorDataset: the tensors must have the same first dimension, got shapes "
                    + ", ".join(str(tuple(t.shape)) for t in tensors)
                )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def get_batch(self, indices: Sequence[int]) -> list[Tensor]:
        rows = np.asarray(indices, np.int64)
        return [tensor[rows] for tensor in self.tensors]

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{tuple(tensor.shape[1:])} {tensor.dtype}" for tensor in self.tensors)
        return f"{type(self).__name__}({len(self)} samples of {shapes})"


def check_train(dataset: Dataset, train: Any) -> None:
    """ValueError for ``train="test"``, which is true."""
    if train not in (True, False):
        raise ValueError(f"{type(dataset).__name__}: train must be True or False, got {train!r}")


class Subset(Dataset[Sample]):
    """The samples of ``dataset`` at ``indices``, in that order."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        return get_samples(self.dataset, [self.indices[i] for i in indices])

    def get_batch(self, indices: Sequence[int]) -> Any:
        return get_batch(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


class ConcatDataset(Dataset[Sample]):
    """Several data sets, one after the other."""

    def __init__(self, datasets: Iterable[Any]):
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: there are no data sets")
        self.cumulative_sizes = np.cumsum([len(dataset) for dataset in self.datasets]).tolist()

    def __getitem__(self, index: int) -> Sample:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"ConcatDataset: index {index} of {size} samples")
        index %= size
        place = bisect_right(self.cumulative_sizes, index)
        return self.datasets[place][index - (self.cumulative_sizes[place - 1] if place else 0)]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]


def get_worker_info() -> None:
    """None, as in the main process in PyTorch: an iterable data set is read as a whole, by one worker."""


def random_split(
    dataset: Any,
    lengths: Sequence[int | float],
    generator: Generator | None = None,
    *,
    seed: int | None = None,
) -> list[Subset]:
    """Split ``dataset`` at random into disjoint subsets.

    Args:
        lengths: how many samples each subset gets; or fractions that sum to 1, rounded down, with what is
            left given out one by one from the first subset on.
        generator: a source of random numbers; by default, minigrad's global one (``manual_seed``).
        seed: an integer, in place of a generator: the same seed, the same split.

    Raises:
        ValueError: the lengths do not add up to ``len(dataset)``, or the fractions to 1.
    """
    size = len(dataset)
    counts = _counts(lengths, size)
    permutation = choose_generator(generator, seed).numpy.permutation(size).tolist()
    ends = np.cumsum(counts).tolist()
    return [Subset(dataset, permutation[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _counts(lengths: Sequence[int | float], size: int) -> list[int]:
    if any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must not be negative, got {list(lengths)}")
    if sum(lengths) == size and all(int(length) == length for length in lengths):
        return [int(length) for length in lengths]
    if not math.isclose(sum(lengths), 1) or any(length > 1 for length in lengths):
        raise ValueError(
            f"random_split: lengths must add up to the {size} samples of the data set, or, as "
            f"fractions, to 1; got {list(lengths)}, which add up to {sum(lengths)}"
        )
    counts = [math.floor(size * fraction) for fraction in lengths]
    for i in range(size - sum(counts)):
        counts[i % len(counts)] += 1
    return counts


def get_samples(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    """The samples of ``dataset`` at ``indices``."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


def get_batch(dataset: Any, indices: Sequence[int]) -> Any:
    """``default_collate`` of the samples at ``indices``, by the data set's ``get_batch`` if it has one."""
    if _has_current_get_batch(type(dataset)):
        return dataset.get_batch(indices)
    return default_collate(get_samples(dataset, indices))


def _has_current_get_batch(cls: type) -> bool:
    # A subclass that overrides __getitem__, to augment each sample say, makes the get_batch that it
    # inherits out of date: then only the samples themselves tell what a batch is.
    for base in cls.__mro__:
        if "get_batch" in vars(base):
            return True
        if "__getitem__" in vars(base):
            return False
    return False
