"""Samplers: the order in which the samples of a data set are visited. Names are PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from minigrad.random import Generator, default_generator

__all__ = [
    "BatchSampler",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "SubsetRandomSampler",
    "WeightedRandomSampler",
]


Index = TypeVar("Index", covariant=True)

CHUNK = 4096  # indices that are drawn at once


class Sampler(Generic[Index]):
    """Base of all samplers: an iterable of indices that starts anew with each ``iter()``.

    Anything with ``__iter__`` will do for a :class:`DataLoader`; ``__len__`` gives the loader its length.
    """

    def __iter__(self) -> Iterator[Index]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")


class SequentialSampler(Sampler[int]):
    """0, 1, 2, ..., ``len(data_source) - 1``."""

    def __init__(self, data_source: Sized):
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """All indices of ``data_source`` in random order, another order each time.

    Args:
        replacement: draw each index independently, so that some come twice and others not at all.
        num_samples: how many to draw (default: ``len(data_source)``). Without replacement, one permutation
            follows another until there are enough.
        generator: a source of random numbers; by default, minigrad's global one (``manual_seed``).
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ):
        if num_samples is not None and num_samples < 0:
            raise ValueError(f"RandomSampler: num_samples must not be negative, got {num_samples}")
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = choose_generator(generator)

    @property
    def num_samples(self) -> int:
        # Looked up each time: the data source may grow.
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        rng, size, count = self.generator.numpy, len(self.data_source), self.num_samples
        if count and not size:
            raise ValueError(f"RandomSampler: cannot draw {count} samples from an empty data source")
        if self.replacement:
            # As they are asked for, for there may be no end of them; by a generator that nobody else uses.
            own = np.random.default_rng(rng.integers(2**63))
            for start in range(0, count, CHUNK):
                yield from own.integers(size, size=min(CHUNK, count - start)).tolist()
            return
        while count > 0:
            permutation = rng.permutation(size)[:count]
            count -= len(permutation)
            yield from permutation.tolist()

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given ``indices``, in another random order each time."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None):
        self.indices = indices
        self.generator = choose_generator(generator)

    def __iter__(self) -> Iterator[int]:
        return (self.indices[i] for i in self.generator.numpy.permutation(len(self.indices)).tolist())

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """``num_samples`` indices, each with a probability in proportion to its weight.

    Args:
        weights: of the indices 0, 1, ...; not negative, of any sum above 0.
        replacement: whether an index may come again.
        generator: a source of random numbers; by default, minigrad's global one.
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ):
        self.weights = np.asarray(weights, np.float64)
        if self.weights.ndim != 1 or not (self.weights >= 0).all() or not 0 < self.weights.sum() < np.inf:
            raise ValueError("WeightedRandomSampler: weights are numbers of at least 0, not all of them 0")
        possible = np.count_nonzero(self.weights)
        if num_samples < 0 or (not replacement and num_samples > possible):
            raise ValueError(
                f"WeightedRandomSampler: cannot draw {num_samples} of {possible} indices, replacement is "
                f"{replacement}"
            )
        self.num_samples, self.replacement = num_samples, replacement
        self.generator = choose_generator(generator)

    def __iter__(self) -> Iterator[int]:
        shares = self.weights / self.weights.sum()
        chosen = self.generator.numpy.choice(len(shares), self.num_samples, self.replacement, shares)
        return iter(chosen.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of ``batch_size`` indices from ``sampler``; the last is shorter, or left out (``drop_last``)."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool):
        if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        self.sampler = sampler
        self.batch_size = int(batch_size)
        self.drop_last = bool(drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        return chunked(self.sampler, self.batch_size, self.drop_last)

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]  # a sampler without a length: TypeError, as in len()
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


def chunked(items: Iterable[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    """Lists of ``size`` consecutive items; the last is shorter, or left out if ``drop_last``."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        if len(chunk) == size or not drop_last:
            yield chunk


def choose_generator(generator: Generator | None, seed: int | None = None) -> Generator:
    """The generator that is given, a new one with the ``seed`` that is given, or minigrad's global one.

    Raises:
        TypeError: ``generator`` is something else, such as a plain integer.
        ValueError: both are given.
    """
    if generator is None:
        return default_generator if seed is None else Generator().manual_seed(seed)
    if seed is not None:
        raise ValueError("give a generator or a seed, not both")
    if not isinstance(generator, Generator):
        raise TypeError(
            f"generator must be a minigrad.Generator, as from Generator().manual_seed(0); got {generator!r}"
        )
    return generator
