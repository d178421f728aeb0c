"""Matplotlib's figures as SVG inside the page: in its colours, light or dark, and with text that is text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

__all__ = ["COLOURS", "WIDTHS", "inline", "pair", "style"]

COLOURS = {
    "ink": "#1a1a1a",
    "muted": "#5f5f5f",
    "grid": "#dfe1e4",
    "cpu": "#0072b2",
    "cpu-light": "#8ccbee",
    "card": "#c24f00",
    "card-light": "#f4b183",
    "other": "#6e6e6e",
    "other-light": "#c4c4c4",
    "page": "#fefefe",
}
"""The colours of a figure, by their role. Each is a variable of the page's style under the same name; all
differ, so that a colour in an SVG file tells its role."""

WIDTHS = {"wide": 9.2, "narrow": 4.3}
"""Inches, at 100 pixels an inch: a desk and a phone. Two drawings, for shrunken text cannot be read."""


def pair(draw: Callable[[bool], Any], name: str, description: str) -> str:
    """``draw(narrow)`` as two drawings, of which the page's style shows one; empty if it draws nothing."""
    parts = []
    for kind in WIDTHS:
        figure = draw(kind == "narrow")
        if figure is None:
            return ""
        parts.append(f'<div class="{kind}">{inline(figure, f"{name}-{kind}", description)}</div>')
    return "<figure>{}</figure>".format("\n".join(parts))


def inline(figure: Any, name: str, description: str) -> str:
    """``figure`` as an element ``<svg>``; ``name`` keeps its identifiers apart from other figures'."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    label = html.escape(description, quote=True)
    head = f'<svg role="img" aria-label="{label}" viewBox='
    return re.sub(r"<svg .*?viewBox=", lambda _: head, text, count=1, flags=re.DOTALL)


def style(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """The common look: no frame, a quiet grid, the y label over the axis, where it can be read."""
    axes.set_title(title, loc="left", size=11, weight="bold", color=COLOURS["ink"], pad=22 if y else 8)
    axes.set_xlabel(x, size=9.5, color=COLOURS["muted"])
    axes.annotate(y, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", size=9.5,
                  color=COLOURS["muted"])  # fmt: skip
    axes.tick_params(length=0, labelsize=9.5, colors=COLOURS["muted"], which="both")
    axes.grid(color=COLOURS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
