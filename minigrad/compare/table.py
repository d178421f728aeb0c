"""The comparison as text for a terminal, in plain ASCII."""

from __future__ import annotations

import textwrap

from minigrad.compare.machine import card_name
from minigrad.compare.records import Comparison, Record

__all__ = ["count", "heading", "per_second", "render", "seconds", "share", "significant", "times"]

NARROWEST = 30  # columns for the sentence on what a rung adds; with fewer it gets lines of its own
BUSY = 0.3  # of the cores: with more load than this, other programs disturb the times
COLUMNS = ("rung", "threads", "time", "spread", "{unit}", "of peak", "step")
WIDTHS = (14, 7, 8, 8, 8, 8, 7)


def render(comparison: Comparison, width: int = 100) -> str:
    """The tables of all ladders, one for each kind of device."""
    parts = [heading(comparison)]
    for name in comparison.ladders:
        records = comparison.ladder(name)
        for device in dict.fromkeys(record.device for record in records):
            parts.append(_ladder(name, device, [r for r in records if r.device == device], width))
    parts += [_wrapped(f"Note: {note}", width) for note in comparison.notes]
    if comparison.no_gpu:
        parts.append(_wrapped(no_gpu(comparison), width))
    if comparison.interrupted:
        parts.append("Interrupted: this is what was measured until then.")
    return "\n\n".join(parts)


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
        lines.append(f"measured peak of {_where(device)}: {measured}")
    load, cores = comparison.machine["load"], comparison.machine["cores"]
    if load is not None and load > BUSY * cores:
        lines.append(
            f"The machine was busy when this began (load {load:.1f} on {count(cores, 'core')}): "
            "times are too long, and spread."
        )
    return "\n".join(lines)


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


def _where(device: str) -> str:
    return f"{device} ({card_name(device)})" if device.startswith("cuda") else device


def _ladder(name: str, device: str, records: list[Record], width: int) -> str:
    measured = [r for r in records if r.seconds is not None]
    main = max(measured or records, key=lambda r: r.operations)
    unit = main.unit
    work = f"{significant(main.operations / 1e9)} GFLOP" if main.bound == "compute" else _bytes(main.bytes)
    title = f"{name} on {_where(device)}: {main.size}, float32, {work} a call"
    lines = [title, "-" * min(len(title), width)]
    if device == "sim":
        lines.append(
            _wrapped(
                "The simulator runs the kernels thread by thread to check them: its times say nothing "
                "about a card.",
                width,
            )
        )
    columns = [column.format(unit=unit) for column in COLUMNS]
    if device == "sim":
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
            f"+-{share(record.spread)}",
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


# ---- numbers ----------------------------------------------------------------------------------------------


def significant(value: float) -> str:
    """Three significant digits, and all of a large number: 0.0123, 4.56, 78.9, 12345."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A time with its unit: 1.23 s, 45.6 ms, 7.89 us."""
    if value is None:
        return ""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{significant(value / 1e-9)} ns"


def share(value: float | None) -> str:
    """A share as a percentage of two digits or so: 92 %, 3.4 %, 0.02 %."""
    if value is None:
        return ""
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def times(value: float | None) -> str:
    """A factor: x1.9, x86."""
    return "" if value is None else f"x{value:.0f}" if value >= 9.95 else f"x{value:.2g}"


def per_second(rate: float, unit: str) -> str:
    """A rate with a prefix: 117 GFLOP/s, 4.3 TB/s."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= size:
            return f"{significant(rate / size)} {prefix}{unit}"
    return f"{significant(rate / 1e3)} k{unit}"


def count(number: int | None, noun: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _bytes(number: int) -> str:
    return f"{significant(number / 1e6)} MB"
