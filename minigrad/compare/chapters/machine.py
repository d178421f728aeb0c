"""The machine: what the processor and the card have, and what was measured of them."""

from __future__ import annotations

from typing import Any

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import count, per_second, quantity, significant
from minigrad.compare.rows import Fact
from minigrad.compare.session import Session
from minigrad.devices import Device
from minigrad.kernels import cpu

NAME = "machine"
TITLE = "The machine"
QUESTION = "What can the hardware do at best?"
TABLES = {"facts": Fact}
COLUMNS = {
    "facts": [
        ("device", lambda row: row.device),
        ("what", lambda row: row.what),
        ("", lambda row: quantity(row.value, row.unit)),
        ("threads", lambda row: "" if row.threads is None else str(row.threads)),
    ]
}
SHORT = ("facts",)

FLOAT_BITS = 32
VECTOR_BITS = {"x86_64_v2": 128, "x86_64_v3": 256, "x86_64_v4": 512, "baseline": 128}
PEAKS = {"compute": ("peak arithmetic, float32", "FLOP/s"), "memory": ("memory bandwidth", "B/s")}


def measure(session: Session, chapter: Chapter) -> None:
    """The facts, and the peaks of arithmetic and memory."""
    session.progress("measuring the machine's peaks")
    for device in session.devices:
        facts = {"cpu": _processor, "cuda": _card, "sim": _simulator}[device.type](session, device)
        chapter.tables["facts"] += [
            Fact(device=str(device), what=what, value=value, unit=unit) for what, value, unit in facts
        ]
    for bound in PEAKS:
        session.sample_peaks(bound)


def complete(comparison: Comparison, chapter: Chapter) -> None:
    """Add the peaks, which other chapters may have measured again."""
    for row in comparison.peaks:
        what, unit = PEAKS[row["bound"]]
        chapter.tables["facts"].append(
            Fact(device=row["device"], what=what, value=row["rate"], unit=unit, threads=row["threads"])
        )


def _processor(session: Session, device: Device) -> list[tuple[str, float | str, str]]:
    machine = session.comparison.machine
    bits = VECTOR_BITS[cpu.isa]
    return [
        ("name", machine["processor"], ""),
        ("cores", machine["cores"], ""),
        ("threads", session.threads, ""),
        ("vector width", bits, "bit"),
        ("floats in a vector", bits // FLOAT_BITS, ""),
        ("instruction set", machine["vectors"], ""),
        *((f"{name} cache", size, "B") for name, size in machine["caches"].items()),
    ]


def _card(session: Session, device: Device) -> list[tuple[str, float | str, str]]:
    found = device.xp.cuda.runtime.getDeviceProperties(device.index)
    name = found["name"]
    return card_facts(
        name.decode() if isinstance(name, bytes) else str(name),
        f"{found['major']}.{found['minor']}",
        found["multiProcessorCount"],
        found["totalGlobalMem"],
        found["l2CacheSize"],
    )


def card_facts(
    name: str, capability: str, multiprocessors: int, memory: int, l2: int
) -> list[tuple[str, float | str, str]]:
    """What a card is and has, as (what, value, unit)."""
    return [
        ("name", name, ""),
        ("compute capability", capability, ""),
        ("multiprocessors (SMs)", multiprocessors, ""),
        ("memory", memory, "B"),
        ("L2 cache", l2, "B"),
    ]


def _simulator(session: Session, device: Device) -> list[tuple[str, float | str, str]]:
    return [("name", session.comparison.device_name("sim"), "")]


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    found = []
    own = [row for row in chapter.rows if row.device == "cpu"]
    facts = _by_name(own)
    compute, memory = _best(own, "compute"), _best(own, "memory")
    if compute:
        threads, lanes = facts.get("threads"), facts.get("floats in a vector")
        with_threads = f" with {count(int(threads), 'thread')}" if threads else ""
        with_lanes = f", {lanes} floats in a vector" if lanes else ""
        found.append(
            f"The processor reaches {per_second(compute, 'FLOP/s')} in float32{with_threads}{with_lanes}."
        )
    if compute and memory:
        found.append(
            f"The processor's memory delivers {per_second(memory, 'B/s')}: in the time that one float of 4 "
            f"bytes takes to arrive, it could do {significant(4 * compute / memory)} operations. A kernel "
            "that does fewer for each float waits for memory."
        )
    return found + ([sentence] if (sentence := answer(comparison, chapter)) else [])


def answer(comparison: Comparison, chapter: Chapter) -> str:
    """Why a GPU is faster: the card beside the processor."""
    own, card = [row for row in chapter.rows if row.device == "cpu"], _card_rows(chapter)
    rates = [_best(rows, bound) for bound in PEAKS for rows in (own, card)]
    if not all(rates):
        return ""
    compute, card_compute, memory, card_memory = (rate or 0.0 for rate in rates)
    facts = _by_name(card)
    name, sms = facts.get("name", card[0].device), facts.get("multiprocessors (SMs)")
    where = f"{name} (recorded)" if card[0].recorded else name
    has = f" with its {sms} multiprocessors" if sms else ""
    return (
        f"{where}{has} does {significant(card_compute / compute)} times as many operations a second as this "
        f"processor, and its memory delivers {significant(card_memory / memory)} times as much."
    )


def _card_rows(chapter: Chapter) -> list[Any]:
    own = [row for row in chapter.rows if row.device.startswith("cuda")]
    return own or chapter.recorded_rows


def _by_name(rows: list[Any]) -> dict[str, Any]:
    return {row.what: row.value for row in rows}


def _best(rows: list[Any], bound: str) -> float | None:
    """The largest of the peaks among the facts of a device."""
    what, _ = PEAKS[bound]
    return max((row.value for row in rows if row.what == what), default=None)
