"""Images and signals in another size: the nearest pixel, or a line or a cubic through those nearby.

Along each axis a tensor is indexed, up to four times. The axes are brought to the front for that, so that
whole rows are copied, and their gradients summed, at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.dtypes import is_floating, is_half
from minigrad.ops.index import getitem
from minigrad.ops.pool import adaptive_avg_pool2d
from minigrad.ops.shape import permute, squeeze, unsqueeze

LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""The linear mode's name, by the number of the tensor's dimensions."""


def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Any:
    """``input`` (N, C, L), (N, C, H, W) or (N, C, D, H, W) enlarged, or made smaller.

    Args:
        input: a floating tensor.
        size: of the output: one number for all axes, or one for each; or instead
        scale_factor: by which the input's sizes are multiplied, and the product rounded down.
        mode: ``"nearest"``, as PyTorch and OpenCV do it: floor(i in / out); ``"nearest-exact"``, by the
            centres of the pixels; ``"linear"``, ``"bilinear"`` and ``"trilinear"``, by the number of axes;
            ``"bicubic"``, for two axes; ``"area"``, the mean of what an output covers.
        align_corners: for the linear and cubic modes: whether the outermost pixels' centres fall on one
            another, or their outer edges (by default).
        recompute_scale_factor: take the ratio of the sizes for the scale, instead of ``scale_factor``.

    Raises:
        ValueError: the arguments do not fit together, or the output would be empty.
    """
    if input.ndim not in LINEAR:
        raise ValueError(f"interpolate: input needs 3 to 5 dimensions (N, C, ...), got shape {input.shape}")
    if not is_floating(input.dtype):
        raise TypeError(f"interpolate: expected a floating dtype, got {input.dtype}")
    modes = ("nearest", "nearest-exact", "area", LINEAR[input.ndim], *["bicubic"] * (input.ndim == 4))
    if mode not in modes:
        raise ValueError(
            f"interpolate: for an input of {input.ndim} dimensions mode is one of {', '.join(modes)}, "
            f"got {mode!r}"
        )
    between = {LINEAR[input.ndim]: _linear, "bicubic": _cubic}.get(mode)
    if align_corners is not None and between is None:
        raise ValueError(f"interpolate: align_corners is for the linear and cubic modes, not for {mode!r}")
    sizes, scales = _sizes(input.shape[2:], size, scale_factor)
    if math.prod((*input.shape[:2], *sizes)) * input.dtype.itemsize > sys.maxsize:
        raise ValueError(f"interpolate: an output of {tuple(sizes)} is too large for any memory")
    if recompute_scale_factor:
        scales = [None] * len(sizes)
    if mode == "area":
        return _area(input, sizes)
    # Weights of 16 bits would not add up to 1.
    wide = input.to(np.float32) if between is not None and is_half(input.dtype) else input
    moved = permute(wide, (*range(2, input.ndim), 0, 1))
    for axis, (out, scale) in enumerate(zip(sizes, scales, strict=True)):
        if between is not None:
            moved = between(moved, axis, out, scale, bool(align_corners))
        else:
            moved = _nearest(moved, axis, out, scale, 0.5 if mode == "nearest-exact" else 0.0)
    spatial = len(sizes)
    return permute(moved, (spatial, spatial + 1, *range(spatial))).to(input.dtype)


def _sizes(own: tuple[int, ...], size: Any, scale_factor: Any) -> tuple[list[int], list[float | None]]:
    """The output's sizes, and the scale of each axis if it was given."""
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    given = scale_factor if size is None else size
    values = [given] * len(own) if isinstance(given, (int, float, np.number)) else list(given)
    if len(values) != len(own):
        raise ValueError(f"interpolate: expected a number or {len(own)} of them, got {given}")
    sizes = [math.floor(n * v) if size is None else int(v) for n, v in zip(own, values, strict=True)]
    if min(sizes) < 1 or min(own) < 1:
        raise ValueError(f"interpolate: sizes must be at least 1, got {tuple(own)} to {tuple(sizes)}")
    return sizes, [float(v) if size is None else None for v in values]


def _nearest(x: Any, axis: int, out: int, scale: float | None, offset: float) -> Any:
    size = x.shape[axis]
    if out == size:
        return x
    # PyTorch computes this in float32; so do we, that the same pixels are chosen.
    step = np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(out)
    places = np.floor((np.arange(out, dtype=np.float32) + np.float32(offset)) * step).astype(np.int64)
    return _along(x, axis, np.minimum(places, size - 1))


def _linear(x: Any, axis: int, out: int, scale: float | None, align_corners: bool) -> Any:
    size = x.shape[axis]
    if out == size and (scale is None or scale == 1):
        return x
    places = np.maximum(_places(size, out, scale, align_corners), 0.0)
    low = np.minimum(places.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = _as_weight(places - low, x, axis)
    return _along(x, axis, low) * (1.0 - weight) + _along(x, axis, high) * weight


def _cubic(x: Any, axis: int, out: int, scale: float | None, align_corners: bool) -> Any:
    """The four pixels nearby, by Keys's cubic with a = -0.75; https://doi.org/10.1109/TASSP.1981.1163711."""
    size, a = x.shape[axis], -0.75
    if out == size and (scale is None or scale == 1):
        return x
    places = _places(size, out, scale, align_corners)
    low = np.floor(places)
    total = 0.0
    for k in range(-1, 3):
        d = np.abs(places - (low + k))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        pixels = _along(x, axis, np.clip(low + k, 0, size - 1).astype(np.int64))
        total = pixels * _as_weight(np.where(d <= 1, near, far), x, axis) + total
    return total


def _places(size: int, out: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Where the outputs' centres lie, counted in pixels of the input."""
    if align_corners:
        return np.arange(out) * ((size - 1) / (out - 1) if out > 1 else 0.0)
    return (np.arange(out) + 0.5) * (1.0 / scale if scale else size / out) - 0.5


def _as_weight(weight: np.ndarray, x: Any, axis: int) -> Any:
    """One weight for each output, as a tensor that broadcasts with ``x``."""
    share = weight.astype(x.dtype if x.dtype.kind == "f" else np.float32)
    return x.new_tensor(share.reshape(-1, *(1,) * (x.ndim - axis - 1)))


def _along(x: Any, axis: int, numbers: np.ndarray) -> Any:
    return getitem(x, index=(*(slice(None),) * axis, x.device.from_numpy(numbers)))


def _area(x: Any, sizes: Sequence[int]) -> Any:
    if x.ndim == 3:
        return squeeze(adaptive_avg_pool2d(unsqueeze(x, 2), (1, sizes[0])), 2)
    if x.ndim == 4:
        return adaptive_avg_pool2d(x, (sizes[0], sizes[1]))
    raise ValueError("interpolate: mode 'area' takes 3 or 4 dimensions")
