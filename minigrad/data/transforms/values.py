"""Transforms of what pixels are: their dtype, their scale, their colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import minigrad
from minigrad.creation import from_numpy, randn_like
from minigrad.data.resample import as_dtype
from minigrad.data.transforms.base import Transform, constant, describe, from_pillow, is_pillow, rounded
from minigrad.data.transforms.boxes import random_box, random_boxes
from minigrad.dtypes import is_floating
from minigrad.ops.elementwise import where
from minigrad.random import Generator
from minigrad.tensor import Tensor

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue; ITU-R BT.601


class ToTensor(Transform):
    """A Pillow image, or an array (H, W, C) of bytes, as a float32 Tensor (C, H, W) with values in [0, 1].

    Tensors stay, but for their bytes, which become floats, too.
    """

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Bytes divided by 255."""
        return np.divide(images, np.float32(255), dtype=np.float32) if images.dtype == np.uint8 else images

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        return images.to(np.float32) / 255 if images.dtype == np.uint8 else images

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            return super().__call__(image)
        if is_pillow(image):
            return from_numpy(self._apply(from_pillow(image)))
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise TypeError(f"ToTensor: expected an image (H, W, C) or (H, W), got {describe(image)}")
        return from_numpy(self._apply(image[None] if image.ndim == 2 else image.transpose(2, 0, 1)))


class Normalize(Transform):
    """(x - mean) / std by channel, of float images."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (mean, std))
        if not (self.std != 0).all():
            raise ValueError(f"Normalize: std must not be 0, got {std}")

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normalised."""
        self._check(images)
        return (images - self.mean.astype(images.dtype)) / self.std.astype(images.dtype)

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        self._check(images)
        mean, std = (constant(v, images.device).to(images.dtype) for v in (self.mean, self.std))
        return (images - mean) / std

    def _check(self, images: Any) -> None:
        if not is_floating(images.dtype):
            raise TypeError(f"Normalize: expected floats, got {images.dtype}; put ToTensor() before it")
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(f"Normalize: {len(self.mean)} means for images of shape {images.shape[1:]}")


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

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        grey = rounded(_grey_on_device(images.to(np.float32)), images.dtype)
        return grey.expand(-1, self.num_output_channels, -1, -1).contiguous()


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue changed at random, in this order.

    Args:
        brightness, contrast, saturation: the range of the factor, or one number v for (1 - v, 1 + v).
        hue: the range of what is added, in turns of the colour wheel, or one number v for (-v, v); of colours
            alone, as is saturation.
        generator: see :class:`Transform`.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0,
        contrast: float | Sequence[float] = 0,
        saturation: float | Sequence[float] = 0,
        hue: float | Sequence[float] = 0,
        *,
        generator: Generator | None = None,
    ):
        self.ranges = [
            (max(0.0, 1 - v), 1 + v) if isinstance(v, (int, float)) else (v[0], v[1])
            for v in (brightness, contrast, saturation)
        ]
        low, high = (-hue, hue) if isinstance(hue, (int, float)) else hue
        if not -0.5 <= low <= high <= 0.5:
            raise ValueError(f"ColorJitter: hue is up to half a turn, 0.5, got {hue}")
        self.ranges.append((low, high))
        self.generator = generator

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each by factors of its own."""
        drawn = [rng.uniform(*r, (len(images), 1, 1, 1)).astype(np.float32) for r in self.ranges]
        return as_dtype(self._changed(np, images, drawn, _grey), images.dtype)

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        drawn = self.uniform(images, self.ranges)
        columns = [drawn[:, i, None, None, None] for i in range(len(self.ranges))]
        return rounded(self._changed(minigrad, images, columns, _grey_on_device), images.dtype)

    def _changed(self, xp: Any, images: Any, drawn: Sequence[Any], grey: Callable) -> Any:
        """``images``, of ``xp``, by the numbers ``drawn``, each (N, 1, 1, 1)."""
        brightness, contrast, saturation, hue = drawn
        highest = 255 if images.dtype == np.uint8 else 1
        x = xp.clip(images * brightness, 0, highest)
        if self.ranges[1] != (1, 1):
            mean = grey(x).mean((-2, -1), keepdims=True)
            x = xp.clip(mean + contrast * (x - mean), 0, highest)
        colours = images.shape[1] == len(GREY)
        if self.ranges[2] != (1, 1) and colours:
            shade = grey(x)
            x = xp.clip(shade + saturation * (x - shade), 0, highest)
        return _turned(xp, x, hue) if self.ranges[3] != (0, 0) and colours else x


def _turned(xp: Any, colours: Any, turns: Any) -> Any:
    """Other hues, the same value and saturation; https://en.wikipedia.org/wiki/HSL_and_HSV."""
    red, green, blue = (colours[:, i : i + 1] for i in range(3))
    value = xp.maximum(xp.maximum(red, green), blue)
    chroma = value - xp.minimum(xp.minimum(red, green), blue)
    divisor = xp.where(chroma == 0, 1, chroma)  # no hue in grey
    sixths = xp.where(
        value == red,
        (green - blue) / divisor,
        xp.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    places = ((channel + sixths + 6 * turns) % 6 for channel in (5, 3, 1))
    return xp.concat([value - chroma * xp.clip(xp.minimum(k, 4 - k), 0, 1) for k in places], 1)


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
            box = random_box(image.shape[-2:], self.scale, self.ratio, rng)
            if box is None:
                continue
            top, left, height, width = box
            if self.value == "random":
                filled = rng.standard_normal((len(image), height, width))
            else:
                filled = np.asarray(self.value, np.float64).reshape(-1, 1, 1)
            image[:, top : top + height, left : left + width] = as_dtype(filled, image.dtype)
        return result

    def on_device(self, images: Tensor) -> Tensor:
        """The same."""
        chance = self.uniform(images, [(0, 1)])[..., None]
        found, starts, sizes = random_boxes(self, images, self.scale, self.ratio)
        rows, columns = (
            _inside(start, size, count)
            for start, size, count in zip(starts, sizes, images.shape[-2:], strict=True)
        )
        erased = (found[:, None] & rows)[..., None] & columns[:, None] & (chance < self.p)
        if self.value == "random":
            filled = randn_like(images, dtype=np.float32, generator=self.generator)
        else:
            filled = constant(self.value, images.device).reshape(-1, 1, 1)
        return where(erased[:, None], rounded(filled, images.dtype), images)


def _inside(start: Tensor, size: Tensor, count: int) -> Tensor:
    """Whether each of ``count`` places is among ``size`` from ``start`` on, (N, count)."""
    place = constant(np.arange(count), start.device)
    return (place >= start[:, None]) & (place < (start + size)[:, None])


def _grey(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W)"""
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdims=True)
    return np.tensordot(GREY, images, ([0], [1]))[:, None]


def _grey_on_device(images: Tensor) -> Tensor:
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdim=True)
    return (images * constant(GREY, images.device).reshape(-1, 1, 1)).sum(1, keepdim=True)
