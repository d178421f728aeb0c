"""Batch normalisation; https://arxiv.org/abs/1502.03167."""

from __future__ import annotations

from typing import Any

from minigrad.autograd import no_grad
from minigrad.ops.elementwise import rsqrt
from minigrad.ops.reduce import mean
from minigrad.ops.shape import reshape


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
    if input.ndim < 2:
        raise ValueError(
            f"batch_norm: input needs at least 2 dimensions (N, C, ...), got shape {input.shape}"
        )
    channels = input.shape[1]
    for name, t in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if t is not None and t.shape != (channels,):
            raise ValueError(f"batch_norm: {name} must have shape ({channels},), got {t.shape}")
    per_channel = (1, channels) + (1,) * (input.ndim - 2)
    if training or running_mean is None:
        axes = (0, *range(2, input.ndim))
        count = input.numel() // max(channels, 1)
        if count < 2:
            raise ValueError(
                f"batch_norm: training needs more than one value per channel, got shape {input.shape}"
            )
        center = mean(input, axes, keepdim=True)
        centred = input - center
        variance = mean(centred * centred, axes, keepdim=True)
        if running_mean is not None:
            with no_grad():
                running_mean.mul_(1 - momentum).add_(reshape(center, (channels,)) * momentum)
                unbiased = reshape(variance, (channels,)) * (count / (count - 1))
                running_var.mul_(1 - momentum).add_(unbiased * momentum)
    else:
        centred = input - reshape(running_mean, per_channel)
        variance = reshape(running_var, per_channel)
    scale = rsqrt(variance + eps)
    if weight is not None:
        scale = scale * reshape(weight, per_channel)
    out = centred * scale
    return out if bias is None else out + reshape(bias, per_channel)
