"""Images at other places than their pixels: resized, turned, moved."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["as_dtype", "inverse_affine", "resize", "warp"]


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """``images`` (..., H, W) as (..., height, width), by linear interpolation; smaller ones are averaged.

    Each axis is a matrix product: a result is the mean of the pixels around it, weighted by a triangle whose
    half width is 1 pixel, or the pixels that one result covers.
    """
    if images.shape[-2:] == (height, width):
        return images
    rows = _triangles(images.shape[-2], height)
    columns = _triangles(images.shape[-1], width)
    return as_dtype(rows @ images.astype(np.float32) @ columns.T, images.dtype)


def _triangles(size: int, new_size: int) -> np.ndarray:
    """The weights (new_size, size) of the pixels of a line in each pixel of the new one."""
    scale = size / new_size
    centers = (np.arange(new_size) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distances, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def warp(image: np.ndarray, matrix: np.ndarray, fill: float, bilinear: bool) -> np.ndarray:
    """``image`` (C, H, W) through an affine map around its middle.

    Args:
        matrix: (2, 3); takes (x, y, 1) of a result, counted from the middle, to (x, y) in ``image``.
        fill: what is outside.
        bilinear: interpolate, rather than take the nearest pixel.
    """
    height, width = image.shape[-2:]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    y, x = np.mgrid[:height, :width]
    points = np.stack([x - middle[0], y - middle[1], np.ones_like(x, float)])
    x, y = np.tensordot(matrix, points, 1) + middle[:, None, None]
    if not bilinear:
        return _pixels(image, np.floor(y + 0.5).astype(int), np.floor(x + 0.5).astype(int), fill)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    mixed = sum(
        _pixels(image, top + i, left + j, fill) * (down if i else 1 - down) * (right if j else 1 - right)
        for i in (0, 1)
        for j in (0, 1)
    )
    return as_dtype(np.asarray(mixed), image.dtype)


def _pixels(image: np.ndarray, y: np.ndarray, x: np.ndarray, fill: float) -> np.ndarray:
    height, width = image.shape[-2:]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    found = image[:, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(inside, found, np.asarray(fill, image.dtype))


def inverse_affine(
    degrees: float, translate: tuple[float, float], scale: float, shear: tuple[float, float]
) -> np.ndarray:
    """The matrix for :func:`warp` that turns by ``degrees``, shears, scales, and moves by pixels."""
    angle, shear_x, shear_y = (math.radians(value) for value in (degrees, *shear))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    slant = np.array([[1, -math.tan(shear_x)], [0, 1]]) @ np.array([[1, 0], [-math.tan(shear_y), 1]])
    back = np.linalg.inv(scale * turn @ slant)
    return np.concatenate([back, -back @ np.array(translate)[:, None]], 1)


def as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``values`` as ``dtype``, integers rounded and limited to its range."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype, copy=False)
