"""Continuous distributions of numbers: Normal, Uniform, Exponential, Laplace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import rand, randn
from minigrad.distributions.distribution import HALF_LOG_2_PI, Distribution, broadcast_parameters
from minigrad.ops.elementwise import abs, erf, exp, log, log1p, sign, where
from minigrad.tensor import Tensor

__all__ = ["Exponential", "Laplace", "Normal", "Uniform"]


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


class Exponential(Distribution):
    """Waiting times, the density rate exp(-rate x) from 0 on: ``rate`` is a tensor or a number.

    Raises:
        ValueError: a rate is not above 0.
    """

    has_rsample: ClassVar[bool] = True
    parameters = ("rate",)

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_parameters(rate)
        super().__init__(self.rate.shape, (), validate_args)
        self._require("rate", self.rate, "above 0", lambda x: x > 0)

    @property
    def mean(self) -> Tensor:
        """1 / rate"""
        return 1 / self.rate

    @property
    def variance(self) -> Tensor:
        """1 / rate^2"""
        return self.rate**-2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """-log(1 - noise) / rate, with noise in [0, 1)."""
        shape = self._extended_shape(sample_shape)
        return -log1p(-rand(shape, dtype=self.rate.dtype, device=self.rate.device)) / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        """log(rate) - rate value"""
        return where(value >= 0, log(self.rate) - self.rate * value, -np.inf)

    def entropy(self) -> Tensor:
        """1 - log(rate)"""
        return 1 - log(self.rate)

    def cdf(self, value: Tensor) -> Tensor:
        """1 - exp(-rate value)"""
        return 1 - exp(-self.rate * value)


class Laplace(Distribution):
    """The density exp(-|x - loc| / scale) / (2 scale): tensors that broadcast, or numbers.

    Raises:
        ValueError: a scale is not above 0.
    """

    has_rsample: ClassVar[bool] = True
    parameters = ("loc", "scale")

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_parameters(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)
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
    def variance(self) -> Tensor:
        """2 scale^2"""
        return self.scale * self.scale * 2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """loc - scale sign(noise) log(1 - 2 |noise|), with noise in [-1/2, 1/2)."""
        shape = self._extended_shape(sample_shape)
        noise = rand(shape, dtype=self.loc.dtype, device=self.loc.device) - 0.5
        smallest = float(np.finfo(self.loc.dtype).eps) - 1  # so that 1 - 2 |noise| is not 0
        return self.loc - self.scale * sign(noise) * log1p((-2 * abs(noise)).clamp(min=smallest))

    def log_prob(self, value: Tensor) -> Tensor:
        """-|value - loc| / scale - log(2 scale)"""
        return -abs(value - self.loc) / self.scale - log(2 * self.scale)

    def entropy(self) -> Tensor:
        """1 + log(2 scale)"""
        return 1 + log(2 * self.scale)

    def cdf(self, value: Tensor) -> Tensor:
        """1/2 + sign(x) (1 - exp(-|x|)) / 2, with x = (value - loc) / scale."""
        deviation = (value - self.loc) / self.scale
        return 0.5 + 0.5 * sign(deviation) * (1 - exp(-abs(deviation)))
