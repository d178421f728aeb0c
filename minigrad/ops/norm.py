"""Layer, group and batch normalisation: one formula over different axes.

    normal = (x - mean) rstd        y = normal weight + bias        rstd = 1 / sqrt(variance + eps)

``layer_norm`` (https://arxiv.org/abs/1607.06450) takes mean and variance over the last axes, ``group_norm``
(https://arxiv.org/abs/1803.08494) over the channels of a group in one sample, and ``batch_norm``
(https://arxiv.org/abs/1502.03167) over a channel in all samples. To the ops these are the same: ``axes`` says
over which axes the mean is. Mean and rstd broadcast to ``x``, and so do weight and bias, which may come flat,
in the shape ``parameters``. Three ops they are for their kernels' sake. Mean and rstd are outputs, so that
the gradient need not find them again.

The variance is the mean of the squared deviations: E[x^2] - E[x]^2 loses all digits where the mean is large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from minigrad.autograd import mark_written
from minigrad.dispatch import Spec, enter_quiet, leave_quiet, parse_dtypes
from minigrad.dtypes import FLOAT32, is_half
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.mixed_precision import WIDER, in_float32
from minigrad.op import Op, op
from minigrad.ops.batch_norm_inference import (
    as_planes,
    batch_norm_inference,
    flat,
    has_elements,
    planes,
    shared_axes,
)
from minigrad.ops.elementwise import zeros_like
from minigrad.ops.reduce import sum
from minigrad.ops.shape import reshape

FLOATS = parse_dtypes("f4 f8")  # that kernels compute in

# ---- the ops ----------------------------------------------------------------------------------------------


def _reference(xp, x, weight=None, bias=None, *, axes, parameters, eps):
    """y, mean and rstd of ``x`` normalised over ``axes``; ``parameters`` is the shape of weight and bias."""
    weight, bias = (None if p is None else p.reshape(parameters) for p in (weight, bias))
    n = _count(x.shape, axes)
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
    n, shared = _count(x.shape, axes), shared_axes(x.ndim, parameters)
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


def _count(shape: tuple[int, ...], axes: Sequence[int]) -> int:
    return math.prod([shape[axis] for axis in axes])


def _shapes(x, weight, bias, *, axes, parameters, eps):
    statistics = tuple([1 if axis in axes else size for axis, size in enumerate(x.shape)])
    return [x.shape, statistics, statistics]


def _grad_shapes(g, x, mean, rstd, weight, *, axes, parameters):
    """Those of the parameters are as the weight is."""
    outputs = Spec(parameters if weight is None else weight.shape, x.dtype)
    return [x.shape, outputs, outputs]


def _normalization(name: str) -> tuple[Op, Op]:
    """The op called ``name`` and the op that is its gradient."""
    forward = op(_reference, name=name, saved_outputs=(1, 2), materialize_grads=False)
    backward = op(_grad_reference, name=f"{name}_grad")
    forward.shape(_shapes)
    backward.shape(_grad_shapes)

    @forward.grad
    def _(g, y, x, weight, _bias, *, axes, parameters, eps):
        (g, g_mean, g_rstd), (_, mean, rstd) = g, y
        g = zeros_like(x) if g is None else g
        dx, dweight, dbias = backward(g, x, mean, rstd, weight, axes=axes, parameters=parameters)
        if weight is None and _bias is not None:
            dbias = reshape(dbias, _bias.shape)
        # Nothing comes by way of the statistics unless a gradient is differentiated.
        n = _count(x.shape, axes)
        if g_mean is not None:
            dx = dx + g_mean / n
        if g_rstd is not None:
            dx = dx - (x - mean) * (g_rstd * rstd * rstd * rstd / n)
        return dx, dweight, dbias

    @backward.grad
    def _(gg, _z, g, x, mean, rstd, weight, *, axes, parameters):
        # With u, v and t the gradients that come for dx, dweight and dbias, what is differentiated is
        # sum(u rstd (a - E[a] - normal E[a normal])) + sum(v g normal) + sum(t g). The first sum is the same
        # with u and a exchanged. The engine sums what was broadcast.
        u, v, t = gg[0], reshape(gg[1], parameters), reshape(gg[2], parameters)
        shape = None if weight is None else weight.shape
        weight = None if weight is None else reshape(weight, parameters)

        def average(z):
            return sum(z, axes, keepdim=True) / _count(x.shape, axes)

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
        return dg, dx, -dx, drstd, dweight

    return forward, backward


_layer_norm, layer_norm_grad = _normalization("layer_norm")
_group_norm, group_norm_grad = _normalization("group_norm")
_batch_norm, batch_norm_grad = _normalization("batch_norm")


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
    if is_half(input.dtype):
        return in_float32(layer_norm, input, normalized_shape, weight, bias, eps, policy=WIDER)
    shape = tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: input must end in the normalized_shape {shape}, which is not empty; "
            f"got shape {input.shape}"
        )
    _check_parameters("layer_norm", shape, weight=weight, bias=bias)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    return _layer_norm(input, weight, bias, axes=axes, parameters=shape, eps=eps)[0]


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
    if is_half(input.dtype):
        return in_float32(group_norm, input, num_groups, weight, bias, eps, policy=WIDER)
    if input.ndim < 2:
        raise ValueError(
            f"group_norm: input needs at least 2 dimensions (N, C, ...), got shape {input.shape}"
        )
    samples, channels = input.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm: num_groups must divide the number of channels, {channels}; got {num_groups}"
        )
    _check_parameters("group_norm", (channels,), weight=weight, bias=bias)
    in_group = channels // num_groups
    parameters = (1, num_groups, in_group, 1)
    x = reshape(input, (samples, num_groups, in_group, math.prod(input.shape[2:])))
    y = _group_norm(x, weight, bias, axes=(2, 3), parameters=parameters, eps=eps)[0]
    return reshape(y, input.shape)


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias, for each channel of ``input`` (N, C, ...).

    In training, mean and variance are those of the batch, and the running ones (C,) move towards them by
    ``momentum`` (the variance by its unbiased estimate); otherwise the running ones are used.
    """
    if is_half(input.dtype):
        return _batch_norm_of_halves(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.ndim < 2:
        raise ValueError(
            f"batch_norm: input needs at least 2 dimensions (N, C, ...), got shape {input.shape}"
        )
    channels = input.shape[1]
    running = {"running_mean": running_mean, "running_var": running_var}
    _check_parameters("batch_norm", (channels,), **running, weight=weight, bias=bias)
    parameters = (1, channels) + (1,) * (input.ndim - 2)
    if not training and running_mean is not None:
        given = (running_mean, running_var, weight, bias)
        mean, var, weight, bias = (None if p is None else reshape(p, parameters) for p in given)
        return batch_norm_inference(input, mean, var, weight, bias, eps=eps)

    count = input.numel() // max(channels, 1)
    if count < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value per channel, got shape {input.shape}"
        )
    axes = (0, *range(2, input.ndim))
    y, mean, rstd = _batch_norm(input, weight, bias, axes=axes, parameters=parameters, eps=eps)
    if running_mean is not None:
        _follow(running_mean, running_var, mean, rstd, momentum, count / (count - 1), eps)
    return y


