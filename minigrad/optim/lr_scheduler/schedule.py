"""What all schedules share: an epoch, and the rates of the optimizer's groups."""

from __future__ import annotations

from typing import Any

from minigrad.optim.optimizer import Optimizer
from minigrad.recording import refuse_in_capture

__all__ = ["LRScheduler", "check_count", "for_each_group"]


class LRScheduler:
    """The base class: a subclass gives a rate in :meth:`rate`, or, as in PyTorch, all in :meth:`get_lr`.

    Args:
        optimizer: whose groups' ``"lr"`` is set, at once and at every :meth:`step`. Their first rate is
            kept in the groups as ``"initial_lr"``.
        last_epoch: the number of the epoch before the one that starts now; -1 before the first.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        self._attach(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"{type(self).__name__}: to resume, group {i} of the optimizer needs 'initial_lr'"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch: float = last_epoch
        self.step()

    def _attach(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """The learning rate of the parameter group numbered ``group`` in this epoch, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} defines neither rate() nor get_lr()")

    def floor(self) -> float:
        """The rate that the schedule falls to; what other schedules scale is the part above it."""
        return 0.0

    def get_lr(self) -> list[float]:
        """The rates of the epoch ``last_epoch``, where the groups still have those of the one before."""
        rates = []
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=False)):
            new = self.rate(base, self.last_epoch, i)
            old = self.rate(base, self.last_epoch - 1, i) if self.last_epoch > 0 else base
            rates.append(_composed(group["lr"], old, new, self.floor()))
        return rates

    def formula(self) -> list[float]:
        """The rates of the epoch ``last_epoch`` by :meth:`rate`, whatever they are now."""
        return [self.rate(base, self.last_epoch, i) for i, base in enumerate(self.base_lrs)]

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next epoch, or to the given one, whose rate is then the formula's alone.

        CaptureError in a captured step, whose replays would not call it.
        """
        self._refuse_in_capture()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rates = self.get_lr() if epoch is None else self.formula()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate

    def _refuse_in_capture(self) -> None:
        refuse_in_capture(
            f"{type(self).__name__}.step(), which sets the optimizer's learning rate in Python",
            "call it outside, after the step; the next replay reads the new rate",
        )

    def restart(self) -> None:
        """Begin at epoch 0: what :class:`SequentialLR` does when the turn comes to a schedule."""
        self.step(0)

    def get_last_lr(self) -> list[float]:
        """The rate of each parameter group now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer, and functions."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer" and not k.startswith("_")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave; the rates themselves are in the optimizer's state."""
        own = self.state_dict()
        unknown = [key for key in state_dict if key not in own and not key.startswith("_")]
        missing = [key for key in own if key not in state_dict]
        if unknown or missing:
            raise ValueError(
                f"{type(self).__name__}: the state has unknown keys {unknown} and lacks {missing}"
            )
        self.__dict__.update({key: state_dict[key] for key in own})


def _composed(now: float, old: float, new: float, floor: float) -> float:
    """The rate that follows ``now``, where a schedule alone would go from ``old`` to ``new``."""
    if now == old:
        return new
    if old == floor:
        return now + (new - old)
    return floor + (now - floor) * (new - floor) / (old - floor)


def for_each_group(name: str, what: str, values: Any, optimizer: Optimizer) -> list[Any]:
    """``values`` as a list, or the one value for each group of the optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name}: expected an Optimizer, got {type(optimizer).__name__}")
    count = len(optimizer.param_groups)
    several = list(values) if isinstance(values, (list, tuple)) else [values] * count
    if len(several) != count:
        raise ValueError(f"{name}: {len(several)} {what} for {count} parameter groups")
    return several


def check_count(owner: str, name: str, value: Any) -> int:
    if not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise ValueError(f"{owner}: {name} must be an integer of at least 1, got {value!r}")
    return int(value)
