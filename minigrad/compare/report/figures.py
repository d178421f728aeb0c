"""The pictures of the chapters whose data are curves: the roofline, the sizes, the batches, the training.

Each function takes a chapter and whether the picture is for a phone, and returns a matplotlib Figure, or None
if there is nothing to draw. Blue is the processor and orange the card; dashed lines and hollow markers stand
for what was recorded elsewhere.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigrad.compare.comparison import Chapter
from minigrad.compare.numbers import count
from minigrad.compare.report.themed import COLOURS, WIDTHS, style

__all__ = ["batch", "network", "roofline", "size"]

MARKERS = {"matmul": "o", "conv2d": "s", "pooling": "^"}
INK, MUTED = COLOURS["ink"], COLOURS["muted"]
LABEL = 8.5  # points
LEGEND_WIDTH = 46  # characters
LINE = 1.6  # points
TOP, BOTTOM, LEFT, RIGHT, BETWEEN = 0.55, 0.58, 0.95, 0.2, 1.1  # inches around panels
LEGEND_LINE = 0.19  # inches


def roofline(chapter: Chapter, narrow: bool = False) -> Any:
    """The rungs under the roofs of their devices, each with its largest number of threads."""
    roofs, points = _most_threads(_all_rows(chapter, "roofs"), ()), _all_rows(chapter, "points")
    points = _most_threads(points, ("ladder", "rung"))
    if not roofs or not points:
        return None
    figure, (axes,) = _figure(narrow, 4.8, phone_height=4.0)
    intensities = [point.intensity for point in points] + [roof.ridge for roof in roofs]
    low, high = min(intensities) / 3, max(intensities) * 12
    for roof in roofs:
        rates = [low * roof.memory, roof.compute, roof.compute]
        axes.plot(
            [low, roof.ridge, high], rates, color=_colour(roof), lw=LINE, ls=_dash(roof), label=_who(roof)
        )
    for point in points:
        hollow = point.recorded or point.kind != "kernel"
        axes.plot([point.intensity], [point.rate], MARKERS.get(point.ladder, "D"), color=_colour(point), ms=6,
                  mfc="none" if hollow else _colour(point), zorder=3)  # fmt: skip
    _name_points(axes, points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    bytes_ = "byte" if narrow else "byte that passes between memory and the device"
    style(axes, x=f"operations for each {bytes_}", y="operations per second")
    _rates(axes.yaxis, "FLOP/s")
    _plain(axes.xaxis)
    for ladder in dict.fromkeys(point.ladder for point in points):
        axes.plot([], [], MARKERS.get(ladder, "D"), color=MUTED, label=ladder)
    axes.plot([], [], "o", color=MUTED, mfc="none", label="hollow: Python, a library, or recorded")
    _finish(figure, [axes], narrow, columns=1 if narrow else 3)
    return figure


def size(chapter: Chapter, narrow: bool = False) -> Any:
    """The rate of an op against its size, on each device; with the copies to a card and back, where known."""
    rows = [row for row in _all_rows(chapter, "points") if row.rate]
    ops = list(dict.fromkeys(row.op for row in rows))
    if not ops:
        return None
    figure, panels = _figure(narrow, 3.6, len(ops))
    for axes, op in zip(panels, ops, strict=True):
        mine = [row for row in rows if row.op == op]
        for line in _lines(mine, ("device", "threads", "recorded")):
            axes.plot(
                [row.n for row in line], [row.rate for row in line], **_look(line[0]), label=_who(line[0])
            )
            copied = [row for row in line if row.transfer_seconds]
            if copied:
                rates = [row.rate * row.seconds / (row.seconds + row.transfer_seconds) for row in copied]
                axes.plot([row.n for row in copied], rates, ls=":", lw=1.4, color=_colour(line[0]),
                          label=f"{_who(line[0])}, with copies there and back")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        what = "n x n matrices" if op == "matmul" else "elements"
        style(axes, title=op, x=f"n: {what}", y="rate")
        _rates(axes.yaxis, mine[0].unit.lstrip("G"))
        _plain(axes.xaxis, powers_of_two=True)
    _finish(figure, panels, narrow, columns=1 if narrow else 3)
    return figure


def batch(chapter: Chapter, narrow: bool = False) -> Any:
    """Images per second against the size of a batch, on each device: forward alone, and a training step."""
    rows = [row for row in _all_rows(chapter, "points") if row.samples_per_second]
    modes = [mode for mode in ("forward", "training step") if any(mode in row.mode for row in rows)]
    if not modes:
        return None
    figure, panels = _figure(narrow, 3.6, len(modes))
    for axes, mode in zip(panels, modes, strict=True):
        mine = [row for row in rows if mode in row.mode]
        for line in _lines(mine, ("network", "mode", "device", "threads", "recorded")):
            captured = line[0].mode != mode
            look = _look(line[0]) | ({"marker": "D"} if captured else {})
            label = _who(line[0]) + (", captured" if captured else "")
            axes.plot(
                [row.batch for row in line], [row.samples_per_second for row in line], **look, label=label
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        style(axes, title=mode, x="images in a batch", y="images per second")
        _rates(axes.yaxis, "")
        _plain(axes.xaxis, powers_of_two=True)
    _finish(figure, panels, narrow, columns=1 if narrow else 3)
    return figure


def network(chapter: Chapter, narrow: bool = False) -> Any:
    """Loss and accuracy of a training run against time, on each device."""
    rows = _all_rows(chapter, "training")
    if not rows:
        return None
    figure, (loss, accuracy) = _figure(narrow, 3.4, 2)
    for line in _lines(rows, ("device", "threads", "recorded"), by="step"):
        seconds = [row.seconds for row in line]
        loss.plot(seconds, [row.test_loss for row in line], **_look(line[0]), label=_who(line[0]))
        accuracy.plot(seconds, [100 * row.test_accuracy for row in line], **_look(line[0]))
    style(loss, title="loss", x="seconds of training", y="on test images")
    style(accuracy, title="accuracy", x="seconds of training", y="% of the test images")
    loss.set_yscale("log")
    _plain(loss.yaxis)
    _finish(figure, [loss, accuracy], narrow, columns=1 if narrow else 3)
    return figure


# ---- what they share --------------------------------------------------------------------------------------


def _figure(narrow: bool, height: float, panels: int = 1, phone_height: float = 3.3) -> tuple[Any, Any]:
    """A figure of the page's width with panels side by side, or one above the other on a phone."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    width = WIDTHS["narrow" if narrow else "wide"]
    rows, columns = (panels, 1) if narrow else (1, panels)
    figure = Figure(figsize=(width, (phone_height if narrow else height) * rows))
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _all_rows(chapter: Chapter, table: str) -> list[Any]:
    """The rows of this machine, then those of recorded runs; none of the simulator's times is among them."""
    rows = [*chapter.tables.get(table, []), *chapter.recorded.get(table, [])]
    return [row for row in rows if row.device != "sim"]


