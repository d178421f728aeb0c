"""Connectionist temporal classification: the likelihood of a text, whatever its alignment in time.

Graves et al., https://www.cs.toronto.edu/~graves/icml_2006.pdf, equations 5 to 8.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.graph import Variable
from minigrad.ops.elementwise import floating, where
from minigrad.ops.index import gather, getitem
from minigrad.ops.join import concat, stack
from minigrad.ops.loss import check_reduction
from minigrad.ops.reduce import mean, sum
from minigrad.ops.shape import broadcast_to, unsqueeze
from minigrad.ops.softmax import logsumexp

__all__ = ["ctc_loss"]

IMPOSSIBLE = -1e30
"""The logarithm of no probability: finite, so that no difference of two is NaN."""


def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """-log of the sum of the probabilities of all alignments of a text: repeats are one letter, blanks none.

    Args:
        log_probs: log-probabilities (T, N, C), or (T, C) for one signal.
        targets: the texts, (N, S), or one behind the other in a vector; classes that are not ``blank``.
        input_lengths: (N,), how many of the T steps of each signal count.
        target_lengths: (N,), the lengths of the texts.
        blank: the class that stands for no letter.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: of the losses, each divided by its text's length.
        zero_infinity: 0, without a gradient, for a text that is too long for its signal, not infinity.

    Raises:
        ValueError: the shapes, the lengths or the classes do not fit.
    """
    check_reduction("ctc_loss", reduction)
    log_probs = floating(log_probs)
    if log_probs.ndim == 2:
        loss = ctc_loss(
            unsqueeze(log_probs, 1), targets, [input_lengths], [target_lengths], blank, "none", zero_infinity
        )
        return loss[0] if reduction != "mean" else loss[0] / max(_numbers([target_lengths])[0], 1)
    steps, samples, classes = log_probs.shape
    inputs, lengths = _numbers(input_lengths), _numbers(target_lengths)
    texts = _texts(_numbers(targets), lengths, samples, blank)
    if inputs.shape != (samples,) or (inputs > steps).any() or (inputs < 1).any():
        got = inputs.tolist()
        raise ValueError(f"ctc_loss: expected {samples} input_lengths from 1 to {steps}, got {got}")
    if texts.size and (texts.min() < 0 or texts.max() >= classes):
        got = f"{texts.min()} to {texts.max()}"
        raise ValueError(f"ctc_loss: targets must be from 0 to {classes - 1}, got {got}")
    # The letters with blanks around each; a step may go on by two where that leaves out no letter.
    states = np.full((samples, 2 * texts.shape[1] + 1), blank)
    states[:, 1::2] = texts
    jumps = np.zeros(states.shape, bool)
    jumps[:, 3::2] = texts[:, 1:] != texts[:, :-1]
    device = log_probs.device
    index, jumps = (wrap(device.from_numpy(array), device) for array in (states, jumps))
    emitted = gather(log_probs, 2, broadcast_to(index, (steps, *states.shape)))
    first = wrap(device.from_numpy(np.arange(states.shape[1]) < 2), device)
    alpha = where(first, getitem(emitted, index=0), IMPOSSIBLE)
    alphas = [alpha]
    for step in range(1, steps):
        before = [alpha, _shifted(alpha, 1), where(jumps, _shifted(alpha, 2), IMPOSSIBLE)]
        alpha = logsumexp(stack(before), 0) + getitem(emitted, index=step)
        alphas.append(alpha)
    places = [(inputs - 1, np.arange(samples), np.maximum(2 * lengths - i, 0)) for i in (0, 1)]
    ends = [getitem(stack(alphas), index=tuple(map(device.from_numpy, place))) for place in places]
    ends[1] = where(wrap(device.from_numpy(lengths > 0), device), ends[1], IMPOSSIBLE)
    loss = -logsumexp(stack(ends), 0)
    loss = where(loss > -0.1 * IMPOSSIBLE, 0.0 if zero_infinity else math.inf, loss)
    if reduction == "mean":
        divisors = np.maximum(lengths, 1).astype(loss.dtype)
        return mean(loss / wrap(device.from_numpy(divisors), device))
    return sum(loss) if reduction == "sum" else loss


def _numbers(values: Any) -> np.ndarray:
    if isinstance(values, Variable):
        return values.device.to_numpy(values._array).astype(np.int64)
    return np.array([int(value) for value in values], np.int64)


def _texts(targets: np.ndarray, lengths: np.ndarray, samples: int, blank: int) -> np.ndarray:
    """The texts as (N, the longest), filled up with blanks."""
    if lengths.shape != (samples,) or (lengths < 0).any():
        raise ValueError(f"ctc_loss: expected {samples} target_lengths of at least 0, got {lengths.tolist()}")
    if targets.ndim == 1:
        if lengths.sum() != targets.size:
            raise ValueError(f"ctc_loss: {targets.size} targets for texts of {lengths.sum()} in all")
        pieces = np.split(targets, np.cumsum(lengths)[:-1])
    elif targets.ndim == 2 and len(targets) == samples and (lengths <= targets.shape[1]).all():
        pieces = [row[:length] for row, length in zip(targets, lengths, strict=True)]
    else:
        raise ValueError(
            f"ctc_loss: targets of shape {targets.shape} do not fit {samples} texts of lengths "
            f"{lengths.tolist()}"
        )
    texts = np.full((samples, lengths.max(initial=0)), blank)
    for row, piece in zip(texts, pieces, strict=True):
        row[: len(piece)] = piece
    return texts


def _shifted(alpha: Any, by: int) -> Any:
    """Each state's number as that of the state so many behind it."""
    by = min(by, alpha.shape[1])
    with alpha.device.active():
        filled = alpha.device.xp.full((alpha.shape[0], by), IMPOSSIBLE, alpha.dtype)
    rest = getitem(alpha, index=(slice(None), slice(0, alpha.shape[1] - by)))
    return concat([wrap(filled, alpha.device), rest], 1)
