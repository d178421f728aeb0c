"""The simulator: runs the CUDA kernels on the CPU, on any machine with a C++ compiler.

The ``.cu`` files are compiled as C++ against the headers of this directory; every CUDA thread becomes a
fiber. The simulator is for learning, testing and finding mistakes, not for speed: it runs the kernel's
own code thread by thread.

The order in which the threads of a block run is drawn from a seed (0, the default: in order of their
indices). A correct kernel gives the same bits for every seed; one that forgets a ``__syncthreads()`` most
often does not. The environment variable ``MINIGRAD_SIM_SEED`` sets the first seed.

With :func:`checks` on, every load and store of a kernel is checked before it is made: that it stays inside
an array of the launch or a shared variable and is aligned, that it does not write to a ``const`` array, and
that it does not race with another thread's. The first mistake ends the launch with a
:class:`minigrad.kernels.errors.KernelAccessError` that names the lines. A checked kernel runs on one of the
CPU's threads, some times slower. ``MINIGRAD_SIM_CHECKS=1`` turns the checks on from the start. ::

    with minigrad.kernels.sim.checks(True):
        my_kernel.launch(blocks(n, 256), 256, (y, x, n))
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .build import cache_directory, compiler

__all__ = [
    "cache_directory",
    "checks",
    "compiler",
    "get_checks",
    "get_num_threads",
    "get_seed",
    "is_available",
    "num_threads",
    "seed",
    "set_checks",
    "set_num_threads",
    "set_seed",
]


def is_available() -> bool:
    """Whether kernels can be compiled for the simulator: there is a C++ compiler."""
    return compiler() is not None


def get_seed() -> int:
    """The seed of the order in which simulated threads run."""
    return _seed


def set_seed(seed: int) -> None:
    """Set the seed of the thread order, an integer from 0 to 2**64 - 1; 0 is the order of the indices."""
    global _seed
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"the simulator's seed is an integer from 0 to 2**64 - 1, got {seed!r}")
    _seed = seed


@contextmanager
def seed(value: int) -> Iterator[None]:
    """Inside the ``with`` block, simulated threads run in the order drawn from ``value``."""
    before = get_seed()
    set_seed(value)
    try:
        yield
    finally:
        set_seed(before)


def get_checks() -> bool:
    """Whether the memory accesses of kernels are checked."""
    return _checks


def set_checks(on: bool) -> None:
    """Turn the checks of memory accesses on or off, for launches from now on."""
    global _checks
    if not isinstance(on, bool):
        raise ValueError(f"the simulator's checks are on (True) or off (False), got {on!r}")
    _checks = on


@contextmanager
def checks(on: bool = True) -> Iterator[None]:
    """Inside the ``with`` block, the memory accesses of kernels are checked (or not, if ``on`` is False)."""
    before = get_checks()
    set_checks(on)
    try:
        yield
    finally:
        set_checks(before)


def get_num_threads() -> int:
    """How many of the CPU's threads simulate blocks at a time; at first, the cores this process may use."""
    return _num_threads


def set_num_threads(number: int) -> None:
    """Set the number of CPU threads. With 1, even float atomics of several blocks repeat exactly."""
    global _num_threads
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"the simulator's number of threads is an integer from 1, got {number!r}")
    _num_threads = number


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Inside the ``with`` block, ``number`` of the CPU's threads simulate blocks."""
    before = get_num_threads()
    set_num_threads(number)
    try:
        yield
    finally:
        set_num_threads(before)


def _first_seed() -> int:
    text = os.environ.get("MINIGRAD_SIM_SEED", "").strip() or "0"
    if not text.isdecimal() or int(text) >= 2**64:
        raise ValueError(f"MINIGRAD_SIM_SEED={text!r} is not an integer from 0 to 2**64 - 1")
    return int(text)


def _first_checks() -> bool:
    text = os.environ.get("MINIGRAD_SIM_CHECKS", "").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"MINIGRAD_SIM_CHECKS={text!r} is neither 0 nor 1")
    return text == "1"


_seed = _first_seed()
_checks = _first_checks()
_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
