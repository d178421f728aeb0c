"""Reductions: sum, mean, extrema, products; variance and norms are in :mod:`.squares`.

``dim`` is an axis, a tuple of axes, or None for all axes, as is ``()`` (but for prod, any and all, where it
names no axis). ``keepdim`` keeps the reduced axes with size 1. As in PyTorch, these arguments may be called
``axis`` and ``keepdims``, and a sum, mean or product that is given a ``dtype`` converts to it first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.argument_errors import not_a_tensor
from minigrad.devices import cpu as cpu_device
from minigrad.dispatch import Spec
from minigrad.dtypes import is_floating
from minigrad.graph import LARGE
from minigrad.kernels import cpu, cuda
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.channels_last import NHWC, is_channels_last, nhwc
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import Op, op
from minigrad.ops.elementwise import cast, floating, zeros_like
from minigrad.ops.numpy_names import renamed
from minigrad.ops.shape import axis_of, broadcast_to, permute, reshape

_int64 = np.dtype(np.int64)

Dim = int | tuple[int, ...] | None


def reduced_axes(name: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes that a reduction over ``dim`` removes: as :func:`normalize_dim`, but ``()`` means all axes."""
    if type(dim) is int and -ndim <= dim < ndim:  # a shortcut for the usual case
        return (dim % ndim,)
    return normalize_dim(name, dim, ndim) or tuple(range(ndim))


