"""Transforms of images: what each does, the same for images, batches and workers, and Pillow's pictures."""

import colorsys
import math

import numpy as np
import pytest

import minigrad as mg
from minigrad.data import DataLoader, Digits, ImageDataset
from minigrad.data import transforms as T
from minigrad.data.resample import inverse_affine, warp
from minigrad.utils import make_grid, save_image

RANDOM = [
    T.RandomCrop(5, padding=2),
    T.RandomHorizontalFlip(),
    T.RandomVerticalFlip(0.3),
    T.RandomRotation(30),
    T.RandomAffine(10, (0.2, 0.1), (0.8, 1.2), 5, "bilinear"),
    T.RandomResizedCrop(5),
    T.ColorJitter(0.5, 0.5, 0.5, 0.2),
    T.RandomErasing(0.8, value="random"),
]


@pytest.fixture
def image(rng):
    return rng.random((3, 6, 8)).astype(np.float32)


def drawn(transform, seed, image):
    mg.manual_seed(seed)
    return transform(image)


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
def test_random_transforms(transform, image):
    before = image.copy()
    batch = np.stack([image] * 20)
    first, again, other = (drawn(transform, seed, batch) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert first.dtype == np.float32 and len({part.tobytes() for part in first}) > 1  # each by itself
    as_tensor = drawn(transform, 1, mg.tensor(batch))
    assert isinstance(as_tensor, mg.Tensor) and (as_tensor.numpy() == first).all()
    assert drawn(transform, 1, image).shape == first.shape[1:]
    as_bytes = drawn(transform, 1, (batch * 255).astype(np.uint8))
    assert as_bytes.dtype == np.uint8 and as_bytes.shape == first.shape
    assert (image == before).all()


def test_a_crop_is_a_part_of_the_padded_image(image):
    padded = np.pad(image, ((0, 0), (1, 1), (2, 2)), "reflect")
    found = T.RandomCrop((4, 7), padding=(2, 1), padding_mode="reflect")(image)
    parts = [padded[:, t : t + 4, f : f + 7] for t in range(5) for f in range(6)]
    assert any((found == part).all() for part in parts)
    with pytest.raises(ValueError, match="6x8 pixels are too few for a part of 7x7"):
        T.RandomCrop(7)(image)
    assert T.RandomCrop(9, pad_if_needed=True)(image).shape == (3, 9, 9)


def test_flips_and_centers(image):
    assert (T.RandomHorizontalFlip(1.0)(image) == image[:, :, ::-1]).all()
    assert (T.RandomVerticalFlip(1.0)(image) == image[:, ::-1]).all()
    assert (T.RandomVerticalFlip(0.0)(image) == image).all()
    assert (T.CenterCrop((2, 4))(image) == image[:, 2:4, 2:6]).all()
    assert (T.CenterCrop(10)(image)[:, 2:8, 1:9] == image).all()


def test_quarters_of_a_turn_are_exact(rng):
    image = rng.random((2, 5, 5))
    for mode in ("nearest", "bilinear"):
        turned = T.RandomRotation((90, 90), mode)(image)
        np.testing.assert_allclose(turned, np.rot90(image, 1, (1, 2)), atol=1e-6)  # float32 weights
    moved = T.RandomAffine(0, scale=(2, 2))(image)
    assert (moved[:, 2, 2] == image[:, 2, 2]).all() and (moved[:, 0, 0] == image[:, 1, 1]).all()


def sampled(image, y, x, fill):
    """``image`` (H, W) at (y, x), between its four pixels, by the definition."""
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            value += weight * (image[row, column] if inside else fill)
    return value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_image_of_a_batch_is_turned_by_itself(rng, dtype):
    """Scaled by s and turned by d, a pixel comes from where turning back and shrinking leads."""
    images = rng.standard_normal((3, 2, 5, 7)).astype(dtype)
    degrees, move, scale = rng.uniform(-180, 180, 3), rng.integers(-3, 4, (3, 2)), rng.uniform(0.5, 2, 3)
    matrices = inverse_affine(np, degrees, scale, *move.T, np.zeros(3), np.zeros(3))
    found = warp(images, matrices, fill=4.0, bilinear=True)
    assert found.dtype == dtype
    for n, row, column in np.ndindex(3, 5, 7):
        x, y = column - 3 - move[n, 0], row - 2 - move[n, 1]
        cos, sin = math.cos(math.radians(degrees[n])), math.sin(math.radians(degrees[n]))
        x, y = (cos * x + sin * y) / scale[n], (cos * y - sin * x) / scale[n]
        for channel in range(2):
            expected = sampled(images[n, channel], y + 2, x + 3, 4.0)
            assert abs(found[n, channel, row, column] - expected) < 4e-6  # four float32 weights of values < 8


def test_resize_is_pillows(rng):
    image_module = pytest.importorskip("PIL.Image")
    for shape, size in (((17, 23), (8, 9)), ((6, 7), (13, 20)), ((9, 9), (4, 15))):
        image = rng.random(shape).astype(np.float32)
        picture = image_module.fromarray(image).resize(size[::-1], image_module.Resampling.BILINEAR)
        np.testing.assert_allclose(T.Resize(size)(image[None])[0], np.asarray(picture), atol=1e-5)
    assert T.Resize(4)(np.zeros((1, 8, 12))).shape == (1, 4, 6)


def test_colours(image):
    twice = T.ColorJitter(brightness=(2, 2))(image)
    np.testing.assert_allclose(twice, np.clip(2 * image, 0, 1), rtol=1e-6)
    grey = T.ColorJitter(saturation=(0, 0))(image)
    luma = np.tensordot([0.299, 0.587, 0.114], image, 1)
    np.testing.assert_allclose(grey, np.stack([luma] * 3), rtol=1e-5)
    flat = T.ColorJitter(contrast=(0, 0))(image)
    np.testing.assert_allclose(flat, luma.mean(), rtol=1e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.1, 0.37, 0.5])
