"""Runs the comparison: climbs every rung, then times them all in turns.

The rungs of a ladder are timed round-robin, a short turn each in every round, so that a machine which
grows warm or busy slows all of them alike. Before each turn there is a pause in which the threads of the
turn before stop spinning.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from minigrad.compare import machine
from minigrad.compare.peaks import Peaks
from minigrad.compare.problems import LADDERS, Problem
from minigrad.compare.records import Comparison, make_record, with_steps
from minigrad.compare.rungs import ArrayRung, KernelRung, PythonRung, RefusedError, Rung, RungError, Trial
from minigrad.compare.worker import NumpyRung
from minigrad.devices import Device, device
from minigrad.dispatch import list_kernels
from minigrad.kernels import cuda
from minigrad.kernels.cpu.threads import get_num_threads, num_threads

__all__ = ["FULL", "QUICK", "Effort", "run", "take_turns", "told"]

PAUSE = 0.04  # seconds; OpenBLAS's idle threads spin for some 25 ms


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: turns for each rung.
        turn: seconds of each.
        longest: a rung whose call would take longer, in seconds, is measured at a smaller size.
        slow: a rung whose call takes longer gets no more than ``slow_rounds`` turns.
        ladder: seconds for a ladder, checking included; after them no further round begins but the second.
    """

    rounds: int
    turn: float
    longest: float
    slow: float
    slow_rounds: int
    ladder: float = float("inf")


FULL = Effort(rounds=9, turn=0.12, longest=3.0, slow=0.5, slow_rounds=3, ladder=26.0)
QUICK = Effort(rounds=4, turn=0.04, longest=0.35, slow=0.1, slow_rounds=2, ladder=5.0)


