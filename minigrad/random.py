"""Random numbers: one generator for the whole process, seeded by :func:`manual_seed`.

Numbers are drawn on the CPU by NumPy's counter-based Philox generator and then moved, so that the same seed
gives the same numbers on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Generator", "default_generator", "manual_seed"]

MAX_SEED = 2**63


class Generator:
    """A source of random numbers with its own seed; functions that draw take one as ``generator``.

    Attributes:
        numpy: the :class:`numpy.random.Generator` underneath.
    """

    def __init__(self, seed: int | None = None):
        self._seed = seed

    @cached_property
    def numpy(self) -> np.random.Generator:
        """Made on first use, because NumPy's random module takes a while to import."""
        return np.random.Generator(np.random.Philox(self._seed))

    def manual_seed(self, seed: int) -> Generator:
        """Start again from ``seed``, an integer of at least 0."""
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < MAX_SEED:
            raise ValueError(f"manual_seed: the seed must be an integer in [0, 2^63), got {seed!r}")
        self.numpy.bit_generator.state = np.random.Philox(int(seed)).state
        return self

    def get_state(self) -> Mapping[str, Any]:
        """Everything that determines the numbers to come."""
        return self.numpy.bit_generator.state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`get_state` gave."""
        self.numpy.bit_generator.state = state


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the process's generator; the same seed gives the same numbers on every device."""
    return default_generator.manual_seed(seed)
