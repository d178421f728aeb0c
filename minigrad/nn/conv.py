"""The convolution layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from minigrad.creation import empty
from minigrad.nn import functional as F
from minigrad.nn.linear import reset_weight_and_bias
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops.conv import transposed_size
from minigrad.ops.one_dimension import single
from minigrad.ops.windows import pair
from minigrad.tensor import Tensor

__all__ = ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"]


class _Convolution(Module):
    """What the layers share: their options, how their parameters start, and how they print."""

    axes: ClassVar[int] = 2
    weight: Parameter
    bias: Parameter | None
    padding: Any
    output_padding: tuple[int, ...] | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        dilation: Any,
        groups: int,
        padding_mode: str,
        modes: Sequence[str] = ("zeros",),
    ):
        super().__init__()
        name = type(self).__name__
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"{name}: groups must be at least 1, got {groups!r}")
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(channels, int) or channels < 0 or channels % groups:
                raise ValueError(
                    f"{name}: {argument} must be an integer that {groups} groups divide, got {channels!r}"
                )
        if padding_mode not in modes:
            allowed = " or ".join(map(repr, modes))
            raise ValueError(f"{name}: padding_mode must be {allowed}, got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.groups = groups
        self.padding_mode = padding_mode

    def _sizes(self, what: str, value: Any, least: int) -> tuple[int, ...]:
        """An option as one number for each axis."""
        name = type(self).__name__
        if self.axes == 2:
            return pair(name, what, value, least)
        size = single(name, what, value)
        return pair(name, what, size, least)[:1]

    def _make_parameters(self, channels: tuple[int, int], bias: bool, device: Any, dtype: Any) -> None:
        self.weight = Parameter(empty((*channels, *self.kernel_size), device=device, dtype=dtype))
        self.register_parameter(
            "bias", Parameter(empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        reset_weight_and_bias(self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments, those that have their defaults left out."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        zeros, ones = (0,) * self.axes, (1,) * self.axes
        if self.padding != zeros:
            text += f", padding={self.padding}"
        if self.dilation != ones:
            text += f", dilation={self.dilation}"
        if self.output_padding not in (None, zeros):
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text if self.padding_mode == "zeros" else text + f", padding_mode={self.padding_mode}"


PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Conv(_Convolution):
    """What the convolutions of signals and of images share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode, PADDING_MODES
        )
        self.padding = self._checked_padding(padding)
        self._make_parameters((out_channels, in_channels // groups), bias, device, dtype)

    def _checked_padding(self, padding: Any) -> tuple[int, ...] | str:
        if not isinstance(padding, str):
            return self._sizes("padding", padding, 0)
        name = type(self).__name__
        if padding not in ("valid", "same"):
            raise ValueError(f"{name}: padding is a number, a pair, 'valid' or 'same', got {padding!r}")
        if padding == "same" and self.stride != (1,) * self.axes:
            raise ValueError(f"{name}: padding 'same' needs stride 1, got {self.stride}")
        return padding

    def _widths(self) -> list[int]:
        """The borders that F.pad is to make for a padding mode: (before, after) of the last axis first."""
        if self.padding == "valid":
            return [0] * (2 * self.axes)
        if self.padding == "same":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return [width for r in reach[::-1] for width in (r // 2, r - r // 2)]
        return [width for p in self.padding[::-1] for width in (p, p)]

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW); the N may be left out."""
        return self.convolve(F.conv2d if self.axes == 2 else F.conv1d, input)

    def convolve(self, convolution: Callable, input: Tensor) -> Tensor:
        """``convolution``, which takes the arguments of F.conv2d, of ``input`` and the parameters."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._widths(), self.padding_mode), 0
        return convolution(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(_Conv):
    """Two-dimensional convolution (cross-correlation) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels: of the images before and after.
        kernel_size: one number, or (height, width); so are ``stride`` and ``dilation``.
        padding: rows and columns of zeros on each side, or ``"valid"`` (none) or ``"same"`` (the output has
            the input's size; needs stride 1).
        groups: channels are split into so many groups that do not see one another.
        bias: whether a number is added to each output channel.
        padding_mode: what is around the image: ``"zeros"``, or as the modes of F.pad ``"reflect"``,
            ``"replicate"`` or ``"circular"``.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight: (out_channels, in_channels / groups, KH, KW), and
        bias: (out_channels,) or None; both start uniform in +-1 / sqrt(in_channels / groups KH KW).

    Raises:
        ValueError: the options do not fit together.
    """


class Conv1d(_Conv):
    """One-dimensional convolution over signals (N, in_channels, L).

    The arguments are those of :class:`Conv2d`, as one number each, and so are the attributes: the weight has
    the shape (out_channels, in_channels / groups, K).
    """

    axes = 1


class _ConvTranspose(_Convolution):
    """What the transposes share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode)
        self.padding = self._sizes("padding", padding, 0)
        self.output_padding = self._sizes("output_padding", output_padding, 0)
        self._make_parameters((in_channels, out_channels // groups), bias, device, dtype)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW); the N may be left out.

        ``output_size``, (OH, OW) or the whole shape, takes the place of ``output_padding``: of the sizes
        that a convolution with these options makes (H, W), the one to go back to.
        """
        convolution: Any = F.conv_transpose2d if self.axes == 2 else F.conv_transpose1d
        return convolution(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding if output_size is None else self._output_padding(input, output_size),
            self.groups,
            self.dilation,
        )

    def _output_padding(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """The output padding that leads to ``output_size``."""
        name, axes = type(self).__name__, self.axes
        if len(output_size) not in (axes, input.ndim):
            raise ValueError(
                f"{name}: output_size must have {axes} or {input.ndim} elements, got {tuple(output_size)}"
            )
        wanted = tuple(output_size[-axes:])
        least = transposed_size(input.shape, self.kernel_size, self.stride, self.padding, self.dilation)
        extra = tuple(w - n for w, n in zip(wanted, least, strict=True))
        if any(not 0 <= e < s for e, s in zip(extra, self.stride, strict=True)):
            most = tuple(n + s - 1 for n, s in zip(least, self.stride, strict=True))
            raise ValueError(
                f"{name}: output_size must be from {least} to {most} for an input of shape {input.shape}, "
                f"got {wanted}"
            )
        return extra


class ConvTranspose2d(_ConvTranspose):
    """The transpose of a convolution, which enlarges images (N, in_channels, H, W) by its stride.

    Args:
        in_channels, out_channels: of the images before and after.
        kernel_size: one number, or (height, width); so are the options that follow.
        stride: how far apart neighbouring pixels of the input are in the output.
        padding: rows and columns cut off on each side of the output.
        output_padding: rows and columns added at the bottom and on the right.
        groups: channels are split into so many groups that do not see one another.
        bias: whether a number is added to each output channel.
        dilation: how far apart neighbouring weights are in the output.
        padding_mode: ``"zeros"``, the only one there is.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight: (in_channels, out_channels / groups, KH, KW), and
        bias: (out_channels,) or None; both start uniform in +-1 / sqrt(out_channels / groups KH KW).

    Raises:
        ValueError: the options do not fit together.
    """


class ConvTranspose1d(_ConvTranspose):
    """The transpose of :class:`Conv1d`, which enlarges signals (N, in_channels, L) by its stride.

    The arguments are those of :class:`ConvTranspose2d`, as one number each, and so are the attributes.
    """

    axes = 1
