"""Batch normalisation with statistics from elsewhere, as at evaluation, and its weight's gradient.

``x`` is (N, C, ...); mean, variance, weight and bias broadcast to it, and may be float32 where it is of 16
bits. The kernels are in :mod:`.norm_kernels`.
"""

from __future__ import annotations

from minigrad.dispatch import Spec
from minigrad.kernels.source import computed_dtype
from minigrad.mixed_precision import wide
from minigrad.op import op
from minigrad.ops.elementwise import rsqrt


def shared_axes(ndim: int, parameters: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which parameters of shape ``parameters`` are broadcast."""
    padded = (1,) * (ndim - len(parameters)) + parameters
    return tuple([axis for axis, size in enumerate(padded) if size == 1])


@op(promote=None)
def batch_norm_inference(xp, x, mean, var, weight=None, bias=None, *, eps):
    """(x - mean) / sqrt(var + eps) * weight + bias, all broadcast to x: statistics from elsewhere."""
    rstd = 1 / xp.sqrt(var + eps)
    y = x - mean
    y *= rstd if weight is None else rstd * weight
    if bias is not None:
        y += bias
    return y


def _inference_scale(var, weight, eps):
    rstd = rsqrt(wide(var) + eps)
    return rstd if weight is None else rstd * weight


@op(promote=None)
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
    return Spec(mean.shape, computed_dtype(x.dtype))


batch_norm_inference.grad(
    x=lambda g, _y, _x, _mean, var, weight, _bias, *, eps: g * _inference_scale(var, weight, eps),
    mean=lambda g, _y, _x, _mean, var, weight, _bias, *, eps: -g * _inference_scale(var, weight, eps),
    var=lambda g, _y, x, mean, var, weight, _bias, *, eps: (
        batch_norm_weight_grad(g, x, mean) * _inference_scale(var, weight, eps) / (wide(var) + eps) * -0.5
    ),
    weight=lambda g, _y, x, mean, var, _weight, _bias, *, eps: (
        batch_norm_weight_grad(g, x, mean) * _inference_scale(var, None, eps)
    ),
    bias=lambda g, _y, _x, _mean, _var, _weight, _bias, *, eps: wide(g),
)


@batch_norm_inference.shape
def _(x, mean, var, weight, bias, *, eps):
    return x.shape
