"""Instance normalisation, which is group normalisation with a group for each channel, and the root mean
square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.dtypes import is_half
from minigrad.mixed_precision import WIDER, in_float32
from minigrad.ops.elementwise import rsqrt
from minigrad.ops.norm import batch_norm, group_norm, shape_of
from minigrad.ops.reduce import mean
from minigrad.ops.squares import var


def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias, for each channel of each sample; arXiv:1607.08022.

    Args:
        input: (N, C, ...).
        running_mean, running_var: (C,), or None. With ``use_input_stats`` they are moved, by the share
            ``momentum``, to the samples' mean and unbiased variance; otherwise they are used.
        weight, bias: (C,), or None.
        use_input_stats: whether mean and variance are the input's own.
        momentum, eps: see above.

    Raises:
        ValueError: shapes do not fit.
    """
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    if input.ndim < 3:
        raise ValueError(f"instance_norm: expected (N, C, ...), got shape {input.shape}")
    axes = tuple(range(2, input.ndim))
    if np.prod([input.shape[axis] for axis in axes]) < 2:
        raise ValueError(
            f"instance_norm: a channel of a sample needs more than one value, got shape {input.shape}"
        )
    out = group_norm(input, max(input.shape[1], 1), weight, bias, eps)
    with no_grad():
        for running, moment in ((running_mean, mean), (running_var, var)):
            if running is not None:
                own = mean(moment(input.detach(), axes), 0)
                running.copy_(running * (1.0 - momentum) + own.to(running.dtype) * momentum)
    return out


def rms_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes of ``input``; arXiv:1910.07467.

    Args:
        input: (..., *normalized_shape).
        normalized_shape: the sizes of the axes that share a mean.
        weight: of that shape, or None.
        eps: added to the mean; by default the smallest eps with 1 + eps > 1.

    Raises:
        ValueError: shapes do not fit.
    """
    shape = shape_of("rms_norm", normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape or (weight is not None and weight.shape != shape):
        raise ValueError(
            f"rms_norm: expected an input (..., *{shape}) and a weight of that shape, got {input.shape} and "
            f"{None if weight is None else weight.shape}"
        )
    eps = (
        float(np.finfo(input.dtype if input.dtype == np.float64 else np.float32).eps) if eps is None else eps
    )
    if is_half(input.dtype):
        return in_float32(rms_norm, input, shape, weight, eps, policy=WIDER)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    normal = input * rsqrt(mean(input * input, axes, keepdim=True) + eps)
    return normal if weight is None else normal * weight
