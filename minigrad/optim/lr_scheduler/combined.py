"""Schedules that combine others: one after the other, or all of them at each step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from minigrad.optim.lr_scheduler.plateau import ReduceLROnPlateau
from minigrad.optim.lr_scheduler.schedule import LRScheduler
from minigrad.optim.optimizer import Optimizer

__all__ = ["ChainedScheduler", "SequentialLR"]


class _Combined(LRScheduler):
    """Several schedules of one optimizer."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler]):
        name = type(self).__name__
        for i, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise TypeError(
                    f"{name}: schedule {i} is a {type(scheduler).__name__}, which cannot be in it"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"{name}: schedule {i} is of another optimizer")
        self._attach(optimizer)
        self._schedulers = list(schedulers)

    def state_dict(self) -> dict[str, Any]:
        """That of the base class, and the states of the schedules."""
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        own = dict(state_dict)
        states = own.pop("_schedulers", ())
        if len(states) != len(self._schedulers):
            raise ValueError(
                f"{type(self).__name__}: the state is of {len(states)} schedules, not {len(self._schedulers)}"
            )
        for scheduler, state in zip(self._schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        self.__dict__.update(own)


class ChainedScheduler(_Combined):
    """Several schedules at once: each scales the rates that the others give.

    Args:
        schedulers: of one optimizer, as they were made; their first epoch has begun.
        optimizer: that of the first, by default.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None):
        if not schedulers:
            raise ValueError("ChainedScheduler: there are no schedules")
        super().__init__(optimizer or schedulers[0].optimizer, schedulers)

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next epoch of each."""
        self._refuse_in_capture()
        for scheduler in self._schedulers:
            scheduler.step()

    def restart(self) -> None:
        """Begin at epoch 0 of each."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for scheduler in self._schedulers:
            scheduler.last_epoch = -1
            scheduler.step()


class SequentialLR(_Combined):
    """One schedule after another: a warm-up, and then what it was for.

    Args:
        optimizer: that of the schedules.
        schedulers: in their order; each begins with its own epoch 0.
        milestones: the epochs at which the second begins, the third, and so on.
        last_epoch: the number of the epoch before the one that starts now.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ):
        super().__init__(optimizer, schedulers)
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedules need one milestone less, got {len(milestones)}"
            )
        self.milestones = list(milestones)
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self._schedulers[bisect_right(self.milestones, 0)].restart()

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next epoch."""
        self._refuse_in_capture()
        self.last_epoch += 1
        turn = bisect_right(self.milestones, self.last_epoch)
        if turn and self.milestones[turn - 1] == self.last_epoch:
            self._schedulers[turn].restart()
        else:
            self._schedulers[turn].step()

    def restart(self) -> None:
        """Begin at epoch 0 of the first."""
        self.last_epoch = 0
        self._schedulers[0].restart()
