"""Streams and events of a card, by PyTorch's names.

A stream is a queue of work: what is in one stream runs in order, what is in two may run at the same time.
Kernels and copies join the current stream of their card, which is CuPy's, so that CuPy's own functions and
minigrad's keep their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigrad.devices import Device, find_card

__all__ = ["Event", "Stream", "current_stream", "default_stream", "stream"]


class Stream:
    """A queue of work on one card, which does not wait for the default stream.

    Args:
        device: the card's name or number, by default the current card.
        priority: streams of lower numbers go first, where the card has to choose.

    Attributes:
        device: the card.
        cupy: the :class:`cupy.cuda.Stream` underneath.
    """

    def __init__(self, device: str | int | Device | None = None, priority: int = 0):
        self.device = find_card(device)
        with self.device.active():
            self.cupy = self.device.xp.cuda.Stream(non_blocking=True, priority=priority)

    def __repr__(self) -> str:
        return f"<minigrad.cuda.Stream {self.cupy.ptr:#x} on {self.device}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.device, self.cupy.ptr) == (other.device, other.cupy.ptr)

    def __hash__(self) -> int:
        return hash((self.device, self.cupy.ptr))

    def synchronize(self) -> None:
        """Wait until all work of this stream is done."""
        with self.device.active():
            self.cupy.synchronize()
        self.device.raise_late_errors()

    def query(self) -> bool:
        """Whether all work of this stream is done."""
        with self.device.active():
            return self.cupy.done

    def record_event(self, event: Event | None = None) -> Event:
        """Put ``event``, or a new one, behind the work of this stream."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let the work to come in this stream wait for ``event``."""
        event.wait(self)

    def wait_stream(self, other: Stream) -> None:
        """Let the work to come in this stream wait for what ``other`` holds now."""
        self.wait_event(other.record_event())


class Event:
    """A mark in a stream: something to wait for, or to measure the time from.

    Args:
        enable_timing: whether :meth:`elapsed_time` will be asked.
        blocking: let :meth:`synchronize` sleep rather than spin.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False):
        self.enable_timing = enable_timing
        self.blocking = blocking
        self.device: Device | None = None
        self._event: Any = None  # made when it is recorded: it belongs to the card of its stream

    def record(self, stream: Stream | None = None) -> None:
        """Put the event behind the work of ``stream``, by default the current one."""
        stream = stream or current_stream()
        with stream.device.active():
            if self.device is not stream.device:
                self._event = stream.device.xp.cuda.Event(self.blocking, not self.enable_timing)
                self.device = stream.device
            self._event.record(stream.cupy)

    def wait(self, stream: Stream | None = None) -> None:
        """Let the work to come in ``stream``, by default the current one, wait for this event."""
        stream = stream or current_stream()
        if self._event is not None:
            with stream.device.active():
                stream.cupy.wait_event(self._event)

    def query(self) -> bool:
        """Whether all work before this event is done (true if it was never recorded)."""
        if self.device is None:
            return True
        with self.device.active():
            return self._event.done

    def synchronize(self) -> None:
        """Wait until all work before this event is done."""
        if self.device is not None:
            with self.device.active():
                self._event.synchronize()
            self.device.raise_late_errors()

    def elapsed_time(self, end_event: Event) -> float:
        """The milliseconds from this event to ``end_event``, both of which are done.

        Raises:
            ValueError: an event does not measure time, or was not recorded.
        """
        for name, event in (("this event", self), ("end_event", end_event)):
            if not event.enable_timing:
                raise ValueError(f"elapsed_time: {name} was made without enable_timing=True")
            if event.device is None:
                raise ValueError(f"elapsed_time: {name} has not been recorded")
        assert self.device is not None
        with self.device.active():
            return self.device.xp.cuda.get_elapsed_time(self._event, end_event._event)


@contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """Inside, the card of ``stream`` is the current one, and work on it joins ``stream``. None: no change."""
    if stream is None:
        yield
        return
    before = stream.device.use()
    stream.cupy.__enter__()
    try:
        yield
    finally:
        stream.device.use()  # whatever was chosen inside: CuPy takes the stream from the current card
        stream.cupy.__exit__(None, None, None)
        before.use()


def current_stream(device: str | int | Device | None = None) -> Stream:
    """The stream that work on a card joins now."""
    card = find_card(device)
    return _wrapped(card, card.xp.cuda.get_current_stream(card.index))


def default_stream(device: str | int | Device | None = None) -> Stream:
    """The stream that work on a card joins unless another is chosen."""
    card = find_card(device)
    return _wrapped(card, card.xp.cuda.Stream.null)


def _wrapped(card: Device, cupy_stream: Any) -> Stream:
    made = Stream.__new__(Stream)
    made.device, made.cupy = card, cupy_stream
    return made
