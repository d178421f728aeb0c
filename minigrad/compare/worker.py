"""NumPy in a process of its own.

NumPy's BLAS library and minigrad's kernels each keep a pool of threads, and an idle pool spins for a while
before it sleeps: in one process each would disturb the other's times. A library's number of threads is
moreover fixed when it is loaded. So NumPy's rungs run in child processes, one for each number of threads.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np

from minigrad.compare.problems import Problem
from minigrad.compare.rungs import ArrayRung, Rung, RungError
from minigrad.devices import device

__all__ = ["NumpyProcess", "NumpyRung"]

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)


class NumpyProcess:
    """A child process whose BLAS library has ``threads`` threads; it starts when it is first asked."""

    def __init__(self, threads: int):
        self.threads = threads
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process, if it does not run; it may load while others work."""
        if self._process is None:
            self._process = self._popen()

    def ask(self, *request: Any) -> Any:
        """The child's answer. Raises RungError if it has ended, and what the child has raised."""
        self.start()
        assert self._process is not None
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            pickle.dump(request, requests, protocol=5)
            requests.flush()
            answer = pickle.load(answers)
        except (OSError, EOFError) as error:
            raise RungError("the process that runs NumPy has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipes too
            self._process = None

    def _popen(self) -> subprocess.Popen:
        environment = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, str(self.threads)),
            "MINIGRAD_NUM_THREADS": str(self.threads),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        command = [sys.executable, "-c", "from minigrad.compare.worker import serve; serve()"]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends this process
        )


class NumpyRung(Rung):
    """NumPy's solution, timed in a process of its own, which may serve one ladder after another."""

    def __init__(self, problem_type: type[Problem], process: NumpyProcess):
        super().__init__("numpy", "library", problem_type.numpy_adds, device("cpu"), process.threads)
        self.process, self.elsewhere = process, True

    def solve(self, problem: Problem, inputs: list[np.ndarray]) -> np.ndarray:
        result, self.estimate, self.parallel = self.process.ask("solve", problem, inputs)
        self.problem = problem
        return result

    def sample(self, budget: float) -> None:
        self.samples += self.process.ask("sample", budget)

    def close(self) -> None:
        """Nothing: whoever made the process ends it."""


def serve() -> None:
    """The child's side: answer requests from standard input until it closes."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    rung: ArrayRung | None = None
    while True:
        try:
            what, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            if what == "solve":
                problem, inputs = arguments
                rung = ArrayRung(type(problem), device("cpu"), threads=None)
                answer: Any = rung.solve(problem, inputs), rung.estimate, rung.parallel
            else:
                assert rung is not None
                rung.samples = []
                rung.sample(*arguments)
                answer = rung.samples
        except Exception as error:
            answer = error
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
