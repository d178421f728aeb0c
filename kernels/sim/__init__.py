"""The simulator: runs the CUDA kernels on the CPU, on any machine with a C++ compiler.

The ``.cu`` files are compiled as C++ against the headers of this directory; every CUDA thread becomes a
fiber. The simulator is for learning, testing and finding mistakes, not for speed: it runs the kernel's
own code thread by thread.

Every launch is *checked* (see :func:`checks`): each load and store is looked at before it is made. It must
stay inside an array of the launch or a shared variable and be aligned, must not write to a ``const`` array
or to an input of an op, must not read what nothing has written, and must not race with another thread's; all
threads of a block must come to the same barriers, and integers must not overflow. The first mistake ends the
launch with a ``KernelAccessError`` or ``KernelLaunchError`` (:mod:`minigrad.errors`) that names the threads
and the lines. A checked kernel runs on one of the CPU's threads, some times slower than an unchecked one.

The simulator stands in for a card of compute capability 9.0, with all that it has (TMA, ``wgmma``, clusters);
inside ``with sim.architecture("sm_75"):`` for another.

A correct kernel gives the same bits in whatever order its threads run. :func:`order` and :func:`seed` choose
the order, and :func:`stress` tries many. ::

    with sim.stress(32):
        my_kernel.launch(blocks(n, 256), 256, (y, x, n))

Each setting has a getter (``get_checks``), a setter (``set_checks``) and a context manager of its name. The
first values come from the environment: ``MINIGRAD_SIM_CHECKS`` (0 or 1, the default), ``MINIGRAD_SIM_SEED``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from .architectures import SHARED_BYTES
from .build import cache_directory, compiler
from .memory import check_written, empty, operation
from .profiler import LaunchProfile, profile

__all__ = [
    "LaunchProfile",
    "Order",
    "architecture",
    "cache_directory",
    "check_written",
    "checks",
    "compiler",
    "empty",
    "get_architecture",
    "get_checks",
    "get_num_threads",
    "get_order",
    "get_seed",
    "is_available",
    "num_threads",
    "operation",
    "order",
    "orders",
    "profile",
    "seed",
    "set_architecture",
    "set_checks",
    "set_num_threads",
    "set_order",
    "set_seed",
    "stress",
]

ORDERS = ("forward", "reverse", "random", "warps")
"""The names of thread orders, as ``Order`` of runtime.cpp numbers them."""


class Order(NamedTuple):
    """An order in which threads run: one of ORDERS, and the seed that it is drawn from."""

    name: str
    seed: int

    def __str__(self) -> str:
        return self.name if self.name in ("forward", "reverse") else f"{self.name} (seed {self.seed})"


def is_available() -> bool:
    """Whether kernels can be compiled for the simulator: there is a C++ compiler."""
    return compiler() is not None


@contextmanager
def _set_inside(get: Callable[[], Any], set: Callable[[Any], None], value: Any) -> Iterator[None]:
    """Inside the ``with`` block, what ``set`` sets is ``value``; afterwards it is what it was."""
    before = get()
    set(value)
    try:
        yield
    finally:
        set(before)


# ---- the order of threads ----------------------------------------------------------------------------------


def get_seed() -> int:
    """The seed from which orders are drawn."""
    return _seed


def set_seed(seed: int) -> None:
    """Set the seed, an integer from 0 to 2**64 - 1. Unless an order is set, 0 means the order of the indices,
    and any other seed a random one."""
    global _seed
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"the simulator's seed is an integer from 0 to 2**64 - 1, got {seed!r}")
    _seed = seed


def seed(value: int) -> AbstractContextManager[None]:
    """Inside the ``with`` block, simulated threads run in the order drawn from ``value``."""
    return _set_inside(get_seed, set_seed, value)


def get_order() -> str:
    """The name of the order in which blocks, and the threads of each, run."""
    return _order or ("random" if _seed else "forward")


def set_order(name: str | None) -> None:
    """Set the order of blocks and threads; None leaves it to the seed.

    - ``"forward"``: by their indices. Each thread runs until it waits at a barrier or for its warp.
    - ``"reverse"``: the last block and the last thread first.
    - ``"random"``: drawn from the seed, anew whenever each thread has had its turn.
    - ``"warps"``: one warp goes on alone until it can no more, as if all the others were slow; with a seed
      other than 0, in an order drawn from it.
    """
    global _order
    if name is not None and name not in ORDERS:
        raise ValueError(f"the simulator's order is one of {', '.join(ORDERS)}, or None, got {name!r}")
    _order = name


def order(name: str | None) -> AbstractContextManager[None]:
    """Inside the ``with`` block, simulated threads run in the order ``name`` (see :func:`set_order`)."""
    return _set_inside(lambda: _order, set_order, name)


@contextmanager
def stress(n: int = 32) -> Iterator[None]:
    """Inside the ``with`` block each launch is made in ``n`` orders, from the same arrays each time.

    The orders are the one in use, forward, reverse and warps, and then random ones and warps in turn.

    Raises:
        KernelOrderError: the outputs of two orders differ in a bit: a barrier is missing, two threads write
            to one place, or floating-point numbers are added by atomics, in the order in which they come.
    """
    global _stress
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"the simulator's number of orders is an integer from 1, got {n!r}")
    before, _stress = _stress, n
    try:
        yield
    finally:
        _stress = before


def orders() -> list[Order]:
    """The orders that a launch is made in: one, or several inside :func:`stress`."""
    found = [Order(get_order(), _seed)]
    if _stress > 1:
        found += [Order("forward", 0), Order("reverse", 0), Order("warps", 0)]
        found += [Order("warps" if i % 4 == 3 else "random", i) for i in range(1, _stress)]
        found = list(dict.fromkeys(found))
    return found[:_stress]


# ---- checks, architecture, threads -------------------------------------------------------------------------


def get_checks() -> bool:
    """Whether launches are checked."""
    return _checks


def set_checks(on: bool) -> None:
    """Turn the checks on or off, for launches from now on."""
    global _checks
    if not isinstance(on, bool):
        raise ValueError(f"the simulator's checks are on (True) or off (False), got {on!r}")
    _checks = on


def checks(on: bool = True) -> AbstractContextManager[None]:
    """Inside the ``with`` block, launches are checked (or not, if ``on`` is False)."""
    return _set_inside(get_checks, set_checks, on)


def get_architecture() -> str:
    """The card whose limits a launch must keep."""
    return _architecture


def set_architecture(name: str) -> None:
    """Set the card whose limits a launch must keep: how much shared memory a block may have, and whether it
    may use what "sm_90a" alone has."""
    global _architecture
    if name not in SHARED_BYTES:
        raise ValueError(f"the simulator's architecture is one of {', '.join(SHARED_BYTES)}, got {name!r}")
    _architecture = name


def architecture(name: str) -> AbstractContextManager[None]:
    """Inside the ``with`` block, launches must keep the limits of ``name``, such as ``"sm_75"``."""
    return _set_inside(get_architecture, set_architecture, name)


def get_num_threads() -> int:
    """How many of the CPU's threads simulate blocks at a time; at first, the cores this process may use."""
    return _num_threads


def set_num_threads(number: int) -> None:
    """Set the number of CPU threads. With 1, even float atomics of several blocks repeat exactly."""
    global _num_threads
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"the simulator's number of threads is an integer from 1, got {number!r}")
    _num_threads = number


def num_threads(number: int) -> AbstractContextManager[None]:
    """Inside the ``with`` block, ``number`` of the CPU's threads simulate blocks of unchecked launches."""
    return _set_inside(get_num_threads, set_num_threads, number)


def _first_seed() -> int:
    text = os.environ.get("MINIGRAD_SIM_SEED", "").strip() or "0"
    if not text.isdecimal() or int(text) >= 2**64:
        raise ValueError(f"MINIGRAD_SIM_SEED={text!r} is not an integer from 0 to 2**64 - 1")
    return int(text)


def _first_checks() -> bool:
    text = os.environ.get("MINIGRAD_SIM_CHECKS", "").strip() or "1"
    if text not in ("0", "1"):
        raise ValueError(f"MINIGRAD_SIM_CHECKS={text!r} is neither 0 nor 1")
    return text == "1"


_seed = _first_seed()
_order: str | None = None
_stress = 1
_checks = _first_checks()
_architecture = "sm_90a"
_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
