"""Losses of elements: squared and absolute error, and the cross-entropy of two classes.

Sums and means are one op, so that the losses of the elements are never written: ``elementwise_loss.py`` has
these ops. ``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.argument_errors import not_a_tensor
from minigrad.dtypes import is_floating
from minigrad.graph import Variable
from minigrad.kernels import cuda
from minigrad.mixed_precision import is_autocast_enabled
from minigrad.op import Op
from minigrad.ops import elementwise_loss
from minigrad.ops.elementwise import abs, floating, square
from minigrad.ops.reduce import mean, sum


def check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def reduce_loss(name: str, loss: Any, reduction: str) -> Any:
    """``loss`` as it is, its mean, or its sum."""
    check_reduction(name, reduction)
    if reduction == "none":
        return loss
    return mean(loss) if reduction == "mean" else sum(loss)


def check_tensors(name: str, types: Any = Variable, **arguments: Any) -> None:
    """TypeError for what a loss cannot be computed of: a list of labels, a model's tuple of outputs."""
    for argument, value in arguments.items():
        if not isinstance(value, types):
            raise not_a_tensor(name, argument, value)


def check_same_shape(name: str, x: Any, target: Any) -> None:
    check_tensors(name, (Variable, np.ndarray), input=x, target=target)
    if x.shape != target.shape:
        raise ValueError(f"{name}: input has shape {x.shape}, target {target.shape}; they must be equal")


# ---- errors -----------------------------------------------------------------------------------------------


def _of_elements(target: Op, input: Any, other: Any, reduction: str, **options: float) -> Any:
    """The loss that the op ``target`` computes, of floating tensors of one shape."""
    check_reduction(target.name, reduction)
    return target(floating(input), floating(other), reduction=reduction, **options)


def l1_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """|input - target|; both of one shape, and ``weight``, with which the mean is weighted."""
    check_same_shape("l1_loss", input, target)
    if weight is not None:
        return _weighted("l1_loss", abs(input - target), weight, reduction)
    if not is_floating(input.dtype) and not is_floating(target.dtype):
        return reduce_loss("l1_loss", abs(input - target), reduction)
    return _of_elements(elementwise_loss.l1_loss, input, target, reduction)


def mse_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """(input - target)^2; both of one shape, and ``weight``, with which the mean is weighted."""
    check_same_shape("mse_loss", input, target)
    if weight is not None:
        return _weighted("mse_loss", square(input - target), weight, reduction)
    if not is_floating(input.dtype) and not is_floating(target.dtype):
        return reduce_loss("mse_loss", square(input - target), reduction)
    return _of_elements(elementwise_loss.mse_loss, input, target, reduction)


def _weighted(name: str, losses: Any, weight: Any, reduction: str) -> Any:
    _check_weight(name, losses, weight)
    if reduction == "mean":
        return sum(losses * weight) / sum(weight)
    return reduce_loss(name, losses * weight, reduction)


def _check_weight(name: str, input: Any, weight: Any) -> None:
    if weight.shape != input.shape:
        raise ValueError(f"{name}: weight must have the input's shape {input.shape}, got {weight.shape}")


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d^2 / (2 beta) where d = |input - target| is below ``beta``, else d - beta / 2; both of one shape."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    check_same_shape("smooth_l1_loss", input, target)
    options = {"scale": 1.0 / beta, "delta": float(beta)}
    return _of_elements(elementwise_loss.huber_loss, input, target, reduction, **options)


def huber_loss(
    input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None
) -> Any:
    """d^2 / 2 where d = |input - target| is below ``delta``, else delta (d - delta / 2); both of one shape.

    ``weight``, of that shape, is multiplied to each element's loss; the mean is over the elements even then.
    """
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}")
    check_same_shape("huber_loss", input, target)
    huber = elementwise_loss.huber_loss
    if weight is None:
        return _of_elements(huber, input, target, reduction, delta=float(delta))
    _check_weight("huber_loss", input, weight)
    losses = _of_elements(huber, input, target, "none", delta=float(delta))
    return reduce_loss("huber_loss", losses * weight, reduction)


# ---- two classes ------------------------------------------------------------------------------------------


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """-(target log(input) + (1 - target) log(1 - input)).

    Args:
        input: probabilities, in [0, 1].
        target: of input's shape and dtype, in [0, 1].
        weight: multiplied to each element's loss; broadcast to the input.

    Raises:
        ValueError: shapes do not fit, or an input is not a probability (NaN is none). A card computes on,
            and the error is raised when a value is brought to the host.
    """
    check_same_shape("binary_cross_entropy", input, target)
    if is_autocast_enabled(input.device.type):
        raise RuntimeError(
            "binary_cross_entropy: under autocast a probability may have been rounded to 0 or 1; pass the "
            "logits to binary_cross_entropy_with_logits, or leave autocast for this loss"
        )
    _check_probabilities(input)
    return _weighted_elements(elementwise_loss.binary_cross_entropy, input, target, weight, reduction)


def _check_probabilities(input: Any) -> None:
    """ValueError for what is not in [0, 1]; what a card has to say is raised later: it is not waited for."""
    array = input._array

    def error(*_: int) -> ValueError:
        return ValueError(
            "binary_cross_entropy: all inputs must be in [0, 1]; for logits use the function _with_logits"
        )

    with input.device.active():
        if not isinstance(array, np.ndarray):
            place = cuda.index_check.place_for(error, input.device.index)
            cuda.index_check.look_outside(place, cuda.cupy().ascontiguousarray(array), 0.0, 1.0)
        elif not ((array >= 0) & (array <= 1)).all():
            raise error()


def _weighted_elements(target: Op, input: Any, other: Any, weight: Any, reduction: str) -> Any:
    """The loss of the op ``target``, each element's multiplied by ``weight`` if it is not None."""
    if weight is None:
        return _of_elements(target, input, other, reduction)
    return reduce_loss(target.name, _of_elements(target, input, other, "none") * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """:func:`binary_cross_entropy` of sigmoid(input), computed without overflow.

    ``pos_weight``, broadcast to the input, is multiplied to the part of positive targets.
    """
    check_same_shape("binary_cross_entropy_with_logits", input, target)
    if pos_weight is None:
        return _weighted_elements(elementwise_loss.logits_loss, input, target, weight, reduction)
    check_tensors("binary_cross_entropy_with_logits", pos_weight=pos_weight)
    check_reduction("binary_cross_entropy_with_logits", reduction)
    inputs = floating(input), floating(target), pos_weight
    if weight is None:
        return elementwise_loss.weighted_logits_loss(*inputs, reduction=reduction)
    losses = elementwise_loss.weighted_logits_loss(*inputs, reduction="none")
    return reduce_loss("binary_cross_entropy_with_logits", losses * weight, reduction)
