"""Transforms of images (resizing, crops, flips, normalisation), with torchvision's names.

A transform takes a Tensor or an array, one image (C, H, W) or a batch (N, C, H, W), or a Pillow image, and
returns the same kind. In a batch every image has random numbers of its own: :class:`ImageDataset` hands whole
batches over, which is many times quicker. Random numbers are those of the batch (:func:`sample_random`), the
same for any number of the loader's workers, or come from the ``generator`` that a transform is given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.creation import from_numpy
from minigrad.data.resample import as_dtype, inverse_affine, resize, warp
from minigrad.data.sample_random import sample_random
from minigrad.random import Generator
from minigrad.tensor import Tensor

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Grayscale",
    "Lambda",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "ToTensor",
    "Transform",
]

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue; ITU-R BT.601


class Transform:
    """The base class: a subclass defines :meth:`batch`.

    Attributes:
        generator: where random numbers come from; None: :func:`sample_random`.
    """

    generator: Generator | None = None

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The images (N, C, H, W), transformed; ``images`` must not be changed."""
        raise NotImplementedError(f"{type(self).__name__} does not define batch()")

    @property
    def takes_batches(self) -> bool:
        """Whether a batch of float images may be handed over at once."""
        return True

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            return from_numpy(self._apply(image.numpy()))
        if _is_pillow(image):
            return _to_pillow(self._apply(_from_pillow(image)))
        return self._apply(image)

    def _apply(self, image: Any) -> np.ndarray:
        """One image or a batch, as an array."""
        if not isinstance(image, np.ndarray) or image.ndim not in (3, 4):
            raise TypeError(
                f"{type(self).__name__}: expected an image (C, H, W) or a batch (N, C, H, W), a Tensor or an "
                f"array, or a Pillow image; got {_describe(image)}"
            )
        rng = sample_random() if self.generator is None else self.generator.numpy
        images = image if image.ndim == 4 else image[None]
        result = np.ascontiguousarray(self.batch(images, rng))
        return result if image.ndim == 4 else result[0]


class Compose(Transform):
    """One transform after another; functions may be among them."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = list(transforms)

    @property
    def takes_batches(self) -> bool:
        """Whether all of them do."""
        return all(isinstance(t, Transform) and t.takes_batches for t in self.transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda(Transform):
    """A function of one image."""

    takes_batches = False

    def __init__(self, lambd: Callable[[Any], Any]):
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)


class ToTensor(Transform):
    """A Pillow image, or an array (H, W, C) of bytes, as a float32 Tensor (C, H, W) with values in [0, 1].

    Tensors stay, but for their bytes, which become floats, too.
    """

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Bytes divided by 255."""
        return np.divide(images, np.float32(255), dtype=np.float32) if images.dtype == np.uint8 else images

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            return super().__call__(image)
        if _is_pillow(image):
            return from_numpy(self._apply(_from_pillow(image)))
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise TypeError(f"ToTensor: expected an image (H, W, C) or (H, W), got {_describe(image)}")
        return from_numpy(self._apply(image[None] if image.ndim == 2 else image.transpose(2, 0, 1)))


class Normalize(Transform):
    """(x - mean) / std by channel, of float images."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (mean, std))
        if not (self.std != 0).all():
            raise ValueError(f"Normalize: std must not be 0, got {std}")

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normalised."""
        if images.dtype.kind != "f":
            raise TypeError(f"Normalize: expected floats, got {images.dtype}; put ToTensor() before it")
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(f"Normalize: {len(self.mean)} means for images of shape {images.shape[1:]}")
        return (images - self.mean.astype(images.dtype)) / self.std.astype(images.dtype)


class Grayscale(Transform):
    """Colours to grey, by ITU-R BT.601, in one channel or in three that are equal."""

    def __init__(self, num_output_channels: int = 1):
        if num_output_channels not in (1, 3):
            raise ValueError(f"Grayscale: num_output_channels must be 1 or 3, got {num_output_channels}")
        self.num_output_channels = num_output_channels

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Grey."""
        grey = as_dtype(_grey(images), images.dtype)
        return grey.repeat(self.num_output_channels, axis=1)


class Resize(Transform):
    """To (height, width), or, of one number, so that the shorter side has it; linear, with averaging."""

    def __init__(self, size: int | Sequence[int]):
        self.size = size

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Resized."""
        if isinstance(self.size, int):
            shorter = min(images.shape[-2:])
            height, width = (int(self.size * side / shorter) for side in images.shape[-2:])
        else:
            height, width = self.size
        return resize(images, height, width)