def _lines(rows: Iterable[Any], keys: Sequence[str], by: str = "") -> list[list[Any]]:
    """The rows of each curve, in order of their x."""
    lines: dict[tuple, list[Any]] = {}
    for row in rows:
        lines.setdefault(tuple(getattr(row, key) for key in keys), []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: getattr(row, by) if by else getattr(row, "n", None) or row.batch)
    return list(lines.values())


def _who(row: Any) -> str:
    """The curve's device as a reader knows it."""
    if row.recorded:
        return f"{row.recorded} (recorded)"
    return row.device if row.threads is None else f"{row.device}, {count(row.threads, 'thread')}"


def _colour(row: Any) -> str:
    return COLOURS["card" if row.device.startswith("cuda") else "cpu"]


def _dash(row: Any) -> Any:
    return (0, (5, 2.5)) if row.recorded else "-"


def _look(row: Any) -> dict[str, Any]:
    """The look of a curve."""
    colour = _colour(row)
    return {
        "color": colour,
        "ls": _dash(row),
        "lw": LINE,
        "marker": "o",
        "ms": 4.5,
        "mfc": "none" if row.recorded else colour,
    }


def _most_threads(rows: Iterable[Any], keys: Sequence[str]) -> list[Any]:
    """Of the rows that differ in their threads alone, those with the most."""
    best: dict[tuple, Any] = {}
    for row in sorted(rows, key=lambda row: row.threads or 0):
        best[(row.device, row.recorded, *(getattr(row, key) for key in keys))] = row
    return list(best.values())


def _name_points(axes: Any, points: Sequence[Any]) -> None:
    """The names of the fastest and the slowest rung of each ladder on each device; more would overlap."""
    stacks: dict[tuple, list[Any]] = {}
    for point in points:
        stacks.setdefault((point.ladder, point.device, point.recorded), []).append(point)
    for stack in stacks.values():
        stack.sort(key=lambda point: point.rate)
        for point in {id(point): point for point in (stack[0], stack[-1])}.values():
            left = point.ladder == "conv2d"  # whose stack stands beside that of matmul
            beside = {"xytext": (-8, -3), "ha": "right"} if left else {"xytext": (8, -3), "ha": "left"}
            axes.annotate(point.rung, (point.intensity, point.rate), **beside, textcoords="offset points",
                          size=LABEL, color=INK)  # fmt: skip


def _rates(axis: Any, unit: str) -> None:
    """Whole decades, with ticks at powers of ten and prefixes: 10 GFLOP/s."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_major_formatter(EngFormatter(unit=unit, sep=" " if unit else ""))
    axis.set_minor_locator(NullLocator())  # which would take most of the time to draw


def _plain(axis: Any, powers_of_two: bool = False) -> None:
    """Ticks as plain numbers: 0.1, 1, 10, or 64, 128, with a k or an M at large ones."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    def short(value: float, _: int) -> str:
        if powers_of_two and value >= 1 << 20:
            return f"{value / (1 << 20):g}M"
        return f"{value / 1024:g}k" if powers_of_two and value >= 1 << 13 else f"{value:g}"

    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_locator(NullLocator())  # which would take most of the time to draw


def _finish(figure: Any, panels: Sequence[Any], narrow: bool, columns: int) -> None:
    """Add the legend below the panels, each entry once, and give everything its room.

    A layout that matplotlib finds by itself would take longer than all the drawing.
    """
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(textwrap.fill(label, LEGEND_WIDTH), handle)
    columns = min(columns, len(entries))
    figure.legend(entries.values(), entries.keys(), loc="lower left", ncols=columns, frameon=False,
                  fontsize=LABEL + 0.5, labelcolor=MUTED, borderaxespad=0.2)  # fmt: skip
    heights = [label.count("\n") + 1 for label in entries]
    lines = max(sum(column) for column in np.array_split(heights, columns))

    width, height = figure.get_size_inches()
    bottom = BOTTOM + LEGEND_LINE * lines
    height += bottom - BOTTOM
    figure.set_size_inches(width, height)
    inside = (height - bottom - TOP - (len(panels) - 1) * BETWEEN) / len(panels) if narrow else 1
    across = (width - LEFT - RIGHT - (len(panels) - 1) * LEFT) / len(panels)
    figure.subplots_adjust(left=LEFT / width, right=1 - RIGHT / width, hspace=BETWEEN / inside,
                           top=1 - TOP / height, bottom=bottom / height, wspace=LEFT / across)  # fmt: skip
