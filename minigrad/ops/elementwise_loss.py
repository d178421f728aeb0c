"""The ops of losses of elements: their sum or mean in one walk, by which none of them is written, or each.

An op ``f(x, target, reduction=, scale=1.0, delta=1.0)`` and its gradient, another, to each loss.
``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``; ``scale`` is multiplied to the losses, and ``delta`` is
the Huber loss's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad.autograd import wrap
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.source import computed_dtype
from minigrad.op import Op, op
from minigrad.ops.activation import sigmoid
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
