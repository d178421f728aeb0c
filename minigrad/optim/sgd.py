"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minigrad.autograd import wrap
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.optim.optimizer import (
    Optimizer,
    Update,
    check_number,
    empty_like,
    live_number,
    refuse_first_step,
)
from minigrad.tensor import Tensor

__all__ = ["SGD"]


def _sgd_step(
    xp, param, grad, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, first_step
):
    if weight_decay:
        grad = grad + weight_decay * param
    if momentum_buffer is not None:
        if first_step:
            momentum_buffer[...] = grad
        else:
            momentum_buffer *= momentum
            momentum_buffer += (1 - dampening) * grad
        grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    param -= lr * grad


sgd_step = Update(_sgd_step, "sgd_step")


@sgd_step.kernel("cpu", name="fused", takes=cpu.optim.fits)
def _(params, grads, momentum_buffers, *, lr, momentum, dampening, weight_decay, nesterov, first_step):
    """One loop over all arrays of all parameters."""
    cpu.optim.sgd_step(
        params, grads, momentum_buffers, first_step, lr, momentum, dampening, weight_decay, nesterov,
        get_num_threads(),
    )  # fmt: skip


@sgd_step.kernel("cuda", "sim", name="fused", dtypes="f4 f8 f2 bf16")
def _(param, grad, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, first_step):
    """One pass over memory, 16 bytes of each array a thread."""
    cuda.optim.sgd_step(
        param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov, first_step
    )


@sgd_step.kernel("cuda", name="many", dtypes="f4 f8 f2 bf16", takes=cuda.optim_many.fits)
def _(params, grads, momentum_buffers, *, lr, momentum, dampening, weight_decay, nesterov, first_step):
    """One launch for all parameters."""
    cuda.optim_many.sgd_step(
        params, grads, momentum_buffers, first_step, lr, momentum, dampening, weight_decay, nesterov
    )


class SGD(Optimizer):
    """Stochastic gradient descent: p -= lr g.

    With momentum, v = momentum v + (1 - dampening) g and p -= lr v; v starts as the first gradient. With
    Nesterov's, p -= lr (g + momentum v); http://www.cs.toronto.edu/~hinton/absps/momentum.pdf.

    Args:
        params: tensors, or dicts of them with options of their own.
        lr: the learning rate.
        momentum: how much of the velocity is kept.
        dampening: the share of the gradient that does not enter the velocity.
        weight_decay: added to the gradient, times the parameter (an L2 penalty).
        nesterov: Nesterov's momentum; needs momentum, and no dampening.
        maximize: climb instead of descending.
        foreach, fused: accepted and ignored: all parameters are always changed in one pass.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        """All numbers are at least 0; Nesterov's momentum needs momentum."""
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            check_number("SGD", name, group[name])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs momentum and no dampening, got "
                f"momentum {group['momentum']} and dampening {group['dampening']}"
            )

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The velocity begins with the first gradient, and is not there before."""
        return ()

    def constants(self, group: dict[str, Any]) -> dict[str, Any]:
        """All but the momentum, if there is any."""
        return {**super().constants(group), "momentum": bool(group["momentum"])}

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """One step of the parameters of a group."""
        device = params[0].device
        lr = live_number(device, lambda: group["lr"])
        momentum = live_number(device, lambda: group["momentum"]) if group["momentum"] else 0.0
        velocities: list[Any] = [None] * len(params)
        first_steps = [False] * len(params)
        if group["momentum"]:
            for i, param in enumerate(params):
                state = self.state[param]
                if state.get("momentum_buffer") is None:
                    refuse_first_step(param)
                    first_steps[i] = True
                    with param.device.active():
                        state["momentum_buffer"] = wrap(empty_like(param), param.device)
                velocities[i] = state["momentum_buffer"]._array
        sgd_step(
            params,
            grads,
            velocities,
            each={"first_step": first_steps},
            lr=lr,
            momentum=momentum,
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )
