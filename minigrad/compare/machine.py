"""What this machine is: processor, caches, cards, libraries."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad.devices import available_devices, device
from minigrad.dispatch import list_kernels
from minigrad.errors import DeviceError
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads

__all__ = ["blas", "caches", "card_name", "describe", "devices", "info", "processor", "threads_source"]

VECTORS = {
    "x86_64_v2": "SSE4.2, 128-bit vectors",
    "x86_64_v3": "AVX2 and FMA, 256-bit vectors",
    "x86_64_v4": "AVX-512, 512-bit vectors",
    "baseline": "the compiler's baseline",
}
"""What the instruction-set levels stand for."""


@cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """The data caches of the first core, ``{"L1": bytes, ...}``; empty if the system does not tell."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (folder / "type").read_text().strip()
            level = (folder / "level").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = int(size[:-1]) * 1024
    return found


def blas() -> str:
    """The BLAS library that NumPy was built with, and its version."""
    try:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-arg, index]
        return f"{found['name']} {found['version']}"
    except (KeyError, TypeError):
        return "an unknown BLAS"


def card_name(spec: str) -> str:
    """The name of the card behind the device ``spec``."""
    card = device(spec)
    name = card.xp.cuda.runtime.getDeviceProperties(card.index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def threads_source() -> str:
    """Where the number of threads at import came from (``set_num_threads`` may have changed it since)."""
    for variable in ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").strip():
            return f"from the environment variable {variable}"
    return "the processors that this process may use; MINIGRAD_NUM_THREADS sets another number"


def devices() -> list[dict[str, Any]]:
    """Every kind of device, with a name, or in one sentence why it is not available."""
    rows = []
    available = [str(d) for d in available_devices()]
    cards = [name for name in available if name.startswith("cuda")]
    for spec in ["cpu", *(cards or ["cuda"]), "sim"]:
        name = reason = ""
        try:
            device(spec)
        except DeviceError as error:
            reason = cuda.why_unavailable() if spec == "cuda" else str(error)
        else:
            name = {"cpu": processor(), "sim": _simulator()}.get(spec) or card_name(spec)
        rows.append({"device": spec, "available": not reason, "name": name, "reason": reason})
    return rows


def _simulator() -> str:
    from minigrad.kernels import sim

    return f"the CUDA kernels on the processor, compiled by {sim.compiler()}"


def describe() -> dict[str, Any]:
    """The machine and the software, as plain values for JSON."""
    return {
        "minigrad": minigrad.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas(),
        "cupy": _cupy_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "isa": cpu.isa,
        "isa_available": list(cpu.available_levels()),
        "vectors": VECTORS[cpu.isa],
        "threads": get_num_threads(),
        "devices": devices(),
    }


def _cupy_version() -> str | None:
    try:
        return cuda.cupy().__version__
    except ImportError:
        return None


def info() -> dict[str, Any]:
    """What ``minigrad info`` shows: the machine, and every op's kernels."""
    import minigrad.optim  # for the kernels of its steps
    from minigrad.compare.rungs import summary

    kernels: dict[str, list[dict[str, Any]]] = {}
    for kernel in list_kernels():
        kernels.setdefault(kernel.op, []).append(
            {
                "name": kernel.name,
                "devices": list(kernel.devices),
                "dtypes": [dtype.name for dtype in kernel.dtypes],
                "adds": summary(kernel),
            }
        )
    return {
        **describe(),
        "threads_source": threads_source(),
        "default_dtype": str(np.dtype(minigrad.get_default_dtype())),
        "kernels": kernels,
    }
