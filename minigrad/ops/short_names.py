"""Further functions of PyTorch, each a line or two of other ops."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from minigrad.autograd import wrap
from minigrad.ops import combining, diagonal, elementwise, reduce, shape, squares

__all__ = [
    "add",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_tensors",
    "clamp_max",
    "clamp_min",
    "deg2rad",
    "detach",
    "diagflat",
    "dist",
    "dsplit",
    "fliplr",
    "flipud",
    "heaviside",
    "hsplit",
    "is_floating_point",
    "isin",
    "numel",
    "rad2deg",
    "round",
    "std_mean",
    "sub",
    "svd",
    "t",
    "var_mean",
    "vsplit",
]


def add(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """input + alpha other"""
    return elementwise.add(input, other if alpha == 1 else other * alpha)


def sub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """input - alpha other"""
    return elementwise.sub(input, other if alpha == 1 else other * alpha)


def round(input: Any, *, decimals: int = 0) -> Any:
    """Each element as the nearest number with so many decimals, the even one of two."""
    if decimals == 0:
        return elementwise.round(input)
    return elementwise.round(input * 10.0**decimals) / 10.0**decimals


def deg2rad(input: Any) -> Any:
    """Degrees as radians."""
    return input * (math.pi / 180)


def rad2deg(input: Any) -> Any:
    """Radians as degrees."""
    return input * (180 / math.pi)


def heaviside(input: Any, values: Any) -> Any:
    """0 below 0, 1 above, and ``values`` at 0."""
    return elementwise.where(input == 0, values, elementwise.cast(input > 0, dtype=input.dtype))


def clamp_min(input: Any, min: Any) -> Any:
    """Each element at least ``min``."""
    return elementwise.clamp(input, min=min)


def clamp_max(input: Any, max: Any) -> Any:
    """Each element at most ``max``."""
    return elementwise.clamp(input, max=max)


def detach(input: Any) -> Any:
    """The same memory, outside the graph."""
    return input.detach()


def numel(input: Any) -> int:
    """The number of elements."""
    return input.numel()


def is_floating_point(input: Any) -> bool:
    """Whether the dtype is a floating one."""
    return input.is_floating_point()


def t(input: Any) -> Any:
    """The matrix transposed; what has fewer dimensions, as it is."""
    return input if input.ndim < 2 else input.T


def dist(input: Any, other: Any, p: float = 2) -> Any:
    """The p-norm of ``input`` - ``other``."""
    return squares.norm(input - other, p)


def var_mean(input: Any, dim: Any = None, *, correction: int = 1, keepdim: bool = False) -> tuple:
    """(variance, mean) over ``dim``, or over all."""
    options = {"dim": dim, "keepdim": keepdim}
    return squares.var(input, correction=correction, **options), reduce.mean(input, **options)


def std_mean(input: Any, dim: Any = None, *, correction: int = 1, keepdim: bool = False) -> tuple:
    """(standard deviation, mean) over ``dim``, or over all."""
    options = {"dim": dim, "keepdim": keepdim}
    return squares.std(input, correction=correction, **options), reduce.mean(input, **options)


def flipud(input: Any) -> Any:
    """With the order along the first dimension reversed."""
    return shape.flip(input, (0,))


def fliplr(input: Any) -> Any:
    """With the order along the second dimension reversed."""
    return shape.flip(input, (1,))


def vsplit(input: Any, indices_or_sections: Any) -> tuple:
    """:func:`minigrad.tensor_split` along the first dimension."""
    return combining.tensor_split(input, indices_or_sections, 0)


def hsplit(input: Any, indices_or_sections: Any) -> tuple:
    """:func:`minigrad.tensor_split` along the second dimension; a vector, along its only one."""
    return combining.tensor_split(input, indices_or_sections, min(input.ndim - 1, 1))


def dsplit(input: Any, indices_or_sections: Any) -> tuple:
    """:func:`minigrad.tensor_split` along the third dimension."""
    return combining.tensor_split(input, indices_or_sections, 2)


def diagflat(input: Any, offset: int = 0) -> Any:
    """The square matrix with all of ``input`` on a diagonal."""
    return diagonal.diag(input.reshape(input.numel()), offset)


def svd(input: Any, some: bool = True) -> SVD:
    """(U, S, V) with input = U diag(S) V^T: an older form of :func:`minigrad.linalg.svd`, which gives V^T."""
    u, s, vh = import_module("minigrad.linalg").svd(input, not some)
    return SVD(u, s, vh.mT)


class SVD(NamedTuple):
    """What :func:`svd` returns."""

    U: Any
    S: Any
    V: Any


def broadcast_tensors(*tensors: Any) -> tuple:
    """``tensors``, each as a view of the shape that they broadcast to."""
    common = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    return tuple(shape.broadcast_to(tensor, common) for tensor in tensors)


def atleast_1d(input: Any) -> Any:
    """With one dimension, if it has none."""
    return input.reshape(1) if input.ndim == 0 else input


def atleast_2d(input: Any) -> Any:
    """With two dimensions, if it has fewer: new ones in front."""
    return input.reshape(1, input.numel()) if input.ndim < 2 else input


def atleast_3d(input: Any) -> Any:
    """With three dimensions, if it has fewer: a matrix gets one behind, a vector one on each side."""
    return input if input.ndim > 2 else atleast_2d(input).unsqueeze(-1)


def isin(elements: Any, test_elements: Any, *, invert: bool = False) -> Any:
    """Whether each element is one of ``test_elements``, a tensor; with ``invert``, whether it is not."""
    device = elements.device
    with device.active():
        found = device.xp.isin(elements._array, test_elements._array, invert=invert)
    return wrap(found, device)
