"""Pooling layers, for images (N, C, H, W) or (C, H, W), and for signals (N, C, L) or (C, L)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.nn import functional as F
from minigrad.nn.module import Module
from minigrad.ops.one_dimension import single
from minigrad.ops.windows import pair
from minigrad.tensor import Tensor

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool2d",
]


class _MaxPool(Module):
    """The options of windows, of one dimension or two."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        """All arguments but ``return_indices``."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool2d(_MaxPool):
    """The largest element of each window.

    Args:
        kernel_size: the window's size: one number, or (height, width), as the other arguments.
        stride: from window to window; the kernel's size by default.
        padding: at most half of the kernel; padding never wins.
        dilation: the distance between a window's elements.
        return_indices: return (values, the winners' positions in the flattened H x W plane).
        ceil_mode: let a last window hang over the border.
    """

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) to (N, C, OH, OW), or a pair of such."""
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(Module):
    """The mean of each window.

    Args:
        kernel_size, stride, padding, ceil_mode: as in :class:`MaxPool2d`.
        count_include_pad: count the padding's zeros in the mean.
        divisor_override: divide each window's sum by this number instead.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        """The windows' geometry."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _Adaptive(Module):
    """A size of the output, for layers of one dimension or two."""

    def __init__(self, output_size: int | tuple[int | None, int | None]):
        super().__init__()
        self.output_size = output_size

    def extra_repr(self) -> str:
        """The output's size."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool2d(_Adaptive):
    """Means of as many bins as it takes for the given output size.

    Args:
        output_size: one number, or (height, width); None keeps a size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, *output_size)."""
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(_Adaptive):
    """The largest elements of as many bins as it takes for the given output size.

    Args:
        output_size: one number, or (height, width); None keeps a size.
        return_indices: return (values, the winners' positions in the flattened H x W plane).
    """

    def __init__(self, output_size: int | tuple[int | None, int | None], return_indices: bool = False):
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) to (N, C, *output_size), or a pair of such."""
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class MaxUnpool2d(Module):
    """Zeros, with what max pooling kept at its old place; the arguments are those of that pooling."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.kernel_size = pair("MaxUnpool2d", "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("MaxUnpool2d", "stride", stride, 1)
        self.padding = pair("MaxUnpool2d", "padding", padding, 0)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """What MaxPool2d returned with ``return_indices``; ``output_size`` is that of its input."""
        return F.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        """The windows' geometry."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


# ---- one dimension ----------------------------------------------------------------------------------------


class MaxPool1d(_MaxPool):
    """:class:`MaxPool2d` along one axis, (N, C, L) to (N, C, OL)."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, L) to (N, C, OL), or a pair of such."""
        return F.max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool1d(Module):
    """The mean of each window along one axis.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad: as in :class:`AvgPool2d`.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] | None = None,
        padding: int | tuple[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__()
        name = "AvgPool1d"
        self.kernel_size = (single(name, "kernel_size", kernel_size),)
        self.stride = self.kernel_size if stride is None else (single(name, "stride", stride),)
        self.padding = (single(name, "padding", padding),)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) to (N, C, OL)."""
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )

    def extra_repr(self) -> str:
        """The windows' geometry."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool1d(_Adaptive):
    """Means of ``output_size`` bins along one axis."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) to (N, C, output_size)."""
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveMaxPool1d(_Adaptive):
    """The largest elements of ``output_size`` bins along one axis."""

    def __init__(self, output_size: int, return_indices: bool = False):
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """(N, C, L) to (N, C, output_size), or a pair of such."""
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)
