"""Random numbers for what is done to samples while they are loaded: crops, flips, noise.

Workers load batches in any order. So that a batch is the same however many they are, each has a generator of
its own, which depends on the epoch's seed and on the number of the batch alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minigrad.random import default_generator

__all__ = ["batch_random", "sample_random"]


class _Current(threading.local):
    key: tuple[int, int] | None = None  # (the epoch's seed, the batch's number)
    generator: np.random.Generator | None = None


_current = _Current()


def sample_random() -> np.random.Generator:
    """The generator that a random transform draws from, in a data set of your own, too.

    While a :class:`DataLoader` loads a batch it is that of the batch; otherwise minigrad's global one.
    """
    if _current.key is None:
        return default_generator.numpy
    if _current.generator is None:  # made when it is needed, which for most data sets is never
        _current.generator = np.random.Generator(np.random.Philox(key=np.array(_current.key, np.uint64)))
    return _current.generator


@contextmanager
def batch_random(seed: int, batch: int) -> Iterator[None]:
    """A context in which this thread draws the numbers of a batch."""
    before = _current.key, _current.generator
    _current.key, _current.generator = (seed, batch), None
    try:
        yield
    finally:
        _current.key, _current.generator = before
