"""Random rectangles in images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigrad.data.transforms.base import Transform, whole
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


def random_boxes(
    transform: Transform, images: Tensor, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Such a rectangle for each of the ``images``, drawn where they are, by ``transform``.

    Returns:
        Whether one fits, (N,); its top and left, each (N,); its height and width, each (N,).
    """
    rows, columns = images.shape[-2:]
    ranges = [[s * rows * columns for s in scale]] * TRIES + [[math.log(r) for r in ratio]] * TRIES
    numbers = transform.uniform(images, [*ranges, (0, 1), (0, 1)])
    areas, shapes = numbers[:, :TRIES], exp(numbers[:, TRIES : 2 * TRIES])
    heights, widths = rint(sqrt(areas / shapes)), rint(sqrt(areas * shapes))
    fits = (heights > 0) & (heights <= rows) & (widths > 0) & (widths <= columns)
    first = argmax(fits.to(np.int64), 1, keepdim=True)
    found, height, width = (take_along_dim(of, first, 1)[:, 0] for of in (fits, heights, widths))
    top, left = whole(numbers[:, -2], rows - height + 1), whole(numbers[:, -1], columns - width + 1)
    return found, [top, left], [height, width]
