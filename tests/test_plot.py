"""Pictures: a panel for each thing to see, in it the right data, over it the right title."""

import builtins

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, plot
from minigrad.train import History

pytest.importorskip("matplotlib")


def drawn(axis):
    """The values of the image in a panel, as they were handed to Matplotlib."""
    (image,) = axis.images
    return np.ma.getdata(image.get_array())


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


@pytest.fixture
def photos(rng):
    return rng.standard_normal((5, 3, 6, 8)).astype(np.float32)


# ---- image_grid -------------------------------------------------------------------------------------------


def test_a_panel_for_each_image_scaled_to_the_range_of_all(photos, tmp_path):
    figure = plot.image_grid(mg.tensor(photos), "abcde", columns=2, title="five", path=tmp_path / "grid.png")
    assert titles(figure) == list("abcde") and figure.get_suptitle() == "five"
    low, high = photos.min(), photos.max()
    for axis, photo in zip(figure.axes, photos, strict=True):
        np.testing.assert_allclose(drawn(axis), (photo.transpose(1, 2, 0) - low) / (high - low), atol=1e-6)
    spec = figure.axes[0].get_gridspec()
    assert (spec.nrows, spec.ncols) == (3, 2)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_layouts_of_images(rng, photos):
    last = plot.image_grid(photos.transpose(0, 2, 3, 1))
    first = plot.image_grid(photos)
    as_list = plot.image_grid([mg.tensor(photo) for photo in photos])
    for a, b, c in zip(first.axes, last.axes, as_list.axes, strict=True):
        assert (drawn(a) == drawn(b)).all() and (drawn(a) == drawn(c)).all()
    grey = rng.random((4, 5, 7))
    for images in (grey, grey[:, None], grey[..., None], list(grey)):
        figure = plot.image_grid(images, value_range=(0, 1))
        assert [drawn(axis).shape for axis in figure.axes] == [(5, 7)] * 4
        np.testing.assert_allclose(drawn(figure.axes[3]), grey[3])


def test_ranges(rng):
    images = np.stack([np.full((4, 4), 2.0), np.arange(16.0).reshape(4, 4)])
    assert drawn(plot.image_grid(images).axes[0])[0, 0] == 2 / 15
    alone = plot.image_grid(images, scale_each=True)
    assert (drawn(alone.axes[0]) == 0).all() and drawn(alone.axes[1]).max() == 1
    clipped = plot.image_grid(images, value_range=(1, 3))
    assert (drawn(clipped.axes[0]) == 0.5).all() and drawn(clipped.axes[1]).max() == 1
    as_bytes = plot.image_grid(np.full((1, 2, 2), 51, np.uint8))
    assert (drawn(as_bytes.axes[0]) == 0.2).all()
    assert (drawn(plot.image_grid(np.ones((1, 2, 2), bool)).axes[0]) == 1).all()
    images[0, 0, 0], images[0, 0, 1] = np.nan, np.inf  # do not spoil the range of the others
    assert drawn(plot.image_grid(images).axes[0])[1, 1] == 2 / 15


def test_formats(photos, tmp_path):
    plot.image_grid(photos, path=tmp_path / "grid.svg")
    assert "<svg" in (tmp_path / "grid.svg").read_text()


# ---- confusion_matrix -------------------------------------------------------------------------------------


