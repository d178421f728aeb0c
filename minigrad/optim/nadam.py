"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from minigrad.optim.adam import check_betas, decay_and_average
from minigrad.optim.optimizer import Optimizer, Update, check_number, in_each_step, live_number
from minigrad.tensor import Tensor

__all__ = ["NAdam"]


def _nadam_step(
    xp, param, grad, exp_avg, exp_avg_sq, *, eps, correction, grad_rate, average_rate, **averaging
):
    grad = decay_and_average(param, grad, exp_avg, exp_avg_sq, **averaging)
    param -= (grad_rate * grad + average_rate * exp_avg) / (xp.sqrt(exp_avg_sq / correction) + eps)


nadam_step = Update(_nadam_step, "nadam_step")


class NAdam(Optimizer):
    """NAdam: Adam that steps by the average of gradients which the next step will have.

    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. m and v are Adam's averages, M_t = mu_1 ... mu_t,
    and mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2). At step t
    p -= lr ((1 - mu_t) / (1 - M_t) g + mu_{t+1} / (1 - M_{t+1}) m) / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the averages of g and of g^2 move; in [0, 1).
        eps: keeps the division finite.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        momentum_decay: how fast mu goes from beta1 / 2 to beta1.
        decoupled_weight_decay: p shrinks by the factor 1 - lr weight_decay instead, as in AdamW.
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
        momentum_decay: float = 4e-3,
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
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and both betas below 1."""
        for name in ("lr", "eps", "weight_decay", "momentum_decay"):
            check_number("NAdam", name, group[name])
        check_betas("NAdam", group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The averages of g and of g^2."""
        return ("exp_avg", "exp_avg_sq")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, (beta1, beta2) = self._started(params, group), group["betas"]
        device, decay = params[0].device, group["weight_decay"]
        self._count_step(params)

        def momentum(step: int) -> float:
            return beta1 * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"]))

        def multiply() -> None:
            for state in states:
                state["mu_product"] = state.get("mu_product", 1.0) * momentum(state["step"])

        def correction(state: dict[str, Any]) -> float:
            return 1 - beta2 ** state["step"]

        def grad_rate(state: dict[str, Any]) -> float:
            return group["lr"] * (1 - momentum(state["step"])) / (1 - state["mu_product"])

        def average_rate(state: dict[str, Any]) -> float:
            following = momentum(state["step"] + 1)
            return group["lr"] * following / (1 - state["mu_product"] * following)

        in_each_step(device, multiply)
        shrinks = group["decoupled_weight_decay"] and decay
        nadam_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={
                read.__name__: [live_number(device, partial(read, state)) for state in states]
                for read in (correction, grad_rate, average_rate)
            },
            new1=1 - beta1,
            beta2=beta2,
            eps=group["eps"],
            l2=0.0 if group["decoupled_weight_decay"] else decay,
            shrink=live_number(device, lambda: 1 - group["lr"] * decay) if shrinks else None,
        )
