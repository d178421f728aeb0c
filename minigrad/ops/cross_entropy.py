"""Losses of classes: the negative log-likelihood, and the cross-entropy of logits.

One op each, with weights and a reduction, so that one walk over the logits finds the loss; its gradient is
another. ``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.dtypes import is_floating
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.source import computed_dtype
from minigrad.op import op
from minigrad.ops.class_targets import checked_targets
from minigrad.ops.elementwise import as_dtype, cast, floating, where, zeros_like
from minigrad.ops.elementwise_loss import ones_like
from minigrad.ops.index import take_along_dim
from minigrad.ops.loss import check_tensors, reduce_loss
from minigrad.ops.reduce import largest_of_rows, sum
from minigrad.ops.shape import broadcast_to, permute, reshape, squeeze, unsqueeze
from minigrad.ops.softmax import log_softmax, softmax, softmax_grad


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
        ValueError: shapes do not fit, or a target is out of range. A card computes on, as if that target were
            ignored, and the error is raised when a value is brought to the host.
        TypeError: targets are not integers.
    """
    check_tensors("nll_loss", input=input, target=target)
    class_dim = 0 if input.ndim == 1 else 1
    target = checked_targets("nll_loss", input, target, class_dim, ignore_index)
    if input.ndim == 2 and _takes_rows(input, class_dim, weight, reduction):
        options = {"ignore_index": ignore_index, "reduction": reduction}
        return _nll_loss(input, _as_int64(target), weight, **options)
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


def _target_weights(xp, x, target, weight, ignore_index):
    """For each row of x the target, or 0 if it is ignored, and its weight, which is 0 then."""
    kept = target != ignore_index
    safe = xp.where(kept, target, 0)
    weights = kept.astype(x.dtype) if weight is None else xp.where(kept, weight[safe], x.dtype.type(0))
    return safe, weights


def _reduced(xp, losses, weights, reduction):
    if reduction == "none":
        return losses
    return xp.sum(losses) / xp.sum(weights) if reduction == "mean" else xp.sum(losses)


def _of_rows(xp, g, weights, reduction):
    """The gradient of each row's loss, from that of what they were reduced to."""
    if reduction == "mean":
        g = g / xp.sum(weights)
    return xp.broadcast_to(g, weights.shape)[:, None]


@op(name="cross_entropy")
def _cross_entropy(xp, x, target, weight=None, *, ignore_index, label_smoothing=0.0, reduction="none"):
    """-log_softmax(x)[target] of each row of x (N, C); 0 where the target (N,) is ``ignore_index``.

    Times weight[target], and of ``label_smoothing`` that share is the mean over all classes, weighted.
    """
    safe, weights = _target_weights(xp, x, target, weight, ignore_index)
    shifted = x - largest_of_rows(xp, x)
    log_sums = xp.log(xp.sum(xp.exp(shifted), axis=1))
    picked = xp.take_along_axis(shifted, safe[:, None], axis=1)[:, 0]
    losses = (log_sums - picked) * weights * x.dtype.type(1 - label_smoothing)
    if label_smoothing:
        of_classes = log_sums[:, None] - shifted
        of_classes = of_classes if weight is None else of_classes * weight
        losses += xp.sum(of_classes, axis=1) * x.dtype.type(label_smoothing / max(x.shape[1], 1))
    losses = xp.where(target != ignore_index, losses, x.dtype.type(0))
    return _reduced(xp, losses, weights, reduction)


@op
def cross_entropy_grad(xp, g, x, target, weight=None, *, ignore_index, label_smoothing=0.0, reduction="none"):
    """g (softmax(x) - onehot(target)) for each row, weighted and smoothed as the loss is; 0 where the target
    is ``ignore_index``."""
    safe, weights = _target_weights(xp, x, target, weight, ignore_index)
    g = _of_rows(xp, g, weights, reduction)
    e = xp.exp(x - largest_of_rows(xp, x))
    p = e / xp.sum(e, axis=1, keepdims=True)
    onehot = safe[:, None] == xp.arange(x.shape[1])
    out = (p - onehot) * (weights[:, None] * x.dtype.type(1 - label_smoothing))
    if label_smoothing:
        of_classes = xp.ones(x.shape[1], x.dtype) if weight is None else weight
        out += (p * xp.sum(of_classes) - of_classes) * x.dtype.type(label_smoothing / max(x.shape[1], 1))
    return xp.where((target != ignore_index)[:, None], out * g, x.dtype.type(0))


@op(name="nll_loss")
def _nll_loss(xp, x, target, weight=None, *, ignore_index, reduction="none"):
    """-x[target] weight[target] of each row of x (N, C); 0 where the target (N,) is ``ignore_index``."""
    safe, weights = _target_weights(xp, x, target, weight, ignore_index)
    picked = xp.take_along_axis(x, safe[:, None], axis=1)[:, 0]
    losses = xp.where(target != ignore_index, -picked * weights, x.dtype.type(0))
    return _reduced(xp, losses, weights, reduction)


