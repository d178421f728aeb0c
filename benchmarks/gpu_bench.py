"""How ``gpu_vs_torch.py`` times and compares: both libraries in turns, by the card's own clock."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg

LONGEST_SAMPLE = 0.05  # seconds; a call slower than this is timed once or twice

# By the format of a row: the matrix rate that is its ceiling.
RATES = {
    "float32": "matrix",
    "tf32": "matrix_tf32",
    **dict.fromkeys(("float16", "bfloat16", "autocast"), "matrix_bf16"),
}


class Bench:
    """The device, PyTorch if it is there, and the way of timing on both."""

    def __init__(self, device: str, quick: bool, seconds: float):
        self.device = mg.device(device)
        self.quick = quick
        self.on_card = self.device.type == "cuda"
        self.xp = self.device.xp
        self.stop = time.monotonic() + seconds
        self.samples, self.sample_seconds = (2, 0.0) if quick else (5, 0.003)
        self.rng = self.xp.random.default_rng(0)
        self.rates: dict[str, float] = {}
        self.torch = self._strict_torch()
        self.cache_bytes = self._properties()["l2CacheSize"] if self.on_card else 0

    def _strict_torch(self) -> Any:
        if not importlib.util.find_spec("torch"):
            return None
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms in the warm-up: a fair opponent
        torch.set_num_threads(1)
        return torch if torch.cuda.is_available() or not self.on_card else None

    def _properties(self) -> dict[str, Any]:
        return self.xp.cuda.runtime.getDeviceProperties(self.device.index)

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

    def measure(self, run: Callable[[], Any], calls: int) -> float:
        """Seconds per call of ``run``, over ``calls`` calls: by events on a card, by the clock elsewhere."""
        if not self.on_card:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(start, end) / 1e3 / calls

    def alternate(self, runs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        """For each of ``runs`` the median, the least and the largest seconds per call, taken in turns."""
        calls, times = {}, {name: [] for name in runs}
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
        return {
            name: {"median": statistics.median(t), "min": min(t), "max": max(t), "samples": len(t)}
            for name, t in times.items()
        }

    def one(self, run: Callable[[], Any]) -> float:
        """The median seconds of a call of ``run``."""
        return self.alternate({"it": run})["it"]["median"]


def finish(bench: Bench, result: dict[str, Any], times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Add to ``result`` the times, their ratio, the floor, and the share of the ceiling."""
    result["times"] = times
    rate = RATES[result.get("format", "float32")]
    compute = result["operations"] / bench.rates.get(rate, bench.rates["matrix"])
    memory = result["bytes"] / bench.rates["copy"]
    result["bound"], result["floor"] = ("matrix", compute) if compute > memory else ("copy", memory)
    result["share"] = result["floor"] / times["minigrad"]["median"]
    if "torch" in times:
        result["torch_share"] = result["floor"] / times["torch"]["median"]
        result["ratio"] = times["torch"]["median"] / times["minigrad"]["median"]
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
