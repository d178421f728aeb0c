"""L-BFGS: Newton's steps, with the curvature guessed from the last gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from minigrad.autograd import enable_grad, no_grad, wrap
from minigrad.ops.join import concat
from minigrad.optim.optimizer import Optimizer, check_number, gradient_of
from minigrad.tensor import Tensor

__all__ = ["LBFGS"]

SMALLEST_CURVATURE = 1e-10


class LBFGS(Optimizer):
    """L-BFGS: p -= lr H g, where H, a guess of the inverse Hessian, comes from the last steps and gradients.

    Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5. It needs the loss of all data,
    not of a random batch, and calls ``closure`` several times in one step: a function that clears the
    gradients, computes the loss, calls ``backward()`` and returns the loss.

    Args:
        params: tensors; one group only.
        lr: the length of a step, in units of Newton's; with a line search, the first to be tried.
        max_iter: steps of the method for one call of :meth:`step`.
        max_eval: calls of the closure in one call of :meth:`step`; max_iter * 5 / 4 by default.
        tolerance_grad: ends when no element of the gradient is larger.
        tolerance_change: ends when the loss or no parameter changes by more.
        history_size: how many steps are remembered; each takes twice the memory of the parameters.
        line_search_fn: None, or ``"strong_wolfe"``: look for a step after which the loss and its slope are
            low enough.

    Raises:
        ValueError: an option is out of range, or there is more than one group of parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ):
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, defaults)
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS: all parameters share one curvature, so there can be one group only")
        self._params: list[Tensor] = self.param_groups[0]["params"]

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and the line search is known."""
        for name in ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"):
            check_number("LBFGS", name, group[name])
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ValueError(
                f"LBFGS: line_search_fn is None or 'strong_wolfe', got {group['line_search_fn']!r}"
            )

    @no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to ``max_iter`` steps; the loss before the first of them is returned."""
        if closure is None:
            raise TypeError("LBFGS: step() needs a closure that computes the loss and its gradients")
        group, state = self.param_groups[0], self.state[self._params[0]]
        state.setdefault("n_iter", 0)
        state.setdefault("func_evals", 0)
        evaluations = 0

        def evaluate() -> tuple[Any, Tensor]:
            nonlocal evaluations
            with enable_grad():
                loss = closure()
            evaluations += 1
            state["func_evals"] += 1
            return loss, self._flat_gradient()

        first_loss, grad = evaluate()
        loss = float(first_loss)
        for iteration in range(1, group["max_iter"] + 1):
            if _largest(grad) <= group["tolerance_grad"]:
                break
            state["n_iter"] += 1
            direction = self._direction(grad, state, group["history_size"])
            step = group["lr"]
            if state["n_iter"] == 1:  # nothing is known of the curvature yet
                step *= min(1.0, 1.0 / float(grad.abs().sum()))
            slope = _dot(grad, direction)
            if slope > -group["tolerance_change"]:
                break
            state["prev_flat_grad"], before = grad, loss
            if group["line_search_fn"] is not None:
                step, loss, grad = self._search(evaluate, step, direction, loss, grad, slope, group)
            else:
                self._move(direction, step)
                if iteration < group["max_iter"]:
                    new_loss, grad = evaluate()
                    loss = float(new_loss)
            state["d"], state["t"] = direction, step
            if evaluations >= group["max_eval"]:
                break
            if step * _largest(direction) <= group["tolerance_change"]:
                break
            if iteration < group["max_iter"] and abs(loss - before) < group["tolerance_change"]:
                break
        return first_loss

    def _direction(self, grad: Tensor, state: dict[str, Any], history_size: int) -> Tensor:
        """-H g, by the two loops over the remembered steps s and changes of the gradient y."""
        if state["n_iter"] == 1:
            state["changes"], state["steps"], state["H_diag"] = [], [], 1.0
            return -grad
        change, moved = grad - state["prev_flat_grad"], state["d"] * state["t"]
        curvature = _dot(change, moved)
        if curvature > SMALLEST_CURVATURE:
            for memory, newest in ((state["changes"], change), (state["steps"], moved)):
                memory.append(newest)
                del memory[: max(0, len(memory) - history_size)]
            state["H_diag"] = curvature / _dot(change, change)
        pairs = [(y, s, 1.0 / _dot(y, s)) for y, s in zip(state["changes"], state["steps"], strict=True)]
        direction, shares = -grad, []
        for y, s, rho in reversed(pairs):
            shares.append(rho * _dot(s, direction))
            direction = direction - shares[-1] * y
        direction = direction * state["H_diag"]
        for (y, s, rho), share in zip(pairs, reversed(shares), strict=True):
            direction = direction + s * (share - rho * _dot(y, direction))
        return direction

    def _search(
        self,
        evaluate: Callable[[], tuple[Any, Tensor]],
        step: float,
        direction: Tensor,
        loss: float,
        grad: Tensor,
        slope: float,
        group: dict[str, Any],
    ) -> tuple[float, float, Tensor]:
        """Move by the step length that :func:`strong_wolfe` finds; it, the loss and the gradient there."""
        start = [param.clone() for param in self._params]

        def at(length: float) -> tuple[float, float, Tensor]:
            for param, value in zip(self._params, start, strict=True):
                param.copy_(value)
            self._move(direction, length)
            new_loss, new_grad = evaluate()
            return float(new_loss), _dot(new_grad, direction), new_grad

        length, found, new_grad = strong_wolfe(at, step, loss, slope, grad, group["tolerance_change"])
        for param, value in zip(self._params, start, strict=True):
            param.copy_(value)
        self._move(direction, length)
        return length, found, new_grad

    def _flat_gradient(self) -> Tensor:
        grads = [
            param.new_zeros(param.shape) if param.grad is None else wrap(gradient_of(param), param.device)
            for param in self._params
        ]
        return concat([grad.reshape(-1) for grad in grads])

    def _move(self, direction: Tensor, length: float) -> None:
        first = 0
        for param in self._params:
            param.add_(direction[first : first + param.numel()].reshape(param.shape), alpha=length)
            first += param.numel()