def run(
    only: str | Iterable[str] | None = None,
    devices: Sequence[str | Device] | None = None,
    threads: int | None = None,
    quick: bool = False,
    effort: Effort | None = None,
    seed: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Climb the ladders: check every kernel, time it, and compare it with the machine's own peak.

    Args:
        only: one or several of ``"matmul"``, ``"conv2d"``, ``"pooling"``; all by default.
        devices: devices or their names; by default ``"cpu"``, and ``"cuda"`` where it can be used.
        threads: CPU threads for the rungs that use several; ``get_num_threads()`` by default.
        quick: smaller sizes and fewer rounds: under 20 seconds instead of under 90 on two cores.
        effort: how long to measure, in place of what ``quick`` chooses.
        seed: of the random inputs; by default other numbers each time.
        progress: called with a line of text at each stage.

    Returns:
        The records, in the order of the ladders. Ctrl-C ends the run early: the result then holds what
        was measured until then, and its ``interrupted`` is true.

    Raises:
        ValueError: an unknown ladder or a wrong number of threads. DeviceError: a device cannot be used.
    """
    names = _ladders(only)
    chosen, no_gpu = _devices(devices)
    threads = get_num_threads() if threads is None else threads
    with num_threads(threads):  # refuses a wrong number before anything is measured
        pass
    comparison = Comparison(
        machine.describe(), datetime.datetime.now().astimezone().isoformat("T", "seconds")
    )
    comparison.no_gpu = no_gpu
    counts = sorted({1, threads})
    peaks = Peaks(chosen, counts)
    session = _Session(quick, effort or (QUICK if quick else FULL), np.random.default_rng(seed), progress)
    rungs: dict[str, list[Rung]] = {}
    try:
        for name in names:
            progress("measuring the machine's peak")
            peaks.sample(LADDERS[name].bound)
            rungs[name] = []
            stop = time.monotonic() + session.effort.ladder
            session.climb(name, chosen, threads, rungs[name])
            take_turns(name, rungs[name], session.effort, stop, progress)
            _close(rungs[name])
            peaks.sample(LADDERS[name].bound)
    except KeyboardInterrupt:
        comparison.interrupted = True
    finally:
        for climbed in rungs.values():
            _close(climbed)
        peaks.release()
    comparison.peaks = [
        {"device": where, "threads": count, "bound": bound, "rate": rate}
        for (where, count, bound), rate in peaks.best.items()
    ]
    comparison.notes += [
        f"the peak of {where} ({bound}) was not measured: {reason}"
        for (where, bound), reason in peaks.failures.items()
    ]
    for name, climbed in rungs.items():
        op = LADDERS[name].op
        done = [rung for rung in climbed if rung.samples or rung.failure]
        comparison += with_steps([make_record(name, op, rung, peaks) for rung in done])
    return comparison


class _Session:
    """One run's way of measuring."""

    def __init__(
        self, quick: bool, effort: Effort, rng: np.random.Generator, progress: Callable[[str], None]
    ):
        self.quick = quick
        self.effort = effort
        self.rng = rng
        self.progress = progress

    def climb(self, name: str, devices: list[Device], threads: int, done: list[Rung]) -> None:
        """Check the ladder's rungs up to the sizes they are measured at, and add each to ``done``."""
        trials: dict[Problem, Trial] = {}
        for where in devices:
            for rung in _rungs(name, where, threads):
                self.progress(f"{name}: checking {rung.name} on {where}")
                done.append(rung)
                self._climb_one(LADDERS[name], rung, trials)
                if rung.threads is None or rung.threads == 1:
                    continue
                if rung.parallel and not rung.failure:  # then its time on one thread is of interest too
                    single = _on_one_thread(rung, LADDERS[name])
                    done.insert(-1, single)
                    self._climb_one(LADDERS[name], single, trials)
                elif not rung.failure:
                    rung.threads = 1

    def _climb_one(self, problem_type: type[Problem], rung: Rung, trials: dict[Problem, Trial]) -> None:
        sizes = problem_type.sizes(rung.device.type, self.quick)
        longest = rung.patience * self.effort.longest
        before: Problem | None = None
        refusal = None
        for problem in (problem_type.odd(), *sizes):
            if before and rung.estimate * problem.work / before.work > longest:
                break
            trial = trials.get(problem)
            if trial is None:
                trial = trials[problem] = Trial(problem, self.rng)
            try:
                error = trial.check(rung.solve(problem, trial.inputs), rung.amplification)
            except RefusedError as reason:  # of one size: another may suit it
                refusal = str(reason)
                continue
            except RungError as reason:
                rung.failure = str(reason)
                break
            except Exception as reason:  # a user's kernel may raise anything, and a card's memory be full
                rung.failure = told(f"failed at {problem.size}", reason)
                break
            rung.error = max(rung.error or 0.0, error)
            if problem in sizes:  # the first calls at the odd size pay for loading and compiling
                before = problem
        if before is None and rung.failure is None:
            rung.failure, rung.refused = refusal or "was not measured", refusal is not None
        if rung.failure is not None:
            rung.close()


def take_turns(
    name: str,
    rungs: Sequence[Rung],
    effort: Effort,
    stop: float,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Time the rungs that were right, in turns, until ``stop`` on the monotonic clock."""
    for number in range(effort.rounds):
        if number >= 2 and time.monotonic() > stop:
            break
        progress(f"{name}: timing, round {number + 1} of {effort.rounds}")
        for rung in rungs:
            slow = rung.estimate > effort.slow
            if rung.failure is not None or (slow and number >= effort.slow_rounds):
                continue
            time.sleep(PAUSE)
            try:
                rung.sample(effort.turn)
            except Exception as reason:
                rung.failure = told("failed", reason)
                rung.close()


def _rungs(name: str, where: Device, threads: int) -> list[Rung]:
    """The rungs of a ladder on a device: plain Python, the kernels, and the array library."""
    problem_type = LADDERS[name]
    kernels = [
        kernel
        for kernel in list_kernels(problem_type.op, where.type)
        if np.dtype(np.float32) in kernel.dtypes
    ]
    if where.type != "cpu":
        rungs: list[Rung] = [KernelRung(kernel, where, None) for kernel in kernels]
        if where.type == "cuda" and name != "conv2d":  # CuPy has no convolution
            rungs.append(ArrayRung(problem_type, where, None))
        return rungs
    return [
        PythonRung(problem_type),
        *(KernelRung(kernel, where, threads) for kernel in kernels),
        NumpyRung(problem_type, threads),
    ]


def _on_one_thread(rung: Rung, problem_type: type[Problem]) -> Rung:
    if isinstance(rung, KernelRung):
        return KernelRung(rung.kernel, rung.device, 1)
    return NumpyRung(problem_type, 1)


def _ladders(only: str | Iterable[str] | None) -> list[str]:
    names = list(LADDERS) if only is None else [only] if isinstance(only, str) else list(only)
    for name in names:
        if name not in LADDERS:
            raise ValueError(f"compare: no ladder is named {name!r}; there are: {', '.join(LADDERS)}")
    return list(dict.fromkeys(names))


def _devices(wanted: Sequence[str | Device] | None) -> tuple[list[Device], str]:
    """The devices to measure, and why no GPU is among them, if one would have been welcome."""
    if wanted is None:
        reason = cuda.why_unavailable()
        return [device("cpu")] + ([] if reason else [device("cuda")]), reason
    if isinstance(wanted, (str, Device)):
        wanted = [wanted]
    return list(dict.fromkeys(device(one) for one in wanted)), ""


def told(what: str, error: Exception) -> str:
    """``failed: ValueError: ...`` on one line."""
    return f"{what}: {type(error).__name__}: {error}".splitlines()[0]


def _close(rungs: list[Rung]) -> None:
    for rung in rungs:
        rung.close()
