"""Pictures of what a network sees, learns and gets wrong, drawn with Matplotlib.

>>> from minigrad import plot
>>> plot.image_grid(images, titles=labels, path="digits.png")

Each function returns a Matplotlib figure, and saves it where ``path`` says, as PNG, SVG or whatever the name
ends in. Tensors may be on any device, and arrays and lists will do. Nothing here needs a display. Matplotlib
is in the extra ``plot``; without it each function raises an ImportError that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.creation import as_tensor
from minigrad.figures import (
    Path,
    as_array,
    as_pictures,
    draw_grid,
    make_figure,
    mosaic,
    saved,
    square_root_norm,
    value_ranges,
    whole_numbers,
)
from minigrad.nn.conv import Conv2d
from minigrad.nn.module import Module
from minigrad.summary import evaluating
from minigrad.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "confusion_matrix",
    "feature_maps",
    "filters",
    "image_grid",
    "training_curves",
    "worst_mistakes",
]

MOST_NUMBERS = 20  # classes of a confusion matrix whose counts are written into it
PARTS = {"train_": "training", "val_": "validation", "test_": "test", "": "training"}  # prefixes of curves


def image_grid(
    images: Any,
    titles: Sequence[Any] | None = None,
    *,
    columns: int | None = None,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    cmap: str = "gray",
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Pictures side by side, a panel for each.

    Args:
        images: (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or grey ones (N, H, W); a tensor, an array,
            or a list of single images of one shape. Where both fit, the channels come first.
        titles: one for each image.
        columns: images in a row; by default as many as make the grid about square.
        value_range: the values that are black and white; by default 0 and 255 for bytes, 0 and 1 for bool,
            and the smallest and the largest of all images, or of each image alone if ``scale_each``.
        scale_each: see there.
        cmap: Matplotlib's colour map for images of one channel.
        title: of the whole.
        path: where to save the picture.

    Raises:
        ValueError: images of another shape, none, or as many titles as there are not images.
    """
    pictures = as_pictures("image_grid", images)
    low, high = value_ranges(pictures, value_range, scale_each)
    scaled = np.clip((pictures - low) / np.where(high > low, high - low, 1), 0, 1)
    return draw_grid("image_grid", scaled, titles, columns, cmap, title, path)


