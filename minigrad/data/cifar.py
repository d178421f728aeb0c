"""CIFAR-10 from its published binary files."""

from __future__ import annotations

import importlib.util
import lzma
import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from minigrad.data.dataset import check_train
from minigrad.data.download import cache_folder
from minigrad.data.idx import DataError
from minigrad.data.images import ImageDataset, Transform

__all__ = ["CIFAR10"]

CHANNELS, SIZE = 3, 32
RECORD = 1 + CHANNELS * SIZE * SIZE  # bytes: the label, then all red, all green and all blue values


class CIFAR10(ImageDataset):
    """CIFAR-10: 50,000 training and 10,000 test images of ten kinds of things, 32x32 pixels in colour.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html. Samples are ``(image, label)``: a float32 Tensor of shape
    (3, 32, 32) with values in [0, 1], and an int.

    Args:
        root: the folder that holds ``cifar10/data_batch_1.bin`` to ``data_batch_5.bin`` and
            ``test_batch.bin``, each also as ``.bin.xz``, or will after the download. By default the folder
            named by the environment variable ``MINIGRAD_DATA``, and without that the user's cache
            (``~/.cache/minigrad``).
        train: the training images, else the test images.
        download: fetch the archive of 170 MB, checked by its md5, where a file is missing. Needs
            ``pip install "minigrad[data]"``. Never done into ``MINIGRAD_DATA``.
        transform, target_transform: applied to each image Tensor and each label.

    Raises:
        FileNotFoundError: a file is missing and may not be downloaded.
        DataError: a file is damaged or is not the one expected.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5: ClassVar[str] = "c32a1d4ab5d03f1284b67883e8d87530"  # as the authors' page has it
    archive_folder: ClassVar[str] = "cifar-10-batches-bin"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ):
        check_train(self, train)
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        # All are located before the first is read, so that a missing one shows at once.
        paths = [self._path(name, root, download) for name in names]
        records = np.concatenate([self._read(path) for path in paths])
        images = np.ascontiguousarray(records[:, 1:]).reshape(-1, CHANNELS, SIZE, SIZE)
        super().__init__(images, records[:, 0], transform, target_transform)
        self.train = train

    def _path(self, name: str, root: str | os.PathLike[str] | None, download: bool) -> Path:
        environment = os.environ.get("MINIGRAD_DATA") if root is None else None
        folder = Path(root or environment or cache_folder()).expanduser() / "cifar10"
        for path in (folder / name, folder / f"{name}.xz", folder / self.archive_folder / name):
            if path.is_file():
                return path
        missing = f"{folder / name} is missing"
        if environment:
            raise FileNotFoundError(
                f"{missing}: MINIGRAD_DATA is set to {environment!r}, so CIFAR-10 is read from its folder "
                f"'cifar10' and not downloaded. Unpack {self.url} there, or unset MINIGRAD_DATA"
            )
        if not download:
            raise FileNotFoundError(
                f"{missing}: pass download=True to fetch it, or unpack {self.url} in {folder}"
            )
        self._download(folder)
        return folder / self.archive_folder / name

    def _download(self, folder: Path) -> None:
        try:
            import pooch  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                f'CIFAR-10 is not in {folder}, and downloading it needs pooch: pip install "minigrad[data]"'
            ) from error
        try:
            pooch.retrieve(
                url=self.url,
                known_hash=f"md5:{self.md5}",
                fname=self.url.rpartition("/")[2],
                path=folder,
                processor=pooch.Untar(extract_dir="."),
                progressbar=importlib.util.find_spec("tqdm") is not None,
            )
        except (OSError, ValueError) as error:  # no connection, no such address; a wrong checksum
            raise OSError(
                f"cannot download CIFAR-10 from {self.url}: {error}\n"
                f"Check the connection, or get the archive by other means and unpack it in {folder}"
            ) from error

    def _read(self, path: Path) -> np.ndarray:
        """The records of a file, uint8 (N, 3073)."""
        try:
            content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        except lzma.LZMAError as error:
            raise DataError(f"{path} is damaged: {error}; delete it and get it again") from error
        if not content or len(content) % RECORD:
            raise DataError(
                f"{path}: expected records of {RECORD} bytes, the file has {len(content)}; "
                "delete it and get it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
        if (largest := records[:, 0].max()) >= len(self.classes):
            raise DataError(f"{path}: expected labels from 0 to {len(self.classes) - 1}, found {largest}")
        return records
