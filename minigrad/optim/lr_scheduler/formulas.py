"""Schedules that are a formula of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minigrad.optim.lr_scheduler.schedule import LRScheduler, check_count, for_each_group
from minigrad.optim.optimizer import Optimizer

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "PolynomialLR",
    "StepLR",
]


class LambdaLR(LRScheduler):
    """The first rate times ``lr_lambda(epoch)``: one function, or one for each parameter group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self._lambdas = for_each_group("LambdaLR", "functions", lr_lambda, optimizer)
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr lr_lambda(epoch)"""
        return base_lr * self._lambdas[group](epoch)

    def get_lr(self) -> list[float]:
        """The formula's, whatever the rates are now."""
        return self.formula()


class MultiplicativeLR(LRScheduler):
    """The rate of the epoch before times ``lr_lambda(epoch)``, from the second epoch on."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self._lambdas = for_each_group("MultiplicativeLR", "functions", lr_lambda, optimizer)
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr lr_lambda(1) ... lr_lambda(epoch)"""
        return base_lr * math.prod(self._lambdas[group](e) for e in range(1, int(epoch) + 1))

    def get_lr(self) -> list[float]:
        """The rates now times the functions' values."""
        rates, epoch = self.get_last_lr(), self.last_epoch
        if epoch <= 0:
            return rates
        return [rate * function(epoch) for rate, function in zip(rates, self._lambdas, strict=False)]

    def restart(self) -> None:
        """Begin at epoch 0, with the rates as they are."""
        self.last_epoch = 0


class StepLR(LRScheduler):
    """Multiplies the rate by ``gamma`` every ``step_size`` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size = check_count("StepLR", "step_size", step_size)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr gamma^(epoch // step_size)"""
        return base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """Multiplies the rate by ``gamma`` at each of the epochs ``milestones``."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1
    ):
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr gamma^(how many milestones have been reached)"""
        return base_lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)


class ConstantLR(LRScheduler):
    """Multiplies the rate by ``factor`` in the first ``total_iters`` epochs."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ):
        self.factor = _share("ConstantLR", "factor", factor)
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr factor, and base_lr from epoch total_iters on"""
        return base_lr * (self.factor if epoch < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """Multiplies the rate by a factor that goes from ``start_factor`` to ``end_factor`` along a line."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not start_factor > 0:
            raise ValueError(f"LinearLR: start_factor must be above 0, got {start_factor!r}")
        self.start_factor = _share("LinearLR", "start_factor", start_factor)
        self.end_factor = _share("LinearLR", "end_factor", end_factor)
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr (start_factor + (end_factor - start_factor) min(epoch, total_iters) / total_iters)"""
        done = min(epoch, self.total_iters) / self.total_iters if self.total_iters else 1.0
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class ExponentialLR(LRScheduler):
    """Multiplies the rate by ``gamma`` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr gamma^epoch"""
        return base_lr * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """From the first rate to 0 at epoch ``total_iters``, along a power of the epochs that are left."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1):
        self.total_iters = check_count("PolynomialLR", "total_iters", total_iters)
        self.power = power
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """base_lr (1 - min(epoch, total_iters) / total_iters)^power"""
        return base_lr * (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the first rate down to ``eta_min`` at epoch ``T_max``; https://arxiv.org/abs/1608.03983."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1):
        self.T_max = check_count("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """eta_min + (base_lr - eta_min) (1 + cos(pi epoch / T_max)) / 2"""
        return _cosine(base_lr, self.eta_min, epoch / self.T_max)

    def floor(self) -> float:
        """eta_min"""
        return self.eta_min


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine over ``T_0`` epochs, another from the first rate, ``T_mult`` times as long, and so on.

    https://arxiv.org/abs/1608.03983. ``step(epoch + i / batches)`` moves it by parts of an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        self.T_0 = check_count("CosineAnnealingWarmRestarts", "T_0", T_0)
        self.T_mult = check_count("CosineAnnealingWarmRestarts", "T_mult", T_mult)
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: float, group: int) -> float:
        """The cosine of :class:`CosineAnnealingLR` over the share of the cycle that is done."""
        length = self.T_0
        if self.T_mult == 1:
            return _cosine(base_lr, self.eta_min, epoch % length / length)
        while epoch >= length:
            epoch -= length
            length *= self.T_mult
        return _cosine(base_lr, self.eta_min, epoch / length)

    def get_lr(self) -> list[float]:
        """The formula's, whatever the rates are now."""
        return self.formula()


def _cosine(start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` along half a cosine, of which ``share`` is done."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _share(owner: str, name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be in [0, 1], got {value!r}")
    return value
