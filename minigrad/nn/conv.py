"""The convolution layer."""

from __future__ import annotations

from typing import Any

from minigrad.creation import empty
from minigrad.nn import functional as F
from minigrad.nn.linear import reset_weight_and_bias
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops.windows import pair
from minigrad.tensor import Tensor

__all__ = ["Conv2d"]


class Conv2d(Module):
    """Two-dimensional convolution (cross-correlation) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels: of the images before and after.
        kernel_size: one number, or (height, width); so are ``stride`` and ``dilation``.
        padding: rows and columns of zeros on each side, or ``"valid"`` (none) or ``"same"`` (the output has
            the input's size; needs stride 1).
        groups: channels are split into so many groups that do not see one another.
        bias: whether a number is added to each output channel.
        padding_mode: ``"zeros"``, the only one there is.
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        weight: (out_channels, in_channels / groups, KH, KW), and
        bias: (out_channels,) or None; both start uniform in +-1 / sqrt(in_channels / groups KH KW).

    Raises:
        ValueError: the options do not fit together.
    """

    bias: Parameter | None

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
        super().__init__()
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"Conv2d: groups must be at least 1, got {groups!r}")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(channels, int) or channels < 0 or channels % groups:
                raise ValueError(
                    f"Conv2d: {name} must be an integer that {groups} groups divide, got {channels!r}"
                )
        if padding_mode != "zeros":
            raise ValueError(f"Conv2d: padding_mode must be 'zeros', got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = pair("Conv2d", "stride", stride, 1)
        self.dilation = pair("Conv2d", "dilation", dilation, 1)
        self.padding = self._checked_padding(padding)
        self.groups = groups
        self.padding_mode = padding_mode
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", Parameter(empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def _checked_padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int] | str:
        if not isinstance(padding, str):
            return pair("Conv2d", "padding", padding, 0)
        if padding not in ("valid", "same"):
            raise ValueError(f"Conv2d: padding is a number, a pair, 'valid' or 'same', got {padding!r}")
        if padding == "same" and self.stride != (1, 1):
            raise ValueError(f"Conv2d: padding 'same' needs stride 1, got {self.stride}")
        return padding

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        reset_weight_and_bias(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW); the N may be left out."""
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The arguments, those that have their defaults left out."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"
