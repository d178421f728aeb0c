"""How ``gpu_vs_torch.py`` times and compares: both libraries in turns, by the card's own clock."""

from __future__ import annotations

import importlib.util
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.kernels.cuda.guard import CONTEXT_LOST
from minigrad.kernels.launch import CudaKernel

LONGEST_SAMPLE = 0.05  # seconds; a call slower than this is timed once or twice
HANDED_OUT = 0.002  # seconds that the host may take to hand out a sample's calls: some 300 launches, of 1024
# that a card's queue holds

# By the format of a row: the matrix rate that is its ceiling.
RATES = {
    "float32": "matrix",
    "tf32": "matrix_tf32",
    **dict.fromkeys(("float16", "bfloat16", "autocast"), "matrix_bf16"),
}


HOLD = """
// Keeps the card busy for so long. `out` is never written.
__global__ void hold(float* out, long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
    if (nanoseconds < 0) out[0] = now;
}"""


class Bench:
    """The device, PyTorch if it is there, and the way of timing on both.

    One that is ``compiling`` times nothing: it calls what is ours once, so that its kernels are compiled. One
    that is ``alone`` leaves PyTorch out.
    """

    def __init__(
        self, device: str, quick: bool, seconds: float, compiling: bool = False, alone: bool = False
    ):
        self.device = mg.device(device)
        self.quick = quick
        self.on_card = self.device.type == "cuda"
        self.xp = self.device.xp
        self.stop = time.monotonic() + seconds
        self.samples, self.sample_seconds = (2, 0.0) if quick else (5, 0.003)
        self.seed("")
        self.rates: dict[str, float] = {}
        self.compiling = compiling
        self.torch = None if compiling or alone else self._strict_torch()
        self.cache_bytes = self._properties()["l2CacheSize"] if self.on_card and not compiling else 0
        self.hold = CudaKernel(HOLD, "hold")

    def _strict_torch(self) -> Any:
        if not importlib.util.find_spec("torch"):
            return None
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms in the warm-up: a fair opponent
        torch.set_num_threads(1)
        return torch if torch.cuda.is_available() or not self.on_card else None

    def has_lost_the_card(self) -> bool:
        """Whether the CUDA context of this process is lost, so that nothing more runs on the card."""
        if not self.on_card:
            return False
        runtime = self.xp.cuda.runtime
        try:
            runtime.deviceSynchronize()
        except runtime.CUDARuntimeError as error:
            return error.status in CONTEXT_LOST
        return False

    def _properties(self) -> dict[str, Any]:
        return self.xp.cuda.runtime.getDeviceProperties(self.device.index)

    def seed(self, name: str) -> None:
        """Start the random numbers that a row of this name gets."""
        self.rng = self.xp.random.default_rng(zlib.crc32(name.encode()))

    def normal(self, shape: tuple[int, ...]) -> Any:
        """Random numbers in an array of the device."""
        return self.rng.standard_normal(shape, dtype=np.float32)

    def to_torch(self, array: Any) -> Any:
        """The same memory as a tensor of PyTorch: on the simulator's side a CPU tensor."""
        where = f"cuda:{self.device.index}" if self.on_card else "cpu"
        return self.torch.as_tensor(array, device=where)

    def numpy(self, result: Any) -> np.ndarray:
        """A result of either library."""
        result = result.detach()
        return result.numpy() if isinstance(result, mg.Tensor) else result.cpu().numpy()

    def array(self, result: Any) -> Any:
        """A result of either library as an array of the device."""
        result = result.detach()
        return self.xp.asarray(result._array if isinstance(result, mg.Tensor) else result)

    def measure(self, run: Callable[[], Any], calls: int, hold: float = 0.0) -> float:
        """Seconds per call of ``run``, over ``calls`` calls: by events on a card, by the clock elsewhere.

        The card is busy for ``hold`` seconds before it starts the first of them.
        """
        if not self.on_card:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        if hold:
            self.hold.launch(1, 1, (self.xp.empty(1, np.float32), int(hold * 1e9)))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(start, end) / 1e3 / calls

    def alternate(self, runs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        """For each of ``runs`` the median, the least and the largest seconds per call, taken in turns.

        On the simulator, whose times say nothing about speed, of one call.
        """
        calls, times = {}, {name: [] for name in runs}
        if self.compiling or not self.on_card:
            return {name: summary([self.measure(run, 1)]) for name, run in runs.items()}
        for name, run in runs.items():
            self.measure(run, 1)  # load, compile, choose an algorithm
            once = self.measure(run, 1)  # fill the pool
            if once < LONGEST_SAMPLE and not self.quick:
                once = self.measure(run, 2)
            calls[name] = max(1, round(self.sample_seconds / max(once, 1e-7)))
            if once > LONGEST_SAMPLE:
                times[name].append(once)
        for _ in range(self.samples):
            for name, run in runs.items():
                if len(times[name]) < 2 or max(times[name]) < LONGEST_SAMPLE:
                    times[name].append(self.measure(run, calls[name]))
        return {name: summary(t) for name, t in times.items()}

    def alternate_queued(
        self, runs: dict[str, Callable[[], Any]], times: dict[str, dict[str, float]]
    ) -> dict[str, dict[str, float]]:
        """The same for calls that all wait in the card's queue before the first of them starts.

        These are the times of the card alone, without those of handing out the work. ``times`` are what
        ``alternate`` has found: where they are long, the card has not waited for the host.
        """
        if not self.on_card or self.compiling or max(t["median"] for t in times.values()) > HANDED_OUT:
            return times
        plans, queued = {}, {name: [] for name in runs}
        for name, run in runs.items():
            self.measure(run, 1)
            began = time.perf_counter()
            run()
            host = time.perf_counter() - began
            calls = max(1, int(HANDED_OUT / host))
            plans[name] = calls, 1.5 * calls * host
        for _ in range(self.samples):
            for name, run in runs.items():
                queued[name].append(self.measure(run, *plans[name]))
        return {name: summary(t) for name, t in queued.items()}

    def one(self, run: Callable[[], Any]) -> float:
        """The median seconds of a call of ``run``."""
        return self.alternate({"it": run})["it"]["median"]


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "samples": len(times)}


