"""Transforms of where pixels are: sizes, parts, mirror images, turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import minigrad
from minigrad.data.resample import inverse_affine, resize, triangles, warp
from minigrad.data.transforms.base import Transform, constant, rounded, whole
from minigrad.data.transforms.boxes import random_box, random_boxes
from minigrad.devices import Device
from minigrad.dtypes import is_half
from minigrad.ops.elementwise import where
from minigrad.ops.join import concat
from minigrad.ops.padding import pad
from minigrad.ops.resample import resample
from minigrad.random import Generator
from minigrad.tensor import Tensor


class Resize(Transform):
    """To (height, width), or, of one number, so that the shorter side has it; linear, with averaging."""

    def __init__(self, size: int | Sequence[int]):
        self.size = size

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Resized."""
        return resize(images, *self._new_size(images))

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        size = self._new_size(images)
        if images.shape[-2:] == tuple(size):
            return images
        starts = [constant([0], images.device)] * 2
        return _resized(images, starts, [constant([n], images.device) for n in images.shape[-2:]], size)

    def _new_size(self, images: Any) -> Sequence[int]:
        if not isinstance(self.size, int):
            return self.size
        shorter = min(images.shape[-2:])
        return [int(self.size * side / shorter) for side in images.shape[-2:]]


class CenterCrop(Transform):
    """The middle (height, width), or a square; what is too small is padded with 0."""

    def __init__(self, size: int | Sequence[int]):
        self.size = _pair(size)

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cropped."""
        return self._middle(_padded_to(images, self.size, 0))

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        return self._middle(_padded_on_device(images, self.size, 0))

    def _middle(self, images: Any) -> Any:
        top, left = (
            round((have - want) / 2) for have, want in zip(images.shape[-2:], self.size, strict=True)
        )
        return images[..., top : top + self.size[0], left : left + self.size[1]]


class RandomCrop(Transform):
    """A part (height, width), or a square, at a random place.

    Args:
        size: of the part.
        padding: pixels added at each side first: one number, (left and right, top and bottom), or
            (left, top, right, bottom).
        pad_if_needed: pad images that are too small; otherwise they are an error.
        fill: what constant padding is made of.
        padding_mode: ``"constant"``, ``"edge"``, ``"reflect"`` or ``"symmetric"``, as of :func:`numpy.pad`.
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: float = 0,
        padding_mode: str = "constant",
        *,
        generator: Generator | None = None,
    ):
        self.size, self.padding, self.pad_if_needed = _pair(size), padding, pad_if_needed
        self.fill, self.padding_mode, self.generator = fill, padding_mode, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each cropped at its place."""
        if self.padding is not None:
            left, top, right, bottom = _four(self.padding)
            widths = ((0, 0), (0, 0), (top, bottom), (left, right))
            options = {"constant_values": self.fill} if self.padding_mode == "constant" else {}
            images = np.pad(images, widths, self.padding_mode, **options)  # type: ignore[call-overload]
        if self.pad_if_needed:
            images = _padded_to(images, self.size, self.fill)
        (height, width), (rows, columns) = self.size, images.shape[-2:]
        self._check(rows, columns)
        tops = rng.integers(rows - height + 1, size=len(images))
        lefts = rng.integers(columns - width + 1, size=len(images))
        result = np.empty((*images.shape[:2], height, width), images.dtype)
        for out, image, top, left in zip(result, images, tops, lefts, strict=True):
            out[:] = image[:, top : top + height, left : left + width]
        return result

    def on_device(self, images: Tensor) -> Tensor:
        """The same, without a padded copy of the images."""
        left, top, right, bottom = _four(self.padding or 0)
        border, fill = self.padding_mode, self.fill
        rows, columns = images.shape[2] + top + bottom, images.shape[3] + left + right
        (height, width) = self.size
        if self.pad_if_needed and (rows < height or columns < width):
            first = constant([[-left, -top]], images.device)
            images = _part(images, first.expand(len(images), 2), (rows, columns), border, fill)
            images = _padded_on_device(images, self.size, self.fill)
            (rows, columns), left, top, border = images.shape[2:], 0, 0, "constant"
        self._check(rows, columns)
        room = constant([columns - width + 1, rows - height + 1], images.device)
        first = whole(self.uniform(images, [(0, 1)] * 2), room) - constant([left, top], images.device)
        return _part(images, first, self.size, border, fill)

    def _check(self, rows: int, columns: int) -> None:
        height, width = self.size
        if rows < height or columns < width:
            raise ValueError(
                f"RandomCrop: {rows}x{columns} pixels are too few for a part of {height}x{width}"
            )


class RandomResizedCrop(Transform):
    """A part of random size and shape, resized to ``size``; https://arxiv.org/abs/1409.4842.

    Args:
        size: (height, width), or of a square.
        scale: the smallest and largest share of the area.
        ratio: the smallest and largest width by height.
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        *,
        generator: Generator | None = None,
    ):
        self.size, self.scale, self.ratio, self.generator = _pair(size), scale, ratio, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each cropped and resized."""
        return np.stack([resize(self._part(image, rng), *self.size) for image in images])

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        found, starts, sizes = random_boxes(self, images, self.scale, self.ratio)
        middle = self._middle(images.shape[-2:])
        starts, sizes = (
            [where(found, drawn, constant(other, images.device)) for drawn, other in zip(*both, strict=True)]
            for both in ((starts, middle[:2]), (sizes, middle[2:]))
        )
        return _resized(images, starts, sizes, self.size)

    def _part(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = random_box(image.shape[-2:], self.scale, self.ratio, rng) or self._middle(image.shape[-2:])
        top, left, height, width = box
        return image[:, top : top + height, left : left + width]

    def _middle(self, sides: Sequence[int]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the middle, of the nearest shape: for where no rectangle fits."""
        rows, columns = sides
        width = min(columns, max(1, round(rows * self.ratio[1])))
        height = min(rows, max(1, round(width / self.ratio[0])))
        return (rows - height) // 2, (columns - width) // 2, height, width


