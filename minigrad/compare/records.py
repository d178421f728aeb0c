"""What a comparison gives: a tidy list of records, and the machine that they were measured on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.compare.peaks import Peaks
from minigrad.compare.rungs import Rung

__all__ = ["Comparison", "Record", "make_record", "with_steps"]

FORMAT = 1  # of the JSON


@dataclass(frozen=True)
class Record:
    """One rung of one ladder, measured: a row of the table.

    Attributes:
        ladder: ``"matmul"``, ``"conv2d"`` or ``"pooling"``.
        op: the op whose kernels the ladder shows.
        rung: the kernel's name, or ``"numpy"``, ``"cupy"``, ``"python"``.
        kind: ``"kernel"``, ``"library"`` or ``"python"``.
        adds: what the rung adds to the one before, in one sentence.
        device: ``"cpu"``, ``"cuda:0"``, ``"sim"``.
        threads: the CPU threads it used; None on a card.
        size: the sizes of its problem (a slow rung is measured at a smaller one).
        dtype: the dtype of its inputs.
        correct: whether every result agreed with NumPy's in float64.
        failure: why it was not measured, or None.
        refused: whether that is because it takes none of the sizes, which is no mistake.
        error: the largest error of a result, where inputs have unit variance.
        seconds, seconds_min, seconds_max: the median, smallest and largest time of a call, or None.
        spread: half the distance between the quartiles, as a share of the median.
        calls: how many times were measured.
        operations, bytes: floating-point operations and compulsory memory traffic of a call.
        bound: what limits a perfect kernel, ``"compute"`` or ``"memory"``.
        rate: operations or bytes per second, whichever the bound asks for; None on the simulator, whose
            times say nothing about a card.
        unit: ``"GFLOP/s"`` or ``"GB/s"``; ``rate`` is in units of one, not of 10^9.
        peak_share: the rate as a share of the measured peak of the same device and threads.
        step: the rate over that of the rung before (with more threads: over its own with one).
        transfer_seconds: on a card, the time to copy the inputs there and the result back; not in
            ``seconds``.
        samples: all times, in seconds.
    """

    ladder: str
    op: str
    rung: str
    kind: str
    adds: str
    device: str
    threads: int | None
    size: str
    dtype: str
    correct: bool
    failure: str | None
    refused: bool
    error: float | None
    seconds: float | None
    seconds_min: float | None
    seconds_max: float | None
    spread: float | None
    calls: int
    operations: int
    bytes: int
    bound: str
    rate: float | None
    unit: str
    peak_share: float | None
    step: float | None
    transfer_seconds: float | None
    samples: tuple[float, ...]


class Comparison(list):
    """A list of :class:`Record`, with the machine that they come from.

    Attributes:
        machine: the processor, the devices and the software, as a dict.
        peaks: the measured peaks: dicts of device, threads, bound and rate (per second).
        date: when it was measured, ISO 8601.
        interrupted: whether Ctrl-C ended it early; it then holds what was measured until then.
        notes: other things that went wrong, a sentence each.
        no_gpu: in one sentence, why no GPU was measured; empty if one was, or none was asked for.
    """

    def __init__(self, machine: dict[str, Any], date: str):
        super().__init__()
        self.machine = machine
        self.date = date
        self.peaks: list[dict[str, Any]] = []
        self.interrupted = False
        self.no_gpu = ""
        self.notes: list[str] = []

    def peak(self, device: str, threads: int | None, bound: str) -> float | None:
        """A measured peak in operations or bytes per second, or None."""
        for row in self.peaks:
            if (row["device"], row["threads"], row["bound"]) == (device, threads, bound):
                return row["rate"]
        return None

    def ladder(self, name: str) -> list[Record]:
        """The records of one ladder."""
        return [record for record in self if record.ladder == name]

    @property
    def ladders(self) -> list[str]:
        """The names of the ladders that have records."""
        return list(dict.fromkeys(record.ladder for record in self))

    def table(self, width: int = 100) -> str:
        """The results as text for a terminal of ``width`` columns."""
        from minigrad.compare.table import render

        return render(self, width)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "format": FORMAT,
            "date": self.date,
            "interrupted": self.interrupted,
            "no_gpu": self.no_gpu,
            "notes": self.notes,
            "machine": self.machine,
            "peaks": self.peaks,
            "records": [asdict(record) for record in self],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``results.json``, and where matplotlib is installed ``ladder.png`` and ``ladder.svg``.

        Returns the paths written. The folder is made if it is not there. No picture is drawn if nothing
        was measured but on the simulator.
        """
        from minigrad.compare import picture

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "results.json"
        results.write_text(self.to_json() + "\n")
        if not picture.is_available() or not picture.drawable(self):
            return [results]
        return [results, *picture.save(self, folder)]


def make_record(ladder: str, op: str, rung: Rung, peaks: Peaks) -> Record:
    """The record of a rung, with what was measured of it until now."""
    problem, times = rung.problem, np.array(rung.samples)
    measured = len(times) > 0 and rung.failure is None and problem is not None
    seconds = float(np.median(times)) if measured else None
    simulated = rung.device.type == "sim"
    rate = problem.work / seconds if seconds and problem and not simulated else None
    bound = problem.bound if problem else "compute"
    peak = peaks.get(str(rung.device), rung.threads, bound)
    lower, upper = np.percentile(times, (25, 75)) if measured else (0.0, 0.0)
    return Record(
        ladder=ladder,
        op=op,
        rung=rung.name,
        kind=rung.kind,
        adds=rung.adds,
        device=str(rung.device),
        threads=rung.threads,
        size=problem.size if problem else "",
        dtype="float32",
        correct=rung.failure is None and rung.error is not None,
        failure=rung.failure,
        refused=rung.refused,
        error=rung.error,
        seconds=seconds,
        seconds_min=float(times.min()) if measured else None,
        seconds_max=float(times.max()) if measured else None,
        spread=float((upper - lower) / 2 / seconds) if seconds else None,
        calls=len(times) if measured else 0,
        operations=problem.operations if problem else 0,
        bytes=problem.bytes if problem else 0,
        bound=bound,
        rate=rate,
        unit=problem.unit if problem else "",
        peak_share=rate / peak if rate and peak else None,
        step=None,
        transfer_seconds=rung.transfer_seconds,
        samples=tuple(rung.samples) if measured else (),
    )


def with_steps(records: list[Record]) -> list[Record]:
    """The records of a ladder with ``step`` filled in, comparing rates, for sizes may differ.

    A rung is compared with the one before it on the same device that was measured with as many threads; a
    rung on several threads first of all with itself on one. Libraries are not steps of the ladder.
    """
    found = []
    before: dict[tuple, Record] = {}
    for record in records:
        if record.rate is None or record.kind == "library":
            found.append(record)
            continue
        own = before.get((record.device, record.rung))
        last = own or before.get((record.device, 1 if record.threads else None))
        found.append(replace(record, step=record.rate / last.rate) if last else record)  # type: ignore
        before[record.device, record.rung] = record
        if own is None:
            before[record.device, record.threads] = record
    return found
