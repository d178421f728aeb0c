"""Published weights: where their files are, what pictures they are for, and what the outputs mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

from minigrad.data.download import RemoteFiles
from minigrad.data.idx import DataError
from minigrad.data.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from minigrad.io.weights import load_file
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["ImageClassification", "Weights", "WeightsEnum", "load_weights"]


class ImageClassification(Compose):
    """What is done to a picture before a network that was trained on ImageNet sees it.

    A Pillow image, or a Tensor (C, H, W) or batch (N, C, H, W) of bytes, or of floats in [0, 1], becomes a
    float32 Tensor: its shorter side is resized, its middle cut out, its values ``(x - mean) / std``.

    Args:
        crop_size: height and width of the result.
        resize_size: the shorter side before.
        mean, std: of red, green and blue, for values in [0, 1].
    """

    def __init__(self, *, crop_size: int, resize_size: int = 256, mean: Any, std: Any):
        super().__init__([Resize(resize_size), CenterCrop(crop_size), ToTensor(), Normalize(mean, std)])
        self.crop_size, self.resize_size, self.mean, self.std = crop_size, resize_size, mean, std

    def __repr__(self) -> str:
        options = ("crop_size", "resize_size", "mean", "std")
        return f"ImageClassification({', '.join(f'{name}={getattr(self, name)}' for name in options)})"


@dataclass(frozen=True)
class Weights:
    """One set of weights.

    Attributes:
        files: the weights, and the names of the classes.
        filename: of the weights, a safetensors file, among ``files``.
        labels: the text file of the classes' names, and what reads them in its text.
        convert: makes the network's state dict of what is in the file.
        transforms: makes the function from a picture to the network's input.
        config: the arguments that the network must be made with.
        description: what is to be known of them: ``num_params``, ``source`` and so on.
    """

    files: RemoteFiles
    filename: str
    labels: tuple[str, Callable[[str], list[str]]]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    transforms: partial[ImageClassification]
    config: Mapping[str, Any]
    description: Mapping[str, Any]


class WeightsEnum(Enum):
    """Base of the enumerations of a network's weights; a member's value is :class:`Weights`."""

    @classmethod
    def verify(cls, weights: Self | str | None) -> Self | None:
        """The member that is meant by a member, its name, or ``"DEFAULT"``; None for None.

        Raises:
            ValueError: there is none of that name.
            TypeError: it is the member of another network.
        """
        if weights is None or isinstance(weights, cls):
            return weights
        if not isinstance(weights, str):
            raise TypeError(f"expected {cls.__name__} or the name of one, got {weights!r}")
        name = weights.removeprefix(f"{cls.__name__}.")
        if name not in cls.__members__:
            raise ValueError(f"{cls.__name__} has no {name!r}; it has {', '.join(cls.__members__)}")
        return cls[name]

    def get_state_dict(self, root: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
        """The weights, as the network's ``load_state_dict`` takes them.

        Args:
            root: the folder that holds the files' folder. By default the one that the environment variable
                ``MINIGRAD_DATA`` names, and without that the user's cache (``~/.cache/minigrad``).

        Raises:
            FileNotFoundError: the file is missing; the message tells where to get it.
            DataError: it is damaged, or another one.
        """
        path = self._path(self.value.filename, root)
        return self.value.convert(load_file(path))

    @property
    def transforms(self) -> Callable[..., ImageClassification]:
        """Called, it returns the function from a picture to the network's input."""
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        """What is known of them: ``categories``, the classes' names in order, ``num_params``, ``source``."""
        filename, read = self.value.labels
        return {"categories": read(self._path(filename).read_text("utf-8")), **self.value.description}

    def _path(self, filename: str, root: str | os.PathLike[str] | None = None) -> Path:
        """The local path of one of the files, whose content has been checked."""
        files = self.value.files
        path = files.path(filename, root)
        found, expected = hashlib.sha256(path.read_bytes()).hexdigest(), files.sha256[filename]
        if found != expected:
            raise DataError(
                f"{path} is damaged, or not the file expected: its sha256 is {found}, not {expected}. "
                "Weights of your own are read by model.load_state_dict(mg.load(path))"
            )
        return path

    def __repr__(self) -> str:
        return str(self)


def load_weights(make: Callable[..., Module], weights: WeightsEnum | None, config: dict[str, Any]) -> Any:
    """The network ``make(**config)``, with the weights, if any, and with the arguments that they need.

    Raises:
        ValueError: an argument is another one than the weights need.
    """
    if weights is None:
        return make(**config)
    for name, needed in weights.value.config.items():
        if config.setdefault(name, needed) != needed:
            raise ValueError(f"{name}={config[name]!r} does not fit {weights}, which needs {needed!r}")
    model = make(**config)
    model.load_state_dict(weights.get_state_dict())
    return model
