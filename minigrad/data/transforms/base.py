"""What transforms of images have in common, and what is made of several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from minigrad.creation import from_numpy, rand
from minigrad.data.sample_random import sample_random
from minigrad.devices import Device
from minigrad.dtypes import is_floating
from minigrad.ops.elementwise import clamp, floor, minimum
from minigrad.ops.elementwise import round as rint
from minigrad.random import Generator
from minigrad.recording import preparing
from minigrad.tensor import Tensor


class Transform:
    """The base class: a subclass defines :meth:`batch`, and :meth:`on_device` if it can.

    Attributes:
        generator: where random numbers come from; None: :func:`sample_random`, and for images on a card
            minigrad's global generator.
    """

    generator: Generator | None = None

    def batch(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The images (N, C, H, W), transformed; ``images`` must not be changed."""
        raise NotImplementedError(f"{type(self).__name__} does not define batch()")

    def on_device(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W) of a card or the simulator, transformed there."""
        raise TypeError(
            f"{type(self).__name__} transforms images on the CPU alone, and these are on {images.device}: "
            "give it images.cpu(), or put it into the data set"
        )

    @property
    def takes_batches(self) -> bool:
        """Whether a batch of float images may be handed over at once."""
        return True

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            if image.device.type != "cpu":
                return self._apply_on_device(image)
            with preparing():  # a captured step that runs on the CPU may look at values there
                return from_numpy(self._apply(image.numpy()))
        if is_pillow(image):
            return _to_pillow(self._apply(from_pillow(image)))
        return self._apply(image)

    def _apply(self, image: Any) -> np.ndarray:
        """One image or a batch, as an array."""
        if not isinstance(image, np.ndarray) or image.ndim not in (3, 4):
            raise self._not_an_image(image)
        rng = sample_random() if self.generator is None else self.generator.numpy
        images = image if image.ndim == 4 else image[None]
        result = np.ascontiguousarray(self.batch(images, rng))
        return result if image.ndim == 4 else result[0]

    def _apply_on_device(self, image: Tensor) -> Tensor:
        if image.ndim not in (3, 4):
            raise self._not_an_image(image)
        return self.on_device(image) if image.ndim == 4 else self.on_device(image[None])[0]

    def _not_an_image(self, image: Any) -> TypeError:
        return TypeError(
            f"{type(self).__name__}: expected an image (C, H, W) or a batch (N, C, H, W), a Tensor or an "
            f"array, or a Pillow image; got {describe(image)}"
        )

    def uniform(self, images: Tensor, ranges: Sequence[Sequence[float]]) -> Tensor:
        """For each of the ``images`` a number from each of the ``ranges`` (low, high), float32 (N, ranges),
        drawn where the images are."""
        low, high = np.transpose(ranges)
        numbers = rand(len(images), len(ranges), generator=self.generator, device=images.device)
        return numbers * constant(high - low, images.device) + constant(low, images.device)


def whole(uniform: Tensor, count: Any) -> Tensor:
    """Whole numbers from 0 to ``count`` - 1, from uniform ones in [0, 1), whose product may be rounded up."""
    return minimum(floor(uniform * count), count - 1)


def rounded(values: Tensor, dtype: np.dtype) -> Tensor:
    """As :func:`minigrad.data.resample.as_dtype`."""
    return values.to(dtype) if is_floating(dtype) else clamp(rint(values), 0, 255).to(dtype)


def constant(values: Any, device: Device, dtype: Any = np.float32) -> Tensor:
    """Few numbers as a Tensor on ``device``, where they stay: a captured step must not copy from the CPU."""
    array = np.asarray(values, dtype)
    return _constant(array.tobytes(), array.shape, array.dtype, device)


@lru_cache(maxsize=256)
def _constant(content: bytes, shape: tuple[int, ...], dtype: np.dtype, device: Device) -> Tensor:
    with preparing():
        return from_numpy(np.frombuffer(content, dtype).reshape(shape).copy()).to(device)


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


# ---- Pillow -----------------------------------------------------------------------------------------------


def is_pillow(image: Any) -> bool:
    """Whether it is an image of Pillow's."""
    module = sys.modules.get("PIL.Image")  # nobody has a Pillow image who has not imported it
    return module is not None and isinstance(image, module.Image)


def from_pillow(image: Any) -> np.ndarray:
    """Bytes (C, H, W)."""
    array = np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _to_pillow(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)))


def describe(image: Any) -> str:
    """Its type and, if it has one, its shape."""
    shape = getattr(image, "shape", None)
    return type(image).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
