"""Make the recorded run that ships with minigrad from what was measured on an H200 with ``gpu.sh``.

    python benchmarks/record.py            # writes minigrad/compare/recorded/nvidia-h200-2026-11-27.json

Every figure is a row of ``results/2026-11-27-h200.json``; or, for the chapter of sizes, of that of the day
before, which has more of them; or of the log of a training run beside it. What was not measured there is not
here. On a machine with a card ``minigrad compare --record`` writes such a file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from minigrad.compare.chapters import CHAPTERS, begin
from minigrad.compare.chapters.machine import PEAKS, card_facts
from minigrad.compare.chapters.roofline import place
from minigrad.compare.comparison import Comparison
from minigrad.compare.problems import LADDERS, Conv2d, Matmul, MaxPool2d, Problem
from minigrad.compare.records import Record, with_steps
from minigrad.compare.rows import BatchPoint, Fact, PrecisionPoint, SizePoint, StepTime, TrainingPoint
from minigrad.compare.rungs import summary
from minigrad.dispatch import list_kernels

RESULTS = Path(__file__).parent / "results"
SOURCE, LOG = "2026-11-27-h200.json", "2026-11-26-h200-train-mnist.txt"
SIZES = "2026-11-26-h200.json"
TARGET = Path(__file__).parents[1] / "minigrad/compare/recorded/nvidia-h200-2026-11-27.json"

CARD = "cuda:0"
LIBRARY = "PyTorch 2.11, which calls {}, in float32."
TESTED = {"float16": "a @ b.T", "bfloat16": "a @ b.T", "tf32": "a @ b.T"}


def rows_of(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows that were measured, by name and size."""
    return {(row["name"], row["size"]): row for row in found["rows"] if "times" in row}


def timing(row: dict[str, Any], library: str = "minigrad") -> dict[str, Any]:
    """The fields of a timed row. The quartiles were not kept."""
    times = row["times"][library]
    return {
        "device": CARD,
        "seconds": times["median"],
        "seconds_min": times["min"],
        "seconds_max": times["max"],
        "calls": times["samples"],
    }


# ---- the ladder -------------------------------------------------------------------------------------------

CLIMBED: list[tuple[str, Problem, str, str, str]] = [
    ("matmul", Matmul(4096, 4096, 4096), "matmul, {}", "4096x4096x4096", "cuBLAS"),
    ("conv2d", Conv2d(64, 64, 56, 56, 64), "conv2d forward, {}", "64x64x56x56 -> 64, 3x3", "cuDNN"),
    ("pooling", MaxPool2d(64, 64, 112, 112), "max pooling, {}", "64x64x112x112", "its own kernel"),
]


def ladder(comparison: Comparison, rows: dict) -> None:
    for name, problem, title, size, library in CLIMBED:
        records = []
        for kernel in list_kernels(problem.op, "cuda"):
            row = rows.get((title.format(kernel.name), size))
            if row:
                records.append(record(comparison, name, problem, kernel.name, summary(kernel), timing(row)))
        theirs = next(row for (found, at), row in rows.items() if at == size and found.startswith(title[:-4]))
        adds = LIBRARY.format(library)
        records.append(record(comparison, name, problem, "pytorch", adds, timing(theirs, "torch")))
        comparison += with_steps(records)


def record(
    comparison: Comparison, ladder: str, problem: Problem, rung: str, adds: str, times: dict[str, Any]
) -> Record:
    rate = problem.work / times["seconds"]
    peak = comparison.peak(CARD, None, problem.bound)
    return Record(
        ladder=ladder,
        op=problem.op,
        rung=rung,
        kind="library" if rung == "pytorch" else "kernel",
        adds=adds,
        threads=None,
        size=problem.size,
        dtype="float32",
        correct=True,
        failure=None,
        refused=False,
        error=None,
        spread=None,
        operations=problem.operations,
        bytes=problem.bytes,
        bound=problem.bound,
        rate=rate,
        unit=problem.unit,
        peak_share=rate / peak if peak else None,
        step=None,
        transfer_seconds=None,
        samples=(),
        **times,
    )