def strong_wolfe(
    at: Callable[[float], tuple[float, float, Any]],
    step: float,
    loss: float,
    slope: float,
    grad: Any,
    tolerance: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_evaluations: int = 25,
) -> tuple[float, float, Any]:
    """A step length after which the loss is low enough, and its slope flat enough.

    loss(t) <= loss + c1 t slope and abs(slope(t)) <= -c2 slope; Nocedal and Wright, algorithms 3.5 and 3.6.

    Args:
        at: the loss, its slope and its gradient after a step of a length.
        step: the length to try first.
        loss, slope, grad: those at length 0; the slope is negative.
        tolerance: the interval is not cut further once the loss can change by no more than that in it.

    Returns:
        The length, and the loss and the gradient there. If none was found, the best of those tried.
    """
    low = (0.0, loss, slope, grad)  # the end of the interval with the lower loss
    high: tuple[float, float, float, Any] | None = None
    length = step
    for _ in range(max_evaluations):
        new = (length, *at(length))
        if not math.isfinite(new[1]) or new[1] > loss + c1 * length * slope or new[1] >= low[1]:
            high = new
        elif abs(new[2]) <= -c2 * slope:
            return length, new[1], new[3]
        else:
            if new[2] * ((high[0] if high else math.inf) - low[0]) >= 0:
                high = low
            low = new
        if high is None:
            length *= 4
            continue
        width = abs(high[0] - low[0])
        if width * max(abs(low[2]), abs(slope)) <= tolerance:
            break
        left, right = sorted((low[0], high[0]))
        length = _minimum_of_cubic(low, high, left + 0.1 * width, right - 0.1 * width)
    return low[0], low[1], low[3]


def _minimum_of_cubic(p: tuple, q: tuple, smallest: float, largest: float) -> float:
    """Where the cubic with two lengths' losses and slopes is lowest, within bounds; else their middle."""
    (x1, f1, g1), (x2, f2, g2) = sorted((p[:3], q[:3]))
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2) if x1 != x2 else math.nan
    square = d1 * d1 - g1 * g2
    if not (math.isfinite(square) and square >= 0) or g2 - g1 + 2 * math.sqrt(square) == 0:
        return (smallest + largest) / 2
    d2 = math.sqrt(square)
    return min(max(x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2)), smallest), largest)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def _largest(a: Tensor) -> float:
    return float(a.abs().max()) if a.numel() else 0.0
