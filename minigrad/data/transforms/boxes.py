"""Random rectangles in images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigrad.data.transforms.base import Transform, constant, whole
from minigrad.ops.elementwise import exp, sqrt
from minigrad.ops.elementwise import round as rint
from minigrad.ops.index import take_along_dim
from minigrad.ops.reduce import argmax
from minigrad.tensor import Tensor

TRIES = 10


def random_box(
    sides: Sequence[int], scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of a random rectangle within ``sides``; None if TRIES give none."""
    rows, columns = sides
    for _ in range(TRIES):
        area = rows * columns * rng.uniform(scale[0], scale[1])
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < height <= rows and 0 < width <= columns:
            top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
            return int(top), int(left), height, width
    return None


def inside_random_boxes(
    transform: Transform, images: Tensor, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Whether each pixel, (N, H, W), is in such a rectangle of its image; drawn where the images are, by
    ``transform``."""
    rows, columns = images.shape[-2:]
    ranges = [[s * rows * columns for s in scale]] * TRIES + [[math.log(r) for r in ratio]] * TRIES
    numbers = transform.uniform(images, [*ranges, (0, 1), (0, 1)])
    areas, shapes = numbers[:, :TRIES], exp(numbers[:, TRIES : 2 * TRIES])
    heights, widths = rint(sqrt(areas / shapes)), rint(sqrt(areas * shapes))
    fits = (heights > 0) & (heights <= rows) & (widths > 0) & (widths <= columns)
    first = argmax(fits.to(np.int64), 1, keepdim=True)
    result = take_along_dim(fits, first, 1)[..., None]
    for axis, (count, sizes) in enumerate(((rows, heights), (columns, widths))):
        size = take_along_dim(sizes, first, 1)
        start = whole(numbers[:, 2 * TRIES + axis, None], count - size + 1)
        place = constant(np.arange(count), images.device)
        line = (place >= start) & (place < start + size)
        result = result & (line[:, None] if axis else line[..., None])
    return result
