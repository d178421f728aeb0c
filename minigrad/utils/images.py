"""``make_grid`` and ``save_image``, which PyTorch's users know from ``torchvision.utils``."""

from __future__ import annotations

import os
from typing import Any

from minigrad.creation import full
from minigrad.ops.join import concat, stack
from minigrad.tensor import Tensor

__all__ = ["make_grid", "save_image"]


def make_grid(
    tensor: Any,
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = False,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0.0,
) -> Tensor:
    """Images (N, C, H, W) side by side in one (3, height, width), outside the graph.

    Args:
        tensor: also (N, 1, H, W), (C, H, W) and (H, W), or a list of images of one shape.
        nrow: how many stand in a row.
        padding: pixels between them and around.
        normalize: stretch the values to [0, 1]: from ``value_range``, or from the smallest and the largest of
            all images, or of each alone (``scale_each``).
        pad_value: of the pixels between.
    """
    images = stack(list(tensor)) if isinstance(tensor, (list, tuple)) and tensor else tensor
    if not isinstance(images, Tensor) or images.ndim not in (2, 3, 4) or not len(images):
        got = f"shape {images.shape}" if isinstance(images, Tensor) else repr(images)
        raise ValueError(f"make_grid: expected images (N, C, H, W), or a list of images, got {got:.60}")
    if nrow < 1:
        raise ValueError(f"make_grid: nrow must be at least 1, got {nrow}")
    images = images.detach()
    if images.ndim < 4:
        images = images.reshape(1, *(1,) * (3 - images.ndim), *images.shape)
    if images.shape[1] == 1:
        images = concat([images] * 3, 1)
    if normalize:
        parts = list(images) if scale_each else [images]
        images = stack([_stretched(part, value_range) for part in parts]).reshape(images.shape)
    count, channels, height, width = images.shape
    if count == 1:
        return images[0]
    columns = min(nrow, count)
    height, width = height + padding, width + padding
    rows = -(-count // columns)
    size = (channels, rows * height + padding, columns * width + padding)
    grid = full(size, pad_value, dtype=images.dtype, device=images.device)
    for i in range(count):
        top, left = i // columns * height + padding, i % columns * width + padding
        grid[:, top : top + height - padding, left : left + width - padding] = images[i]
    return grid


def _stretched(images: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    low, high = value_range or (images.min().item(), images.max().item())
    return (images.clamp(low, high) - low) / max(high - low, 1e-5)


def save_image(tensor: Any, fp: str | os.PathLike[str], format: str | None = None, **options: Any) -> None:
    """Write images, of values in [0, 1], as one picture; ``options`` are those of :func:`make_grid`.

    ``format`` is Pillow's name of it, by default what the name of the file says.

    Raises:
        ImportError: Pillow is missing: ``pip install "minigrad[images]"``.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('save_image needs Pillow: pip install "minigrad[images]"') from error
    pixels = (make_grid(tensor, **options) * 255 + 0.5).clamp(0, 255).permute(1, 2, 0)
    Image.fromarray(pixels.to("cpu").byte().numpy()).save(fp, format)
