"""The comparison as text for a terminal, in plain ASCII."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import count, megabytes, per_second, seconds, share, significant, times
from minigrad.compare.records import Record

__all__ = ["heading", "render"]

NARROWEST = 30  # columns for the sentence on what a rung adds; with fewer it gets lines of its own
BUSY = 0.3  # of the cores: with more load than this, other programs disturb the times
COLUMNS = ("rung", "threads", "time", "spread", "{unit}", "of peak", "step")
WIDTHS = (14, 7, 8, 8, 8, 8, 7)


def render(comparison: Comparison, width: int = 100) -> str:
    """All chapters: their tables and findings. Of a whole run, the tables that say most."""
    whole = len(comparison.chapters) > 3
    parts = [heading(comparison)]
    for chapter in comparison.chapters.values():
        parts += _chapter(comparison, chapter, whole, width)
    if not comparison.chapters:  # a ladder alone, of an older file or of bench_op
        parts += _ladders(comparison, comparison, width)
    parts += [_wrapped(f"Note: {note}", width) for note in comparison.notes]
    if comparison.no_gpu:
        parts.append(_wrapped(no_gpu(comparison), width))
    if comparison.interrupted:
        parts.append("Interrupted: this is what was measured until then.")
    return "\n\n".join(parts)


def _chapter(comparison: Comparison, chapter: Chapter, whole: bool, width: int) -> list[str]:
    """A chapter's heading, its tables, its findings and its notes."""
    heading = f"{chapter.title}: {chapter.question}"
    parts = [f"{heading}\n{'=' * min(len(heading), width)}"]
    if chapter.name == "ladder":
        parts += _ladders(comparison, [*chapter.rows, *chapter.recorded_rows], width)
    else:
        parts += _tables(chapter, whole)
    sentences = [_wrapped(sentence, width, "* ") for sentence in chapter.findings]
    sentences += [_wrapped(f"Note: {note}", width) for note in chapter.notes]
    if sentences:
        parts.append("\n".join(sentences))
    return parts if len(parts) > 1 else []


def _tables(chapter: Chapter, whole: bool) -> list[str]:
    """A chapter's tables, what was measured here apart from what was recorded elsewhere."""
    from minigrad.compare.chapters import CHAPTERS

    module = CHAPTERS[chapter.name]
    parts = []
    for table, columns in module.COLUMNS.items():
        if whole and table not in module.SHORT:
            continue
        own, recorded = chapter.tables.get(table, []), chapter.recorded.get(table, [])
        if own:
            parts.append(_grid(columns, own))
        if recorded:
            parts.append(f"Recorded on {recorded[0].recorded}:\n{_grid(columns, recorded)}")
    return parts


