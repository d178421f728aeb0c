"""The records of the ladders: one for each rung, on each device, with each number of threads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from minigrad.compare.peaks import Peaks
from minigrad.compare.rungs import Rung
from minigrad.compare.timing import Timing

__all__ = ["Record", "make_record", "with_steps"]


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
        samples: all times, in seconds; none where only their median was recorded.
        recorded: None if measured on this machine, otherwise the label of the recorded run.
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
    recorded: str | None = None


def make_record(ladder: str, op: str, rung: Rung, peaks: Peaks) -> Record:
    """The record of a rung, with what was measured of it until now."""
    problem = rung.problem
    measured = rung.failure is None and problem is not None
    timing = Timing.of(rung.samples if measured else ())
    seconds = timing.seconds
    simulated = rung.device.type == "sim"
    rate = problem.work / seconds if seconds and problem and not simulated else None
    bound = problem.bound if problem else "compute"
    peak = peaks.get(str(rung.device), rung.threads, bound)
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
        **asdict(timing),
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