def test_hues(image, turns):
    image[:, 1] = image[:1, 1]  # grey has none
    image[0, 2] = image[1, 2]  # two of the highest value
    turned = T.ColorJitter(hue=(turns, turns))(image)
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(3, -1).T]
    expected = [colorsys.hsv_to_rgb((hue + turns) % 1, *rest) for hue, *rest in pixels]
    np.testing.assert_allclose(turned.reshape(3, -1).T, expected, atol=1e-6)
    grey = image[:1]
    assert (T.ColorJitter(hue=0.3)(grey) == grey).all()
    with pytest.raises(ValueError, match=r"hue is up to half a turn, 0.5, got 0.6"):
        T.ColorJitter(hue=0.6)


def test_erasing_fills_a_rectangle(image):
    erased = T.RandomErasing(1.0, value=[7, 8, 9])(image)
    changed = (erased != image).all(0)
    rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (erased[:, changed] == [[7], [8], [9]]).all() and 0 < changed.mean() < 0.5


def test_to_tensor_and_normalize(image):
    pixels = (image.transpose(1, 2, 0) * 255).astype(np.uint8)
    tensor = T.ToTensor()(pixels)
    assert tensor.dtype == np.float32 and tensor.shape == (3, 6, 8)
    np.testing.assert_array_equal(tensor.numpy(), pixels.transpose(2, 0, 1) / np.float32(255))
    assert T.ToTensor()(pixels[:, :, 0]).shape == (1, 6, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = T.Compose([T.ToTensor(), T.Normalize(mean, std)])(pixels).numpy()
    for channel in range(3):
        expected = (tensor.numpy()[channel] - np.float32(mean[channel])) / std[channel]
        np.testing.assert_allclose(found[channel], expected, rtol=1e-6)
    for make, error, text in (
        (lambda: T.Normalize([0], [0]), ValueError, "std must not be 0"),
        (lambda: T.Normalize([0, 0], [1, 1])(image), ValueError, r"2 means for images of shape \(3, 6, 8\)"),
        (lambda: T.Normalize([0], [1])(pixels.transpose(2, 0, 1)), TypeError, r"uint8; put ToTensor\(\)"),
        (lambda: T.Resize(4)(pixels[0]), TypeError, r"got ndarray of shape \(8, 3\)"),
        (lambda: T.Resize(4)("picture"), TypeError, "got str"),
        (lambda: T.RandomRotation(3, "cubic"), ValueError, "got 'cubic'"),
    ):
        with pytest.raises(error, match=text):
            make()


def test_pictures_stay_pictures(rng):
    image_module = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
    picture = image_module.fromarray(pixels)
    mirrored = T.RandomHorizontalFlip(1.0)(picture)
    assert isinstance(mirrored, image_module.Image) and (np.asarray(mirrored) == pixels[:, ::-1]).all()
    grey = T.CenterCrop(4)(picture.convert("L"))
    assert grey.mode == "L" and grey.size == (4, 4)
    tensor = T.Compose([T.Resize(5), T.CenterCrop(4), T.ToTensor()])(picture)
    assert tensor.shape == (3, 4, 4) and 0 <= tensor.min().item() <= tensor.max().item() <= 1


def batches(transform, workers, epochs=2):
    loader = DataLoader(Digits(transform=transform), 50, shuffle=True, num_workers=workers, seed=3)
    return [[images.numpy().tobytes() for images, _ in loader] for _ in range(epochs)]


@pytest.mark.parametrize("whole_batches", [True, False])
def test_workers_do_not_change_what_is_drawn(whole_batches):
    steps = [T.RandomCrop(8, padding=2), T.RandomErasing()]
    transform = T.Compose(steps if whole_batches else [*steps, lambda image: image])
    assert transform.takes_batches is whole_batches
    first, second = batches(transform, 0)
    assert batches(transform, 3) == [first, second] and first != second


def test_a_generator_of_its_own():
    image = np.arange(64.0).reshape(1, 8, 8)
    a, b = (T.RandomCrop(3, generator=mg.Generator(1)) for _ in range(2))
    assert [a(image).tolist() for _ in range(5)] == [b(image).tolist() for _ in range(5)]


def test_a_batch_is_what_its_images_are(rng):
    images, labels = rng.integers(0, 256, (9, 3, 6, 6), dtype=np.uint8), np.arange(9)
    transform = T.Compose([T.ToTensor(), T.CenterCrop(4), T.Normalize([0.5], [0.5])])
    dataset = ImageDataset(images, labels, transform)
    batch, targets = dataset.get_batch([4, 2])
    for image, target, index in zip(batch, targets, [4, 2], strict=True):
        assert (image.numpy() == dataset[index][0].numpy()).all() and target.item() == dataset[index][1]


def test_grayscale(image):
    weights = np.array([0.299, 0.587, 0.114])[:, None, None]
    grey = T.Grayscale()(image)
    np.testing.assert_allclose(grey, (image * weights).sum(0, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(T.Grayscale(3)(image), grey.repeat(3, 0))
    counted = (image * 255).astype(np.uint8)
    assert T.Grayscale()(counted).dtype == np.uint8
    np.testing.assert_array_equal(T.Grayscale()(counted)[0], np.rint((counted * weights).sum(0)))
    with pytest.raises(ValueError, match="must be 1 or 3"):
        T.Grayscale(2)


def test_a_grid_of_images(rng, tmp_path):
    images = rng.random((5, 3, 2, 4))
    grid = make_grid(mg.tensor(images), nrow=3, padding=1, pad_value=0.25).numpy()
    assert grid.shape == (3, 2 * 3 + 1, 3 * 5 + 1)
    np.testing.assert_array_equal(grid[:, 4:6, 6:10], images[4])
    np.testing.assert_array_equal(grid[:, 1:3, 11:15], images[2])
    assert (
        (grid[:, 4:6, 11:15] == 0.25).all() and (grid[:, 3] == 0.25).all() and (grid[:, :, 0] == 0.25).all()
    )
    assert make_grid(mg.ones(4, 1, 2, 2)).shape == (3, 6, 18)
    np.testing.assert_array_equal(make_grid(mg.tensor(images[0])).numpy(), images[0])
    assert make_grid(mg.tensor(images[0, 0])).shape == (3, 2, 4)
    stretched = make_grid(mg.tensor(images * 9 - 4), normalize=True, scale_each=True, padding=0)
    assert stretched.max().item() == 1 and stretched[:, :2, :4].min().item() == 0
    limited = make_grid(mg.tensor(images), normalize=True, value_range=(0.25, 0.75), padding=0)
    np.testing.assert_allclose(limited[:, :, :4].numpy(), np.clip(images[0] * 2 - 0.5, 0, 1), atol=1e-12)
    for nothing in (mg.ones(3), mg.ones(0, 3, 2, 2), [], images):
        with pytest.raises(ValueError, match="expected images"):
            make_grid(nothing)
    with pytest.raises(ValueError, match="nrow must be at least 1, got 0"):
        make_grid(mg.ones(2, 3, 2, 2), nrow=0)

    Image = pytest.importorskip("PIL.Image")
    save_image(mg.tensor(images), tmp_path / "grid.png", nrow=5, padding=0)
    with Image.open(tmp_path / "grid.png") as picture:
        found = np.array(picture)
    np.testing.assert_array_equal(found[:, :4], np.floor(images[0].transpose(1, 2, 0) * 255 + 0.5))