def _grid(columns: Sequence[tuple[str, Callable[[Any], str]]], rows: Sequence[Any]) -> str:
    """Rows under their headings; text to the left, what begins with a number to the right. A column in which
    nothing stands is left out."""
    cells = [[heading, *(text(row) for row in rows)] for heading, text in columns]
    cells = [column for column in cells if any(column[1:])]
    lines = []
    widths = [max(map(len, column)) for column in cells]
    for line in zip(*cells, strict=True):
        padded = [
            cell.rjust(width) if _numeric(column[1:]) else cell.ljust(width)
            for cell, width, column in zip(line, widths, cells, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _numeric(column: Sequence[str]) -> bool:
    filled = [cell for cell in column if cell]
    return sum(cell[0].isdigit() or cell.startswith("+-") for cell in filled) > len(filled) / 2


def _ladders(comparison: Comparison, records: Sequence[Record], width: int) -> list[str]:
    """The tables of the ladders, one for each device, the recorded ones apart."""
    groups: dict[tuple[str, str | None, str], list[Record]] = {}
    for ladder in dict.fromkeys(record.ladder for record in records):
        for record in records:
            if record.ladder == ladder:
                groups.setdefault((ladder, record.recorded, record.device), []).append(record)
    parts = []
    for (ladder, label, device), rows in groups.items():
        where = f"a card, recorded on {label}" if label else _where(comparison, device)
        parts.append(_ladder(ladder, where, rows, width))
    return parts


def heading(comparison: Comparison) -> str:
    """The machine and its peaks."""
    machine = comparison.machine
    lines = [
        f"minigrad {machine['minigrad']} on {machine['processor']}, {count(machine['cores'], 'core')}, "
        f"{machine['vectors']}",
        f"Python {machine['python']}, NumPy {machine['numpy']} ({machine['blas']}), {comparison.date}",
    ]
    for device in dict.fromkeys(row["device"] for row in comparison.peaks):
        bounds = dict.fromkeys(row["bound"] for row in comparison.peaks if row["device"] == device)
        measured = ", ".join(_peaks(comparison, device, bound) for bound in bounds)
        lines.append(f"measured peak of {_where(comparison, device)}: {measured}")
    return "\n".join([*lines, *busy(comparison)])


def busy(comparison: Comparison) -> list[str]:
    """The sentence that says so, if other programs kept the machine busy."""
    load, cores = comparison.machine["load"], comparison.machine["cores"]
    if load is None or load <= BUSY * cores:
        return []
    return [
        f"The machine was busy when this began (load {load:.1f} on {count(cores, 'core')}): "
        "times will be too long, and will scatter."
    ]


def no_gpu(comparison: Comparison) -> str:
    """The line that says why there is no GPU, and what can be done without one."""
    return (
        f"No GPU: {comparison.no_gpu}. The CUDA kernels still run here, on the simulator: "
        "minigrad compare --device sim"
    )


def _peaks(comparison: Comparison, device: str, bound: str) -> str:
    rows = [r for r in comparison.peaks if r["device"] == device and r["bound"] == bound]
    unit, what = ("FLOP/s", "float32 multiply-adds") if bound == "compute" else ("B/s", "memory")
    rates = [
        per_second(row["rate"], unit)
        + (f" on {count(row['threads'], 'thread')}" if row["threads"] is not None else "")
        for row in rows
    ]
    return f"{what} " + " and ".join(rates)


def _where(comparison: Comparison, device: str) -> str:
    return f"{device} ({comparison.device_name(device)})" if device.startswith("cuda") else device


def _ladder(name: str, where: str, records: list[Record], width: int) -> str:
    measured = [r for r in records if r.seconds is not None]
    main = max(measured or records, key=lambda r: r.operations)
    unit = main.unit
    work = f"{significant(main.operations / 1e9)} GFLOP" if main.bound == "compute" else megabytes(main.bytes)
    title = f"{name} on {where}: {main.size}, float32, {work} a call"
    lines = [title, "-" * min(len(title), width)]
    simulated = records[0].device == "sim"
    if simulated:
        lines.append(
            _wrapped(
                "The simulator runs the kernels thread by thread to check them: its times say nothing "
                "about a card.",
                width,
            )
        )
    columns = [column.format(unit=unit) for column in COLUMNS]
    if simulated:
        columns = [f"sim {column}" if column == "time" else column for column in columns]
    lines.append(_row(columns) + "  what it adds")
    told: set[str] = set()
    for record in records:
        adds = "" if record.rung in told else record.adds
        told.add(record.rung)
        if record.size != main.size and record.size:
            adds = f"[{record.size}] {adds}"
        lines += _lines(record, adds, width)
    transfers = [r.transfer_seconds for r in measured if r.transfer_seconds is not None]
    if transfers:
        fastest = min(r.seconds for r in measured if r.seconds and r.size == main.size)
        lines.append(
            f"Not counted: copying the inputs to the card and the result back, {seconds(max(transfers))}, "
            f"{significant(max(transfers) / fastest)} times as long as the fastest rung takes."
        )
    return "\n".join(lines)


def _lines(record: Record, adds: str, width: int) -> list[str]:
    threads = "" if record.threads is None else str(record.threads)
    if record.failure is not None:
        return _wrapped(f"{record.rung}: not timed, {record.failure}", width, "  ! ").splitlines()
    numbers = _row(
        [
            record.rung,
            threads,
            seconds(record.seconds),
            "" if record.spread is None else f"+-{share(record.spread)}",
            significant(record.rate / 1e9) if record.rate else "",
            share(record.peak_share),
            times(record.step),
        ]
    )
    room = width - len(numbers) - 2
    if room < NARROWEST:
        return [numbers] + (_wrapped(adds, width, " " * 6).splitlines() if adds else [])
    wrapped = textwrap.wrap(adds, room) or [""]
    indent = " " * (len(numbers) + 2)
    return [f"{numbers}  {wrapped[0]}".rstrip(), *(indent + line for line in wrapped[1:])]


def _row(cells: list[str]) -> str:
    first, *rest = (
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join([first, *rest])


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=" " * len(indent))
