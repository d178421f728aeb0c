"""The number format: fewer bits are faster, where there is hardware for them, and less exact.

On the processor there are float64 and float32. TF32, bfloat16 and float16 are for a card's tensor cores, and
are measured there alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.compare.attempt import Attempt, finished, time_in_turns
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import seconds, share, significant
from minigrad.compare.problems import Conv2d, Matmul, Problem
from minigrad.compare.rows import PrecisionPoint
from minigrad.compare.rungs import RungError
from minigrad.compare.session import Session
from minigrad.compare.timing import Call
from minigrad.creation import from_numpy
from minigrad.devices import Device
from minigrad.dtypes import to_dtype
from minigrad.precision import get_float32_matmul_precision, set_float32_matmul_precision

NAME = "precision"
TITLE = "The number format"
QUESTION = "What do fewer bits bring, and what do they cost?"
TABLES = {"points": PrecisionPoint}
COLUMNS = {
    "points": [
        ("op", lambda row: row.op),
        ("size", lambda row: row.size),
        ("format", lambda row: row.format),
        ("kernel", lambda row: row.kernel),
        ("device", lambda row: row.device),
        ("time", lambda row: row.failure or seconds(row.seconds)),
        ("spread", lambda row: f"+-{share(row.spread)}" if row.spread is not None else ""),
        ("GFLOP/s", lambda row: significant(row.rate / 1e9) if row.rate else ""),
        ("error", lambda row: f"{row.error:.1e}" if row.error is not None else ""),
    ]
}
SHORT = ("points",)

FORMATS = {"cpu": ("float64", "float32"), "cuda": ("float64", "float32", "tf32", "bfloat16", "float16")}
BITS = {"float64": 52, "float32": 23, "tf32": 10, "float16": 10, "bfloat16": 7}  # of the mantissa
CHECKED_ROWS = 16


@dataclass
class PrecisionAttempt(Attempt):
    """A problem in one number format."""

    problem: Problem = field(kw_only=True)
    format: str = field(kw_only=True)

    def prepare(self, inputs: list[np.ndarray]) -> None:
        dtype = to_dtype("float32" if self.format == "tf32" else self.format)
        tensors = [from_numpy(array).to(self.device).to(dtype) for array in inputs]
        given = [tensor.to(np.float64).numpy() for tensor in tensors]
        self.call = Call(_run(self.problem, tensors, self.format), self.device, self.threads)
        output = self.call.prepare()
        self.error = error_of(self.problem, given, output.to(np.float64).numpy())
        if not self.error <= tolerance(self.format):
            raise RungError(f"wrong: an error of {self.error:.1e}")

    def row(self) -> PrecisionPoint:
        operations = self.problem.operations
        return PrecisionPoint(
            op=self.problem.op,
            size=self.problem.size,
            format=self.format,
            operations=operations,
            rate=operations / self.seconds if self.seconds else None,
            **self.measured,
        )


def measure(session: Session, chapter: Chapter) -> None:
    """Find the error of each format, then time all of them in turns."""
    stop = session.deadline()
    attempts: list[PrecisionAttempt] = []
    try:
        for device, threads in session.timed_devices(chapter):
            for problem in _problems(device, session.quick):
                inputs = [array.astype(np.float64) for array in problem.inputs(session.rng)]
                for name in FORMATS[device.type]:
                    session.progress(f"precision: checking {problem.op} in {name} on {device}")
                    attempts.append(PrecisionAttempt(device, threads, problem=problem, format=name))
                    attempts[-1].try_to(partial(attempts[-1].prepare, inputs))
        time_in_turns(session, "precision", attempts, stop)
    finally:
        chapter.tables["points"] = [attempt.row() for attempt in finished(attempts)]


def _problems(device: Device, quick: bool) -> list[Problem]:
    side = (256 if quick else 512) if device.type == "cpu" else (2048 if quick else 4096)
    batch = (1 if quick else 4) if device.type == "cpu" else 32
    return [Matmul(side, side, side), Conv2d(batch, 64, 28, 28, 64)]


def _run(problem: Problem, tensors: list[Any], name: str) -> Callable[[], Any]:
    def run() -> Any:
        with no_grad(), _tf32() if name == "tf32" else contextlib.nullcontext():
            return problem.run(*tensors)

    return run


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = get_float32_matmul_precision()
    set_float32_matmul_precision("high")
    try:
        yield
    finally:
        set_float32_matmul_precision(before)


def tolerance(name: str) -> float:
    """The error that rounding explains, with room to spare: a few units in the last place for the inputs and
    the result, and more for the sums, which have at least float32's digits."""
    return 4 * 2.0 ** -BITS[name] + 64 * 2.0 ** -max(BITS[name], BITS["float32"])


def error_of(problem: Problem, inputs: list[np.ndarray], result: np.ndarray) -> float:
    """The norm of the error of ``result`` over that of the exact one, from its first rows or images.

    The exact one is computed in NumPy's longest float, so that float64 has an error, too.
    """
    first, second = (array.astype(np.longdouble) for array in inputs)
    if isinstance(problem, Matmul):
        exact = first[:CHECKED_ROWS] @ second
    else:
        single = type(problem)(1, *problem.shapes[0][1:], problem.shapes[1][0])  # type: ignore[call-arg]
        exact = single.array_program(np, first[:1], second)
    found = result[: len(exact)].astype(np.longdouble)
    return float(np.linalg.norm((found - exact).ravel()) / np.linalg.norm(exact.ravel()))


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    groups: dict[tuple, dict[str, Any]] = {}
    for row in (*chapter.rows, *chapter.recorded_rows):
        if row.seconds and row.error is not None:
            formats = groups.setdefault((row.recorded, row.device, row.op, row.size), {})
            before = formats.get(row.format)
            if before is None or row.seconds < before.seconds:
                formats[row.format] = row
    return [
        f"{op} of {size} on {comparison.called(next(iter(formats.values())))}: {_compared(formats)}."
        for (_, _, op, size), formats in groups.items()
        if len(formats) > 1
    ]


def _compared(formats: dict[str, Any]) -> str:
    """``float32 takes 2.1 ms (error 1e-07); float64 2.0 times as long (error 1e-16)``."""
    names = sorted(formats, key=lambda name: -BITS.get(name, 0))
    base = formats["float32"] if "float32" in formats else formats[names[0]]
    parts = [f"{base.format} takes {seconds(base.seconds)} (error {base.error:.0e})"]
    for name in names:
        row = formats[name]
        if row is base:
            continue
        factor = row.seconds / base.seconds
        speed = f"{significant(factor)} times as long" if factor >= 1 else f"{share(factor)} of that"
        parts.append(f"{name} {speed} (error {row.error:.0e})")
    return "; ".join(parts)
