"""Layers that normalise: batch norm, https://arxiv.org/abs/1502.03167; layer norm,
https://arxiv.org/abs/1607.06450; group norm, https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import empty, ones, tensor, zeros
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
]


class BatchNorm(Module):
    """What both batch normalisations share: (x - mean) / sqrt(var + eps) weight + bias, by channel (axis 1).

    In training, mean and variance are the batch's, and running averages of them are kept; in evaluation the
    running averages are used.

    Args:
        num_features: the number of channels, C.
        eps: added to the variance.
        momentum: the share of the newest batch in the running averages; None makes them the mean over all
            batches so far.
        affine: whether there are a weight and a bias.
        track_running_stats: whether running averages are kept; without them, evaluation uses the batch's
            own statistics.
        device, dtype: of parameters and buffers; float32 on the CPU by default.

    Attributes:
        weight, bias: (C,), starting with 1 and 0, or None.
        running_mean, running_var: buffers (C,), starting with 0 and 1, or None.
        num_batches_tracked: a buffer, the number of batches so far, or None.
    """

    dimensions: ClassVar[tuple[int, ...]]  # of the inputs it takes
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if not isinstance(num_features, int) or num_features < 0:
            raise ValueError(
                f"{type(self).__name__}: num_features must be an integer of at least 0, got {num_features!r}"
            )
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        place = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            self.register_parameter(name, Parameter(empty(num_features, **place)) if affine else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, **place) if tracked else None)
        self.register_buffer("running_var", ones(num_features, **place) if tracked else None)
        self.register_buffer(
            "num_batches_tracked", tensor(0, dtype=np.int64, device=device) if tracked else None
        )
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the running averages."""
        for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(value)

    def reset_parameters(self) -> None:
        """Forget the running averages, and set weight and bias to 1 and 0."""
        self.reset_running_stats()
        _reset(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape: (N, C, H, W) for BatchNorm2d, (N, C) or (N, C, L) for BatchNorm1d."""
        if input.ndim not in self.dimensions:
            wanted = " or ".join(f"{n}D" for n in self.dimensions)
            raise ValueError(
                f"{type(self).__name__}: expected {wanted} input, got {input.ndim}D (shape {input.shape})"
            )
        count = self.num_batches_tracked if self.training else None
        momentum = self.momentum
        if momentum is None:
            momentum = 0.0 if count is None else 1.0 / (count.item() + 1)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum,
            self.eps,
            num_batches_tracked=count,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); the arguments are those of :class:`BatchNorm`."""

    dimensions = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalisation of images (N, C, H, W); the arguments are those of :class:`BatchNorm`."""

    dimensions = (4,)


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) weight + bias, with the mean and variance over an input's last axes.

    Args:
        normalized_shape: the sizes of these axes; an integer for the last one alone.
        eps: added to the variance.
        elementwise_affine: whether there are a weight and, with ``bias``, a bias.
        bias: whether there is a bias, too.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight, bias: of shape ``normalized_shape``, starting with 1 and 0, or None.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or any(not isinstance(size, int) or size < 0 for size in shape):
            raise ValueError(
                "LayerNorm: normalized_shape must be one or more sizes of at least 0, "
                f"got {normalized_shape!r}"
            )
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        for name, there in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            parameter = Parameter(empty(shape, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to 1 and 0."""
        _reset(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape, (..., *normalized_shape)."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """(x - mean) / sqrt(var + eps) weight + bias, with the mean and variance over a group of channels.

    Args:
        num_groups: into how many groups of neighbours the channels are divided.
        num_channels: the number of channels, C, a multiple of ``num_groups``.
        eps: added to the variance.
        affine: whether there are a weight and a bias for each channel.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight, bias: (C,), starting with 1 and 0, or None.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups must divide num_channels, got {num_groups} and {num_channels}"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        for name in ("weight", "bias"):
            parameter = Parameter(empty(num_channels, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to 1 and 0."""
        _reset(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape, (N, C, ...)."""
        if input.ndim < 2 or input.shape[1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: expected an input (N, {self.num_channels}, ...), got shape {input.shape}"
            )
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) weight, with the mean over an input's last axes; arXiv:1910.07467.

    Args:
        normalized_shape: the sizes of these axes; an integer for the last one alone.
        eps: added to the mean; by default the dtype's smallest eps with 1 + eps > 1.
        elementwise_affine: whether there is a weight.
        device, dtype: of the parameter; float32 on the CPU by default.

    Attributes:
        weight: of shape ``normalized_shape``, starting with 1, or None.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        weight = Parameter(ones(shape, device=device, dtype=dtype)) if elementwise_affine else None
        self.register_parameter("weight", weight)

    def reset_parameters(self) -> None:
        """Set the weight to 1."""
        _reset(self.weight, None)

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape, (..., *normalized_shape)."""
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class InstanceNorm(BatchNorm):
    """As :class:`BatchNorm`, but with mean and variance of each channel of each sample; arXiv:1607.08022.

    By default there are no weight and bias and no running averages. The batch may be left out.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape."""
        (batched,) = self.dimensions
        if input.ndim not in (batched - 1, batched) or input.shape[1 - batched] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {batched}D or {batched - 1}D input of {self.num_features} "
                f"channels, got shape {input.shape}"
            )
        if input.ndim < batched:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )


class InstanceNorm1d(InstanceNorm):
    """Instance normalisation of (N, C, L) or (C, L)."""

    dimensions = (3,)


class InstanceNorm2d(InstanceNorm):
    """Instance normalisation of images (N, C, H, W) or (C, H, W)."""

    dimensions = (4,)


def _reset(weight: Parameter | None, bias: Parameter | None) -> None:
    """Set what there is of weight and bias to 1 and 0."""
    for parameter, value in ((weight, 1.0), (bias, 0.0)):
        if parameter is not None:
            init.constant_(parameter, value)


class LocalResponseNorm(Module):
    """Divides each element by the energy of the channels beside its own, as AlexNet does.

    y = x / (k + alpha mean(x^2 over the ``size`` channels around it))^beta
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...), of the same shape."""
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
