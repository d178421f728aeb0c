"""Cyclical learning rates: up and down between two rates, again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minigrad.optim.lr_scheduler.schedule import LRScheduler, check_count, for_each_group
from minigrad.optim.optimizer import Optimizer

__all__ = ["CyclicLR"]


class CyclicLR(LRScheduler):
    """From ``base_lr`` up to ``max_lr`` along a line, and down again; https://arxiv.org/abs/1506.01186.

    Call ``step()`` after each batch.

    Args:
        optimizer: whose groups' ``"lr"`` is set, and with ``cycle_momentum`` their momentum or first beta.
        base_lr, max_lr: the lowest and the highest rate, one for all groups or a list with one for each.
        step_size_up: the batches in which the rate rises.
        step_size_down: those in which it falls, by default as many.
        mode: ``"triangular"``; ``"triangular2"`` halves the height in each cycle; ``"exp_range"`` multiplies
            it by gamma^batches.
        gamma: for ``"exp_range"``.
        scale_fn: a function for the height in place of those of ``mode``.
        scale_mode: whether ``scale_fn`` takes the number of the ``"cycle"``, from 1 on, or ``"iterations"``.
        cycle_momentum: whether momentum falls from ``max_momentum`` to ``base_momentum`` as the rate rises.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float = 0.8,
        max_momentum: float = 0.9,
        last_epoch: int = -1,
    ):
        scales: dict[str, tuple[Callable[[float], float], str]] = {
            "triangular": (lambda x: 1.0, "cycle"),
            "triangular2": (lambda x: 2.0 ** (1 - x), "cycle"),
            "exp_range": (lambda x: gamma**x, "iterations"),
        }
        if scale_fn is None and mode not in scales:
            raise ValueError(f"CyclicLR: mode must be one of {', '.join(scales)}, got {mode!r}")
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ValueError(
                f"CyclicLR: {type(optimizer).__name__} has no momentum; set cycle_momentum=False"
            )
        self._scale, self.scale_mode = scales[mode] if scale_fn is None else (scale_fn, scale_mode)
        self.up = check_count("CyclicLR", "step_size_up", step_size_up)
        self.down = self.up
        if step_size_down is not None:
            self.down = check_count("CyclicLR", "step_size_down", step_size_down)
        self.cycle_momentum = cycle_momentum
        self.lows = for_each_group("CyclicLR", "numbers base_momentum", base_momentum, optimizer)
        self.highs = for_each_group("CyclicLR", "numbers max_momentum", max_momentum, optimizer)
        self.max_lrs = for_each_group("CyclicLR", "rates max_lr", max_lr, optimizer)
        base_lrs = for_each_group("CyclicLR", "rates base_lr", base_lr, optimizer)
        if last_epoch == -1:
            for group, lowest in zip(optimizer.param_groups, base_lrs, strict=True):
                group["initial_lr"] = lowest
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr + (max_lr - base_lr) height"""
        return base_lr + (self.max_lrs[group] - base_lr) * self._height(epoch)

    def get_lr(self) -> list[float]:
        """The formula's, whatever the rates are now."""
        return self.formula()

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next batch."""
        super().step(epoch)
        if not self.cycle_momentum:
            return
        height = self._height(self.last_epoch)
        for group, low, high in zip(self.optimizer.param_groups, self.lows, self.highs, strict=False):
            momentum = high - (high - low) * height
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _height(self, step: float) -> float:
        """How far above the lowest rate ``step`` is, of the way to the highest."""
        whole = self.up + self.down
        cycle = math.floor(step / whole)
        share = step / whole - cycle
        rise = self.up / whole
        height = share / rise if share <= rise else (1 - share) / (1 - rise)
        return height * self._scale(cycle + 1 if self.scale_mode == "cycle" else step)
