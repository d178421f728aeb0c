"""Images at other places than their pixels: resized, turned, moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["as_dtype", "inverse_affine", "resize", "triangles", "warp"]


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """``images`` (..., H, W) as (..., height, width), by linear interpolation; smaller ones are averaged.

    Each axis is a matrix product: a result is the mean of the pixels around it, weighted by a triangle whose
    half width is 1 pixel, or the pixels that one result covers.
    """
    if images.shape[-2:] == (height, width):
        return images
    rows, columns = (
        triangles(np, np.arange(size), np.arange(new_size), np.zeros(1), np.full(1, size))[0].astype("f4")
        for size, new_size in zip(images.shape[-2:], (height, width), strict=True)
    )
    return as_dtype(rows @ images.astype(np.float32) @ columns.T, images.dtype)


def triangles(xp: Any, pixels: Any, results: Any, first: Any, size: Any) -> Any:
    """The weights (N, R, P) of the pixels of lines in each pixel of their results.

    Args:
        xp: NumPy, or minigrad, whose the others are then.
        pixels, results: the numbers of pixels, 0 to P - 1 and 0 to R - 1.
        first, size: (N,), the part of each line that is resized.
    """
    first, size = first[:, None], size[:, None]
    scale = size / len(results)
    centers = (first + (results + 0.5) * scale)[..., None]
    distances = xp.abs(pixels + 0.5 - centers) / xp.maximum(scale, 1.0)[..., None]
    inside = (pixels >= first) & (pixels < first + size)
    weights = xp.where(inside[:, None], xp.maximum(1.0 - distances, 0.0), 0.0)
    return weights / weights.sum(-1)[..., None]


def warp(images: np.ndarray, matrices: np.ndarray, fill: float, bilinear: bool) -> np.ndarray:
    """``images`` (N, C, H, W), each through an affine map of its own around its middle.

    Args:
        matrices: (N, 2, 3); each takes (x, y, 1) of a result, counted from the middle, to (x, y) in its
            image.
        fill: what is outside.
        bilinear: interpolate, rather than take the nearest pixel.
    """
    N, C, height, width = images.shape
    # A border of what is outside, one pixel wide above and two below, is all that coordinates can reach once
    # they are limited to it: those of pixels [-1, height], each with its neighbour.
    widths = ((0, 0), (0, 0), (1, 2), (1, 2))
    padded = np.pad(images, widths, constant_values=np.asarray(fill, images.dtype))
    y, x = _sources(matrices, height, width)
    if not bilinear:
        y, x = np.floor(y + 0.5), np.floor(x + 0.5)
    top, left = np.floor(y), np.floor(x)
    stride = width + 3
    places = ((top + 1) * stride + (left + 1)).astype(np.intp)
    places += (np.arange(N) * (C * (height + 3) * stride))[:, None, None]
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    result = np.empty_like(images, order="C")
    for channel in range(C):
        pixels = padded.reshape(-1)[channel * (height + 3) * stride :]
        if bilinear:
            upper = _between(pixels[places], pixels[1:][places], right)
            lower = _between(pixels[stride:][places], pixels[stride + 1 :][places], right)
            result[:, channel] = as_dtype(_between(upper, lower, down), images.dtype)
        else:
            result[:, channel] = pixels[places]
    return result


def _sources(matrices: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """y and x (N, H, W) of where each pixel comes from, limited to one pixel outside of the image."""
    across = np.arange(width) - (width - 1) / 2
    down = np.arange(height)[:, None] - (height - 1) / 2
    m = matrices[..., None, None]
    x = m[:, 0, 0] * across + (m[:, 0, 1] * down + (m[:, 0, 2] + (width - 1) / 2))
    y = m[:, 1, 0] * across + (m[:, 1, 1] * down + (m[:, 1, 2] + (height - 1) / 2))
    return np.clip(y, -1, height, out=y), np.clip(x, -1, width, out=x)


def _between(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a where ``share`` is 0, b where it is 1."""
    return a * (1 - share) + b * share


def inverse_affine(
    xp: Any, degrees: Any, scale: Any, move_x: Any, move_y: Any, shear_x: Any, shear_y: Any
) -> Any:
    """The matrices (N, 2, 3) for :func:`warp` that turn, shear, scale, and move by whole numbers of pixels.

    All are (N,): arrays, of ``xp`` NumPy, or tensors, of ``xp`` minigrad. Angles are in degrees.
    """
    angle, slant_x, slant_y = (v * (math.pi / 180) for v in (degrees, shear_x, shear_y))
    cos, sin, x, y = xp.cos(angle), xp.sin(angle), xp.tan(slant_x), xp.tan(slant_y)
    # scale R S maps an image to its result: R turns it, S = [1 -x; 0 1] [1 0; -y 1] slants it before.
    # The inverse is [1 0; y 1] [1 x; 0 1] R' / scale.
    a, b = (cos - x * sin) / scale, (sin + x * cos) / scale
    c, d = y * a - sin / scale, y * b + cos / scale
    right, down = xp.round(move_x), xp.round(move_y)
    rows = [a, b, -(a * right + b * down), c, d, -(c * right + d * down)]
    return xp.stack(rows, 1).reshape(-1, 2, 3)


def as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``values`` as ``dtype``, integers rounded and limited to its range."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype, copy=False)
