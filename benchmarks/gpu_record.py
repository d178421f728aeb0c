"""The record of a card, ``gpu.json``: what every record must say, and what the stages of ``gpu.sh`` came to.

    python benchmarks/gpu_record.py STAGES OUT  # as gpu.sh calls it

STAGES is the folder with the table of stages and what they printed; OUT has ``benchmark.json``, if rows were
measured, and gets ``gpu.json``. Of a run that goes on in another one's folder, the stages that it did not run
are kept as that one told them.
"""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "cupy-cuda12x", "cupy-cuda13x", "torch", "cython", "setuptools", "pytest")

# By how the line that an example starts with begins: the share of test images that its time is given for.
WANTED = {"mnist": 99.0, "CIFAR-10": 94.0}
STARTS = re.compile(r"^(\S+): \d+ training and \d+ test images", re.MULTILINE)
EPOCH = re.compile(r"^epoch (\d+)/\d+ .*\baccuracy ([\d.]+)% +([\d.]+) s$", re.MULTILINE)


def training(text: str) -> dict[str, dict[str, Any]]:
    """What the lines of the examples' epochs tell, by the data set.

    ``epochs`` and ``seconds`` until the test accuracy is at least ``wanted`` percent, None if it never was;
    the ``best`` accuracy, and the epochs in ``all``. The seconds are the examples' own: they count from the
    first epoch's start, so that they contain the tests, and in the first epoch the compilation of kernels.
    """
    found = {}
    _, *parts = STARTS.split(text)  # a name, what follows it, another name, ...
    for name, lines in zip(parts[::2], parts[1::2], strict=True):
        epochs = [
            (int(epoch), float(accuracy), float(time)) for epoch, accuracy, time in EPOCH.findall(lines)
        ]
        wanted = WANTED.get(name)
        if wanted is None or not epochs:
            continue
        first = next((epoch for epoch in epochs if epoch[1] >= wanted), None)
        found[name] = {
            "wanted": wanted,
            "epochs": first and first[0],
            "seconds": first and first[2],
            "best": max(accuracy for _, accuracy, _ in epochs),
            "all": len(epochs),
        }
    return found


def tests(text: str) -> dict[str, int]:
    """How many tests passed, failed, ...: from the lines that pytest writes as each test ends."""
    line = r"^(?:\[gw\d+\] \[ *\d+%\] |tests/.*::.* )(PASSED|FAILED|ERROR|SKIPPED)\b"
    return dict(collections.Counter(word.lower() for word in re.findall(line, text, re.MULTILINE)))


def stages(work: Path, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages of this run, from the table in ``work``; of those that it skipped, what was ``before``."""
    earlier, found = {stage["name"]: stage for stage in before}, []
    for line in (work / "stages").read_text().splitlines():
        name, status, seconds, limit = line.split("\t")
        if not status.isdecimal() and name in earlier:
            found.append(earlier[name])
            continue
        output = work / f"{name}.out"
        text = output.read_text(errors="replace") if output.exists() else ""
        stage = {"name": name, "status": int(status) if status.isdecimal() else status}
        stage |= {"seconds": int(seconds), "limit": int(limit)}
        told = {"training": training(text)} if name == "training" else {"tests": tests(text)}
        found.append(stage | {key: value for key, value in told.items() if value})
    names = {stage["name"] for stage in found}
    return found + [stage for name, stage in earlier.items() if name not in names]


def record(work: Path, out: Path) -> dict[str, Any]:
    """The whole record."""
    root = str(Path(__file__).resolve().parents[1])
    before = json.loads((out / "gpu.json").read_text()) if (out / "gpu.json").exists() else {}
    told_stages, benchmark = stages(work, before.get("stages", [])), out / "benchmark.json"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("MINIGRAD_COMMIT") or told("git", "-C", root, "rev-parse", "HEAD"),
        "card": told("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "nvcc": (told("nvcc", "--version") or "").split("\n")[-1] or None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "passed": all(stage["status"] == 0 or isinstance(stage["status"], str) for stage in told_stages),
        "stages": told_stages,
        "benchmark": json.loads(benchmark.read_text()) if benchmark.exists() else None,
    }


def told(*command: str) -> str | None:
    """What ``command`` prints, or None."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    work, out = map(Path, sys.argv[1:])
    (out / "gpu.json").write_text(json.dumps(record(work, out), indent=1) + "\n")