def confusion_matrix(
    matrix: Any,
    classes: Sequence[Any] | None = None,
    *,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Which classes are taken for which: a row for each true class, a column for each predicted one.

    A cell's colour is its share of the row. The scale is a square root, so that rare mistakes show beside a
    full diagonal. Up to 20 classes have their counts written in. The matrix of int64 labels and predictions
    of K classes is ``mg.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)``.

    Args:
        matrix: (K, K) counts; row: label, column: prediction.
        classes: the K names; by default their numbers.
        title: by default the share of those predicted well.
        path: where to save the picture.

    Raises:
        ValueError: the matrix is not square, or the classes are not as many as its rows.
    """
    counts = as_array(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"confusion_matrix: expected counts of shape (K, K), got shape {counts.shape}")
    size = len(counts)
    names = [str(name) for name in (range(size) if classes is None else classes)]
    if len(names) != size:
        raise ValueError(f"confusion_matrix: {len(names)} classes for a matrix of shape {counts.shape}")
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals > 0, totals, 1)

    side = max(3.6, 1.6 + 0.42 * size if size <= MOST_NUMBERS else 7.0)
    figure = make_figure(side * 1.1, side)
    axis = figure.add_subplot()
    drawn = axis.imshow(shares, cmap="Blues", norm=square_root_norm())
    bar = figure.colorbar(drawn, ax=axis, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the true class")
    if size <= MOST_NUMBERS:
        axis.set_xticks(range(size), names)
        if max(map(len, names)) > 2:
            for label in axis.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(size), names)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.3 else "black" if count else "#c0c0c0"
            axis.text(column, row, f"{count:g}", ha="center", va="center", color=colour, size=8)
    right = np.trace(counts) / max(counts.sum(), 1)
    axis.set(xlabel="predicted", ylabel="true", title=title or f"{right:.2%} are predicted as what they are")
    return saved(figure, path)


def worst_mistakes(
    images: Any,
    labels: Any,
    probabilities: Any,
    classes: Sequence[Any] | None = None,
    count: int = 16,
    *,
    columns: int | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """The wrong predictions that the network was most sure of, the worst first.

    Over each stands the true class, then what it was taken for and with which probability.

    Args:
        images: as for :func:`image_grid`.
        labels: int (N,), the true classes.
        probabilities: (N, K), of each class; softmax of the network's outputs.
        classes: the K names; by default their numbers.
        count: how many at most; fewer if there are fewer mistakes.
        columns: images in a row.
        title: by default how many of how many are wrong.
        path: where to save the picture.

    Raises:
        ValueError: shapes that do not fit, labels out of range, or rows that are no probabilities.
    """
    pictures, labels, chances = (
        as_pictures("worst_mistakes", images),
        as_array(labels),
        as_array(probabilities),
    )
    _check_predictions(pictures, labels, chances, classes)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"worst_mistakes: count must be an integer of at least 1, got {count!r}")
    guesses = chances.argmax(1)
    sure = chances[np.arange(len(chances)), guesses]
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")[:count]]
    names = range(chances.shape[1]) if classes is None else classes
    captions = [f"{names[labels[i]]} seen as {names[guesses[i]]}\n{sure[i]:.1%} sure" for i in worst]
    title = title or f"{len(wrong)} of {len(labels)} are wrong" + (", the surest first" if len(wrong) else "")
    low, high = value_ranges(pictures, None, scale_each=False)
    scaled = (pictures[worst] - low) / np.where(high > low, high - low, 1)
    return draw_grid("worst_mistakes", scaled, captions, columns, "gray", title, path)


def filters(
    layer: Any,
    *,
    shape: Sequence[int] | None = None,
    count: int | None = None,
    columns: int | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """The weights of a first layer as pictures, one for each of its outputs: what each looks for.

    Those of three channels are colours around grey, which is 0. Others are red above 0, blue below it and
    white at it. All are on one scale.

    Args:
        layer: a convolution of 1 or 3 input channels, a linear layer, or a weight: (out, C, H, W) or
            (out, in).
        shape: (H, W) or (C, H, W) of the images that a linear layer sees; by default square ones.
        count: draw only the first so many.
        columns: pictures in a row.
        title: by default the number and the size of the filters.
        path: where to save the picture.

    Raises:
        TypeError: a layer that has no weight.
        ValueError: weights that are no pictures.
    """
    weight = getattr(layer, "weight", None) if isinstance(layer, Module) else layer
    if weight is None:
        raise TypeError(f"filters: expected a layer with a weight, or a weight, got {type(layer).__name__}")
    array = as_array(weight)
    if array.ndim == 2:
        array = array.reshape(len(array), *_picture_shape(array.shape[1], shape))
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise ValueError(
            f"filters: expected a weight (out, 1 or 3, H, W) or (out, in), got shape "
            f"{as_array(weight).shape}: only a layer that sees pictures has filters that are pictures"
        )
    array = array[:count]
    limit = float(np.abs(array).max()) or 1.0
    scaled = 0.5 + 0.5 * array.transpose(0, 2, 3, 1) / limit
    title = title or f"{len(array)} filters of {array.shape[2]}x{array.shape[3]}, all on one scale"
    return draw_grid("filters", scaled, None, columns, "RdBu_r", title, path)


def feature_maps(
    model: Module,
    image: Any,
    layers: Sequence[str | Module] | None = None,
    *,
    count: int = 16,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """What layers make of one image: a panel for each layer, in it its first channels, each on its own scale.

    The model runs in evaluation mode and without gradients, and is left as it was.

    Args:
        model: called with a batch of the one image, moved to the model's device.
        image: as the model expects it, normalised say: (C, H, W), or a batch of one, (1, C, H, W).
        layers: their names, as in ``model.named_modules()``, or the layers themselves; by default all
            convolutions. A layer that runs several times is shown as it was last.
        count: channels of a layer, at most.
        title: of the whole.
        path: where to save the picture.

    Raises:
        ValueError: the model has no such layer, the layer did not run, or what it gives is no maps
            (1, C, H, W).
    """
    names = _layer_names(model, layers)
    maps = _outputs(model, _one_image(image), names)
    rows = math.ceil(len(names) / 4)
    across = math.ceil(len(names) / rows)
    figure = make_figure(3 * across, 3.5 * rows + (0.3 if title else 0))
    for place, (name, output) in enumerate(maps.items(), 1):
        channels, height, width = output.shape[1:]
        axis = figure.add_subplot(rows, across, place)
        axis.imshow(mosaic(output[0, :count]), cmap="viridis", interpolation="nearest")
        shown = f"{channels}" if channels <= count else f"{count} of {channels}"
        kind = type(model.get_submodule(name)).__name__
        axis.set_title(f"{name or 'model'}: {kind}\n{shown} maps of {height}x{width}", size=9)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if title:
        figure.suptitle(title)
    return saved(figure, path)


def training_curves(
    history: Any,
    *,
    xlabel: str = "epoch",
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Values by epoch: a panel for each, training, validation and test together.

    Args:
        history: the values of each epoch, a list of dicts, as :meth:`minigrad.train.Trainer.fit` returns it;
            or the lists of values by name; or several histories by name, to compare them. Names that begin
            with ``val_`` or ``test_`` are drawn, with another line, where those without it are, or those
            that begin with ``train_``.
        xlabel: what is counted, from 1.
        title: of the whole.
        path: where to save the picture.

    Raises:
        ValueError: there are no values.
    """
    curves = _curves(history)
    if not curves:
        raise ValueError("training_curves: the history has no values")
    panels = list(dict.fromkeys(panel for panel, _, _ in curves))
    figure = make_figure(4.5 * len(panels), 3.5)
    axes = {panel: figure.add_subplot(1, len(panels), i) for i, panel in enumerate(panels, 1)}
    for panel, label, values in curves:
        style = "o--" if label.endswith("training") else "o-"
        steps = range(1, len(values) + 1)
        axes[panel].plot(steps, values, style, label=label, markersize=4 if len(values) < 40 else 0)
    for panel, axis in axes.items():
        axis.set(xlabel=xlabel, ylabel=panel)
        axis.xaxis.set_major_locator(whole_numbers())
        axis.grid(alpha=0.3)
        axis.legend()
    if title:
        figure.suptitle(title)
    return saved(figure, path)


