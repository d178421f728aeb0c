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
    own, cards = _facts(chapter.rows, "cpu"), _facts(_card_rows(chapter), None)
    compute, memory, threads = _best(chapter.rows, "compute"), _best(chapter.rows, "memory"), own.get("cores")
    if compute and threads:
        lanes = own.get("floats in a vector")
        found.append(
            f"The processor reaches {per_second(compute, 'FLOP/s')} in float32 with "
            f"{count(int(own.get('threads', threads)), 'thread')}"
            + (f", {lanes} floats in a vector" if lanes else "")
            + "."
        )
    if compute and memory:
        found.append(
            f"Its memory delivers {per_second(memory, 'B/s')}: in the time in which one float of 4 bytes "
            f"arrives, {significant(4 * compute / memory)} operations could be done. Who does fewer with "
            "it waits for memory."
        )
    card = _best(_card_rows(chapter), "compute"), _best(_card_rows(chapter), "memory")
    if compute and memory and card[0] and card[1]:
        sms = cards.get("multiprocessors (SMs)")
        name = cards.get("name", "the GPU")
        has = f" with its {sms} multiprocessors" if sms else ""
        found.append(
            f"{name}{_on(chapter)}{has} does {significant(card[0] / compute)} times this processor's "
            f"arithmetic, and its memory delivers {significant(card[1] / memory)} times as much."
        )
    return found


def _card_rows(chapter: Chapter) -> list[Any]:
    own = [row for row in chapter.rows if row.device.startswith("cuda")]
    return own or chapter.recorded_rows


def _on(chapter: Chapter) -> str:
    rows = _card_rows(chapter)
    return " (recorded)" if rows and rows[0].recorded else ""


def _facts(rows: list[Any], device: str | None) -> dict[str, Any]:
    return {row.what: row.value for row in rows if device in (None, row.device)}


def _best(rows: list[Any], bound: str) -> float | None:
    """The largest of the peaks of the processor, or of a card if ``rows`` are a card's."""
    what, _ = PEAKS[bound]
    where = "cuda" if all(row.device.startswith("cuda") for row in rows) else "cpu"
    return max((row.value for row in rows if row.what == what and row.device.startswith(where)), default=None)
