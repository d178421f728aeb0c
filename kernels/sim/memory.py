"""Which memory nothing has written yet: what makes reads of garbage and forgotten outputs visible.

:func:`empty` makes an array that is filled with poison and tracked: checked launches note which of its bytes
they write, and complain of reading others. What NumPy writes is not seen, only its effect: if a byte that no
kernel has written holds something else than poison, the whole array counts as written from then on, so that
no correct program is accused. An array that has been written whole is tracked no longer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from .. import sim
from ..errors import KernelAccessError

# A NaN in float32 and float64. By the address modulo 4; regions.h has it too.
PATTERN = np.array([0xA5, 0xA5, 0xC5, 0xFF], np.uint8)


class _Tracked:
    """An array made by :func:`empty`. Holds it weakly: its views keep it alive, and this does not."""

    def __init__(self, array: np.ndarray):
        key = id(array)
        self.reference = weakref.ref(array, lambda _: _tracked.pop(key, None))
        self.written = np.zeros(array.nbytes, np.uint8)

    def is_written(self) -> bool:
        """Whether all of it has been written, by kernels or by NumPy."""
        missing = self.written == 0
        array = self.reference()
        if array is None or not missing.any():
            return True
        memory = array.reshape(-1).view(np.uint8)
        return bool((memory[missing] != _poison(memory.size)[missing]).any())


_tracked: dict[int, _Tracked] = {}


def empty(shape: int | Sequence[int], dtype: Any = np.float32, like: np.ndarray | None = None) -> np.ndarray:
    """An array of which nothing has been written yet, as ``np.empty`` makes it, or ``np.empty_like(like)``.

    A checked launch that reads an element before any launch has written it ends with an error.
    """
    array = np.empty(shape, dtype) if like is None else np.empty_like(like, dtype, "C", shape=shape)
    if array.nbytes and sim.get_checks():
        memory = array.reshape(-1).view(np.uint8)
        memory[...] = _poison(memory.size)
        _tracked[id(array)] = _Tracked(array)
    return array


def written_bytes(array: np.ndarray) -> np.ndarray | None:
    """For each byte of the owner of ``array``'s memory whether it is written; None: all are."""
    key = id(owner_of(array))
    record = _tracked.get(key)
    if record is not None and record.is_written():
        del _tracked[key]
        return None
    return None if record is None else record.written


def check_written(array: np.ndarray, what: str) -> None:
    """Raise KernelAccessError, which names ``what``, if an array of :func:`empty` has unwritten elements."""
    written = written_bytes(array)
    if written is None:
        return
    owner = owner_of(array)
    missing = np.argwhere(~written.reshape(owner.size, owner.itemsize).all(axis=1).reshape(owner.shape))
    first = ", ".join(map(str, missing[0]))
    raise KernelAccessError(
        f"{what}: {len(missing)} of its {owner.size} elements were never written, the first of them "
        f"[{first}] (shape {owner.shape}): let the kernel's threads cover every element"
    )


class Operation(NamedTuple):
    """What is being computed, and from which arrays, which it must not change."""

    name: str
    inputs: tuple[np.ndarray, ...]


current_operation: ContextVar[Operation | None] = ContextVar("current_operation", default=None)


@contextmanager
def operation(name: str, inputs: Sequence[Any], outputs: Sequence[np.ndarray]) -> Iterator[None]:
    """In this context checked launches leave ``inputs`` as they are; at its end ``outputs`` are written.

    Raises:
        KernelAccessError: a kernel wrote to an input, or left an element of an output made by :func:`empty`
            as it was.
    """
    arrays = tuple(array for array in inputs if isinstance(array, np.ndarray))
    token = current_operation.set(Operation(name, arrays))
    try:
        yield
    finally:
        current_operation.reset(token)
    for number, output in enumerate(outputs):
        which = "the output" if len(outputs) == 1 else f"output {number}"
        check_written(output, f"{name}: {which}")


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of which ``array`` is a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _poison(size: int) -> np.ndarray:
    words = -(-size // PATTERN.size)
    return np.full(words, PATTERN.view(np.uint32)).view(np.uint8)[:size]
