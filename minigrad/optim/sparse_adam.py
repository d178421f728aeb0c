"""SparseAdam: Adam that changes only the rows with a gradient, for embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from minigrad.optim.adam import check_betas
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["SparseAdam"]


def _sparse_adam_step(xp, param, grad, exp_avg, exp_avg_sq, *, rate, beta1, beta2, eps):
    rows = (grad != 0).any(axis=tuple(range(1, grad.ndim)), keepdims=True)
    exp_avg += rows * (1 - beta1) * (grad - exp_avg)
    exp_avg_sq += rows * (1 - beta2) * (grad * grad - exp_avg_sq)
    param -= rows * rate * exp_avg / (xp.sqrt(exp_avg_sq) + eps)


sparse_adam_step = Update(_sparse_adam_step, "sparse_adam_step")


class SparseAdam(Optimizer):
    """Adam that leaves rows, and what it remembers of them, as they are where their gradient is zero.

    In PyTorch a sparse gradient says which rows a batch showed. Here gradients are whole matrices, and a
    row of zeros stands for one that was not shown.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the averages of g and of g^2 move; in [0, 1).
        eps: keeps the division finite.
        maximize: climb instead of descending.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and both betas below 1."""
        for name in ("lr", "eps"):
            check_number("SparseAdam", name, group[name])
        check_betas("SparseAdam", group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The averages of g and of g^2."""
        return ("exp_avg", "exp_avg_sq")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, (beta1, beta2) = self._started(params, group), group["betas"]
        self._count_step(params)

        def rate(state: dict[str, Any]) -> float:
            return group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])

        device = params[0].device
        sparse_adam_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={"rate": [live_number(device, partial(rate, state)) for state in states]},
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
        )
