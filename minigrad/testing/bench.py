"""bench_op: the times of all kernels of an op, measured in turns, and drawn as a ladder.

It measures as ``minigrad compare`` does, with the same rungs, table and picture.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.compare import machine, picture
from minigrad.compare.comparison import Comparison
from minigrad.compare.numbers import seconds, share, significant, times
from minigrad.compare.peaks import Peaks
from minigrad.compare.problems import Problem
from minigrad.compare.records import Record, make_record, with_steps
from minigrad.compare.rungs import KernelRung, RefusedError, Rung
from minigrad.compare.timing import STANDARD, Effort, in_turns, told
from minigrad.creation import from_numpy
from minigrad.devices import Device, available_devices
from minigrad.devices import device as find_device
from minigrad.dispatch import REFERENCE, Kernel, list_kernels, parse_dtypes, use_kernel
from minigrad.dtypes import is_floating
from minigrad.op import Op
from minigrad.testing.arrays import check_type, describe_errors, errors_of, to_numpy
from minigrad.testing.calls import check_trial
from minigrad.testing.cases import as_cases, case
from minigrad.testing.oracle import Trial, as_tuple
from minigrad.testing.watch import Watch

__all__ = ["OpTable", "bench_op"]

ELEMENTS = 1 << 20
"""Of each input where no cases are given."""

COLUMNS = ("device", "kernel", "time", "spread", "ratio", "GB/s")


class OpTable(Comparison):
    """What :func:`bench_op` measured: a list of :class:`~minigrad.compare.Record`, to ``print``."""

    def ratio(self, record: Record) -> float | None:
        """How many times as fast as the op's reference on the same device, for the same case."""
        for other in self.ladder(record.ladder):
            if (other.device, other.rung) == (record.device, REFERENCE) and other.seconds and record.seconds:
                return other.seconds / record.seconds
        return None

    def __str__(self) -> str:
        parts = [self._ladder(name) for name in self.ladders]
        return "\n\n".join([*parts, *(f"Note: {note}" for note in self.notes)])

    def _ladder(self, name: str) -> str:
        records = self.ladder(name)
        rows = [COLUMNS] + [
            (
                record.device,
                record.rung,
                seconds(record.seconds) + (" (simulated)" if record.device == "sim" else ""),
                f"+-{share(record.spread)}",
                times(self.ratio(record)),
                significant(record.rate / 1e9) if record.rate else "",
            )
            for record in records
            if record.seconds is not None
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{name}, {records[0].dtype}; ratio: the time of the reference over this one"]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"  {r.device} {r.rung}: not timed, {r.failure}" for r in records if r.failure]
        return "\n".join(lines)


def bench_op(
    op: Op,
    cases: Iterable | None = None,
    *,
    devices: Iterable | None = None,
    dtypes: str | Sequence = "f4",
    against: Mapping[str, Callable] | None = None,
    output: str | Path | None = None,
    effort: Effort = STANDARD,
    seed: int | None = None,
) -> OpTable:
    """Time the reference and all kernels of an op, in turns; each is checked before it is timed.

    Args:
        op: the op.
        cases: the calls to time, as for :func:`check_op`; each is a table and a ladder of its own. By default
            one, with 2**20 elements in each input, for an op that takes equal shapes.
        devices: by default all but the simulator, whose times say nothing about a card. If it is named, its
            times are marked as simulated, and not drawn.
        dtypes: of the floating inputs.
        against: functions to compare with, by their names: ``{"unfused": lambda x, bias: gelu(x + bias)}``.
            They take the op's inputs as tensors, and must give what it gives.
        output: a file for a picture of the ladders, such as ``"ladder.png"``.
        effort: how long to measure.
        seed: of the inputs; by default a fresh one.

    Returns:
        The records: print it. ``bytes`` are the inputs read once and the outputs written once, and the rate
        is that over the median time. A kernel that is wrong, or does not take a case, is not timed, and the
        table says why.

    Raises:
        ValueError: a picture is wanted, and nothing was measured that can be drawn.
    """
    if cases is None:
        as_cases(op, None)  # raises where shapes follow a rule
        cases = [case(*[(ELEMENTS,)] * len(op.inputs))]
    where = [find_device(d) for d in devices] if devices is not None else _real_devices()
    table = OpTable(machine.describe(), datetime.datetime.now().astimezone().isoformat("T", "seconds"))
    if devices is None and list_kernels(op.name, "sim"):
        table.notes.append("the simulator is left out: its times say nothing about a card")
    entropy = np.random.SeedSequence(seed).entropy
    for number, one in enumerate(as_cases(op, cases)):
        for dtype in parse_dtypes(dtypes):
            assert isinstance(entropy, int)
            problem = CallProblem(Trial(op, one, dtype, "contiguous", (entropy, number)))
            rungs = [rung for device in where for rung in _rungs(problem, device, against or {})]
            for rung in rungs:
                _prepare(rung, problem)
            in_turns(rungs, effort, time.monotonic() + effort.ladder, op.name)
            title = f"{op.name}{one}" + (f" {dtype}" if dtype != np.float32 else "")
            records = [make_record(title, op.name, rung, Peaks([], [])) for rung in rungs]
            table += with_steps([replace(record, dtype=str(dtype)) for record in records])
            for rung in rungs:
                rung.close()
    if output is not None:
        if not picture.drawable(table):
            raise ValueError("bench_op: there is nothing to draw: no kernel was timed on a real device")
        picture.draw(table).savefig(output, dpi=150, facecolor="white")
    return table


class CallProblem(Problem):
    """One call of an op, as the ladders see it."""

    bound = "memory"
    operations = 0

    def __init__(self, trial: Trial):
        self.trial = trial
        self.op: str = trial.op.name  # type: ignore[misc]
        oracle = trial.first
        self.arrays = [v for v in oracle.values if isinstance(v, np.ndarray)]
        self.shapes = tuple(a.shape for a in self.arrays)
        # The reference in float64 tells the outputs' sizes; what is floating has the inputs' dtype.
        itemsizes = [
            trial.dtype.itemsize if is_floating(y.dtype) else y.dtype.itemsize for y in oracle.expected
        ]
        written = sum(y.size * n for y, n in zip(oracle.expected, itemsizes, strict=True))
        self.bytes = sum(a.nbytes for a in self.arrays) + written

    @property
    def size(self) -> str:
        return ", ".join("x".join(map(str, shape)) or "()" for shape in self.shapes)

    def arguments(self, tensors: Iterable) -> list:
        """The op's inputs: the tensors, and the numbers and None between them."""
        rest = iter(tensors)
        return [next(rest) if isinstance(v, np.ndarray) else v for v in self.trial.first.values]

    def run(self, *tensors: Any) -> Any:
        return self.trial.op(*self.arguments(tensors), **self.trial.case.attrs)


class CallRung(Rung):
    """A function of tensors: the op's reference, or what it is compared with."""

    def __init__(self, name: str, function: Callable, adds: str, device: Device):
        super().__init__(name, "library", adds, device, None)
        self.function = function

    def solver(self, problem: Problem, inputs: list[np.ndarray]) -> Callable[[], Any]:
        assert isinstance(problem, CallProblem)
        tensors = problem.arguments(from_numpy(array).to(self.device) for array in inputs)
        return lambda: self.function(*tensors)

    def result(self, output: Any) -> Any:
        return output

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), no_grad():
            yield


