"""Numbers that change from one replay of a recorded step to the next.

A CUDA graph launches each kernel with the arguments that it had when it was recorded. What differs between
two steps, such as a learning rate, can be no such argument: it stands in device memory, and is written there
before each replay. A :class:`Live` takes its place; a launcher that knows of it passes ``words``, a pointer,
and null in all other launches. A launcher that does not know of it fails: a ``Live`` is not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from struct import calcsize, pack, unpack
from typing import Any

from ..launch import CudaKernel
from ..source import CudaSource

WORD_BYTES = 8
WORDS_AT_ONCE = 32  # as in live.cu

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_write = CudaKernel(_source, "write_words")


class Live:
    """Some numbers of one kind.

    Attributes:
        format: ``"d"`` for double, ``"Q"`` for unsigned long long, once for each number.
        words: their place, an array on the device of float64 or uint64.
        read: ``read()`` gives the numbers of the step to come.
    """

    __slots__ = ("format", "read", "words")

    def __init__(self, format: str, words: Any, read: Callable[[], Sequence[float]]):
        self.format, self.words, self.read = format, words, read

    def __repr__(self) -> str:
        return "<changes in each replay>"


class LiveNumbers:
    """The place of all live numbers of one recorded step.

    Args:
        words: the array that holds them, uint64.
    """

    def __init__(self, words: Any):
        self._words = words
        self._format = "="
        self._readers: list[Callable[[], Sequence[float]]] = []
        self._written = b""

    def add(self, format: str, read: Callable[[], Sequence[float]]) -> Live:
        """New numbers; MemoryError if there are more than the array has place for."""
        begin = calcsize(self._format) // WORD_BYTES
        end = begin + len(format)
        if end > self._words.size:
            raise MemoryError(f"a captured step has more than {self._words.size} live numbers")
        words = self._words[begin:end]
        self._format += format
        self._readers.append(read)
        return Live(format, words.view("f8") if format[0] == "d" else words, read)

    def write(self) -> None:
        """Bring the device's words up to date, if any has changed."""
        packed = pack(self._format, *[number for read in self._readers for number in read()])
        if packed == self._written:
            return
        numbers = unpack(f"={len(packed) // WORD_BYTES}Q", packed)
        for begin in range(0, len(numbers), WORDS_AT_ONCE):
            part = numbers[begin : begin + WORDS_AT_ONCE]
            words = {"word": [*part, *[0] * (WORDS_AT_ONCE - len(part))]}
            _write.launch(1, WORDS_AT_ONCE, (self._words[begin:], words, len(part)))
        self._written = packed
