"""Elementwise losses as fused ops: the loss, and its sum or mean without storing the elements.

An op ``f(x, target, reduction=, scale=1.0, delta=1.0)`` and its gradient, another, to each loss.
``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``; ``scale`` is multiplied to the losses, and ``delta`` is
the Huber loss's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.source import computed_dtype
from minigrad.op import Op, op
from minigrad.ops.activation import sigmoid, softplus
from minigrad.ops.elementwise import abs, cast, clamp, exp, log, where, zeros_like
from minigrad.ops.reduce import sum

SMALLEST_LOG = -100.0
"""The logarithm of a probability of 0 is taken as this, as in PyTorch, so that the loss stays finite."""

LEAST_VARIANCE = 1e-12
"""That x (1 - x) of a probability x is taken as, so that the slope of its loss stays finite."""


def ones_like(x: Any) -> Any:
    """Ones of ``x``'s shape, dtype and device."""
    with x.device.active():
        return wrap(x.device.xp.ones(x.shape, x.dtype), x.device)


def _divisor(x: Any, reduction: str) -> int:
    """What the sum of the losses of x's elements is divided by."""
    return math.prod(x.shape) if reduction == "mean" else 1


def _factor(x: Any, reduction: str, scale: float) -> float:
    """What the sum of the losses of x's elements is multiplied by."""
    return scale / max(1, _divisor(x, reduction))


def elementwise_loss(
    name: str,
    value: Callable,
    slope: Callable,
    *,
    target_slope: Callable | None = None,
    curvature: Callable | None = None,
    mixed: Callable | None = None,
) -> tuple[Op, Op]:
    """The op ``name``, a loss of elements, and its gradient for x.

    Args:
        name: of the op; its kernels have it, too.
        value, slope: the loss of elements, and its derivative for x: f(xp, x, target, delta), of arrays.
        target_slope: the derivative for the target, f(x, target), of tensors; none in a loss of x - target.
        curvature: the second derivative for x, f(x, target, delta), of tensors; none is 0.
        mixed: the derivative of ``slope`` for the target, likewise; none in a loss of x - target.
    """

    def reference(xp, x, target, *, reduction, scale=1.0, delta=1.0):
        losses = value(xp, x, target, delta)
        if reduction != "none":
            losses = xp.sum(losses, dtype=computed_dtype(x.dtype)) / _divisor(x, reduction)
        return (losses * scale).astype(x.dtype)

    def grad_reference(xp, g, x, target, *, reduction, scale=1.0, delta=1.0):
        return slope(xp, x, target, delta) * (g * x.dtype.type(_factor(x, reduction, scale)))

    forward, backward = op(reference, name=name, promote=True), op(grad_reference, name=f"{name}_grad")
    forward.shape(lambda x, target, *, reduction, **options: x.shape if reduction == "none" else ())
    backward.shape(lambda g, x, target, **options: x.shape)
    _register_kernels(name, forward, backward)

    def target_grad(g, _y, x, target, *, reduction, scale, delta):
        if target_slope is None:
            return -backward(g, x, target, reduction=reduction, scale=scale, delta=delta)
        return target_slope(x, target) * (g * _factor(x, reduction, scale))

    forward.grad(x=lambda g, _y, x, target, **options: backward(g, x, target, **options), target=target_grad)

    def of_g(gg, _z, g, x, target, **options):
        projected = gg * backward(ones_like(g), x, target, **options)
        return projected if options["reduction"] == "none" else sum(projected)

    def of_x(gg, _z, g, x, target, *, reduction, scale, delta):
        if curvature is None:
            return zeros_like(gg)
        return gg * (g * _factor(x, reduction, scale)) * curvature(x, target, delta)

    def of_target(gg, z, g, x, target, *, reduction, scale, delta):
        if mixed is None:
            return -of_x(gg, z, g, x, target, reduction=reduction, scale=scale, delta=delta)
        return gg * (g * _factor(x, reduction, scale)) * mixed(x, target, delta)

    backward.grad(g=of_g, x=of_x, target=of_target)
    return forward, backward


