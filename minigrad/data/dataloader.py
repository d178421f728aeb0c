"""The data loader: batches of samples from a data set, shuffled, and loaded ahead by threads or processes."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generator_
from dataclasses import dataclass
from typing import Any, Generic

from minigrad.data.collate import Collate, default_collate, default_convert, move, pin
from minigrad.data.dataset import IterableDataset, Sample, get_batch, get_samples
from minigrad.data.prefetch import prefetch
from minigrad.data.sample_random import batch_random
from minigrad.data.sampler import BatchSampler, RandomSampler, SequentialSampler, choose_generator, chunked
from minigrad.devices import Device
from minigrad.devices import device as find_device
from minigrad.kernels import cuda
from minigrad.random import Generator, default_generator

__all__ = ["DataLoader"]

_END = object()


class DataLoader(Generic[Sample]):
    """Iterates over ``dataset`` in batches; each ``iter()`` is one epoch.

    Arguments have PyTorch's names, order and defaults. They differ in one thing: workers are threads of this
    process, unless processes are asked for, since NumPy and minigrad's kernels release the interpreter lock.
    So nothing is pickled, and a worker's exception arrives with its own traceback. Batches are the same, in
    the same order, for any number of workers of either kind; random transforms draw from a generator of the
    batch (:func:`sample_random`). Its place in an epoch is part of a checkpoint: see :meth:`state_dict`.

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
        worker_type: ``"thread"``, or ``"process"`` for a data set whose ``__getitem__`` is mostly Python,
            which only processes run side by side. Batches are then copied from process to process, and the
            data set and ``collate_fn`` must be picklable.
        multiprocessing_context: how processes are started: ``"forkserver"``, the default, ``"spawn"``,
            ``"fork"``, or a context of :mod:`multiprocessing`.
        worker_init_fn: called in each worker with its number, before it loads.
        collate_fn: makes a batch of a list of samples (default: :func:`default_collate`).
        drop_last: leave out the last batch if it is not full.
        generator: a source of random numbers for shuffling; by default, minigrad's global one.
        seed: an integer in place of a generator: the same seed, the same sequence of epochs.
        prefetch_factor: batches loaded ahead for each worker; 2 by default, only with workers.
        pin_memory: put the tensors of a batch in page-locked memory, from which
            ``to("cuda", non_blocking=True)`` copies while the program goes on. Without a card, nothing is
            done.
        device: where the tensors of a batch are put. A card is handed its copy, from pinned memory, without
            being waited for.
        persistent_workers: keep processes, and their copies of the data set, from epoch to epoch. Threads
            start in microseconds, so none is kept.

    Raises:
        ValueError: arguments that are out of range or contradict each other.
        RuntimeError: when it iterates: a process was killed, or the data set cannot be sent to one.
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
        worker_type: str = "thread",
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        seed: int | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        device: str | Device | None = None,
    ):
        self.dataset = dataset
        self.num_workers = _natural("num_workers", num_workers)
        self.prefetch_factor = _check_prefetch_factor(prefetch_factor, self.num_workers)
        self.generator = choose_generator(generator, seed)
        self.collate_fn = collate_fn or (default_convert if batch_size is None else default_collate)
        self.drop_last = drop_last
        self.device = None if device is None else find_device(device)
        self.pin_memory = pin_memory or (self.device is not None and self.device.is_card)
        self._epoch: _Epoch | None = None  # the one that goes on
        self._resumed: _Epoch | None = None  # the one to go on with
        self._streams = isinstance(dataset, IterableDataset)
        self.worker_type = _check_worker_type(worker_type, self._streams)
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.persistent_workers = persistent_workers
        self._processes: Any = None  # those that persist
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
        needed = ["__getitem__", "__len__"] if sampler is None and batch_sampler is None else ["__getitem__"]
        if not self._streams and not all(hasattr(self.dataset, name) for name in needed):
            raise TypeError(
                f"DataLoader: a data set has {' and '.join(needed)}, or is an IterableDataset; got "
                f"{type(self.dataset).__name__}"
            )
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
        epoch, self._resumed = self._resumed or _Epoch(), None
        batches = self._batches(epoch)
        self._epoch = epoch
        try:
            for batch in batches:
                epoch.position += 1
                yield self._on_device(batch)
        finally:
            batches.close()
            if self._epoch is epoch:
                self._epoch = None

    def _batches(self, epoch: _Epoch) -> Generator_[Any, None, None]:
        """The batches of an epoch from its position on."""
        jobs = self._start(epoch)
        load = _Load(self.dataset, self.collate_fn, self.batch_sampler is not None)
        if self._streams:
            yield from self._stream(jobs)
        elif self.num_workers == 0:
            # Not map(): a StopIteration that escapes from a data set must not look like the epoch's end.
            yield from (self._pinned(load((epoch.seed, *job))) for job in jobs)
        elif self.worker_type == "thread":
            yield from self._prefetch(load, epoch.seed, jobs, self.worker_init_fn)
        else:
            processes = self._start_processes(load, epoch.seed)

            def end(failed: bool) -> None:
                if failed or processes is not self._processes:
                    processes.stop()

            yield from self._prefetch(processes, epoch.seed, jobs, end=end)

    def _start_processes(self, load: _Load, seed: int) -> Any:
        if self._processes is not None and self._processes.are_alive():
            return self._processes
        from minigrad.data.processes import WorkerProcesses  # takes long to import, and few need it

        started = WorkerProcesses(
            load, self.num_workers, self.worker_init_fn, seed, self.multiprocessing_context
        )
        if self.persistent_workers:
            self._processes = started
        return started

    def _prefetch(
        self, load: Callable, seed: int, jobs: Iterator, init: Callable | None = None, end: Any = None
    ) -> Generator_[Any, None, None]:
        def load_pinned(job: tuple[int, Any]) -> Any:
            return self._pinned(load((seed, *job)))

        return prefetch(load_pinned, jobs, self.num_workers, self._ahead, init, end)

    def _start(self, epoch: _Epoch) -> Iterator[Any]:
        """What an epoch goes through, each with its number; for one that is resumed, what is left of it."""
        order = _generator_of(self.batch_sampler) or _generator_of(self.sampler) or self.generator
        if epoch.start is None:
            epoch.seed = self.generator.next_seed()
            epoch.start = order.get_state()
            return enumerate(iter(self._jobs))
        now = order.get_state()
        order.set_state(epoch.start)
        jobs = enumerate(iter(self._jobs))
        deque(itertools.islice(jobs, epoch.position), maxlen=0)
        order.set_state(now)
        return jobs

    def __len__(self) -> int:
        """The number of batches of an epoch (of samples, without batches)."""
        if self._streams:
            raise TypeError("the length of a DataLoader over an IterableDataset is not known in advance")
        return len(self._jobs)

    @property
    def _jobs(self) -> Any:
        """What one epoch goes through: the indices of each batch, or, without batches, of each sample.

        For a stream, the samples themselves.
        """
        if not self._streams:
            return self.sampler if self.batch_sampler is None else self.batch_sampler
        if self.batch_size is None:
            return self.dataset
        return chunked(self.dataset, self.batch_size, self.drop_last)

    @property
    def _ahead(self) -> int:
        """How many batches the workers load before they are asked for."""
        return self.num_workers * (self.prefetch_factor or 0)

    def _pinned(self, batch: Any) -> Any:
        return pin(batch) if self.pin_memory and cuda.is_available() else batch

    def _on_device(self, batch: Any) -> Any:
        return batch if self.device is None else move(batch, self.device)

    def _stream(self, samples: Iterator[Any]) -> Iterator[Any]:
        batches = (self._pinned(self.collate_fn(sample)) for _, sample in samples)
        if self.num_workers == 0:
            return batches
        # One worker, since a stream has one order.
        loaded = prefetch(lambda _: next(batches, _END), itertools.repeat(None), 1, self._ahead)
        return itertools.takewhile(lambda batch: batch is not _END, loaded)

    # ---- where it is -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: between two epochs, or in one, whose order can then be found again.

        A batch counts as soon as it has been handed out. The state of minigrad's global generator is not in
        it; :func:`minigrad.io.save_checkpoint` keeps that by itself.
        """
        epoch = self._epoch or self._resumed
        return {
            "epoch": None if epoch is None or epoch.start is None else vars(epoch).copy(),
            "generator": None if self.generator is default_generator else self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have the next ``iter()`` go on where :meth:`state_dict` was called, in the middle of an epoch, too.

        Raises:
            ValueError: the state is of a loader with a generator of its own, and this one has none, or the
                other way round.
        """
        epoch, generator = state_dict["epoch"], state_dict["generator"]
        if (generator is None) != (self.generator is default_generator):
            raise ValueError(
                "DataLoader: the state is of a loader with a generator or a seed of its own, or this one is; "
                "make both in the same way"
            )
        if generator is not None:
            self.generator.set_state(generator)
        self._epoch, self._resumed = None, None if epoch is None else _Epoch(**epoch)


