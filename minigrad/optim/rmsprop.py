"""RMSprop: gradients divided by the root of their recent mean square."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["RMSprop"]


def _rmsprop_step(
    xp, param, grad, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum
):
    if weight_decay:
        grad = grad + weight_decay * param
    square_avg *= alpha
    square_avg += (1 - alpha) * grad * grad
    if grad_avg is None:
        root = xp.sqrt(square_avg)
    else:
        grad_avg += (1 - alpha) * (grad - grad_avg)
        root = xp.sqrt(square_avg - grad_avg * grad_avg)
    step = grad / (root + eps)
    if momentum_buffer is not None:
        momentum_buffer *= momentum
        momentum_buffer += step
        step = momentum_buffer
    param -= lr * step


rmsprop_step = Update(_rmsprop_step, "rmsprop_step")


class RMSprop(Optimizer):
    """RMSprop: v = alpha v + (1 - alpha) g^2 and p -= lr g / (sqrt(v) + eps).

    Hinton's lecture: https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf. The centered
    form divides by the deviation in place of the root mean square: https://arxiv.org/abs/1308.0850.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        alpha: how slowly the average of g^2 moves; in [0, 1).
        eps: keeps the division finite.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        momentum: how much of the last step is added to the next.
        centered: subtract the squared average of g from that of g^2.
        maximize: climb instead of descending.
        foreach: accepted and ignored.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and alpha below 1."""
        for name in ("lr", "eps", "weight_decay", "momentum"):
            check_number("RMSprop", name, group[name])
        check_number("RMSprop", "alpha", group["alpha"], below=1.0)

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The average of g^2, that of g if centered, the last step with momentum."""
        return (
            "square_avg",
            *["grad_avg"] * group["centered"],
            *["momentum_buffer"] * (group["momentum"] > 0),
        )

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, names = self._started(params, group), self.state_names(group)
        self._count_step(params)
        rmsprop_step(
            params,
            grads,
            *[
                [state[name]._array if name in names else None for state in states]
                for name in ("square_avg", "grad_avg", "momentum_buffer")
            ],
            each={},
            lr=live_number(params[0].device, lambda: group["lr"]),
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
        )
