"""L-BFGS: a quasi-Newton method that estimates the curvature from the last steps and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minigrad.autograd import enable_grad, no_grad, wrap
from minigrad.ops.join import concat
from minigrad.optim.optimizer import Optimizer, check_number, gradient_of
from minigrad.tensor import Tensor

__all__ = ["LBFGS"]

SMALLEST_CURVATURE = 1e-10


class Point(NamedTuple):
    """What a line search knows of a step length: the loss there, its slope, and the gradient."""

    length: float
    loss: float
    slope: float
    grad: Any


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
                here = Point(0.0, loss, slope, grad)
                smallest = group["tolerance_change"] / _largest(direction)
                left = group["max_eval"] - evaluations
                step, loss, grad = self._search(evaluate, step, direction, here, smallest, left)
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
        here: Point,
        smallest_width: float,
        max_evaluations: int,
    ) -> tuple[float, float, Tensor]:
        """Move by the step length that :func:`strong_wolfe` finds; it, the loss and the gradient there."""
        start = [param.clone() for param in self._params]

        def move_to(length: float) -> None:
            for param, value in zip(self._params, start, strict=True):
                param.copy_(value)
            self._move(direction, length)

        def at(length: float) -> Point:
            move_to(length)
            loss, grad = evaluate()
            return Point(length, float(loss), _dot(grad, direction), grad)

        found = strong_wolfe(at, step, here, smallest_width, max_evaluations=max_evaluations)
        move_to(found.length)
        return found.length, found.loss, found.grad

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
    at: Callable[[float], Point],
    step: float,
    start: Point,
    smallest_width: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_evaluations: int = 25,
) -> Point:
    """A step length t that meets the strong Wolfe conditions; if none is found, the best of those tried.

    loss(t) <= loss(0) + c1 t slope(0) and abs(slope(t)) <= c2 abs(slope(0)). Nocedal and Wright, algorithms
    3.5 and 3.6, with the cubic interpolation and the safeguards of minFunc, which PyTorch uses too.

    Args:
        at: the :class:`Point` of a length.
        step: the length to try first.
        start: the point of length 0; its slope is negative.
        smallest_width: an interval that is shorter is not divided further.
    """
    slope = start.slope

    def is_too_high(point: Point) -> bool:
        return not point.loss <= start.loss + c1 * point.length * slope  # NaN is too high as well

    # Lengthen the step until an interval is known to hold a point that meets the conditions.
    before, new = start, at(step)
    for tries in range(max_evaluations):
        if is_too_high(new) or (tries > 1 and new.loss >= before.loss):
            low, high = before, new
            break
        if abs(new.slope) <= -c2 * slope:
            return new
        if new.slope >= 0:
            low, high = before, new
            break
        shortest = new.length + 0.01 * (new.length - before.length)
        before, new = new, at(_minimum_of_cubic(before, new, shortest, 10 * new.length))
    else:
        return min(start, new, key=lambda point: point.loss)

    # Divide the interval; `low` is the end with the lower loss.
    if high.loss < low.loss:
        low, high = high, low
    was_near_an_end = False
    for _ in range(max_evaluations - tries):
        left, right = sorted((low.length, high.length))
        if right - left < smallest_width:
            break
        length, margin = _minimum_of_cubic(low, high, left, right), 0.1 * (right - left)
        is_near_an_end = min(right - length, length - left) < margin
        if is_near_an_end and (was_near_an_end or length in (left, right)):
            length = right - margin if right - length < length - left else left + margin
            is_near_an_end = False
        was_near_an_end = is_near_an_end
        new = at(length)
        if is_too_high(new) or new.loss >= low.loss:
            high = new
            if high.loss < low.loss:
                low, high = high, low
            continue
        if abs(new.slope) <= -c2 * slope:
            return new
        if new.slope * (high.length - low.length) >= 0:
            high = low
        low = new
    return low


def _minimum_of_cubic(p: Point, q: Point, smallest: float, largest: float) -> float:
    """Where the cubic through two points with their slopes is lowest, limited to [smallest, largest].

    The middle of that interval, if the cubic has no minimum.
    """
    (x1, f1, g1, _), (x2, f2, g2, _) = sorted((p, q), key=lambda point: point.length)
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
