"""Losses of elements: squared and absolute error, and the cross-entropy of two classes.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.dtypes import is_floating
from minigrad.graph import Variable
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.mixed_precision import is_autocast_enabled
from minigrad.op import Op, op
from minigrad.ops.activation import sigmoid, softplus
from minigrad.ops.elementwise import abs, clamp, log, square, zeros_like
from minigrad.ops.reduce import mean, sum


def reduce_loss(name: str, loss: Any, reduction: str) -> Any:
    """``loss`` as it is, its mean, or its sum."""
    if reduction == "mean":
        return mean(loss)
    if reduction == "sum":
        return sum(loss)
    if reduction == "none":
        return loss
    raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def check_tensors(name: str, types: Any = Variable, **arguments: Any) -> None:
    """TypeError for what a loss cannot be computed of: a list of labels, a model's tuple of outputs."""
    for argument, value in arguments.items():
        if not isinstance(value, types):
            raise TypeError(
                f"{name}: {argument} must be a tensor, got {type(value).__name__}; of an array or a list of "
                "numbers, mg.tensor(...) makes one"
            )


def check_same_shape(name: str, x: Any, target: Any) -> None:
    check_tensors(name, (Variable, np.ndarray), input=x, target=target)
    if x.shape != target.shape:
        raise ValueError(f"{name}: input has shape {x.shape}, target {target.shape}; they must be equal")


# ---- elementwise ------------------------------------------------------------------------------------------
#
# Sums and means are one op, so that the losses of the elements are never written; its gradient is another.


def ones_like(x: Any) -> Any:
    """Ones of ``x``'s shape, dtype and device."""
    with x.device.active():
        return wrap(x.device.xp.ones(x.shape, x.dtype), x.device)


def _scale(x: Any, reduction: str) -> float:
    """What the sum of the losses of x's elements is multiplied by."""
    return 1.0 / max(1, math.prod(x.shape)) if reduction == "mean" else 1.0


def _elementwise_loss(name: str, value: Any, slope: Any) -> tuple[Op, Op]:
    """The op ``name``: the sum or mean of value(xp, x, target), and its gradient, whose slope is given."""

    def reference(xp, x, target, *, reduction):
        losses = value(xp, x, target)
        return xp.sum(losses) / losses.size if reduction == "mean" else xp.sum(losses)

    def grad_reference(xp, g, x, target, *, reduction):
        return slope(xp, x, target) * (g * x.dtype.type(_scale(x, reduction)))

    forward, backward = op(reference, name=name, promote=True), op(grad_reference, name=f"{name}_grad")
    forward.shape(lambda x, target, *, reduction: ())
    backward.shape(lambda g, x, target, *, reduction: x.shape)
    forward.grad(x=lambda g, _y, x, target, *, reduction: backward(g, x, target, reduction=reduction))
    backward.grad(
        g=lambda gg, _z, g, x, target, *, reduction: sum(
            gg * backward(ones_like(g), x, target, reduction=reduction)
        )
    )
    run, run_grad = getattr(cpu.loss, name), getattr(cpu.loss, f"{name}_grad")

    @forward.kernel("cpu", name="fused", when=_is_one_shape)
    def _(out, x, target, *, reduction):
        """One walk, in vectors; no loss of an element is written."""
        run(out, x, target, _scale(x, reduction), get_num_threads())

    @backward.kernel("cpu", name="fused", when=_grad_is_one_shape)
    def _(out, g, x, target, *, reduction):
        """One walk, in vectors."""
        run_grad(out, g, x, target, _scale(x, reduction), get_num_threads())

    @forward.kernel("cuda", "sim", name="fused", when=_is_one_shape)
    def _(out, x, target, *, reduction):
        """One walk, in vectors, by as many blocks as there are parts; no loss of an element is written."""
        cuda.loss.total(out, x, target, name, x.size if reduction == "mean" else 1)

    @backward.kernel("cuda", "sim", name="fused", when=_grad_is_one_shape)
    def _(out, g, x, target, *, reduction):
        """One walk, in vectors."""
        cuda.loss.gradient(out, g, x, target, name, _scale(x, reduction))

    return forward, backward