def test_a_confusion_matrix_shows_shares_and_counts():
    counts = mg.tensor([[8, 2, 0], [0, 5, 0], [1, 0, 3]])
    figure = plot.confusion_matrix(counts, ["cat", "dog", "eel"])
    axis = figure.axes[0]
    np.testing.assert_allclose(drawn(axis), [[0.8, 0.2, 0], [0, 1, 0], [0.25, 0, 0.75]])
    assert [text.get_text() for text in axis.texts] == ["8", "2", "0", "0", "5", "0", "1", "0", "3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog", "eel"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
    assert axis.get_title().startswith("84.21%")
    assert not plot.confusion_matrix(np.eye(30)).axes[0].texts  # too small to read
    assert (drawn(plot.confusion_matrix(np.zeros((2, 2))).axes[0]) == 0).all()  # a class without samples


# ---- worst_mistakes ---------------------------------------------------------------------------------------


def test_the_worst_mistakes_come_first(rng):
    images = rng.random((5, 1, 4, 4))
    labels = mg.tensor([0, 1, 2, 0, 1])
    chances = np.array([[0.4, 0.6, 0], [0.1, 0.8, 0.1], [0.9, 0.1, 0], [0.2, 0.1, 0.7], [0, 1, 0]])
    figure = plot.worst_mistakes(images, labels, chances, ["cat", "dog", "eel"])
    assert titles(figure) == [
        "eel seen as cat\n90.0% sure",
        "cat seen as eel\n70.0% sure",
        "cat seen as dog\n60.0% sure",
    ]
    assert figure.get_suptitle() == "3 of 5 are wrong, the surest first"
    low, high = images.min(), images.max()
    for axis, index in zip(figure.axes, (2, 3, 0), strict=True):
        np.testing.assert_allclose(drawn(axis), (images[index, 0] - low) / (high - low))
    assert titles(plot.worst_mistakes(images, labels, chances, count=1)) == ["2 seen as 0\n90.0% sure"]
    none = plot.worst_mistakes(images[1:2], labels[1:2], chances[1:2])
    assert not none.axes and none.get_suptitle() == "0 of 1 are wrong"


# ---- filters and feature_maps -----------------------------------------------------------------------------


def test_filters_are_the_weights_around_grey(rng):
    for channels in (1, 3):
        layer = nn.Conv2d(channels, 6, 5)
        weight = layer.weight.detach().numpy()
        figure = plot.filters(layer)
        assert len(figure.axes) == 6
        for axis, one in zip(figure.axes, weight, strict=True):
            scaled = 0.5 + 0.5 * one.transpose(1, 2, 0) / np.abs(weight).max()
            np.testing.assert_allclose(drawn(axis), scaled[..., 0] if channels == 1 else scaled)
    assert len(plot.filters(layer, count=2).axes) == len(plot.filters(layer.weight[:2]).axes) == 2
    dense = nn.Linear(48, 3)
    found = [drawn(axis) for axis in plot.filters(dense, shape=(3, 2, 8)).axes]
    assert [one.shape for one in found] == [(2, 8, 3)] * 3
    assert [drawn(axis).shape for axis in plot.filters(nn.Linear(49, 2)).axes] == [(7, 7)] * 2


def network():
    mg.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 20, 3), nn.Flatten()
    )


def has_hooks(module):
    return any((module._hooks or {}).values())


def test_feature_maps_are_the_outputs_of_the_layers(rng):
    model = network()
    image = mg.tensor(rng.standard_normal((1, 10, 12)).astype(np.float32))
    figure = plot.feature_maps(model, image, ["2", model[4]], title="one digit")
    assert titles(figure) == ["2: ReLU\n5 maps of 8x10", "4: Conv2d\n16 of 20 maps of 2x3"]
    assert figure.get_suptitle() == "one digit"
    assert model.training and not any(has_hooks(module) for module in model.modules())

    with mg.no_grad():
        maps = model.eval()[:3](image.unsqueeze(0)).numpy()[0]
    mosaic = drawn(figure.axes[0])
    assert mosaic.shape == (2 * 8 + 1, 3 * 10 + 2)
    for i, one in enumerate(maps):
        top, left = i // 3 * 9, i % 3 * 11
        expected = (one - one.min()) / (one.max() - one.min())
        np.testing.assert_allclose(mosaic[top : top + 8, left : left + 10], expected, atol=1e-6)
    assert np.isnan(mosaic[8]).all()  # the line between two rows
    assert len(plot.feature_maps(model, image.unsqueeze(0)).axes) == 2  # all convolutions


def test_hooks_go_when_the_model_fails(photos):
    model = network()
    with pytest.raises(ValueError):
        plot.feature_maps(model, photos[0])
    assert model.training and not any(has_hooks(module) for module in model.modules())


# ---- training_curves --------------------------------------------------------------------------------------


