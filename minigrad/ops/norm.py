"""Layer, group and batch normalisation: one formula over different axes.

    normal = (x - mean) rstd        y = normal weight + bias        rstd = 1 / sqrt(variance + eps)

``layer_norm`` (https://arxiv.org/abs/1607.06450) takes mean and variance over the last axes, ``group_norm``
(https://arxiv.org/abs/1803.08494) over the channels of a group in one sample, and ``batch_norm``
(https://arxiv.org/abs/1502.03167) over a channel in all samples. To the ops these are the same: ``axes`` says
over which axes the mean is; group norm's are those of (N, groups, channels of a group, area), as which it
sees x, whatever its shape. Mean and rstd broadcast to ``x``, and so do weight and bias, which may come flat,
in the shape ``parameters``. Three ops they are for the sake of their kernels, which are in
:mod:`.norm_kernels`. Mean and rstd are outputs, so that the gradient need not find them again.

The variance is the mean of the squared deviations: E[x^2] - E[x]^2 loses all digits where the mean is large.

Where x is of 16 bits, mean and rstd are float32, and weight and bias may be, as they are under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from minigrad.autograd import mark_written, mode, wrap, written_cell
from minigrad.dispatch import Spec, enter_quiet, leave_quiet
from minigrad.dtypes import FLOAT32, INT64, is_half
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.source import computed_dtype
from minigrad.mixed_precision import wide
from minigrad.op import Op, op
from minigrad.ops.batch_norm_inference import batch_norm_inference, shared_axes
from minigrad.ops.elementwise import zeros_like
from minigrad.ops.reduce import count, sum
from minigrad.ops.shape import reshape
from minigrad.recording import recorder

# ---- the ops ----------------------------------------------------------------------------------------------


def _reference(xp, x, weight=None, bias=None, *, axes, parameters, eps):
    """y, mean and rstd of ``x`` normalised over ``axes``; ``parameters`` is the shape of weight and bias."""
    weight, bias = (None if p is None else p.reshape(parameters) for p in (weight, bias))
    n = count(x.shape, axes)
    mean = xp.sum(x, axis=axes, keepdims=True) / n
    centred = x - mean
    rstd = 1 / xp.sqrt(xp.sum(centred * centred, axis=axes, keepdims=True) / n + eps)
    y = centred
    y *= rstd if weight is None else rstd * weight
    if bias is not None:
        y += bias
    return y, mean, rstd


def _grad_reference(xp, g, x, mean, rstd, weight=None, *, axes, parameters):
    """The gradients for x, weight and bias, with ``g`` that of y:

    rstd (a - E[a] - normal E[a normal]) with a = g weight; sum(g normal); sum(g).
    """
    n, shared = count(x.shape, axes), shared_axes(x.ndim, parameters)
    outputs = parameters if weight is None else weight.shape
    weight = None if weight is None else weight.reshape(parameters)
    normal = (x - mean) * rstd
    dbias, product = xp.sum(g, axis=shared, keepdims=True), g * normal
    dweight = xp.sum(product, axis=shared, keepdims=True)
    if shared == axes:  # one weight for all that is averaged: it can be multiplied last
        scale = rstd if weight is None else rstd * weight
        normal *= dweight / n
        dx = g - dbias / n
    else:
        scale = rstd
        dx = g if weight is None else g * weight
        product = product if weight is None else product * weight
        normal *= xp.sum(product, axis=axes, keepdims=True) / n
        dx = dx - xp.sum(dx, axis=axes, keepdims=True) / n
    dx -= normal
    dx *= scale
    return dx, dweight.reshape(outputs), dbias.reshape(outputs)


def grouped_shape(shape: tuple[int, ...], parameters: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, ...) as group norm sees it: (N, groups, channels of a group, area)."""
    _, groups, channels, _ = parameters
    return shape[0], groups, channels, math.prod(shape[1:]) // max(groups * channels, 1)


def _as_it_is(shape: tuple[int, ...], parameters: tuple[int, ...]) -> tuple[int, ...]:
    return shape


@lru_cache(maxsize=1024)  # the same few shapes come in every step of a training
def _output_specs(shape: tuple, dtype: np.dtype, axes: tuple, parameters: tuple, seen: Callable) -> list:
    """Those of y, mean and rstd."""
    reduced = tuple([1 if axis in axes else size for axis, size in enumerate(seen(shape, parameters))])
    statistics = Spec(reduced, computed_dtype(dtype))
    return [Spec(shape, dtype), statistics, statistics]


