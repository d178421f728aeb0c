"""Recorded runs: what a card measured elsewhere, for machines that have none.

A recorded run is the JSON of a comparison with the card's rows alone, and under ``"recording"`` where it
comes from. Those that ship with minigrad lie in ``minigrad/compare/recorded``. Their rows stand apart from
those of this machine, and each bears the label of its run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from minigrad.compare.comparison import Chapter, Comparison

__all__ = ["attach", "load", "recorded_run", "save", "shipped"]


def folder() -> Any:
    """Where the recorded runs lie that ship with minigrad."""
    return resources.files("minigrad.compare").joinpath("recorded")


def shipped() -> list[tuple[dict[str, Any], Comparison]]:
    """The recorded runs that ship with minigrad, the newest first: where each comes from, and its rows."""
    found = [_read(path) for path in folder().iterdir() if path.name.endswith(".json")]
    return sorted(found, key=lambda one: one[0]["date"], reverse=True)


def load(path: str | Path) -> tuple[dict[str, Any], Comparison]:
    """A recorded run that ``minigrad compare --record`` has written: where it comes from, and its rows.

    Raises:
        OSError: it cannot be read. ValueError: it is no recorded run.
    """
    try:
        return _read(Path(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no recorded run: {error}") from None


def _read(path: Any) -> tuple[dict[str, Any], Comparison]:
    values = json.loads(path.read_text())
    return values["recording"], Comparison.from_dict(values)


def recorded_run() -> Comparison:
    """The newest recorded run of a card that ships with minigrad: its rows, in chapters.

    They were not measured on this machine: ``run.machine``, ``run.date`` and ``run.device_name("cuda:0")``
    tell where and when they were.
    """
    return shipped()[0][1]


def label(recording: dict[str, Any]) -> str:
    """``"NVIDIA H200, 2026-11-27, minigrad 0.1.0"``."""
    return f"{recording['card']}, {recording['date'][:10]}, minigrad {recording['minigrad']}"


def attach(comparison: Comparison, recorded: tuple[dict[str, Any], Comparison] | None = None) -> None:
    """Give each chapter the rows of a recorded run, by default the newest that ships with minigrad; a chapter
    that it has none for says so."""
    origin, run = recorded or shipped()[0]
    name = label(origin)
    comparison.recordings[name] = origin
    for chapter in comparison.chapters.values():
        if chapter.name == "simulator":
            continue
        if chapter.name in run.chapters:
            found = _card_rows(run.chapters[chapter.name], comparison)
            chapter.recorded = {t: [replace(row, recorded=name) for row in rows] for t, rows in found.items()}
            chapter.notes += run.chapters[chapter.name].notes
        if not any(chapter.recorded.values()):
            chapter.notes.append(f"No figures of a GPU: none were recorded for this chapter on {name}.")


def _card_rows(chapter: Chapter, comparison: Comparison) -> dict[str, list[Any]]:
    """The rows of cards of all tables; of the ladder, those of the ladders that were climbed."""
    tables = {}
    for table, rows in chapter.tables.items():
        tables[table] = [row for row in rows if row.device.startswith("cuda")]
    climbed = set(comparison.ladders)
    if chapter.name in ("ladder", "roofline"):
        tables = {
            table: [row for row in rows if getattr(row, "ladder", None) in climbed | {None}]
            for table, rows in tables.items()
        }
    return tables


def save(comparison: Comparison, folder: Path) -> Path:
    """Write the rows of the card of ``comparison`` as a recorded run; its path.

    Raises:
        ValueError: nothing was measured on a card.
    """
    cards = [row["device"] for row in comparison.machine["devices"] if row["device"].startswith("cuda")]
    measured = [r for c in comparison.chapters.values() for rows in c.tables.values() for r in rows]
    device = next((card for card in cards if any(row.device == card for row in measured)), None)
    if device is None:
        raise ValueError("nothing was measured on a card, so there is nothing to record")
    kept = Comparison(comparison.machine, comparison.date)
    kept.peaks = [row for row in comparison.peaks if row["device"] == device]
    kept += [record for record in comparison if record.device == device]
    for name, chapter in comparison.chapters.items():
        tables = {
            table: [row for row in rows if row.device == device] for table, rows in chapter.tables.items()
        }
        kept.chapters[name] = Chapter(name, chapter.title, chapter.question, tables)
    origin = {
        "card": comparison.device_name(device),
        "date": comparison.date,
        "minigrad": comparison.machine["minigrad"],
        "processor": comparison.machine["processor"],
        "source": "minigrad compare --record",
    }
    folder.mkdir(parents=True, exist_ok=True)
    card = "-".join(origin["card"].lower().split())
    path = folder / f"recorded-{card}-{comparison.date[:10]}.json"
    values = {**kept.to_dict(), "recording": origin}
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
