"""Adagrad and Adadelta: step sizes per element, from the history of its squared gradients."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["Adadelta", "Adagrad"]


def _adagrad_step(xp, param, grad, sum_of_squares, *, lr, eps, weight_decay):
    if weight_decay:
        grad = grad + weight_decay * param
    sum_of_squares += grad * grad
    param -= lr * grad / (xp.sqrt(sum_of_squares) + eps)


def _adadelta_step(xp, param, grad, square_avg, acc_delta, *, lr, rho, eps, weight_decay):
    if weight_decay:
        grad = grad + weight_decay * param
    square_avg *= rho
    square_avg += (1 - rho) * grad * grad
    delta = xp.sqrt(acc_delta + eps) / xp.sqrt(square_avg + eps) * grad
    acc_delta *= rho
    acc_delta += (1 - rho) * delta * delta
    param -= lr * delta


adagrad_step = Update(_adagrad_step, "adagrad_step")
adadelta_step = Update(_adadelta_step, "adadelta_step")


class Adagrad(Optimizer):
    """Adagrad: s += g^2 and p -= lr g / (sqrt(s) + eps); https://jmlr.org/papers/v12/duchi11a.html.

    What has seldom had a gradient, a rare word's embedding, still takes large steps.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate; at step t it is lr / (1 + (t - 1) lr_decay).
        lr_decay: see ``lr``.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        initial_accumulator_value: what the sum of squares starts from.
        eps: keeps the division finite.
        foreach: accepted and ignored.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0."""
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            check_number("Adagrad", name, group[name])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The sum of all g^2."""
        return ("sum",)

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states = self._started(params, group, group["initial_accumulator_value"])
        self._count_step(params)

        def rate(state: dict[str, Any]) -> float:
            return group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"])

        device = params[0].device
        adagrad_step(
            params,
            grads,
            [state["sum"]._array for state in states],
            each={"lr": [live_number(device, partial(rate, state)) for state in states]},
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


class Adadelta(Optimizer):
    """Adadelta: steps in the units of the parameter, with no rate to choose; https://arxiv.org/abs/1212.5701.

    v = rho v + (1 - rho) g^2,  d = sqrt(u + eps) / sqrt(v + eps) g,  u = rho u + (1 - rho) d^2,  p -= lr d.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: what the step is multiplied by.
        rho: how slowly the averages of g^2 and d^2 move; in [0, 1].
        eps: keeps the division finite, and the first step from being 0.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        foreach: accepted and ignored.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ):
        defaults = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and rho at most 1."""
        for name in ("lr", "eps", "weight_decay", "rho"):
            check_number("Adadelta", name, group[name])
        if group["rho"] > 1:
            raise ValueError(f"Adadelta: rho must be at most 1, got {group['rho']}")

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The averages of g^2 and of d^2."""
        return ("square_avg", "acc_delta")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states = self._started(params, group)
        self._count_step(params)
        adadelta_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={},
            lr=live_number(params[0].device, lambda: group["lr"]),
            rho=group["rho"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
