"""How a call is timed: warmed up, several calls at a time if they are short, synchronised, the median told.

Several calls are timed in turns (:func:`in_turns`), so that a machine which grows warm or busy slows all of
them alike. Before each turn there is a pause in which the threads of the turn before stop spinning.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from minigrad.devices import Device
from minigrad.errors import OutOfMemoryError
from minigrad.kernels.cpu.threads import num_threads

__all__ = [
    "FULL",
    "QUICK",
    "STANDARD",
    "Call",
    "Effort",
    "Sampled",
    "Timing",
    "active",
    "in_turns",
    "sample_calls",
    "told",
    "warm_up",
]

PAUSE = 0.005  # seconds; OpenMP's idle threads spin for a few milliseconds
LONG_PAUSE = 0.04  # seconds, after another process: OpenBLAS's idle threads spin for some 25 ms
SHORTEST = 1e-3  # seconds: shorter calls are timed several at a time, so that the clock's own cost is lost
LONG = 0.3  # seconds: a call this long warms itself up
TRIES = 3  # calls to estimate a time from, if they are short
MAX_SAMPLES = 40  # in one turn


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: turns for each rung.
        turn: seconds of each.
        longest: a rung whose call would take longer, in seconds, is measured at a smaller size.
        slow: a rung whose call takes longer gets no more than ``slow_rounds`` turns.
        ladder: seconds for a ladder, checking included; after them no further round begins but the second.
        chapter: the same for each of the chapters on size, batch and precision.
        training: seconds of training on each device.
    """

    rounds: int
    turn: float
    longest: float
    slow: float
    slow_rounds: int
    ladder: float = float("inf")
    chapter: float = 8.0
    training: float = 12.0


STANDARD = Effort(
    rounds=9, turn=0.1, longest=2.0, slow=0.5, slow_rounds=3, ladder=16.0, chapter=7.0, training=14.0
)
QUICK = Effort(
    rounds=3, turn=0.015, longest=0.04, slow=0.02, slow_rounds=2, ladder=1.2, chapter=0.4, training=0.6
)
FULL = Effort(
    rounds=15, turn=0.2, longest=4.0, slow=1.0, slow_rounds=5, ladder=50.0, chapter=25.0, training=90.0
)


@dataclass(frozen=True)
class Timing:
    """What the samples of a call tell.

    Attributes:
        seconds, seconds_min, seconds_max: the median, smallest and largest time of a call, or None.
        spread: half the distance between the quartiles, as a share of the median.
        calls: how many times were measured.
    """

    seconds: float | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    spread: float | None = None
    calls: int = 0

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """The timing of ``samples`` in seconds; of no samples, one that tells nothing."""
        if not len(samples):
            return cls()
        lower, median, upper = np.percentile(samples, (25, 50, 75))
        spread = float((upper - lower) / 2 / median) if median > 0 else 0.0
        return cls(float(median), float(min(samples)), float(max(samples)), spread, len(samples))


def warm_up(call: Callable[[], Any], synchronize: Callable[[], None]) -> tuple[float, Any]:
    """Call a few times: about how many seconds a call takes, and what the last one returned."""
    estimate, output = math.inf, None
    for _ in range(TRIES):  # the first call may have had to load something, or met another program
        start = time.perf_counter()
        output = call()
        synchronize()
        estimate = min(estimate, time.perf_counter() - start)
        if estimate > LONG / TRIES:
            break
    return estimate, output


def sample_calls(
    call: Callable[[], Any], synchronize: Callable[[], None], estimate: float, budget: float
) -> list[float]:
    """The seconds of calls, at least one, for about ``budget`` seconds; after a call that is not counted.

    A call that takes less than SHORTEST by ``estimate`` is timed several at a time.
    """
    clock, samples = time.perf_counter, []
    if estimate < LONG:
        call()
        synchronize()
    calls = max(1, math.ceil(SHORTEST / max(estimate, 1e-9)))
    stop = clock() + budget
    for _ in range(MAX_SAMPLES):
        start = clock()
        for _ in range(calls):
            call()
        synchronize()
        end = clock()
        samples.append((end - start) / calls)
        if end >= stop:
            break
    return samples


@contextlib.contextmanager
def active(device: Device, threads: int | None) -> Iterator[None]:
    """Inside this context calls run on ``device``, with so many CPU threads (None: as many as are set)."""
    with device.active(), num_threads(threads) if threads else contextlib.nullcontext():
        yield


class Call:
    """A function that is timed on a device, with so many CPU threads.

    Attributes:
        samples: the seconds that calls took.
        estimate: about how many seconds a call takes; 0 before :meth:`prepare`.
        failure: why it was not timed, if it was not.
    """

    elsewhere = False

    def __init__(self, function: Callable[[], Any], device: Device, threads: int | None):
        self.device, self.threads = device, threads
        self.samples: list[float] = []
        self.estimate = 0.0
        self.failure: str | None = None
        self._function: Callable[[], Any] | None = function

    def prepare(self) -> Any:
        """Warm up, and return what the function returned."""
        assert self._function is not None
        with active(self.device, self.threads):
            self.estimate, output = warm_up(self._function, self.device.synchronize)
        return output

    def sample(self, budget: float) -> None:
        """Time calls for about ``budget`` seconds, at least one, and add them to ``samples``."""
        assert self._function is not None
        with active(self.device, self.threads):
            self.samples += sample_calls(self._function, self.device.synchronize, self.estimate, budget)

    def timing(self) -> dict[str, Any]:
        """The fields of a :class:`Timing`, and the failure."""
        found = Timing() if self.failure else Timing.of(self.samples)
        return {**asdict(found), "failure": self.failure}

    def close(self) -> None:
        """Let go of the arrays."""
        self._function = None


class Sampled(Protocol):
    """What :func:`in_turns` times: a :class:`Call`, or a rung of a ladder.

    Attributes:
        estimate: about how many seconds a call takes.
        failure: why it is not timed, if it is not.
        elsewhere: whether it runs in a process of its own.
    """

    estimate: float
    failure: str | None
    elsewhere: bool

    def sample(self, budget: float) -> None: ...
    def close(self) -> None: ...


def in_turns(
    calls: Sequence[Sampled],
    effort: Effort,
    stop: float,
    name: str,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Time in turns the calls that have not failed, until ``stop`` on the monotonic clock.

    ``progress("name: timing, round 2 of 9")`` is called before each round.
    """
    elsewhere = False
    for number in range(effort.rounds):
        if number >= 2 and time.monotonic() > stop:
            break
        progress(f"{name}: timing, round {number + 1} of {effort.rounds}")
        for call in calls:
            slow = call.estimate > effort.slow
            if call.failure is not None or (slow and number >= effort.slow_rounds):
                continue
            time.sleep(LONG_PAUSE if elsewhere or call.elsewhere else PAUSE)
            elsewhere = call.elsewhere
            try:
                call.sample(effort.turn)
            except Exception as reason:
                call.failure = told("failed", reason)
                call.close()


def told(what: str, error: Exception) -> str:
    """``failed: ValueError: ...`` on one line; of a full memory, ``out of memory: ...``."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, OutOfMemoryError):
        return f"out of memory: {error}".splitlines()[0]
    return f"{what}: {text}"
