"""Adamax: Adam with the largest gradient, the infinity norm, in place of the mean square."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from minigrad.optim.adam import check_betas
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["Adamax"]


def _adamax_step(xp, param, grad, exp_avg, exp_inf, *, beta1, beta2, eps, weight_decay, step_size):
    if weight_decay:
        grad = grad + weight_decay * param
    exp_avg += (1 - beta1) * (grad - exp_avg)
    exp_inf *= beta2
    xp.maximum(exp_inf, xp.abs(grad) + eps, out=exp_inf)
    param -= step_size * exp_avg / exp_inf


adamax_step = Update(_adamax_step, "adamax_step")


class Adamax(Optimizer):
    """Adamax: m = beta1 m + (1 - beta1) g, u = max(beta2 u, |g| + eps), p -= lr m / (1 - beta1^t) / u.

    Section 7.1 of https://arxiv.org/abs/1412.6980: no element ever moves by more than about lr.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the average of g and the largest |g| move; in [0, 1).
        eps: keeps the division finite.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        foreach: accepted and ignored.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and both betas below 1."""
        for name in ("lr", "eps", "weight_decay"):
            check_number("Adamax", name, group[name])
        check_betas("Adamax", group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The average of g, and its largest magnitude, which shrinks in each step."""
        return ("exp_avg", "exp_inf")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, (beta1, beta2) = self._started(params, group), group["betas"]
        self._count_step(params)

        def step_size(state: dict[str, Any]) -> float:
            return group["lr"] / (1 - beta1 ** state["step"])

        device = params[0].device
        adamax_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={"step_size": [live_number(device, partial(step_size, state)) for state in states]},
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