def _batch_norm_of_halves(input, running_mean, running_var, *rest):
    """:func:`batch_norm` in float32, statistics included; they are rounded where they are kept in 16 bits."""
    kept = [running_mean, running_var]
    running = [r if r is None or not is_half(r.dtype) else r.to(FLOAT32) for r in kept]
    y = in_float32(batch_norm, input, *running, *rest)
    for own, wide in zip(kept, running, strict=True):
        if own is not wide:
            own.copy_(wide)
    return y


def _follow(running_mean, running_var, mean, rstd, momentum, unbiased, eps):
    """Move the running statistics, on bare arrays, by ``momentum`` towards those of a batch."""
    device, batch = running_mean.device, (flat(mean._array), flat(rstd._array))
    running = running_mean._array, running_var._array
    with device.active():
        if device.type != "cpu" and _are_alike(*running, *batch):
            cuda.batch_norm.follow(running, *batch, momentum, unbiased, eps)
        else:
            _follow_by_arrays(running, *batch, momentum, unbiased, eps)
    mark_written(running_mean)
    mark_written(running_var)


def _follow_by_arrays(running, mean, rstd, momentum, unbiased, eps):
    quiet = enter_quiet()
    try:
        own_mean, own_var = running
        own_mean *= 1 - momentum
        own_mean += mean * momentum
        var = 1 / (rstd * rstd) - eps  # all the digits that count beside eps
        own_var *= 1 - momentum
        own_var += var.clip(min=0) * (unbiased * momentum)
    finally:
        leave_quiet(quiet)


def _are_alike(*arrays):
    """Whether a kernel takes them together."""
    dtype = arrays[0].dtype
    return dtype in FLOATS and all(a.dtype == dtype and a.flags.c_contiguous for a in arrays)


def _check_parameters(name: str, shape: tuple[int, ...], **parameters: Any) -> None:
    for which, parameter in parameters.items():
        if parameter is not None and parameter.shape != shape:
            raise ValueError(f"{name}: {which} must have shape {shape}, got {parameter.shape}")


# ---- kernels ----------------------------------------------------------------------------------------------


# A row of more columns than this is long enough for the block rung to beat one warp.
WARP_COLUMNS = 1024


