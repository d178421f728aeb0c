"""What :mod:`minigrad.plot` draws with: Matplotlib's figures, and images as arrays that it can show."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "as_array",
    "as_pictures",
    "draw_grid",
    "make_figure",
    "mosaic",
    "saved",
    "square_root_norm",
    "value_ranges",
    "whole_numbers",
]

Path = str | os.PathLike[str]

PANEL = 1.1  # inches: the side of a picture in a grid
TITLE = 0.17  # inches: a line of its title
CHARACTER = 0.075  # inches: one of such a line
GAP = 0.08  # inches: between pictures


def make_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty figure, of inches."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would look for a display
    except ImportError as error:
        raise ImportError('a picture needs Matplotlib: pip install "minigrad[plot]"') from error
    return Figure(figsize=(width, height), layout=layout)


def square_root_norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", integer=True, min_n_ticks=1)


def saved(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure


def draw_grid(
    op: str,
    pictures: np.ndarray,
    titles: Sequence[Any] | None,
    columns: int | None,
    cmap: str,
    title: str | None,
    path: Path | None,
) -> Figure:
    """A panel for each of the pictures (N, H, W, C), whose values are in [0, 1]."""
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{op}: {len(titles)} titles for {len(pictures)} images")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"{op}: columns must be an integer of at least 1, got {columns!r}")
    captions = [str(text) for text in titles or ()]
    height, width = pictures.shape[1:3]
    across = max(1, min(columns or math.ceil(math.sqrt(len(pictures) * height / width)), len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    lines = max((text.count("\n") + 1 for text in captions), default=0)
    widest = max((len(line) for text in captions for line in text.split("\n")), default=0)
    panel_width = max(PANEL, CHARACTER * widest)
    panel_height, between = panel_width * height / width, lines * TITLE + GAP
    top = (0.35 if title else 0) + between
    figure = make_figure(
        across * (panel_width + GAP) + GAP,
        top + down * panel_height + (down - 1) * between + GAP,
        layout=None,
    )
    # By hand: Matplotlib's own layout takes a second for twenty panels.
    horizontal, vertical = GAP / figure.get_figwidth(), 1 / figure.get_figheight()
    figure.subplots_adjust(
        left=horizontal,
        right=1 - horizontal,
        bottom=GAP * vertical,
        top=1 - top * vertical,
        wspace=GAP / panel_width,
        hspace=between / panel_height,
    )
    for place, picture in enumerate(pictures, 1):
        axis = figure.add_subplot(down, across, place)
        shown = picture[..., 0] if picture.shape[-1] == 1 else picture
        axis.imshow(shown, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        if captions:
            axis.set_title(captions[place - 1], size=8, pad=3)
    if title:
        figure.suptitle(title, size=11, y=1 - 0.08 * vertical, va="top")
    return saved(figure, path)


def mosaic(maps: np.ndarray) -> np.ndarray:
    """Maps (C, H, W), each from 0 to 1, as one image, with lines that are NaN, and so white, between them."""
    channels, height, width = maps.shape
    across = math.ceil(math.sqrt(channels))
    down = math.ceil(channels / across)
    image = np.full((down * (height + 1) - 1, across * (width + 1) - 1), np.nan)
    for i, one in enumerate(maps.astype(np.float64)):
        top, left = i // across * (height + 1), i % across * (width + 1)
        span = np.ptp(one)
        image[top : top + height, left : left + width] = (one - one.min()) / (span if span > 0 else 1)
    return image


def as_array(values: Any) -> np.ndarray:
    """Values of a tensor on any device, an array or a list."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def as_pictures(op: str, images: Any) -> np.ndarray:
    """Images (N, H, W, C) with 1 or 3 channels."""
    if isinstance(images, (list, tuple)):
        parts = [as_array(image) for image in images]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"{op}: images of several shapes: {sorted({part.shape for part in parts})}")
        array = np.stack(parts) if parts else np.asarray(parts)
    else:
        array = as_array(images)
    if not array.size:
        raise ValueError(f"{op}: there are no images: got shape {array.shape}")
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array
    raise ValueError(
        f"{op}: expected images (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W), got shape "
        f"{array.shape}"
    )


def value_ranges(
    pictures: np.ndarray, value_range: tuple[float, float] | None, scale_each: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The values that are black and white, of shape (N, 1, 1, 1) or (1, 1, 1, 1); of finite values."""
    if value_range is None and pictures.dtype.kind != "f" and not scale_each:
        value_range = (0, 1) if pictures.dtype == bool else (0, 255) if pictures.dtype == np.uint8 else None
    if value_range is not None:
        low, high = value_range
        return np.full((1, 1, 1, 1), float(low)), np.full((1, 1, 1, 1), float(high))
    values = pictures.astype(np.float64)
    axes = (1, 2, 3) if scale_each else None
    finite = np.isfinite(values)
    low = np.min(values, axes, keepdims=True, where=finite, initial=np.inf)
    high = np.max(values, axes, keepdims=True, where=finite, initial=-np.inf)
    return np.where(low <= high, low, 0.0), np.where(low <= high, high, 1.0)
