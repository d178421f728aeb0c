"""The machine's own peaks, measured: what no kernel can exceed, and so what each is a share of.

The peaks of arithmetic come from chains of multiply-adds in registers, those of memory from streaming over
arrays far larger than the caches. A peak is the best of all its measurements: whatever disturbs one makes
it slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from minigrad.devices import Device
from minigrad.kernels import cpu
from minigrad.kernels.launch import CudaKernel

__all__ = ["CARD_SOURCE", "Peaks"]

STREAM_BYTES = 256 << 20
CARD_STREAM_BYTES = 1 << 30
BURST = 0.02  # seconds of one measurement of arithmetic

CARD_SOURCE = r"""
// Eight chains of multiply-adds in each thread, so that none waits for its own last result.
__global__ void multiply_adds(float* out, int steps) {
    float chain[8];
    for (int c = 0; c < 8; c++) chain[c] = 1.0f + 0.01f * c + 0.001f * threadIdx.x;
    for (int step = 0; step < steps; step++)
        for (int c = 0; c < 8; c++) chain[c] = chain[c] * 0.999f + 0.001f;
    float sum = 0;
    for (int c = 0; c < 8; c++) sum += chain[c];
    out[blockIdx.x * (long long)blockDim.x + threadIdx.x] = sum;
}
"""
CARD_CHAINS, CARD_THREADS = 8, 256


class Peaks:
    """The best rates seen so far, in operations or bytes per second.

    ``peaks.best[device, threads, "compute" or "memory"]``, with ``str(device)`` and, for a card, None for
    the threads. ``peaks.failures[device, bound]`` says why one could not be measured.
    """

    def __init__(self, devices: list[Device], thread_counts: list[int]):
        self.best: dict[tuple[str, int | None, str], float] = {}
        self.failures: dict[tuple[str, str], str] = {}
        self._devices = devices
        self._thread_counts = thread_counts

    def get(self, device: str, threads: int | None, bound: str) -> float | None:
        """The peak, or None where none was measured (the simulator has none)."""
        return self.best.get((device, threads, bound))

    def sample(self, bound: str, repeats: int = 3) -> None:
        """Measure the peaks of ``"compute"`` or ``"memory"``, and keep the better of the old and the new."""
        for device in self._devices:
            if device.type == "sim":
                continue
            for threads in self._thread_counts if device.type == "cpu" else [None]:
                key = (str(device), threads, bound)
                try:
                    measured = max(self._rates(device, threads, bound, repeats))
                except Exception as error:  # a full card, say: the rungs may still be timed
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    self.failures[str(device), bound] = reason
                    continue
                # What one thread can do, several can leave to one.
                alone = self.best.get((str(device), 1, bound), 0.0)
                self.best[key] = max(self.best.get(key, 0.0), measured, alone)

    def release(self) -> None:
        """Free the long arrays."""
        self.__dict__.pop("_stream", None)

    def _rates(self, device: Device, threads: int | None, bound: str, repeats: int) -> list[float]:
        if device.type == "cuda":
            measure = card_arithmetic if bound == "compute" else card_memory
            return measure(device, repeats)
        assert threads is not None
        if bound == "compute":
            return [rate for level in cpu.available_levels() for rate in arithmetic(level, threads, repeats)]
        return memory(self._stream, threads, repeats)

    @cached_property
    def _stream(self) -> np.ndarray:
        return np.ones(STREAM_BYTES // 4, np.float32)  # written once, so that all pages are there


def arithmetic(level: str, threads: int, repeats: int) -> list[float]:
    """Operations per second of float32 multiply-adds with the vectors of an instruction-set level."""
    multiply_adds = cpu.kernel_module("peak", level).multiply_adds
    steps = 100_000
    seconds, (operations, _) = _timed(multiply_adds, steps, threads)
    steps = max(1, int(steps * BURST / seconds))
    rates = []
    for _ in range(repeats):
        seconds, (operations, _) = _timed(multiply_adds, steps, threads)
        rates.append(operations / seconds)
    return rates


def memory(stream: np.ndarray, threads: int, repeats: int) -> list[float]:
    """Bytes per second read from ``stream``, and moved by the triad (out = a + 3 b) between its thirds."""
    third = len(stream) // 3
    thirds = [stream[i * third : (i + 1) * third] for i in range(3)]
    rates = []
    for _ in range(repeats):
        rates.append(stream.nbytes / _timed(cpu.peak.read, stream, threads)[0])
        rates.append(3 * thirds[0].nbytes / _timed(cpu.peak.triad, *thirds, threads)[0])
    return rates


def card_arithmetic(device: Device, repeats: int, steps: int = 4096, blocks: int = 8192) -> list[float]:
    """Operations per second of float32 multiply-adds on a card."""
    kernel = CudaKernel(CARD_SOURCE, "multiply_adds")
    with device.active():
        out = device.xp.empty(blocks * CARD_THREADS, np.float32)

        def run() -> None:
            kernel.launch(blocks, CARD_THREADS, (out, steps))
            device.synchronize()

        run()
        operations = 2.0 * CARD_CHAINS * steps * out.size
        return [operations / _timed(run)[0] for _ in range(repeats)]


def card_memory(device: Device, repeats: int) -> list[float]:
    """Bytes per second that a card reads and writes when it copies a long array."""
    with device.active():
        source = device.xp.ones(CARD_STREAM_BYTES // 4, np.float32)
        target = device.xp.empty_like(source)

        def run() -> None:
            target[...] = source
            device.synchronize()

        run()
        return [2.0 * source.nbytes / _timed(run)[0] for _ in range(repeats)]


def _timed(function: Callable, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result