def _register_kernels(name: str, forward: Op, backward: Op) -> None:
    @forward.kernel("cpu", name="fused", when=_is_one_shape)
    def _(out, x, target, *, reduction, scale, delta):
        """One walk, in vectors; no loss of an element is written that is not asked for."""
        run = cpu.loss.each if reduction == "none" else cpu.loss.total
        run(out, x, target, name, _factor(x, reduction, scale), delta, get_num_threads())

    @backward.kernel("cpu", name="fused", when=_grad_is_one_shape)
    def _(out, g, x, target, *, reduction, scale, delta):
        """One walk, in vectors."""
        factor = _factor(x, reduction, scale)
        cpu.loss.gradient(out, g, x, target, name, factor, delta, get_num_threads())

    @forward.kernel("cuda", "sim", name="fused", when=_is_one_shape)
    def _(out, x, target, *, reduction, scale, delta):
        """One walk, in vectors, a block for each part; no loss is written that is not asked for."""
        if reduction == "none":
            cuda.loss.each(out, x, target, name, scale, delta)
        else:
            cuda.loss.total(out, x, target, name, _divisor(x, reduction), scale, delta)

    @backward.kernel("cuda", "sim", name="fused", when=_grad_is_one_shape)
    def _(out, g, x, target, *, reduction, scale, delta):
        """One walk, in vectors."""
        cuda.loss.gradient(out, g, x, target, name, _factor(x, reduction, scale), delta)


def _is_one_shape(x: Any, target: Any, **options: Any) -> bool:
    return x.size > 0 and x.shape == target.shape and x.dtype == target.dtype


def _grad_is_one_shape(g: Any, x: Any, target: Any, *, reduction: str, **options: Any) -> bool:
    fits = g.shape == x.shape if reduction == "none" else g.size == 1
    return fits and g.dtype == x.dtype and _is_one_shape(x, target)


# ---- the losses ------------------------------------------------------------------------------------------


def _huber(xp, x, target, delta):
    """q (d - q / 2), where q is d = |x - target| limited to ``delta``: a square below it, a line above."""
    distance = xp.abs(x - target)
    limited = xp.minimum(distance, delta)
    return limited * (distance - 0.5 * limited)


def _log1p_exp(xp, x):
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _logistic(xp, x):
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, 1) / (1 + e)


def _logistic_curvature(x, target, delta):
    p = sigmoid(x)
    return p * (1.0 - p)


def _of_probability(xp, x, target, delta):
    """-(t log(x) + (1 - t) log(1 - x)), elementwise."""
    log_x = xp.maximum(xp.log(x), SMALLEST_LOG)
    log_not_x = xp.maximum(xp.log1p(-x), SMALLEST_LOG)
    return -(target * log_x + (1 - target) * log_not_x)


def _variance(x):
    """Of a throw that a probability x decides."""
    return clamp(x * (1.0 - x), min=LEAST_VARIANCE)


def _divergence(xp, x, target, delta):
    """t (log(t) - x), and -t x where t is 0."""
    nothing = target == 0
    return xp.where(nothing, target, target * xp.log(xp.where(nothing, 1, target))) - target * x


def _log_and_one(target):
    """log(t) + 1, and 0 where t is 0."""
    nothing = target == 0.0
    return where(nothing, 0.0, log(where(nothing, 1.0, target)) + 1.0)


