"""Losses that are negative log-likelihoods, or divergences, of numbers: Poisson, Gaussian, Kullback-Leibler.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

import math
from typing import Any

from minigrad.graph import Variable
from minigrad.ops import elementwise_loss
from minigrad.ops.elementwise import clamp, exp, floating, log, square, where
from minigrad.ops.loss import check_reduction, reduce_loss
from minigrad.ops.shape import unsqueeze
from minigrad.ops.short_names import broadcast_tensors


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """target (log(target) - input), elementwise: the Kullback-Leibler divergence when it is summed.

    Args:
        input: log-probabilities.
        target: probabilities, or with ``log_target`` their logarithms; broadcasts with ``input``.
        reduction: also ``"batchmean"``: the sum divided by the first size, which is the divergence's mean.
            ``"mean"`` divides by the number of all elements.
        log_target: see ``target``.
    """
    loss = elementwise_loss.kl_div_of_logs if log_target else elementwise_loss.kl_div
    batch = input.shape[0] if input.ndim else 1
    input, target = broadcast_tensors(floating(input), floating(target))
    if reduction == "batchmean":
        return loss(input, target, reduction="sum", scale=1.0 / max(batch, 1))
    check_reduction("kl_div", reduction)
    return loss(input, target, reduction=reduction)


def poisson_nll_loss(
    input: Any,
    target: Any,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: str = "mean",
) -> Any:
    """The negative log-likelihood of counts ``target`` that are Poisson distributed.

    Args:
        input: the logarithm of the rate, or the rate itself unless ``log_input``.
        target: the counts; broadcasts with ``input``.
        log_input: see ``input``.
        full: add Stirling's approximation of log(target!) where target is above 1.
        eps: added to a rate before its logarithm is taken.
        reduction: see the module.
    """
    loss = exp(input) - target * input if log_input else input - target * log(input + eps)
    if full:
        large = where(target > 1, target, 1.0)
        stirling = large * log(large) - large + log(large * (2 * math.pi)) * 0.5
        loss = loss + where(target > 1, stirling, 0.0)
    return reduce_loss("poisson_nll_loss", loss, reduction)


def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """The negative log-likelihood of ``target`` under normal distributions of mean ``input``.

    Args:
        input: the means, (...).
        target: broadcasts with ``input``.
        var: the variances: a number, or a tensor of input's shape, whose last axis may be 1 or missing.
        full: add the constant log(2 pi) / 2.
        eps: the least variance, for its value; the gradient goes to ``var`` as it is.
        reduction: see the module.
    """
    if not isinstance(var, Variable):
        var = input.detach() * 0.0 + float(var)
    elif var.shape != input.shape and var.shape == input.shape[:-1]:
        var = unsqueeze(var, -1)
    elif var.shape != input.shape and var.shape != (*input.shape[:-1], 1):
        raise ValueError(f"gaussian_nll_loss: var of shape {var.shape} does not fit input {input.shape}")
    if bool((var.detach() < 0).any()):
        raise ValueError("gaussian_nll_loss: a variance is negative")
    var = var + (clamp(var.detach(), min=eps) - var.detach())
    loss = (log(var) + square(input - target) / var) * 0.5
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss("gaussian_nll_loss", loss, reduction)
