"""The dropout layers."""

from __future__ import annotations

from minigrad.nn import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d"]


class _Dropout(Module):
    """What the layers share."""

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{type(self).__name__}: p must be a probability in [0, 1], got {p}")
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """In training, sets each element to zero with probability ``p`` and scales the others by 1 / (1 - p).

    In evaluation it returns its input. ``inplace`` allows the input to be overwritten, which minigrad has no
    use for. https://jmlr.org/papers/v15/srivastava14a.html
    """

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape."""
        return F.dropout(input, self.p, self.training)


class Dropout2d(_Dropout):
    """As :class:`Dropout`, for whole channels of (N, C, H, W) or (N, C, L): neighbouring pixels are so alike
    that dropping one alone hides little. https://arxiv.org/abs/1411.4280
    """

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape."""
        return F.dropout2d(input, self.p, self.training)


class Dropout1d(_Dropout):
    """As :class:`Dropout2d`, for (N, C, L) or (C, L)."""

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape."""
        return F.dropout1d(input, self.p, self.training)


class AlphaDropout(_Dropout):
    """As :class:`Dropout`, for networks of SELU: mean and variance stay. https://arxiv.org/abs/1706.02515

    Elements that are dropped take SELU's lowest value, and all are scaled and shifted.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Of the input's shape."""
        return F.alpha_dropout(input, self.p, self.training)
