"""A rung: one way to solve a problem, on one device, with so many threads; how it is checked and timed.

All rungs are climbed alike. A rung first solves an odd-shaped problem, then each size from the smallest on,
until the next would take too long; every result is checked against NumPy in float64. Only a rung that was
right all the way is timed.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.compare.problems import Problem
from minigrad.compare.timing import active, sample_calls, warm_up
from minigrad.devices import Device, device
from minigrad.dispatch import Kernel, kernel_table, use_kernel

__all__ = [
    "ArrayRung",
    "KernelRung",
    "PythonRung",
    "RefusedError",
    "Rung",
    "RungError",
    "Trial",
    "summary",
]


class RungError(Exception):
    """A rung gave a wrong result, or cannot solve the problem; the message says which."""


class RefusedError(RungError):
    """The kernel's own condition does not let it solve a problem."""


class Trial:
    """A problem with fresh random inputs, and the result that NumPy finds in float64."""

    def __init__(self, problem: Problem, rng: np.random.Generator):
        self.problem = problem
        self.inputs = problem.inputs(rng)

    @cached_property
    def expected(self) -> np.ndarray:
        """Found when first asked for: a size that every rung refuses costs nothing."""
        wide = (array.astype(np.float64) for array in self.inputs)
        return np.asarray(self.problem.array_program(np, *wide))

    def check(self, result: np.ndarray, amplification: float = 1.0) -> float:
        """The largest error of ``result``. Raises RungError if it is more than rounding explains, in an
        algorithm with this ``amplification`` of rounding errors."""
        if result.shape != self.expected.shape:
            raise RungError(f"wrong: shape {result.shape}, expected {self.expected.shape}")
        # In pieces, because a float64 copy of a large result would take as much memory again.
        errors = [
            np.abs(got.astype(np.float64) - want).max(initial=0.0)
            for got, want in zip(result, self.expected, strict=True)
        ]
        error = float(np.max(errors, initial=0.0))
        tolerance = amplification * self.problem.tolerance
        if not error <= tolerance:  # so that NaN is wrong too
            raise RungError(
                f"wrong at {self.problem.size}: the largest error is {error:.2g}, rounding explains "
                f"{tolerance:.2g}"
            )
        return error


@dataclass
class Rung:
    """One way to solve problems of an op.

    Attributes:
        name: a kernel's name, ``"numpy"``, ``"cupy"`` or ``"python"``.
        kind: ``"kernel"``, ``"library"`` (NumPy, CuPy) or ``"python"``.
        adds: one sentence on what this rung adds to the one before.
        device: where it runs.
        threads: the CPU threads that it may use; None on a card.
        problem: the size that is measured, once it was climbed.
        samples: the seconds that calls took.
        error: the largest error of a result.
        failure: why it is not measured, if it is not.
        refused: whether that is because it takes none of the sizes, which is no mistake.
        parallel: whether it was seen to use more than one thread.
        transfer_seconds: on a card, the time to copy the inputs there and the result back.
        estimate: about how many seconds a call takes.
        patience: the share of the longest time for a call that this rung may take.
        amplification: how many times larger its rounding errors may be than those of the definition.
        elsewhere: whether it runs in a process of its own.
    """

    name: str
    kind: str
    adds: str
    device: Device
    threads: int | None = 1
    problem: Problem | None = None
    samples: list[float] = field(default_factory=list)
    error: float | None = None
    failure: str | None = None
    refused: bool = False
    parallel: bool = False
    transfer_seconds: float | None = None
    estimate: float = 0.0
    patience: float = 1.0
    amplification: float = 1.0
    elsewhere: bool = False
    _call: Callable[[], Any] | None = None

    def solver(self, problem: Problem, inputs: list[np.ndarray]) -> Callable[[], Any]:
        """A function that solves ``problem`` once; what it returns goes to :meth:`result`."""
        raise NotImplementedError

    def result(self, output: Any) -> np.ndarray:
        """What the solver returned, as a NumPy array."""
        return np.asarray(output)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside this context calls run this rung's code, on its device, with its threads."""
        with active(self.device, self.threads):
            yield

    def solve(self, problem: Problem, inputs: list[np.ndarray]) -> np.ndarray:
        """Solve ``problem`` once; it is the one that :meth:`sample` then times."""
        self._call = self.solver(problem, inputs)
        self.problem = problem
        with self.active():
            cpu_time, own_time = time.process_time(), time.thread_time()
            self.estimate, output = warm_up(self._call, self.device.synchronize)
            own_time = time.thread_time() - own_time
            # Threads that share the work use the processor's time; the clock would also count other programs.
            self.parallel = time.process_time() - cpu_time > 1.3 * own_time
        return self.result(output)

    def sample(self, budget: float) -> None:
        """Time calls for about ``budget`` seconds, at least one, and add them to ``samples``."""
        assert self._call is not None
        with self.active():
            self.samples += sample_calls(self._call, self.device.synchronize, self.estimate, budget)

    def close(self) -> None:
        """Let go of the arrays."""
        self._call = None


