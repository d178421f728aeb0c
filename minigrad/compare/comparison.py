"""What a comparison gives: chapters of rows and findings, and the machine that they were measured on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from minigrad.compare.records import Record

__all__ = ["Chapter", "Comparison"]

FORMAT = 2  # of the JSON; 1 held the ladder alone


@dataclass
class Chapter:
    """One idea, measured: tables of rows, and what they say in sentences.

    Attributes:
        name: ``"machine"``, ``"ladder"``, ``"roofline"``, ``"size"``, ``"batch"``, ``"network"``,
            ``"precision"``, ``"simulator"``.
        title: a heading.
        question: what a reader can answer with it.
        tables: rows measured on this machine, by the name of their table.
        recorded: rows of the same tables that come from a recorded run; each row bears its label.
        findings: sentences with these numbers.
        notes: what is missing or went wrong, and why, a sentence each.
        failed: whether it ended early because of an error, which is then in the notes.
    """

    name: str
    title: str
    question: str
    tables: dict[str, list[Any]] = field(default_factory=dict)
    recorded: dict[str, list[Any]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False

    @property
    def rows(self) -> list[Any]:
        """The rows of the first table that were measured on this machine."""
        return next(iter(self.tables.values()), [])

    @property
    def recorded_rows(self) -> list[Any]:
        """The rows of the first table that come from a recorded run."""
        return self.recorded.get(next(iter(self.tables), ""), [])

    def to_dicts(self, table: str | None = None, recorded: bool = True) -> list[dict[str, Any]]:
        """The rows of a table (by default the first) as dicts: ``pandas.DataFrame(chapter.to_dicts())``.

        With ``recorded`` those of a recorded run are there, too; their ``recorded`` is its label, not None.

        Raises:
            KeyError: there is no such table.
        """
        if table is None:
            table = next(iter(self.tables), "")
        rows = [*self.tables.get(table, []), *(self.recorded.get(table, []) if recorded else [])]
        if not rows and table not in self.tables:
            raise KeyError(f"chapter {self.name}: no table {table!r}; there are: {', '.join(self.tables)}")
        return [asdict(row) for row in rows]


class Comparison(list):
    """A list of the ladder's :class:`Record`, with all chapters, and the machine that they come from.

    The list, and ``chapters[...].tables``, hold what was measured on this machine alone.

    Attributes:
        machine: the processor, the devices and the software, as a dict.
        chapters: by name, in the order in which they are read.
        recordings: by label, the recorded runs that rows come from: dicts of card, date, minigrad's version,
            commit, processor, and in ``source`` how they were made.
        peaks: the measured peaks: dicts of device, threads, bound and rate (per second).
        date: when it was measured, ISO 8601.
        interrupted: whether Ctrl-C ended it early; it then holds what was measured until then.
        notes: other things that went wrong, a sentence each.
        no_gpu: in one sentence, why no GPU was measured; empty if one was, or none was asked for.
    """

    def __init__(self, machine: dict[str, Any], date: str):
        super().__init__()
        self.machine = machine
        self.date = date
        self.chapters: dict[str, Chapter] = {}
        self.recordings: dict[str, dict[str, Any]] = {}
        self.peaks: list[dict[str, Any]] = []
        self.interrupted = False
        self.no_gpu = ""
        self.notes: list[str] = []

    @property
    def findings(self) -> list[str]:
        """The sentences of all chapters."""
        return [sentence for chapter in self.chapters.values() for sentence in chapter.findings]

    @property
    def answers(self) -> dict[str, str]:
        """The answers to the questions of the whole comparison, as far as its rows allow."""
        from minigrad.compare.chapters import ANSWERS

        chapters = {q: (module, self.chapters.get(module.NAME)) for q, module in ANSWERS.items()}
        found = {q: module.answer(self, chapter) for q, (module, chapter) in chapters.items() if chapter}
        return {question: sentence for question, sentence in found.items() if sentence}

    def peak(self, device: str, threads: int | None, bound: str) -> float | None:
        """A measured peak in operations or bytes per second, or None."""
        for row in self.peaks:
            if (row["device"], row["threads"], row["bound"]) == (device, threads, bound):
                return row["rate"]
        return None

    def ladder(self, name: str) -> list[Record]:
        """The records of one ladder."""
        return [record for record in self if record.ladder == name]

    @property
    def ladders(self) -> list[str]:
        """The names of the ladders that have records."""
        return list(dict.fromkeys(record.ladder for record in self))

    def device_name(self, device: str) -> str:
        """The name of the processor or the card behind ``device``, or ``device`` if it is not known."""
        for row in self.machine["devices"]:
            if row["device"] == device and row["name"]:
                return row["name"]
        return device

    def called(self, row: Any) -> str:
        """The device of ``row`` in a sentence: ``"the NVIDIA H200 (recorded)"``, ``"this processor"``."""
        if row.recorded:
            return f"the {self.recordings[row.recorded]['card']} (recorded)"
        return "this processor" if row.device == "cpu" else f"{row.device} ({self.device_name(row.device)})"

    def draw(self, name: str = "ladder") -> Any:
        """The picture of a chapter, as a matplotlib Figure: which a notebook shows, and ``savefig`` writes.

        Args:
            name: ``"ladder"``, ``"roofline"``, ``"size"``, ``"batch"`` or ``"network"``.

        Raises:
            ValueError: no such picture, or nothing was measured for it.
            ImportError: matplotlib is not installed.
        """
        from minigrad.compare import picture, report

        if name != "ladder" and name not in report.PICTURES:
            raise ValueError(f"draw: the pictures are ladder, {', '.join(report.PICTURES)}; got {name!r}")
        if not picture.is_available():
            raise ImportError(picture.INSTALL)
        if name == "ladder":
            figure = picture.draw(self) if picture.drawable(self) else None
        else:
            figure = report.PICTURES[name](self.chapters[name], False) if name in self.chapters else None
        if figure is None:
            raise ValueError(f"draw: nothing was measured for the picture {name}")
        return figure

    def table(self, width: int = 100) -> str:
        """The results as text for a terminal of ``width`` columns."""
        from minigrad.compare.table import render

        return render(self, width)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values. The ladder's own records stand in ``"records"`` alone."""
        return {
            "format": FORMAT,
            "date": self.date,
            "interrupted": self.interrupted,
            "no_gpu": self.no_gpu,
            "notes": self.notes,
            "machine": self.machine,
            "peaks": self.peaks,
            "recordings": self.recordings,
            "records": [asdict(record) for record in self],
            "chapters": {name: _chapter_dict(chapter) for name, chapter in self.chapters.items()},
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Comparison:
        """The inverse of :meth:`to_dict`. What an older format lacks is empty.

        Raises:
            ValueError: it is no comparison, or of a newer format.
        """
        if not isinstance(found, dict) or not {"format", "machine", "date", "records"} <= set(found):
            raise ValueError("not the results of minigrad compare")
        if found["format"] > FORMAT:
            raise ValueError(f"format {found['format']} is newer than this minigrad, which knows {FORMAT}")
        comparison = cls(found["machine"], found["date"])
        for name in ("interrupted", "no_gpu", "notes", "peaks", "recordings"):
            setattr(comparison, name, found.get(name, getattr(comparison, name)))
        comparison += [_row(Record, {"refused": False, **values}) for values in found["records"]]
        for name, values in found.get("chapters", {}).items():
            comparison.chapters[name] = _load_chapter(comparison, name, values)
        return comparison

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what :meth:`save` wrote: ``results.json``, or the folder that holds it.

        Raises:
            OSError: it cannot be read. ValueError: it holds something else.
        """
        path = Path(path)
        if path.is_dir():
            path /= "results.json"
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``results.json``, the page ``report.html``, and where matplotlib is installed its pictures.

        Returns the paths written. The folder is made if it is not there. No ladder is drawn if nothing was
        measured but on the simulator.
        """
        from minigrad.compare import picture, report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "results.json"
        results.write_text(self.to_json() + "\n")
        paths = [results, *report.save(self, folder)]
        if picture.is_available() and picture.drawable(self):
            paths += picture.save(self, folder)
        return paths


def _chapter_dict(chapter: Chapter) -> dict[str, Any]:
    def plain(tables: dict[str, list[Any]]) -> dict[str, Any]:
        return {name: [asdict(row) for row in rows] for name, rows in tables.items()}

    tables = {} if chapter.name == "ladder" else plain(chapter.tables)
    return {
        "title": chapter.title,
        "question": chapter.question,
        "tables": tables,
        "recorded": plain(chapter.recorded),
        "findings": chapter.findings,
        "notes": chapter.notes,
    }


def _load_chapter(comparison: Comparison, name: str, values: dict[str, Any]) -> Chapter:
    from minigrad.compare.chapters import CHAPTERS

    types = CHAPTERS[name].TABLES

    def rows(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
        return {table: [_row(types[table], row) for row in found] for table, found in tables.items()}

    chapter = Chapter(name, values["title"], values["question"])
    chapter.tables = {"records": list(comparison)} if name == "ladder" else rows(values["tables"])
    chapter.recorded = rows(values["recorded"])
    chapter.findings, chapter.notes = values["findings"], values["notes"]
    return chapter


def _row(row_type: type, values: dict[str, Any]) -> Any:
    """A row of plain values; those that a newer minigrad has added, and this one does not know, are left."""
    known = {f.name for f in fields(row_type)}
    found = {name: value for name, value in values.items() if name in known}
    if row_type is Record:
        found["samples"] = tuple(found["samples"])
    return row_type(**found)