def test_curves_of_one_history_and_of_several():
    history = History([{"loss": 2.0, "val_loss": 3.0}, {"loss": 1.0, "val_loss": 2.0, "accuracy": 0.5}])
    figure = plot.training_curves(history)
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "accuracy"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "validation"]
    assert np.isnan(figure.axes[1].lines[0].get_ydata()[0])

    by_name = plot.training_curves({"train_loss": [2, 1], "test_loss": [3, 2]}, xlabel="1000 steps")
    (axis,) = by_name.axes
    assert [line.get_label() for line in axis.lines] == ["training", "test"]
    assert list(axis.lines[1].get_ydata()) == [3, 2] and axis.get_xlabel() == "1000 steps"

    several = plot.training_curves({"SGD": history, "Adam": history})
    assert [line.get_label() for line in several.axes[0].lines] == [
        "SGD, training",
        "SGD, validation",
        "Adam, training",
        "Adam, validation",
    ]


# ---- wrong input ------------------------------------------------------------------------------------------

IMAGES, CHANCES = np.zeros((2, 1, 4, 4)), np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    "draw, error, text",
    [
        (
            lambda: plot.image_grid(np.zeros((2, 4, 5, 6))),
            ValueError,
            r"image_grid: .* got shape \(2, 4, 5, 6\)",
        ),
        (lambda: plot.image_grid(np.zeros((4, 4))), ValueError, r"got shape \(4, 4\)"),
        (lambda: plot.image_grid([]), ValueError, "there are no images"),
        (lambda: plot.image_grid([IMAGES[0], IMAGES[0, 0]]), ValueError, "images of several shapes"),
        (lambda: plot.image_grid(IMAGES, ["one"]), ValueError, "1 titles for 2 images"),
        (lambda: plot.image_grid(IMAGES, columns=0), ValueError, "columns must be an integer"),
        (lambda: plot.confusion_matrix(np.zeros((2, 3))), ValueError, r"\(K, K\), got shape \(2, 3\)"),
        (lambda: plot.confusion_matrix(np.eye(3), "ab"), ValueError, "2 classes for a matrix"),
        (lambda: plot.worst_mistakes(IMAGES, [0], CHANCES), ValueError, r"labels of shape \(1,\)"),
        (lambda: plot.worst_mistakes(IMAGES, [0, 2], CHANCES), ValueError, "integers from 0 to 1"),
        (lambda: plot.worst_mistakes(IMAGES, [0, 1], 9 * CHANCES), ValueError, r"softmax\(1\)"),
        (lambda: plot.worst_mistakes(IMAGES, [0, 1], CHANCES, "abc"), ValueError, "3 classes"),
        (lambda: plot.worst_mistakes(IMAGES, [0, 1], CHANCES, count=0), ValueError, "count must be"),
        (lambda: plot.filters(nn.ReLU()), TypeError, "expected a layer with a weight.*got ReLU"),
        (lambda: plot.filters(nn.Conv2d(4, 2, 3)), ValueError, r"got shape \(2, 4, 3, 3\)"),
        (lambda: plot.filters(nn.Linear(12, 2)), ValueError, r"no image of shape \(3, 3\); shape="),
        (lambda: plot.feature_maps(network(), IMAGES, ["0"]), ValueError, "expected one image"),
        (lambda: plot.feature_maps(network(), IMAGES[0], ["7"]), ValueError, "no layer '7'; it has 0, 1"),
        (lambda: plot.feature_maps(network(), IMAGES[0], [nn.ReLU()]), ValueError, "no layer ReLU"),
        (lambda: plot.feature_maps(nn.ReLU(), IMAGES[0]), ValueError, "the model has no convolution"),
        (lambda: plot.training_curves([]), ValueError, "the history has no values"),
    ],
)
def test_wrong_input_is_told(draw, error, text):
    with pytest.raises(error, match=text):
        draw()


def test_layers_that_give_no_maps(rng):
    image = mg.zeros(1, 10, 12)
    model = network()
    with pytest.raises(ValueError, match=r"layer '5' gives shape \(1, 120\), expected maps"):
        plot.feature_maps(model, image, ["5"])
    model.unused = nn.ReLU()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="layer 'unused' did not run"):
        plot.feature_maps(model, image, ["unused"])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "minigrad\[plot\]"'):
        History([{"loss": 1.0}]).plot()
