"""Worker processes of a data loader, for data sets whose samples take Python's time.

Each process has a pipe of its own and answers one job at a time; a thread of the caller's waits for it. So
the order, the exceptions and the end of an epoch are as with worker threads (:mod:`.prefetch`), and a process
that is killed leaves no lock behind that others would wait for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

from minigrad.kernels.cpu.threads import set_num_threads
from minigrad.random import manual_seed

__all__ = ["WorkerProcesses"]

Context = Any  # a name, a multiprocessing context, or None


class WorkerProcesses:
    """Processes that compute ``function``.

    Args:
        function: what they compute; sent to each once.
        count: how many they are.
        init: called in each with its number, before all else.
        seed: process i starts with minigrad's random numbers seeded by ``seed + i``.
        context: how they are started: ``"forkserver"``, the default, ``"spawn"``, ``"fork"``, or a context of
            :mod:`multiprocessing`.

    Raises:
        RuntimeError: ``function`` cannot be sent.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        count: int,
        init: Callable[[int], Any] | None = None,
        seed: int = 0,
        context: Context = None,
    ):
        if context is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", __name__])  # minigrad is imported once for all
        elif isinstance(context, str):
            context = multiprocessing.get_context(context)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        try:
            for number in range(count):
                self._all.append(_Worker(function, number, init, seed + number, context))
                self._idle.put(self._all[-1])
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.stop()
            raise RuntimeError(
                "DataLoader: the data set, collate_fn or worker_init_fn cannot be sent to a process "
                f"({error}). Define it at the top of a module, or set worker_type='thread' or "
                "multiprocessing_context='fork'"
            ) from error
        except BaseException:
            self.stop()
            raise

    def __call__(self, job: Any) -> Any:
        """``function(job)``, computed by a process that has nothing to do; several threads may call."""
        worker = self._idle.get()
        try:
            return worker.compute(job)
        finally:
            self._idle.put(worker)

    def are_alive(self) -> bool:
        """Whether they are there, and none has ended."""
        return bool(self._all) and all(worker.process.is_alive() for worker in self._all)

    def stop(self) -> None:
        """End all processes, what they are doing included."""
        for worker in self._all:
            worker.process.terminate()
        for worker in self._all:
            worker.process.join()
        self._all = []

    def __del__(self) -> None:
        if getattr(self, "_all", None):
            self.stop()


class _Worker:
    """One process, as seen from the caller's side."""

    process: BaseProcess

    def __init__(self, function: Any, number: int, init: Any, seed: int, context: Any):
        self.number = number
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(theirs, function, number, init, seed),
            name=f"minigrad-data-{number}",
            daemon=True,  # ends with the caller's process
        )
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()  # so that the pipe has an end when the process has

    def compute(self, job: Any) -> Any:
        try:
            self.connection.send(job)
            succeeded, result = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.process.join(10)
            error.__traceback__ = (
                None  # its frames hold a buffer: gone in a cycle, Python 3.13 complains of it
            )
            raise RuntimeError(f"DataLoader: worker process {self.number} {self._end()}") from error
        if succeeded:
            return result
        raise result

    def _end(self) -> str:
        """How the process has ended."""
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
        return (
            f"ended with exit code {code}. Its own message is above; a script that uses processes starts its "
            "work under `if __name__ == '__main__':`"
        )


def _serve(connection: Connection, function: Any, number: int, init: Any, seed: int) -> None:
    """Answer jobs until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller, who gets it too, ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    set_num_threads(1)
    manual_seed(seed % 2**63)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    failed = None
    try:
        if init is not None:
            init(number)
    except Exception as error:
        failed = _pack_error(error, number)
    with contextlib.suppress(EOFError, OSError):  # the caller has closed its end
        while True:
            job = connection.recv()
            connection.send_bytes(failed or _answer(function, job, number))


def _end_with_caller() -> None:
    """End this process when the caller's has ended, whatever is being loaded."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _answer(function: Any, job: Any, number: int) -> bytes:
    try:
        return pickle.dumps((True, function(job)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _pack_error(error, number)


def _pack_error(error: Exception, number: int) -> bytes:
    """The error, with the traceback of this process as a note; one that cannot be sent as a RuntimeError."""
    trace = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"\nin worker process {number}:\n{trace}")
        packed = pickle.dumps((False, error))
        pickle.loads(packed)
        return packed
    except Exception:
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note(f"\nin worker process {number}:\n{trace}")
        return pickle.dumps((False, substitute))
