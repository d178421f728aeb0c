"""Distinct values and how often they occur. None of these functions is differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.recording import refuse_shape_from_values


def unique(
    x: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The values of ``x``, each once, in order.

    Args:
        x: a tensor.
        sorted: ignored; they always are.
        return_inverse: also return where each element's value is among them, in the shape of ``x``.
        return_counts: also return how often each occurs.
        dim: take the parts of ``x`` along this axis for the values, instead of its elements.

    Returns:
        The values, or a tuple of them and what else was asked for. Every NaN is a value of its own.
    """
    refuse_shape_from_values("unique()")
    device = x.device
    with device.active():
        found = device.xp.unique(x._array, return_inverse=True, return_counts=True, axis=dim, equal_nan=False)
        values, inverse, counts = found
        inverse = inverse.reshape(x.shape if dim is None else -1)
        results = [wrap(values, device)]
        if return_inverse:
            results.append(wrap(inverse.astype(np.int64, copy=False), device))
        if return_counts:
            results.append(wrap(counts.astype(np.int64, copy=False), device))
    return results[0] if len(results) == 1 else tuple(results)


def unique_consecutive(x: Any, return_inverse: bool = False, return_counts: bool = False) -> Any:
    """The elements of ``x``, flattened, without those that repeat the one before.

    Returns:
        The values (k,); with ``return_inverse`` also which of them each element is, in ``x``'s shape; with
        ``return_counts`` also how often each comes; int64, in a tuple.
    """
    refuse_shape_from_values("unique_consecutive()")
    device = x.device
    with device.active():
        xp, flat = device.xp, x._array.reshape(-1)
        is_new = xp.concatenate([xp.ones(min(flat.size, 1), bool), flat[1:] != flat[:-1]])
        starts = xp.flatnonzero(is_new)
        found = [flat[starts]]
        if return_inverse:
            found.append((xp.cumsum(is_new) - 1).reshape(x.shape))
        if return_counts:
            found.append(xp.diff(xp.concatenate([starts, xp.asarray([flat.size])])))
    tensors = tuple(wrap(array, device) for array in found)
    return tensors if len(tensors) > 1 else tensors[0]


def bincount(x: Any, weights: Any = None, minlength: int = 0) -> Any:
    """How often each of the numbers 0, 1, ... occurs in the vector ``x``, or the sum of its ``weights``.

    ``minlength`` is the least length of the output. Counts are int64, sums of weights float64.
    """
    if x.ndim != 1 or x.dtype.kind not in "iu":
        raise ValueError(f"bincount: expected a vector of integers, got {x.dtype} of shape {x.shape}")
    if weights is not None and weights.shape != x.shape:
        raise ValueError(f"bincount: weights must have shape {x.shape}, got {weights.shape}")
    refuse_shape_from_values("bincount()")
    with x.device.active():
        if x.numel() and int(x._array.min()) < 0:
            raise ValueError(f"bincount: the numbers must not be negative, got {int(x._array.min())}")
        given = None if weights is None else weights._array
        return wrap(x.device.xp.bincount(x._array, given, minlength), x.device)
