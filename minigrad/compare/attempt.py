"""An attempt: something that is prepared and checked on a device, and then timed, unless that failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minigrad.compare.rungs import RungError
from minigrad.compare.session import Session
from minigrad.compare.timing import Call, Timing, told
from minigrad.devices import Device

__all__ = ["Attempt", "finished", "time_in_turns"]


@dataclass
class Attempt:
    """What the points of the chapters on size, batch and precision share.

    Attributes:
        device, threads: where it runs, with so many CPU threads (None on a card).
        call: what is timed, once it was prepared.
        failure: why it is not, if it is not.
        error: how exact its result was.
    """

    device: Device
    threads: int | None
    call: Call | None = None
    failure: str | None = None
    error: float | None = None

    def try_to(self, prepare: Callable[[], None]) -> bool:
        """Call ``prepare``; whether it went well. A wrong result and a full memory become the failure."""
        try:
            prepare()
        except RungError as reason:
            self.failure = str(reason)
        except Exception as reason:
            self.failure = told("failed", reason)
        return self.failure is None

    @property
    def seconds(self) -> float | None:
        """The median time of a call."""
        return self.measured["seconds"]

    @property
    def measured(self) -> dict[str, Any]:
        """The fields that its row shares with all timed rows, and the error."""
        call = self.call
        failure = self.failure or (call.failure if call else None)
        timing = Timing.of(call.samples if call and not failure else ())
        return {
            "device": str(self.device),
            "threads": self.threads,
            "error": self.error,
            "failure": failure,
            **asdict(timing),
        }


def time_in_turns(session: Session, name: str, attempts: Sequence[Attempt], stop: float) -> None:
    """Time the attempts that went well, in turns, until ``stop`` on the monotonic clock."""
    calls = [one.call for one in attempts if one.call is not None and one.failure is None]
    session.take_turns(name, calls, stop)


def finished(attempts: Sequence[Any]) -> list[Any]:
    """The attempts that were timed or have failed: not those that Ctrl-C came before."""
    return [one for one in attempts if one.seconds is not None or one.measured["failure"] is not None]
