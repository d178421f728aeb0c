"""The chapters of the comparison, one module each, in the order in which they are read.

A chapter's module has NAME, TITLE and QUESTION; TABLES, the type of the rows of each of its tables;
COLUMNS, how the terminal shows them, and SHORT, the tables that it shows of a whole run; ``measure(session,
chapter)``, which fills the tables, and where need be ``complete(comparison, chapter)``, which adds what
follows from the other chapters; and ``findings(comparison, chapter)``, the sentences that follow from the
rows. A finding is left out where its numbers are missing. The modules of ANSWERS also have
``answer(comparison, chapter)``: one sentence, or none.
"""

from __future__ import annotations

from types import ModuleType

from minigrad.compare.chapters import (
    batch,
    ladder,
    machine,
    network,
    precision,
    roofline,
    simulator,
    size,
)
from minigrad.compare.comparison import Chapter

__all__ = ["ANSWERS", "CHAPTERS", "begin"]

CHAPTERS: dict[str, ModuleType] = {
    module.NAME: module for module in (machine, ladder, roofline, size, batch, network, precision, simulator)
}

ANSWERS = {
    "Why is a GPU faster?": machine,
    "When is it, and when is it not?": size,
    "What made each step faster?": ladder,
}
"""The questions of the whole comparison, and the chapters that answer them in a sentence."""


def begin(name: str) -> Chapter:
    """The chapter ``name`` with empty tables."""
    module = CHAPTERS[name]
    return Chapter(name, module.TITLE, module.QUESTION, {table: [] for table in module.TABLES})
