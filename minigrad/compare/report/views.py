"""The chapters as HTML: what stands between a chapter's question and its sentences.

A view takes the comparison and its chapter, and returns HTML, empty if there is nothing to show. Curves come
from ``figures``; what is a handful of quantities is a chart of bars, made of HTML alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

from minigrad.compare import picture
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import (
    count,
    megabytes,
    per_second,
    quantity,
    seconds,
    share,
    significant,
    times,
)
from minigrad.compare.records import Record
from minigrad.compare.report import figures
from minigrad.compare.report.bars import Bar, Group, chart, legend
from minigrad.compare.report.themed import pair

__all__ = ["NO_PICTURES", "PICTURES", "VIEWS", "sentences"]

View = Callable[[Comparison, Chapter], str]
Draw = Callable[[Chapter, bool], Any]

NO_PICTURES = 'The curves are drawn by matplotlib, which is not installed: pip install "minigrad[plot]".'
"""Said once, on a page without curves."""


def machine(comparison: Comparison, chapter: Chapter) -> str:
    rows = [*chapter.tables["facts"], *chapter.recorded.get("facts", [])]
    parts = []
    for device, recorded in dict.fromkeys((row.device, row.recorded) for row in rows):
        facts = [row for row in rows if (row.device, row.recorded) == (device, recorded)]
        items = "".join(
            f"<div><dt>{_text(_what(row))}</dt><dd>{_text(_value(row))}</dd></div>" for row in facts
        )
        label = f' <span class="recorded">recorded: {_text(recorded)}</span>' if recorded else ""
        parts.append(f'<h3>{_text(device)}{label}</h3>\n<dl class="facts">{items}</dl>')
    return "\n".join(parts)


def ladder(comparison: Comparison, chapter: Chapter) -> str:
    records = [*comparison, *chapter.recorded.get("records", [])]
    parts = []
    for name in dict.fromkeys(record.ladder for record in records):
        drawn = [record for record in records if record.ladder == name and record.rate]
        if drawn:
            parts += [
                f"<h3>{_text(name)}</h3>",
                f'<p class="scale">In {drawn[0].unit}, on a logarithmic scale. {_of_peak(drawn)}</p>',
                chart(_grouped(drawn, _rungs), logarithmic=True),
                sentences(text for text in chapter.findings if text.startswith(f"{name}: ")),
            ]
    failed = [record for record in records if record.failure and not record.refused]
    for record in failed:
        what = f"{record.ladder} {record.rung} on {record.device}: {record.failure}"
        parts.append(f'<p class="warning">Not drawn: {_text(what)}</p>')
    threads = max((record.threads or 1 for record in records), default=1)
    entries = [("kernel, 1 thread", "cpu")]
    entries += [(count(threads, "thread"), "cpu-light")] if threads > 1 else []
    entries += [("kernel on a GPU", "card")] if any(r.device.startswith("cuda") for r in records) else []
    entries += [("a library, or Python", "other")]
    return "\n".join([legend(entries), *parts]) if parts else ""


def network(comparison: Comparison, chapter: Chapter) -> str:
    parts = [_curves(figures.network, chapter, "Loss and accuracy of the training run against time")]
    layers = chapter.tables.get("layers", [])
    for device in dict.fromkeys(row.device for row in layers):
        mine = [row for row in layers if row.device == device]
        images = count(mine[0].batch, "image")
        parts += [
            f"<h3>Where the time of a training step goes: {_text(device)}, {images} at a time</h3>",
            legend([("forward", _role(mine[0])), ("backward", f"{_role(mine[0])}-light")]),
            chart([Group("", [_layer(row) for row in mine])]),
        ]
    steps = [row for row in _all_rows(chapter, "steps") if row.seconds]
    for name, batch in dict.fromkeys((row.network, row.batch) for row in steps if not row.recorded):
        mine = [row for row in steps if (row.network, row.batch) == (name, batch)]
        if len(mine) > 1:
            title = f"A training step of {_text(name)}, {count(batch, 'sample')} at a time"
            parts += [f"<h3>{title}</h3>", chart(_grouped(mine, lambda rows: [_step(row) for row in rows]))]
    return "\n".join(filter(None, parts))


def precision(comparison: Comparison, chapter: Chapter) -> str:
    rows = [row for row in _all_rows(chapter, "points") if row.rate]
    parts = []
    for op, size in dict.fromkeys((row.op, row.size) for row in rows):
        mine = [row for row in rows if (row.op, row.size) == (op, size)]
        title = f"{_text(op)} of {_text(size)}: how fast, and the error that it costs"
        parts += [f"<h3>{title}</h3>", chart(_grouped(mine, lambda rows: [_format(row) for row in rows]))]
    return "\n".join(parts)


def _whole(value: float) -> str:
    return f"{int(value):,}"


COUNTERS: list[tuple[str, str, Callable[[Any], float | None], Callable[[float], str]]] = [
    ("bytes asked of global memory", "fewer are better",
     lambda row: row.asked_bytes, lambda value: megabytes(int(value))),
    ("sectors of 32 bytes for each request of a warp", "4 if its lanes read side by side, 1 if all the same",
     lambda row: row.sectors_per_request, significant),
    ("wavefronts of shared memory", "each serves one warp once", lambda row: row.shared_wavefronts, _whole),
    ("of these, bank conflicts", "0 is best", lambda row: row.bank_conflicts, _whole),
    ("operations for each byte asked", "more are better", lambda row: row.intensity, significant),
]  # fmt: skip
"""What the simulator counts: a title, how to read it, the value of a row, and that value as text."""


def simulator(comparison: Comparison, chapter: Chapter) -> str:
    parts = []
    for op, size in dict.fromkeys((row.op, row.size) for row in chapter.rows):
        mine = [row for row in chapter.rows if (row.op, row.size) == (op, size)]
        parts.append(f"<h3>{_text(op)} of {_text(size)}, one rung beside the other</h3>")
        for title, note, get, show in COUNTERS:
            found = [(row.rung, value) for row in mine if (value := get(row)) is not None]
            bars = [Bar(rung, "", [(value, show(value), "card")]) for rung, value in found]
            none = f'<p class="note">{_text(", ".join(rung for rung, _ in found))}: none</p>'
            if found:
                parts += [f'<p class="scale"><b>{title}</b> ({note})</p>', chart([Group("", bars)]) or none]
    return "\n".join(parts)


def _curve_view(draw: Draw, description: str) -> View:
    return lambda comparison, chapter: _curves(draw, chapter, description)


VIEWS: dict[str, View] = {
    "machine": machine,
    "ladder": ladder,
    "roofline": _curve_view(figures.roofline, "The rungs of the ladders under the roofs of their devices"),
    "size": _curve_view(figures.size, "The rate of an op against its size, on each device"),
    "batch": _curve_view(figures.batch, "Images per second against the size of a batch, on each device"),
    "network": network,
    "precision": precision,
    "simulator": simulator,
}
"""The view of each chapter, by its name."""

PICTURES: dict[str, Draw] = {
    "roofline": figures.roofline,
    "size": figures.size,
    "batch": figures.batch,
    "network": figures.network,
}
"""The chapters that have a picture of curves."""


def sentences(texts: Iterable[str]) -> str:
    """What a picture says, a line each."""
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f'<ul class="findings">{items}</ul>' if items else ""


# ---- parts ------------------------------------------------------------------------------------------------


def _curves(draw: Draw, chapter: Chapter, description: str) -> str:
    if not picture.is_available():
        return ""
    return pair(lambda narrow: draw(chapter, narrow), chapter.name, description)


def _all_rows(chapter: Chapter, table: str) -> list[Any]:
    return [*chapter.tables.get(table, []), *chapter.recorded.get(table, [])]


def _grouped(rows: Iterable[Any], bars: Callable[[list[Any]], list[Bar]]) -> list[Group]:
    """A group of bars for each device; for a recorded one with the card, the date and the version."""
    groups: dict[tuple, list[Any]] = {}
    for row in rows:
        groups.setdefault((row.device, row.recorded), []).append(row)
    found = []
    for (device, recorded), mine in groups.items():
        title = f"recorded on {recorded}" if recorded else f"measured here, {device}"
        found.append(Group(title, bars(mine), bool(recorded)))
    return found


def _rungs(records: list[Record]) -> list[Bar]:
    """One bar for a rung, with a part for each number of threads."""
    rungs: dict[str, list[Record]] = {}
    for record in records:
        rungs.setdefault(record.rung, []).append(record)
    bars = []
    for rung, rows in rungs.items():
        rows.sort(key=lambda row: row.threads or 0)
        parts = [(row.rate or 0.0, _rate(row), _role(row)) for row in rows]
        bars.append(Bar(rung, f"{rows[0].size}. {rows[0].adds}", parts))
    return bars


def _step(row: Any) -> Bar:
    return Bar(row.mode, _threads(row), [(row.seconds, seconds(row.seconds), _role(row))])


def _format(row: Any) -> Bar:
    error = "" if row.error is None else f" <i>error {row.error:.0e}</i>"
    note = " ".join(filter(None, (_threads(row), row.kernel)))
    return Bar(row.format, note, [(row.rate, f"{per_second(row.rate, 'FLOP/s')}{error}", _role(row))])


def _threads(row: Any) -> str:
    return "" if row.threads is None else count(row.threads, "thread")


def _rate(record: Record) -> str:
    """``108 (84 %), x1.5``, with the threads where there are several."""
    parts = [f"<b>{significant((record.rate or 0.0) / 1e9)}</b>"]
    if record.peak_share is not None:
        parts.append(f"<i>({share(record.peak_share)})</i>")
    if record.step:
        parts.append(f"<i>{times(record.step)}</i>")
    if record.threads and record.threads > 1:
        parts.append(f"<i>{count(record.threads, 'thread')}</i>")
    return " ".join(parts)


def _of_peak(records: Iterable[Record]) -> str:
    if any(record.peak_share is not None for record in records):
        return "In brackets: the share of the measured peak; x: how many times the rung before."
    return "x: how many times the rung before."


def _layer(row: Any) -> Bar:
    parts = [(row.forward, seconds(row.forward), _role(row))]
    if row.backward is not None:
        parts.append((row.backward, seconds(row.backward), f"{_role(row)}-light"))
    return Bar(row.layer, f"{share(row.share)} of the step, gives {row.output}", parts)


def _role(row: Any) -> str:
    """The colour of a row: by device, and on the CPU by its threads."""
    if getattr(row, "kind", "kernel") != "kernel":
        return "other-light" if (row.threads or 1) > 1 else "other"
    if row.device.startswith("cuda"):
        return "card"
    return "cpu-light" if isinstance(row, Record) and (row.threads or 1) > 1 else "cpu"


def _what(row: Any) -> str:
    return row.what if row.threads is None else f"{row.what}, {count(row.threads, 'thread')}"


def _value(row: Any) -> str:
    if isinstance(row.value, float | int) and float(row.value).is_integer() and not row.unit:
        return f"{int(row.value)}"
    return quantity(row.value, row.unit)


def _text(text: str) -> str:
    return html.escape(str(text))
