"""Gradient clipping, between ``backward()`` and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from minigrad.autograd import mark_written, no_grad, wrap
from minigrad.devices import cpu
from minigrad.dispatch import parse_dtypes
from minigrad.kernels import cuda
from minigrad.kernels.channels_last import in_memory_order
from minigrad.kernels.cpu import optim
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.ops.join import stack
from minigrad.recording import recorder
from minigrad.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_"]

FLOATS = parse_dtypes("f4 f8")  # that kernels compute in


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
    arrays = [in_memory_order(grad._array) for grad in grads]
    where = grads[0].device
    if norm_type == 2 and all(grad.device is where for grad in grads):
        if where is cpu and optim.fits(arrays):
            return _clip_together(grads, arrays, max_norm, error_if_nonfinite)
        if where is not cpu and arrays[0].dtype in FLOATS and cuda.optim_many.fits(arrays):
            return _clip_on_card(grads, arrays, max_norm, error_if_nonfinite)
    with no_grad():
        norms = [grad.detach().norm(norm_type).to(grads[0].device) for grad in grads]
        total = stack(norms).norm(norm_type)
        _check_finite(total, error_if_nonfinite)
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            with grad.device.active():
                grad._array *= factor.to(grad.device, grad.dtype)._array
            mark_written(grad)
    return total


def _clip_together(grads: list[Tensor], arrays: list, max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """:func:`clip_grad_norm_` of the 2-norm, in one walk to find it and one to scale."""
    total = optim.norm(arrays, get_num_threads())
    _check_finite(total, error_if_nonfinite)
    factor = max_norm / (total + 1e-6)
    if not factor >= 1.0:  # NaN, too
        optim.scale(arrays, factor, get_num_threads())
        for grad in grads:
            mark_written(grad)
    return wrap(np.asarray(total, arrays[0].dtype), cpu)


def _clip_on_card(grads: list[Tensor], arrays: list, max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """As :func:`_clip_together`, in two launches for all gradients; the norm stays on the card."""
    device = grads[0].device
    with no_grad(), device.active():
        partial = cuda.optim_many.squares(arrays)
        if error_if_nonfinite:
            _check_finite(wrap(partial, device).sum().sqrt(), error_if_nonfinite)
        total = wrap(cuda.optim_many.clip(arrays, partial, max_norm), device)
    for grad in grads:
        mark_written(grad)
    return total


def _check_finite(total: Any, error_if_nonfinite: bool) -> None:
    """A norm on a card is not waited for unless that has to be."""
    if error_if_nonfinite and not 0 <= float(total) < math.inf:
        raise RuntimeError(f"clip_grad_norm_: the gradients' norm is {float(total)}")


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
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if recorder.current is not None:
        recorder.current.gradients.reads(parameters)
    return [p.grad for p in parameters if p.grad is not None and p.grad.numel()]
