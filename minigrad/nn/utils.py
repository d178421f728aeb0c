"""Limiting gradients between ``backward()`` and the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.autograd import mark_written, no_grad
from minigrad.ops.join import stack
from minigrad.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor, so that together, as one vector, their norm is at most ``max_norm``.

    Args:
        parameters: whose ``grad`` is changed in place; those without one are left out.
        max_norm: the largest norm; positive.
        norm_type: the p of the p-norm; may be ``inf``.
        error_if_nonfinite: raise, before anything is changed, if the norm is NaN or infinite. Otherwise such
            gradients become NaN or 0.

    Returns:
        The norm before, a tensor of one element.

    Raises:
        ValueError: an argument is NaN or not positive.
        RuntimeError: see ``error_if_nonfinite``.
    """
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(
            f"clip_grad_norm_: max_norm and norm_type must be positive, got {max_norm} and {norm_type}"
        )
    grads = _gradients(parameters)
    if not grads:
        return Tensor(0.0)
    with no_grad():
        norms = [grad.detach().norm(norm_type).to(grads[0].device) for grad in grads]
        total = stack(norms).norm(norm_type)
        if error_if_nonfinite and not 0 <= total.item() < float("inf"):
            raise RuntimeError(f"clip_grad_norm_: the gradients' norm is {total.item()}")
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            with grad.device.active():
                grad._array *= factor.to(grad.device, grad.dtype)._array
            mark_written(grad)
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit every element of the gradients, in place, to [-clip_value, clip_value].

    Raises:
        ValueError: ``clip_value`` is NaN or negative.
    """
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative, got {clip_value}")
    for grad in _gradients(parameters):
        with grad.device.active():
            grad._array.clip(-clip_value, clip_value, out=grad._array)
        mark_written(grad)


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in parameters if p.grad is not None and p.grad.numel()]
