"""Layers that work along one axis: softmax and its relatives, and GLU."""

from __future__ import annotations

from minigrad.nn import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["GLU", "LogSoftmax", "Softmax", "Softmax2d", "Softmin"]


class _AlongDim(Module):
    """A function along the axis ``dim``."""

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """exp(x) / sum(exp(x)) over ``dim``"""

    def forward(self, input: Tensor) -> Tensor:
        """Numbers that add up to 1 along ``dim``."""
        return F.softmax(input, self.dim)


class LogSoftmax(_AlongDim):
    """The logarithm of the softmax over ``dim``"""

    def forward(self, input: Tensor) -> Tensor:
        """Log-probabilities along ``dim``."""
        return F.log_softmax(input, self.dim)


class Softmin(_AlongDim):
    """The softmax of -x over ``dim``"""

    def forward(self, input: Tensor) -> Tensor:
        """Numbers that add up to 1 along ``dim``."""
        return F.softmin(input, self.dim)


class Softmax2d(Module):
    """The softmax over the channels of images (N, C, H, W) or (C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Numbers that add up to 1 at each pixel."""
        if input.ndim not in (3, 4):
            raise ValueError(f"Softmax2d: expected (N, C, H, W) or (C, H, W), got shape {input.shape}")
        return F.softmax(input, -3)


class GLU(Module):
    """a sigmoid(b), with a and b the halves along ``dim``; https://arxiv.org/abs/1612.08083"""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Half as large along ``dim``."""
        return F.glu(input, self.dim)

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"
