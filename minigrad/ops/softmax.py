"""Softmax and its logarithm, over one axis; the logarithm of the sum of exponentials, over any."""

from __future__ import annotations

from typing import Any

from minigrad.devices import cpu as cpu_device
from minigrad.dtypes import is_half
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.mixed_precision import WIDER, in_float32
from minigrad.op import Op, op
from minigrad.ops.elementwise import exp, floating, isfinite, log, where
from minigrad.ops.numpy_names import renamed
from minigrad.ops.reduce import Dim, amax, count, largest_of_rows, reduced_axes, sum
from minigrad.ops.shape import axis_of, permute, reshape, unsqueeze


def _less_the_largest(xp, x, dim):
    rows = xp.moveaxis(x, dim, -1)
    return xp.moveaxis(rows - largest_of_rows(xp, rows), -1, dim)


@op(name="softmax", ops_alone=True)
def _softmax(xp, x, *, dim=-1):
    """exp(x) / sum(exp(x)) over ``dim``."""
    e = xp.exp(_less_the_largest(xp, x, dim))
    return e / xp.sum(e, axis=dim, keepdims=True)


@op
def softmax_grad(xp, g, y, *, dim=-1):
    """(g - sum(g y)) y over ``dim``, with ``y`` a softmax's output."""
    return (g - xp.sum(g * y, axis=dim, keepdims=True)) * y


_softmax.grad(x=lambda g, y, _x, *, dim: softmax_grad(g, y, dim=dim))


@softmax_grad.grad
def _(gg, _z, g, y, *, dim):
    # z = (g - s) y with s = sum(g y), so for an incoming gg: the part through g, and that through y.
    inner = sum(gg * y, dim, keepdim=True)
    return (gg - inner) * y, gg * (g - sum(g * y, dim, keepdim=True)) - inner * g


@op(name="log_softmax", ops_alone=True)
def _log_softmax(xp, x, *, dim=-1):
    """The logarithm of the softmax over ``dim``."""
    shifted = _less_the_largest(xp, x, dim)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=dim, keepdims=True))


@op
def log_softmax_grad(xp, g, y, *, dim=-1):
    """g - exp(y) sum(g) over ``dim``, with ``y`` a log-softmax's output."""
    return g - xp.exp(y) * xp.sum(g, axis=dim, keepdims=True)


_log_softmax.grad(x=lambda g, y, _x, *, dim: log_softmax_grad(g, y, dim=dim))


@log_softmax_grad.grad
def _(gg, _z, g, y, *, dim):
    weighted = gg * exp(y)
    return gg - sum(weighted, dim, keepdim=True), -weighted * sum(g, dim, keepdim=True)


def softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, **names: Any) -> Any:
    """exp(x) / sum(exp(x)) over ``dim``, computed without overflow, and in ``dtype``, if there is one.

    Without ``dim`` the axis is 1, or 0 of tensors of 0, 1 or 3 dimensions, as in PyTorch's first years.
    """
    if names:
        return renamed(softmax, names, input=input, dim=dim, dtype=dtype)
    return _along(_softmax, "softmax", input if dtype is None else input.to(dtype), dim)


def log_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, **names: Any) -> Any:
    """The logarithm of :func:`softmax` over ``dim``, exact where the softmax itself would round to 0."""
    if names:
        return renamed(log_softmax, names, input=input, dim=dim, dtype=dtype)
    return _along(_log_softmax, "log_softmax", input if dtype is None else input.to(dtype), dim)


def _along(target: Op, name: str, x: Any, dim: int | None) -> Any:
    x = floating(x)
    if dim is None:
        dim = 0 if x.ndim in (0, 1, 3) else 1
    if x.ndim == 0:
        return target(x.reshape(1), dim=0).reshape(())
    if type(dim) is not int or not -x.ndim <= dim < x.ndim:  # asked in few instructions
        dim = axis_of(name, dim, x.ndim)
    dim %= x.ndim
    if dim == x.ndim - 1 or x.device.type == "cpu":
        return target(x, dim=dim)
    # The CUDA kernels work on rows.
    order = (*range(dim), *range(dim + 1, x.ndim), dim)
    back = (*range(dim), x.ndim - 1, *range(dim, x.ndim - 1))
    return permute(target(permute(x, order), dim=x.ndim - 1), back)


