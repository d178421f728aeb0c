"""The data loader: batches of samples from a data set, shuffled, and loaded ahead by threads."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minigrad.data.collate import Collate, default_collate, default_convert, pin
from minigrad.data.dataset import IterableDataset, get_batch, get_samples
from minigrad.data.prefetch import prefetch
from minigrad.data.sampler import BatchSampler, RandomSampler, SequentialSampler, choose_generator, chunked
from minigrad.kernels import cuda
from minigrad.random import Generator

__all__ = ["DataLoader"]

_END = object()


class DataLoader:
    """Iterates over ``dataset`` in batches; each ``iter()`` is one epoch.

    Arguments have PyTorch's names, order and defaults. They differ in one thing: workers are threads of this
    process, since NumPy and minigrad's kernels release the interpreter lock. So nothing is pickled, a
    worker's exception arrives with its own traceback, and batches are the same, in the same order, for any
    number of workers (as long as the samples themselves are: a random transform that runs in several threads
    should derive its randomness from the sample).

    Args:
        dataset: anything with ``__getitem__`` and ``__len__``, or an :class:`IterableDataset`. A batch is
            made by its ``get_batch``, if it has one (see :class:`Dataset`) and no ``collate_fn`` is given.
        batch_size: samples in a batch. None: no batches, single samples.
        shuffle: visit the samples in another random order each epoch.
        sampler: the indices to visit, in place of ``shuffle``.
        batch_sampler: the lists of indices that make the batches, in place of ``batch_size``, ``shuffle``,
            ``sampler`` and ``drop_last``.
        num_workers: threads that load ahead; 0 loads in the caller's thread. An iterable data set is read by
            one thread however many are allowed.
        collate_fn: makes a batch of a list of samples (default: :func:`default_collate`).
        drop_last: leave out the last batch if it is not full.
        generator: a source of random numbers for shuffling; by default, minigrad's global one.
        seed: an integer in place of a generator: the same seed, the same sequence of epochs.
        prefetch_factor: batches loaded ahead for each worker; 2 by default, only with workers.
        pin_memory: put the tensors of a batch in page-locked memory, from which
            ``to("cuda", non_blocking=True)`` copies while the program goes on. Without a card, nothing is
            done.
        persistent_workers: accepted for PyTorch's sake; threads start in microseconds, so none is kept.

    Raises:
        ValueError: arguments that are out of range or contradict each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        *,
        generator: Generator | None = None,
        seed: int | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
    ):
        self.dataset = dataset
        self.num_workers = _natural("num_workers", num_workers)
        self.prefetch_factor = _check_prefetch_factor(prefetch_factor, self.num_workers)
        self.generator = choose_generator(generator, seed)
        self.collate_fn = collate_fn or (default_convert if batch_size is None else default_collate)
        self.drop_last = drop_last
        self.pin_memory = pin_memory
        self._streams = isinstance(dataset, IterableDataset)
        self._check_choices(batch_size, shuffle, sampler, batch_sampler)

        if sampler is None:
            # An iterable data set has no indices: its sampler is never asked.
            sampler = (
                RandomSampler(dataset, generator=self.generator) if shuffle else SequentialSampler(dataset)
            )
        self.batch_size = batch_size if batch_sampler is None else None
        if batch_sampler is None and batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler

    def _check_choices(self, batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
        if self._streams and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError(
                "DataLoader: an IterableDataset yields its samples in its own order; shuffle, sampler and "
                "batch_sampler do not apply to it"
            )
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler and shuffle exclude each other: the sampler sets the order")
        if batch_sampler is not None and (
            batch_size != 1 or shuffle or sampler is not None or self.drop_last
        ):
            raise ValueError(
                "DataLoader: batch_sampler excludes batch_size, shuffle, sampler and drop_last: it makes the "
                "batches by itself"
            )
        if batch_size is None and self.drop_last:
            raise ValueError("DataLoader: drop_last needs batches, but batch_size is None")

    def __iter__(self) -> Iterator[Any]:
        if self._streams:
            return self._iterate_stream()
        if self.num_workers == 0:
            # Not map(): a StopIteration that escapes from a data set must not look like the epoch's end.
            return (self._load(job) for job in self._jobs)
        return prefetch(self._load, self._jobs, self.num_workers, self._ahead)

    def __len__(self) -> int:
        """The number of batches of an epoch (of samples, without batches)."""
        if self._streams:
            raise TypeError("the length of a DataLoader over an IterableDataset is not known in advance")
        return len(self._jobs)

    @property
    def _jobs(self) -> Any:
        """What one epoch goes through: the indices of each batch, or, without batches, of each sample."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    @property
    def _ahead(self) -> int:
        """How many batches the workers load before they are asked for."""
        return self.num_workers * (self.prefetch_factor or 0)

    def _load(self, job: Any) -> Any:
        """The batch of the indices ``job``, or, without batches, the sample with the index ``job``."""
        try:
            if self.batch_sampler is None:
                return self._pinned(self.collate_fn(self.dataset[job]))
            if self.collate_fn is default_collate:
                return self._pinned(get_batch(self.dataset, job))
            return self._pinned(self.collate_fn(get_samples(self.dataset, job)))
        except Exception as error:
            error.add_note(
                f"raised while the DataLoader loaded {_describe(job)} of {type(self.dataset).__name__}"
            )
            raise

    def _pinned(self, batch: Any) -> Any:
        return pin(batch) if self.pin_memory and cuda.is_available() else batch

    def _iterate_stream(self) -> Iterator[Any]:
        samples: Iterable[Any] = self.dataset
        if self.batch_size is not None:
            samples = chunked(samples, self.batch_size, self.drop_last)
        batches = (self._pinned(self.collate_fn(sample)) for sample in samples)
        if self.num_workers == 0:
            return batches
        # One worker, since a stream has one order.
        loaded = prefetch(lambda _: next(batches, _END), itertools.repeat(None), 1, self._ahead)
        return itertools.takewhile(lambda batch: batch is not _END, loaded)


def _natural(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"DataLoader: {name} must be an integer, 0 or more, got {value!r}")
    return number


def _check_prefetch_factor(prefetch_factor: int | None, num_workers: int) -> int | None:
    if num_workers == 0:
        if prefetch_factor is not None:
            raise ValueError("DataLoader: prefetch_factor needs workers: set num_workers > 0")
        return None
    if prefetch_factor is not None and _natural("prefetch_factor", prefetch_factor) == 0:
        raise ValueError("DataLoader: prefetch_factor must be at least 1, got 0")
    return 2 if prefetch_factor is None else prefetch_factor


def _describe(job: Any) -> str:
    if not isinstance(job, Sequence):
        return f"sample {job!r}"
    shown = ", ".join(map(str, job[:8]))
    return f"samples [{shown}{', ...' if len(job) > 8 else ''}]"
