"""Losses that ask for a margin: between scores, classes, or distances.

Targets of two classes are 1 and -1. ``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.ops.activation import softplus
from minigrad.ops.class_targets import checked_targets
from minigrad.ops.distance import pairwise_distance
from minigrad.ops.elementwise import clamp, minimum, sqrt, where
from minigrad.ops.index import getitem, take_along_dim
from minigrad.ops.loss import check_same_shape, reduce_loss
from minigrad.ops.reduce import mean, sum
from minigrad.ops.scatter import scatter
from minigrad.ops.shape import reshape, unsqueeze


def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
) -> Any:
    """max(0, -target (input1 - input2) + margin): where target is 1, input1 is to be the larger one."""
    return reduce_loss("margin_ranking_loss", clamp(-target * (input1 - input2) + margin, min=0.0), reduction)


def hinge_embedding_loss(input: Any, target: Any, margin: float = 1.0, reduction: str = "mean") -> Any:
    """``input``, a distance, where target is 1; max(0, margin - input) where it is -1."""
    near = where(target != -1, input, 0.0)
    far = where(target != 1, clamp(margin - input, min=0.0), 0.0)
    return reduce_loss("hinge_embedding_loss", near + far, reduction)


def soft_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """log(1 + exp(-target input)), computed without overflow; both of one shape."""
    check_same_shape("soft_margin_loss", input, target)
    return reduce_loss("soft_margin_loss", softplus(-target * input), reduction)


def multilabel_soft_margin_loss(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """The mean over the classes of the cross-entropy between sigmoid(input) and ``target``.

    Args:
        input: logits (N, C) or (C,).
        target: of input's shape, 0 or 1.
        weight: (C,), multiplied to each class's part.
        reduction: see the module.
    """
    check_same_shape("multilabel_soft_margin_loss", input, target)
    loss = softplus(-input) * target + softplus(input) * (1.0 - target)
    loss = loss if weight is None else loss * weight
    return reduce_loss("multilabel_soft_margin_loss", mean(loss, -1), reduction)


def multi_margin_loss(
    input: Any,
    target: Any,
    p: int = 1,
    margin: float = 1.0,
    weight: Any = None,
    reduction: str = "mean",
) -> Any:
    """The hinge loss of many classes: sum over j != y of max(0, margin - x_y + x_j)^p / C.

    Args:
        input: scores (N, C) or (C,).
        target: class numbers (N,) or ().
        p: 1 or 2.
        margin: by how much the target's score is to be above all others.
        weight: (C,), multiplied to each loss by its target.
        reduction: see the module.
    """
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: p must be 1 or 2, got {p}")
    if input.ndim not in (1, 2):
        raise ValueError(f"multi_margin_loss: expected (N, C) or (C,), got shape {input.shape}")
    # No class is ignored: 0 is one of them.
    target = checked_targets("multi_margin_loss", input, target, input.ndim - 1, ignore_index=0)
    if input.ndim == 1:
        losses = multi_margin_loss(unsqueeze(input, 0), unsqueeze(target, 0), p, margin, weight, "none")
        return reduce_loss("multi_margin_loss", reshape(losses, ()), reduction)
    places = unsqueeze(target, 1)
    short = clamp(input - take_along_dim(input, places, 1) + margin, min=0.0)
    short = short * short if p == 2 else short
    if weight is not None:
        if weight.shape != input.shape[1:]:
            raise ValueError(
                f"multi_margin_loss: weight must have shape {input.shape[1:]}, got {weight.shape}"
            )
        short = short * unsqueeze(getitem(weight, index=target._array.astype(np.int64)), 1)
    losses = sum(scatter(short, 1, places, 0.0), 1) / float(input.shape[1])
    return reduce_loss("multi_margin_loss", losses, reduction)


def cosine_embedding_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
) -> Any:
    """1 - cos where target is 1, max(0, cos - margin) where it is -1; cos is that of the last axis's angle.

    Args:
        input1, input2: (N, D) or (D,).
        target: (N,) or (), 1 or -1.
        margin, reduction: see above.
    """
    if input1.ndim not in (1, 2) or input1.shape[-1] != input2.shape[-1] or target.ndim != input1.ndim - 1:
        raise ValueError(
            "cosine_embedding_loss: expected inputs (N, D) and a target (N,), or (D,) and (), got shapes "
            f"{input1.shape}, {input2.shape} and {target.shape}"
        )
    product, squares = sum(input1 * input2, -1), (sum(x * x, -1) + 1e-12 for x in (input1, input2))
    first, second = squares
    cosine = product / sqrt(first * second)
    near = where(target == 1, 1.0 - cosine, 0.0)
    far = where(target == -1, clamp(cosine - margin, min=0.0), 0.0)
    return reduce_loss("cosine_embedding_loss", near + far, reduction)


def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin), with the p-norm of the difference + eps.

    Args:
        anchor, positive, negative: (N, D) or (D,).
        margin: by how much the negative is to be farther away.
        p, eps: of the distance.
        swap: take d(positive, negative) for that of the negative where it is the smaller one;
            https://doi.org/10.5244/C.30.119.
        reduction: see the module.
    """
    to_positive = pairwise_distance(anchor, positive, p, eps)
    to_negative = pairwise_distance(anchor, negative, p, eps)
    if swap:
        to_negative = minimum(to_negative, pairwise_distance(positive, negative, p, eps))
    loss = clamp(to_positive - to_negative + margin, min=0.0)
    return reduce_loss("triplet_margin_loss", loss, reduction)
