"""Data sets and the loader that feeds them to a network, with PyTorch's names (``torch.utils.data``)."""

from minigrad.data import transforms
from minigrad.data.cifar import CIFAR10
from minigrad.data.collate import default_collate, default_convert
from minigrad.data.dataloader import DataLoader
from minigrad.data.dataset import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    get_worker_info,
    random_split,
)
from minigrad.data.folder import Flowers, ImageFolder, read_image
from minigrad.data.idx import DataError, read_idx
from minigrad.data.images import MNIST, Digits, FashionMNIST, ImageDataset
from minigrad.data.sample_random import sample_random
from minigrad.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from minigrad.data.small_sets import Iris, TinyShakespeare

__all__ = [
    "CIFAR10",
    "MNIST",
    "BatchSampler",
    "ConcatDataset",
    "DataError",
    "DataLoader",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Flowers",
    "ImageDataset",
    "ImageFolder",
    "Iris",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "TinyShakespeare",
    "WeightedRandomSampler",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
    "read_idx",
    "read_image",
    "sample_random",
    "transforms",
]
