"""Convolution and pooling in one dimension (N, C, L), as those of images of height 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.ops.adaptive_max_pool import adaptive_max_pool2d
from minigrad.ops.conv import conv2d, conv_transpose2d
from minigrad.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minigrad.ops.shape import squeeze, unsqueeze


def single(name: str, what: str, value: Any) -> int:
    """``value``, a number or a tuple of one, as a number."""
    values = (value,) if isinstance(value, (int, np.integer)) else value
    if not isinstance(values, (tuple, list)) or len(values) != 1:
        raise ValueError(f"{name}: {what} must be one number, got {value!r}")
    return int(values[0])


def _as_row(name: str, x: Any) -> Any:
    if x.ndim not in (2, 3):
        raise ValueError(f"{name}: expected (N, C, L) or (C, L), got shape {x.shape}")
    return unsqueeze(x, -2)


def _row(name: str, what: str, value: Any, still: int) -> Any:
    """An option for images, which along their height of 1 is ``still``."""
    return value if isinstance(value, str) else (still, single(name, what, value))


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """The cross-correlation of ``input`` (N, C, L) with ``weight`` (O, C / groups, K), plus ``bias``.

    The arguments are those of :func:`conv2d`, in one dimension; the N may be left out.
    """
    name = "conv1d"
    if weight.ndim != 3:
        raise ValueError(f"{name}: weight needs 3 dimensions (O, C / groups, K), got shape {weight.shape}")
    out = conv2d(
        _as_row(name, input),
        unsqueeze(weight, -2),
        bias,
        _row(name, "stride", stride, 1),
        _row(name, "padding", padding, 0),
        _row(name, "dilation", dilation, 1),
        groups,
    )
    return squeeze(out, -2)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The transpose of :func:`conv1d`, for ``input`` (N, C_in, L) and ``weight`` (C_in, C_out / groups, K).

    The arguments are those of :func:`conv_transpose2d`, in one dimension; the N may be left out.
    """
    name = "conv_transpose1d"
    if weight.ndim != 3:
        raise ValueError(f"{name}: weight needs 3 dimensions, got shape {weight.shape}")
    out = conv_transpose2d(
        _as_row(name, input),
        unsqueeze(weight, -2),
        bias,
        _row(name, "stride", stride, 1),
        _row(name, "padding", padding, 0),
        _row(name, "output_padding", output_padding, 0),
        groups,
        _row(name, "dilation", dilation, 1),
    )
    return squeeze(out, -2)


def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of ``input`` (N, C, L) or (C, L); see :func:`max_pool2d`."""
    name = "max_pool1d"
    pooled = max_pool2d(
        _as_row(name, input),
        _row(name, "kernel_size", kernel_size, 1),
        None if stride is None else _row(name, "stride", stride, 1),
        _row(name, "padding", padding, 0),
        _row(name, "dilation", dilation, 1),
        ceil_mode,
        return_indices,
    )
    return tuple(squeeze(part, -2) for part in pooled) if return_indices else squeeze(pooled, -2)


def avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window of ``input`` (N, C, L) or (C, L); see :func:`avg_pool2d`."""
    name = "avg_pool1d"
    pooled = avg_pool2d(
        _as_row(name, input),
        _row(name, "kernel_size", kernel_size, 1),
        None if stride is None else _row(name, "stride", stride, 1),
        _row(name, "padding", padding, 0),
        ceil_mode,
        count_include_pad,
    )
    return squeeze(pooled, -2)


def adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    """``input`` (N, C, L) or (C, L) averaged to ``output_size`` elements."""
    name = "adaptive_avg_pool1d"
    size = single(name, "output_size", output_size)
    return squeeze(adaptive_avg_pool2d(_as_row(name, input), (1, size)), -2)


def adaptive_max_pool1d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """The largest elements of ``output_size`` bins of ``input`` (N, C, L) or (C, L)."""
    name = "adaptive_max_pool1d"
    size = single(name, "output_size", output_size)
    pooled = adaptive_max_pool2d(_as_row(name, input), (1, size), return_indices)
    return tuple(squeeze(part, -2) for part in pooled) if return_indices else squeeze(pooled, -2)
