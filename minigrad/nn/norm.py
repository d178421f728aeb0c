"""Batch normalisation layers; https://arxiv.org/abs/1502.03167."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from minigrad.creation import empty, ones, tensor, zeros
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = ["BatchNorm1d", "BatchNorm2d"]


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
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                init.constant_(parameter, value)

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
        out = F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum,
            self.eps,
        )
        if count is not None:
            count.add_(1)
        return out

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