@dataclass
class _Load:
    """What loads a batch: all that a worker has to know.

    Attributes:
        batched: whether a job has the indices of a batch, rather than that of a sample.
    """

    dataset: Any
    collate_fn: Collate
    batched: bool

    def __call__(self, numbered_job: tuple[int, int, Any]) -> Any:
        """The batch of a job: (the epoch's seed, the number of the batch, what it is made of)."""
        seed, number, job = numbered_job
        try:
            with batch_random(seed, number):
                if not self.batched:
                    return self.collate_fn(self.dataset[job])
                if self.collate_fn is default_collate:
                    return get_batch(self.dataset, job)
                return self.collate_fn(get_samples(self.dataset, job))
        except Exception as error:
            error.add_note(
                f"raised while the DataLoader loaded {_describe(job)} of {type(self.dataset).__name__}"
            )
            raise


@dataclass
class _Epoch:
    """One walk through a data set.

    Attributes:
        start: the state, at its beginning, of the generator that orders it; None before.
        seed: of the random numbers of its batches.
        position: how many batches were handed out.
    """

    start: Mapping[str, Any] | None = None
    seed: int = 0
    position: int = 0


def _generator_of(sampler: Any) -> Generator | None:
    """The generator of a sampler, or of the one within it."""
    generator = getattr(sampler, "generator", None) or getattr(
        getattr(sampler, "sampler", None), "generator", None
    )
    return generator if isinstance(generator, Generator) else None


def _natural(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"DataLoader: {name} must be an integer, 0 or more, got {value!r}")
    return number


def _check_worker_type(worker_type: str, streams: bool) -> str:
    if worker_type not in ("thread", "process"):
        raise ValueError(f"DataLoader: worker_type is 'thread' or 'process', got {worker_type!r}")
    if streams and worker_type == "process":
        raise ValueError("DataLoader: an IterableDataset is read by a thread; processes need indices")
    return worker_type


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
