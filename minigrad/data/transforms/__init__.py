"""Transforms of images (resizing, crops, flips, normalisation), with torchvision's names.

A transform takes a Tensor or an array, one image (C, H, W) or a batch (N, C, H, W), or a Pillow image, and
returns the same kind. In a batch every image has random numbers of its own: :class:`ImageDataset` hands whole
batches over, which is many times quicker.

On the CPU random numbers are those of the batch (:func:`sample_random`), the same for any number of the
loader's workers, or come from the ``generator`` that a transform is given. Tensors on a card, or on the
simulator, are transformed there, by numbers that are drawn there; a step that does so can be captured
(:func:`minigrad.capture`).
"""

from minigrad.data.transforms.base import Compose, Lambda, Transform
from minigrad.data.transforms.geometry import (
    CenterCrop,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
)
from minigrad.data.transforms.values import ColorJitter, Grayscale, Normalize, RandomErasing, ToTensor

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Grayscale",
    "Lambda",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "ToTensor",
    "Transform",
]