def normalize_dim(name: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """``dim`` as a sorted tuple of axes in [0, ndim)."""
    if dim is None:
        return tuple(range(ndim))
    dims = tuple(dim) if isinstance(dim, (tuple, list, range)) else (dim,)
    for d in dims:
        if not isinstance(d, (int, np.integer)):
            raise TypeError(f"{name}: dim must be an integer or a tuple of integers, got {dim!r}")
        if not -max(ndim, 1) <= d < max(ndim, 1):
            raise IndexError(f"{name}: dim {d} is out of range for a tensor of {ndim} dimensions")
    axes = tuple(sorted(d % ndim for d in dims)) if ndim else ()
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: dim {dim} names an axis twice")
    return axes


def restore(reduced: Any, shape: tuple[int, ...], dim: tuple[int, ...]) -> Any:
    """``reduced``, with the axes of ``dim`` put back and stretched to ``shape``."""
    kept = tuple(1 if axis in dim else size for axis, size in enumerate(shape))
    return broadcast_to(reshape(reduced, shape=kept), shape=shape)


# ---- sums -------------------------------------------------------------------------------------------------


@op(name="sum")
def _sum(xp, x, *, dim, keepdim):
    return xp.sum(x, axis=dim, keepdims=keepdim)


_sum.grad(x=lambda g, _y, _x, *, dim, keepdim: restore(g, _x.shape, dim))


@_sum.shape
def reduced_shape(x, *, dim, keepdim):
    """``x.shape`` without the axes of ``dim``, or with size 1 in their place."""
    shape = x.shape
    if keepdim:
        return tuple([1 if axis in dim else size for axis, size in enumerate(shape)])
    kept = len(shape) - len(dim)
    if dim and dim[0] == kept:  # the trailing axes: what is asked for most, and quicker
        return shape[:kept]
    return tuple([size for axis, size in enumerate(shape) if axis not in dim])


def sum(x: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, **names: Any) -> Any:
    """The sum over ``dim``; integers and bools are summed as int64."""
    if names:
        return renamed(sum, names, x=x, dim=dim, keepdim=keepdim, dtype=dtype)
    try:
        x = widened(x) if dtype is None else x.to(dtype)
    except AttributeError:
        raise not_a_tensor("sum", "x", x) from None
    return _sum(x, dim=reduced_axes("sum", dim, x.ndim), keepdim=keepdim)


def widened(x: Any) -> Any:
    """Integers and bools as int64, in which sums and products are formed."""
    return x if is_floating(x.dtype) or x.dtype == _int64 else cast(x, dtype=_int64)


def mean(x: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, **names: Any) -> Any:
    """The mean over ``dim``; NaN over no elements."""
    if names:
        return renamed(mean, names, x=x, dim=dim, keepdim=keepdim, dtype=dtype)
    x = floating(x if dtype is None else x.to(dtype))
    return _mean(x, dim=reduced_axes("mean", dim, x.ndim), keepdim=keepdim)


@op(name="mean")
def _mean(xp, x, *, dim, keepdim):
    return xp.sum(x, axis=dim, keepdims=keepdim) / x.dtype.type(count(x.shape, dim))


_mean.shape(reduced_shape)
_mean.grad(x=lambda g, _y, _x, *, dim, keepdim: restore(g / float(count(_x.shape, dim)), _x.shape, dim))


def count(shape: tuple[int, ...], dim: tuple[int, ...]) -> int:
    """How many elements stand along the axes of ``dim``."""
    found = 1
    for axis in dim:
        found *= shape[axis]
    return found


# ---- extrema ----------------------------------------------------------------------------------------------


@op(name="amax")
def _amax(xp, x, *, dim, keepdim):
    return xp.max(x, axis=dim, keepdims=keepdim)


@op(name="amin")
def _amin(xp, x, *, dim, keepdim):
    return xp.min(x, axis=dim, keepdims=keepdim)


def _extremum_grad(g, y, x, *, dim, keepdim):
    """Shared evenly among the elements that attain the extremum."""
    if x.device is not cpu_device:  # where each op of those below would be a launch
        return extremum_grad(g, y, x, dim=dim, keepdim=keepdim)
    best = cast(x == restore(y, x.shape, dim), dtype=x.dtype)
    return best * restore(g / _sum(best, dim=dim, keepdim=keepdim), x.shape, dim)


@op
def extremum_grad(xp, g, y, x, *, dim, keepdim):
    """The gradient g of ``x``'s extrema ``y``, shared evenly among the elements that attain them."""
    kept = tuple(1 if axis in dim else size for axis, size in enumerate(x.shape))
    best = (x == y.reshape(kept)).astype(x.dtype)
    return best * (g.reshape(kept) / best.sum(axis=dim, keepdims=True))


extremum_grad.shape(lambda g, y, x, *, dim, keepdim: x.shape)


@extremum_grad.grad
def _(gg, _z, g, y, x, *, dim, keepdim):
    shares = extremum_grad(zeros_like(g) + 1.0, y, x, dim=dim, keepdim=keepdim)
    return _sum(gg * shares, dim=dim, keepdim=keepdim), zeros_like(y), zeros_like(x)


_amax.grad(x=_extremum_grad)
_amin.grad(x=_extremum_grad)


@_amax.shape
def _extremum_shape(x, *, dim, keepdim):
    if count(x.shape, dim) == 0 and x.size == 0:
        raise ValueError(f"max/min: no elements to compare over dim {dim} of a tensor of shape {x.shape}")
    return reduced_shape(x, dim=dim, keepdim=keepdim)


_amin.shape(_extremum_shape)


def largest_of_rows(xp: Any, x: Any) -> Any:
    """For references: the largest element over the last axis, which stays; -infinity over no elements.

    CuPy's ``max`` has no argument ``initial``.
    """
    return xp.max(x, axis=-1, keepdims=True) if x.shape[-1] else xp.full((*x.shape[:-1], 1), -xp.inf, x.dtype)


def amax(x: Any, dim: Dim = None, keepdim: bool = False, **names: Any) -> Any:
    """The largest value over ``dim``; its gradient is shared evenly among equals."""
    if names:
        return renamed(amax, names, x=x, dim=dim, keepdim=keepdim)
    return _amax(x, dim=reduced_axes("amax", dim, x.ndim), keepdim=keepdim)


def amin(x: Any, dim: Dim = None, keepdim: bool = False, **names: Any) -> Any:
    """The smallest value over ``dim``; its gradient is shared evenly among equals."""
    if names:
        return renamed(amin, names, x=x, dim=dim, keepdim=keepdim)
    return _amin(x, dim=reduced_axes("amin", dim, x.ndim), keepdim=keepdim)


@op(name="argmax", differentiable=False)
def _argmax(xp, x, *, dim, keepdim):
    return xp.argmax(x, axis=dim, keepdims=keepdim)


@op(name="argmin", differentiable=False)
def _argmin(xp, x, *, dim, keepdim):
    return xp.argmin(x, axis=dim, keepdims=keepdim)


@_argmax.shape
def _arg_shape(x, *, dim, keepdim):
    axes = tuple(range(x.ndim)) if dim is None else (dim,)
    return Spec(_extremum_shape(x, dim=axes, keepdim=keepdim), _int64)


_argmin.shape(_arg_shape)


def argmax(x: Any, dim: int | None = None, keepdim: bool = False, **names: Any) -> Any:
    """The index (int64) of the first largest value along ``dim``, or in the flattened tensor."""
    if names:
        return renamed(argmax, names, x=x, dim=dim, keepdim=keepdim)
    return _argmax(x, dim=_one_dim("argmax", dim, x.ndim), keepdim=keepdim)


def argmin(x: Any, dim: int | None = None, keepdim: bool = False, **names: Any) -> Any:
    """The index (int64) of the first smallest value along ``dim``, or in the flattened tensor."""
    if names:
        return renamed(argmin, names, x=x, dim=dim, keepdim=keepdim)
    return _argmin(x, dim=_one_dim("argmin", dim, x.ndim), keepdim=keepdim)


def _one_dim(name: str, dim: Any, ndim: int) -> int | None:
    axis = None if dim is None else axis_of(name, dim, max(ndim, 1))
    return axis if ndim else None  # a 0-d tensor has no axis to name


# ---- products, logic --------------------------------------------------------------------------------------


@op(name="prod")
def _prod(xp, x, *, dim, keepdim):
    return xp.prod(x, axis=dim, keepdims=keepdim)


_prod.shape(reduced_shape)


@_prod.grad
def _(g, _y, x, *, dim, keepdim):
    # For each factor the product of all others: of those before it times those after it, so that zeros need
    # no division.
    from minigrad.ops.join import stack

    rest = tuple(axis for axis in range(x.ndim) if axis not in dim)
    order = (*rest, *dim)
    shape = tuple(x.shape[axis] for axis in rest)
    factors = reshape(permute(x, order), (*shape, count(x.shape, dim)))
    n = factors.shape[-1]
    if n == 0:
        return zeros_like(x)
    before, after = [zeros_like(factors[..., 0]) + 1.0], [zeros_like(factors[..., 0]) + 1.0]
    for i in range(n - 1):
        before.append(before[-1] * factors[..., i])
        after.append(after[-1] * factors[..., n - 1 - i])
    others = stack([b * a for b, a in zip(before, reversed(after), strict=True)], dim=-1)
    gradient = others * reshape(g, (*shape, 1))
    back = tuple(order.index(axis) for axis in range(x.ndim))
    return permute(reshape(gradient, tuple(x.shape[axis] for axis in order)), back)


def prod(x: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, **names: Any) -> Any:
    """The product over ``dim``; integers and bools are multiplied as int64."""
    if names:
        return renamed(prod, names, x=x, dim=dim, keepdim=keepdim, dtype=dtype)
    x = widened(x) if dtype is None else x.to(dtype)
    return _prod(x, dim=normalize_dim("prod", dim, x.ndim), keepdim=keepdim)


@op(name="any", differentiable=False)
def _any(xp, x, *, dim, keepdim):
    return xp.any(x, axis=dim, keepdims=keepdim)


@op(name="all", differentiable=False)
def _all(xp, x, *, dim, keepdim):
    return xp.all(x, axis=dim, keepdims=keepdim)


def any(x: Any, dim: Dim = None, keepdim: bool = False, **names: Any) -> Any:
    """Whether any element over ``dim`` is true (non-zero)."""
    if names:
        return renamed(any, names, x=x, dim=dim, keepdim=keepdim)
    return _any(x, dim=normalize_dim("any", dim, x.ndim), keepdim=keepdim)


def all(x: Any, dim: Dim = None, keepdim: bool = False, **names: Any) -> Any:
    """Whether all elements over ``dim`` are true (non-zero)."""
    if names:
        return renamed(all, names, x=x, dim=dim, keepdim=keepdim)
    return _all(x, dim=normalize_dim("all", dim, x.ndim), keepdim=keepdim)


def count_nonzero(x: Any, dim: Dim = None) -> Any:
    """How many elements over ``dim`` are not 0, as int64."""
    return sum(x != 0, dim)


# ---- kernels ----------------------------------------------------------------------------------------------


def are_rows(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> bool:
    """Whether what is reduced are the rows of a matrix: the trailing axes of a contiguous array."""
    return bool(dim) and dim[0] == x.ndim - len(dim) and is_contiguous(x)


def _have_kernel(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> bool:
    """Large views NumPy walks through in memory's order; small ones are copied, and rounded as any array."""
    return (x.size < LARGE or is_contiguous(x)) and cpu.reduce.fits(x, dim)


def register_cpu_reduction(target: Op, run: Any) -> None:
    def kernel(out, x, *, dim, keepdim):
        run(out, x, dim, get_num_threads())

    def direct(x, *, dim, keepdim):
        return run.new(x, dim, keepdim, get_num_threads())

    kernel.__doc__ = run.__doc__
    target.kernel("cpu", name="vectorized", when=_have_kernel)(kernel)
    target.direct = direct


for _op, _run in (
    (_sum, cpu.reduce.sum),
    (_amax, cpu.reduce.max),
    (_amin, cpu.reduce.min),
    (_prod, cpu.reduce.prod),
):
    register_cpu_reduction(_op, _run)


def _have_mean(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> bool:
    return x.size > 0 and _have_kernel(x, dim=dim, keepdim=keepdim)


@_mean.kernel("cpu", name="vectorized", when=_have_mean)
def _(out, x, *, dim, keepdim):
    """The sums, divided where they are."""
    cpu.reduce.sum(out, x, dim, get_num_threads())
    out /= count(x.shape, dim)


def _mean_directly(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> Any:
    return cpu.reduce.sum.new(x, dim, keepdim, get_num_threads(), True)


_mean.direct = _mean_directly


def _is_dense(x: Any, *, dim: tuple[int, ...], keepdim: bool) -> bool:
    """Whether the axes that stay are in the order of memory: channels last, channels or pixels alone."""
    return bool(dim) and (is_contiguous(x) or (is_channels_last(x) and (1 in dim or {2, 3} <= set(dim))))


def _reduce_axes(out: Any, x: Any, dim: tuple[int, ...], operation: str, divisor: float = 1) -> None:
    if not is_contiguous(x):  # but channels last
        x, dim = nhwc(x), tuple(sorted(NHWC.index(axis) for axis in dim))
    cuda.reduce.axes(out, x, dim, operation, divisor)


def _register(target: Op, operation: str, run: Any) -> None:
    def kernel(out, x, *, dim, keepdim):
        run(out, x, operation)

    kernel.__doc__ = run.__doc__
    dtypes = "f4 f8 f2 bf16" if run.__name__ in ("vectorized", "split") else "f4 f8"
    target.kernel("cuda", "sim", name=run.__name__, dtypes=dtypes, when=are_rows)(kernel)


def _register_columns(target: Op, operation: str) -> None:
    def kernel(out, x, *, dim, keepdim):
        _reduce_axes(out, x, dim, operation)

    kernel.__doc__ = cuda.reduce.axes.__doc__
    target.kernel("cuda", "sim", name="columns", dtypes="f4 f8 f2 bf16", layout="strided", when=_is_dense)(
        kernel
    )


for _op in (_sum, _amax, _amin, _mean):
    _op.kernels.decides = lambda x, *, dim, keepdim: (x.shape, x.strides, dim)

for _op, _operation in ((_sum, "sum"), (_amax, "max"), (_amin, "min")):
    _register_columns(_op, _operation)
    for _name in ("naive", "tree", "shuffle", "vectorized", "split"):
        _register(_op, _operation, getattr(cuda.reduce, _name))


@_mean.kernel("cuda", "sim", name="divided", dtypes="f4 f8 f2 bf16", layout="strided", when=_is_dense)
def _(out, x, *, dim, keepdim):
    """The sums, divided before they are written."""
    _reduce_axes(out, x, dim, "sum", count(x.shape, dim))


LONGEST_ROW, ENOUGH_ROWS = 1 << 15, 128
"""Rows are for a block each if they are no longer, or if there are enough of them to fill a card."""


def _suit_blocks(x: Any, dim: tuple[int, ...]) -> bool:
    if not are_rows(x, dim=dim, keepdim=False):
        return False
    columns = count(x.shape, dim)
    return 0 < columns <= LONGEST_ROW or x.size >= ENOUGH_ROWS * columns > 0


@extremum_grad.kernel(
    "cuda",
    "sim",
    name="rows",
    dtypes="f4 f8 f2 bf16",
    when=lambda g, y, x, *, dim, keepdim: _suit_blocks(x, dim),
)
def _(out, g, y, x, *, dim, keepdim):
    """Two walks along a row: to count its extrema, and to write."""
    rows = (y.size, count(x.shape, dim))
    grad, extrema = g.reshape(y.size), y.reshape(y.size)
    cuda.row_statistics.extremum_grad(out.reshape(rows), grad, extrema, x.reshape(rows))


def _register_arg(target: Op, operation: str) -> None:
    def axes(x: Any, dim: int | None) -> tuple[int, ...]:
        return tuple(range(x.ndim)) if dim is None else (dim,)

    @target.kernel(
        "cuda",
        "sim",
        name="rows",
        dtypes="f4 f8 f2 bf16",
        when=lambda x, *, dim, keepdim: _suit_blocks(x, axes(x, dim)),
    )
    def _(out, x, *, dim, keepdim):
        """One walk along a row, with the best value and its place; ties go to the first."""
        rows = x.reshape(out.size, count(x.shape, axes(x, dim)))
        cuda.row_statistics.arg_extremum(out.reshape(out.size), rows, operation)


_register_arg(_argmax, "max")
_register_arg(_argmin, "min")
