"""Losses: cross-entropy, negative log-likelihood, squared and absolute error.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op
from minigrad.ops.activation import softplus
from minigrad.ops.elementwise import abs, as_dtype, cast, clamp, floating, log, where
from minigrad.ops.index import take_along_dim
from minigrad.ops.reduce import largest_of_rows, mean, sum
from minigrad.ops.shape import broadcast_to, permute, reshape, squeeze, unsqueeze
from minigrad.ops.softmax import WARP_COLUMNS, log_softmax, softmax, softmax_grad


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


@op(name="cross_entropy")
def _cross_entropy(xp, x, target, *, ignore_index):
    """-log_softmax(x)[target] of each row of x (N, C); 0 where the target (N,) is ``ignore_index``."""
    kept = target != ignore_index
    shifted = x - largest_of_rows(xp, x)
    picked = xp.take_along_axis(shifted, xp.where(kept, target, 0)[:, None], axis=1)[:, 0]
    return xp.where(kept, xp.log(xp.sum(xp.exp(shifted), axis=1)) - picked, x.dtype.type(0))


@op
def cross_entropy_grad(xp, g, x, target, *, ignore_index):
    """g (softmax(x) - onehot(target)) for each row; 0 where the target is ``ignore_index``."""
    kept = (target != ignore_index)[:, None]
    e = xp.exp(x - largest_of_rows(xp, x))
    onehot = target[:, None] == xp.arange(x.shape[1])
    return xp.where(kept, (e / xp.sum(e, axis=1, keepdims=True) - onehot) * g[:, None], x.dtype.type(0))


_cross_entropy.grad(
    x=lambda g, _y, x, target, *, ignore_index: cross_entropy_grad(g, x, target, ignore_index=ignore_index)
)


@cross_entropy_grad.grad
def _(gg, _z, g, x, target, *, ignore_index):
    kept = target != ignore_index
    p = softmax(x, 1)
    picked = squeeze(take_along_dim(gg, unsqueeze(where(kept, target, 0), 1), 1), 1)
    own = where(kept, g, 0.0)
    return where(kept, sum(gg * p, 1) - picked, 0.0), softmax_grad(gg * unsqueeze(own, 1), p), None


@_cross_entropy.shape
def _(x, target, *, ignore_index):
    return x.shape[:1]


@cross_entropy_grad.shape
def _(g, x, target, *, ignore_index):
    return x.shape


def _class_losses(x: Any, target: Any, class_dim: int, ignore_index: int) -> Any:
    """The loss of each target, by the fused op: its rows are the logits of one target."""
    shape, classes = target.shape, x.shape[class_dim]
    if class_dim != x.ndim - 1:
        x = permute(x, (0, *range(2, x.ndim), 1))
    if x.ndim != 2:
        rows = target.numel()
        x, target = reshape(x, (rows, classes)), reshape(target, (rows,))
    target = as_dtype(target, np.dtype(np.int64), target.device)
    losses = _cross_entropy(x, target, ignore_index=ignore_index)
    return losses if losses.shape == shape else reshape(losses, shape)


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
    if target.dtype.kind != "f" and weight is None and label_smoothing == 0.0:
        input = floating(input)
        _check_targets("nll_loss", input, target, class_dim, ignore_index)
        loss = _class_losses(input, target, class_dim, ignore_index)
        if reduction == "mean":
            return sum(loss) / sum(cast(target != ignore_index, dtype=loss.dtype))
        return reduce_loss("nll_loss", loss, reduction)
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


# ---- kernels ----------------------------------------------------------------------------------------------


def _is_filled(x: Any, target: Any, **options: Any) -> bool:
    return x.size > 0


def _has_long_rows(x: Any, target: Any, **options: Any) -> bool:
    return x.size > 0 and x.shape[1] > WARP_COLUMNS


def _grad_is_filled(g: Any, x: Any, target: Any, **options: Any) -> bool:
    return _is_filled(x, target)


def _grad_has_long_rows(g: Any, x: Any, target: Any, **options: Any) -> bool:
    return _has_long_rows(x, target)


@_cross_entropy.kernel("cpu", name="vectorized", when=_is_filled)
def _(loss, x, target, *, ignore_index):
    """Each row's log-softmax in vectors, by one thread, then the targets' elements of it."""
    logarithms, ignored = np.empty_like(x), target == ignore_index
    cpu.softmax.log_softmax(logarithms, x, 1, get_num_threads())
    np.negative(logarithms[np.arange(len(x)), np.where(ignored, 0, target)], out=loss)
    loss[ignored] = 0


@cross_entropy_grad.kernel("cpu", name="vectorized", when=_grad_is_filled)
def _(out, g, x, target, *, ignore_index):
    """Each row's softmax in vectors, by one thread; then minus 1 at the target, and times g."""
    ignored = target == ignore_index
    cpu.softmax.softmax(out, x, 1, get_num_threads())
    out[np.arange(len(x)), np.where(ignored, 0, target)] -= 1
    out *= g[:, None]
    out[ignored] = 0


for _op, _filled, _long in (
    (_cross_entropy, _is_filled, _has_long_rows),
    (cross_entropy_grad, _grad_is_filled, _grad_has_long_rows),
):
    for _name, _when in (("naive", _filled), ("warp", _filled), ("block", _long)):
        _run = getattr(cuda.cross_entropy, f"{_op.name}_{_name}")
        _op.kernel("cuda", "sim", name=_name, when=_when)(_run)
