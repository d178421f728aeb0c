"""The state of a training in one file, from which it goes on with the same bits.

A checkpoint is a safetensors file. Its tensors are those of the model, of the optimizer and so on; all else,
numbers and text in lists and dicts, is JSON in the file's header. It holds data only: loading one never runs
code that came with it. ::

    for epoch in range(first, epochs):
        for images, labels in loader:
            ...
            save_checkpoint("run.ckpt", model=model, optimizer=optimizer, loader=loader, epoch=epoch)

    first = load_checkpoint("run.ckpt", model=model, optimizer=optimizer, loader=loader)["epoch"]
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minigrad.io.values import checksum, decode, encode
from minigrad.io.weights import read_arrays, save_file
from minigrad.random import Generator, default_generator

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = "minigrad checkpoint 1"
RANDOM = "random"


def save_checkpoint(path: str | os.PathLike[str], /, **parts: Any) -> None:
    """Write ``parts`` and the states of all random numbers to ``path``, as a whole or not at all.

    Args:
        path: the file. A process that is killed while it writes leaves the earlier file as it was.
        parts: under names of your own, what has a ``state_dict()`` (model, optimizer, schedule, scaler,
            loader), generators of random numbers, and plain values: numbers, text, tensors, arrays, and
            lists, tuples and dicts of these. minigrad's, NumPy's and Python's global random states are added.

    Raises:
        TypeError: a value that is none of these; nothing is written.
        OSError: ``path`` cannot be written; a file that was there before is as it was.
        ImportError: the safetensors package is missing: ``pip install "minigrad[io]"``.
    """
    if RANDOM in parts:
        raise ValueError(f"save_checkpoint: the name {RANDOM!r} is that of the global random states")
    arrays: dict[str, np.ndarray] = {}
    tree = {}
    for name, part in {**parts, RANDOM: _RandomStates()}.items():
        access = _access(part)
        tree[name] = {
            "restores": access is not None,
            "state": encode(part if access is None else access[0](), name, arrays),
        }
    text = json.dumps(tree)
    save_file(arrays, path, {"format": FORMAT, "tree": text, "crc32": checksum(text, arrays)})


def load_checkpoint(path: str | os.PathLike[str], /, *, strict: bool = True, **parts: Any) -> dict[str, Any]:
    """Bring ``parts`` and all random numbers to the state that :func:`save_checkpoint` wrote to ``path``.

    Args:
        path: the file.
        strict: whether it is an error to leave out an object whose state is in the file. Otherwise that state
            is among the values that are returned.
        parts: the objects, under the names that they were saved by.

    Returns:
        The plain values, by name; tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, truncated, or no checkpoint; or its parts are others than ``parts``. What
            the parts themselves refuse is raised as they do, with a note that names the part. In all cases
            nothing has changed.
    """
    saved = _read(path)
    found = {name for name, entry in saved.items() if entry["restores"]}
    missing = [name for name in parts if name not in saved]
    unexpected = sorted(found - parts.keys() - {RANDOM}) if strict else []
    if missing or unexpected:
        raise ValueError(
            f"{os.fspath(path)}: missing parts: {missing}; unexpected parts: {unexpected}; the checkpoint "
            f"holds {sorted(saved.keys() - {RANDOM})}"
        )
    setters = {}
    for name, part in {**parts, RANDOM: _RandomStates()}.items():
        access = _access(part)
        if access is None or name not in found:
            raise TypeError(f"load_checkpoint: {name!r} cannot be restored, it is a {type(part).__name__}")
        setters[name] = access
    _restore_all(path, {name: (*access, saved[name]["state"]) for name, access in setters.items()})
    return {name: entry["state"] for name, entry in saved.items() if name not in setters}


def _restore_all(path: Any, parts: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Any]]) -> None:
    """Set all states; if one is refused, set those before it back."""
    done: list[tuple[Callable[[Any], Any], Any]] = []
    for name, (get, put, state) in parts.items():
        before = copy.deepcopy(get())
        try:
            put(state)
        except BaseException as error:
            for put_back, earlier in reversed(done):
                put_back(earlier)
            error.add_note(f"while {name!r} was loaded from {os.fspath(path)}; nothing has changed")
            raise
        done.append((put, before))


# ---- what has a state -------------------------------------------------------------------------------------


class _RandomStates:
    """The global random states of minigrad, NumPy and Python, as one object with a state."""

    def state_dict(self) -> dict[str, Any]:
        """All three."""
        return {
            "minigrad": default_generator.get_state(),
            "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # the user's code may draw from it
            "python": random.getstate(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        default_generator.set_state(state["minigrad"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        random.setstate(state["python"])


def _access(part: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """How the state of ``part`` is read and set; None if it is a plain value."""
    if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        return part.state_dict, part.load_state_dict
    if isinstance(part, Generator):
        return part.get_state, part.set_state
    if isinstance(part, random.Random):
        return part.getstate, part.setstate
    if isinstance(part, np.random.Generator):
        bits = part.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return None


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parts of the checkpoint ``path``, whose content is checked."""
    arrays, metadata = read_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)}: a safetensors file, but not a {FORMAT}; weights alone are read by load()"
        )
    text = metadata.get("tree", "")
    if metadata.get("crc32") != checksum(text, arrays):
        raise ValueError(f"{os.fspath(path)}: the checkpoint is damaged: its content has another checksum")
    return {
        name: {**entry, "state": decode(entry["state"], arrays)} for name, entry in json.loads(text).items()
    }
