"""Batch normalisation with statistics from elsewhere, as at evaluation, and its weight's gradient.

``x`` is (N, C, ...); mean, variance, weight and bias broadcast to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op
from minigrad.ops.elementwise import rsqrt


def shared_axes(ndim: int, parameters: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which parameters of shape ``parameters`` are broadcast."""
    padded = (1,) * (ndim - len(parameters)) + parameters
    return tuple([axis for axis, size in enumerate(padded) if size == 1])


@op
def batch_norm_inference(xp, x, mean, var, weight=None, bias=None, *, eps):
    """(x - mean) / sqrt(var + eps) * weight + bias, all broadcast to x: statistics from elsewhere."""
    rstd = 1 / xp.sqrt(var + eps)
    y = x - mean
    y *= rstd if weight is None else rstd * weight
    if bias is not None:
        y += bias
    return y


def _inference_scale(var, weight, eps):
    rstd = rsqrt(var + eps)
    return rstd if weight is None else rstd * weight


@op
def batch_norm_weight_grad(xp, g, x, mean):
    """sum(g (x - mean)) in the shape of ``mean``: the weight's gradient without its factor rstd."""
    product = x - mean
    product *= g
    return xp.sum(product, axis=shared_axes(x.ndim, mean.shape), keepdims=True)


batch_norm_weight_grad.grad(
    g=lambda gg, _z, _g, x, mean: gg * (x - mean),
    x=lambda gg, _z, g, _x, _mean: gg * g,
    mean=lambda gg, _z, g, _x, _mean: -gg * g,
)


@batch_norm_weight_grad.shape
def _(g, x, mean):
    return mean.shape


batch_norm_inference.grad(
    x=lambda g, _y, _x, _mean, var, weight, _bias, *, eps: g * _inference_scale(var, weight, eps),
    mean=lambda g, _y, _x, _mean, var, weight, _bias, *, eps: -g * _inference_scale(var, weight, eps),
    var=lambda g, _y, x, mean, var, weight, _bias, *, eps: (
        batch_norm_weight_grad(g, x, mean) * _inference_scale(var, weight, eps) / (var + eps) * -0.5
    ),
    weight=lambda g, _y, x, mean, var, _weight, _bias, *, eps: (
        batch_norm_weight_grad(g, x, mean) * rsqrt(var + eps)
    ),
    bias=lambda g, _y, _x, _mean, _var, _weight, _bias, *, eps: g,
)


@batch_norm_inference.shape
def _(x, mean, var, weight, bias, *, eps):
    return x.shape


# ---- kernels ----------------------------------------------------------------------------------------------


def flat(parameter: Any) -> Any:
    return None if parameter is None else parameter.reshape(parameter.size)


def has_elements(x: Any, *rest: Any, **options: Any) -> bool:
    return x.size > 0


def as_planes(x: Any, axes: Sequence[int] = ()) -> tuple[int, int, int]:
    """The shape (N, C, ...) of ``x`` as (N, C, area)."""
    samples, channels = x.shape[:2]
    return samples, channels, math.prod(x.shape[2:])


def planes(x: Any) -> Any:
    return x.reshape(as_planes(x))


@batch_norm_inference.kernel("cpu", name="fused", when=has_elements)
def _(y, x, mean, var, weight, bias, *, eps):
    """One walk over the input, with a scale and a shift for each channel."""
    cpu.norm.batch_norm_inference(planes(y), planes(x), mean, var, weight, bias, eps, get_num_threads())


@batch_norm_weight_grad.kernel("cpu", name="fused", when=has_elements)
def _(out, g, x, mean):
    """One walk over the gradient and the input, with a sum for each channel."""
    cpu.norm.batch_norm_grad(None, out, None, planes(g), planes(x), mean, None, None, get_num_threads())


@batch_norm_inference.kernel("cuda", "sim", name="fused", when=has_elements)
def _(y, x, mean, var, weight, bias, *, eps):
    """One elementwise kernel."""
    statistics = flat(mean), flat(var), flat(weight), flat(bias)
    cuda.batch_norm.batch_norm_inference(planes(y), planes(x), *statistics, eps)


@batch_norm_weight_grad.kernel("cuda", "sim", name="split", when=has_elements)
def _(out, g, x, mean):
    """Several blocks for each channel; a second launch adds their sums."""
    cuda.batch_norm.batch_norm_weight_grad(flat(out), planes(g), planes(x), flat(mean))
