"""Indexing: ``x[index]`` with everything that NumPy takes, writing into it, and gathering along an axis.

Where a number stands apart from a tensor, as in ``x[0, :, indices]``, the order of the axes is PyTorch's: see
:func:`displaced`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.dispatch import Spec
from minigrad.dtypes import is_floating
from minigrad.gradient_parts import Part
from minigrad.graph import Variable
from minigrad.kernels import cuda
from minigrad.op import op
from minigrad.ops.embedding import add_at, sum_rows
from minigrad.ops.shape import axis_of, broadcast_to, movedim, reshape
from minigrad.recording import recorder, refuse_shape_from_values

_BASIC_TYPES = frozenset({int, slice, type(None), type(Ellipsis)})


def raw_index(index: Any, copy: bool = False) -> Any:
    """An index in which tensors have been replaced by their arrays.

    With ``copy``, arrays and lists are copied: the gradient will need the index as it was.
    """
    if isinstance(index, tuple):
        if _BASIC_TYPES.issuperset(map(type, index)):
            return index
        return tuple([raw_index(part, copy) for part in index])
    if isinstance(index, Variable):
        if is_floating(index.dtype):
            raise TypeError(f"index: tensors used as an index must be integer or bool, got {index.dtype}")
        index = index._array
    return index.copy() if copy and isinstance(index, (np.ndarray, list)) else index


def is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is Ellipsis
        or (isinstance(part, (slice, int, np.integer)) and not isinstance(part, bool))
        for part in parts
    )


ALL = slice(None)


def displaced(index: tuple, ndim: int) -> tuple[int, int] | None:
    """Which axes of what NumPy finds at ``index`` to move, and where to, for what PyTorch finds.

    NumPy puts the axes of arrays in front where a slice stands between them, and counts a number as an array.
    To PyTorch a number is a choice made beforehand: the axes of ``x[0, :, array]`` are those of
    ``x[0][:, array]``.

    Args:
        index: what :func:`raw_index` gives.
        ndim: of the tensor that is indexed.

    Returns:
        (how many axes, where to), if they do not belong in front; else None.
    """
    advanced = [part for part in index if type(part) not in _BASIC_TYPES]
    if not advanced or (len(advanced) == 1 and int not in map(type, index)):
        return None
    kinds, used, axes = "", 0, 1  # of each part: n(umber), a(rray), s(lice) or new axis, or an ellipsis
    for part in index:
        part = np.asarray(part) if isinstance(part, (list, bool)) else part
        if part is None or part is Ellipsis:
            kinds += "s" if part is None else "."
        elif getattr(part, "dtype", None) == np.bool_:
            kinds, used = kinds + "a", used + part.ndim
        elif getattr(part, "ndim", 0):
            kinds, used, axes = kinds + "a", used + 1, max(axes, part.ndim)
        else:
            kinds, used = kinds + ("s" if type(part) is slice else "n"), used + 1
    chosen = kinds.replace("n", "").replace(".", "s" * (ndim - used))
    if set(kinds.strip("s.")) <= {"a", "n"} or set(chosen.strip("s")) != {"a"}:
        return None
    place = chosen.index("a")
    return (axes, place) if place else None


def in_order_of_numpy(value: Any, index: Any, array: Any) -> Any:
    """``value``, a tensor to be written at ``index`` in ``array``, with its axes as NumPy has them."""
    moved = displaced(index, array.ndim) if type(index) is tuple and len(index) > 2 else None
    if moved is None or getattr(value, "ndim", 0) == 0:
        return value
    shape = array[index].shape
    front, rest = shape[: moved[0]], shape[moved[0] :]
    value = broadcast_to(value, (*rest[: moved[1]], *front, *rest[moved[1] :]))
    return movedim(value, tuple(range(moved[1], sum(moved))), tuple(range(moved[0])))


def _add_at_index(total: np.ndarray, g: np.ndarray, *, index: Any) -> None:
    if is_basic(index):
        total[index] += g
    else:
        add_at(np, total, index, g)


def _part(shape: tuple[int, ...], *, index: Any) -> Part | None:
    """Where ``index`` takes neighbours along one axis, and all along the others: these; None for all else."""
    parts, found, axis = index if type(index) is tuple else (index,), None, 0
    for part in parts:
        if part is Ellipsis:
            axis += len(shape) - (len(parts) - 1)
            continue
        if type(part) is slice:
            start, stop, step = part.indices(shape[axis])
            if step != 1:
                return None
            looks_at = None if part == ALL else (axis, start, max(start, stop))
        elif type(part) is int or isinstance(part, np.integer):
            start = int(part) % shape[axis]
            looks_at = axis, start, start + 1
        else:
            return None
        if looks_at is not None:
            if found is not None:
                return None
            found = looks_at
        axis += 1
    return found


@op(view=True, add_gradient=_add_at_index, part=_part)
def getitem(xp, x, *, index):
    if recorder.current is not None and _has_mask(index):
        refuse_shape_from_values("x[mask]")
    found = x[index]
    # NumPy gives a scalar for a single element, which is a copy; with an Ellipsis it is a 0-d view.
    return found if found.ndim or not is_basic(index) else x[with_ellipsis(index)]


def _has_mask(index: Any) -> bool:
    """Whether an array of bool is among the parts of ``index``, by which elements are chosen."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(getattr(part, "dtype", None) == np.bool_ for part in parts)


