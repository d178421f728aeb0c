"""Adam, and AdamW, which keeps weight decay out of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from minigrad.autograd import wrap
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.cuda.live import Live
from minigrad.optim.optimizer import Optimizer, Update, check_number, refuse_first_step
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


@adam_step.kernel("cuda", "sim", name="fused")
def _(param, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One pass over memory, 16 bytes of each array a thread."""
    cuda.optim.adam_step(
        param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, decoupled, step
    )


@adam_step.kernel("cuda", name="many", takes=cuda.optim_many.fits)
def _(params, grads, exp_avgs, exp_avg_sqs, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One launch for all parameters."""
    cuda.optim_many.adam_step(
        params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, decoupled
    )


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
        maximize: climb instead of descending.
    """

    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
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
        """All numbers are at least 0, and betas below 1."""
        name = type(self).__name__
        for option in ("lr", "eps", "weight_decay"):
            check_number(name, option, group[option])
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{name}: betas must be a pair of numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            check_number(name, f"betas[{i}]", beta, below=1.0)

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if not state:
                _start(param, state)
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

        def factors(param: Tensor) -> tuple[float, float, float]:
            step, (beta1, beta2) = self.state[param]["step"], group["betas"]
            options = beta1, beta2, group["weight_decay"], self.decoupled
            return cuda.optim.adam_factors(float(group["lr"]), *options, step)

        recording.before_replay.append(advance)
        of_step: dict[int, Live] = {}
        for param, step in zip(params, steps, strict=True):
            if step not in of_step:
                of_step[step] = recording.live("ddd", partial(factors, param))
        return [of_step[step] for step in steps]


def _start(param: Tensor, state: dict[str, Any]) -> None:
    refuse_first_step(param)
    state["step"] = 0
    with param.device.active():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = wrap(param.device.xp.zeros(param.shape, param.dtype), param.device)


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
        *,
        maximize: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)
