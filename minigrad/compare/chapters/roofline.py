"""The roofline: every rung of the ladders between the two limits of its device.

A kernel is no faster than the arithmetic units, and no faster than its data arrive. How fast they must arrive
depends on its arithmetic intensity, the operations made for each byte that has to pass between memory and
the device; see Williams, Waterman and Patterson, "Roofline" (CACM, 2009). Nothing more is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import per_second, share, significant
from minigrad.compare.records import Record
from minigrad.compare.rows import Roof, RooflinePoint
from minigrad.compare.session import Session

NAME = "roofline"
TITLE = "The roofline"
QUESTION = "What limits a kernel: arithmetic, or memory?"
TABLES = {"points": RooflinePoint, "roofs": Roof}
COLUMNS = {
    "points": [
        ("ladder", lambda row: row.ladder),
        ("rung", lambda row: row.rung),
        ("device", lambda row: row.device),
        ("threads", lambda row: "" if row.threads is None else str(row.threads)),
        ("op/byte", lambda row: significant(row.intensity)),
        ("reached", lambda row: per_second(row.rate, "FLOP/s")),
        ("roof", lambda row: per_second(row.roof, "FLOP/s")),
        ("share", lambda row: share(row.roof_share)),
        ("limit", lambda row: row.bound),
    ]
}
SHORT = ()


def measure(session: Session, chapter: Chapter) -> None:
    """Make sure that both peaks are there; the ladder's rungs are placed when all is measured."""
    for bound in ("compute", "memory"):
        session.sample_peaks(bound)


def complete(comparison: Comparison, chapter: Chapter) -> None:
    """Place the ladder's records between the peaks."""
    chapter.tables["roofs"], chapter.tables["points"] = place(comparison, comparison.peak)


def place(
    records: Iterable[Record], peak: Callable[[str, int | None, str], float | None]
) -> tuple[list[Roof], list[RooflinePoint]]:
    """The roofs of the devices of ``records``, and the points under them."""
    records = [record for record in records if record.seconds and record.rate and record.bytes]
    roofs: dict[tuple[str, int | None], Roof] = {}
    points = []
    for record in records:
        where = record.device, record.threads
        compute, memory = (peak(*where, bound) for bound in ("compute", "memory"))
        if not compute or not memory:
            continue
        roofs[where] = Roof(device=where[0], threads=where[1], compute=compute, memory=memory)
        points.append(_point(record, roofs[where]))
    return list(roofs.values()), points


def _point(record: Record, roof: Roof) -> RooflinePoint:
    intensity = record.operations / record.bytes
    rate = record.operations / (record.seconds or float("inf"))
    limit = min(roof.compute, intensity * roof.memory)
    return RooflinePoint(
        device=record.device,
        recorded=record.recorded,
        threads=record.threads,
        ladder=record.ladder,
        rung=record.rung,
        kind=record.kind,
        size=record.size,
        intensity=intensity,
        rate=rate,
        roof=limit,
        bound="compute" if limit == roof.compute else "memory",
        roof_share=rate / limit,
    )


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    found = []
    most = max((row.threads or 0 for row in chapter.rows if row.device == "cpu"), default=0)
    roof = next((r for r in chapter.tables["roofs"] if r.device == "cpu" and r.threads == most), None)
    if roof:
        found.append(
            f"On this processor a kernel needs {significant(roof.ridge)} operations for each byte to be "
            f"limited by arithmetic ({per_second(roof.compute, 'FLOP/s')}) rather than by memory "
            f"({per_second(roof.memory, 'B/s')})."
        )
    kernels = [row for row in chapter.rows if row.device == "cpu" and row.kind == "kernel"]
    best = _best_of_each_ladder(kernels)
    for bound, meaning in (("compute", "arithmetic"), ("memory", "memory")):
        limited = [row for row in best if row.bound == bound]
        if limited:
            of = " and ".join(f"{row.ladder} ({row.rung}, {share(row.roof_share)})" for row in limited)
            found.append(
                f"Limited by {meaning}, with the share of the roof that the best kernel reaches: {of}."
            )
    found += _card(comparison, chapter)
    return found


def _best_of_each_ladder(rows: Sequence[Any]) -> list[Any]:
    best: dict[str, Any] = {}
    for row in rows:
        if row.ladder not in best or row.rate > best[row.ladder].rate:
            best[row.ladder] = row
    return list(best.values())


def _card(comparison: Comparison, chapter: Chapter) -> list[str]:
    own = [roof for roof in chapter.tables["roofs"] if roof.device.startswith("cuda")]
    roofs = own or chapter.recorded.get("roofs", [])
    if not roofs:
        return []
    called = comparison.called(roofs[0])
    return [
        f"{called[0].upper()}{called[1:]} needs {significant(roofs[0].ridge)} operations for each byte: "
        f"{per_second(roofs[0].compute, 'FLOP/s')} over {per_second(roofs[0].memory, 'B/s')}."
    ]
