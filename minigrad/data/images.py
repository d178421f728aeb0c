"""Labelled images: MNIST and Fashion-MNIST from their published files, and digits that ship along."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import from_numpy
from minigrad.data.collate import default_collate
from minigrad.data.dataset import Dataset, check_train
from minigrad.data.download import RemoteFiles
from minigrad.data.idx import DataError, read_idx
from minigrad.tensor import Tensor

__all__ = ["MNIST", "Digits", "FashionMNIST", "ImageDataset"]

Transform = Callable[[Any], Any]


class ImageDataset(Dataset[tuple[Any, Any]]):
    """Labelled images, kept as bytes; samples are ``(image, label)``.

    An image is a float32 Tensor of shape (channels, height, width) with values in [0, 1], grey ones having
    one channel; a label is an int. The images keep their bytes until they are asked for: a quarter of the
    memory of float32.

    Args:
        images: uint8, shape (N, height, width) or (N, channels, height, width), values 0 to ``max_value``.
        labels: integers, shape (N,), indices into ``classes``.
        transform: applied to the image Tensor of each sample; those of :mod:`minigrad.data.transforms`, to
            whole batches.
        target_transform: applied to the label of each sample.

    Attributes:
        data: the images, a uint8 Tensor of the shape they were given in.
        targets: the labels, an int64 Tensor of shape (N,).
        classes: the names of the classes.
    """

    classes: ClassVar[Sequence[str]] = ()
    max_value: ClassVar[int] = 255

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ):
        self.data = from_numpy(images)
        self.targets = from_numpy(labels.astype(np.int64))
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        index = operator.index(index)
        image: Any = from_numpy(self._scaled(self.data.numpy()[index][None])[0])
        label: Any = int(self.targets.numpy()[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def get_batch(self, indices: Sequence[int]) -> Any:
        """The batch ``[images, labels]``: float32 (B, channels, height, width) and int64 (B,)."""
        whole = self.transform is None or getattr(self.transform, "takes_batches", False)
        if not whole or self.target_transform is not None:
            return default_collate([self[index] for index in indices])
        rows = np.asarray(indices, np.int64)
        images: Any = from_numpy(self._scaled(self.data.numpy().take(rows, axis=0)))
        if self.transform is not None:
            images = self.transform(images)
        return [images, from_numpy(self.targets.numpy().take(rows))]

    def as_tensors(self) -> tuple[Tensor, Tensor]:
        """All samples, untransformed: float32 (N, channels, height, width) in [0, 1], and int64 (N,)."""
        return from_numpy(self._scaled(self.data.numpy())), self.targets

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Bytes of some images as float32 (B, channels, height, width)."""
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels
        return np.divide(pixels, np.float32(self.max_value), dtype=np.float32)

    def __repr__(self) -> str:
        height, width = self.data.shape[-2:]
        return f"{type(self).__name__}({len(self)} images of {height}x{width}, {len(self.classes)} classes)"


class _IdxImages(ImageDataset):
    """What MNIST and Fashion-MNIST share: the layout of their files."""

    files: ClassVar[RemoteFiles]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ):
        check_train(self, train)
        prefix = "train" if train else "t10k"
        # Both files are located before the first is read, so that a missing one shows at once.
        images_path, labels_path = (
            self.files.path(f"{prefix}-{part}-ubyte.gz", root, download)
            for part in ("images-idx3", "labels-idx1")
        )
        images = read_idx(images_path, dtype=np.uint8, ndim=3)
        labels = read_idx(labels_path, dtype=np.uint8, ndim=1)
        self._check(images, images_path, labels, labels_path)
        super().__init__(images, labels, transform, target_transform)
        self.train = train

    def _check(self, images: np.ndarray, images_path: Path, labels: np.ndarray, labels_path: Path) -> None:
        if images.shape[1:] != (28, 28):
            raise DataError(
                f"{images_path}: expected images of 28x28 pixels, the file's shape is {images.shape}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels: "
                f"they do not belong together; delete them and get both again"
            )
        if labels.size and labels.max() >= len(self.classes):
            raise DataError(
                f"{labels_path}: expected labels from 0 to {len(self.classes) - 1}, found {labels.max()}"
            )


class MNIST(_IdxImages):
    """The MNIST handwritten digits: 60,000 training and 10,000 test images of 28x28 pixels.

    LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/. Samples are ``(image, label)``: a float32
    Tensor of shape (1, 28, 28) with values in [0, 1], and an int.

    Args:
        root: the folder that holds ``mnist/train-images-idx3-ubyte.gz`` and the other three files, or will
            after the download. By default the folder named by the environment variable ``MINIGRAD_DATA``,
            and without that the user's cache (``~/.cache/minigrad``).
        train: the training images, else the test images.
        download: fetch missing files, checked by sha256. Needs ``pip install "minigrad[data]"``. Never done
            into ``MINIGRAD_DATA``.
        transform, target_transform: applied to each image Tensor and each label.

    Raises:
        FileNotFoundError: a file is missing and may not be downloaded.
        DataError: a file is damaged or is not the one expected.
    """

    classes = tuple("0123456789")
    files = RemoteFiles(
        name="MNIST",
        folder="mnist",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    )


class FashionMNIST(_IdxImages):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 pixels, as :class:`MNIST`.

    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", 2017, https://arxiv.org/abs/1708.07747. The files lie in ``fashion-mnist/`` below the root.
    """

    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    files = RemoteFiles(
        name="Fashion-MNIST",
        folder="fashion-mnist",
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    )


class Digits(ImageDataset):
    """1,797 handwritten digits of 8x8 pixels that ship with minigrad: no download, no network.

    Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licensed under the Creative Commons Attribution 4.0
    International licence (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/. These are the images of
    its test set, by 13 writers, repacked without changes; a pixel counts the inked cells of a 4x4 block,
    0 to 16. The first 1,437 are the training images, the last 360 the test images.

    Args:
        train: the training images, else the test images.
        transform, target_transform: applied to each image, a float32 Tensor (1, 8, 8), and each label.
    """

    classes = tuple("0123456789")
    max_value = 16
    TRAIN_COUNT: ClassVar[int] = 1437

    def __init__(
        self,
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ):
        check_train(self, train)
        with np.load(Path(__file__).with_name("digits.npz")) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        part = slice(0, self.TRAIN_COUNT) if train else slice(self.TRAIN_COUNT, None)
        super().__init__(images[part].copy(), labels[part], transform, target_transform)
        self.train = train
