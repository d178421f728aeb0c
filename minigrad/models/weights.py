"""Published weights: where their files are, what pictures they are for, and what the outputs mean."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

from minigrad.data.download import RemoteFiles
from minigrad.data.idx import DataError
from minigrad.data.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
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
        files: the weights, and the names of the classes, maybe in several forms.
        states: name to reader of the files that hold the weights; a reader makes a state dict.
        labels: name to reader of the text files that hold the classes' names; a reader splits a text.
        transforms: makes the function from a picture to the network's input.
        config: the arguments that the network must be made with.
        description: what is to be known of them: ``num_params``, ``source`` and so on.
    """

    files: RemoteFiles
    states: Mapping[str, Callable[[Path], dict[str, Tensor]]]
    labels: Mapping[str, Callable[[str], list[str]]]
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
            FileNotFoundError: it is missing, and may not be downloaded; the message tells where to get it.
            OSError, ImportError: the download failed, or pooch, which it needs, is missing.
            DataError: it is damaged, or another one.
        """
        path = self._find(self.value.states, root)
        return self.value.states[path.name](path)

    @property
    def transforms(self) -> Callable[..., ImageClassification]:
        """Called, it returns the function from a picture to the network's input."""
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        """What is known of them: ``categories``, the classes' names in order, ``num_params``, ``source``."""
        path = self._find(self.value.labels)
        categories = self.value.labels[path.name](path.read_text("utf-8"))
        return {"categories": categories, **self.value.description}

    def _find(self, filenames: Iterable[str], root: str | os.PathLike[str] | None = None) -> Path:
        """The first of these files that is there, else the last one, downloaded; its content is checked."""
        files, (*others, last) = self.value.files, filenames
        for filename in others:
            with contextlib.suppress(FileNotFoundError):
                path = files.path(filename, root, download=False)
                break
        else:
            path = files.path(last, root)
        found, expected = hashlib.sha256(path.read_bytes()).hexdigest(), files.sha256[path.name]
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
