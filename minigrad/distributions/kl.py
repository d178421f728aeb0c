"""The Kullback-Leibler divergence of pairs of distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minigrad import linalg
from minigrad.distributions.continuous import Exponential, Laplace, Normal, Uniform
from minigrad.distributions.counts import Binomial, Poisson
from minigrad.distributions.discrete import Bernoulli, Categorical
from minigrad.distributions.distribution import Distribution, Independent, sum_rightmost
from minigrad.distributions.multivariate import MultivariateNormal
from minigrad.ops.activation import softplus
from minigrad.ops.elementwise import abs, exp, log, where
from minigrad.ops.reduce import sum
from minigrad.tensor import Tensor

__all__ = ["kl_divergence", "register_kl"]

_FORMULAS: dict[tuple[type, type], Callable] = {}


def register_kl(type_p: type[Distribution], type_q: type[Distribution]) -> Callable[[Callable], Callable]:
    """Decorate ``function(p, q)`` as the divergence of a ``type_p`` from a ``type_q``."""

    def register(function: Callable) -> Callable:
        _FORMULAS[type_p, type_q] = function
        return function

    return register


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q), the mean of log(p / q) under p, in nats.

    Raises:
        NotImplementedError: there is no formula for the pair; see :func:`register_kl`.
    """
    for type_p in type(p).__mro__:
        for type_q in type(q).__mro__:
            if (type_p, type_q) in _FORMULAS:
                return _FORMULAS[type_p, type_q](p, q)
    raise NotImplementedError(f"kl_divergence: no formula for {type(p).__name__} and {type(q).__name__}")


@register_kl(Normal, Normal)
def _(p: Normal, q: Normal) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    distance = ((p.loc - q.loc) / q.scale) ** 2
    return 0.5 * (ratio + distance - 1 - log(ratio))


@register_kl(Uniform, Uniform)
def _(p: Uniform, q: Uniform) -> Tensor:
    outside = (q.low > p.low) | (q.high < p.high)
    return where(outside, np.inf, log((q.high - q.low) / (p.high - p.low)))


@register_kl(Exponential, Exponential)
def _(p: Exponential, q: Exponential) -> Tensor:
    ratio = q.rate / p.rate
    return ratio - 1 - log(ratio)


@register_kl(Laplace, Laplace)
def _(p: Laplace, q: Laplace) -> Tensor:
    distance = abs(p.loc - q.loc)
    shared = p.scale / q.scale * exp(-distance / p.scale)
    return shared + distance / q.scale + log(q.scale / p.scale) - 1


@register_kl(MultivariateNormal, MultivariateNormal)
def _(p: MultivariateNormal, q: MultivariateNormal) -> Tensor:
    ratio = linalg.solve(q.scale_tril, p.scale_tril)
    distance = linalg.solve(q.scale_tril, (q.loc - p.loc).unsqueeze(-1))
    inner = sum(ratio * ratio, (-2, -1)) + sum(distance * distance, (-2, -1)) - p.event_shape[0]
    return 0.5 * inner + q._half_log_det() - p._half_log_det()


@register_kl(Bernoulli, Bernoulli)
def _(p: Bernoulli, q: Bernoulli) -> Tensor:
    ones = p.probs * (softplus(-q.logits) - softplus(-p.logits))
    ones = where(p.probs == 0, 0.0, where(q.probs == 0, np.inf, ones))
    zeros = (1 - p.probs) * (softplus(q.logits) - softplus(p.logits))
    zeros = where(p.probs == 1, 0.0, where(q.probs == 1, np.inf, zeros))
    return ones + zeros


@register_kl(Binomial, Binomial)
def _(p: Binomial, q: Binomial) -> Tensor:
    if not (p.total_count == q.total_count).all().item():
        raise NotImplementedError("kl_divergence: of Binomials of the same total_count alone")
    return p.total_count * kl_divergence(Bernoulli(logits=p.logits), Bernoulli(logits=q.logits))


@register_kl(Poisson, Poisson)
def _(p: Poisson, q: Poisson) -> Tensor:
    return p.rate * (log(p.rate) - log(q.rate)) - p.rate + q.rate


@register_kl(Categorical, Categorical)
def _(p: Categorical, q: Categorical) -> Tensor:
    terms = p.probs * (p.logits - q.logits)
    terms = where(q.probs == 0, np.inf, terms)
    return sum(where(p.probs == 0, 0.0, terms), -1)


@register_kl(Independent, Independent)
def _(p: Independent, q: Independent) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError("kl_divergence: the two Independent have different event dimensions")
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)
