"""Changing shapes between layers."""

from __future__ import annotations

from minigrad.nn.module import Module
from minigrad.ops.shape import flatten, unflatten
from minigrad.tensor import Tensor

__all__ = ["Flatten", "Unflatten"]


class Flatten(Module):
    """Makes the axes from ``start_dim`` to ``end_dim`` (included) one; by default all but the batch's."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """(N, a, b, ...) to (N, a b ...), a view where the input is contiguous."""
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The range of axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Makes the axis ``dim`` several, of sizes ``unflattened_size``; one of them may be -1."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]):
        super().__init__()
        self.dim = dim
        self.unflattened_size = unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        """(..., a b, ...) to (..., a, b, ...), a view where the input is contiguous."""
        return unflatten(input, self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        """The axis and its sizes."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
