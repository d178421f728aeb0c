"""The record of a card, ``gpu.json``, as a page: what ``gpu_vs_torch.py`` measured, and which tests passed.

python benchmarks/gpu_table.py benchmarks/results/NAME.json > benchmarks/results/NAME.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def page(record: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    versions, benchmark = record["versions"], record["benchmark"]
    cupy = versions.get("cupy-cuda13x") or versions.get("cupy-cuda12x")
    yield "# minigrad and PyTorch on a card"
    yield ""
    yield (
        f"{record['card']}; CuPy {cupy}, PyTorch {versions.get('torch')}, commit {record['commit']}, "
        f"{record['date'][:10]}. Strict float32 unless a row says otherwise."
    )
    yield ""
    yield from tests(record["stages"])
    if not benchmark:
        return
    yield from rates(benchmark)
    rows = benchmark["rows"]
    marks: dict[str, str] = {}
    for row in rows:
        if row.get("commit"):
            marks.setdefault(row["commit"], f"({len(marks) + 2})")
    for commit, mark in marks.items():
        yield f"{mark}: measured later, on the same kind of card, with commit {commit}."
        yield ""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if ": " in row["name"]:
            groups.setdefault(row["name"].partition(": ")[0], []).append(row)
    yield from means(groups)
    for group, found in groups.items():
        yield from table(group, found, marks)
    yield from table("ops and rungs", [row for row in rows if ": " not in row["name"]], marks)


def tests(stages: list[Row]) -> Iterator[str]:
    """What each stage of the run came to."""
    yield "| stage | seconds | came to |"
    yield "|---|---:|---|"
    for stage in stages:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(stage.get("tests", {}).items()))
        counts = ", ".join(filter(None, (counts, *map(time_to, stage.get("training", {}).items()))))
        status = {0: "all well", 124: "its time was over"}.get(stage["status"], str(stage["status"]))
        yield f"| {stage['name']} | {stage['seconds']} | {', '.join(filter(None, (status, counts)))} |"
    yield ""


def time_to(trained: tuple[str, Row]) -> str:
    """How long an example took to the test accuracy that is wanted of it."""
    name, found = trained
    if found["seconds"] is None:
        return f"{name} {found['best']} % at best in {found['all']} epochs, not {found['wanted']:g} %"
    return f"{name} {found['wanted']:g} % in {found['seconds']} s, {found['epochs']} epochs"


def rates(benchmark: dict[str, Any]) -> Iterator[str]:
    """The card's own rates, and what a launch costs."""
    yield "| the card itself | |"
    yield "|---|---:|"
    for name, rate in benchmark["ceilings"].items():
        scale, unit = (1e9, "GB/s") if name == "copy" else (1e12, "TFLOP/s")
        yield f"| {name} | {rate / scale:.4g} {unit} |"
    for name, microseconds in benchmark["launch_microseconds"].items():
        yield f"| {name}, one after another | {microseconds:.1f} us |"
    yield ""


def means(groups: dict[str, list[Row]]) -> Iterator[str]:
    """The geometric means of each group's ratios."""
    timed = {name: [row for row in rows if "ratio" in row] for name, rows in groups.items()}
    timed = {name: rows for name, rows in timed.items() if rows}
    if not timed:
        return
    timed["**all**"] = [row for rows in timed.values() for row in rows]
    yield "| geometric mean of PyTorch's time over minigrad's | rows | as users have it | of the card alone |"
    yield "|---|---:|---:|---:|"
    for name, rows in timed.items():
        ratios = ([row[key] for row in rows if key in row] for key in ("ratio", "card_ratio"))
        cells = [f"{statistics.geometric_mean(found):.2f}" if found else "" for found in ratios]
        yield f"| {name} | {len(rows)} | {' | '.join(cells)} |"
    yield ""


def table(title: str, rows: list[Row], marks: dict[str, str]) -> Iterator[str]:
    """One row each, with the times as users have them and those of the card alone, of which the shares are.

    A share is that of the ceiling, by operations or by bytes, whichever takes longer. ``marks`` are those of
    commits.
    """
    if not rows:
        return
    columns = ("minigrad, us", "PyTorch, us", "ratio", "card alone, us", "PyTorch, us", "ratio")
    columns = ("row", *columns, "share", "PyTorch's", "bound by")
    yield f"## {title}"
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 2)}---|"
    for row in rows:
        mark = marks.get(row.get("commit", ""))
        name = " ".join(filter(None, (row["name"].removeprefix(f"{title}: "), row["size"], mark)))
        if "times" not in row:
            yield f"| {name} | {row.get('failure') or row.get('skipped')} {'| ' * (len(columns) - 2)}|"
            continue
        cells = []
        for times, ratio in (("times", "ratio"), ("card_times", "card_ratio")):
            for side in ("minigrad", "torch"):
                median = row.get(times, {}).get(side, {}).get("median")
                cells.append(f"{median * 1e6:.1f}" if median else "")
            cells.append(f"{row[ratio]:.2f}" if ratio in row else "")
        cells += [f"{row[key]:.0%}" if key in row else "" for key in ("share", "torch_share")]
        cells.append(row.get("bound", ""))
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(page(json.loads(Path(sys.argv[1]).read_text()))))
