"""The norms of weights that :mod:`~minigrad.nn.utils.parametrizations` and its older forms set."""

from __future__ import annotations

from minigrad.autograd import no_grad
from minigrad.creation import randn
from minigrad.nn.conv import ConvTranspose1d, ConvTranspose2d
from minigrad.nn.functional import normalize
from minigrad.nn.module import Module
from minigrad.ops.matmul import dot, mv
from minigrad.ops.shape import movedim
from minigrad.ops.squares import norm
from minigrad.tensor import Tensor

__all__ = [
    "as_matrix",
    "default_dim",
    "norm_except",
    "random_directions",
    "turn",
    "with_norm",
    "with_unit_norm",
]


def norm_except(v: Tensor, dim: int | None) -> Tensor:
    """The 2-norm over all dimensions but ``dim``, of size 1 now; over all if ``dim`` is None or -1."""
    if dim is None or dim == -1:
        return norm(v)
    if not -v.ndim <= dim < v.ndim:
        raise IndexError(f"weight_norm: dim {dim} is out of range for a weight of shape {v.shape}")
    others = tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    return norm(v, 2, others, keepdim=True) if others else abs(v)


def with_norm(v: Tensor, g: Tensor, dim: int | None) -> Tensor:
    """``v`` with the norm ``g``: see :func:`norm_except`."""
    return v * (g / norm_except(v, dim))


def default_dim(module: Module) -> int:
    """The dimension of a layer's outputs in its weight."""
    return 1 if isinstance(module, (ConvTranspose1d, ConvTranspose2d)) else 0


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """``weight`` with ``dim`` as rows, and all else as columns."""
    return movedim(weight, dim, 0).reshape(weight.shape[dim], -1)


def random_directions(matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Random vectors of length 1, of as many elements as ``matrix`` has rows, and columns."""
    drawn = (randn(size, dtype=matrix.dtype, device=matrix.device) for size in matrix.shape)
    u, v = (normalize(vector, dim=0, eps=eps) for vector in drawn)
    return u, v


def turn(vector: Tensor, towards: Tensor, eps: float) -> None:
    """Set ``vector``, in place, to the direction ``towards``: half a step of the power method."""
    with no_grad():
        vector.copy_(normalize(towards.detach(), dim=0, eps=eps))


def with_unit_norm(weight: Tensor, dim: int, u: Tensor, v: Tensor) -> Tensor:
    """``weight`` divided by its largest singular value, of the singular vectors ``u`` and ``v``."""
    return weight / dot(u.clone(), mv(as_matrix(weight, dim), v.clone()))
