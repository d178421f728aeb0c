"""Losses: cross-entropy, negative log-likelihood, squared and absolute error.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.op import op
from minigrad.ops.activation import softplus
from minigrad.ops.elementwise import abs, cast, clamp, log, where
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


def _check_same_shape(name: str, x: Any, target: Any) -> None:
    if x.shape != target.shape:
        raise ValueError(f"{name}: input has shape {x.shape}, target {target.shape}; they must be equal")


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """|input - target|; both of one shape."""
    _check_same_shape("l1_loss", input, target)
    return reduce_loss("l1_loss", abs(input - target), reduction)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """(input - target)^2; both of one shape."""
    _check_same_shape("mse_loss", input, target)
    difference = input - target
    return reduce_loss("mse_loss", difference * difference, reduction)


# ---- two classes ------------------------------------------------------------------------------------------

SMALLEST_LOG = -100.0
"""The logarithm of a probability of 0 is taken as this, as in PyTorch, so that the loss stays finite."""


@op(name="binary_cross_entropy")
def _binary_cross_entropy(xp, x, target):
    """-(t log(x) + (1 - t) log(1 - x)), elementwise."""
    log_x = xp.maximum(xp.log(x), SMALLEST_LOG)
    log_not_x = xp.maximum(xp.log1p(-x), SMALLEST_LOG)
    return -(target * log_x + (1 - target) * log_not_x)


_binary_cross_entropy.grad(
    x=lambda g, _y, x, target: g * (x - target) / clamp(x * (1.0 - x), min=1e-12),
    target=lambda g, _y, x, _target: (
        g * (clamp(log(1.0 - x), min=SMALLEST_LOG) - clamp(log(x), min=SMALLEST_LOG))
    ),
)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """-(target log(input) + (1 - target) log(1 - input)).

    Args:
        input: probabilities, in [0, 1].
        target: of input's shape and dtype, in [0, 1].
        weight: multiplied to each element's loss; broadcast to the input.

    Raises:
        ValueError: shapes do not fit, or an input is not a probability (NaN is none).
    """
    _check_same_shape("binary_cross_entropy", input, target)
    with input.device.active():
        probable = ((input._array >= 0) & (input._array <= 1)).all()
    if not probable:
        raise ValueError(
            "binary_cross_entropy: all inputs must be in [0, 1]; for logits use the function _with_logits"
        )
    loss = _binary_cross_entropy(input, target)
    return reduce_loss("binary_cross_entropy", loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """:func:`binary_cross_entropy` of sigmoid(input), computed without overflow.

    ``pos_weight``, broadcast to the input, is multiplied to the part of positive targets.
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    # -log(sigmoid(x)) = softplus(-x), and -log(1 - sigmoid(x)) = x + softplus(-x).
    share = 1.0 if pos_weight is None else target * (pos_weight - 1.0) + 1.0
    loss = (1.0 - target) * input + softplus(-input) * share
    loss = loss if weight is None else loss * weight
    return reduce_loss("binary_cross_entropy_with_logits", loss, reduction)


# ---- several classes --------------------------------------------------------------------------------------


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
    with target.device.active():
        wrong = ((labels < 0) | (labels >= x.shape[class_dim])) & (labels != ignore_index)
        if wrong.any():
            raise ValueError(
                f"{name}: target {int(labels[wrong].ravel()[0])} is out of range: the input has "
                f"{x.shape[class_dim]} classes (shape {x.shape})"
            )
