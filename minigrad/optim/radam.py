"""RAdam: Adam with a rectified warm-up, until its mean square is reliable."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from minigrad.optim.adam import check_betas, decay_and_average
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["RAdam"]


def _radam_step(xp, param, grad, exp_avg, exp_avg_sq, *, eps, step_size, rectification, **averaging):
    decay_and_average(param, grad, exp_avg, exp_avg_sq, **averaging)
    # Without a branch on the host: a recorded step passes from one case to the other.
    adapted = xp.where(xp.asarray(rectification) > 0, rectification / (xp.sqrt(exp_avg_sq) + eps), 1)
    param -= step_size * exp_avg * adapted


radam_step = Update(_radam_step, "radam_step")


class RAdam(Optimizer):
    """RAdam: Adam without its uncertain first steps, so that it needs no warm-up; https://arxiv.org/abs/1908.03265.

    m and v are Adam's averages. At step t, rho = rho_inf - 2 t beta2^t / (1 - beta2^t) with rho_inf =
    2 / (1 - beta2) - 1 tells how many gradients v stands for. Up to 5, p -= lr m / (1 - beta1^t), with no v;
    then p -= lr r m / (1 - beta1^t) sqrt(1 - beta2^t) / (sqrt(v) + eps), where r^2 =
    (rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho).

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the averages of g and of g^2 move; in [0, 1).
        eps: keeps the division finite.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        decoupled_weight_decay: instead, p shrinks by the factor 1 - lr weight_decay, as in AdamW.
        foreach: accepted and ignored.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and both betas below 1."""
        for name in ("lr", "eps", "weight_decay"):
            check_number("RAdam", name, group[name])
        check_betas("RAdam", group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The averages of g and of g^2."""
        return ("exp_avg", "exp_avg_sq")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, (beta1, beta2) = self._started(params, group), group["betas"]
        device, decay = params[0].device, group["weight_decay"]
        self._count_step(params)

        def step_size(state: dict[str, Any]) -> float:
            return group["lr"] / (1 - beta1 ** state["step"])

        def rectification(state: dict[str, Any]) -> float:
            return _rectification(beta2, state["step"])

        shrinks = group["decoupled_weight_decay"] and decay
        radam_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={
                "step_size": [live_number(device, partial(step_size, state)) for state in states],
                "rectification": [live_number(device, partial(rectification, state)) for state in states],
            },
            new1=1 - beta1,
            beta2=beta2,
            eps=group["eps"],
            l2=0.0 if group["decoupled_weight_decay"] else decay,
            shrink=live_number(device, lambda: 1 - group["lr"] * decay) if shrinks else None,
        )


def _rectification(beta2: float, step: int) -> float:
    """r sqrt(1 - beta2^t), or 0 as long as the average of g^2 is too young to be used."""
    correction = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / correction
    if rho <= 5:
        return 0.0
    ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return math.sqrt(ratio * correction)