def _grad_shapes(g, x, mean, rstd, weight, *, axes, parameters):
    """Those of the parameters are as the weight is."""
    if weight is None:
        outputs = Spec(parameters, computed_dtype(x.dtype))
    else:
        outputs = Spec(weight.shape, weight.dtype)
    return [x.shape, outputs, outputs]


class Running:
    """The running statistics that a batch moves.

    Attributes:
        mean, var: arrays (C,), in the dtype of the batch's statistics.
        batches: an array of one element, how many there were so far; or None.
        momentum: the batch's share in what they become.
        unbiased: count / (count - 1), by which the variance is estimated.
    """

    __slots__ = ("batches", "mean", "momentum", "unbiased", "var")

    def __init__(self, mean: Any, var: Any, batches: Any, momentum: float, unbiased: float):
        self.mean, self.var, self.batches = mean, var, batches
        self.momentum, self.unbiased = momentum, unbiased

    def is_moved_by_kernels(self, dtype: np.dtype) -> bool:
        """Whether all is as kernels take it that find statistics of ``dtype``."""
        mean, var, batches = self.mean, self.var, self.batches
        if mean.dtype != dtype or var.dtype != dtype or not (is_contiguous(mean) and is_contiguous(var)):
            return False
        return batches is None or batches.dtype == INT64

    def move(self, mean: Any, rstd: Any, eps: float) -> None:
        """Towards the statistics of a batch; kernels do it in their own launch."""
        quiet = enter_quiet()
        try:
            mean, rstd = mean.ravel(), rstd.ravel()
            self.mean *= 1 - self.momentum
            self.mean += mean * self.momentum
            var = 1 / (rstd * rstd) - eps  # all the digits that count beside eps
            self.var *= 1 - self.momentum
            self.var += var.clip(min=0) * (self.unbiased * self.momentum)
            if self.batches is not None:
                self.batches += 1
        finally:
            leave_quiet(quiet)


def _moving_reference(xp, x, weight=None, bias=None, *, axes, parameters, eps, running=None):
    """y, mean and rstd, towards which ``running`` moves."""
    y, mean, rstd = _reference(xp, x, weight, bias, axes=axes, parameters=parameters, eps=eps)
    if running is not None:
        running.move(mean, rstd, eps)
    return y, mean, rstd


