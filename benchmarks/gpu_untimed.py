"""What no card has timed yet, as a page: by the records in ``benchmarks/results``, of cards of any kind.

    python benchmarks/gpu_untimed.py > benchmarks/results/not-timed.md

No card is needed. It counts the rows of ``gpu_vs_torch.py`` without a time of the card alone; accuracies
whose time ``gpu.sh``'s stage ``training`` has not recorded; and what ``docs/`` marks with a dagger.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_bench import Bench
from gpu_record import WANTED
from gpu_vs_torch import label, place, rows

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "docs" / "how-the-cuda-kernels-work.md"
RESULTS = ROOT / "benchmarks" / "results"
TIMED = re.compile(r"^(.{61}) +[\d.]+ +[\d.-]+ +[\d.-]+ +[\d.]+ ", re.MULTILINE)  # a line of gpu_vs_torch.py


def page() -> Iterator[str]:
    """The lines of the page."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    records = [record for record in records if isinstance(record, dict) and record.get("benchmark")]
    lines = [found for path in RESULTS.glob("*.txt") for found in TIMED.findall(path.read_text())]
    yield "# Not timed on a card yet"
    yield ""
    yield "Written by `benchmarks/gpu_untimed.py`, from the records beside this page."
    yield ""
    yield from training(records)
    bench = Bench("sim", quick=False, seconds=0, alone=True)
    all_rows = [(name, size) for name, size, _ in rows(bench, "")]
    yield from untimed_rows(all_rows, timed(all_rows, records, lines))
    yield from daggers()


def training(records: list[dict[str, Any]]) -> Iterator[str]:
    """The accuracies that no record has a time for."""
    stages = [stage for record in records for stage in record["stages"]]
    reached = {
        name for stage in stages for name, found in stage.get("training", {}).items() if found["seconds"]
    }
    yield "## Training"
    yield ""
    for name, percent in WANTED.items():
        if name not in reached:
            yield f"- {name}, captured, to {percent:g} % of the test images (`gpu.sh`, stage `training`)"
    yield ""


Place = tuple[str, str]  # a row's name and size


def timed(all_rows: list[Place], records: list[dict[str, Any]], lines: list[str]) -> set[Place]:
    """The rows that a record has a time for, or a printed line, cut short as it may be, of one row alone."""
    found = {place(row) for record in records for row in record["benchmark"]["rows"] if "card_times" in row}
    labels = Counter(label(*row) for row in all_rows)
    printed = {line.rstrip() for line in lines}
    return found | {row for row in all_rows if label(*row) in printed and labels[label(*row)] == 1}


def untimed_rows(all_rows: list[Place], timed: set[Place]) -> Iterator[str]:
    """The rows, by the group or the part of the name before a comma."""
    groups: dict[str, list[Place]] = {}
    for name, size in all_rows:
        ladder = re.split(r",| bfloat16| float16| tf32| float32", name)[0]
        group = f"{name.partition(': ')[0]}, as on the processor" if ": " in name else ladder
        groups.setdefault(group, []).append((name, size))
    missing = {group: [row for row in of if row not in timed] for group, of in groups.items()}
    yield f"## Rows without a time of the card alone: {sum(map(len, missing.values()))} of {len(all_rows)}"
    yield ""
    for group, names in missing.items():
        if names:
            yield f"- **{group}**, {len(names)} of {len(groups[group])}"
    yield ""


def daggers() -> Iterator[str]:
    """The lines that docs mark."""
    lines = [line.strip(" -") for line in KERNELS.read_text().splitlines()]
    marked = [line for line in lines if "†" in line and "**†**" not in line]
    yield f"## Lines of docs/{KERNELS.name} with a †: {len(marked)}"
    yield ""
    for line in marked:
        yield f"- {line}"


if __name__ == "__main__":
    print("\n".join(page()))
