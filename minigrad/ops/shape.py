"""Ops that rearrange: most are views, which share their input's memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.graph import LARGE, Variable
from minigrad.kernels import cpu, cuda
from minigrad.kernels.channels_last import is_channels_last
from minigrad.kernels.cpu import memory, small
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op
from minigrad.ops.numpy_names import renamed


def axis_of(name: str, dim: int, ndim: int) -> int:
    """``dim``, in [-ndim, ndim), as an axis in [0, ndim); IndexError or TypeError name the op otherwise."""
    if not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{name}: dim must be an integer, got {dim!r:.60}")
    if not -ndim <= dim < ndim:
        raise IndexError(f"{name}: dim {dim} is out of range for a tensor of {ndim} dimensions")
    return int(dim) % ndim


@op(name="reshape", view=True, ops_alone=True)
def _reshape(xp, x, *, shape):
    return x.reshape(shape)


_reshape.grad(x=lambda g, _y, _x, *, shape: (reshape if isinstance(g, Variable) else reshaped)(g, _x.shape))


def reshape(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` in another shape; one size may be -1. A view where the memory's layout allows, else a copy."""
    shape = tuple(shape)
    size = x._array.size
    if -1 in shape:
        known = -math.prod(shape)
        fits = shape.count(-1) == 1 and known > 0 and size % known == 0
    else:
        fits = math.prod(shape) == size
    if not fits or min(shape, default=0) < -1:
        raise ValueError(f"reshape: {size} elements of shape {x.shape} do not fit shape {shape}")
    if _is_large_view(x._array) and not _has_view(x._array, shape):
        x = contiguous(x)
    return _reshape(x, shape=shape)


def _is_large_view(array: Any) -> bool:
    """Whether a copy in C order is best left to the kernel."""
    return array.size >= LARGE and isinstance(array, np.ndarray) and not array.flags.c_contiguous