@op
def nll_loss_grad(xp, g, x, target, weight=None, *, ignore_index, reduction="none"):
    """-g weight[target] at the target of each row, 0 elsewhere and where the target is ``ignore_index``."""
    safe, weights = _target_weights(xp, x, target, weight, ignore_index)
    g = _of_rows(xp, g, weights, reduction)
    is_target = (safe[:, None] == xp.arange(x.shape[1])) & (target != ignore_index)[:, None]
    return xp.where(is_target, -weights[:, None] * g, x.dtype.type(0))


# A row's loss is sum(weight * shares * nll) over its classes, nll = -log_softmax(x) or -x: the target's share
# is 1 - smoothing, and smoothing / C is every class's. A mean is divided by the sum of the targets' weights.


def _shares(x: Any, target: Any, ignore_index: int, label_smoothing: float = 0.0) -> tuple[Any, Any]:
    """The shares (N, C) of the classes in each row's loss, and how many targets each class (C,) has."""
    with x.device.active():
        xp, target = x.device.xp, target._array
        onehot = (target[:, None] == xp.arange(x.shape[1])) & (target != ignore_index)[:, None]
        shares = (1 - label_smoothing) * onehot + label_smoothing / max(x.shape[1], 1)
        shares = xp.where((target != ignore_index)[:, None], shares, 0)
        counts = onehot.sum(0)
        return wrap(shares.astype(x.dtype), x.device), wrap(counts.astype(x.dtype), x.device)


def _loss_weight_grad(g: Any, y: Any, nll: Any, weight: Any, shares: Any, counts: Any, reduction: str) -> Any:
    """The gradient of the loss ``y`` for ``weight``."""
    terms = where(shares > 0, shares * nll, 0.0)  # what has no share may be infinite, or NaN
    if reduction == "none":
        return sum(unsqueeze(g, 1) * terms, 0)
    total = sum(terms, 0)
    return g * total if reduction == "sum" else g / sum(weight * counts) * (total - y * counts)


def _grad_weight_grad(gg, z, g, projected, weight, shares, counts, reduction):
    """The gradient of ``z``, the gradient of a loss for x, for ``weight``; ``projected`` is gg times the
    derivatives of each row's nll."""
    if reduction == "none":
        return sum(unsqueeze(g, 1) * (shares * projected), 0)
    total = g * sum(shares * projected, 0)
    return total if reduction == "sum" else (total - sum(gg * z) * counts) / sum(weight * counts)


def _grad_unit_grad(gg: Any, unit: Any, reduction: str) -> Any:
    """The gradient for g of what is g times ``unit``, row by row or as a whole."""
    return sum(gg * unit, 1) if reduction == "none" else sum(gg * unit)


def _cross_entropy_weight(g, y, x, target, weight, *, ignore_index, label_smoothing, reduction):
    shares, counts = _shares(x, target, ignore_index, label_smoothing)
    return _loss_weight_grad(g, y, -log_softmax(x, 1), weight, shares, counts, reduction)


def _cross_entropy_grad_g(gg, _z, g, x, target, weight, **options):
    unit = cross_entropy_grad(ones_like(g), x, target, weight, **options)
    return _grad_unit_grad(gg, unit, options["reduction"])


def _cross_entropy_grad_x(gg, _z, g, x, target, weight, *, ignore_index, label_smoothing, reduction):
    # x is in p = softmax(x) alone, which is multiplied by g and a number for each row.
    shares, counts = _shares(x, target, ignore_index, label_smoothing)
    rows = sum(shares if weight is None else shares * weight, 1)
    if reduction == "mean":
        rows = rows / sum(counts if weight is None else counts * weight)
    return softmax_grad(gg * unsqueeze(g * rows, 1), softmax(x, 1))


def _cross_entropy_grad_weight(gg, z, g, x, target, weight, *, ignore_index, label_smoothing, reduction):
    shares, counts = _shares(x, target, ignore_index, label_smoothing)
    projected = sum(gg * softmax(x, 1), 1, keepdim=True) - gg
    return _grad_weight_grad(gg, z, g, projected, weight, shares, counts, reduction)


def _nll_loss_weight(g, y, x, target, weight, *, ignore_index, reduction):
    return _loss_weight_grad(g, y, -x, weight, *_shares(x, target, ignore_index), reduction)


def _nll_loss_grad_g(gg, _z, g, x, target, weight, **options):
    unit = nll_loss_grad(ones_like(g), x, target, weight, **options)
    return _grad_unit_grad(gg, unit, options["reduction"])


