"""By which tiles a product is made, and in how many parts of its K: the quickest way, by an estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .matmul import MULTIPROCESSORS

# What the second pass of a product in parts takes, with its launch, about: in microseconds, and in elements
# of the parts a microsecond. Measured on an H200, 2026-11-26.
SECOND_PASS, SECOND_PASS_RATE = 5.0, 0.7e6


class Plan(NamedTuple):
    """How a product is made: by which tiling, in how many parts of K; the microseconds that this may take."""

    time: float
    parts: int
    tiling: Any


def quickest(
    tiles: dict[Any, int], results: int, most_parts: int, time: Callable[[Any, int, int], float]
) -> Plan:
    """The plan that takes the least time.

    Args:
        tiles: how many tiles there are of each tiling.
        results: how many elements the product has.
        most_parts: into how many parts K may be cut at most.
        time: what the first pass takes, by (the tiling, the number of blocks, the number of parts).
    """
    plans = []
    for tiling, count in tiles.items():
        # In parts, about one or two blocks for each multiprocessor.
        for parts in {1, *(min(n * MULTIPROCESSORS // max(count, 1), most_parts) or 1 for n in (1, 2))}:
            second = SECOND_PASS + parts * results / SECOND_PASS_RATE if parts > 1 else 0
            plans.append(Plan(time(tiling, count * parts, parts) + second, parts, tiling))
    return min(plans)
