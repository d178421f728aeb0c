"""What the chapters share while they measure: the devices, the effort, the random numbers, the progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.peaks import Peaks
from minigrad.compare.timing import Effort, Sampled, in_turns
from minigrad.compare.worker import NumpyProcess
from minigrad.devices import Device

__all__ = ["Session"]


@dataclass
class Session:
    """One run of the comparison.

    Attributes:
        devices: what is measured, in order.
        threads: CPU threads for what uses several.
        ladders: the ladders to climb.
        effort, quick: how long to measure, and whether at smaller sizes.
        rng: of the random inputs.
        progress: called with a line of text at each stage.
        comparison: what is filled.
        peaks: the best rates seen so far.
        numpy: by number of threads, the process in which NumPy runs.
    """

    devices: list[Device]
    threads: int
    ladders: list[str]
    effort: Effort
    quick: bool
    rng: np.random.Generator
    progress: Callable[[str], None]
    comparison: Comparison
    peaks: Peaks
    numpy: dict[int, NumpyProcess] = field(default_factory=dict)

    def numpy_process(self, threads: int) -> NumpyProcess:
        """The process whose BLAS library has so many threads."""
        return self.numpy.setdefault(threads, NumpyProcess(threads))

    def start_numpy(self) -> None:
        """Start what the processor's ladders need, to load while the first rungs are checked."""
        if any(device.type == "cpu" for device in self.devices):
            for threads in {1, self.threads}:
                self.numpy_process(threads).start()

    def sample_peaks(self, bound: str) -> None:
        """Measure the peaks of ``"compute"`` or ``"memory"`` once more."""
        self.peaks.sample(bound, repeats=1 if self.quick else 3)

    def close(self) -> None:
        """End the processes, and free the long arrays."""
        for process in self.numpy.values():
            process.close()
        self.peaks.release()

    def timed_devices(self, chapter: Chapter) -> list[tuple[Device, int | None]]:
        """The devices whose times mean something, with their threads; of the simulator the chapter says
        that it is left out."""
        if any(device.type == "sim" for device in self.devices):
            chapter.notes.append("The simulator is left out here: its times say nothing about a card.")
        return [
            (device, self.threads if device.type == "cpu" else None)
            for device in self.devices
            if device.type != "sim"
        ]

    def deadline(self) -> float:
        """When a chapter that begins now should end, on the monotonic clock."""
        return time.monotonic() + self.effort.chapter

    def take_turns(self, name: str, calls: Sequence[Sampled], stop: float) -> None:
        """Time the calls that have not failed, in turns, until ``stop``."""
        in_turns(calls, self.effort, stop, name, self.progress)

    def normal(self, *shape: int) -> np.ndarray:
        """Fresh normal float32 numbers."""
        return self.rng.standard_normal(shape, np.float32)