# ---- the logarithm of the sum of exponentials ------------------------------------------------------------


@op(name="logsumexp")
def _logsumexp(xp, x):
    """log(sum(exp(x))) over the last axis."""
    largest = largest_of_rows(xp, x)
    largest = xp.where(xp.isfinite(largest), largest, x.dtype.type(0))
    return xp.log(xp.sum(xp.exp(x - largest), axis=-1)) + largest[..., 0]


@op
def logsumexp_grad(xp, g, x, y):
    """g exp(x - y), with ``y`` the logsumexp of ``x`` over its last axis."""
    return g[..., None] * xp.exp(x - y[..., None])


_logsumexp.shape(lambda x: x.shape[:-1])
logsumexp_grad.shape(lambda g, x, y: x.shape)
_logsumexp.grad(x=lambda g, y, x: logsumexp_grad(g, x, y))


@logsumexp_grad.grad
def _(gg, z, g, x, y):
    through = gg * z
    return sum(gg * exp(x - unsqueeze(y, -1)), -1), through, -sum(through, -1)


def logsumexp(x: Any, dim: Dim = None, keepdim: bool = False, **names: Any) -> Any:
    """log(sum(exp(x))) over ``dim``, computed without overflow."""
    if names:
        return renamed(logsumexp, names, x=x, dim=dim, keepdim=keepdim)
    x = floating(x)
    if is_half(x.dtype):
        return in_float32(logsumexp, x, dim, keepdim, policy=WIDER)
    axes = reduced_axes("logsumexp", dim, x.ndim)
    rest = tuple(axis for axis in range(x.ndim) if axis not in axes)
    sizes = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    if x.device is cpu_device:
        largest = 0.0
        if count(x.shape, axes):
            largest = amax(x, axes, keepdim=True).detach()
            largest = where(isfinite(largest), largest, 0.0)
        found = log(sum(exp(x - largest), axes, keepdim=True)) + largest
    else:  # where each of these ops would be a launch
        found = _logsumexp(reshape(permute(x, (*rest, *axes)), (count(x.shape, rest), count(x.shape, axes))))
    return reshape(found, sizes if keepdim else tuple(x.shape[axis] for axis in rest))


# ---- kernels ----------------------------------------------------------------------------------------------


def _is_filled(x: Any, *rest: Any, dim: int) -> bool:
    return x.size > 0


def _has_rows(x: Any, *rest: Any, dim: int) -> bool:
    return x.size > 0 and dim in (-1, x.ndim - 1)


def _register_cpu(target: Op, run: Any) -> None:
    def kernel(out, *arrays, dim):
        run(out, *arrays, dim, get_num_threads())

    kernel.__doc__ = run.__doc__
    target.kernel("cpu", name="vectorized", when=_is_filled)(kernel)


def _register_cuda(target: Op, run: Any, name: str, dtypes: str) -> None:
    def kernel(out, *arrays, dim):
        run(out, *arrays)

    kernel.__doc__ = run.__doc__
    target.kernel("cuda", "sim", name=name, dtypes=dtypes, when=_has_rows)(kernel)


for _op in (_softmax, softmax_grad, _log_softmax, log_softmax_grad):
    _register_cpu(_op, getattr(cpu.softmax, _op.name))
    for _name in ("naive", "warp", "vectorized", "registers"):
        _dtypes = "f4 f8" if _name in ("naive", "warp") else "f4 f8 f2 bf16"
        _register_cuda(_op, getattr(cuda.softmax, f"{_op.name}_{_name}"), _name, _dtypes)


@_logsumexp.kernel("cuda", "sim", name="rows", when=lambda x: x.size > 0)
def _(out, x):
    """One walk along a row, with the largest element and the sum found together; long rows in parts."""
    cuda.softmax.logsumexp(out.reshape(out.size), x.reshape(out.size, x.shape[-1]))


@logsumexp_grad.kernel("cuda", "sim", name="rows", when=lambda g, x, y: x.size > 0)
def _(out, g, x, y):
    """One walk along a row, or a part of it."""
    rows = (y.size, x.shape[-1])
    cuda.softmax.logsumexp_grad(out.reshape(rows), g.reshape(y.size), x.reshape(rows), y.reshape(y.size))
