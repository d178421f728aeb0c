"""Variance, standard deviation and norms: what is made of sums of squares."""

from __future__ import annotations

import math
from typing import Any

from minigrad.devices import cpu as cpu_device
from minigrad.dtypes import is_half
from minigrad.kernels import cpu, cuda
from minigrad.mixed_precision import WIDER, in_float32, wide
from minigrad.op import op
from minigrad.ops.elementwise import floating, where
from minigrad.ops.elementwise_kernels import register_cpu, register_cuda
from minigrad.ops.numpy_names import renamed
from minigrad.ops.reduce import (
    Dim,
    amax,
    amin,
    are_rows,
    count,
    mean,
    reduced_axes,
    reduced_shape,
    register_cpu_reduction,
    restore,
    sum,
)

__all__ = ["norm", "std", "var"]


@op(name="sum_of_squares")
def _sum_of_squares(xp, x, *, dim, keepdim):
    return xp.sum(x * x, axis=dim, keepdims=keepdim)


_sum_of_squares.shape(reduced_shape)
_sum_of_squares.grad(x=lambda g, _y, x, *, dim, keepdim: x * restore(g * 2.0, x.shape, dim))


def var(
    x: Any,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: int = 1,
    **names: Any,
) -> Any:
    """The variance over ``dim``: squared deviations over (count - correction).

    ``unbiased`` is PyTorch's older word: True for a correction of 1, False for 0.
    """
    if names:
        return renamed(var, names, x=x, dim=dim, unbiased=unbiased, keepdim=keepdim, correction=correction)
    x = floating(x)
    axes = reduced_axes("var", dim, x.ndim)
    in_rows = x.device is not cpu_device and _holds_rows(x._array, dim=axes, keepdim=keepdim)
    if is_half(x.dtype) and not in_rows:
        return in_float32(var, x, dim, unbiased, keepdim, correction=correction)
    correction, dim = correction if unbiased is None else int(unbiased), axes
    divisor = float(max(count(x.shape, dim) - correction, 0))
    if in_rows:
        return _var(x, dim=dim, keepdim=keepdim, divisor=divisor)
    centred = x - mean(x, dim, keepdim=True)
    return sum(centred * centred, dim=dim, keepdim=keepdim) / divisor


@op(name="var")
def _var(xp, x, *, dim, keepdim, divisor):
    """The sum of the squared deviations from the mean, over ``divisor``."""
    centred = x - xp.mean(x, axis=dim, keepdims=True)
    return xp.sum(centred * centred, axis=dim, keepdims=keepdim) / divisor


@_var.shape
def _(x, *, dim, keepdim, divisor):
    return reduced_shape(x, dim=dim, keepdim=keepdim)


@_var.grad
def _(g, _y, x, *, dim, keepdim, divisor):
    x, g = wide(x), wide(g)
    return (x - mean(x, dim, keepdim=True)) * restore(g * 2.0 / divisor, x.shape, dim)


def std(
    x: Any,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: int = 1,
    **names: Any,
) -> Any:
    """The standard deviation over ``dim``: the root of :func:`var`."""
    if names:
        return renamed(std, names, x=x, dim=dim, unbiased=unbiased, keepdim=keepdim, correction=correction)
    if is_half(x.dtype):
        return in_float32(std, x, dim, unbiased, keepdim, correction=correction)
    return _root(var(x, dim, unbiased, keepdim, correction=correction), 2)


def norm(x: Any, p: float | str = 2, dim: Dim = None, keepdim: bool = False) -> Any:
    """The p-norm over ``dim``: sum(abs(x)^p)^(1/p), and its limits.

    ``"fro"`` is 2; infinity gives the largest magnitude, -infinity the smallest, 0 counts what is not zero.
    """
    x = floating(x)
    if is_half(x.dtype):
        return in_float32(norm, x, p, dim, keepdim, policy=WIDER)
    p = 2 if p == "fro" else p
    if not isinstance(p, (int, float)):
        raise ValueError(f"norm: p must be a number or 'fro', got {p!r}")
    if p == 2:
        return _root(_sum_of_squares(x, dim=reduced_axes("norm", dim, x.ndim), keepdim=keepdim), 2)
    if p == 1:
        return sum(abs(x), dim, keepdim)
    if p == 0:
        return sum(where(x == 0, 0.0, x**0), dim, keepdim)  # x^0 has a gradient, of zeros
    if math.isinf(p):
        return (amax if p > 0 else amin)(abs(x), dim, keepdim)
    if 0 < p < 1:  # zeros, where the derivative is infinite, get a gradient of 0, as in PyTorch
        zero = x == 0
        return _root(sum(where(zero, 0.0, abs(where(zero, 1.0, x)) ** p), dim, keepdim), p)
    return _root(sum(abs(x) ** p, dim, keepdim), p)


def _root(x: Any, p: float) -> Any:
    """The p-th root, whose gradient at 0 is taken to be 0."""
    if p == 2:
        return _square_root(x)
    zero = x == 0
    return where(zero, 0.0, where(zero, 1.0, x) ** (1.0 / p))


@op(name="square_root")
def _square_root(xp, x):
    """sqrt(x); its gradient at 0, which is infinite from above, is taken to be 0."""
    return xp.sqrt(x)


@_square_root.grad
def _(g, y, _x):
    zero = y == 0
    return where(zero, 0.0, g * 0.5 / where(zero, 1.0, y))


# ---- kernels ----------------------------------------------------------------------------------------------

register_cpu_reduction(_sum_of_squares, cpu.reduce.sum_of_squares)
register_cpu(_square_root, cpu.elementwise.sqrt, prefer=cpu.elementwise.is_large)
register_cuda(_square_root, cuda.elementwise.FUNCTIONS["sqrt"])


# On cards and on the simulator, rows that a block has the registers for.


def _holds_rows(x: Any, *, dim: tuple[int, ...], keepdim: bool, **_: Any) -> bool:
    return are_rows(x, dim=dim, keepdim=keepdim) and cuda.row_statistics.holds(
        count(x.shape, dim), x.itemsize
    )


@_var.kernel("cuda", "sim", name="registers", dtypes="f4 f8 f2 bf16", when=_holds_rows)
def _(out, x, *, dim, keepdim, divisor):
    """A row is read once, and kept in registers between its mean and its deviations."""
    rows = x.reshape(out.size, count(x.shape, dim))
    cuda.row_statistics.squares(out.reshape(out.size), rows, divisor, centred=True)


def _holds_or_takes_all(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> bool:
    whole = len(dim) == x.ndim and x.size > 0 and x.flags.c_contiguous
    return whole or _holds_rows(x, dim=dim, keepdim=keepdim)


@_sum_of_squares.kernel("cuda", "sim", name="registers", when=_holds_or_takes_all)
def _(out, x, *, dim, keepdim):
    """A row, or a part of a large one, for each block; nothing is written but sums."""
    if out.size == 1 and x.size > 0:
        cuda.loss.total(out, x, None, "mse_loss", 1)
    else:
        rows = x.reshape(out.size, count(x.shape, dim))
        cuda.row_statistics.squares(out.reshape(out.size), rows, 1, centred=False)