l1_loss, l1_loss_grad = elementwise_loss(
    "l1_loss",
    lambda xp, x, t, delta: xp.abs(x - t),
    lambda xp, x, t, delta: xp.sign(x - t),
)
mse_loss, mse_loss_grad = elementwise_loss(
    "mse_loss",
    lambda xp, x, t, delta: (x - t) * (x - t),
    lambda xp, x, t, delta: 2 * (x - t),
    curvature=lambda x, t, delta: 2.0,
)
huber_loss, huber_loss_grad = elementwise_loss(
    "huber_loss",
    _huber,
    lambda xp, x, t, delta: xp.clip(x - t, -delta, delta),
    curvature=lambda x, t, delta: cast(abs(x - t) <= delta, dtype=x.dtype),
)
binary_cross_entropy, binary_cross_entropy_grad = elementwise_loss(
    "binary_cross_entropy",
    _of_probability,
    lambda xp, x, t, delta: (x - t) / xp.maximum(x * (1 - x), LEAST_VARIANCE),
    target_slope=lambda x, t: clamp(log(1.0 - x), min=SMALLEST_LOG) - clamp(log(x), min=SMALLEST_LOG),
    curvature=lambda x, t, delta: (1.0 - (x - t) * (1.0 - 2.0 * x) / _variance(x)) / _variance(x),
    mixed=lambda x, t, delta: -1.0 / _variance(x),
)
logits_loss, logits_loss_grad = elementwise_loss(
    "binary_cross_entropy_with_logits",
    lambda xp, x, t, delta: _log1p_exp(xp, x) - x * t,
    lambda xp, x, t, delta: _logistic(xp, x) - t,
    target_slope=lambda x, t: -x,
    curvature=_logistic_curvature,
    mixed=lambda x, t, delta: -1.0,
)
kl_div, kl_div_grad = elementwise_loss(
    "kl_div",
    _divergence,
    lambda xp, x, t, delta: -t,
    target_slope=lambda x, t: _log_and_one(t) - x,
    mixed=lambda x, t, delta: -1.0,
)
kl_div_of_logs, kl_div_of_logs_grad = elementwise_loss(
    "kl_div_of_logs",
    lambda xp, x, t, delta: xp.exp(t) * (t - x),
    lambda xp, x, t, delta: -xp.exp(t),
    target_slope=lambda x, t: exp(t) * (t - x + 1.0),
    mixed=lambda x, t, delta: -exp(t),
)


# ---- of two classes, with a weight for the positive ------------------------------------------------------
#
# softplus(x) = log(1 + exp(x)): -log(sigmoid(x)) = softplus(-x), and -log(1 - sigmoid(x)) = x + softplus(-x).


@op(promote=True)
def weighted_logits_loss(xp, x, target, pos_weight, *, reduction):
    """(1 - t) x + (1 + (w - 1) t) softplus(-x), where w is ``pos_weight``, broadcast to x."""
    losses = (1 - target) * x + (1 + (pos_weight - 1) * target) * _log1p_exp(xp, -x)
    if reduction != "none":
        losses = xp.sum(losses, dtype=computed_dtype(x.dtype)) / _divisor(x, reduction)
    return losses.astype(x.dtype)


@op
def weighted_logits_loss_grad(xp, g, x, target, pos_weight, *, reduction):
    """g (1 - t - (1 + (w - 1) t) sigmoid(-x))."""
    slope = 1 - target - (1 + (pos_weight - 1) * target) * _logistic(xp, -x)
    return slope * (g * x.dtype.type(_factor(x, reduction, 1.0)))


@weighted_logits_loss.shape
def _(x, target, pos_weight, *, reduction):
    if np.broadcast_shapes(x.shape, pos_weight.shape) != x.shape:
        raise ValueError(
            f"binary_cross_entropy_with_logits: pos_weight of shape {pos_weight.shape} does not broadcast to "
            f"the input's shape {x.shape}"
        )
    return x.shape if reduction == "none" else ()


weighted_logits_loss_grad.shape(lambda g, x, target, pos_weight, *, reduction: x.shape)


def _of_target(g, _y, x, target, pos_weight, *, reduction):
    return (softplus(-x) * (pos_weight - 1.0) - x) * (g * _factor(x, reduction, 1.0))


def _of_pos_weight(g, _y, x, target, pos_weight, *, reduction):
    return target * softplus(-x) * (g * _factor(x, reduction, 1.0))


