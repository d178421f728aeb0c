"""The comparison as one HTML page. It opens from disk and needs no network and no other file."""

from __future__ import annotations

import html
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from minigrad.compare import picture
from minigrad.compare.chapters import CHAPTERS
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import count
from minigrad.compare.report.views import NO_PICTURES, PICTURES, VIEWS, sentences
from minigrad.compare.table import busy, no_gpu

__all__ = ["render", "save"]

TITLE = "Why GPUs speed up deep learning"
LEAD = (
    "A network is made of a few operations on many numbers. This page shows what they cost on this machine, "
    "what makes each kernel faster than the one before, and when a graphics card overtakes the processor."
)


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.html``, and where matplotlib is installed its curves as PNG and SVG; the paths."""
    page = folder / "report.html"
    page.write_text(render(comparison), encoding="utf-8")
    paths = [page]
    if picture.is_available():
        from matplotlib import rc_context

        for name, chapter in comparison.chapters.items():
            figure = PICTURES[name](chapter, False) if name in PICTURES else None
            if figure is not None:
                written = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
                with rc_context({"svg.fonttype": "none"}):  # text as text: quicker than its outlines
                    for path in written:
                        figure.savefig(path, dpi=120, facecolor="white")
                paths += written
    return paths


def render(comparison: Comparison) -> str:
    """The page as text."""
    bodies = {name: _body(comparison, chapter) for name, chapter in comparison.chapters.items()}
    shown = [comparison.chapters[name] for name, body in bodies.items() if body]
    return Template(_resource("page.html")).substitute(
        title=TITLE,
        lead=LEAD,
        answers=_answers(comparison),
        style=_resource("style.css"),
        origin=_origin(comparison),
        warnings="\n".join(f'<p class="warning">{_text(text)}</p>' for text in _warnings(comparison)),
        contents="\n".join(_link(chapter, n) for n, chapter in enumerate(shown, 1)),
        chapters="\n".join(_chapter(chapter, n, bodies[chapter.name]) for n, chapter in enumerate(shown, 1)),
        footer=_footer(comparison),
        # In a script element only this could end it.
        results=comparison.to_json().replace("</", "<\\/"),
    )


def _answers(comparison: Comparison) -> str:
    items = (f"<dt>{_text(q)}</dt><dd>{_text(answer)}</dd>" for q, answer in comparison.answers.items())
    found = "\n".join(items)
    return f'<dl class="answers">\n{found}\n</dl>' if found else ""


def _link(chapter: Chapter, number: int) -> str:
    return f'<li><a href="#{chapter.name}">{number}. {_text(chapter.title)}</a></li>'


def _chapter(chapter: Chapter, number: int, body: str) -> str:
    return (
        f'<section id="{chapter.name}">\n'
        f'<h2><span class="number">{number}</span>{_text(chapter.title)}</h2>\n'
        f'<p class="idea">{_text(chapter.question)}</p>\n{body}\n</section>'
    )


def _body(comparison: Comparison, chapter: Chapter) -> str:
    """The picture, the sentences, the remarks and the tables of a chapter; empty if it holds nothing."""
    body = VIEWS[chapter.name](comparison, chapter)
    parts = [
        body,
        sentences(text for text in chapter.findings if _text(text) not in body),
        *(f'<p class="note">{_text(note)}</p>' for note in chapter.notes),
        _tables(chapter),
    ]
    return "\n".join(filter(None, parts))


def _tables(chapter: Chapter) -> str:
    """All rows, folded away."""
    tables = []
    for name, columns in CHAPTERS[chapter.name].COLUMNS.items():
        rows = [*chapter.tables.get(name, []), *chapter.recorded.get(name, [])]
        if rows:
            tables.append(_table(rows, columns))
    if not tables:
        return ""
    return f"<details><summary>All numbers</summary>\n{''.join(tables)}</details>"


def _table(rows: list[Any], columns: list[tuple]) -> str:
    recorded = any(row.recorded for row in rows)
    titles = [title for title, _ in columns] + ["recorded on"] * recorded
    head = "".join(f'<th scope="col">{_text(title)}</th>' for title in titles)
    lines = []
    for row in rows:
        cells = [show(row) for _, show in columns] + [row.recorded or ""] * recorded
        kind = ' class="recorded"' if row.recorded else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>")
    body = "".join(lines)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _origin(comparison: Comparison) -> str:
    machine = comparison.machine
    parts = [
        f"{machine['processor']}, {count(machine['cores'], 'core')}, {machine['vectors']}",
        *(row["name"] for row in machine["devices"] if row["device"].startswith("cuda") and row["available"]),
        f"minigrad {machine['minigrad']}, Python {machine['python']}, NumPy {machine['numpy']}",
        f"measured {comparison.date[:16].replace('T', ' ')}",
    ]
    return "<br>".join(_text(part) for part in parts)


def _warnings(comparison: Comparison) -> list[str]:
    found = [*busy(comparison), *comparison.notes]
    if comparison.interrupted:
        found.insert(0, "Interrupted: the page shows what was measured until then.")
    if comparison.no_gpu:
        found.append(no_gpu(comparison))
    for label, run in comparison.recordings.items():
        found.append(f"Recorded elsewhere, not on this machine: {label}. {run.get('source', '')}".strip())
    if not picture.is_available():
        found.append(NO_PICTURES)
    return found


def _footer(comparison: Comparison) -> str:
    return (
        "<p>Every result was checked against NumPy in float64 before it was timed. Times are medians; the "
        "contestants took turns. The raw numbers are in this file, in the element <code>results</code>, "
        "and in <code>results.json</code>. Measure again: <code>minigrad compare</code>.</p>"
    )


def _resource(name: str) -> str:
    return files("minigrad.compare.report").joinpath(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(str(text))
