"""Lion: steps of equal size in every element, by the sign of the momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minigrad.optim.adam import check_betas
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["Lion"]


def _lion_step(xp, param, grad, exp_avg, *, lr, beta1, beta2, shrink):
    if shrink is not None:
        param *= shrink
    param -= lr * xp.sign(exp_avg + (1 - beta1) * (grad - exp_avg))
    exp_avg += (1 - beta2) * (grad - exp_avg)


lion_step = Update(_lion_step, "lion_step")


class Lion(Optimizer):
    """Lion: p -= lr sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g.

    Chen et al., "Symbolic Discovery of Optimization Algorithms", https://arxiv.org/abs/2302.06675. It keeps
    one tensor for each parameter, half of Adam's. Since every element moves by lr, lr is chosen 3 to 10 times
    smaller than AdamW's, and weight_decay as much larger. PyTorch has no Lion; the arguments
    are the authors'.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the direction and the average m move; in [0, 1).
        weight_decay: decoupled, as in AdamW: p shrinks by the factor 1 - lr weight_decay in each step.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        )

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and betas below 1."""
        for name in ("lr", "weight_decay"):
            check_number("Lion", name, group[name])
        check_betas("Lion", group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The average of g."""
        return ("exp_avg",)

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, device, decay = self._started(params, group), params[0].device, group["weight_decay"]
        self._count_step(params)
        lion_step(
            params,
            grads,
            [state["exp_avg"]._array for state in states],
            each={},
            lr=live_number(device, lambda: group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            shrink=live_number(device, lambda: 1 - group["lr"] * decay) if decay else None,
        )