def _register_cpu(forward: Op, backward: Op, shape_of: Any) -> None:
    """Register the CPU kernels, which see ``x`` as ``shape_of(x, axes)``."""
    run, run_grad = getattr(cpu.norm, forward.name), getattr(cpu.norm, backward.name)

    @forward.kernel("cpu", name="fused", when=has_elements)
    def _(outs, x, weight, bias, *, axes, parameters, eps):
        """One walk for the statistics, one for the result."""
        shape = shape_of(x, axes)
        y, mean, rstd = outs
        run(y.reshape(shape), mean, rstd, x.reshape(shape), weight, bias, eps, get_num_threads())

    @backward.kernel("cpu", name="fused", when=has_elements)
    def _(outs, g, x, mean, rstd, weight, *, axes, parameters):
        """One walk for the sums, one for the gradient of x."""
        shape = shape_of(x, axes)
        dx, dweight, dbias = outs
        g, x = g.reshape(shape), x.reshape(shape)
        run_grad(dx.reshape(shape), dweight, dbias, g, x, mean, rstd, weight, get_num_threads())


def _register_rows(forward: Op, backward: Op, rows_shape: Any) -> None:
    """Register the CUDA kernels of layer or group norm, which see ``x`` as ``rows_shape(x, axes)``."""
    run, run_grad = getattr(cuda.norm, forward.name), getattr(cuda.norm, backward.name)

    def is_filled(x, *rest, axes, **options):
        return 0 < _count(x.shape, axes) < cuda.norm.MAX_COLUMNS and x.size > 0

    def has_long_rows(x, *rest, axes, **options):
        return is_filled(x, axes=axes) and _count(x.shape, axes) > WARP_COLUMNS

    def fits_registers(x, *rest, axes, **options):
        return is_filled(x, axes=axes) and _count(x.shape, axes) <= cuda.norm_registers.MAX_COLUMNS

    def register(name, when, run, run_grad, summary):
        def kernel(outs, x, weight, bias, *, axes, parameters, eps):
            shape = rows_shape(x, axes)
            y, *statistics = outs
            y = y.reshape(shape)
            run((y, *statistics), x.reshape(shape), flat(weight), flat(bias), eps)

        def grad_kernel(outs, g, x, mean, rstd, weight, *, axes, parameters):
            shape = rows_shape(x, axes)
            dx, dweight, dbias = outs
            outs = dx.reshape(shape), flat(dweight), flat(dbias)
            run_grad(outs, g.reshape(shape), x.reshape(shape), mean, rstd, flat(weight))

        kernel.__doc__ = grad_kernel.__doc__ = summary
        forward.kernel("cuda", "sim", name=name, when=when)(kernel)
        backward.kernel("cuda", "sim", name=name, when=when)(grad_kernel)

    for rung, when, summary in (
        ("naive", is_filled, "One thread for each row: the definition."),
        ("warp", is_filled, "One warp for each row: loads are coalesced, sums combined by shuffles."),
        ("block", has_long_rows, "One block for each row, for rows too long for one warp."),
    ):
        register(rung, when, partial(run, rung), partial(run_grad, rung), summary)
    in_registers = getattr(cuda.norm_registers, forward.name), getattr(cuda.norm_registers, backward.name)
    summary = "A row is read once, 16 bytes a load, and kept in registers; its gradients in one walk."
    register("registers", fits_registers, *in_registers, summary)


def _as_matrix(x: Any, axes: Sequence[int]) -> tuple[int, int]:
    columns = _count(x.shape, axes)
    return x.size // columns, columns


_register_cpu(_layer_norm, layer_norm_grad, _as_matrix)
_register_cpu(_group_norm, group_norm_grad, lambda x, axes: x.shape)
_register_cpu(_batch_norm, batch_norm_grad, as_planes)
_register_rows(_layer_norm, layer_norm_grad, _as_matrix)
_register_rows(_group_norm, group_norm_grad, lambda x, axes: x.shape)


def _register_channels(rung: str) -> None:
    run = getattr(cuda.batch_norm, f"batch_norm_{rung}")
    run_grad = getattr(cuda.batch_norm, f"batch_norm_grad_{rung}")

    def kernel(outs, x, weight, bias, *, axes, parameters, eps):
        y, mean, rstd = outs
        run((planes(y), flat(mean), flat(rstd)), planes(x), flat(weight), flat(bias), eps)

    def grad_kernel(outs, g, x, mean, rstd, weight, *, axes, parameters):
        dx, dweight, dbias = outs
        outs = planes(dx), flat(dweight), flat(dbias)
        run_grad(outs, planes(g), planes(x), flat(mean), flat(rstd), flat(weight))

    kernel.__doc__, grad_kernel.__doc__ = run.__doc__, run_grad.__doc__
    _batch_norm.kernel("cuda", "sim", name=rung, when=has_elements)(kernel)
    batch_norm_grad.kernel("cuda", "sim", name=rung, when=has_elements)(grad_kernel)


_register_channels("naive")
_register_channels("split")
