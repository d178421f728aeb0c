"""Metrics of a training, such as the accuracy, and their history by epoch.

Values are added up where they are computed: on a card nothing waits before :meth:`Metric.compute`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from minigrad.tensor import Tensor

__all__ = ["Accuracy", "History", "Mean", "Metric", "TopKAccuracy", "make_metric"]


class Metric:
    """A number about many batches. A subclass defines :meth:`update` and :meth:`compute`.

    Attributes:
        name: what it is called in the history.
    """

    name = "metric"

    def reset(self) -> None:
        """Begin anew."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch into account."""
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    def compute(self) -> float:
        """The value of all batches since :meth:`reset`; NaN if there were none."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute()")


class Mean(Metric):
    """The mean of ``function(outputs, targets)``, each batch weighted by its size."""

    def __init__(self, name: str, function: Callable[[Any, Any], Any] | None = None):
        self.name, self.function = name, function
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.total: Any = 0.0
        self.count = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the function's value for a batch."""
        assert self.function is not None
        self.add(self.function(outputs, targets), len(targets))

    def add(self, mean: Any, count: int) -> None:
        """Add a value that is the mean over ``count`` samples."""
        self.total = self.total + mean * count
        self.count += count

    def compute(self) -> float:
        """The mean."""
        return float(self.total) / self.count if self.count else float("nan")


class TopKAccuracy(Mean):
    """The share of samples whose class is among the ``k`` with the highest scores.

    Outputs are scores (N, classes, ...), targets integers (N, ...).
    """

    def __init__(self, k: int = 5):
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"TopKAccuracy: k must be an integer of at least 1, got {k!r}")
        self.k = k
        super().__init__(f"top{k}", self._share)

    def _share(self, scores: Tensor, targets: Tensor) -> Tensor:
        k = min(self.k, scores.shape[1])
        best = scores.argmax(1).unsqueeze(1) if k == 1 else scores.topk(k, 1)[1]
        return (best == targets.unsqueeze(1)).sum(1).float().mean()


class Accuracy(TopKAccuracy):
    """The share of samples whose class has the highest score."""

    def __init__(self) -> None:
        super().__init__(1)
        self.name = "accuracy"


def make_metric(metric: str | Metric | Callable[[Any, Any], Any]) -> Metric:
    """A metric from its name or a function.

    Raises:
        ValueError: no metric has this name.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Mean(getattr(metric, "__name__", type(metric).__name__), metric)
    if metric == "accuracy":
        return Accuracy()
    if isinstance(metric, str) and (match := re.fullmatch(r"top([1-9]\d*)", metric)):
        return TopKAccuracy(int(match[1]))
    raise ValueError(f'a metric is "accuracy", "top5" or the like, a Metric or a function, got {metric!r}')


class History(list[dict[str, float]]):
    """The values of each epoch."""

    def __getitem__(self, key: Any) -> Any:
        """The values of the epoch ``key``, or, for a name, those of that name in all epochs."""
        return [epoch.get(key) for epoch in self] if isinstance(key, str) else super().__getitem__(key)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A picture of all values by epoch: a panel for each, training and validation in one.

        Args:
            path: where to save it; without, the figure is returned open.

        Raises:
            ImportError: Matplotlib is missing: ``pip install "minigrad[plot]"``.
        """
        from minigrad.plot import training_curves  # when it is needed: few draw

        return training_curves(self, path=path)