def _is_one_shape(x: Any, target: Any, **options: Any) -> bool:
    return x.size > 0 and x.shape == target.shape and x.dtype == target.dtype


def _grad_is_one_shape(g: Any, x: Any, target: Any, **options: Any) -> bool:
    return _is_one_shape(x, target) and g.size == 1 and g.dtype == x.dtype


def _log1p_exp(xp, x):
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _logistic(xp, x):
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, 1) / (1 + e)


_l1_loss, l1_loss_grad = _elementwise_loss(
    "l1_loss", lambda xp, x, t: xp.abs(x - t), lambda xp, x, t: xp.sign(x - t)
)
_mse_loss, mse_loss_grad = _elementwise_loss(
    "mse_loss", lambda xp, x, t: (x - t) * (x - t), lambda xp, x, t: 2 * (x - t)
)
_logits_loss, logits_loss_grad = _elementwise_loss(
    "binary_cross_entropy_with_logits",
    lambda xp, x, t: _log1p_exp(xp, x) - x * t,
    lambda xp, x, t: _logistic(xp, x) - t,
)

_l1_loss.grad(target=lambda g, _y, x, t, *, reduction: -l1_loss_grad(g, x, t, reduction=reduction))
_mse_loss.grad(target=lambda g, _y, x, t, *, reduction: -mse_loss_grad(g, x, t, reduction=reduction))
_logits_loss.grad(target=lambda g, _y, x, _t, *, reduction: x * (g * -_scale(x, reduction)))
l1_loss_grad.grad(
    x=lambda gg, _z, _g, _x, _t, *, reduction: zeros_like(gg),
    target=lambda gg, _z, _g, _x, _t, *, reduction: zeros_like(gg),
)
mse_loss_grad.grad(
    x=lambda gg, _z, g, _x, _t, *, reduction: gg * (g * (2 * _scale(_x, reduction))),
    target=lambda gg, _z, g, _x, _t, *, reduction: gg * (g * (-2 * _scale(_x, reduction))),
)


@logits_loss_grad.grad
def _(gg, _z, g, x, t, *, reduction):
    unit = sum(gg * logits_loss_grad(ones_like(g), x, t, reduction=reduction))
    scaled, p = gg * (g * _scale(x, reduction)), sigmoid(x)
    return unit, scaled * p * (1.0 - p), -scaled


def _fused(target: Op, input: Any, other: Any, reduction: str) -> Any:
    """The sum or mean by the op ``target``; None where it does not apply."""
    if reduction not in ("mean", "sum") or not is_floating(input.dtype) or not is_floating(other.dtype):
        return None
    return target(input, other, reduction=reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """|input - target|; both of one shape, and ``weight``, with which the mean is weighted."""
    check_same_shape("l1_loss", input, target)
    if weight is not None:
        return _weighted("l1_loss", abs(input - target), weight, reduction)
    loss = _fused(_l1_loss, input, target, reduction)
    return reduce_loss("l1_loss", abs(input - target), reduction) if loss is None else loss


def mse_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """(input - target)^2; both of one shape, and ``weight``, with which the mean is weighted."""
    check_same_shape("mse_loss", input, target)
    if weight is not None:
        return _weighted("mse_loss", square(input - target), weight, reduction)
    loss = _fused(_mse_loss, input, target, reduction)
    if loss is not None:
        return loss
    difference = input - target
    return reduce_loss("mse_loss", difference * difference, reduction)


def _weighted(name: str, losses: Any, weight: Any, reduction: str) -> Any:
    _check_weight(name, losses, weight)
    if reduction == "mean":
        return sum(losses * weight) / sum(weight)
    return reduce_loss(name, losses * weight, reduction)


def _check_weight(name: str, input: Any, weight: Any) -> None:
    if weight.shape != input.shape:
        raise ValueError(f"{name}: weight must have the input's shape {input.shape}, got {weight.shape}")


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d^2 / (2 beta) where d = |input - target| is below ``beta``, else d - beta / 2; both of one shape."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    check_same_shape("smooth_l1_loss", input, target)
    return reduce_loss("smooth_l1_loss", _huber(input - target, beta) * (1.0 / beta), reduction)


def huber_loss(
    input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None
) -> Any:
    """d^2 / 2 where d = |input - target| is below ``delta``, else delta (d - delta / 2); both of one shape.

    ``weight``, of that shape, is multiplied to each element's loss; the mean is over the elements even then.
    """
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}")
    check_same_shape("huber_loss", input, target)
    loss = _huber(input - target, delta)
    if weight is not None:
        _check_weight("huber_loss", input, weight)
        loss = loss * weight
    return reduce_loss("huber_loss", loss, reduction)


