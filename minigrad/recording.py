"""The state of a step that :func:`minigrad.capture` records, and how the layers below take part in it.

While a thread runs a step that is captured, ``recorder.current`` is its :class:`Recording`, otherwise None.
Whoever would wait for the card's numbers calls :meth:`Recording.refuse`; whoever uses a number that each
replay needs anew asks for a :class:`minigrad.kernels.cuda.live.Live` one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from minigrad.errors import CaptureError
from minigrad.kernels.cuda.live import Live, LiveNumbers

if TYPE_CHECKING:
    from minigrad.devices import Device

__all__ = [
    "Recording",
    "preparing",
    "recorder",
    "recording_on",
    "refuse_in_capture",
    "refuse_shape_from_values",
]

MAX_LIVE_NUMBERS = 4096


class Recording:
    """One run of a step.

    Args:
        device: where the step computes.
        numbers: the place of live numbers if this run makes a graph; None if it only checks.

    Attributes:
        op: the name of the op applied last.
        owned: the addresses of the graph's own memory.
        kept: arrays in other memory that the graph refers to, by their ids: a graph knows addresses alone.
        before_replay: called, in order, before each replay but the first, which belongs to the recorded run.
        cells: where the times of writes to tensors stand that the step writes to.
    """

    def __init__(self, device: Device, numbers: LiveNumbers | None = None):
        self.device, self.numbers = device, numbers
        self.op = ""
        self.owned: set[int] = set()
        self.kept: dict[int, Any] = {}
        self.before_replay: list[Callable[[], object]] = []
        self.cells: list[list[int]] = []
        self._watched: list[tuple[Callable[[], Any], Any]] = []
        self._leaves: list[tuple[weakref.ref, Any]] = []

    @property
    def makes_a_graph(self) -> bool:
        """Whether the step is being recorded, rather than run and checked."""
        return self.numbers is not None

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise CaptureError: ``what`` cannot be in a captured step."""
        after = f" (after op {self.op!r})" if self.op else ""
        raise CaptureError(f"capture: the step has {what}{after}, which cannot be replayed; {instead}")

    def applies(self, op: str, args: Sequence[Any]) -> None:
        """Note that an op is applied, and whose memory it reads."""
        self.op = op
        if not self.makes_a_graph:
            return
        for arg in args:
            array = getattr(arg, "_array", arg)
            if self.keep(array) and arg is not array and arg.is_leaf:
                self._leaves.append((weakref.ref(arg), array))

    def keep_all(self, args: Sequence[Any]) -> None:
        """Note the arguments of a launch."""
        for arg in args:
            self.keep(getattr(arg, "array", arg))

    def keep(self, array: Any) -> bool:
        """Keep an array that is not in the graph's own memory; returns whether it was not kept before."""
        if type(array) is not self.device.array_type or id(array) in self.kept:
            return False
        if getattr(getattr(array.data, "mem", None), "ptr", None) in self.owned:
            return False
        self.kept[id(array)] = array
        return True

    def live(self, format: str, read: Callable[[], Sequence[float]]) -> Live:
        """Numbers that ``read()`` gives before each replay: see :class:`minigrad.kernels.cuda.live.Live`."""
        assert self.numbers is not None
        return self.numbers.add(format, read)

    def watch(self, state: Callable[[], Any]) -> None:
        """Record the step anew as soon as ``state()`` differs from what it is now."""
        self._watched.append((state, state()))

    def is_valid(self) -> bool:
        """Whether all that the graph was made from is as it was."""
        for reference, array in self._leaves:
            tensor = reference()
            if tensor is not None and tensor._array is not array:
                return False
        return all(state() == before for state, before in self._watched)


class _Recorder(threading.local):
    current: Recording | None = None


recorder = _Recorder()


def recording_on(device: Device) -> Recording | None:
    """The recording that makes a graph of this thread's work on ``device``, if there is one."""
    current = recorder.current
    return current if current is not None and current.makes_a_graph and current.device is device else None


def refuse_in_capture(what: str, instead: str) -> None:
    """Raise CaptureError if this thread runs a step that is captured, on whatever device."""
    if recorder.current is not None:
        recorder.current.refuse(what, instead)


def refuse_shape_from_values(name: str) -> None:
    """Raise CaptureError for an op that has to wait for the card to learn the shape of its result."""
    refuse_in_capture(
        f"{name}, whose shape depends on values", "keep the shape: mask by where() or a product"
    )


@contextmanager
def preparing() -> Iterator[None]:
    """A context for what a step does in its first calls alone, or without a card: to look at values and to
    copy from the CPU is refused in it only while a graph is made."""
    current = recorder.current
    if current is None or not current.makes_a_graph:
        recorder.current = None
    try:
        yield
    finally:
        recorder.current = current
