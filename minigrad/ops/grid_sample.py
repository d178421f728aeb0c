"""Images read where a grid says, and the grids of affine maps: https://arxiv.org/abs/1506.02025."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.ops.elementwise import abs, clamp, floor, remainder, round, where
from minigrad.ops.index import getitem
from minigrad.ops.matmul import matmul
from minigrad.ops.shape import permute, reshape, transpose

__all__ = ["affine_grid", "grid_sample"]


def affine_grid(theta: Any, size: Sequence[int], align_corners: bool | None = False) -> Any:
    """Where the pixels of images of ``size`` (N, C, H, W) are under the maps ``theta`` (N, 2, 3).

    Returns:
        (N, H, W, 2): x and y, from -1 to 1 between the outer edges of the outermost pixels, or with
        ``align_corners`` between their centres.
    """
    if theta.ndim != 3 or theta.shape[1:] != (2, 3) or len(size) != 4:
        raise ValueError(
            f"affine_grid: expected theta (N, 2, 3) and a size (N, C, H, W), got {theta.shape} and "
            f"{tuple(size)}"
        )
    samples, _, height, width = size
    xs, ys = (_centres(n, bool(align_corners)) for n in (width, height))
    points = np.stack([*np.meshgrid(xs, ys), np.ones((height, width))], -1).astype(theta.dtype)
    base = wrap(theta.device.from_numpy(points.reshape(1, height * width, 3)), theta.device)
    return reshape(matmul(base, transpose(theta, 1, 2)), (samples, height, width, 2))


def _centres(count: int, align_corners: bool) -> np.ndarray:
    if align_corners:
        return np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    return (np.arange(count) * 2 + 1) / count - 1


def grid_sample(
    input: Any,
    grid: Any,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = False,
) -> Any:
    """``input`` (N, C, H, W) at the places of ``grid`` (N, h, w, 2), x and y as of :func:`affine_grid`.

    Args:
        mode: ``"bilinear"``, between the four pixels nearby, or ``"nearest"``.
        padding_mode: what lies outside: ``"zeros"``; ``"border"``, the nearest pixel; ``"reflection"``, the
            image mirrored.
        align_corners: whether -1 and 1 are the centres of the outermost pixels, or their outer edges.

    Returns:
        (N, C, h, w), with gradients for both.
    """
    if input.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or grid.shape[0] != input.shape[0]:
        raise ValueError(
            f"grid_sample: expected (N, C, H, W) and a grid (N, h, w, 2), got {input.shape} and {grid.shape}"
        )
    if mode not in ("bilinear", "nearest") or padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"grid_sample: unknown mode {mode!r} or padding_mode {padding_mode!r}")
    places = []
    for axis, size in ((0, input.shape[3]), (1, input.shape[2])):
        x = grid[..., axis]
        x = (x + 1) * ((size - 1) / 2) if align_corners else (x + 1) * (size / 2) - 0.5
        if padding_mode == "reflection":
            x = _mirrored(x, size, bool(align_corners))
        places.append(clamp(x, 0, size - 1) if padding_mode != "zeros" else x)
    x, y = places
    if mode == "nearest":
        return permute(_pixels(input, round(y.detach()), round(x.detach())), (0, 3, 1, 2))
    left, top = floor(x.detach()), floor(y.detach())
    right, below = (x - left)[..., None], (y - top)[..., None]  # the shares of the pixels there
    upper = _pixels(input, top, left) * (1 - right) + _pixels(input, top, left + 1) * right
    lower = _pixels(input, top + 1, left) * (1 - right) + _pixels(input, top + 1, left + 1) * right
    return permute(upper * (1 - below) + lower * below, (0, 3, 1, 2))


def _mirrored(x: Any, size: int, align_corners: bool) -> Any:
    """Places outside as those inside that a mirror at the outermost centres, or edges, shows there."""
    low, span = (0.0, size - 1) if align_corners else (-0.5, size)
    if span == 0:
        return x * 0
    beyond = remainder(abs(x - low), 2 * span)
    return where(beyond > span, 2 * span - beyond, beyond) + low


def _pixels(input: Any, y: Any, x: Any) -> Any:
    """(N, h, w, C): the pixels at whole places, 0 outside."""
    height, width = input.shape[2:]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows, columns = clamp(y, 0, height - 1).long(), clamp(x, 0, width - 1).long()
    device = input.device
    with device.active():
        samples = device.xp.arange(input.shape[0]).reshape(-1, 1, 1)
        found = getitem(permute(input, (0, 2, 3, 1)), index=(samples, rows._array, columns._array))
    return where(inside[..., None], found, 0.0)