class KernelRung(Rung):
    """A registered kernel, reached as any user reaches it: an op on tensors, under ``use_kernel``."""

    def __init__(self, kernel: Kernel, device: Device, threads: int | None):
        super().__init__(kernel.name, "kernel", summary(kernel), device, threads)
        self.kernel = kernel
        self.amplification = kernel.amplification or 1.0

    def solver(self, problem: Problem, inputs: list[np.ndarray]) -> Callable[[], Any]:
        from minigrad.creation import from_numpy

        tensors = [from_numpy(array).to(self.device) for array in inputs]
        with self.active(), _must_take(self.kernel, problem):
            output = problem.run(*tensors)
        if self.device.type == "cuda":
            self.transfer_seconds = transfer_seconds(self.device, inputs, output)
        return lambda: problem.run(*tensors)

    def result(self, output: Any) -> np.ndarray:
        return output.numpy()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), no_grad(), use_kernel(self.kernel.op, self.name, self.device.type):
            yield


class ArrayRung(Rung):
    """The problem as a user of NumPy (or, on a card, of CuPy) would solve it."""

    def __init__(self, problem_type: type[Problem], device: Device, threads: int | None):
        name = "numpy" if device.type == "cpu" else "cupy"
        super().__init__(name, "library", problem_type.numpy_adds, device, threads)

    def solver(self, problem: Problem, inputs: list[np.ndarray]) -> Callable[[], Any]:
        arrays = [self.device.from_numpy(array) for array in inputs]
        return lambda: problem.array_program(self.device.xp, *arrays)

    def result(self, output: Any) -> np.ndarray:
        return self.device.to_numpy(output)


class PythonRung(Rung):
    """The problem in Python alone."""

    def __init__(self, problem_type: type[Problem]):
        super().__init__("python", "python", problem_type.python_adds, device("cpu"), patience=0.25)

    def solver(self, problem: Problem, inputs: list[np.ndarray]) -> Callable[[], Any]:
        lists = [array.tolist() for array in inputs]
        return lambda: problem.plain_python(*lists)


def summary(kernel: Kernel) -> str:
    """What a kernel adds: the first paragraph of its docstring, on one line."""
    text = inspect.getdoc(kernel.run) or kernel.summary
    return " ".join(text.partition("\n\n")[0].replace("``", "").split())


@contextlib.contextmanager
def _must_take(kernel: Kernel, problem: Problem) -> Iterator[None]:
    """Inside this context the dispatcher chooses ``kernel`` for its op, or RefusedError says that it cannot.

    A kernel that refuses an input leaves it to the reference, silently; its time must not be taken for
    the kernel's. So the only other kernel is one that takes all else, and refuses. (The table itself may be
    compiled, so that no method of it can be replaced.)
    """
    table = kernel_table(kernel.op)

    def refuse(*_args: Any, **_attrs: Any) -> None:
        raise RefusedError(f"does not take {problem.size}: the reference would have run instead")

    dtypes = (*kernel.dtypes, *map(np.dtype, "?bhilqBHILQefd"))
    kernels = table.kernels
    table.kernels = [kernel._replace(run=refuse, dtypes=dtypes, when=None, prefer=None), kernel]
    table.select(table.selected)  # and forget earlier choices
    try:
        yield
    finally:
        table.kernels = kernels
        table.select(table.selected)


def transfer_seconds(device: Device, inputs: list[np.ndarray], output: Any) -> float:
    """Seconds to copy the inputs to the card and the result back, the median of five."""
    seconds = []
    for _ in range(5):
        device.synchronize()
        start = time.perf_counter()
        for array in inputs:
            device.from_numpy(array)
        output.numpy()
        device.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
