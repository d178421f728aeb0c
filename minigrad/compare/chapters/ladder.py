"""The ladder: every rung from plain Python to the fastest kernel, and what each adds.

Every rung is first checked, then all rungs of a ladder are timed in turns.
"""

from __future__ import annotations

import time

import numpy as np

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import per_second, share, significant
from minigrad.compare.problems import LADDERS, Problem
from minigrad.compare.records import Record, make_record, with_steps
from minigrad.compare.rungs import ArrayRung, KernelRung, PythonRung, RefusedError, Rung, RungError, Trial
from minigrad.compare.session import Session
from minigrad.compare.timing import told
from minigrad.compare.worker import NumpyRung
from minigrad.devices import Device
from minigrad.dispatch import list_kernels

NAME = "ladder"
TITLE = "The ladder"
QUESTION = "What made each step faster?"
TABLES = {"records": Record}
COLUMNS: dict = {}  # minigrad.compare.table shows the ladders
SHORT = ()


def measure(session: Session, chapter: Chapter) -> None:
    """Climb the ladders. What was measured before Ctrl-C becomes records, too."""
    rungs: dict[str, list[Rung]] = {}
    try:
        for name in session.ladders:
            session.progress("measuring the machine's peak")
            session.sample_peaks(LADDERS[name].bound)
            session.start_numpy()
            rungs[name] = []
            stop = time.monotonic() + session.effort.ladder
            for device in session.devices:
                _climb(session, name, device, rungs[name])
            session.take_turns(name, rungs[name], stop)
            _close(rungs[name])
            session.sample_peaks(LADDERS[name].bound)
    finally:
        for name, climbed in rungs.items():
            _close(climbed)
            done = [rung for rung in climbed if rung.samples or rung.failure]
            op = LADDERS[name].op
            session.comparison += with_steps([make_record(name, op, rung, session.peaks) for rung in done])
        chapter.tables["records"] = list(session.comparison)


def _climb(session: Session, name: str, device: Device, done: list[Rung]) -> None:
    """Check the ladder's rungs up to the sizes they are measured at, and add each to ``done``."""
    trials: dict[Problem, Trial] = {}
    problem_type = LADDERS[name]
    for rung in _rungs(session, name, device):
        session.progress(f"{name}: checking {rung.name} on {device}")
        done.append(rung)
        _climb_one(session, problem_type, rung, trials)
        if rung.threads is None or rung.threads == 1:
            continue
        if rung.parallel and not rung.failure:  # then its time on one thread is of interest too
            single = _on_one_thread(session, rung, problem_type)
            done.insert(-1, single)
            _climb_one(session, problem_type, single, trials)
        elif not rung.failure:
            rung.threads = 1


def _climb_one(
    session: Session, problem_type: type[Problem], rung: Rung, trials: dict[Problem, Trial]
) -> None:
    sizes = problem_type.sizes(rung.device.type, session.quick)
    longest = rung.patience * session.effort.longest
    before: Problem | None = None
    refusal = None
    for problem in (problem_type.odd(), *sizes):
        if before and rung.estimate * problem.work / before.work > longest:
            break
        trial = trials.get(problem)
        if trial is None:
            trial = trials[problem] = Trial(problem, session.rng)
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


def _rungs(session: Session, name: str, where: Device) -> list[Rung]:
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
        *(KernelRung(kernel, where, session.threads) for kernel in kernels),
        NumpyRung(problem_type, session.numpy_process(session.threads)),
    ]


def _on_one_thread(session: Session, rung: Rung, problem_type: type[Problem]) -> Rung:
    if isinstance(rung, KernelRung):
        return KernelRung(rung.kernel, rung.device, 1)
    return NumpyRung(problem_type, session.numpy_process(1))


def _close(rungs: list[Rung]) -> None:
    for rung in rungs:
        rung.close()


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    found = []
    for name in comparison.ladders:
        own = [r for r in chapter.rows if r.ladder == name and r.rate and r.device == "cpu"]
        cards = [r for r in chapter.rows if r.ladder == name and r.rate and r.device.startswith("cuda")]
        recorded = [r for r in chapter.recorded_rows if r.ladder == name and r.rate]
        found += _climbed(name, own) + _beside_the_card(comparison, name, own, cards or recorded)
    return found


def answer(comparison: Comparison, chapter: Chapter) -> str:
    """What made each step faster: the largest step of the first ladder that has one."""
    for name in comparison.ladders:
        own = [r for r in chapter.rows if r.ladder == name and r.rate and r.device == "cpu"]
        if sentence := _largest_step(name, [r for r in own if r.kind == "kernel"]):
            return sentence
    return ""


def _climbed(name: str, records: list[Record]) -> list[str]:
    """From the first rung to the best kernel; the largest step; the share of the peak."""
    kernels = [r for r in records if r.kind == "kernel"]
    if not kernels:
        return []
    best = max(kernels, key=_rate)
    first = next((r for r in records if r.kind == "python"), kernels[0])
    sentence = f"{name}: {_called(best)} reaches {_speed(best)}"
    if best.peak_share:
        sentence += f", {share(best.peak_share)} of the measured peak"
    if best is not first and _rate(best) > _rate(first):
        start = "plain Python" if first.kind == "python" else first.rung
        sentence += f"; that is {significant(_rate(best) / _rate(first))} times {start}"
    step = _largest_step(name, kernels)
    return [sentence + ".", *([step] if step else [])]


def _largest_step(name: str, kernels: list[Record]) -> str:
    steps = [r for r in kernels if r.step and r.step > 1 and r.rung != kernels[0].rung]
    if not steps:
        return ""
    largest = max(steps, key=lambda r: r.step or 0.0)
    adds = f" ({largest.adds.rstrip('.')})" if largest.adds else ""
    return (
        f"{name}: the largest step of the ladder is {_called(largest)}, "
        f"{significant(largest.step or 0.0)} times as fast as the one before it{adds}."
    )


def _beside_the_card(
    comparison: Comparison, name: str, records: list[Record], cards: list[Record]
) -> list[str]:
    """The best kernel of the processor beside the best of the card."""
    kernels = [r for r in records if r.kind == "kernel"]
    cards = [r for r in cards if r.kind == "kernel"]
    if not kernels or not cards:
        return []
    best, card = max(kernels, key=_rate), max(cards, key=_rate)
    factor = _rate(card) / _rate(best)
    more = f"{significant(factor)} times" if factor >= 1 else f"only {share(factor)} of"
    return [
        f"{name}: {card.rung} on {comparison.called(card)} reaches {_speed(card)} at {card.size}, {more} the "
        f"rate of this processor's best kernel ({best.size})."
    ]


def _rate(record: Record) -> float:
    return record.rate or 0.0


def _called(record: Record) -> str:
    several = record.threads is not None and record.threads > 1
    return f"{record.rung} on {record.threads} threads" if several else record.rung


def _speed(record: Record) -> str:
    return per_second(_rate(record), record.unit.removeprefix("G"))