# ---- what is drawn ----------------------------------------------------------------------------------------


def _check_predictions(
    pictures: np.ndarray, labels: np.ndarray, chances: np.ndarray, classes: Sequence[Any] | None
) -> None:
    if chances.ndim != 2 or labels.shape != chances.shape[:1] or len(pictures) != len(chances):
        raise ValueError(
            f"worst_mistakes: expected N images, labels (N,) and probabilities (N, K), got {len(pictures)} "
            f"images, labels of shape {labels.shape} and probabilities of shape {chances.shape}"
        )
    size = chances.shape[1]
    if classes is not None and len(classes) != size:
        raise ValueError(f"worst_mistakes: {len(classes)} classes for probabilities of shape {chances.shape}")
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() < size):
        raise ValueError(f"worst_mistakes: labels are integers from 0 to {size - 1}")
    if not ((chances >= 0) & (chances <= 1 + 1e-3)).all():
        raise ValueError("worst_mistakes: probabilities are from 0 to 1; take softmax(1) of the outputs")


def _picture_shape(features: int, shape: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the images with so many values."""
    if shape is None:
        side = math.isqrt(features)
        shape = (side, side)
    if len(shape) not in (2, 3) or math.prod(shape) != features:
        raise ValueError(
            f"filters: {features} weights an output are no image of shape {tuple(shape)}; shape=(C, H, W) "
            f"says what the layer sees"
        )
    *channels, height, width = shape
    return math.prod(channels), height, width


def _layer_names(model: Module, layers: Sequence[str | Module] | None) -> list[str]:
    """The names of the layers within the model, in their order."""
    named = dict(model.named_modules())
    if layers is None:
        names = [name for name, module in named.items() if isinstance(module, Conv2d)]
        if not names:
            raise ValueError("feature_maps: the model has no convolution; say which layers")
        return names
    if isinstance(layers, (str, Module)):
        layers = [layers]
    by_module = {id(module): name for name, module in named.items()}
    names = []
    for layer in layers:
        name = by_module.get(id(layer)) if isinstance(layer, Module) else layer
        if name not in named:
            shown = type(layer).__name__ if isinstance(layer, Module) else repr(layer)
            raise ValueError(
                f"feature_maps: the model has no layer {shown}; it has {', '.join(filter(None, named))}"
            )
        names.append(name)
    return names


def _one_image(image: Any) -> Tensor:
    """A batch of one image."""
    batch = as_tensor(image)
    batch = batch.unsqueeze(0) if batch.ndim == 3 else batch
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise ValueError(
            f"feature_maps: expected one image (C, H, W) or (1, C, H, W), got shape {as_tensor(image).shape}"
        )
    return batch


def _outputs(model: Module, batch: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What the layers with these names make of the batch, in this order."""
    parameter = next(model.parameters(), None)
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            found[name] = as_array(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with evaluating(model):
            model(batch if parameter is None else batch.to(parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in found:
            raise ValueError(f"feature_maps: layer {name!r} did not run")
        if found[name].ndim != 4:
            raise ValueError(
                f"feature_maps: layer {name!r} gives shape {found[name].shape}, expected maps (1, C, H, W)"
            )
    return {name: found[name] for name in names}


def _curves(history: Any) -> list[tuple[str, str, list[float]]]:
    """(panel, label, values) of each curve."""
    if not isinstance(history, Mapping):
        names = dict.fromkeys(name for epoch in history for name in epoch)
        history = {name: [epoch.get(name) for epoch in history] for name in names}
    curves = []
    for name, values in history.items():
        if len(values) and isinstance(values[0], Mapping):  # a history in several
            curves += [(panel, f"{name}, {label}", drawn) for panel, label, drawn in _curves(values)]
            continue
        prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
        drawn = [float("nan") if value is None else float(value) for value in values]
        curves.append((name.removeprefix(prefix), PARTS[prefix], drawn))
    return curves
