"""Distributions of vectors, MultivariateNormal, and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from minigrad import linalg
from minigrad.creation import randn
from minigrad.distributions.discrete import Categorical
from minigrad.distributions.distribution import HALF_LOG_2_PI, Distribution
from minigrad.ops.elementwise import log, tril
from minigrad.ops.shape import broadcast_to
from minigrad.ops.softmax import logsumexp
from minigrad.tensor import Tensor

__all__ = ["MixtureSameFamily", "MultivariateNormal"]


class MultivariateNormal(Distribution):
    """Normal vectors (n,) with mean ``loc`` and a covariance, which one of three matrices (n, n) tells.

    Args:
        loc: the mean, (..., n).
        covariance_matrix: the covariance, symmetric and positive definite.
        precision_matrix: its inverse.
        scale_tril: the lower triangle L of L L^T, the covariance, with a diagonal above 0.

    Raises:
        ValueError: not one matrix is given, or a mean is NaN.
        LinAlgError: a matrix is not positive definite.
    """

    has_rsample: ClassVar[bool] = True
    parameters = ("loc", "scale_tril")

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if sum(m is not None for m in (covariance_matrix, precision_matrix, scale_tril)) != 1:
            raise ValueError(
                "MultivariateNormal: give one of covariance_matrix, precision_matrix and scale_tril"
            )
        if covariance_matrix is not None:
            scale_tril = linalg.cholesky(covariance_matrix)
        elif precision_matrix is not None:
            scale_tril = linalg.cholesky(linalg.inv(precision_matrix))
        assert scale_tril is not None
        size = loc.shape[-1]
        if scale_tril.shape[-2:] != (size, size):
            raise ValueError(
                f"MultivariateNormal: the mean has shape {loc.shape}, the matrix {scale_tril.shape}"
            )
        batch = np.broadcast_shapes(loc.shape[:-1], scale_tril.shape[:-2])
        self.loc: Tensor = broadcast_to(loc, (*batch, size))
        self.scale_tril: Tensor = broadcast_to(tril(scale_tril), (*batch, size, size))
        super().__init__(batch, (size,), validate_args)
        self._require("loc", self.loc, "a number", lambda x: x == x)

    @property
    def covariance_matrix(self) -> Tensor:
        """L L^T"""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def precision_matrix(self) -> Tensor:
        """The inverse of the covariance."""
        return linalg.inv(self.covariance_matrix)

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
        """The diagonal of the covariance."""
        return (self.scale_tril * self.scale_tril).sum(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """loc + L noise, with noise of mean 0 and variance 1."""
        noise = randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """-|L^-1 (value - loc)|^2 / 2 - log det L - n log(2 pi) / 2"""
        deviation = linalg.solve(self.scale_tril, (value - self.loc).unsqueeze(-1)).squeeze(-1)
        return (
            -0.5 * (deviation * deviation).sum(-1)
            - self._half_log_det()
            - self._event_shape[0] * HALF_LOG_2_PI
        )

    def entropy(self) -> Tensor:
        """log det L + n (1 + log(2 pi)) / 2"""
        return self._half_log_det() + self._event_shape[0] * (0.5 + HALF_LOG_2_PI)

    def _half_log_det(self) -> Tensor:
        return log(self.scale_tril.diagonal(0, -2, -1)).sum(-1)


class MixtureSameFamily(Distribution):
    """One of the last batch dimension's ``component_distribution``, chosen by ``mixture_distribution``.

    Raises:
        ValueError: the batch shapes do not fit.
    """

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distribution: Distribution,
        validate_args: bool | None = None,
    ):
        batch = component_distribution.batch_shape
        if not batch or mixture_distribution.logits.shape[-1] != batch[-1]:
            raise ValueError(
                f"MixtureSameFamily: {mixture_distribution.logits.shape[-1]} probabilities for components "
                f"of batch_shape {batch}"
            )
        self.mixture_distribution, self.component_distribution = mixture_distribution, component_distribution
        super().__init__(batch[:-1], component_distribution.event_shape, validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of the components' means."""
        return (self._shares() * self.component_distribution.mean).sum(self._axis())

    @property
    def variance(self) -> Tensor:
        """The mean of the components' variances, and the variance of their means."""
        means, shares, axis = self.component_distribution.mean, self._shares(), self._axis()
        within = (shares * self.component_distribution.variance).sum(axis)
        return within + (shares * (means - self.mean.unsqueeze(axis)) ** 2).sum(axis)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw of the component that is drawn."""
        draws = self.component_distribution.sample(sample_shape).detach()
        chosen = self.mixture_distribution.sample(sample_shape)
        chosen = chosen.reshape((*chosen.shape, 1, *[1] * len(self._event_shape)))
        shape = (*chosen.shape[: -len(self._event_shape) or None], *self._event_shape)
        return draws.gather(self._axis(), broadcast_to(chosen, shape)).squeeze(self._axis())

    def log_prob(self, value: Tensor) -> Tensor:
        """log sum exp over the components of their log_prob and that of their choice."""
        of_each = self.component_distribution.log_prob(value.unsqueeze(self._axis()))
        return logsumexp(of_each + self.mixture_distribution.logits, -1)

    def _axis(self) -> int:
        return -1 - len(self._event_shape)

    def _shares(self) -> Tensor:
        shares = self.mixture_distribution.probs
        return shares.reshape((*shares.shape, *[1] * len(self._event_shape)))
