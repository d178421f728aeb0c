"""Sliding windows over images, as convolution and pooling need them: sizes, checks, views."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

LARGEST_OPTION = 2**31 - 1
"""Strides, paddings and dilations are passed to kernels as C ints."""


def pair(name: str, what: str, value: Any, least: int) -> tuple[int, int]:
    """``value``, a number or a pair of numbers of at least ``least``, as a pair of ints."""
    if type(value) is int and least <= value <= LARGEST_OPTION:  # asked most, and quicker
        return value, value
    if (  # what layers keep
        type(value) is tuple
        and len(value) == 2
        and type(value[0]) is type(value[1]) is int
        and least <= min(value)
        and max(value) <= LARGEST_OPTION
    ):
        return value
    values = (value, value) if isinstance(value, (int, np.integer)) else value
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 2
        or not all(isinstance(v, (int, np.integer)) and least <= v <= LARGEST_OPTION for v in values)
    ):
        raise ValueError(
            f"{name}: {what} must be an int or a pair of ints, at least {least} and below 2^31, got {value!r}"
        )
    return int(values[0]), int(values[1])


@lru_cache(maxsize=1024)  # the same few sizes come in every step of a training
def output_size(
    name: str,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool = False,
) -> tuple[int, int]:
    """How many windows fit into the last two dimensions of ``shape``; ValueError where none does."""
    sizes = []
    for size, k, s, p, d in zip(shape[-2:], kernel, stride, padding, dilation, strict=True):
        if k < 1:
            raise ValueError(f"{name}: the kernel must have at least size 1, got {tuple(kernel)}")
        room = size + 2 * p - d * (k - 1) - 1
        count = room // s + 1
        # With ceil_mode a last window may hang over, if it starts inside the input or its left padding; it
        # may be the only one.
        if ceil_mode and room % s and count * s < size + p:
            count += 1
        if count < 1:
            raise ValueError(
                f"{name}: the kernel {tuple(kernel)} with dilation {dilation} is larger than the padded "
                f"input (shape {tuple(shape)}, padding {padding})"
            )
        sizes.append(count)
    return sizes[0], sizes[1]


def windows(
    xp: Any, x: Any, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple, fill: float = 0
) -> Any:
    """A view (N, C, OH, OW, KH, KW) of all windows of ``x`` padded with ``fill``."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    if ph or pw:
        x = xp.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    reach = dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1
    view = xp.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]
