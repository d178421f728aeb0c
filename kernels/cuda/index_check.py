"""Launches ``index_check.cu``: whether indices are in range, which the host asks later.

To know at once, the host would have to wait for the card, before each embedding and each loss of classes. So
the card writes a wrong index into memory of the host, and whoever waits for the card next
(:meth:`minigrad.Device.synchronize`, or a value that is brought to the host) raises the error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import cupy

THREADS = 256  # in a block
PLACES = 256  # checks whose results may be awaited at a time
RIGHT = np.iinfo(np.int64).min  # no index: what is left where none is wrong

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_look = CudaKernel(_source, "look_for_wrong<T>")
_replace = CudaKernel(_source, "replace_wrong<T>")
_look_outside = CudaKernel(_source, "look_outside<T>")


def look(wrong: Any, indices: Any, size: int, ignored: int = -1) -> None:
    """Leave in ``wrong``, (1,) uint64, one of the ``indices`` outside of [0, size), but for ``ignored``."""
    _look.launch(blocks(indices.size, THREADS), THREADS, (wrong, indices, indices.size, size, ignored))


def replace(wrong: Any, right: Any, indices: Any, size: int, ignored: int) -> None:
    """As :func:`look`; and ``right``, int64, becomes the ``indices``, with ``ignored`` for the wrong ones."""
    arguments = (wrong, right, indices, indices.size, size, ignored)
    _replace.launch(blocks(indices.size, THREADS), THREADS, arguments)


def look_outside(wrong: Any, x: Any, low: float, high: float) -> None:
    """Leave in ``wrong`` the number of one of the elements of ``x`` outside of [low, high], as NaN is."""
    _look_outside.launch(blocks(x.size, THREADS), THREADS, (wrong, x, x.size, low, high))


class Board:
    """Where a card leaves wrong indices for the host.

    Args:
        words: int64, (PLACES,): memory of the host that is the card's too.
        places: the same words as arrays of the card, (1,) uint64 each.
    """

    def __init__(self, words: np.ndarray, places: list[Any]):
        self._words, self._places = words, places
        self._errors: list[Callable[[int], Exception] | None] = [None] * len(places)
        self._next = itertools.count()
        words[...] = RIGHT
        self._untouched = words.tobytes()

    def place_for(self, error: Callable[[int], Exception]) -> Any:
        """Where a kernel is to leave a wrong index; ``error(index)`` is what that raises."""
        self.raise_found()
        place = next(self._next) % len(self._places)
        self._errors[place] = error
        return self._places[place]

    def raise_found(self) -> None:
        """Raise the error of a wrong index that has been found so far, once."""
        if self._words.tobytes() == self._untouched:  # several times as quick as a comparison by NumPy
            return
        place = int((self._words != RIGHT).argmax())
        index, error = int(self._words[place]), self._errors[place]
        self._words[...] = RIGHT
        assert error is not None
        raise error(index)


_boards: dict[int, Board] = {}


def place_for(error: Callable[[int], Exception], card: int) -> Any:
    """Where a kernel on this card is to leave a wrong index: the first argument of :func:`look`.

    The host does not wait for the kernel. :func:`raise_found` raises ``error(index)`` once it has left one,
    and so does the next ``place_for``.
    """
    board = _boards.get(card)
    if board is None:
        board = _boards[card] = _open_board(card)
    return board.place_for(error)


def raise_found(card: int) -> None:
    """Raise the error of a wrong index that the card with this number has come upon so far."""
    board = _boards.get(card)
    if board is not None:
        board.raise_found()


def _open_board(card: int) -> Board:
    cp, size = cupy(), PLACES * 8
    memory = cp.cuda.alloc_pinned_memory(size)
    words = np.frombuffer(memory, np.int64, PLACES)
    # Page-locked memory has the same address for the host and for the card.
    start = cp.cuda.MemoryPointer(cp.cuda.UnownedMemory(memory.ptr, size, memory, card), 0)
    return Board(words, [cp.ndarray(1, np.uint64, start + 8 * place) for place in range(PLACES)])
