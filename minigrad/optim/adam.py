"""Adam, and AdamW, which keeps weight decay out of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.cuda.live import Live
from minigrad.optim.optimizer import Optimizer, Update, check_number, live_number
from minigrad.recording import Recording, recording_on
from minigrad.tensor import Tensor

__all__ = ["Adam", "AdamW"]


def _adam_step(xp, param, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    if decoupled:
        param *= 1 - lr * weight_decay
    elif weight_decay:
        grad = grad + weight_decay * param
    exp_avg += (1 - beta1) * (grad - exp_avg)
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * grad * grad
    # Both averages start at 0 and so are too small by 1 - beta^step.
    root = xp.sqrt(exp_avg_sq) / math.sqrt(1 - beta2**step)
    param -= lr / (1 - beta1**step) * exp_avg / (root + eps)


adam_step = Update(_adam_step, "adam_step")


@adam_step.kernel("cpu", name="fused", takes=cpu.optim.fits)
def _(params, grads, exp_avgs, exp_avg_sqs, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One loop over all arrays of all parameters."""
    cpu.optim.adam_step(
        params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, decoupled,
        get_num_threads(),
    )  # fmt: skip


@adam_step.kernel("cuda", "sim", name="fused", dtypes="f4 f8 f2 bf16")
def _(param, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One pass over memory, 16 bytes of each array a thread."""
    cuda.optim.adam_step(
        param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, decoupled, step
    )


@adam_step.kernel("cuda", name="many", dtypes="f4 f8 f2 bf16", takes=cuda.optim_many.fits)
def _(params, grads, exp_avgs, exp_avg_sqs, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One launch for all parameters."""
    cuda.optim_many.adam_step(
        params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, decoupled
    )


def decay_and_average(param, grad, exp_avg, exp_avg_sq, *, new1, beta2, l2, shrink):
    """What Adam's relatives begin with, in place: weight decay of either kind, the averages of g and of g^2.

    Args:
        new1: the share of g in the first average, 1 - beta1.
        l2: added to the gradient, times the parameter; 0 for none.
        shrink: the factor of the parameter (decoupled weight decay), or None.

    Returns:
        g, which the averages have taken in.
    """
    if shrink is not None:
        param *= shrink
    if l2:
        grad = grad + l2 * param
    exp_avg += new1 * (grad - exp_avg)
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * grad * grad
    return grad


def _amsgrad_step(
    xp, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, *, eps, step_size, correction, **averaging
):
    decay_and_average(param, grad, exp_avg, exp_avg_sq, **averaging)
    xp.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    param -= step_size * exp_avg / (xp.sqrt(max_exp_avg_sq) / correction + eps)


amsgrad_step = Update(_amsgrad_step, "amsgrad_step")


class Adam(Optimizer):
    """Adam: each element moves by about lr, whatever the scale of its gradient; https://arxiv.org/abs/1412.6980.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2, and at step t
    p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        betas: (beta1, beta2), how slowly the averages of g and of g^2 move; in [0, 1).
        eps: keeps the division finite.
        weight_decay: added to the gradient, times the parameter (an L2 penalty); see :class:`AdamW`.
        amsgrad: divide by the largest average of g^2 so far, so that steps never grow again;
            https://openreview.net/forum?id=ryQu7f-RZ.
        maximize: climb instead of descending.
        foreach, fused: accepted and ignored: all parameters are always changed in one pass.
    """

    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0, and betas below 1."""
        name = type(self).__name__
        for option in ("lr", "eps", "weight_decay"):
            check_number(name, option, group[option])
        check_betas(name, group["betas"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The averages of g and of g^2."""
        return ("exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * group["amsgrad"])

    def constants(self, group: dict[str, Any]) -> dict[str, Any]:
        """All but the first beta, which some schedules change."""
        return {**super().constants(group), "betas": group["betas"][1]}

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states = self._started(params, group)
        if group["amsgrad"]:
            self._update_amsgrad(params, grads, states, group)
            return
        steps = [state["step"] + 1 for state in states]
        beta1, beta2 = group["betas"]
        recording = recording_on(params[0].device)
        live = steps if recording is None else self._live_steps(recording, params, steps, group)
        adam_step(
            params,
            grads,
            [state["exp_avg"]._array for state in states],
            [state["exp_avg_sq"]._array for state in states],
            each={"step": live},
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self.decoupled,
        )
        for state, step in zip(states, steps, strict=True):
            state["step"] = step

    def _live_steps(
        self, recording: Recording, params: list[Tensor], steps: list[int], group: dict[str, Any]
    ) -> list[Live]:
        """For each parameter the factors of its step, anew in each replay; one for all of the same step."""

        def advance() -> None:
            for param in params:
                self.state[param]["step"] += 1

        def factors(param: Tensor) -> tuple[float, ...]:
            step, (beta1, beta2) = self.state[param]["step"], group["betas"]
            options = beta1, beta2, group["weight_decay"], self.decoupled
            return cuda.optim.adam_factors(float(group["lr"]), *options, step)

        recording.before_replay.append(advance)
        of_step: dict[int, Live] = {}
        for param, step in zip(params, steps, strict=True):
            if step not in of_step:
                of_step[step] = recording.live("dddd", partial(factors, param))
        return [of_step[step] for step in steps]

    def _update_amsgrad(
        self, params: list[Tensor], grads: list[Any], states: list[dict], group: dict[str, Any]
    ) -> None:
        self._count_step(params)
        device, decay = params[0].device, group["weight_decay"]

        def step_size(state: dict[str, Any]) -> float:
            return group["lr"] / (1 - group["betas"][0] ** state["step"])

        def correction(state: dict[str, Any]) -> float:
            return math.sqrt(1 - group["betas"][1] ** state["step"])

        shrinks = self.decoupled and decay
        amsgrad_step(
            params,
            grads,
            *[[state[name]._array for state in states] for name in self.state_names(group)],
            each={
                "step_size": [live_number(device, partial(step_size, state)) for state in states],
                "correction": [live_number(device, partial(correction, state)) for state in states],
            },
            new1=live_number(device, lambda: 1 - group["betas"][0]),
            beta2=group["betas"][1],
            eps=group["eps"],
            l2=0.0 if self.decoupled else decay,
            shrink=live_number(device, lambda: 1 - group["lr"] * decay) if shrinks else None,
        )


def check_betas(owner: str, betas: Any) -> None:
    """Raise ValueError unless ``betas`` is a pair of numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{owner}: betas must be a pair of numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        check_number(owner, f"betas[{i}]", beta, below=1.0)


class AdamW(Adam):
    """Adam with decoupled weight decay: p shrinks by the factor 1 - lr weight_decay in each step.

    https://arxiv.org/abs/1711.05101. The arguments are those of :class:`Adam`, but weight_decay is 0.01 by
    default.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
