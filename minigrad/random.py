"""Random numbers: one generator for the whole process, seeded by :func:`manual_seed`.

The same seed gives the same numbers on every device. Uniform and normal numbers and the masks of dropout are
computed where they are needed, on a card too, by the counter-based generator of
:mod:`minigrad.kernels.philox`: bit for bit the same everywhere, but for the normal ones, where each device
rounds its own logarithm, sine and cosine. Integers and permutations are drawn on the CPU by NumPy and moved.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from minigrad.devices import Device
from minigrad.recording import recording_on

__all__ = [
    "Generator",
    "default_generator",
    "get_rng_state",
    "initial_seed",
    "manual_seed",
    "seed",
    "set_rng_state",
    "use_deterministic_algorithms",
]

MAX_SEED = 2**63


class Generator:
    """A source of random numbers with its own seed; functions that draw take one as ``generator``.

    Its state is the seed, how many streams and seeds were taken from it, and the state of a NumPy generator.
    Without a seed, the operating system gives one.
    """

    def __init__(self, seed: int | None = None):
        self._lock = threading.Lock()
        self.manual_seed(int.from_bytes(os.urandom(8), "little") % MAX_SEED if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start again from ``seed``, an integer of at least 0."""
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < MAX_SEED:
            raise ValueError(f"manual_seed: the seed must be an integer in [0, 2^63), got {seed!r}")
        self._seed = int(seed)
        self._offset = 0
        self._forks = 0
        self._numpy: np.random.Generator | None = None
        return self

    def initial_seed(self) -> int:
        """The seed that it started from."""
        return self._seed

    @property
    def numpy(self) -> np.random.Generator:
        """A :class:`numpy.random.Generator`, made on first use: NumPy's random module loads slowly."""
        if self._numpy is None:
            self._numpy = np.random.Generator(np.random.Philox(self._seed))
        return self._numpy

    def next_seed(self) -> int:
        """A seed for what draws by itself. All of them differ, and taking one changes no other number."""
        with self._lock:
            fork = self._seed, self._forks
            self._forks += 1
        digest = hashlib.blake2b(repr(fork).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % MAX_SEED

    def next_stream(self, device: Device | None = None) -> tuple[Any, Any]:
        """The (seed, offset) of a stream of :mod:`minigrad.kernels.philox` that nobody has had before.

        On a ``device`` on which a step is recorded, each replay gets a stream of its own: seed and offset are
        then the same :class:`minigrad.kernels.cuda.live.Live` pair.
        """
        with self._lock:
            stream = self._seed, self._offset
            self._offset += 1
        recording = None if device is None else recording_on(device)
        if recording is None:
            return stream
        streams = [stream]

        def give_back() -> None:
            with self._lock:
                if self._seed == stream[0]:
                    self._offset = stream[1]

        recording.undo.append(give_back)

        def take_another() -> None:
            streams[0] = self.next_stream()

        recording.before_replay.append(take_another)
        live = recording.live("QQ", lambda: streams[0])
        return live, live

    def get_state(self) -> Mapping[str, Any]:
        """Everything that determines the numbers to come."""
        numpy = None if self._numpy is None else self._numpy.bit_generator.state
        return {"seed": self._seed, "offset": self._offset, "forks": self._forks, "numpy": numpy}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`get_state` gave."""
        self.manual_seed(state["seed"])
        self._offset, self._forks = state["offset"], state["forks"]
        if state["numpy"] is not None:
            self.numpy.bit_generator.state = state["numpy"]


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the process's generator; the same seed gives the same numbers on every device."""
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    """The seed of the process's generator."""
    return default_generator.initial_seed()


def seed() -> int:
    """Seed the process's generator by the operating system's random numbers, and return the seed."""
    return default_generator.manual_seed(int.from_bytes(os.urandom(8), "little") % MAX_SEED).initial_seed()


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Does nothing: the same seed gives the same bits, whatever is set."""


def get_rng_state() -> Mapping[str, Any]:
    """The state of the process's generator: a mapping, where PyTorch has a tensor."""
    return default_generator.get_state()


def set_rng_state(new_state: Mapping[str, Any]) -> None:
    """Continue from what :func:`get_rng_state` gave."""
    default_generator.set_state(new_state)