def finish(bench: Bench, result: dict[str, Any], runs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Add to ``result`` the times of ``runs``, as users have them and of the card alone, their ratios, the
    floor, and the share that it is of the card's times; no floor if the format's matrix rate is not known."""
    result["times"] = times = bench.alternate(runs)
    result["card_times"] = card = bench.alternate_queued(runs, times)
    rate = bench.rates.get(RATES[result.get("format", "float32")])
    if rate or not result["operations"]:
        compute = result["operations"] / rate if rate else 0.0
        memory = result["bytes"] / bench.rates["copy"]
        result["bound"], result["floor"] = ("matrix", compute) if compute > memory else ("copy", memory)
        result["share"] = result["floor"] / card["minigrad"]["median"]
        if "torch" in times:
            result["torch_share"] = result["floor"] / card["torch"]["median"]
    if "torch" in times:
        result["ratio"] = times["torch"]["median"] / times["minigrad"]["median"]
        result["card_ratio"] = card["torch"]["median"] / card["minigrad"]["median"]
    return result


def around(call: Callable[..., Any], sets: list[list[Any]]) -> Callable[[], Any]:
    """A function that calls ``call`` with the next set of inputs, around and around."""
    position = 0

    def run() -> Any:
        nonlocal position
        position = (position + 1) % len(sets)
        return call(*sets[position])

    return run


def relative_error(xp: Any, found: Any, exact: Any) -> float:
    """The norm of the difference over that of ``exact``; infinite if the shapes differ or NaN is there."""
    if found.shape != exact.shape:
        return float("inf")
    scale = float(xp.linalg.norm(exact.ravel())) or 1.0
    error = float(xp.linalg.norm((found - exact).ravel())) / scale
    return error if np.isfinite(error) else float("inf")
