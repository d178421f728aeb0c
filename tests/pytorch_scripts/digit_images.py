"""The handwritten digits that ship with minigrad, as NumPy arrays: data for scripts that know PyTorch alone."""

from pathlib import Path

import numpy as np

ARCHIVE = Path(__file__).parents[2] / "minigrad/data/digits.npz"


def load_digits(train=True, size=8):
    """Images (n, size, size), uint8 from 0 to 255, and labels (n,), int64; ``size`` is 8, 16, 24 or 28."""
    with np.load(ARCHIVE) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    part = slice(0, 1437) if train else slice(1437, None)
    images = (images[part].astype(np.float64) * 255 / 16).astype(np.uint8)
    factor = min(size, 24) // 8
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    border = (size - 8 * factor) // 2
    return np.pad(images, ((0, 0), (border, border), (border, border))), labels[part]