def with_ellipsis(index: Any) -> tuple:
    parts = index if isinstance(index, tuple) else (index,)
    return parts if Ellipsis in parts else (*parts, Ellipsis)


@op
def scatter_index(xp, g, *, index, shape):
    """Zeros of ``shape`` to which ``g`` is added at ``index``; an element indexed twice gets both."""
    out = xp.zeros(shape, g.dtype)
    if is_basic(index):
        out[index] = g
    else:
        add_at(xp, out, index, g)
    return out


@scatter_index.shape
def _(g, *, index, shape):
    return Spec(shape, g.dtype)


getitem.grad(x=lambda g, _y, _x, *, index: scatter_index(g, index=index, shape=_x.shape))
scatter_index.grad(g=lambda gg, _y, _g, *, index, shape: getitem(gg, index=index))


@op(moves=True)
def setitem(xp, x, value, *, index):
    """``x`` with ``value`` written at ``index``, in x's own memory."""
    x[index] = value
    return x


def _zeroed_at(g: Any, index: Any) -> Any:
    mask = g.device.xp.ones(g.shape, g.dtype)
    mask[index] = 0
    return g * wrap(mask, g.device)


def _written_value_grad(g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    grad = getitem(g, index=index)
    if not is_basic(index):
        # Of an element written twice the last value stays, and only that one has a gradient.
        writes = np.arange(math.prod(grad.shape)).reshape(grad.shape)
        last = np.zeros(g.shape, np.int64)
        raw = _on_cpu(g.device, index)
        last[raw] = writes
        kept = (last[raw] == writes).astype(g.dtype)
        grad = grad * wrap(g.device.from_numpy(kept), g.device)
    # NumPy drops axes of size 1 in front of a value that has more dimensions than the place it is written to.
    extra = len(shape) - grad.ndim
    return reshape(grad, (1,) * extra + grad.shape) if extra > 0 else grad


def _on_cpu(device: Any, index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(device.to_numpy(p) if type(p) is device.array_type else p for p in parts)


setitem.grad(
    x=lambda g, _y, _x, _value, *, index: _zeroed_at(g, index),
    value=lambda g, _y, _x, _value, *, index: _written_value_grad(g, index, _value.shape),
)


def nonzero(x: Any, as_tuple: bool = False) -> Any:
    """The positions (int64) of the elements that are not zero: (count, ndim), or one tensor for each axis.

    With ``as_tuple`` a 0-d tensor counts as a vector of one element, as in PyTorch.
    """
    refuse_shape_from_values("nonzero()")
    with x.device.active():
        axes = x.device.xp.nonzero(x._array if x.ndim else x._array.reshape(1))
        if as_tuple:
            return tuple(wrap(axis, x.device) for axis in axes)
        return wrap(x.device.xp.stack(axes, 1)[:, : x.ndim], x.device)


@op(name="take_along_dim", moves=True)
def _take_along_dim(xp, x, indices, *, dim):
    return xp.take_along_axis(x, indices, axis=dim)


@op
def put_along_dim(xp, g, indices, *, dim, shape):
    """Zeros of ``shape`` to which ``g`` is added at ``indices`` along ``dim``: the adjoint of taking."""
    out = xp.zeros(shape, g.dtype)
    grid = list(xp.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[dim] = indices
    add_at(xp, out, tuple(grid), g)
    return out


@_take_along_dim.shape
def _(x, indices, *, dim):
    return Spec(indices.shape, x.dtype)


@put_along_dim.shape
def _(g, indices, *, dim, shape):
    return Spec(shape, g.dtype)


_take_along_dim.grad(x=lambda g, _y, _x, indices, *, dim: put_along_dim(g, indices, dim=dim, shape=_x.shape))
put_along_dim.grad(g=lambda gg, _y, _g, indices, *, dim, shape: _take_along_dim(gg, indices, dim=dim))


def take_along_dim(x: Any, indices: Any, dim: int) -> Any:
    """``y[i][j][k] = x[i][indices[i][j][k]][k]`` for dim = 1, and so on; shapes agree except there."""
    if x.ndim == 0:
        return x
    if indices.dtype.kind not in "iu":
        raise TypeError(f"take_along_dim: indices must be integers, got {indices.dtype}")
    dim = axis_of("take_along_dim", dim, x.ndim)
    if indices.shape[:dim] != x.shape[:dim] or indices.shape[dim + 1 :] != x.shape[dim + 1 :]:
        raise ValueError(
            f"take_along_dim: indices of shape {indices.shape} and a tensor of shape {x.shape} must agree "
            f"except along dim {dim}"
        )
    return _take_along_dim(x, indices, dim=dim)


def gather(x: Any, dim: int, index: Any) -> Any:
    """PyTorch's name and argument order for :func:`take_along_dim`; ``index`` may be smaller elsewhere."""
    if x.ndim and index.ndim == x.ndim:
        axis = axis_of("gather", dim, x.ndim)
        window = tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(index.shape))
        x = getitem(x, index=window)
    return take_along_dim(x, index, dim)


# ---- kernels ----------------------------------------------------------------------------------------------

LOOKED_THROUGH = 64  # indices along the axis, up to which a thread looks for its own among all


def _rows(index: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of ``shape`` that ``index`` speaks of; those behind them it takes whole, as columns."""
    parts = index if isinstance(index, tuple) else (index,)
    return shape if any(part is Ellipsis for part in parts) else shape[: sum(map(_axes_used, parts))]


def _axes_used(part: Any) -> int:
    if part is None or isinstance(part, (bool, np.bool_)):
        return 0
    if isinstance(part, list):
        part = np.asarray(part)
    return part.ndim if getattr(part, "dtype", None) == np.bool_ else 1


def _is_advanced(g: Any, *, index: Any, shape: tuple[int, ...]) -> bool:
    return g.size > 0 and not is_basic(index)


def _has_columns(g: Any, *, index: Any, shape: tuple[int, ...]) -> bool:
    """Whether adding whole rows pays for numbering them."""
    return _is_advanced(g, index=index, shape=shape) and math.prod(shape[len(_rows(index, shape)) :]) >= 8


def _scatter(device: str, xp: Any, out: Any, g: Any, index: Any) -> None:
    """``out`` and ``g`` as matrices, and the rows of ``out`` that ``index`` points to as flat numbers."""
    axes = _rows(index, out.shape)
    rows = math.prod(axes)
    numbers = xp.arange(rows).reshape(axes)[index].reshape(-1)
    sum_rows(device, out.reshape(rows, -1), g.reshape(numbers.size, -1), numbers)


@scatter_index.kernel("cpu", name="by_columns", when=_has_columns)
def _(out, g, *, index, shape):
    """Each row is added as a vector, in the order of the index; threads divide the columns."""
    _scatter("cpu", np, out, g, index)


@scatter_index.kernel("cuda", "sim", name="sorted", dtypes="f4 f8 f2 bf16", when=_is_advanced)
def _(out, g, *, index, shape):
    """Positions sorted, and the segments of equal ones summed in their order: no atomics."""
    _scatter("cuda", cuda.array_module(out), out, g, index)


@scatter_index.kernel(
    "cpu", "cuda", "sim", name="moved", dtypes="f2 bf16", when=lambda g, *, index, shape: is_basic(index)
)
def _(out, g, *, index, shape):
    """A slice is written once: nothing is added, and so nothing computed in float32."""
    out[...] = 0
    out[index] = g


def _as_planes(array: Any, dim: int) -> Any:
    """(before ``dim``, along it, behind it)."""
    return array.reshape(math.prod(array.shape[:dim]), array.shape[dim], math.prod(array.shape[dim + 1 :]))


def _checked(indices: Any, size: int, dim: int) -> Any:
    """Indices as int64. On the simulator, one that is out of bounds is an error; a card gives NaN for it."""
    if isinstance(indices, np.ndarray) and (wrong := (indices < -size) | (indices >= size)).any():
        raise IndexError(
            f"index {indices[wrong][0]} is out of bounds for dim {dim}, which has {size} elements"
        )
    return indices.astype(np.int64, copy=False)


@_take_along_dim.kernel("cuda", "sim", name="take", when=lambda x, indices, **_: x.size and indices.size)
def _(out, x, indices, *, dim):
    """A thread for each element of the output."""
    picked = _as_planes(_checked(indices, x.shape[dim], dim), dim)
    cuda.gather.take(_as_planes(out, dim), _as_planes(x, dim), picked)


def _register_put(name: str, run: Any, when: Any) -> None:
    def kernel(out, g, indices, *, dim, shape):
        picked = _as_planes(_checked(indices, shape[dim], dim), dim)
        run(_as_planes(out, dim), _as_planes(g, dim), picked)

    kernel.__doc__ = run.__doc__
    dtypes = "f4 f8 f2 bf16" if name == "sorted" else "f4 f8"
    put_along_dim.kernel("cuda", "sim", name=name, dtypes=dtypes, when=when)(kernel)


def _has_elements(g: Any, indices: Any, *, dim: int, shape: tuple[int, ...]) -> bool:
    return g.size > 0 and math.prod(shape) > 0


def _is_short(g: Any, indices: Any, *, dim: int, shape: tuple[int, ...]) -> bool:
    return _has_elements(g, indices, dim=dim, shape=shape) and indices.shape[dim] <= LOOKED_THROUGH


_register_put("sorted", cuda.gather.put_sorted, _has_elements)
_register_put("walk", cuda.gather.put_walk, _is_short)