def _grad_of_g(gg, _z, g, x, target, pos_weight, *, reduction):
    projected = gg * weighted_logits_loss_grad(ones_like(g), x, target, pos_weight, reduction=reduction)
    return projected if reduction == "none" else sum(projected)


def _grad_of_x(gg, _z, g, x, target, pos_weight, *, reduction):
    p, weights = sigmoid(x), 1.0 + (pos_weight - 1.0) * target
    return gg * (g * _factor(x, reduction, 1.0)) * weights * p * (1.0 - p)


def _grad_of_target(gg, _z, g, x, target, pos_weight, *, reduction):
    return -gg * (g * _factor(x, reduction, 1.0)) * (1.0 + (pos_weight - 1.0) * sigmoid(-x))


def _grad_of_pos_weight(gg, _z, g, x, target, pos_weight, *, reduction):
    return -gg * (g * _factor(x, reduction, 1.0)) * target * sigmoid(-x)


weighted_logits_loss.grad(
    x=lambda g, _y, x, target, pos_weight, **options: weighted_logits_loss_grad(
        g, x, target, pos_weight, **options
    ),
    target=_of_target,
    pos_weight=_of_pos_weight,
)
weighted_logits_loss_grad.grad(
    g=_grad_of_g, x=_grad_of_x, target=_grad_of_target, pos_weight=_grad_of_pos_weight
)


def _repeated(xp: Any, pos_weight: Any, x: Any) -> Any:
    """Flat, what repeats along the flat ``x``: of weights for all but the first dimensions no copy."""
    shape = pos_weight.shape
    while shape[:1] == (1,):
        shape = shape[1:]
    if shape != x.shape[x.ndim - len(shape) :]:
        pos_weight = xp.broadcast_to(pos_weight, x.shape)
    return pos_weight.reshape(-1)


def _has_weights(x: Any, target: Any, pos_weight: Any, **options: Any) -> bool:
    return _is_one_shape(x, target) and pos_weight.dtype == x.dtype


def _grad_has_weights(g: Any, x: Any, target: Any, pos_weight: Any, **options: Any) -> bool:
    return _grad_is_one_shape(g, x, target, **options) and pos_weight.dtype == x.dtype


@weighted_logits_loss.kernel("cpu", name="fused", when=_has_weights)
def _(out, x, target, pos_weight, *, reduction):
    """One walk, in vectors; no loss of an element is written that is not asked for."""
    run = cpu.loss.each if reduction == "none" else cpu.loss.total
    options = (_factor(x, reduction, 1.0), 1.0, get_num_threads(), _repeated(np, pos_weight, x))
    run(out, x, target, "weighted_logits_loss", *options)


@weighted_logits_loss_grad.kernel("cpu", name="fused", when=_grad_has_weights)
def _(out, g, x, target, pos_weight, *, reduction):
    """One walk, in vectors."""
    options = (_factor(x, reduction, 1.0), 1.0, get_num_threads(), _repeated(np, pos_weight, x))
    cpu.loss.gradient(out, g, x, target, "weighted_logits_loss", *options)


@weighted_logits_loss.kernel("cuda", "sim", name="fused", when=_has_weights)
def _(out, x, target, pos_weight, *, reduction):
    """One walk, in vectors, a block for each part; no loss is written that is not asked for."""
    weight = _repeated(cuda.array_module(x), pos_weight, x)
    if reduction == "none":
        cuda.loss.each(out, x, target, "weighted_logits_loss", 1.0, weight=weight)
    else:
        cuda.loss.total(out, x, target, "weighted_logits_loss", _divisor(x, reduction), weight=weight)


@weighted_logits_loss_grad.kernel("cuda", "sim", name="fused", when=_grad_has_weights)
def _(out, g, x, target, pos_weight, *, reduction):
    """One walk, in vectors."""
    weight = _repeated(cuda.array_module(x), pos_weight, x)
    cuda.loss.gradient(out, g, x, target, "weighted_logits_loss", _factor(x, reduction, 1.0), weight=weight)
