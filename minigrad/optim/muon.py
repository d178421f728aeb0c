"""Muon: momentum whose matrices are made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from minigrad.autograd import no_grad, wrap
from minigrad.dtypes import is_half
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.tensor import Tensor

__all__ = ["Muon"]


def _average_step(xp, momentum_buffer, grad, *, momentum):
    momentum_buffer += (1 - momentum) * (grad - momentum_buffer)


def _muon_step(xp, param, direction, *, lr, shrink):
    if shrink is not None:
        param *= shrink
    param -= lr * direction


average_step = Update(_average_step, "average_step")
muon_step = Update(_muon_step, "muon_step")


class Muon(Optimizer):
    """Muon: p -= lr O, with O the orthogonal matrix nearest to the average of g.

    https://kellerjordan.github.io/posts/muon/. It is for the matrices inside a network, 2-D parameters; train
    embeddings, the last layer, biases and scales by AdamW beside it.

    The Newton-Schulz iteration runs in the parameter's dtype (PyTorch's in bfloat16), 16 bits in float32.

    Args:
        params: 2-D tensors, or dicts of them with options of their own.
        lr: the learning rate.
        weight_decay: decoupled, as in AdamW: p shrinks by the factor 1 - lr weight_decay in each step.
        momentum: how slowly the average of g moves.
        nesterov: step along (1 - momentum) g + momentum times the average, in place of the average.
        ns_coefficients: (a, b, c) of an iteration X -> a X + b (X X^T) X + c (X X^T)^2 X.
        eps: the norm that the average is divided by is at least this.
        ns_steps: how many iterations.
        adjust_lr_fn: ``"original"`` (None, too) multiplies lr by sqrt(max(1, rows / columns));
            ``"match_rms_adamw"`` by 0.2 sqrt(max(rows, columns)), so that AdamW's lr fits;
            https://arxiv.org/abs/2502.16982.

    Raises:
        ValueError: a parameter is not 2-D, or an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ):
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and the parameters matrices."""
        for name in ("lr", "weight_decay", "momentum", "eps"):
            check_number("Muon", name, group[name])
        if len(group["ns_coefficients"]) != 3:
            raise ValueError(f"Muon: ns_coefficients must be three numbers, got {group['ns_coefficients']!r}")
        if not isinstance(group["ns_steps"], int) or not 0 <= group["ns_steps"] < 100:
            raise ValueError(f"Muon: ns_steps must be an integer in [0, 100), got {group['ns_steps']!r}")
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                'Muon: adjust_lr_fn must be "original", "match_rms_adamw" or None, '
                f"got {group['adjust_lr_fn']!r}"
            )
        for i, param in enumerate(group["params"]):
            if param.ndim != 2:
                raise ValueError(
                    f"Muon: parameter {i} has shape {param.shape}; only matrices (2-D) can be made "
                    "orthogonal, train the others by AdamW"
                )

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The average of g."""
        return ("momentum_buffer",)

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states, momentum = self._started(params, group), group["momentum"]
        device, decay = params[0].device, group["weight_decay"]
        averages = [state["momentum_buffer"] for state in states]
        average_step(averages, grads, each={}, momentum=momentum)
        directions, ratios = [], []
        with no_grad():
            for param, grad, average in zip(params, grads, averages, strict=True):
                gradient = wrap(grad, param.device)
                ahead = gradient + momentum * (average - gradient) if group["nesterov"] else average
                directions.append(_orthogonal(ahead, group)._array)
                ratios.append(_rate_ratio(param.shape, group["adjust_lr_fn"]))

        def rate(ratio: float) -> float:
            return group["lr"] * ratio

        muon_step(
            params,
            directions,
            each={"lr": [live_number(device, partial(rate, ratio)) for ratio in ratios]},
            shrink=live_number(device, lambda: 1 - group["lr"] * decay) if decay else None,
        )


def _orthogonal(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """U V^T of the singular value decomposition of ``matrix``, about: its singular values in 0.7 to 1.2."""
    a, b, c = group["ns_coefficients"]
    tall = matrix.shape[0] > matrix.shape[1]
    X = matrix.to(np.float32) if is_half(matrix.dtype) else matrix
    X = X.T if tall else X
    X = X / X.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = X @ X.T
        X = a * X + (b * gram + c * (gram @ gram)) @ X
    return (X.T if tall else X).to(matrix.dtype)


def _rate_ratio(shape: tuple[int, ...], adjust_lr_fn: str | None) -> float:
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if columns else 1.0
