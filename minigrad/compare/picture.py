"""The comparison as a picture: for each ladder the rates of its rungs, from the slowest start to the top.

The axis is logarithmic, for the ladders span four decades and more. Colours are from the palette of Okabe
and Ito, which colour-blind readers can tell apart, and differ in lightness too.
"""

from __future__ import annotations

import math
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigrad.compare.comparison import Comparison
from minigrad.compare.numbers import count, share, significant, times
from minigrad.compare.records import Record

__all__ = ["INSTALL", "draw", "drawable", "is_available", "save"]

INSTALL = 'No picture: it needs matplotlib; install it with pip install "minigrad[plot]"'

INK, MUTED, GRID = "#1a1a1a", "#5f5f5f", "#e4e4e4"
KERNEL, KERNEL_THREADS = "#0072B2", "#8CCBEE"
OTHER, OTHER_THREADS = "#6e6e6e", "#c4c4c4"
CARD = "#D55E00"

NAMES = {"conv2d": "convolution", "python": "Python", "numpy": "NumPy", "cupy": "CuPy"}

WIDTH = 13.3  # inches: a slide
ROW, HEADER, FOOTER = 0.41, 0.66, 0.42  # inches
TOP, BOTTOM = 1.15, 0.30
LEFT, RIGHT = 3.75, 0.25  # inches
HEADLINE = 47  # characters of 9 points that fit to the left of the bars
STEP_ROOM = 0.4  # decades of a bar that hold the step, as in "x2.1"
LABEL_ROOM = 0.34  # of the axis, to the right of the longest bar, for its label


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def drawable(comparison: Comparison) -> bool:
    """Whether there is anything to draw: a measured rung that did not run on the simulator."""
    return any(record.rate for record in comparison)


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``ladder.png`` and ``ladder.svg``; their paths."""
    figure = draw(comparison)
    paths = [folder / "ladder.png", folder / "ladder.svg"]
    for path in paths:
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Title": _title(comparison)})
    return paths


def draw(comparison: Comparison) -> Any:
    """The picture as a matplotlib Figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    ladders = {name: _rows(comparison.ladder(name)) for name in comparison.ladders}
    ladders = {name: rows for name, rows in ladders.items() if rows}
    height = sum(HEADER + ROW * len(rows) + FOOTER for rows in ladders.values()) + TOP + BOTTOM
    with rc_context({"font.family": "DejaVu Sans", "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH, height))
        figure.text(0.25 / WIDTH, 1 - 0.38 / height, _title(comparison), size=18, weight="bold", color=INK)
        figure.text(0.25 / WIDTH, 1 - 0.66 / height, _subtitle(comparison), size=11, color=MUTED)
        top = height - TOP
        for name, rows in ladders.items():
            bottom = top - HEADER - ROW * len(rows)
            box = (LEFT / WIDTH, bottom / height, (WIDTH - LEFT - RIGHT) / WIDTH, ROW * len(rows) / height)
            _draw_ladder(figure.add_axes(box), comparison, name, rows)
            top = bottom - FOOTER
        _legend(figure, comparison, ladders, height)
        figure.text(0.25 / WIDTH, 0.16 / height, _footnote(comparison), size=9.5, color=MUTED)
    return figure


def _rows(records: list[Record]) -> list[list[Record]]:
    """The records to draw, with those of one rung on several numbers of threads together."""
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.rate:
            rows.setdefault((record.device, record.rung), []).append(record)
    return list(rows.values())


def _draw_ladder(axes: Any, comparison: Comparison, name: str, rows: list[list[Record]]) -> None:
    rates = [record.rate / 1e9 for row in rows for record in row if record.rate]
    peaks = _peaks(comparison, rows)
    low = 10 ** math.floor(math.log10(min(rates)) - 0.15)
    high = max(rates + [rate / 1e9 for _, _, rate in peaks])
    decades = math.log10(high / low) / (1 - LABEL_ROOM)
    axes.set_xscale("log")
    axes.set_xlim(low, low * 10**decades)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for device, _, rate in peaks:
        axes.axvline(rate / 1e9, color=CARD if device != "cpu" else INK, lw=1.2, ls=(0, (4, 3)), zorder=1)
    first = [record for row in rows for record in row if record.device == rows[0][0].device]
    size = max(first, key=lambda record: record.operations).size
    for position, row in enumerate(rows):
        _draw_rung(axes, position, row, low)
        _name_rung(axes, position, row[0], size)
    _style(axes, low, high)
    _header(axes, name, f"{size}, in {first[0].unit}", _peak_text(peaks))


def _draw_rung(axes: Any, position: int, row: list[Record], low: float) -> None:
    """One rung: its rate on one thread, in front of a wider and lighter bar for several."""
    ends = []
    for record in sorted(row, key=lambda r: -(r.threads or 0)):
        several = bool(record.threads and record.threads > 1)
        dark, light = (KERNEL, KERNEL_THREADS) if record.kind == "kernel" else (OTHER, OTHER_THREADS)
        colour = CARD if record.device != "cpu" and record.kind == "kernel" else light if several else dark
        rate = (record.rate or 0.0) / 1e9
        axes.barh(position, rate - low, left=low, height=0.74 if several else 0.46, color=colour, zorder=2)
        ends.append(rate)
        if record.step and not several and math.log10(rate / low) > STEP_ROOM:
            axes.annotate(times(record.step), (rate, position), xytext=(-6, -0.5), va="center", ha="right",
                          textcoords="offset points", size=11, weight="bold", color="white")  # fmt: skip
    label = "   ".join(_label(record, alone=len(row) == 1) for record in row)
    axes.annotate(label, (max(ends), position), xytext=(7, 0), textcoords="offset points", va="center",
                  size=11, color=INK, zorder=3,
                  bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip


def _name_rung(axes: Any, position: int, record: Record, size: str) -> None:
    """The rung's name, and under it what it adds, after its size if that is not the ladder's."""
    named = axes.get_yaxis_transform()
    title = NAMES.get(record.rung, record.rung)
    title = title if record.device == "cpu" else f"{title}, {record.device}"
    own_size = "" if record.size == size else f"{record.size}: "
    adds = headline(record.adds, HEADLINE - len(own_size))
    axes.text(-0.014, position - 0.17, title, transform=named, ha="right", va="center", size=12.5,
              weight="bold", color=INK)  # fmt: skip
    axes.text(-0.014, position + 0.24, own_size + adds, transform=named, ha="right", va="center",
              size=9, color=MUTED)  # fmt: skip


def _label(record: Record, alone: bool) -> str:
    part = "" if record.peak_share is None else f" ({share(record.peak_share).replace(' ', '')})"
    text = f"{significant((record.rate or 0.0) / 1e9)}{part}"
    if alone or record.threads is None:
        return text
    return f"{text}" if record.threads == 1 else f"{record.threads} threads: {text}"


def headline(adds: str, room: int = HEADLINE) -> str:
    """The first clause of the sentence on what a rung adds, as far as there is room for it."""
    clause = re.split(r"[:;,.](?: |$)| \(", adds, maxsplit=1)[0]
    return textwrap.shorten(clause, max(room, 10), placeholder=" ...")


def _style(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = [10.0**e for e in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="x", length=0, labelsize=10, colors=MUTED)
    axes.grid(axis="x", color=GRID, lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_yticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _header(axes: Any, name: str, size: str, peaks: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    left = -(LEFT - 0.25) / (WIDTH - LEFT - RIGHT)
    named = axes.annotate(name, (left, 1), xytext=(0, 10), size=16, weight="bold", color=INK, **place)
    after = {**place, "xycoords": named, "va": "baseline"}  # the name of a call may be long
    axes.annotate(size, (1, 0), xytext=(12, 5), size=10.5, color=MUTED, **after)
    axes.annotate(peaks, (1, 1), xytext=(0, 12), size=10.5, color=MUTED, ha="right", **place)


def _peaks(comparison: Comparison, rows: list[list[Record]]) -> list[tuple[str, int | None, float]]:
    """The (device, threads, rate) of every peak that a drawn rung is measured against."""
    keys = dict.fromkeys((r.device, r.threads, r.bound) for row in rows for r in row)
    found = [(d, t, comparison.peak(d, t, bound)) for d, t, bound in keys]
    return [(device, threads, rate) for device, threads, rate in found if rate]


def _peak_text(peaks: list[tuple[str, int | None, float]]) -> str:
    of = [
        f"{significant(rate / 1e9)} ({device if threads is None else count(threads, 'thread')})"
        for device, threads, rate in peaks
    ]
    return f"dashed: measured peak, {', '.join(of)}" if of else ""


def _title(comparison: Comparison) -> str:
    names = [NAMES.get(name, name) for name in comparison.ladders]
    return f"What makes {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} fast"


def _footnote(comparison: Comparison) -> str:
    """How to read the labels; and which rungs are missing."""
    text = "Labels: the rate (and its share of the peak); in the bars: how many times the rung before"
    failed = [record for record in comparison if record.failure and not record.refused]
    missing = dict.fromkeys(f"{record.ladder} {record.rung}" for record in failed)
    return text + (f".  Not drawn, because wrong or failed: {', '.join(missing)}" if missing else "")


def _subtitle(comparison: Comparison) -> str:
    machine = comparison.machine
    cards = [
        row["name"] for row in machine["devices"] if row["device"].startswith("cuda") and row["available"]
    ]
    parts = [
        f"{machine['processor']}, {count(machine['cores'], 'core')}, {machine['vectors']}",
        *cards,
        f"minigrad {machine['minigrad']}",
        comparison.date[:10],
    ]
    return "  |  ".join(parts)


def _legend(figure: Any, comparison: Comparison, ladders: dict, height: float) -> None:
    from matplotlib.patches import Patch

    drawn = [record for rows in ladders.values() for row in rows for record in row]
    threads = max((record.threads or 1 for record in drawn), default=1)
    entries = [Patch(color=KERNEL, label="kernel, 1 thread")]
    if threads > 1:
        entries.append(Patch(color=KERNEL_THREADS, label=f"{threads} threads"))
    if any(record.device.startswith("cuda") for record in drawn):
        entries.append(Patch(color=CARD, label="kernel on the GPU"))
    entries.append(Patch(color=OTHER, label="Python, NumPy, CuPy" if len(entries) > 2 else "Python, NumPy"))
    figure.legend(handles=entries, loc="upper left", bbox_to_anchor=(0.25 / WIDTH, 1 - 0.80 / height),
                  ncols=len(entries), frameon=False, fontsize=11, handlelength=1.2, handleheight=1.0,
                  borderaxespad=0)  # fmt: skip