def _normalization(name: str, seen: Callable = _as_it_is, reference: Callable | None = None) -> tuple[Op, Op]:
    """The op called ``name`` and the op that is its gradient.

    ``axes``, and the shapes of all else, are those of x in the shape ``seen(x.shape, parameters)``.
    """

    def plain_reference(xp, x, weight=None, bias=None, *, axes, parameters, eps):
        shape = seen(x.shape, parameters)
        y, *rest = _reference(xp, x.reshape(shape), weight, bias, axes=axes, parameters=parameters, eps=eps)
        return y.reshape(x.shape), *rest

    def grad_reference(xp, g, x, mean, rstd, weight=None, *, axes, parameters):
        g, flat = (a.reshape(seen(x.shape, parameters)) for a in (g, x))
        dx, *rest = _grad_reference(xp, g, flat, mean, rstd, weight, axes=axes, parameters=parameters)
        return dx.reshape(x.shape), *rest

    forward = op(
        reference or plain_reference,
        name=name,
        promote=None,
        saved_outputs=(1, 2),
        materialize_grads=False,
        ops_alone=True,
    )
    backward = op(grad_reference, name=f"{name}_grad", promote=None)
    backward.shape(_grad_shapes)

    @forward.shape
    def _(x, weight, bias, *, axes, parameters, **_):
        return _output_specs(x.shape, x.dtype, axes, parameters, seen)

    @forward.grad
    def _(g, y, x, weight, _bias, *, axes, parameters, **_):
        (g, g_mean, g_rstd), (_, mean, rstd) = g, y
        g = zeros_like(x) if g is None else g
        dx, dweight, dbias = backward(g, x, mean, rstd, weight, axes=axes, parameters=parameters)
        if weight is None and _bias is not None:
            dbias = dbias.reshape(_bias.shape)
        # Nothing comes by way of the statistics unless a gradient is differentiated.
        if g_mean is None and g_rstd is None:
            return dx, dweight, dbias
        shape = seen(x.shape, parameters)
        n = count(shape, axes)
        if g_mean is not None:
            dx = reshape(reshape(dx, shape) + g_mean / n, x.shape)
        if g_rstd is not None:
            by_rstd = (reshape(x, shape) - mean) * (g_rstd * rstd * rstd * rstd / n)
            dx = dx - reshape(by_rstd, x.shape)
        return dx, dweight, dbias

    @backward.grad
    def _(gg, _z, g, x, mean, rstd, weight, *, axes, parameters):
        # With u, v and t the gradients that come for dx, dweight and dbias, what is differentiated is
        # sum(u rstd (a - E[a] - normal E[a normal])) + sum(v g normal) + sum(t g). The first sum is the same
        # with u and a exchanged. The engine sums what was broadcast.
        own, seen_shape = x.shape, seen(x.shape, parameters)
        u, g, x = (reshape(wide(a), seen_shape) for a in (gg[0], g, x))
        v, t = reshape(wide(gg[1]), parameters), reshape(wide(gg[2]), parameters)
        shape = None if weight is None else weight.shape
        weight = None if weight is None else reshape(wide(weight), parameters)

        def average(z):
            return sum(z, axes, keepdim=True) / count(x.shape, axes)

        normal = (x - mean) * rstd
        a = g if weight is None else g * weight
        u_normal, a_normal = average(u * normal), average(a * normal)
        projected = (u - average(u) - normal * u_normal) * rstd
        dg = (projected if weight is None else projected * weight) + v * normal + t
        dnormal = g * v - (u * a_normal + a * u_normal) * rstd
        dx = dnormal * rstd
        drstd = u * (a - average(a) - normal * a_normal) + dnormal * (x - mean)
        dweight = g * projected
        if weight is not None and shape != parameters:
            dweight = reshape(sum(dweight, shared_axes(x.ndim, parameters)), shape)
        return reshape(dg, own), reshape(dx, own), -dx, drstd, dweight

    return forward, backward


_layer_norm, layer_norm_grad = _normalization("layer_norm")
_group_norm, group_norm_grad = _normalization("group_norm", grouped_shape)
_batch_norm, batch_norm_grad = _normalization("batch_norm", reference=_moving_reference)


# ---- the functions ----------------------------------------------------------------------------------------


def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes of ``input``.

    Args:
        input: (..., *normalized_shape).
        normalized_shape: the sizes of the axes that share a mean and a variance.
        weight, bias: of shape ``normalized_shape``, or None.
        eps: added to the variance.

    Raises:
        ValueError: shapes do not fit.
    """
    shape = shape_of("layer_norm", normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: input must end in the normalized_shape {shape}, which is not empty; "
            f"got shape {input.shape}"
        )
    _check_shapes("layer_norm", shape, weight=weight, bias=bias)
    _check_dtypes("layer_norm", input, weight=weight, bias=bias)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    return _layer_norm(input, weight, bias, axes=axes, parameters=shape, eps=eps)[0]


def shape_of(name: str, normalized_shape: Any) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple."""
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(f"{name}: normalized_shape must be a tuple or a list, got {normalized_shape!r:.60}")
    return tuple(normalized_shape)


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the channels of a group, in each sample.

    Args:
        input: (N, C, ...).
        num_groups: into how many groups of neighbours the channels are divided; it must divide C.
        weight, bias: (C,), or None.
        eps: added to the variance.

    Raises:
        ValueError: shapes do not fit.
    """
    if input.ndim < 2:
        raise ValueError(
            f"group_norm: input needs at least 2 dimensions (N, C, ...), got shape {input.shape}"
        )
    channels = input.shape[1]
    if not isinstance(num_groups, (int, np.integer)) or num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm: num_groups must be an integer that divides the number of channels, {channels}; "
            f"got {num_groups!r}"
        )
    _check_shapes("group_norm", (channels,), weight=weight, bias=bias)
    _check_dtypes("group_norm", input, weight=weight, bias=bias)
    in_group = channels // num_groups
    parameters = (1, int(num_groups), int(in_group), 1)
    return _group_norm(input, weight, bias, axes=(2, 3), parameters=parameters, eps=eps)[0]


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Any = None,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias, for each channel of ``input`` (N, C, ...).

    In training, mean and variance are those of the batch, and the running ones (C,) move towards them by
    ``momentum`` (the variance by its unbiased estimate); otherwise the running ones are used. Where they
    move, ``num_batches_tracked``, an int64 tensor of one element, is counted up by one.
    """
    if input.ndim < 2:
        raise ValueError(
            f"batch_norm: input needs at least 2 dimensions (N, C, ...), got shape {input.shape}"
        )
    axes, parameters, count = _over_channels(input.shape)
    running = {"running_mean": running_mean, "running_var": running_var}
    _check_shapes("batch_norm", parameters[1:2], **running, weight=weight, bias=bias)
    _check_dtypes("batch_norm", input, weight=weight, bias=bias)
    if not training and running_mean is not None:
        _check_dtypes("batch_norm", input, **running)
        given = (running_mean, running_var, weight, bias)
        mean, var, weight, bias = (None if p is None else _shaped(p, parameters) for p in given)
        return batch_norm_inference(input, mean, var, weight, bias, eps=eps)

    if count < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value per channel, got shape {input.shape}"
        )
    options = {"axes": axes, "parameters": parameters, "eps": eps, "running": None}
    if running_mean is None:
        return _batch_norm.apply((input, weight, bias), options)[0]
    tensors = running_mean, running_var, num_batches_tracked
    return _moving(tensors, momentum, count / (count - 1), (input, weight, bias), options)


