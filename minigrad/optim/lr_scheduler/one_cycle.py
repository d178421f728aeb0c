"""The one-cycle policy: the rate rises, then falls far below where it began; momentum does the opposite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minigrad.optim.lr_scheduler.schedule import LRScheduler, check_count, for_each_group
from minigrad.optim.optimizer import Optimizer

__all__ = ["OneCycleLR"]


class OneCycleLR(LRScheduler):
    """From max_lr / div_factor up to max_lr, and down to max_lr / div_factor / final_div_factor.

    Smith and Topin, https://arxiv.org/abs/1708.07120. Call ``step()`` after each batch. For steps that are
    captured (:func:`minigrad.capture`) with another optimizer than SGD, Adam and AdamW, set
    ``cycle_momentum=False``: of these alone a graph reads the momentum anew.

    Args:
        optimizer: whose groups' ``"lr"`` is set, and with ``cycle_momentum`` their momentum or first beta.
        max_lr: the highest rate, one for all groups or a list with one for each.
        total_steps: the number of batches; or give ``epochs`` and ``steps_per_epoch``.
        pct_start: the share of the steps in which the rate rises.
        anneal_strategy: ``"cos"``, half a cosine, or ``"linear"``.
        cycle_momentum: whether momentum falls from ``max_momentum`` to ``base_momentum`` and rises again.
        three_phase: fall to the first rate in as many steps as it rose, and only then to the last.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = check_count("OneCycleLR", "epochs", epochs)
            total_steps *= check_count("OneCycleLR", "steps_per_epoch", steps_per_epoch)
        self.total_steps = check_count("OneCycleLR", "total_steps", total_steps)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start must be in [0, 1], got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f'OneCycleLR: anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}'
            )
        self.anneal_strategy = anneal_strategy
        max_lrs = for_each_group("OneCycleLR", "rates max_lr", max_lr, optimizer)
        self.cycle_momentum = cycle_momentum
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ValueError(
                f"OneCycleLR: {type(optimizer).__name__} has no momentum; set cycle_momentum=False"
            )
        self.lows = for_each_group("OneCycleLR", "numbers base_momentum", base_momentum, optimizer)
        self.highs = for_each_group("OneCycleLR", "numbers max_momentum", max_momentum, optimizer)
        if last_epoch == -1:
            for group, highest in zip(optimizer.param_groups, max_lrs, strict=True):
                group["initial_lr"] = highest / div_factor
        self.max_lrs = max_lrs
        self.final_div_factor = final_div_factor
        self._phases = _phases(self.total_steps, pct_start, three_phase)
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """Between the ends of the phase that ``epoch`` is in."""
        levels = {"low": base_lr, "high": self.max_lrs[group], "end": base_lr / self.final_div_factor}
        start, end, share = self._phase(epoch)
        return self._between(levels[start], levels[end], share)

    def get_lr(self) -> list[float]:
        """The formula's, whatever the rates are now."""
        return self.formula()

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next batch; ValueError if there are more than ``total_steps``."""
        following = self.last_epoch + 1 if epoch is None else epoch
        if following > self.total_steps:
            raise ValueError(f"OneCycleLR: step {following} of a schedule of {self.total_steps} steps")
        super().step(epoch)
        if not self.cycle_momentum:
            return
        start, end, share = self._phase(following)
        for group, low, high in zip(self.optimizer.param_groups, self.lows, self.highs, strict=False):
            levels = {"low": high, "high": low, "end": high}
            momentum = self._between(levels[start], levels[end], share)
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _phase(self, step: float) -> tuple[str, str, float]:
        """The levels that the phase of ``step`` leads from and to, and the share of it that is done."""
        begin = 0.0
        for last, start, end in self._phases:
            if step <= last or last == self._phases[-1][0]:
                return start, end, (step - begin) / (last - begin) if last > begin else 1.0
            begin = last
        raise AssertionError("the last phase takes all steps")

    def _between(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _phases(total: int, rise: float, three: bool) -> list[tuple[float, str, str]]:
    """For each phase: its last step, and the levels of the rate at its ends."""
    first = rise * total - 1
    if three:
        return [(first, "low", "high"), (2 * rise * total - 2, "high", "low"), (total - 1, "low", "end")]
    return [(first, "low", "high"), (total - 1, "high", "end")]