class ReferenceRung(CallRung):
    """The op's reference."""

    def __init__(self, problem: CallProblem, device: Device):
        attrs = problem.trial.case.attrs
        adds = f"The reference, in {device.xp.__name__}."
        super().__init__(REFERENCE, lambda *tensors: problem.trial.op(*tensors, **attrs), adds, device)
        self.op = problem.op

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), use_kernel(self.op, REFERENCE, self.device.type):
            yield


class TimedKernel(KernelRung):
    """A kernel of any op; what it gives was checked before."""

    def result(self, output: Any) -> Any:
        return output


def _real_devices() -> list[Device]:
    return [device for device in available_devices() if device.type != "sim"]


def _rungs(problem: CallProblem, device: Device, against: Mapping[str, Callable]) -> list[Rung]:
    rungs: list[Rung] = [ReferenceRung(problem, device)]
    rungs += [CallRung(name, function, "", device) for name, function in against.items()]
    kernels = list_kernels(problem.op, device.type)
    return rungs + [TimedKernel(kernel, device, None) for kernel in kernels]


def _prepare(rung: Rung, problem: CallProblem) -> None:
    """Check the rung on the problem, and make it ready to be timed; or note why it cannot be."""
    try:
        if isinstance(rung, (TimedKernel, ReferenceRung)):
            _check_kernel(rung, problem)
        output = rung.solve(problem, problem.arrays)
        if type(rung) is CallRung:
            _check_function(output, problem.trial)
        rung.error = 0.0
    except RefusedError as reason:
        rung.failure, rung.refused = str(reason), True
    except Exception as reason:  # a user's kernel may raise anything
        rung.failure = told("wrong", reason)


def _check_kernel(rung: TimedKernel | ReferenceRung, problem: CallProblem) -> None:
    op, device = problem.trial.op, rung.device
    if isinstance(rung, TimedKernel):
        kernel = rung.kernel
    else:
        kernel = Kernel(op.name, REFERENCE, (device.type,), (), op.reference, "strided", None, "")
    calls, _ = check_trial(problem.trial, Watch(op, device, kernel))
    if not calls:
        raise RefusedError(f"does not take {problem.size}: the reference would have run instead")


def _check_function(output: Any, trial: Trial) -> None:
    """Raise an AssertionError unless a function gave what the op gives."""
    oracle = trial.first
    for k, (y, expected) in enumerate(zip(as_tuple(output), oracle.expected, strict=True)):
        actual, what = to_numpy(y), f"output {k}"
        check_type(actual, expected, what)
        errors = errors_of(actual, expected, 4 * oracle.length, oracle.magnitudes[k])
        if errors.wrong.any():
            raise AssertionError(describe_errors(what, actual, expected, errors))
