"""Distributions of what a function makes of another distribution's draws: a squashed Gaussian policy, say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.distributions.continuous import Normal
from minigrad.distributions.distribution import Distribution, sum_rightmost
from minigrad.ops.activation import sigmoid, softplus, tanh
from minigrad.ops.arithmetic import atanh
from minigrad.ops.elementwise import abs, exp, log, log1p, zeros_like
from minigrad.tensor import Tensor

__all__ = [
    "AffineTransform",
    "ExpTransform",
    "LogNormal",
    "SigmoidTransform",
    "TanhTransform",
    "Transform",
    "TransformedDistribution",
]


class Transform:
    """A function of each element that can be inverted.

    Args:
        cache_size: with 1 the last result is kept, whose :meth:`inv` is then what it was made from: near the
            ends of what tanh and the sigmoid give, an inverse has no digits left.
    """

    def __init__(self, cache_size: int = 0):
        if cache_size not in (0, 1):
            raise ValueError(f"{type(self).__name__}: cache_size must be 0 or 1, got {cache_size}")
        self._keeps = bool(cache_size)
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its parameters: () if it has none, or numbers."""
        return ()

    def __call__(self, x: Tensor) -> Tensor:
        """The function of ``x``."""
        y = self._call(x)
        if self._keeps:
            self._last = x, y
        return y

    def inv(self, y: Tensor) -> Tensor:
        """That of which the function is ``y``."""
        if self._last is not None and self._last[1] is y:
            return self._last[0]
        return self._inverse(y)

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _call()")

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _inverse()")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy / dx| of each element."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_abs_det_jacobian()")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ExpTransform(Transform):
    """exp(x)"""

    def _call(self, x: Tensor) -> Tensor:
        return exp(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """x"""
        return x


class AffineTransform(Transform):
    """loc + scale x"""

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0):
        if event_dim:
            raise ValueError(f"AffineTransform: event_dim must be 0, got {event_dim}; see Independent")
        super().__init__(cache_size)
        self.loc, self.scale = loc, scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Of loc + scale."""
        return np.broadcast_shapes(*(getattr(v, "shape", ()) for v in (self.loc, self.scale)))

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |scale|"""
        scale = self.scale
        slope = log(abs(scale)) if isinstance(scale, Tensor) else math.log(math.fabs(scale))
        return zeros_like(x) + slope


class SigmoidTransform(Transform):
    """1 / (1 + exp(-x))"""

    def _call(self, x: Tensor) -> Tensor:
        return sigmoid(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y) - log1p(-y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log y (1 - y), from ``x``, so that no digits are lost"""
        return -softplus(-x) - softplus(x)


class TanhTransform(Transform):
    """tanh(x)"""

    def _call(self, x: Tensor) -> Tensor:
        return tanh(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return atanh(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 - y^2), from ``x``, so that no digits are lost"""
        return (math.log(2.0) - x - softplus(x * -2.0)) * 2.0


class TransformedDistribution(Distribution):
    """That of draws of ``base_distribution``, to which ``transforms``, a list or one, are applied in turn."""

    def __init__(
        self,
        base_distribution: Distribution,
        transforms: Transform | Sequence[Transform],
        validate_args: bool | None = None,
    ):
        self.base_dist = base_distribution
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        if not all(isinstance(t, Transform) for t in self.transforms):
            raise TypeError(f"{type(self).__name__}: expected transforms, got {self.transforms}")
        shape = base_distribution.batch_shape + base_distribution.event_shape
        for t in self.transforms:
            if np.broadcast_shapes(shape, t.shape) != shape:  # several results would share one draw
                raise ValueError(
                    f"{type(self).__name__}: draws of shape {shape} are too few for {type(t).__name__} with "
                    f"parameters of {t.shape}; give the base distribution's parameters that shape"
                )
        self.has_rsample = base_distribution.has_rsample  # type: ignore[misc]
        super().__init__(base_distribution.batch_shape, base_distribution.event_shape, validate_args)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The base's draws, transformed."""
        return self._transformed(self.base_dist.sample(sample_shape)).detach()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The base's draws, transformed, with gradients."""
        return self._transformed(self.base_dist.rsample(sample_shape))

    def _transformed(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's at the inverse, less the logarithms of the slopes."""
        total: Any = 0.0
        for transform in reversed(self.transforms):
            x = transform.inv(value)
            slopes = transform.log_abs_det_jacobian(x, value)
            total, value = total - sum_rightmost(slopes, len(self.event_shape)), x
        return total + self.base_dist.log_prob(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist}, {self.transforms})"


class LogNormal(TransformedDistribution):
    """exp of a normal number, whose mean and standard deviation are ``loc`` and ``scale``."""

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        base = Normal(loc, scale, validate_args)
        super().__init__(base, ExpTransform(), validate_args)
        self.loc, self.scale = base.loc, base.scale

    @property
    def mean(self) -> Tensor:
        """exp(loc + scale^2 / 2)"""
        return exp(self.loc + self.scale**2 / 2)

    @property
    def mode(self) -> Tensor:
        """exp(loc - scale^2)"""
        return exp(self.loc - self.scale**2)

    @property
    def variance(self) -> Tensor:
        """(exp(scale^2) - 1) mean^2"""
        return self.mean**2 * (exp(self.scale**2) - 1)

    def entropy(self) -> Tensor:
        """The normal distribution's, and loc"""
        return self.base_dist.entropy() + self.loc