def _moving(tensors: tuple, momentum: float, unbiased: float, inputs: tuple, options: dict) -> Any:
    """batch_norm's y. Of ``tensors`` mean and variance move, and the number of batches, unless it is None."""
    device, dtype = inputs[0].device, computed_dtype(inputs[0].dtype)
    mean, var, batches = tensors
    arrays = (
        wide(mean.detach())._array if is_half(mean.dtype) else mean._array,
        wide(var.detach())._array if is_half(var.dtype) else var._array,
        None if batches is None else batches._array,
    )
    running = Running(*arrays, momentum=momentum, unbiased=unbiased)
    in_its_launch = running.is_moved_by_kernels(dtype)
    if in_its_launch:
        options["running"] = running
    y, batch_mean, batch_rstd = _batch_norm.apply(inputs, options)
    if not in_its_launch:
        with device.active():
            running.move(batch_mean._array, batch_rstd._array, options["eps"])
    for own, moved in zip(tensors, arrays, strict=True):
        if own is None:
            continue
        if own._array is not moved:
            with device.active():
                own._array[...] = moved
        mark_written(own)
    return y


@lru_cache(maxsize=1024)  # the same few shapes come in every step of a training
def _over_channels(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(the axes of a channel's mean, the shape of its parameters, how many values it has) of (N, C, ...)."""
    axes = (0, *range(2, len(shape)))
    parameters = tuple([1 if axis in axes else size for axis, size in enumerate(shape)])
    return axes, parameters, math.prod([shape[axis] for axis in axes])


def _shaped(parameter: Any, shape: tuple[int, ...]) -> Any:
    """``parameter`` in another shape: by an op only where something looks at the graph or at a recording."""
    if (parameter.requires_grad and mode.grad) or recorder.current is not None:
        return reshape(parameter, shape)
    view = wrap(parameter._array.reshape(shape), parameter.device)
    view._written = written_cell(parameter)
    return view


def _check_shapes(name: str, shape: tuple[int, ...], **parameters: Any) -> None:
    for which, parameter in parameters.items():
        if parameter is not None and parameter.shape != shape:
            raise ValueError(f"{name}: {which} must have shape {shape}, got {parameter.shape}")


def _check_dtypes(name: str, input: Any, **parameters: Any) -> None:
    """Raise unless all are of the input's dtype, or float32 beside an input of 16 bits."""
    dtype = input.dtype
    for which, parameter in parameters.items():
        if parameter is None or parameter.dtype is dtype or parameter.dtype == dtype:
            continue
        if not (is_half(dtype) and parameter.dtype == FLOAT32):
            raise TypeError(
                f"{name}: inputs of different dtypes (input is {input.dtype}, {which} is {parameter.dtype}); "
                "convert one with .to(dtype)"
            )
