"""Images whose channels come last in memory: arrays (N, C, H, W) with the strides of (N, H, W, C).

What a pixel has of all channels lies side by side, as the kernels of convolution on tensor cores read it.
"""

from __future__ import annotations

from typing import Any

NHWC = (0, 2, 3, 1)  # the axes of (N, C, H, W), in this order
NCHW = (0, 3, 1, 2)  # and back


def is_channels_last(array: Any) -> bool:
    """Whether a NumPy or CuPy array lies as (N, H, W, C) in C order, without gaps.

    With one channel, or one pixel, this is C order, too: the strides then tell which of the two was meant.
    """
    if array.ndim != 4:
        return False
    image, channel, row, pixel = array.strides
    if channel != array.itemsize:  # nearly all others
        return False
    N, C, H, W = array.shape
    return (
        pixel == C * channel
        and row == W * pixel
        and (image == H * row or N == 1)
        and (C > 1 or H * W > 1)
        and N * C * H * W > 0
    )


def nhwc(array: Any) -> Any:
    """(N, C, H, W) seen as (N, H, W, C), with axes of size 1 in front of fewer dimensions."""
    return (array if array.ndim == 4 else array[(None,) * (4 - array.ndim)]).transpose(NHWC)


def nchw(array: Any) -> Any:
    """(N, H, W, C) seen as (N, C, H, W)."""
    return array.transpose(NCHW)


def in_memory_order(array: Any) -> Any:
    """``array``, seen as (N, H, W, C) if it lies so: C-contiguous without a copy."""
    return nhwc(array) if is_channels_last(array) else array


def copied(array: Any, like: Any) -> Any:
    """A copy that lies channels last if ``like``, of the same shape, does, and else in C order."""
    return nchw(nhwc(array).copy(order="C")) if is_channels_last(like) else array.copy(order="C")