class CenterCrop(Transform):
    """The middle (height, width), or a square; what is too small is padded with 0."""

    def __init__(self, size: int | Sequence[int]):
        self.size = _pair(size)

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cropped."""
        images = _padded_to(images, self.size, 0)
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
        if rows < height or columns < width:
            raise ValueError(
                f"RandomCrop: {rows}x{columns} pixels are too few for a part of {height}x{width}"
            )
        tops = rng.integers(rows - height + 1, size=len(images))
        lefts = rng.integers(columns - width + 1, size=len(images))
        result = np.empty((*images.shape[:2], height, width), images.dtype)
        for out, image, top, left in zip(result, images, tops, lefts, strict=True):
            out[:] = image[:, top : top + height, left : left + width]
        return result


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

    def _part(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = _random_box(image.shape[-2:], self.scale, self.ratio, rng)
        if box is None:  # none fits: the middle, of the nearest shape
            height, width = image.shape[-2:]
            width = min(width, max(1, round(height * self.ratio[1])))
            height = min(height, max(1, round(width / self.ratio[0])))
            return CenterCrop((height, width)).batch(image[None], rng)[0]
        top, left, height, width = box
        return image[:, top : top + height, left : left + width]


class _RandomFlip(Transform):
    axis: int

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p, self.generator = p, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each mirrored or not."""
        mirrored = rng.random(len(images)) < self.p
        return np.where(mirrored[:, None, None, None], np.flip(images, self.axis), images)


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
        height, width = images.shape[-2:]
        (low_x, high_x, low_y, high_y), (x, y) = self.shear, self.translate
        ranges = [
            self.degrees,
            self.scale,
            (-x * width, x * width),
            (-y * height, y * height),
            (low_x, high_x),
            (low_y, high_y),
        ]
        low, high = np.transpose(ranges)
        degrees, scale, *rest = rng.uniform(low, high, (len(images), len(ranges))).T
        translate, shear = np.rint(rest[:2]).T, np.stack(rest[2:], 1)
        matrices = inverse_affine(degrees, translate, scale, shear)
        return warp(images, matrices, self.fill, self.interpolation == "bilinear")


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


class ColorJitter(Transform):
    """Brightness, contrast and saturation changed by random factors, in this order.

    Args:
        brightness, contrast, saturation: the range of the factor, or one number v for (1 - v, 1 + v).
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0,
        contrast: float | Sequence[float] = 0,
        saturation: float | Sequence[float] = 0,
        *,
        generator: Generator | None = None,
    ):
        ranges = brightness, contrast, saturation
        self.ranges = [
            (max(0.0, 1 - v), 1 + v) if isinstance(v, (int, float)) else (v[0], v[1]) for v in ranges
        ]
        self.generator = generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each by factors of its own."""
        brightness, contrast, saturation = (
            rng.uniform(*r, (len(images), 1, 1, 1)).astype(np.float32) for r in self.ranges
        )
        highest = 255 if images.dtype == np.uint8 else 1
        x = np.clip(images * brightness, 0, highest)
        if self.ranges[1] != (1, 1):
            mean = _grey(x).mean((-2, -1), keepdims=True)
            x = np.clip(mean + contrast * (x - mean), 0, highest)
        if self.ranges[2] != (1, 1) and images.shape[1] == len(GREY):
            grey = _grey(x)
            x = np.clip(grey + saturation * (x - grey), 0, highest)
        return as_dtype(x, images.dtype)


class RandomErasing(Transform):
    """A rectangle replaced, with probability ``p``: cutout; https://arxiv.org/abs/1708.04896.

    Args:
        p: how often.
        scale: the smallest and largest share of the area.
        ratio: the smallest and largest width by height.
        value: what it is filled with, a number, one for each channel, or ``"random"``, normal numbers.
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | Sequence[float] | str = 0,
        *,
        generator: Generator | None = None,
    ):
        self.p, self.scale, self.ratio, self.value, self.generator = p, scale, ratio, value, generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each with a rectangle of its own, or none."""
        result = images.copy()
        for image in result:
            if rng.random() >= self.p:
                continue
            box = _random_box(image.shape[-2:], self.scale, self.ratio, rng)
            if box is None:
                continue
            top, left, height, width = box
            if self.value == "random":
                filled = rng.standard_normal((len(image), height, width))
            else:
                filled = np.asarray(self.value, np.float64).reshape(-1, 1, 1)
            image[:, top : top + height, left : left + width] = as_dtype(filled, image.dtype)
        return result


def _random_box(
    sides: Sequence[int], scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of a random rectangle within ``sides``; None if ten tries give none."""
    rows, columns = sides
    for _ in range(10):
        area = rows * columns * rng.uniform(scale[0], scale[1])
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < height <= rows and 0 < width <= columns:
            top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
            return int(top), int(left), height, width
    return None


def _grey(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W)"""
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdims=True)
    return np.tensordot(GREY, images, ([0], [1]))[:, None]


def _padded_to(images: np.ndarray, size: Sequence[int], fill: float) -> np.ndarray:
    """``images`` with ``fill`` around them, so that they are at least of ``size``."""
    missing = [max(0, want - have) for want, have in zip(size, images.shape[-2:], strict=True)]
    if not any(missing):
        return images
    widths = [(0, 0), (0, 0), *[(m // 2, m - m // 2) for m in missing]]
    return np.pad(images, widths, constant_values=fill)


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


# ---- Pillow -----------------------------------------------------------------------------------------------


def _is_pillow(image: Any) -> bool:
    module = sys.modules.get("PIL.Image")  # nobody has a Pillow image who has not imported it
    return module is not None and isinstance(image, module.Image)


def _from_pillow(image: Any) -> np.ndarray:
    """Bytes (C, H, W)."""
    array = np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _to_pillow(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)))


def _describe(image: Any) -> str:
    shape = getattr(image, "shape", None)
    return type(image).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
