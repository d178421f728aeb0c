"""The op resample: images seen through affine maps. On a card, random crops and turns are made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dispatch import Spec
from minigrad.kernels import cuda
from minigrad.op import op

BORDERS = cuda.resample.BORDERS
DTYPES = np.dtype("u1"), np.dtype("f4"), np.dtype("f8")


@op(differentiable=False)
def resample(xp, images, matrices, *, size, border="constant", fill=0.0, bilinear=False):
    """``images`` (N, C, H, W), each through its own of the ``matrices`` (N, 2, 3): (N, C, *size).

    A matrix takes (x, y, 1) of a result, counted from its middle, to (x, y) in the image, counted from the
    middle of that. Between pixels is the nearest one, or what is interpolated from the four around. Outside
    is a border of ``BORDERS``, as :func:`numpy.pad` has them; a constant one is made of ``fill``.
    """
    (rows, columns), (height, width) = images.shape[2:], size
    x, y = xp.arange(width) - (width - 1) / 2, xp.arange(height)[:, None] - (height - 1) / 2
    m = matrices[:, :, :, None, None]
    across = m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] + (columns - 1) / 2
    down = m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] + (rows - 1) / 2
    left, top = (xp.floor(place if bilinear else place + 0.5) for place in (across, down))
    numbers, last = xp.arange(len(images))[:, None, None], images.transpose(0, 2, 3, 1)

    def pixels(row, column):
        row, has_row = _found(xp, row, rows, border)
        column, has_column = _found(xp, column, columns, border)
        return xp.where((has_row & has_column)[..., None], last[numbers, row, column], fill)

    if bilinear:
        right, below = (across - left)[..., None], (down - top)[..., None]
        upper = pixels(top, left) * (1 - right) + pixels(top, left + 1) * right
        lower = pixels(top + 1, left) * (1 - right) + pixels(top + 1, left + 1) * right
        result = upper * (1 - below) + lower * below
    else:
        result = pixels(top, left)
    if images.dtype.kind == "u":
        result = xp.clip(xp.rint(result), 0, 255)
    return result.transpose(0, 3, 1, 2).astype(images.dtype)


def _found(xp: Any, place: Any, count: int, border: str) -> tuple[Any, Any]:
    """Where whole places are in a line of ``count`` pixels, and whether they are there at all."""
    place = place.astype(int)
    if border in ("reflect", "symmetric") and count > 1:
        ends = border == "symmetric"  # mirrors at the outer edges: the outermost pixels come twice
        period = 2 * count - 2 * (not ends)
        place = place % period
        place = xp.where(place < count, place, period - place - ends)
    inside = xp.clip(place, 0, count - 1)
    return inside, place == inside if border == "constant" else place == place


@resample.shape
def _(images, matrices, *, size, border, fill, bilinear):
    if images.ndim != 4 or matrices.shape != (len(images), 2, 3):
        raise ValueError(
            f"resample: expected images (N, C, H, W) and matrices (N, 2, 3), got {images.shape} and "
            f"{matrices.shape}"
        )
    if images.dtype not in DTYPES or (matrices.dtype == DTYPES[-1]) != (images.dtype == DTYPES[-1]):
        raise TypeError(
            "resample: expected images of uint8 or float32 with matrices of float32, or all of float64, got "
            f"{images.dtype} and {matrices.dtype}"
        )
    if border not in BORDERS:
        raise ValueError(f"resample: border is one of {', '.join(map(repr, BORDERS))}, got {border!r}")
    if 0 in images.shape[2:] and 0 not in size:
        raise ValueError(f"resample: there are no pixels in images of {images.shape}")
    return Spec((*images.shape[:2], *size), images.dtype)


def _has_pixels(images: Any, matrices: Any, *, size: tuple[int, int], **attributes: Any) -> bool:
    return images.size > 0 and 0 not in size


@resample.kernel("cuda", "sim", name="pixels", dtypes=DTYPES, when=_has_pixels)
def _(out, images, matrices, *, size, border, fill, bilinear):
    """A thread for each pixel of the result, in all channels."""
    cuda.resample.resample(out, images, matrices, border, fill, bilinear)
