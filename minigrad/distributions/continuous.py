"""Distributions with a density: normal and uniform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import rand, randn
from minigrad.distributions.distribution import HALF_LOG_2_PI, Distribution, broadcast_parameters
from minigrad.ops.elementwise import erf, log, where
from minigrad.tensor import Tensor

__all__ = ["Normal", "Uniform"]


class Normal(Distribution):
    """Normal, with mean ``loc`` and standard deviation ``scale``: tensors that broadcast, or numbers.

    Raises:
        ValueError: a scale is not above 0, or a mean is NaN.
    """

    has_rsample: ClassVar[bool] = True
    parameters = ("loc", "scale")

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_parameters(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)
        self._require("loc", self.loc, "a number", lambda x: x == x)
        self._require("scale", self.scale, "above 0", lambda x: x > 0)

    @property
    def mean(self) -> Tensor:
        """``loc``"""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """``loc``"""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """``scale``"""
        return self.scale

    @property
    def variance(self) -> Tensor:
        """scale^2"""
        return self.scale * self.scale

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """loc + scale noise, with noise of mean 0 and variance 1."""
        shape = self._extended_shape(sample_shape)
        return self.loc + self.scale * randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """-((value - loc) / scale)^2 / 2 - log(scale) - log(2 pi) / 2"""
        deviation = (value - self.loc) / self.scale
        return -0.5 * deviation * deviation - log(self.scale) - HALF_LOG_2_PI

    def entropy(self) -> Tensor:
        """1/2 + log(2 pi) / 2 + log(scale)"""
        return log(self.scale) + (0.5 + HALF_LOG_2_PI)

    def cdf(self, value: Tensor) -> Tensor:
        """(1 + erf((value - loc) / (scale sqrt(2)))) / 2"""
        return 0.5 * (1 + erf((value - self.loc) / (self.scale * math.sqrt(2))))


class Uniform(Distribution):
    """Uniform in [low, high): tensors that broadcast, or numbers.

    Raises:
        ValueError: low is not below high.
    """

    has_rsample: ClassVar[bool] = True
    parameters = ("low", "high")

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None):
        self.low, self.high = broadcast_parameters(low, high)
        super().__init__(self.low.shape, (), validate_args)
        self._require("high - low", self.high - self.low, "above 0", lambda x: x > 0)

    @property
    def mean(self) -> Tensor:
        """(low + high) / 2"""
        return (self.low + self.high) / 2

    @property
    def variance(self) -> Tensor:
        """(high - low)^2 / 12"""
        return (self.high - self.low) ** 2 / 12

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """low + (high - low) noise, with noise in [0, 1)."""
        shape = self._extended_shape(sample_shape)
        noise = rand(shape, dtype=self.low.dtype, device=self.low.device)
        return self.low + (self.high - self.low) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """-log(high - low) inside, -inf outside."""
        inside = (value >= self.low) & (value < self.high)
        return where(inside, -log(self.high - self.low), -np.inf)

    def entropy(self) -> Tensor:
        """log(high - low)"""
        return log(self.high - self.low)

    def cdf(self, value: Tensor) -> Tensor:
        """(value - low) / (high - low), in [0, 1]."""
        return ((value - self.low) / (self.high - self.low)).clamp(0, 1)