def _has_view(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the array's memory can be seen in another shape."""
    try:
        array.reshape(shape, copy=False)
    except ValueError:
        return False
    except TypeError:  # NumPy 2.0, which has to copy to tell
        return np.may_share_memory(array.reshape(shape), array)
    return True


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """As :func:`reshape`, for the arrays of kernels."""
    copied = _is_large_view(array) and array.dtype.char in "fd" and array.flags.aligned
    if copied and not _has_view(array, shape):
        in_order = memory.empty(array.shape, array.dtype)
        cpu.elementwise.copy(in_order, array, get_num_threads())
        array = in_order
    return array.reshape(shape)


@op(name="permute", view=True, ops_alone=True)
def _permute(xp, x, *, dims):
    return x.transpose(dims)


def _inverse(dims: tuple[int, ...]) -> tuple[int, ...]:
    inverse = [0] * len(dims)
    for i, d in enumerate(dims):
        inverse[d] = i
    return tuple(inverse)


_permute.grad(x=lambda g, _y, _x, *, dims: _permute(g, dims=_inverse(dims)))


def permute(x: Any, dims: tuple[int, ...]) -> Any:
    """``x`` with its axes in the order ``dims``: a view."""
    ndim = x.ndim
    if sorted(d % ndim if -ndim <= d < ndim else d for d in dims) != list(range(ndim)):
        raise ValueError(f"permute: {tuple(dims)} is not an order of the {ndim} axes of shape {x.shape}")
    return _permute(x, dims=tuple(d % ndim for d in dims))


def transpose(x: Any, dim0: int, dim1: int) -> Any:
    """``x`` with two axes exchanged: a view."""
    dims = list(range(x.ndim))
    first, second = axis_of("transpose", dim0, x.ndim), axis_of("transpose", dim1, x.ndim)
    dims[first], dims[second] = second, first
    return _permute(x, dims=tuple(dims))


def movedim(x: Any, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Any:
    """``x`` with the axes ``source`` moved to ``destination``, the others in their order: a view."""
    from minigrad.ops.reduce import normalize_dim

    pairs = [(s,) if isinstance(s, int) else tuple(s) for s in (source, destination)]
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(f"movedim: source {source} and destination {destination} differ in length")
    for dims in pairs:
        normalize_dim("movedim", dims, x.ndim)
    moved = {d % x.ndim: s % x.ndim for s, d in zip(*pairs, strict=True)}
    others = (axis for axis in range(x.ndim) if axis not in moved.values())
    return _permute(x, dims=tuple(moved[axis] if axis in moved else next(others) for axis in range(x.ndim)))


@op(name="broadcast_to", view=True)
def _broadcast_to(xp, x, *, shape):
    return xp.broadcast_to(x, shape)


_broadcast_to.direct = small.stretch
_broadcast_to.grad(x=lambda g, _y, _x, *, shape: g)  # the engine undoes the broadcast


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` repeated to ``shape`` without a copy: a read-only view with zero strides."""
    shape = tuple(shape)
    own = x.shape
    if len(shape) < len(own) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"broadcast_to: shape {own} does not broadcast to {shape}")
    return x if own == shape else _broadcast_to(x, shape=shape)


def expand(x: Any, sizes: tuple[int, ...]) -> Any:
    """As :func:`broadcast_to`, where -1 keeps an axis."""
    extra = len(sizes) - x.ndim
    return broadcast_to(
        x, tuple(x.shape[i - extra] if s == -1 and i >= extra else s for i, s in enumerate(sizes))
    )


def squeeze(x: Any, dim: int | tuple[int, ...] | None = None, **names: Any) -> Any:
    """``x`` without its axes of size 1, or without those of ``dim`` that have size 1."""
    if names:
        return renamed(squeeze, names, x=x, dim=dim)
    dims = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
    for d in dims:
        if not -max(x.ndim, 1) <= d < max(x.ndim, 1):
            raise IndexError(f"squeeze: dim {d} is out of range for a tensor of {x.ndim} dimensions")
    drop = {d % x.ndim for d in dims} if x.ndim else set()
    return _reshape(x, shape=tuple(s for i, s in enumerate(x.shape) if not (i in drop and s == 1)))


def unsqueeze(x: Any, dim: Any = None, **names: Any) -> Any:
    """``x`` with a new axis of size 1 at ``dim``."""
    if names:
        return renamed(unsqueeze, names, x=x, dim=dim)
    if dim is None:
        raise TypeError("unsqueeze: dim is missing")
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise IndexError(f"unsqueeze: dim {dim} is out of range for a tensor of {x.ndim} dimensions")
    at = dim % (x.ndim + 1)
    return _reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


def unflatten(x: Any, dim: int, sizes: tuple[int, ...]) -> Any:
    """``x`` with the axis ``dim`` made several, of ``sizes``; one of them may be -1."""
    at, sizes = axis_of("unflatten", dim, x.ndim), tuple(sizes)
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes = tuple(x.shape[at] // max(known, 1) if n == -1 else n for n in sizes)
    if math.prod(sizes) != x.shape[at] or min(sizes, default=0) < 0:
        raise ValueError(f"unflatten: sizes {sizes} do not multiply to {x.shape[at]}, the size of dim {dim}")
    return _reshape(x, shape=(*x.shape[:at], *sizes, *x.shape[at + 1 :]))


def ravel(x: Any) -> Any:
    """``x`` as a vector: a view where the memory's layout allows, else a copy."""
    return reshape(x, (x.numel(),))


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """``x`` with the axes from ``start_dim`` to ``end_dim`` (included) made one."""
    if x.ndim == 0:
        return _reshape(x, shape=(1,))
    start, end = axis_of("flatten", start_dim, x.ndim), axis_of("flatten", end_dim, x.ndim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} is after end_dim {end_dim}")
    middle = math.prod(x.shape[start : end + 1])
    return _reshape(x, shape=(*x.shape[:start], middle, *x.shape[end + 1 :]))


def repeat(x: Any, sizes: tuple[int, ...]) -> Any:
    """``x`` repeated ``sizes[i]`` times along axis i, as a copy; extra sizes put new axes in front."""
    if len(sizes) < x.ndim or any(n < 0 for n in sizes):
        raise ValueError(f"repeat: {tuple(sizes)} is no count for each axis of shape {x.shape}")
    own = (1,) * (len(sizes) - x.ndim) + x.shape
    rows = reshape(x, tuple(n for size in own for n in (1, size)))
    stretched = broadcast_to(rows, tuple(n for pair in zip(sizes, own, strict=True) for n in pair))
    return reshape(contiguous(stretched), tuple(n * size for n, size in zip(sizes, own, strict=True)))


def tile(x: Any, dims: Any) -> Any:
    """``x`` repeated ``dims[i]`` times along axis i, as a copy; missing counts in front are 1."""
    return repeat(x, (1,) * (x.ndim - len(dims)) + tuple(dims))


@op(name="flip", moves=True)
def _flip(xp, x, *, dims):
    return xp.flip(x, dims).copy()


_flip.grad(x=lambda g, _y, _x, *, dims: _flip(g, dims=dims))


def flip(x: Any, dims: tuple[int, ...]) -> Any:
    """``x`` with the order along ``dims`` reversed: a copy, as in PyTorch, which has no negative strides."""
    from minigrad.ops.reduce import normalize_dim

    return _flip(x, dims=normalize_dim("flip", dims, x.ndim))


@op(view=True)
def contiguous(xp, x):
    """``x`` in C order: itself if it is, else a copy."""
    return x.view() if x.flags.c_contiguous else x.copy()


contiguous.grad(x=lambda g, _y, _x: g)


@op(name="to_nhwc", moves=True)
def _to_nhwc(xp, x):
    return x.transpose(0, 2, 3, 1).copy(order="C")


_to_nhwc.grad(x=lambda g, _y, _x: permute(g, (0, 3, 1, 2)))


@_to_nhwc.shape
def _(x):
    n, c, h, w = x.shape
    return n, h, w, c


def to_channels_last(x: Any) -> Any:
    """Images (N, C, H, W), stored as (N, H, W, C)."""
    if x.ndim != 4:
        raise ValueError(f"channels_last: needs 4 dimensions (N, C, H, W), got shape {x.shape}")
    n, c, h, w = x.shape
    same = x._array.flags.c_contiguous and (c == 1 or h * w == 1)  # memory in either format
    return permute(_reshape(x, shape=(n, h, w, c)) if same else _to_nhwc(x), (0, 3, 1, 2))


def laid_out_as(x: Any, like: Any) -> Any:
    """``x``, stored channels last if ``like`` is."""
    return to_channels_last(x) if is_channels_last(like._array) and not is_channels_last(x._array) else x


@_to_nhwc.kernel("cuda", "sim", name="tiled", dtypes="f4 f8 f2 bf16", when=lambda x: x.size > 0)
def _(out, x):
    """Tiles by way of shared memory: both arrays are accessed in runs of neighbours."""
    n, c, h, w = x.shape
    cuda.transpose.transpose(out.reshape(n, h * w, c), x.reshape(n, c, h * w))


@contiguous.kernel("cpu", name="tiled", dtypes="f4 f8 i4 i8 ?", layout="strided", when=_is_large_view)
def _(out, x):
    """Transposed in tiles that stay in cache, by several threads."""
    cpu.elementwise.copy(out, x, get_num_threads())
