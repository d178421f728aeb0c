"""What all distributions share: shapes, sampling with and without a gradient, checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.autograd import no_grad
from minigrad.creation import tensor
from minigrad.ops.elementwise import exp, floating, sqrt
from minigrad.ops.shape import broadcast_to
from minigrad.promotion import get_default_dtype
from minigrad.tensor import Tensor

__all__ = ["Distribution", "Independent", "broadcast_parameters", "sum_rightmost"]


class Distribution:
    """The base class.

    Parameters of shape ``batch_shape`` stand for so many distributions, independent of each other; one draw
    of each has the shape ``event_shape``, which is () for those of numbers.

    Args:
        batch_shape, event_shape: as above.
        validate_args: whether parameters and values are checked, True by default.

    Attributes:
        has_rsample: whether :meth:`rsample` can draw so that gradients flow to the parameters.
    """

    has_rsample: ClassVar[bool] = False

    def __init__(
        self,
        batch_shape: Sequence[int] = (),
        event_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ):
        self._batch_shape = tuple(batch_shape)
        self._event_shape = tuple(event_shape)
        self._validate_args = True if validate_args is None else validate_args

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the parameters."""
        return self._batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one draw."""
        return self._event_shape

    @property
    def mean(self) -> Tensor:
        """The mean, (*batch_shape, *event_shape)."""
        raise NotImplementedError(f"{type(self).__name__} has no mean")

    @property
    def mode(self) -> Tensor:
        """The value that is the most likely."""
        raise NotImplementedError(f"{type(self).__name__} has no mode")

    @property
    def variance(self) -> Tensor:
        """The variance."""
        raise NotImplementedError(f"{type(self).__name__} has no variance")

    @property
    def stddev(self) -> Tensor:
        """The standard deviation."""
        return sqrt(self.variance)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape, *event_shape), outside the graph."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """As :meth:`sample`, computed from the parameters and noise, so that gradients flow to them:
        https://arxiv.org/abs/1312.6114."""
        raise NotImplementedError(f"{type(self).__name__}: draws cannot be differentiated; use sample()")

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density, or of the probability, at ``value``; one for each draw."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def entropy(self) -> Tensor:
        """The entropy in nats, of shape ``batch_shape``."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    def perplexity(self) -> Tensor:
        """exp(entropy)"""
        return exp(self.entropy())

    def cdf(self, value: Tensor) -> Tensor:
        """The probability of a draw of at most ``value``."""
        raise NotImplementedError(f"{type(self).__name__} has no cdf")

    def _extended_shape(self, sample_shape: Sequence[int] | int = ()) -> tuple[int, ...]:
        sizes = (sample_shape,) if isinstance(sample_shape, int) else sample_shape
        return (*sizes, *self._batch_shape, *self._event_shape)

    def _require(self, name: str, value: Tensor, rule: str, holds: Any) -> None:
        """Raise ValueError if ``holds``, a function of the array, is false for an element."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(self).__name__}: {name} must be a tensor, got {type(value).__name__}")
        if not self._validate_args:
            return
        array = value.device.to_numpy(value.detach()._array)
        with np.errstate(invalid="ignore"):
            wrong = array[~holds(array)]
        if wrong.size:
            raise ValueError(f"{type(self).__name__}: {name} must be {rule}, got {wrong.flat[0]}")

    def __repr__(self) -> str:
        names = [name for name in getattr(self, "parameters", ()) if name in self.__dict__]
        shown = [(name, getattr(self, name)) for name in names]
        described = (f"{name}: {v if v.numel() == 1 else v.shape}" for name, v in shown)
        return f"{type(self).__name__}({', '.join(described)})"


class Independent(Distribution):
    """The base with its last ``reinterpreted_batch_ndims`` batch dimensions counted as the event's.

    Their log-probabilities are added: a vector of independent normal numbers as one draw, say.
    """

    def __init__(
        self,
        base_distribution: Distribution,
        reinterpreted_batch_ndims: int,
        validate_args: bool | None = None,
    ):
        if not isinstance(base_distribution, Distribution):
            raise TypeError(f"Independent: expected a distribution, got {type(base_distribution).__name__}")
        batch = base_distribution.batch_shape
        if not 0 <= reinterpreted_batch_ndims <= len(batch):
            raise ValueError(
                f"Independent: expected at most {len(batch)} dimensions, the base's batch_shape is {batch}; "
                f"got {reinterpreted_batch_ndims}"
            )
        split = len(batch) - reinterpreted_batch_ndims
        self.base_dist = base_distribution
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims
        self.has_rsample = base_distribution.has_rsample  # type: ignore[misc]
        super().__init__(batch[:split], batch[split:] + base_distribution.event_shape, validate_args)

    @property
    def mean(self) -> Tensor:
        """The base's mean."""
        return self.base_dist.mean

    @property
    def mode(self) -> Tensor:
        """The base's mode."""
        return self.base_dist.mode

    @property
    def variance(self) -> Tensor:
        """The base's variance."""
        return self.base_dist.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The base's draws."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The base's draws, with gradients."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's, added over the event's dimensions."""
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)

    def entropy(self) -> Tensor:
        """The base's, added over the event's dimensions."""
        return sum_rightmost(self.base_dist.entropy(), self.reinterpreted_batch_ndims)

    def __repr__(self) -> str:
        return f"Independent({self.base_dist}, {self.reinterpreted_batch_ndims})"


def broadcast_parameters(*values: Any) -> list[Tensor]:
    """``values``, tensors or numbers, as tensors of one shape and device; numbers take the tensors' dtype,
    and integers become floats."""
    like = next((floating(v) for v in values if isinstance(v, Tensor)), None)
    place: dict[str, Any] = {"dtype": get_default_dtype()}
    if like is not None:
        place = {"dtype": like.dtype, "device": like.device}
    tensors = [floating(v) if isinstance(v, Tensor) else tensor(v, **place) for v in values]
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    return [t if t.shape == shape else broadcast_to(t, shape) for t in tensors]


def sum_rightmost(value: Tensor, count: int) -> Tensor:
    """``value`` with its last ``count`` dimensions added up."""
    return value.sum(tuple(range(-count, 0))) if count else value


HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
