"""Averages of a model's parameters over the course of training, under PyTorch's names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

from minigrad.autograd import no_grad
from minigrad.creation import tensor
from minigrad.devices import Device
from minigrad.nn.module import Module
from minigrad.nn.norm import BatchNorm
from minigrad.optim.lr_scheduler import LRScheduler
from minigrad.optim.lr_scheduler.schedule import for_each_group
from minigrad.optim.optimizer import Optimizer
from minigrad.tensor import Tensor

__all__ = ["SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "update_bn"]


def get_ema_avg_fn(decay: float = 0.999) -> Callable:
    """An ``avg_fn`` for :class:`AveragedModel`: decay average + (1 - decay) parameter."""

    def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
        return averaged * decay + current * (1 - decay)

    return average


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable:
    """A ``multi_avg_fn`` for :class:`AveragedModel`: as :func:`get_ema_avg_fn`, for lists, in place."""

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        for own, new in zip(averaged, current, strict=True):
            own.lerp_(new, 1 - decay)

    return average


class AveragedModel(Module):
    """A copy of ``model`` whose parameters are averages: https://arxiv.org/abs/1803.05407.

    Args:
        model: the model that is trained; the copy is the attribute ``module``.
        device: where the copy lives, by default where the model does.
        avg_fn: ``avg_fn(averaged, parameter, count)`` returns the new average; by default the mean of all.
        multi_avg_fn: as ``avg_fn`` for lists of them, which it changes in place.
        use_buffers: average the buffers, too, rather than copy them.

    Attributes:
        n_averaged: how often :meth:`update_parameters` was called.
    """

    module: Module
    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: str | Device | None = None,
        avg_fn: Callable | None = None,
        multi_avg_fn: Callable | None = None,
        use_buffers: bool = False,
    ):
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("AveragedModel: give avg_fn or multi_avg_fn, not both")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module.to(device)
        self.register_buffer("n_averaged", tensor(0))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged model makes of the arguments."""
        return self.module(*args, **kwargs)

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Take the parameters of ``model`` into the averages; the first ones are copied."""
        own: list[Tensor] = list(self.module.parameters())
        given: list[Tensor] = list(model.parameters())
        copied = list(zip(self.module.buffers(), model.buffers(), strict=True))
        if self.use_buffers:
            own, given = [*own, *self.module.buffers()], [*given, *model.buffers()]
            copied = []
        new = [tensor.detach().to(mine.device) for mine, tensor in zip(own, given, strict=True)]
        if self.n_averaged == 0:
            copied += zip(own, new, strict=True)
        elif self.multi_avg_fn is not None:
            self.multi_avg_fn([mine.detach() for mine in own], new, self.n_averaged)
        else:
            average = self.avg_fn or (lambda mean, value, count: mean + (value - mean) / (count + 1))
            for mine, value in zip(own, new, strict=True):
                mine.copy_(average(mine.detach(), value, self.n_averaged.to(mine.device)))
        for mine, value in copied:
            mine.copy_(value.detach())
        self.n_averaged += 1


class SWALR(LRScheduler):
    """From the rate that there is to ``swa_lr`` in ``anneal_epochs``; there it stays.

    Args:
        optimizer: whose groups' ``"lr"`` is set.
        swa_lr: the last rate, one for all groups or a list with one for each.
        anneal_epochs: in how many epochs it is reached.
        anneal_strategy: ``"cos"``, half a cosine, or ``"linear"``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float,
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ):
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f'SWALR: anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}')
        self.swa_lrs = for_each_group("SWALR", "rates swa_lr", swa_lr, optimizer)
        self.anneal_epochs, self.anneal_strategy = anneal_epochs, anneal_strategy
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """A step from the rates that there are, which other schedules may have changed."""
        step = self.last_epoch if self.anneal_epochs else max(1, self.last_epoch)
        before, share = self._share(step - 1), self._share(step)
        rates = []
        for rate, last in zip(self.get_last_lr(), self.swa_lrs, strict=False):
            first = last if before == 1 else (rate - before * last) / (1 - before)
            rates.append(last * share + first * (1 - share))
        return rates

    def _share(self, step: float) -> float:
        """How much of the way to ``swa_lr`` is done."""
        done = max(0.0, min(1.0, step / max(1, self.anneal_epochs)))
        return done if self.anneal_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: str | Device | None = None) -> None:
    """Compute the running means and variances of a model's batch norms anew, in one walk over ``loader``.

    Of a batch that is a list or tuple the first entry is the input.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    momenta, was_training = [norm.momentum for norm in norms], model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    try:
        for batch in loader:
            input = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(input if device is None else input.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)
