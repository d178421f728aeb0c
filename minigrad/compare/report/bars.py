"""A chart of bars as plain HTML: its rows wrap on a phone, and its words can be searched and read aloud."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Group", "chart", "legend"]


@dataclass(frozen=True)
class Bar:
    """One row: a name, a note on it, and one or more bars, each (length, label as HTML, colour's role)."""

    name: str
    note: str
    parts: Sequence[tuple[float, str, str]]


@dataclass(frozen=True)
class Group:
    """Rows under a common heading, which may be empty."""

    title: str
    bars: Sequence[Bar]
    recorded: bool = False
    """Whether they were measured elsewhere: the heading says so."""


def chart(groups: Sequence[Group], logarithmic: bool = False) -> str:
    """The groups, on one scale. Lengths are not negative; on a logarithmic scale the shortest is a stub."""
    lengths = [length for group in groups for bar in group.bars for length, _, _ in bar.parts if length > 0]
    if not lengths:
        return ""
    high = max(lengths)
    start = math.log10(min(lengths)) - 0.35

    def share(length: float) -> float:
        if logarithmic and length > 0:
            return (math.log10(length) - start) / (math.log10(high) - start)
        return length / high

    parts = []
    for group in groups:
        if group.title:
            kind = "where recorded" if group.recorded else "where"
            parts.append(f'<p class="{kind}">{html.escape(group.title)}</p>')
        rows = "\n".join(_row(bar, share) for bar in group.bars)
        parts.append(f'<ul class="bars">\n{rows}\n</ul>')
    return "\n".join(parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(label, colour's role) as a line of swatches."""
    items = "".join(
        f'<span><span class="swatch" style="--colour:var(--{role})"></span>{html.escape(label)}</span>'
        for label, role in entries
    )
    return f'<div class="legend">{items}</div>'


def _row(bar: Bar, share) -> str:
    tracks = "".join(
        f'<div class="track"><div class="bar" style="--colour:var(--{role});--share:{share(length):.4f}">'
        f'</div><span class="value">{label}</span></div>'
        for length, label, role in bar.parts
    )
    return (
        f'<li><div class="name"><b>{html.escape(bar.name)}</b> <small>{html.escape(bar.note)}</small></div>'
        f"<div>{tracks}</div></li>"
    )
