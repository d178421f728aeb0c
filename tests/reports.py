"""A comparison of made-up rows in all tables, to draw: nothing is measured for it."""

import typing
from dataclasses import fields, replace

import numpy as np

from minigrad.compare import Comparison, machine
from minigrad.compare.chapters import CHAPTERS, begin

LABEL = "NVIDIA Imaginary <1>, 2026-01-02, minigrad 0.0.1"
WORDS = {
    "ladder": ("matmul", "conv2d", "pooling"),
    "op": ("matmul",),
    "kind": ("python", "kernel", "kernel", "library"),
    "unit": ("GFLOP/s",),
    "mode": ("forward", "training step", "captured training step"),
    "format": ("float64", "float32", "bfloat16"),
    "bound": ("compute", "memory"),
    "network": ("MNIST CNN",),
    "dataset": ("MNIST",),
}


def made_up(row_type, index, rng, **given):
    """A row whose numbers are positive and whose words are those that its readers know."""
    hints = typing.get_type_hints(row_type)
    values = {}
    for field in fields(row_type):
        hint = str(hints[field.name])
        if field.name in WORDS:
            values[field.name] = WORDS[field.name][index % len(WORDS[field.name])]
        elif "tuple" in hint:
            values[field.name] = ()
        elif "bool" in hint:
            values[field.name] = field.name == "correct"
        elif "float" in hint:
            values[field.name] = float(np.exp(rng.normal(0, 1)))
        elif "int" in hint:
            values[field.name] = 1 << (index + 2)
        else:
            values[field.name] = f"{field.name} {index}"
    values |= {"failure": None, "device": "cpu", "threads": 2, "recorded": None} | given
    return row_type(**{name: value for name, value in values.items() if name in hints})


def comparison(seed=0, rows=4, recorded=True):
    """All chapters, each table with ``rows`` rows of this machine and as many that were recorded."""
    rng = np.random.default_rng(seed)
    made = Comparison(machine.info(), "2026-11-26T12:00:00+00:00")
    for name, module in CHAPTERS.items():
        chapter = made.chapters[name] = begin(name)
        for table, row_type in module.TABLES.items():
            chapter.tables[table] = [made_up(row_type, i, rng) for i in range(rows)]
            if recorded:
                there = {"device": "cuda:0", "threads": None, "recorded": LABEL}
                chapter.recorded[table] = [made_up(row_type, i, rng, **there) for i in range(rows)]
        chapter.findings = [f"What {name} says: 1 < 2 & 3 > 2."]
        chapter.notes = [f"A note on {name}."]
    made += made.chapters["ladder"].tables["records"]
    if recorded:
        made.recordings[LABEL] = {"card": "NVIDIA Imaginary <1>", "source": "made up"}
    return made


def without_numbers(made):
    """The comparison with None in every field that may be None, as after failures."""
    for chapter in made.chapters.values():
        for tables in (chapter.tables, chapter.recorded):
            for table, rows in tables.items():
                hints = {}
                for row in rows:
                    hints = typing.get_type_hints(type(row))
                empty = {
                    name: None
                    for name, hint in hints.items()
                    if "None" in str(hint) and name not in ("recorded", "threads")
                }
                tables[table] = [replace(row, **empty) for row in rows]
    made[:] = made.chapters["ladder"].tables["records"]
    return made