# ---- the other chapters -----------------------------------------------------------------------------------


def machine(found: dict[str, Any]) -> list[Fact]:
    card, rates = found["card"], found["ceilings"]
    facts = card_facts(
        card["name"],
        card["compute_capability"],
        card["multiprocessors"],
        card["memory_bytes"],
        card["l2_bytes"],
    )
    facts.append((PEAKS["compute"][0], rates["multiply_adds"], "FLOP/s"))
    facts.append((PEAKS["memory"][0], rates["copy"], "B/s"))
    for name, what in (("matrix", "float32"), ("matrix_tf32", "TF32"), ("matrix_bf16", "bfloat16")):
        facts.append((f"matrix product by cuBLAS, {what}", rates[name], "FLOP/s"))
    return [Fact(device=CARD, what=what, value=value, unit=unit) for what, value, unit in facts]


def sizes(rows: dict) -> list[SizePoint]:
    points = []
    for n in (32, 64, 128, 256, 512, 1024, 2048):
        points.append(size_point("matmul", n, Matmul(n, n, n), rows[f"matmul: {n}x{n}x{n}", ""]))
    for n in (4096, 8192):
        points.append(size_point("matmul", n, Matmul(n, n, n), rows["matmul, warp_tile", f"{n}x{n}x{n}"]))
    add = CHAPTERS["size"].Add
    points.append(size_point("add", 1 << 20, add(1 << 20), rows["elementwise: x + y, 1M, forward", ""]))
    points.append(size_point("add", 65536 * 1024, add(65536 * 1024), rows["x + y", "65536x1024"]))
    return points


def size_point(op: str, n: int, problem: Problem, row: dict[str, Any]) -> SizePoint:
    times = timing(row)
    return SizePoint(
        op=op,
        n=n,
        size=problem.size,
        operations=problem.operations,
        bytes=problem.bytes,
        unit=problem.unit,
        rate=problem.work / times["seconds"],
        **times,
    )


LAUNCHES = {
    "CudaKernel.launch": "launch of a kernel, one after another",
    "minigrad x + x": "call of add on 4x4, one after another",
    "minigrad 4x4 @ 4x4": "call of matmul on 4x4, one after another",
}


def costs(found: dict[str, Any]) -> list[Fact]:
    taken = found["launch_microseconds"]
    return [
        Fact(device=CARD, what=what, value=1e-6 * taken[name], unit="s") for name, what in LAUNCHES.items()
    ]


NETWORKS = {
    "MLP 784-256-128-10": ("MLP 784-256-128-10, batch 128", 128),
    "LeNet": ("LeNet, batch 128", 128),
    "MNIST CNN": ("MNIST CNN, batch 128", 128),
    "ResNet-20": ("ResNet-20, batch 128", 128),
    "small GPT, 64 characters": ("small GPT, 32 x 64 characters", 32),
}
MODES = ("training step", "captured training step")


def steps(rows: dict, row_type: type, networks: list[str]) -> list[Any]:
    found = []
    for network in networks:
        title, batch = NETWORKS[network]
        for mode in MODES:
            times = timing(rows[f"{mode}: {title}", ""])
            rate = batch / times["seconds"]
            found.append(row_type(network=network, batch=batch, mode=mode, samples_per_second=rate, **times))
    return found


EPOCH = re.compile(
    r"epoch (\d+)/\d+ +train: loss ([\d.]+) .* test: loss ([\d.]+) accuracy ([\d.]+)% +([\d.]+) s"
)


