"""Softmax and its logarithm, over one axis."""

from __future__ import annotations

from typing import Any

from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import Op, op
from minigrad.ops.elementwise import exp, floating
from minigrad.ops.reduce import largest_of_rows, normalize_dim, sum
from minigrad.ops.shape import permute


def _less_the_largest(xp, x, dim):
    rows = xp.moveaxis(x, dim, -1)
    return xp.moveaxis(rows - largest_of_rows(xp, rows), -1, dim)


@op(name="softmax")
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


@op(name="log_softmax")
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


def softmax(input: Any, dim: int) -> Any:
    """exp(x) / sum(exp(x)) over ``dim``, computed without overflow."""
    return _along(_softmax, "softmax", input, dim)


def log_softmax(input: Any, dim: int) -> Any:
    """The logarithm of :func:`softmax` over ``dim``, exact where the softmax itself would round to 0."""
    return _along(_log_softmax, "log_softmax", input, dim)


def _along(target: Op, name: str, x: Any, dim: int) -> Any:
    x = floating(x)
    if x.ndim == 0:
        return target(x.reshape(1), dim=0).reshape(())
    if type(dim) is not int or not -x.ndim <= dim < x.ndim:  # asked in few instructions
        (dim,) = normalize_dim(name, dim, x.ndim)
    dim %= x.ndim
    if dim == x.ndim - 1 or x.device.type == "cpu":
        return target(x, dim=dim)
    # The CUDA kernels work on rows.
    order = (*range(dim), *range(dim + 1, x.ndim), dim)
    back = (*range(dim), x.ndim - 1, *range(dim, x.ndim - 1))
    return permute(target(permute(x, order), dim=x.ndim - 1), back)


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
        rows = (-1, out.shape[-1])
        run(out.reshape(rows), *(a.reshape(rows) for a in arrays))

    kernel.__doc__ = run.__doc__
    target.kernel("cuda", "sim", name=name, dtypes=dtypes, when=_has_rows)(kernel)


for _op in (_softmax, softmax_grad, _log_softmax, log_softmax_grad):
    _register_cpu(_op, getattr(cpu.softmax, _op.name))
    for _name in ("naive", "warp", "vectorized", "registers"):
        _dtypes = "f4 f8" if _name in ("naive", "warp") else "f4 f8 f2 bf16"
        _register_cuda(_op, getattr(cuda.softmax, f"{_op.name}_{_name}"), _name, _dtypes)
