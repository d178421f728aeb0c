"""Losses: cross-entropy, negative log-likelihood, mean squared error.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.ops.elementwise import cast, where
from minigrad.ops.index import take_along_dim
from minigrad.ops.reduce import mean, sum
from minigrad.ops.shape import broadcast_to, reshape, squeeze, unsqueeze
from minigrad.ops.softmax import log_softmax


def reduce_loss(name: str, loss: Any, reduction: str) -> Any:
    """``loss`` as it is, its mean, or its sum."""
    if reduction == "mean":
        return mean(loss)
    if reduction == "sum":
        return sum(loss)
    if reduction == "none":
        return loss
    raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """(input - target)^2; both of one shape."""
    if input.shape != target.shape:
        raise ValueError(
            f"mse_loss: input has shape {input.shape}, target {target.shape}; they must be equal"
        )
    difference = input - target
    return reduce_loss("mse_loss", difference * difference, reduction)


def nll_loss(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """The negative of the log-probability that ``input`` gives to each target class.

    Args:
        input: log-probabilities, (N, C), (C,), or (N, C, d1, ...).
        target: class numbers in [0, C), integers: (N,), (), or (N, d1, ...).
        weight: (C,), a weight for each class; the mean is then weighted.
        ignore_index: targets of this value count for nothing.

    Raises:
        ValueError: shapes do not fit, or a target is out of range; TypeError: targets are not integers.
    """
    class_dim = 0 if input.ndim == 1 else 1
    _check_targets("nll_loss", input, target, class_dim, ignore_index)
    kept = target != ignore_index
    safe = where(kept, target, 0)
    picked = squeeze(take_along_dim(input, unsqueeze(safe, class_dim), class_dim), class_dim)
    if weight is None:
        weights = cast(kept, dtype=input.dtype)
    else:
        if weight.shape != (input.shape[class_dim],):
            raise ValueError(
                f"nll_loss: weight must have shape ({input.shape[class_dim]},), got {weight.shape}"
            )
        weights = where(kept, reshape(weight[reshape(safe, (-1,))], safe.shape), 0.0)
    loss = where(kept, -picked, 0.0) * weights
    if reduction == "mean":
        return sum(loss) / sum(weights)
    return reduce_loss("nll_loss", loss, reduction)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The cross-entropy between the softmax of ``input`` and ``target``.

    Args:
        input: logits, not probabilities: (N, C), (C,), or (N, C, d1, ...).
        target: class numbers as in :func:`nll_loss`, or probabilities of input's own shape and dtype.
        weight, ignore_index: as in :func:`nll_loss`.
        label_smoothing: in [0, 1]: the share of the target that is spread evenly over all classes.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    class_dim = 0 if input.ndim == 1 else 1
    log_probabilities = log_softmax(input, class_dim)
    if target.dtype.kind == "f":
        return _soft_cross_entropy(log_probabilities, target, weight, class_dim, label_smoothing, reduction)
    loss = nll_loss(log_probabilities, target, weight, ignore_index, reduction)
    if label_smoothing == 0.0:
        return loss
    smooth = _smooth_loss(log_probabilities, target, weight, class_dim, ignore_index, reduction)
    return loss * (1.0 - label_smoothing) + smooth * (label_smoothing / input.shape[class_dim])


def _smooth_loss(log_probabilities, target, weight, class_dim, ignore_index, reduction):
    """The loss against the sum over all classes, as label smoothing adds it."""
    kept = target != ignore_index
    if weight is not None:
        log_probabilities = log_probabilities * _class_shape(weight, log_probabilities, class_dim)
    loss = where(kept, -sum(log_probabilities, class_dim), 0.0)
    if reduction == "mean":
        if weight is None:
            return sum(loss) / sum(cast(kept, dtype=loss.dtype))
        safe = where(kept, target, 0)
        return sum(loss) / sum(where(kept, reshape(weight[reshape(safe, (-1,))], safe.shape), 0.0))
    return reduce_loss("cross_entropy", loss, reduction)


def _soft_cross_entropy(log_probabilities, target, weight, class_dim, label_smoothing, reduction):
    if target.shape != log_probabilities.shape:
        raise ValueError(
            f"cross_entropy: target probabilities need the input's shape {log_probabilities.shape}, "
            f"got {target.shape}"
        )
    classes = log_probabilities.shape[class_dim]
    target = target * (1.0 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        target = target * _class_shape(weight, log_probabilities, class_dim)
    loss = -sum(log_probabilities * target, class_dim)
    if reduction == "mean":
        count = float(np.prod(loss.shape, dtype=np.int64))
        return sum(loss) / count
    return reduce_loss("cross_entropy", loss, reduction)


def _class_shape(weight: Any, like: Any, class_dim: int) -> Any:
    shape = tuple(-1 if axis == class_dim else 1 for axis in range(like.ndim))
    return broadcast_to(reshape(weight, shape), like.shape)


def _check_targets(name: str, x: Any, target: Any, class_dim: int, ignore_index: int) -> None:
    if x.ndim == 0:
        raise ValueError(f"{name}: input needs a dimension for the classes, got a 0-d tensor")
    if target.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets must be integers (class numbers), got {target.dtype}")
    expected = x.shape[:class_dim] + x.shape[class_dim + 1 :]
    if target.shape != expected:
        raise ValueError(
            f"{name}: for input of shape {x.shape} the target must have shape {expected}, got {target.shape}"
        )
    labels = target._array
    if (
        labels.size
        and (wrong := ((labels < 0) | (labels >= x.shape[class_dim])) & (labels != ignore_index)).any()
    ):
        raise ValueError(
            f"{name}: target {int(labels[wrong].ravel()[0])} is out of range: the input has "
            f"{x.shape[class_dim]} classes (shape {x.shape})"
        )