def _nll_loss_grad_weight(gg, z, g, x, target, weight, *, ignore_index, reduction):
    return _grad_weight_grad(gg, z, g, -gg, weight, *_shares(x, target, ignore_index), reduction)


_cross_entropy.grad(
    x=lambda g, _y, x, target, weight, **options: cross_entropy_grad(g, x, target, weight, **options),
    weight=_cross_entropy_weight,
)
cross_entropy_grad.grad(g=_cross_entropy_grad_g, x=_cross_entropy_grad_x, weight=_cross_entropy_grad_weight)
_nll_loss.grad(
    x=lambda g, _y, x, target, weight, **options: nll_loss_grad(g, x, target, weight, **options),
    weight=_nll_loss_weight,
)
nll_loss_grad.grad(
    g=_nll_loss_grad_g, x=lambda gg, *_, **_options: zeros_like(gg), weight=_nll_loss_grad_weight
)


def _loss_shape(x, target, weight, *, reduction, **options):
    return x.shape[:1] if reduction == "none" else ()


for _forward, _backward in ((_cross_entropy, cross_entropy_grad), (_nll_loss, nll_loss_grad)):
    _forward.shape(_loss_shape)
    _backward.shape(lambda g, x, target, weight, **options: x.shape)


def _takes_rows(x: Any, class_dim: int, weight: Any, reduction: str) -> bool:
    """Whether the op of a loss of classes computes this; what it does not is put together from others."""
    fits = weight is None or (weight.shape == x.shape[class_dim : class_dim + 1] and weight.dtype == x.dtype)
    return is_floating(x.dtype) and fits and reduction in ("none", "sum", "mean")


def _as_int64(target: Any) -> Any:
    return as_dtype(target, np.dtype(np.int64), target.device)


def _of_rows_of_logits(x: Any, target: Any, weight: Any, class_dim: int, **options: Any) -> Any:
    """The loss by the fused op: its rows are the logits of one target."""
    shape, classes = target.shape, x.shape[class_dim]
    if class_dim != x.ndim - 1:
        x = permute(x, (0, *range(2, x.ndim), 1))
    if x.ndim != 2:
        rows = target.numel()
        x, target = reshape(x, (rows, classes)), reshape(target, (rows,))
    loss = _cross_entropy(x, _as_int64(target), weight, **options)
    return loss if options["reduction"] != "none" or loss.shape == shape else reshape(loss, shape)


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
    check_tensors("cross_entropy", input=input, target=target)
    class_dim = 0 if input.ndim == 1 else 1
    if not is_floating(input.dtype) and is_floating(target.dtype):
        raise TypeError(
            f"cross_entropy: input must hold logits, of a floating dtype, got {input.dtype}, and target "
            f"{target.dtype}: are the two exchanged?"
        )
    input = floating(input)
    if not is_floating(target.dtype) and _takes_rows(input, class_dim, weight, reduction):
        target = checked_targets("cross_entropy", input, target, class_dim, ignore_index)
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
        return _of_rows_of_logits(input, target, weight, class_dim, **options)
    log_probabilities = log_softmax(input, class_dim)
    if is_floating(target.dtype):
        return _soft_cross_entropy(log_probabilities, target, weight, class_dim, label_smoothing, reduction)
    loss = nll_loss(log_probabilities, target, weight, ignore_index, reduction)
    if label_smoothing == 0.0:
        return loss
    smooth = _smooth_loss(log_probabilities, target, weight, class_dim, ignore_index, reduction)
    return loss * (1.0 - label_smoothing) + smooth * (label_smoothing / max(input.shape[class_dim], 1))


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
            f"got {target.shape}; class numbers must be integers: target.long()"
        )
    classes = log_probabilities.shape[class_dim]
    target = target * (1.0 - label_smoothing) + label_smoothing / max(classes, 1)
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


# ---- kernels ----------------------------------------------------------------------------------------------


def _has_classes(x: Any, target: Any, *rest: Any, **options: Any) -> bool:
    return x.size > 0


def _grad_has_classes(g: Any, x: Any, *rest: Any, **options: Any) -> bool:
    return x.size > 0


@_cross_entropy.kernel("cpu", name="fused", when=_has_classes)
def _(out, x, target, weight, *, ignore_index, label_smoothing, reduction):
    """One walk over the logits, in vectors; short rows a vector of rows at a time."""
    options = (ignore_index, label_smoothing, False, reduction, get_num_threads())
    cpu.loss.class_losses(out, x, target, weight, *options)


@cross_entropy_grad.kernel("cpu", name="fused", when=_grad_has_classes)
def _(out, g, x, target, weight, *, ignore_index, label_smoothing, reduction):
    """The softmax of a few rows, then the rest while they are in the L1 cache."""
    options = (ignore_index, label_smoothing, False, reduction, get_num_threads())
    cpu.loss.class_loss_grads(out, g, x, target, weight, *options)


