"""The state of a step that :func:`minigrad.capture` records, and how the layers below take part in it.

While a thread runs a step that is captured, ``recorder.current`` is its :class:`Recording`, otherwise None.
Whoever would wait for the card's numbers calls :meth:`Recording.refuse`; whoever uses a number that each
replay needs anew asks for a :class:`minigrad.kernels.cuda.live.Live` one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from minigrad.errors import CaptureError
from minigrad.kernels.cuda.live import Live, LiveNumbers
from minigrad.leaf_gradients import LeafGradients

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
        leaves: those whose gradients other runs of the step have touched.

    Attributes:
        op: the name of the op applied last.
        owned: the addresses of the graph's own memory.
        kept: arrays in other memory that the graph refers to, by their ids: a graph knows addresses alone.
        gradients: what the step does with the ``grad`` of leaves.
        undo: called, the last first, if recording fails, for what Python's code did though nothing ran.
        before_replay: called, in order, before each replay but the first, which belongs to the recorded run.
        cells: where the times of writes to tensors stand that the step writes to, by their ids.
    """

    def __init__(self, device: Device, numbers: LiveNumbers | None = None, leaves: Iterable[Any] = ()):
        self.device, self.numbers = device, numbers
        self.op = ""
        self.owned: set[int] = set()
        self.kept: dict[int, Any] = {}
        self.before_replay: list[Callable[[], object]] = []
        self.cells: dict[int, list[int]] = {}
        self.gradients = LeafGradients(None if numbers is None else leaves)
        self.undo: list[Callable[[], object]] = [self.gradients.undo]
        self._watched: list[tuple[Callable[[], Any], Any, Callable[[Any, Any], str]]] = []
        self._leaves: dict[int, tuple[weakref.ref, Any]] = {}
        self._settled: list[tuple[weakref.ref, Any, bool]] = []

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
            self.keep(array)
            if arg is not array and arg.is_leaf and id(array) in self.kept:
                self._leaves[id(arg)] = weakref.ref(arg), array

    def keep_all(self, args: Sequence[Any]) -> None:
        """Note the arguments of a launch."""
        for arg in args:
            self.keep(getattr(arg, "array", arg))

    def keep(self, array: Any) -> None:
        """Keep an array that is not in the graph's own memory."""
        if type(array) is not self.device.array_type or id(array) in self.kept:
            return
        if getattr(getattr(array.data, "mem", None), "ptr", None) not in self.owned:
            self.kept[id(array)] = array

    def live(self, format: str, read: Callable[[], Sequence[float]]) -> Live:
        """Numbers that ``read()`` gives before each replay: see :class:`minigrad.kernels.cuda.live.Live`."""
        assert self.numbers is not None
        return self.numbers.add(format, read)

    def watch(self, state: Callable[[], Any], describe: Callable[[Any, Any], str]) -> None:
        """Record the step anew as soon as ``state()`` differs from what it is now; ``describe(before, now)``
        says how."""
        self._watched.append((state, state(), describe))

    def finish(self) -> None:
        """The run has ended well: remember what it leaves."""
        self.gradients.finish()
        for reference, array in self._leaves.values():
            tensor = reference()
            if tensor is not None:  # otherwise the step itself has made and dropped it
                self._settled.append((reference, array, tensor.requires_grad))
        self._leaves.clear()

    def take_back(self) -> None:
        """Recording has failed: undo what Python's code did."""
        for action in reversed(self.undo):
            action()

    def what_changed(self) -> str | None:
        """What the graph was made from that is not as it was; None if all of it is."""
        for reference, array, required in self._settled:
            tensor = reference()
            if tensor is None:
                return f"a tensor of shape {array.shape}"
            if tensor._array is not array:
                return f"the array of a tensor of shape {array.shape}"
            if tensor.requires_grad is not required:
                return f"requires_grad of a tensor of shape {array.shape}"
        for state, before, describe in self._watched:
            if (now := state()) != before:
                return describe(before, now)
        return self.gradients.misfit()


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
