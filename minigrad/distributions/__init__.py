"""Probability distributions: samples, densities and entropies, differentiable for their parameters.

The names are PyTorch's (``torch.distributions``). A policy of reinforcement learning draws from one, and
learns by the logarithm of what it drew: ``Categorical(logits=policy(state)).log_prob(action)``.
"""

import sys as _sys

from minigrad.distributions import continuous, counts, discrete, transformed
from minigrad.distributions.continuous import Exponential, Laplace, Normal, Uniform
from minigrad.distributions.counts import Binomial, Multinomial, Poisson
from minigrad.distributions.discrete import Bernoulli, Categorical
from minigrad.distributions.distribution import Distribution, Independent
from minigrad.distributions.kl import kl_divergence, register_kl
from minigrad.distributions.multivariate import MixtureSameFamily, MultivariateNormal
from minigrad.distributions.transformed import (
    AffineTransform,
    ExpTransform,
    LogNormal,
    SigmoidTransform,
    TanhTransform,
    TransformedDistribution,
)

__all__ = [
    "AffineTransform",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Distribution",
    "ExpTransform",
    "Exponential",
    "Independent",
    "Laplace",
    "LogNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "Normal",
    "Poisson",
    "SigmoidTransform",
    "TanhTransform",
    "TransformedDistribution",
    "Uniform",
    "kl_divergence",
    "register_kl",
]

transforms = transformed
_PLACES = {
    "normal": continuous,
    "uniform": continuous,
    "bernoulli": discrete,
    "categorical": discrete,
    "binomial": counts,
    "multinomial": counts,
    "poisson": counts,
    "transforms": transformed,
    "transformed_distribution": transformed,
}
_sys.modules.update({f"{__name__}.{name}": module for name, module in _PLACES.items()})  # PyTorch's
