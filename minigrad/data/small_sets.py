"""Two small data sets that are not images: Iris, a table, and Tiny Shakespeare, a text."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.creation import from_numpy
from minigrad.data.dataset import Dataset, TensorDataset, check_train
from minigrad.data.download import RemoteFiles
from minigrad.data.idx import DataError
from minigrad.tensor import Tensor

__all__ = ["Iris", "TinyShakespeare"]


class Iris(TensorDataset):
    """150 irises of three kinds; samples are (lengths and widths of sepal and petal in cm, kind).

    Fisher, "The Use of Multiple Measurements in Taxonomic Problems", 1936,
    https://doi.org/10.24432/C56C76 (CC BY 4.0). All 150 stand ordered by kind: see :func:`random_split`.

    Args:
        root: the folder that holds ``iris/iris.data``, or will after the download. By default the folder
            named by the environment variable ``MINIGRAD_DATA``, and without that the user's cache.
        train: True for the 120 irises of TensorFlow's ``iris_training.csv``, False for the 30 others, of its
            ``iris_test.csv``, None for all.
        download: fetch a missing file, checked by sha256. Needs ``pip install "minigrad[data]"``. Never done
            into ``MINIGRAD_DATA``.

    Attributes:
        tensors: float32 (N, 4), and int64 (N,).
        classes: the names of the kinds.
        features: the names of what was measured.

    Raises:
        FileNotFoundError: the file is missing and may not be downloaded.
        DataError: the file is damaged.
    """

    classes: ClassVar[Sequence[str]] = ("Iris-setosa", "Iris-versicolor", "Iris-virginica")
    features: ClassVar[Sequence[str]] = ("sepal length", "sepal width", "petal length", "petal width")
    files: ClassVar[RemoteFiles] = RemoteFiles(
        name="Iris",
        folder="iris",
        mirrors=("https://archive.ics.uci.edu/ml/machine-learning-databases/iris/",),
        sha256={"iris.data": "6f608b71a7317216319b4d27b4d9bc84e6abd734eda7872b71a458569e2656c0"},
    )
    split_files: ClassVar[RemoteFiles] = RemoteFiles(
        name="Iris",
        folder="iris",
        mirrors=("https://storage.googleapis.com/download.tensorflow.org/data/",),
        sha256={
            "iris_training.csv": "c4c7652b14da06ba63b37f9f47d2e9aa4edced85701c9f8fce37501a1ca792e4",
            "iris_test.csv": "3b6dde8ad159a8545d4b4d8290a9cc7d49a9a8803d6ffe755884269371cc1eb1",
        },
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool | None = None,
        download: bool = True,
    ):
        if train is None:
            path, count = self.files.path("iris.data", root, download), 150
            lines, kinds = path.read_text(errors="replace").split(), tuple(self.classes)
        else:
            check_train(self, train)
            name, count = ("iris_training.csv", 120) if train else ("iris_test.csv", 30)
            path = self.split_files.path(name, root, download)
            # The first line is "120,4,setosa,versicolor,virginica", and a kind is its number.
            lines, kinds = path.read_text(errors="replace").split()[1:], ("0", "1", "2")
        features, labels = [], []
        for number, line in enumerate(lines, 1 if train is None else 2):
            try:
                *lengths, kind = line.split(",")
                labels.append(kinds.index(kind))
                features.append([float(length) for length in lengths])
                if len(lengths) != 4:
                    raise ValueError(f"{len(lengths)} numbers")
            except ValueError as error:
                raise DataError(
                    f"{path}: line {number} is {line!r:.60}, not four numbers and a kind ({error}); delete "
                    "the file and get it again"
                ) from error
        if len(labels) != count:
            raise DataError(f"{path}: expected {count} irises, found {len(labels)}; get the file again")
        super().__init__(from_numpy(np.array(features, np.float32)), from_numpy(np.array(labels)))

    def as_tensors(self) -> tuple[Tensor, Tensor]:
        """All features and all labels."""
        return self.tensors[0], self.tensors[1]


class TinyShakespeare(Dataset[tuple[Tensor, Tensor]]):
    """A megabyte of Shakespeare's plays, as numbers of characters, for a model of what comes next.

    Karpathy, https://github.com/karpathy/char-rnn. Sample i is ``(inputs, targets)``, both int64 of shape
    (block_size,): the characters from i on, and those that follow each.

    Args:
        root, download: as of :class:`Iris`; the file is ``tinyshakespeare/input.txt``.
        train: the first nine tenths of the text, else the last.
        block_size: characters in a sample.

    Attributes:
        text: this part of the text.
        data: its characters' numbers, int64.
        vocabulary: the characters by number, of the whole text.

    Raises:
        FileNotFoundError, DataError: as :class:`Iris`.
    """

    files: ClassVar[RemoteFiles] = RemoteFiles(
        name="Tiny Shakespeare",
        folder="tinyshakespeare",
        mirrors=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
        sha256={"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = True,
        block_size: int = 64,
    ):
        check_train(self, train)
        path = self.files.path("input.txt", root, download)
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text in UTF-8 ({error}); delete it and get it again") from error
        part = int(0.9 * len(text))
        self.text = text[:part] if train else text[part:]
        if not isinstance(block_size, int) or block_size < 1:
            raise ValueError(
                f"TinyShakespeare: block_size must be an integer of at least 1, got {block_size!r}"
            )
        if len(self.text) <= block_size:
            raise DataError(
                f"{path}: {len(self.text)} characters are too few for samples of {block_size}; get it again"
            )
        self.block_size = block_size
        self.vocabulary = "".join(sorted(set(text)))
        self._number_of = {character: number for number, character in enumerate(self.vocabulary)}
        self.data = self.encode(self.text)

    def encode(self, text: str) -> Tensor:
        """The numbers of characters; ValueError for one that is not in the vocabulary."""
        try:
            return from_numpy(np.array([self._number_of[character] for character in text], np.int64))
        except KeyError as error:
            raise ValueError(f"TinyShakespeare.encode: {error} is not in the vocabulary") from None

    def decode(self, numbers: Any) -> str:
        """The text of a sequence of numbers."""
        values = numbers.tolist() if isinstance(numbers, Tensor) else numbers
        return "".join(self.vocabulary[number] for number in values)

    def __len__(self) -> int:
        return len(self.text) - self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[operator.index(index)]
        return self.data[index : index + self.block_size], self.data[index + 1 : index + self.block_size + 1]

    def get_batch(self, indices: Sequence[int]) -> list[Tensor]:
        places = np.asarray(indices, np.int64)[:, None] + np.arange(self.block_size)
        numbers = self.data.numpy()
        return [from_numpy(numbers[places]), from_numpy(numbers[places + 1])]
