"""Adaptive max pooling, and max pooling undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.ops.elementwise import cast
from minigrad.ops.index import getitem
from minigrad.ops.order import max
from minigrad.ops.pool import adaptive_size, bins, is_single_image, max_pool2d
from minigrad.ops.scatter import scatter
from minigrad.ops.shape import permute, reshape
from minigrad.ops.windows import pair


def adaptive_max_pool2d(
    input: Any, output_size: int | tuple[int | None, int | None], return_indices: bool = False
) -> Any:
    """The largest element of each of as many bins as ``output_size`` says; None keeps a size.

    ``input`` is (N, C, H, W) or (C, H, W); ``return_indices`` adds the winners' positions in the flattened
    H x W plane, as int64. Bins that do not divide the image overlap, as those of adaptive_avg_pool2d.
    """
    name = "adaptive_max_pool2d"
    if is_single_image(name, input):
        pooled = adaptive_max_pool2d(input.unsqueeze(0), output_size, return_indices)
        return tuple(p.squeeze(0) for p in pooled) if return_indices else pooled.squeeze(0)
    size = adaptive_size(name, input, output_size)
    (height, width), (rows, columns) = input.shape[2:], size
    if height % rows == 0 and width % columns == 0:
        return max_pool2d(input, (height // rows, width // columns), return_indices=return_indices)
    in_rows, in_columns = _members(height, rows), _members(width, columns)
    # (N, C, rows, members, columns, members), and the members of a bin side by side.
    device = input.device
    windows = getitem(input, index=(slice(None), slice(None), device.from_numpy(in_rows)))
    windows = getitem(windows, index=(*(slice(None),) * 4, device.from_numpy(in_columns)))
    windows = permute(windows, (0, 1, 2, 4, 3, 5))
    members = in_rows.shape[1], in_columns.shape[1]
    values, winners = max(reshape(windows, (*windows.shape[:4], members[0] * members[1])), 4)
    if not return_indices:
        return values
    with device.active():
        xp, tap = device.xp, winners._array
        row = xp.asarray(in_rows)[xp.arange(rows)[:, None], tap // members[1]]
        column = xp.asarray(in_columns)[xp.arange(columns), tap % members[1]]
        return values, wrap(row * width + column, device)


def _members(size: int, count: int) -> np.ndarray:
    """(count, most members): the elements of each bin; short bins repeat their last one."""
    spans = bins(size, count)
    most = np.max([stop - start for start, stop in spans])
    return np.stack([np.minimum(start + np.arange(most), stop - 1) for start, stop in spans])


def max_unpool2d(
    input: Any,
    indices: Any,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    output_size: Sequence[int] | None = None,
) -> Any:
    """Zeros, with the elements of ``input`` where max_pool2d found them: its partial inverse.

    Args:
        input, indices: (N, C, H, W) or (C, H, W), what max_pool2d returned.
        kernel_size, stride, padding: of that pooling.
        output_size: the size of its input, of several that lead to one output; (OH, OW) or the whole shape.
    """
    name = "max_unpool2d"
    kernel = pair(name, "kernel_size", kernel_size, 1)
    steps = kernel if stride is None else pair(name, "stride", stride, 1)
    pads = pair(name, "padding", padding, 0)
    if input.ndim not in (3, 4) or input.shape != indices.shape:
        raise ValueError(f"{name}: input {input.shape} and indices {indices.shape} must be equal in shape")
    if output_size is None:
        axes = zip(input.shape[-2:], kernel, steps, pads, strict=True)
        height, width = ((n - 1) * s - 2 * p + k for n, k, s, p in axes)
    else:
        height, width = output_size[-2:]
    *batch, own_height, own_width = input.shape
    flat = (*batch, own_height * own_width)
    places = cast(reshape(indices, flat), dtype=np.dtype(np.int64))
    zeros = input.new_zeros(*batch, height * width)
    out = scatter(zeros, len(batch), places, reshape(input, flat))
    return reshape(out, (*batch, height, width))
