"""Data sets and the loader that feeds them to a network, with PyTorch's names (``torch.utils.data``)."""

from minigrad.data.cifar import CIFAR10
from minigrad.data.collate import default_collate, default_convert
from minigrad.data.dataloader import DataLoader
from minigrad.data.dataset import Dataset, IterableDataset, Subset, TensorDataset, random_split
from minigrad.data.idx import DataError, read_idx
from minigrad.data.images import MNIST, Digits, FashionMNIST, ImageDataset
from minigrad.data.sample_random import sample_random
from minigrad.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

__all__ = [
    "CIFAR10",
    "MNIST",
    "BatchSampler",
    "DataError",
    "DataLoader",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageDataset",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "default_collate",
    "default_convert",
    "random_split",
    "read_idx",
    "sample_random",
]