class _RandomFlip(Transform):
    axis: int

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p, self.generator = p, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each mirrored or not."""
        mirrored = rng.random(len(images)) < self.p
        return np.where(mirrored[:, None, None, None], np.flip(images, self.axis), images)

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        mirrored = self.uniform(images, [(0, 1)]) < self.p
        mirror = np.zeros((2, 3))
        mirror[-1 - self.axis, -1 - self.axis] = -2
        change = mirrored.to(np.float32)[..., None] * constant(mirror, images.device)
        return _mapped(images, change + constant(np.eye(2, 3), images.device), images.shape[2:])


class RandomHorizontalFlip(_RandomFlip):
    """Left and right exchanged, with probability ``p``."""

    axis = -1


class RandomVerticalFlip(_RandomFlip):
    """Top and bottom exchanged, with probability ``p``."""

    axis = -2


class RandomAffine(Transform):
    """Turned, moved, scaled and sheared around the middle.

    Args:
        degrees: the range of angles, or one number for (-degrees, degrees); clockwise.
        translate: the largest shares of width and height to move by.
        scale: the range of scales.
        shear: the range of angles of shear along x, or one number; or four for x and y.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what comes in from outside.
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: str = "nearest",
        fill: float = 0,
        *,
        generator: Generator | None = None,
    ):
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(
                f'{type(self).__name__}: interpolation is "nearest" or "bilinear", got {interpolation!r}'
            )
        self.degrees, self.translate = _range(degrees), translate or (0, 0)
        self.scale, self.shear = scale or (1, 1), (*_range(shear or 0), 0, 0)[:4]
        self.interpolation, self.fill, self.generator = interpolation, fill, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each by a map of its own."""
        ranges = self._ranges(images.shape)
        low, high = np.transpose(ranges)
        matrices = inverse_affine(np, *rng.uniform(low, high, (len(images), len(ranges))).T)
        return warp(images, matrices, self.fill, self.interpolation == "bilinear")

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        numbers = self.uniform(images, self._ranges(images.shape))
        matrices = inverse_affine(minigrad, *(numbers[:, i] for i in range(numbers.shape[1])))
        bilinear = self.interpolation == "bilinear"
        return _mapped(images, matrices, images.shape[2:], "constant", self.fill, bilinear)

    def _ranges(self, shape: Sequence[int]) -> list[Sequence[float]]:
        """Of what :func:`inverse_affine` takes, for images of ``shape``."""
        (height, width), (x, y) = shape[-2:], self.translate
        low_x, high_x, low_y, high_y = self.shear
        moves = [(-x * width, x * width), (-y * height, y * height)]
        return [self.degrees, self.scale, *moves, (low_x, high_x), (low_y, high_y)]


class RandomRotation(RandomAffine):
    """Turned counter-clockwise by an angle of the range ``degrees``, or (-degrees, degrees)."""

    def __init__(
        self,
        degrees: float | Sequence[float],
        interpolation: str = "nearest",
        fill: float = 0,
        *,
        generator: Generator | None = None,
    ):
        low, high = _range(degrees)
        super().__init__((-high, -low), interpolation=interpolation, fill=fill, generator=generator)


def _resized(
    images: Tensor, starts: Sequence[Tensor], sizes: Sequence[Tensor], new_size: Sequence[int]
) -> Tensor:
    """As :func:`resize`: the rectangle (top and left, height and width; each (N,) or (1,)) of each image."""
    rows, columns = (
        triangles(minigrad, _line(have, images.device), _line(want, images.device), start, size)
        for have, want, start, size in zip(images.shape[-2:], new_size, starts, sizes, strict=True)
    )
    with minigrad.autocast(images.device.type, enabled=False):
        result = rows[:, None] @ images.to(np.float32) @ columns[:, None].transpose(-2, -1)
    return rounded(result, images.dtype)


def _line(count: int, device: Device) -> Tensor:
    return constant(np.arange(count), device)


def _padded_to(images: np.ndarray, size: Sequence[int], fill: float) -> np.ndarray:
    """``images`` with ``fill`` around them, so that they are at least of ``size``."""
    missing = [max(0, want - have) for want, have in zip(size, images.shape[-2:], strict=True)]
    if not any(missing):
        return images
    widths = [(0, 0), (0, 0), *[(m // 2, m - m // 2) for m in missing]]
    return np.pad(images, widths, constant_values=fill)


def _padded_on_device(images: Tensor, size: Sequence[int], fill: float) -> Tensor:
    """The same."""
    missing = [max(0, want - have) for want, have in zip(size, images.shape[-2:], strict=True)]
    if not any(missing):
        return images
    return pad(images, [width for m in missing[::-1] for width in (m // 2, m - m // 2)], value=fill)


def _part(images: Tensor, first: Tensor, size: Sequence[int], border: str, fill: float) -> Tensor:
    """Parts of ``size`` of the images, from the pixel ``first`` (N, 2), x and y, on."""
    middles = [(part - whole) / 2 for part, whole in zip(size[::-1], images.shape[:1:-1], strict=True)]
    moves = first + constant(middles, images.device)
    turns = constant(np.eye(2), images.device).expand(len(images), 2, 2)
    return _mapped(images, concat([turns, moves[..., None]], 2), size, border, fill)


def _mapped(
    images: Tensor,
    matrices: Tensor,
    size: Sequence[int],
    border: str = "constant",
    fill: float = 0,
    bilinear: bool = False,
) -> Tensor:
    """The images through affine maps, by :func:`resample`; those of 16 bits as float32, and rounded."""
    if is_half(images.dtype):
        return _mapped(images.float(), matrices, size, border, fill, bilinear).to(images.dtype)
    matrices = matrices.to(images.dtype) if images.dtype == np.float64 else matrices
    options = {"border": border, "fill": float(fill), "bilinear": bilinear}
    return resample(images, matrices, size=tuple(size), **options)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _four(padding: int | Sequence[int]) -> tuple[int, ...]:
    values = (padding,) if isinstance(padding, int) else tuple(padding)
    if len(values) not in (1, 2, 4):
        raise ValueError(f"RandomCrop: padding is one number, two or four, got {padding!r}")
    return values * (4 // len(values))


def _range(value: float | Sequence[float]) -> tuple[float, ...]:
    return (-value, value) if isinstance(value, (int, float)) else tuple(value)
