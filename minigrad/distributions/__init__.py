"""Probability distributions: samples, densities and entropies, differentiable for their parameters.

The names are PyTorch's (``torch.distributions``). A policy of reinforcement learning draws from one, and
learns by the logarithm of what it drew: ``Categorical(logits=policy(state)).log_prob(action)``.
"""

from minigrad.distributions.continuous import Normal, Uniform
from minigrad.distributions.discrete import Bernoulli, Categorical
from minigrad.distributions.distribution import Distribution, Independent
from minigrad.distributions.kl import kl_divergence, register_kl

__all__ = [
    "Bernoulli",
    "Categorical",
    "Distribution",
    "Independent",
    "Normal",
    "Uniform",
    "kl_divergence",
    "register_kl",
]