def _huber(difference: Any, delta: float) -> Any:
    """q (d - q / 2), where q is d limited to ``delta``: a square below it, a line above."""
    distance = abs(difference)
    limited = clamp(distance, max=delta)
    return limited * (distance - limited * 0.5)


# ---- two classes ------------------------------------------------------------------------------------------

SMALLEST_LOG = -100.0
"""The logarithm of a probability of 0 is taken as this, as in PyTorch, so that the loss stays finite."""


@op(name="binary_cross_entropy")
def _binary_cross_entropy(xp, x, target):
    """-(t log(x) + (1 - t) log(1 - x)), elementwise."""
    log_x = xp.maximum(xp.log(x), SMALLEST_LOG)
    log_not_x = xp.maximum(xp.log1p(-x), SMALLEST_LOG)
    return -(target * log_x + (1 - target) * log_not_x)


_binary_cross_entropy.grad(
    x=lambda g, _y, x, target: g * (x - target) / clamp(x * (1.0 - x), min=1e-12),
    target=lambda g, _y, x, _target: (
        g * (clamp(log(1.0 - x), min=SMALLEST_LOG) - clamp(log(x), min=SMALLEST_LOG))
    ),
)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """-(target log(input) + (1 - target) log(1 - input)).

    Args:
        input: probabilities, in [0, 1].
        target: of input's shape and dtype, in [0, 1].
        weight: multiplied to each element's loss; broadcast to the input.

    Raises:
        ValueError: shapes do not fit, or an input is not a probability (NaN is none).
    """
    check_same_shape("binary_cross_entropy", input, target)
    if is_autocast_enabled(input.device.type):
        raise RuntimeError(
            "binary_cross_entropy: under autocast a probability may have been rounded to 0 or 1; pass the "
            "logits to binary_cross_entropy_with_logits, or leave autocast for this loss"
        )
    with input.device.active():
        probable = ((input._array >= 0) & (input._array <= 1)).all()
    if not probable:
        raise ValueError(
            "binary_cross_entropy: all inputs must be in [0, 1]; for logits use the function _with_logits"
        )
    loss = _binary_cross_entropy(input, target)
    return reduce_loss("binary_cross_entropy", loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """:func:`binary_cross_entropy` of sigmoid(input), computed without overflow.

    ``pos_weight``, broadcast to the input, is multiplied to the part of positive targets.
    """
    check_same_shape("binary_cross_entropy_with_logits", input, target)
    if weight is None and pos_weight is None:
        fused = _fused(_logits_loss, input, target, reduction)
        if fused is not None:
            return fused
    # -log(sigmoid(x)) = softplus(-x), and -log(1 - sigmoid(x)) = x + softplus(-x).
    share = 1.0 if pos_weight is None else target * (pos_weight - 1.0) + 1.0
    loss = (1.0 - target) * input + softplus(-input) * share
    loss = loss if weight is None else loss * weight
    return reduce_loss("binary_cross_entropy_with_logits", loss, reduction)
