"""Discrete distributions: Bernoulli and Categorical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.creation import arange, bernoulli, multinomial
from minigrad.distributions.distribution import Distribution, broadcast_parameters
from minigrad.ops.activation import sigmoid
from minigrad.ops.elementwise import log, log1p
from minigrad.ops.loss import binary_cross_entropy_with_logits
from minigrad.ops.reduce import argmax, sum
from minigrad.ops.shape import broadcast_to
from minigrad.ops.softmax import logsumexp, softmax
from minigrad.tensor import Tensor

__all__ = ["Bernoulli", "Categorical"]


class Bernoulli(Distribution):
    """1 with probability ``probs``, or with sigmoid(``logits``), else 0; a tensor or a number.

    Raises:
        ValueError: both or none of the two are given, or a probability is not in [0, 1].
    """

    parameters = ("probs", "logits")

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _check_one("Bernoulli", probs, logits)
        (given,) = broadcast_parameters(logits if probs is None else probs)
        super().__init__(given.shape, (), validate_args)
        if probs is None:
            self.logits, self.probs = given, sigmoid(given)
        else:
            self._require("probs", given, "in [0, 1]", lambda x: (x >= 0) & (x <= 1))
            kept = _off_the_ends(given)
            self.probs, self.logits = given, log(kept) - log1p(-kept)

    @property
    def mean(self) -> Tensor:
        """``probs``"""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """1 where that is the more likely; NaN where both are as likely."""
        mode = (self.probs >= 0.5).to(self.probs.dtype)
        return mode.masked_fill(self.probs == 0.5, np.nan)

    @property
    def variance(self) -> Tensor:
        """probs (1 - probs)"""
        return self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """0 and 1, in the dtype of the parameters."""
        with no_grad():
            return bernoulli(broadcast_to(self.probs, self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """log(probs) where ``value`` is 1, log(1 - probs) where it is 0."""
        self._require("value", value, "0 or 1", lambda x: (x == 0) | (x == 1))
        logits, value = broadcast_parameters(self.logits, value.to(self.logits.dtype))
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def entropy(self) -> Tensor:
        """-p log(p) - (1 - p) log(1 - p)"""
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")


class Categorical(Distribution):
    """One of 0 .. K - 1, with probabilities ``probs`` or softmax(``logits``), of shape (..., K).

    ``probs`` need not add up to 1. ``logits`` are known up to a constant; the attribute has logarithms of
    probabilities.

    Raises:
        ValueError: both or none of the two are given, or a probability is negative, or all are 0.
    """

    parameters = ("probs", "logits")

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
    ):
        _check_one("Categorical", probs, logits)
        given: Any = logits if probs is None else probs
        if not isinstance(given, Tensor):
            raise TypeError(f"Categorical: the parameter must be a tensor, got {type(given).__name__}")
        if given.ndim < 1:
            raise ValueError("Categorical: the parameter needs at least one dimension, got none")
        super().__init__(given.shape[:-1], (), validate_args)
        if probs is None:
            self._require("logits", given, "a number", lambda x: x == x)
            self.logits = given - logsumexp(given, -1, keepdim=True)
            self.probs = softmax(self.logits, -1)
        else:
            self._require("probs", given, "at least 0", lambda x: x >= 0)
            self._require("the sum of probs", given.sum(-1), "above 0", lambda x: x > 0)
            self.probs = given / given.sum(-1, keepdim=True)
            self.logits = log(_off_the_ends(self.probs))

    @property
    def param_shape(self) -> tuple[int, ...]:
        """(..., K)"""
        return self.probs.shape

    @property
    def mean(self) -> Tensor:
        """NaN: choices have no order."""
        return self.probs.new_full(self.batch_shape, np.nan)

    @property
    def variance(self) -> Tensor:
        """NaN: choices have no order."""
        return self.probs.new_full(self.batch_shape, np.nan)

    @property
    def mode(self) -> Tensor:
        """The likeliest choice."""
        return argmax(self.probs, -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Choices, int64."""
        shape = self._extended_shape(sample_shape)
        rows = int(np.prod(self.batch_shape))  # of probabilities; each is drawn from as often
        count = int(np.prod(shape)) // rows if rows else 0
        if not count:
            return self.logits.new_empty(shape, dtype=np.int64)
        drawn = multinomial(self.probs.detach().reshape(rows, -1), count, replacement=True)
        return drawn.T.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithms of the probabilities of ``value``, integers that broadcast with ``batch_shape``."""
        count = self.param_shape[-1]
        rule = f"an integer from 0 to {count - 1}"
        self._require("value", value, rule, lambda x: (x >= 0) & (x < count) & (x == np.floor(x)))
        shape = np.broadcast_shapes(value.shape, self.batch_shape)
        chosen = broadcast_to(value.long(), shape).unsqueeze(-1)
        return broadcast_to(self.logits, (*shape, count)).gather(-1, chosen).squeeze(-1)

    def entropy(self) -> Tensor:
        """-sum of p log(p)"""
        smallest = float(np.finfo(np.float32 if self.logits.dtype != np.float64 else np.float64).min)
        return -sum(self.probs * self.logits.clamp(min=smallest), -1)  # 0 times -inf would be NaN

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All choices, (K, *batch_shape), or with ``expand=False`` (K, 1, ...)."""
        count = self.param_shape[-1]
        values = arange(count, device=self.probs.device).reshape(count, *(1 for _ in self.batch_shape))
        return values.expand(count, *self.batch_shape) if expand else values


def _check_one(name: str, probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        got = "none" if probs is None else "both"
        raise ValueError(f"{name}: expected either probs or logits, got {got}")


def _off_the_ends(probs: Tensor) -> Tensor:
    """Kept away from 0 and 1 by the precision of the dtype, as in PyTorch: logarithms stay finite."""
    eps = float(np.finfo(probs.dtype).eps)
    return probs.clamp(eps, 1 - eps)