def training() -> list[TrainingPoint]:
    points = []
    for epoch, train_loss, test_loss, accuracy, seconds in EPOCH.findall((RESULTS / LOG).read_text()):
        points.append(
            TrainingPoint(
                device=CARD,
                dataset="MNIST",
                threads=None,
                step=int(epoch) * 469,  # batches of 128 in an epoch of 60,000 images
                samples=int(epoch) * 60_000,
                seconds=float(seconds),
                train_loss=float(train_loss),
                test_loss=float(test_loss),
                test_accuracy=float(accuracy) / 100,
                test_samples=10_000,
            )
        )
    return points


def precisions(rows: dict) -> list[PrecisionPoint]:
    points = []
    for n in (4096, 8192):
        problem = Matmul(n, n, n)
        found = {("float32", "warp_tile"): rows["matmul, warp_tile", problem.size]}
        for format, call in TESTED.items():
            found[format, "wgmma"] = rows[f"matmul {format}, wgmma", f"{problem.size}, {call}"]
        for (format, kernel), row in found.items():
            times = timing(row)
            points.append(
                PrecisionPoint(
                    op="matmul",
                    size=problem.size,
                    format=format,
                    kernel=kernel,
                    operations=problem.operations,
                    rate=problem.operations / times["seconds"],
                    error=row["error"],
                    **times,
                )
            )
    return points


NOTES = {
    "ladder": ["Recorded: pytorch stands for PyTorch's own kernels on the same card, timed in turns."],
    "size": [
        "Recorded on 2026-11-26, on another card of this kind: calls one after another; at 4096 and beyond "
        "the kernel warp_tile was selected by name, of the addition of 64 Mi numbers the kernel vectorized. "
        "Copies to the card and back were not recorded."
    ],
    "batch": ["Recorded: one batch size, 128."],
    "network": [
        "Recorded: the training run is benchmarks/results/2026-11-26-h200-train-mnist.txt, with dropout and "
        "a falling learning rate; its seconds include the test after each epoch and, in the first, the "
        "compilation of the kernels. The layers were not recorded."
    ],
    "precision": [
        "Recorded: of a @ b.T, by wgmma, where the factors have 16 bits or TF32; float64 was not recorded."
    ],
}


def make() -> dict[str, Any]:
    """The recorded run as plain values."""
    found, of_sizes = (json.loads((RESULTS / name).read_text())["benchmark"] for name in (SOURCE, SIZES))
    rows = rows_of(found)
    comparison = Comparison(found["machine"], found["date"])
    rates = found["ceilings"]
    comparison.peaks = [
        {"device": CARD, "threads": None, "bound": "compute", "rate": rates["multiply_adds"]},
        {"device": CARD, "threads": None, "bound": "memory", "rate": rates["copy"]},
    ]
    ladder(comparison, rows)
    assert list(LADDERS) == comparison.ladders
    roofs, points = place(comparison, comparison.peak)
    tables: dict[str, dict[str, list[Any]]] = {
        "machine": {"facts": machine(found)},
        "ladder": {"records": list(comparison)},
        "roofline": {"points": points, "roofs": roofs},
        "size": {"points": sizes(rows_of(of_sizes)), "costs": costs(of_sizes)},
        "batch": {"points": steps(rows, BatchPoint, ["MNIST CNN"])},
        "network": {"training": training(), "steps": steps(rows, StepTime, list(NETWORKS))},
        "precision": {"points": precisions(rows)},
    }
    for name, filled in tables.items():
        chapter = comparison.chapters[name] = begin(name)
        chapter.tables |= filled
        chapter.notes = NOTES.get(name, [])
    origin = {
        "card": found["card"]["name"],
        "date": found["date"],
        "minigrad": found["machine"]["minigrad"],
        "commit": found["commit"],
        "processor": found["machine"]["processor"],
        "driver": found["card"]["driver"],
        "source": f"benchmarks/gpu.sh: {SOURCE}, {SIZES}, {LOG}; by benchmarks/record.py",
    }
    return {**comparison.to_dict(), "recording": origin}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(make(), indent=1) + "\n")
    print(f"written: {TARGET}")
