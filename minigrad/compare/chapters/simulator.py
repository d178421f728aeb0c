"""What a GPU's threads do: the naive and the tiled product, counted on the simulator, side by side.

Times show that a rung is faster; counts show why: fewer bytes asked of the memory, none of them wasted, no
bank conflicts, more arithmetic for each byte. They need no card.
"""

from __future__ import annotations

import time
from typing import Any

from minigrad.compare import counts
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.numbers import significant
from minigrad.compare.rows import Counters
from minigrad.compare.session import Session
from minigrad.devices import device
from minigrad.errors import DeviceError
from minigrad.kernels.sim import LaunchProfile
from minigrad.kernels.sim.profiler import format_bytes

NAME = "simulator"
TITLE = "What the GPU's threads do"
QUESTION = "Why is the tiled kernel faster than the naive one?"
TABLES = {"counters": Counters}
COLUMNS = {
    "counters": [
        ("rung", lambda row: row.rung),
        ("asked", lambda row: format_bytes(row.asked_bytes)),
        ("used", lambda row: f"{row.used_share:.0%}"),
        ("distinct", lambda row: format_bytes(row.distinct_bytes)),
        ("sectors/request", lambda row: significant(row.sectors_per_request)),
        ("shared", lambda row: str(row.shared_wavefronts)),
        ("conflicts", lambda row: str(row.bank_conflicts)),
        ("barriers", lambda row: f"{row.barriers:.3g}"),
        ("op/byte", lambda row: significant(row.intensity) if row.intensity else ""),
    ]
}
SHORT = ("counters",)

OP = "matmul"
RUNGS = ("naive", "tiled")
MORE_RUNGS = ("register_tile", "vectorized")  # unless in a hurry


def measure(session: Session, chapter: Chapter) -> None:
    """Count the launches of each rung."""
    try:
        device("sim")
    except DeviceError as error:
        chapter.notes.append(f"Nothing was counted: {error}.")
        return
    size = "x".join(map(str, counts.LADDERS[OP][2][0]))
    stop = time.monotonic() + session.effort.chapter
    for rung in RUNGS if session.quick else RUNGS + MORE_RUNGS:
        if rung in MORE_RUNGS and time.monotonic() > stop:
            break
        session.progress(f"simulator: counting what {rung} asks of a card")
        for _, launches in counts.profile_ladder(OP, [rung]):
            chapter.tables["counters"] += [_row(rung, size, launch) for launch in launches]


def _row(rung: str, size: str, launch: LaunchProfile) -> Counters:
    of_global = sum(
        (launch.total(f"global {what}") for what in ("store", "atomic")), launch.total("global load")
    )
    of_shared = sum(
        (launch.total(f"shared {what}") for what in ("store", "atomic")), launch.total("shared load")
    )
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    return Counters(
        device="sim",
        op=OP,
        rung=rung,
        size=size,
        kernel=launch.kernel,
        blocks=blocks,
        block_threads=launch.block[0] * launch.block[1] * launch.block[2],
        asked_bytes=launch.asked_bytes,
        used_share=of_global.efficiency,
        distinct_bytes=launch.distinct_loaded + launch.distinct_stored,
        requests=of_global.requests,
        sectors_per_request=of_global.cost / max(1, of_global.requests),
        shared_wavefronts=of_shared.cost,
        bank_conflicts=launch.bank_conflicts,
        barriers=launch.barriers / blocks,
        divergent_share=launch.divergent / max(1, launch.meetings),
        operations=launch.operations,
        intensity=launch.intensity,
    )


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    rows = {row.rung: row for row in chapter.rows}
    naive, tiled = rows.get("naive"), rows.get("tiled")
    if not naive or not tiled:
        return []
    found = [_asked(naive, tiled)]
    if tiled.shared_wavefronts > naive.shared_wavefronts:
        conflicts = tiled.bank_conflicts
        found.append(
            f"In exchange, tiled accesses shared memory {tiled.shared_wavefronts} times, "
            + (f"{conflicts} of them because of bank conflicts" if conflicts else "without a bank conflict")
            + f", and waits at {significant(tiled.barriers)} barriers in each block."
        )
    if naive.intensity and tiled.intensity:
        found.append(
            f"So naive does {significant(naive.intensity)} operations for each byte that it asks for, tiled "
            f"{significant(tiled.intensity)}: {_higher(naive, tiled)} on the roofline."
        )
    return found


def _asked(naive: Any, tiled: Any) -> str:
    sentence = (
        f"For {naive.op} of {naive.size} the naive kernel asks for {format_bytes(naive.asked_bytes)} of "
        f"global memory, the tiled one for {format_bytes(tiled.asked_bytes)}"
    )
    if tiled.asked_bytes and naive.asked_bytes > tiled.asked_bytes:
        factor = naive.asked_bytes / tiled.asked_bytes
        sentence += f", {significant(factor)} times less: a block loads each tile once, for all its threads"
    return sentence + "."


def _higher(naive: Any, tiled: Any) -> str:
    return "further to the right" if tiled.intensity > naive.intensity else "further to the left"
