"""Pictures in folders, one folder for each class; five kinds of flowers are such."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigrad.data.dataset import Dataset
from minigrad.data.download import cache_folder
from minigrad.data.idx import DataError

__all__ = ["Flowers", "ImageFolder", "read_image"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read_image(path: str | os.PathLike[str]) -> Any:
    """The picture in a file, as a Pillow image of three colours, turned as the camera was held.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or no picture.
        ImportError: Pillow is missing: ``pip install "minigrad[images]"``.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('reading pictures needs Pillow: pip install "minigrad[images]"') from error
    with open(path, "rb") as file:
        try:
            return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{os.fspath(path)}: not a picture, or a damaged one: {error}") from error


class ImageFolder(Dataset[tuple[Any, Any]]):
    """Labelled pictures in ``root/<class>/``, folders within that folder included, as in torchvision.

    Samples are ``(picture, label)``, the label being the place of the class in alphabetical order. Files are
    read when they are asked for, by the workers of a :class:`DataLoader`.

    Args:
        root: the folder of the classes' folders.
        transform: applied to each picture; by default it stays a Pillow image, which no batch can be made of:
            ``Compose([Resize(256), CenterCrop(224), ToTensor()])``.
        target_transform: applied to each label.
        loader: reads a file; by default :func:`read_image`.
        is_valid_file: tells of a path whether it is a picture; by default, its extension does.

    Attributes:
        classes: their names.
        class_to_idx: name to label.
        samples: (path, label) of all files.
        targets: the labels.

    Raises:
        FileNotFoundError: there is no such folder, none of a class in it, or a class has no picture.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        loader: Callable[[str], Any] = read_image,
        is_valid_file: Callable[[str], bool] | None = None,
    ):
        self.root, self.transform, self.target_transform = Path(root), transform, target_transform
        self.loader = loader
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        if not self.classes:
            raise FileNotFoundError(f"ImageFolder: {self.root} has no folders, one for each class")
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        is_valid = is_valid_file or (lambda path: path.lower().endswith(EXTENSIONS))
        self.samples: list[tuple[str, int]] = []
        for name, label in self.class_to_idx.items():
            files = sorted(str(path) for path in (self.root / name).rglob("*") if path.is_file())
            valid = [(path, label) for path in files if is_valid(path)]
            if not valid:
                raise FileNotFoundError(
                    f"ImageFolder: {self.root / name} has no picture ({', '.join(EXTENSIONS)})"
                )
            self.samples += valid
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, label = self.samples[index]
        image, target = self.loader(path), label
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} pictures of {len(self.classes)} classes in {self.root})"


class Flowers(ImageFolder):
    """Photographs of five kinds of flowers, their longer side 256 pixels: 400 to train with, 150 to test.

    A part of TensorFlow's flower_photos (CC BY 2.0), of which pictures of people, or without a visible
    flower, were left out. Samples are ``(picture, label)``.

    Args:
        root: the folder that holds ``flowers5/train/<class>/*.jpg`` and ``flowers5/val/<class>/*.jpg``. By
            default the folder named by the environment variable ``MINIGRAD_DATA``, and without that the
            user's cache (``~/.cache/minigrad``). It cannot be downloaded; other flowers will do.
        train: the 400 training pictures, else the 150 others.
        transform, target_transform: as of :class:`ImageFolder`.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ):
        base = Path(root or os.environ.get("MINIGRAD_DATA") or cache_folder()).expanduser()
        folder = base / "flowers5" / ("train" if train else "val")
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is missing: it holds a folder of pictures for each kind of flower, such as those "
                "of http://download.tensorflow.org/example_images/flower_photos.tgz. Put them there, or set "
                "MINIGRAD_DATA to the folder that holds flowers5/"
            )
        super().__init__(folder, transform, target_transform)
        self.train = train
