"""Runs the comparison: measures chapter after chapter, then states what follows from the numbers."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.compare import machine, recording
from minigrad.compare.chapters import CHAPTERS, begin
from minigrad.compare.comparison import Comparison
from minigrad.compare.peaks import Peaks
from minigrad.compare.problems import LADDERS
from minigrad.compare.session import Session
from minigrad.compare.timing import FULL, QUICK, STANDARD, Effort, told
from minigrad.devices import Device, device
from minigrad.kernels import cuda
from minigrad.kernels.cpu.threads import get_num_threads, num_threads
from minigrad.random import default_generator

__all__ = ["run"]

ENTRY_POINTS = "minigrad.kernels"
"""The group of entry points of packages that register kernels when they are imported."""


def run(
    only: str | Iterable[str] | None = None,
    devices: Sequence[str | Device] | None = None,
    threads: int | None = None,
    quick: bool = False,
    full: bool = False,
    effort: Effort | None = None,
    seed: int | None = None,
    recorded: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Measure the chapters: check every result, time it, and compare it with the machine's own peak.

    Kernels that were registered before for the ladders' ops, and those of installed packages with an entry
    point in the group ``minigrad.kernels``, are rungs like minigrad's own.

    Args:
        only: one or several of the chapters ``"machine"``, ``"ladder"``, ``"roofline"``, ``"size"``,
            ``"batch"``, ``"network"``, ``"precision"``, ``"simulator"``, or of the ladders ``"matmul"``,
            ``"conv2d"``, ``"pooling"``; all by default.
        devices: devices or their names; by default ``"cpu"``, and ``"cuda"`` where it can be used. Where it
            cannot, the recorded run that ships with minigrad stands in, marked as such.
        threads: CPU threads for what uses several; ``get_num_threads()`` by default.
        quick: smaller sizes and fewer rounds: under 20 seconds instead of under two minutes on two cores.
        full: more rounds and larger sizes, for several minutes.
        effort: how long to measure, in place of what ``quick`` and ``full`` choose.
        seed: of the random inputs; by default other numbers each time.
        recorded: a recorded run to show beside this machine, in place of the one that ships with minigrad.
        progress: called with a line of text at each stage.

    Returns:
        The chapters, and as a list the ladder's records. Ctrl-C ends the run early: the result then holds
        what was measured until then, and its ``interrupted`` is true.

    Raises:
        ValueError: an unknown chapter or ladder, a wrong number of threads, ``quick`` with ``full``, or
            ``recorded`` is no recorded run.
        DeviceError: a device cannot be used. OSError: ``recorded`` cannot be read.
    """
    if quick and full:
        raise ValueError("compare: choose one of quick and full")
    names, ladders = _chosen(only)
    beside = None if recorded is None else recording.load(recorded)
    chosen, no_gpu = _devices(devices)
    threads = get_num_threads() if threads is None else threads
    with num_threads(threads):  # refuses a wrong number before anything is measured
        pass
    comparison = Comparison(
        machine.describe(), datetime.datetime.now().astimezone().isoformat("T", "seconds")
    )
    comparison.no_gpu = no_gpu
    comparison.notes += _load_entry_points()
    session = Session(
        chosen,
        threads,
        ladders,
        effort or (QUICK if quick else FULL if full else STANDARD),
        quick,
        np.random.default_rng(seed),
        progress,
        comparison,
        Peaks(chosen, sorted({1, threads})),
    )
    before = default_generator.get_state()
    try:
        _measure(session, names)
    except KeyboardInterrupt:
        comparison.interrupted = True
    finally:
        session.close()
        default_generator.set_state(before)
    _complete(session, beside)
    return comparison


def _measure(session: Session, names: list[str]) -> None:
    for name in names:
        chapter = session.comparison.chapters[name] = begin(name)
        try:
            CHAPTERS[name].measure(session, chapter)
        except Exception as error:  # the other chapters go on
            chapter.notes.append(told(f"the chapter on the {name} ended early", error) + ".")
            chapter.failed = True


def _complete(session: Session, beside: tuple[dict[str, Any], Comparison] | None) -> None:
    """The peaks, what follows from the rows, the recorded run, and the findings."""
    comparison, peaks = session.comparison, session.peaks
    comparison.peaks = [
        {"device": where, "threads": count, "bound": bound, "rate": rate}
        for (where, count, bound), rate in peaks.best.items()
    ]
    comparison.notes += [
        f"the peak of {where} ({bound}) was not measured: {reason}"
        for (where, bound), reason in peaks.failures.items()
    ]
    for name, chapter in comparison.chapters.items():
        complete = getattr(CHAPTERS[name], "complete", None)
        if complete:
            complete(comparison, chapter)
    if beside or comparison.no_gpu:
        recording.attach(comparison, beside)
    for name, chapter in comparison.chapters.items():
        chapter.findings = CHAPTERS[name].findings(comparison, chapter)


def _chosen(only: str | Iterable[str] | None) -> tuple[list[str], list[str]]:
    """The chapters and the ladders that ``only`` names."""
    names = [*CHAPTERS, *LADDERS] if only is None else [only] if isinstance(only, str) else list(only)
    for name in names:
        if name not in CHAPTERS and name not in LADDERS:
            raise ValueError(
                f"compare: no chapter or ladder is named {name!r}; there are: {', '.join(CHAPTERS)}; "
                f"{', '.join(LADDERS)}"
            )
    ladders = [name for name in LADDERS if name in names]
    wanted = {name for name in names if name in CHAPTERS} | ({"ladder"} if ladders else set())
    if wanted & {"ladder", "roofline"} and not ladders:
        ladders = list(LADDERS)
    if "roofline" in wanted:  # it has nothing to place without
        wanted.add("ladder")
    return [name for name in CHAPTERS if name in wanted], ladders


def _devices(wanted: Sequence[str | Device] | None) -> tuple[list[Device], str]:
    """The devices to measure, and why no GPU is among them, if one would have been welcome."""
    if wanted is None:
        reason = cuda.why_unavailable()
        return [device("cpu")] + ([] if reason else [device("cuda")]), reason
    if isinstance(wanted, (str, Device)):
        wanted = [wanted]
    return list(dict.fromkeys(device(one) for one in wanted)), ""


def _load_entry_points() -> list[str]:
    """Import what installed packages name; a sentence for each that cannot be."""
    notes = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            notes.append(told(f"the kernels of {point.value} could not be loaded", error))
    return notes
