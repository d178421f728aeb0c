"""Distributions of counts: Poisson, Binomial and Multinomial. They are drawn on the CPU, by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.creation import arange
from minigrad.distributions.discrete import Bernoulli, Categorical
from minigrad.distributions.distribution import Distribution, broadcast_parameters
from minigrad.ops.activation import softplus
from minigrad.ops.elementwise import exp, floor, log, where
from minigrad.ops.reduce import sum
from minigrad.ops.special import lgamma
from minigrad.random import default_generator
from minigrad.tensor import Tensor

__all__ = ["Binomial", "Multinomial", "Poisson"]


class Poisson(Distribution):
    """How many events there are, of which ``rate`` are expected; a tensor or a number.

    Raises:
        ValueError: a rate is negative.
    """

    parameters = ("rate",)

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_parameters(rate)
        super().__init__(self.rate.shape, (), validate_args)
        self._require("rate", self.rate, "at least 0", lambda x: x >= 0)

    @property
    def mean(self) -> Tensor:
        """``rate``"""
        return self.rate

    @property
    def mode(self) -> Tensor:
        """``rate``, rounded down."""
        return floor(self.rate)

    @property
    def variance(self) -> Tensor:
        """``rate``"""
        return self.rate

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts, in the dtype of the rate."""
        shape = self._extended_shape(sample_shape)
        return _drawn(self.rate, lambda rng, rate: rng.poisson(rate, shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """value log(rate) - rate - log(value!)"""
        _require_counts(self, value)
        return _times_log(value, self.rate) - self.rate - lgamma(value + 1.0)


class Binomial(Distribution):
    """How many of ``total_count`` tries succeed, each with probability ``probs`` or sigmoid(``logits``).

    Raises:
        ValueError: both or none of the two are given, a probability is not in [0, 1], or a count is negative.
    """

    parameters = ("total_count", "probs", "logits")

    def __init__(
        self,
        total_count: Any = 1,
        probs: Any = None,
        logits: Any = None,
        validate_args: bool | None = None,
    ):
        one = Bernoulli(probs, logits, validate_args)
        self.total_count, self.probs, self.logits = broadcast_parameters(total_count, one.probs, one.logits)
        super().__init__(self.probs.shape, (), validate_args)
        _require_counts(self, self.total_count, "total_count")

    @property
    def mean(self) -> Tensor:
        """total_count probs"""
        return self.total_count * self.probs

    @property
    def mode(self) -> Tensor:
        """(total_count + 1) probs, rounded down, but not above ``total_count``."""
        return floor((self.total_count + 1) * self.probs).minimum(self.total_count)

    @property
    def variance(self) -> Tensor:
        """total_count probs (1 - probs)"""
        return self.mean * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts, in the dtype of the probabilities."""
        shape, tries = self._extended_shape(sample_shape), self.total_count
        counts = tries.device.to_numpy(tries.detach()._array).astype(np.int64)
        return _drawn(self.probs, lambda rng, probs: rng.binomial(counts, probs, shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of ``value`` successes."""
        _require_counts(self, value, most=self.total_count)
        rest = self.total_count - value
        ways = lgamma(self.total_count + 1.0) - lgamma(value + 1.0) - lgamma(rest + 1.0)
        # By logits, of which neither probability is rounded to 0 or 1.
        return ways - value * softplus(-self.logits) - rest * softplus(self.logits)

    def entropy(self) -> Tensor:
        """In nats, for one total_count: the mean of -log_prob over the support."""
        logs = self.log_prob(self.enumerate_support(expand=False))
        return -sum(exp(logs) * logs, 0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 to ``total_count``, one for all, as (total_count + 1, *batch_shape), or with 1 for its sizes."""
        counts = self.total_count
        most = int(counts.max().item())
        if not (counts == most).all().item():
            raise NotImplementedError("Binomial: enumerate_support needs one total_count")
        values = arange(most + 1, dtype=counts.dtype, device=counts.device)
        values = values.reshape(-1, *(1 for _ in self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class Multinomial(Distribution):
    """How often each of K choices comes in ``total_count`` draws; ``probs`` or ``logits`` (..., K) as of
    :class:`Categorical`."""

    parameters = ("probs", "logits")

    def __init__(
        self,
        total_count: int = 1,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if not isinstance(total_count, int) or total_count < 0:
            raise ValueError(f"Multinomial: total_count is a whole number from 0 on, got {total_count!r}")
        self.total_count, self._one = total_count, Categorical(probs, logits, validate_args)
        self.probs, self.logits = self._one.probs, self._one.logits
        super().__init__(self._one.batch_shape, self.probs.shape[-1:], validate_args)

    @property
    def mean(self) -> Tensor:
        """total_count probs"""
        return self.total_count * self.probs

    @property
    def variance(self) -> Tensor:
        """total_count probs (1 - probs)"""
        return self.mean * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts that add up to ``total_count``, in the dtype of the probabilities."""
        shape = self._extended_shape(sample_shape)[:-1]

        def draw(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
            probs = probs.astype(np.float64)  # whose sum NumPy checks
            return rng.multinomial(self.total_count, probs / probs.sum(-1, keepdims=True), shape)

        return _drawn(self.probs, draw)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of the counts ``value``, (..., K)."""
        _require_counts(self, value)
        self._require("the sum of value", value.sum(-1), "total_count", lambda x: x == self.total_count)
        ways = lgamma(value.sum(-1) + 1.0) - sum(lgamma(value + 1.0), -1)
        return ways + sum(where(value == 0, 0.0, value * self.logits), -1)

    def entropy(self) -> Tensor:
        """In nats: by the entropy of a draw, and the means of log(count!), each count being binomial."""
        counts = Binomial(self.total_count, self.probs)
        values = counts.enumerate_support(expand=False)
        shares = exp(counts.log_prob(values))
        n = self.probs.new_tensor(float(self.total_count))
        return n * self._one.entropy() - lgamma(n + 1.0) + sum(shares * lgamma(values + 1.0), (0, -1))


def _drawn(parameter: Tensor, draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> Tensor:
    """Counts in the dtype and on the device of the ``parameter``, whose values ``draw`` is given."""
    device = parameter.device
    drawn = draw(default_generator.numpy, device.to_numpy(parameter.detach()._array))
    return wrap(device.from_numpy(np.asarray(drawn, parameter.dtype)), device)


def _times_log(count: Tensor, share: Tensor) -> Tensor:
    """count log(share), 0 for a count of 0."""
    return where(count == 0, 0.0, count * log(where(count == 0, 1.0, share)))


def _require_counts(of: Distribution, value: Tensor, name: str = "value", most: Tensor | None = None) -> None:
    of._require(name, value, "a whole number from 0 on", lambda x: (x >= 0) & (x == np.floor(x)))
    if most is not None:
        of._require(f"total_count - {name}", most - value, "at least 0", lambda x: x >= 0)