@_nll_loss.kernel("cpu", name="fused", when=_has_classes)
def _(out, x, target, weight, *, ignore_index, reduction):
    """One walk over the targets."""
    cpu.loss.class_losses(out, x, target, weight, ignore_index, 0.0, True, reduction, get_num_threads())


@nll_loss_grad.kernel("cpu", name="fused", when=_grad_has_classes)
def _(out, g, x, target, weight, *, ignore_index, reduction):
    """One walk over the output."""
    options = (ignore_index, 0.0, True, reduction, get_num_threads())
    cpu.loss.class_loss_grads(out, g, x, target, weight, *options)


# The CUDA kernels find the loss of each row, and its gradient from one for each row.


def _reduce_on_card(
    run: Any, out: Any, x: Any, target: Any, weight: Any, ignore_index: int, reduction: str
) -> None:
    """``out`` becomes what ``run(losses)`` leaves for the rows of ``x``, or their sum or mean."""
    computed = computed_dtype(x.dtype)
    if reduction == "none" and computed == x.dtype:
        return run(out)
    losses = cuda.workspace(x, x.shape[:1], computed)
    run(losses)
    if reduction != "none":
        total = out if computed == x.dtype else cuda.workspace(x, (), computed)
        counted = target if reduction == "mean" else None
        cuda.loss.class_mean(total, losses, counted, weight, ignore_index)
        losses = total
    if losses is not out:
        out[...] = losses
    return None


def _grad_of_rows(g: Any, x: Any, target: Any, weight: Any, ignore_index: int, reduction: str) -> Any:
    """The gradient of each row's loss, from that of what they were reduced to."""
    g = cuda.array_module(x).ascontiguousarray(g, computed_dtype(x.dtype))
    if reduction == "none":
        return g
    of_rows = cuda.workspace(x, x.shape[:1], g.dtype)
    cuda.loss.class_mean(of_rows, g, target if reduction == "mean" else None, weight, ignore_index)
    return of_rows


@_nll_loss.kernel("cuda", "sim", name="gathered", when=_has_classes)
def _(out, x, target, weight, *, ignore_index, reduction):
    """A thread for each row; where they are reduced, another launch."""

    def run(losses):
        cuda.nll_loss.nll_loss(losses, x, target, weight, ignore_index)

    _reduce_on_card(run, out, x, target, weight, ignore_index, reduction)


@nll_loss_grad.kernel("cuda", "sim", name="rows", when=_grad_has_classes)
def _(out, g, x, target, weight, *, ignore_index, reduction):
    """One walk over the output."""
    of_rows = _grad_of_rows(g, x, target, weight, ignore_index, reduction)
    cuda.nll_loss.nll_loss_grad(out, of_rows, target, weight, ignore_index)


def _computed(weight: Any, x: Any) -> Any:
    """The weights in what numbers of ``x``'s dtype are computed with."""
    return None if weight is None else weight.astype(computed_dtype(x.dtype), copy=False)


def _dtypes(rung: str) -> str:
    return "f4 f8" if rung in ("naive", "warp") else "f4 f8 f2 bf16"


def _register_cuda(rung: str) -> None:
    run = getattr(cuda.cross_entropy, f"cross_entropy_{rung}")

    def kernel(out, x, target, weight, *, ignore_index, label_smoothing, reduction):
        weight = _computed(weight, x)

        def losses_of_rows(losses):
            run(losses, x, target, ignore_index, weight, label_smoothing)

        _reduce_on_card(losses_of_rows, out, x, target, weight, ignore_index, reduction)

    kernel.__doc__ = run.__doc__
    _cross_entropy.kernel("cuda", "sim", name=rung, dtypes=_dtypes(rung), when=_has_classes)(kernel)


def _register_cuda_grad(rung: str) -> None:
    run = getattr(cuda.cross_entropy, f"cross_entropy_grad_{rung}")

    def kernel(out, g, x, target, weight, *, ignore_index, label_smoothing, reduction):
        weight = _computed(weight, x)
        of_rows = _grad_of_rows(g, x, target, weight, ignore_index, reduction)
        run(out, of_rows, x, target, ignore_index, weight, label_smoothing)

    kernel.__doc__ = run.__doc__
    cross_entropy_grad.kernel("cuda", "sim", name=rung, dtypes=_dtypes(rung), when=_grad_has_classes)(kernel)


for _rung in ("naive", "warp", "vectorized"):
    _register_cuda(_rung)
for _rung in ("naive", "warp", "vectorized", "registers"):
    _register_cuda_grad(_rung)
