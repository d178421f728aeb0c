"""nansum, nanmean, aminmax, cov, corrcoef, histc, trapezoid: statistics composed of other ops."""

from __future__ import annotations

from typing import Any, NamedTuple

from minigrad.autograd import wrap
from minigrad.ops.elementwise import as_dtype, clamp, isnan, where
from minigrad.ops.index import getitem
from minigrad.ops.matmul import matmul
from minigrad.ops.reduce import amax, amin, mean
from minigrad.ops.reduce import sum as total
from minigrad.ops.shape import axis_of

__all__ = ["aminmax", "corrcoef", "cov", "histc", "nanmean", "nansum", "trapezoid"]


def nansum(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The sum over ``dim``, or over all, of what is not NaN."""
    return total(where(isnan(input), False, input), dim, keepdim)


def nanmean(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The mean over ``dim``, or over all, of what is not NaN; NaN where all is."""
    counts = total(as_dtype(~isnan(input), input.dtype, input.device), dim, keepdim)
    return nansum(input, dim, keepdim) / counts


class MinMax(NamedTuple):
    """The smallest and the largest elements."""

    min: Any
    max: Any


def aminmax(input: Any, *, dim: int | None = None, keepdim: bool = False) -> MinMax:
    """The smallest and the largest element along ``dim``, or of all."""
    return MinMax(amin(input, dim, keepdim), amax(input, dim, keepdim))


def cov(input: Any, *, correction: int = 1) -> Any:
    """The covariances (n, n) of n variables, the rows of ``input`` (n, samples); of one, its variance.

    Divided by the number of samples less ``correction``.
    """
    if input.ndim > 2:
        raise ValueError(f"cov: expected at most two dimensions, got shape {input.shape}")
    x = input if input.ndim == 2 else input.reshape(1, -1)
    deviations = x - mean(x, 1, keepdim=True)
    found = matmul(deviations, deviations.T) / max(x.shape[1] - correction, 0)
    return found.reshape(()) if found.numel() == 1 else found


def corrcoef(input: Any) -> Any:
    """The correlations of the rows of ``input`` (n, samples), in [-1, 1]; of a vector, 1."""
    found = cov(input)
    if found.ndim == 0:
        return found / found
    deviations = found.diagonal().sqrt()
    return clamp(found / deviations.unsqueeze(1) / deviations, -1.0, 1.0)


def histc(input: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """How many elements fall into each of ``bins`` equal parts of [min, max]; those outside into none.

    Where ``min`` and ``max`` are equal, the range is that of the elements. Of the input's dtype; no gradient.
    """
    if bins < 1 or max < min:
        raise ValueError(f"histc: needs bins of at least 1 and min <= max, got {bins}, {min} and {max}")
    device = input.device
    with device.active():
        xp, values = device.xp, input._array.ravel()
        if min == max:
            low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
            low, high = (low - 1, high + 1) if low == high else (low, high)
        else:
            low, high = min, max
        counts, _ = xp.histogram(values, bins=bins, range=(low, high))
        return wrap(counts.astype(input.dtype), device)


def trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    """The area under ``y`` along ``dim``, at the places ``x`` (as ``y``, or 1-D), or at ones ``dx`` apart."""
    axis = axis_of("trapezoid", dim, y.ndim)

    def ends(values: Any, axis: int) -> tuple:
        lead = (slice(None),) * axis
        return (
            getitem(values, index=(*lead, slice(1, None))),
            getitem(values, index=(*lead, slice(None, -1))),
        )

    upper, lower = ends(y, axis)
    heights = (upper + lower) * 0.5
    if x is None:
        return total(heights * dx, axis)
    if x.ndim == 1:
        x = x.reshape((-1, *(1,) * (y.ndim - 1 - axis)))
        right, left = ends(x, 0)
    else:
        right, left = ends(x, axis + x.ndim - y.ndim)
    return total(heights * (right - left), axis)
