"""The size sweep: a product and an addition from tiny to large, and what a call costs before it begins.

A GPU is slow to begin: each call is a launch, and its data have to come over a bus. Only where there is
much to do does it win. Times are those of a call as a user makes it, with the kernel that the dispatcher
chooses, on data that lie on the device; the way there and back is told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from minigrad.autograd import no_grad
from minigrad.compare.attempt import Attempt, finished, time_in_turns
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import quantity, seconds, share, significant
from minigrad.compare.problems import Matmul, Problem
from minigrad.compare.rows import Fact, SizePoint
from minigrad.compare.rungs import RungError, transfer_seconds
from minigrad.compare.session import Session
from minigrad.compare.timing import Call, Timing, sample_calls, warm_up
from minigrad.creation import from_numpy
from minigrad.devices import Device
from minigrad.kernels.launch import CudaKernel

NAME = "size"
TITLE = "The size of the work"
QUESTION = "When is a GPU faster, and when is it not?"
TABLES = {"points": SizePoint, "costs": Fact}
COLUMNS = {
    "points": [
        ("op", lambda row: row.op),
        ("size", lambda row: row.size),
        ("device", lambda row: row.device),
        ("time", lambda row: row.failure or seconds(row.seconds)),
        ("spread", lambda row: f"+-{share(row.spread)}" if row.spread is not None else ""),
        ("rate", lambda row: f"{significant(row.rate / 1e9)} {row.unit}" if row.rate else ""),
        ("transfers", lambda row: seconds(row.transfer_seconds)),
    ],
    "costs": [
        ("device", lambda row: row.device),
        ("cost", lambda row: row.what),
        ("", lambda row: quantity(row.value, row.unit)),
    ],
}
SHORT = ("points",)

SIDES: tuple[int, ...] = (4, 16, 32, 64, 128, 256, 512, 1024, 2048)
LARGE_SIDES = (4096, 8192)  # for a card
LENGTHS = tuple(16 << 4 * i for i in range(6))  # 16 to 16 Mi
CHECKED_ROWS = 16  # of a product: a float64 product of large matrices takes longer than all the rest


@dataclass(frozen=True)
class Add(Problem):
    """out = a + b, vectors of n numbers."""

    n: int

    op: ClassVar[str] = "add"
    bound: ClassVar[str] = "memory"

    @property
    def shapes(self):
        return (self.n,), (self.n,)

    @property
    def operations(self):
        return self.n

    @property
    def bytes(self):
        return 3 * self.n * np.dtype(np.float32).itemsize

    @property
    def tolerance(self):
        return 8.0 * float(np.finfo(np.float32).eps)  # half a unit in the last place of a sum of up to 16

    def run(self, a, b):
        return a + b


@dataclass
class SizeAttempt(Attempt):
    """A problem on a device."""

    problem: Problem = field(kw_only=True)
    transfer_seconds: float | None = None

    def prepare(self, rng: np.random.Generator) -> None:
        problem, inputs = self.problem, self.problem.inputs(rng)
        tensors = [from_numpy(array).to(self.device) for array in inputs]
        self.call = Call(lambda: problem.run(*tensors), self.device, self.threads)
        output = self.call.prepare()
        self.error = check(problem, inputs, output.numpy(), rng)
        if self.device.type == "cuda":
            self.transfer_seconds = transfer_seconds(self.device, inputs, output)

    def row(self) -> SizePoint:
        problem = self.problem
        return SizePoint(
            op=problem.op,
            n=problem.shapes[0][0],
            size=problem.size,
            operations=problem.operations,
            bytes=problem.bytes,
            unit=problem.unit,
            rate=problem.work / self.seconds if self.seconds else None,
            transfer_seconds=self.transfer_seconds,
            **self.measured,
        )


def measure(session: Session, chapter: Chapter) -> None:
    """Check each size, then time all of them in turns."""
    stop = session.deadline()
    attempts: list[SizeAttempt] = []
    devices = session.timed_devices(chapter)
    try:
        for device, threads in devices:
            for problems in _problems(device, session.quick):
                _prepare_all(session, problems, device, threads, attempts)
        time_in_turns(session, "size", attempts, stop)
        for device, _ in devices:
            if device.type == "cuda":
                session.progress("size: launches and transfers")
                chapter.tables["costs"] += card_costs(device)
    finally:
        chapter.tables["points"] = [attempt.row() for attempt in finished(attempts)]
        chapter.tables["costs"] += _call_costs(chapter.tables["points"])


def _problems(device: Device, quick: bool) -> list[list[Problem]]:
    sides: tuple[int, ...] = SIDES if device.type == "cpu" else SIDES + LARGE_SIDES
    lengths = LENGTHS
    if quick:
        sides, lengths = sides[:-1], lengths[:-1]
    return [[Matmul(n, n, n) for n in sides], [Add(n) for n in lengths]]


def _prepare_all(
    session: Session,
    problems: list[Problem],
    device: Device,
    threads: int | None,
    attempts: list[SizeAttempt],
) -> None:
    """Prepare the problems from the smallest on, until a call would take too long."""
    before: SizeAttempt | None = None
    for problem in problems:
        a_piece = before.call.estimate / before.problem.work if before and before.call else 0.0
        if a_piece * problem.work > session.effort.longest:
            break
        session.progress(f"size: checking {problem.op} {problem.size} on {device}")
        before = SizeAttempt(device, threads, problem=problem)
        attempts.append(before)
        if not before.try_to(partial(before.prepare, session.rng)):
            break


def check(problem: Problem, inputs: list[np.ndarray], result: np.ndarray, rng: np.random.Generator) -> float:
    """The largest error of ``result``, of a product in a few of its rows, relative to the largest value.

    Raises:
        RungError: it is more than rounding explains.
    """
    a, b = inputs
    if isinstance(problem, Matmul):
        rows = rng.permutation(len(a))[:CHECKED_ROWS]
        expected = a[rows].astype(np.float64) @ b.astype(np.float64)
        result = result[rows]
    else:
        expected = a.astype(np.float64) + b.astype(np.float64)
    error = float(np.abs(result - expected).max(initial=0.0))
    if not error <= problem.tolerance:  # so that NaN is wrong too
        raise RungError(
            f"wrong at {problem.size}: the largest error is {error:.2g}, rounding explains "
            f"{problem.tolerance:.2g}"
        )
    return error / float(np.abs(expected).max(initial=0.0) or 1.0)


# ---- what a call costs before it begins -------------------------------------------------------------------

EMPTY_KERNEL = "__global__ void nothing(float* out) {}"
LINK_BYTES = 64 << 20


def card_costs(device: Device) -> list[Fact]:
    """What a launch takes when launches follow one another, and alone; and the way to the card and back."""

    def fact(what: str, value: float, unit: str) -> Fact:
        return Fact(device=str(device), what=what, value=value, unit=unit)

    with device.active(), no_grad():
        out = device.xp.empty(1, np.float32)
        kernel = CudaKernel(EMPTY_KERNEL, "nothing")
        host = np.ones(LINK_BYTES // 4, np.float32)
        one, many = device.from_numpy(host[:1]), device.from_numpy(host)

        def launch() -> None:
            kernel.launch(1, 32, (out,))

        return [
            fact("launch of a kernel, one after another", _median(launch, device), "s"),
            fact("launch of a kernel, waited for", _median(_waiting(launch, device), device), "s"),
            fact("a number to the card", _median(lambda: device.from_numpy(host[:1]), device), "s"),
            fact("a number from the card", _median(lambda: device.to_numpy(one), device), "s"),
            fact("to the card", host.nbytes / _median(lambda: device.from_numpy(host), device), "B/s"),
            fact("from the card", host.nbytes / _median(lambda: device.to_numpy(many), device), "B/s"),
        ]


def _waiting(call: Callable[[], Any], device: Device) -> Callable[[], Any]:
    def run() -> None:
        call()
        device.synchronize()

    return run


def _median(call: Callable[[], Any], device: Device) -> float:
    estimate, _ = warm_up(call, device.synchronize)
    return Timing.of(sample_calls(call, device.synchronize, estimate, 0.02)).seconds or 0.0


def _call_costs(points: list[SizePoint]) -> list[Fact]:
    """The time of the smallest calls, in which there is next to nothing to compute."""
    return [
        Fact(
            device=row.device,
            what=f"call of {row.op}, {row.size}",
            value=row.seconds,
            unit="s",
            threads=row.threads,
        )
        for row in points
        if row.seconds and row.n <= 16 and row.n == min(p.n for p in points if p.op == row.op)
    ]


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    found = []
    for op in dict.fromkeys(row.op for row in chapter.rows):
        cpu, card = _by_size(chapter, op)
        found += _growth(op, cpu) + _overtaking(comparison, op, cpu, card)
    return found


def answer(comparison: Comparison, chapter: Chapter) -> str:
    """When a GPU is faster, and when it is not: from which size on it overtakes the processor."""
    for op in dict.fromkeys(row.op for row in chapter.rows):
        found = _overtaking(comparison, op, *_by_size(chapter, op))
        if found:
            return " ".join(found)
    return ""


def _by_size(chapter: Chapter, op: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """The rows of an op by their size: of the processor, and of the card that is here or was recorded."""
    own = [row for row in chapter.rows if row.op == op and row.seconds]
    here = [row for row in own if row.device.startswith("cuda")]
    there = [row for row in chapter.recorded_rows if row.op == op and row.seconds]
    cpu = {row.n: row for row in own if row.device == "cpu"}
    return cpu, {row.n: row for row in (here or there)}


def _growth(op: str, rows: dict[int, Any]) -> list[str]:
    """How the rate grows from the smallest call to the best."""
    if len(rows) < 2:
        return []
    small, best = rows[min(rows)], max(rows.values(), key=lambda row: row.rate)
    factor = best.rate / small.rate
    if factor < 2:
        return [f"{op} on the processor: the rate hardly depends on the size."]
    return [
        f"{op} on the processor: {small.size} takes {seconds(small.seconds)}; at {best.size} the rate is "
        f"{significant(factor)} times as high: the fixed cost of a call is spread over more work."
    ]


def _overtaking(comparison: Comparison, op: str, cpu: dict[int, Any], card: dict[int, Any]) -> list[str]:
    """From which size on the card is faster, of the sizes that both were measured at."""
    sizes = sorted(cpu.keys() & card.keys())
    if not sizes:
        return []
    where = comparison.called(card[sizes[0]])
    wins = [n for n in sizes if card[n].seconds < cpu[n].seconds]
    start = next((n for n in sizes if all(m in wins for m in sizes if m >= n)), None)
    if start is None:
        where = where[0].upper() + where[1:]
        return [f"{op}: {where} is not faster than this processor at the largest size they share, "
                f"{cpu[sizes[-1]].size}."]  # fmt: skip
    factor = cpu[sizes[-1]].seconds / card[sizes[-1]].seconds
    found = [
        f"{op}: {where} is faster "
        + (f"from {cpu[start].size} on" if start != sizes[0] else "at every size they share")
        + f"; at {cpu[sizes[-1]].size} it takes {seconds(card[sizes[-1]].seconds)}, this processor "
        f"{seconds(cpu[sizes[-1]].seconds)}: {significant(factor)} times as long."
    ]
    moved = [n for n in sizes if card[n].transfer_seconds is not None]
    if moved:
        late = [n for n in moved if card[n].seconds + card[n].transfer_seconds < cpu[n].seconds]
        begin = next((n for n in moved if all(m in late for m in moved if m >= n)), None)
        found.append(
            f"{op}: including the copies to the card and back it is faster from {cpu[begin].size} on."
            if begin is not None
            else f"{op}: including the copies to the card and back it is never faster: keep data on the card."
        )
    return found
