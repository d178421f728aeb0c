"""Transforms of images on a card or on the simulator: as on the CPU, by numbers that are drawn there."""

import itertools

import numpy as np
import pytest
from test_transforms import RANDOM

import minigrad as mg
from minigrad.data import transforms as T
from minigrad.data.resample import resize

STILL = [
    T.RandomAffine((20, 20), scale=(0.7, 0.7), shear=(5, 5, -8, -8), fill=0.25),
    T.RandomAffine((-200, -200), scale=(1.3, 1.3), interpolation="bilinear", fill=0.25),
    T.RandomRotation((90, 90)),
    T.ColorJitter((1.2, 1.2), (0.7, 0.7), (1.5, 1.5)),
    T.ColorJitter(hue=(0.3, 0.3)),
    T.Compose([T.ToTensor(), T.Normalize((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))]),
    T.CenterCrop((3, 5)),
    T.CenterCrop(11),
    T.Resize(4),
    T.Resize((13, 3)),
    T.Resize((6, 8)),
    T.RandomResizedCrop((9, 4), scale=(2, 3)),  # none fits: the middle
    T.ToTensor(),
    T.Grayscale(),
    T.Grayscale(3),
    T.RandomHorizontalFlip(1.0),
    T.RandomVerticalFlip(1.0),
    T.RandomVerticalFlip(0.0),
]


@pytest.fixture(params=["sim", "cuda"])
def device(request):
    try:
        return mg.device(request.param)
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def images(rng):
    return rng.random((20, 3, 6, 8)).astype(np.float32)


def name_of(transform):
    return type(transform).__name__


@pytest.mark.parametrize("transform", RANDOM, ids=name_of)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_random_transforms(transform, dtype, device):
    """Each image by itself, the same again from the same seed; dtype and device stay."""
    image = mg.rand(3, 6, 8) * (255 if dtype == np.uint8 else 1)
    batch = mg.stack([image] * 20).to(dtype).to(device)
    found = []
    for seed in (1, 1, 2):
        mg.manual_seed(seed)
        found.append(transform(batch))
        assert found[-1].device == device and found[-1].dtype == dtype
    first, again, other = (one.cpu().numpy() for one in found)
    assert (first == again).all() and (first != other).any() and np.isfinite(first.astype(float)).all()
    assert len({part.tobytes() for part in first}) > 1
    assert transform(batch[0]).shape == first.shape[1:]


@pytest.mark.parametrize("transform", STILL, ids=name_of)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_where_nothing_is_left_to_chance_all_devices_agree(transform, dtype, device, images):
    if dtype == np.uint8:
        images = (255 * images).astype(np.uint8)
    expected = transform(mg.tensor(images)).numpy()
    found = transform(mg.tensor(images, device=device)).cpu().numpy()
    assert found.dtype == expected.dtype
    # Bytes may be rounded the other way where a sum is near a half.
    np.testing.assert_allclose(found.astype(float), expected, atol=1 if dtype == np.uint8 else 2e-5)
    assert (found == expected).mean() > 0.97 or dtype == np.float32


def test_an_affine_map_moves_by_whole_pixels(device, images):
    moved = T.RandomAffine(0, translate=(0.25, 0.5), fill=9.0)(mg.tensor(images, device=device)).cpu().numpy()
    padded = np.pad(images, ((0, 0), (0, 0), (3, 3), (2, 2)), constant_values=9.0)
    steps = set()
    for image, part in zip(padded, moved, strict=True):
        parts = {(y, x): image[:, y : y + 6, x : x + 8] for y in range(7) for x in range(5)}
        steps |= {step for step, one in parts.items() if (one == part).all()}
    assert len(steps) > 10 and len({y for y, _ in steps}) > 4 and len({x for _, x in steps}) > 3


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_a_crop_is_any_part_of_the_padded_image(device, mode):
    image = np.arange(1.0, 43, dtype=np.float32).reshape(1, 6, 7)
    crop = T.RandomCrop((4, 7), padding=(2, 1), padding_mode=mode)
    found = crop(mg.tensor(np.stack([image] * 400), device=device)).cpu().numpy()
    padded = np.pad(image, ((0, 0), (1, 1), (2, 2)), mode)
    parts = {padded[:, t : t + 4, f : f + 7].tobytes() for t in range(5) for f in range(5)}
    assert {part.tobytes() for part in found} == parts  # all 25: one is missing once in 500,000 times


def test_what_is_too_small_is_padded(device, images):
    found = T.RandomCrop(9, padding=1, pad_if_needed=True, padding_mode="edge", fill=5)
    found = found(mg.tensor(images, device=device)).cpu().numpy()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 2), (1, 1)), "edge")
    padded[:, :, 8] = 5
    for image, part in zip(padded, found, strict=True):
        assert any((image[:, :, x : x + 9] == part).all() for x in range(2))
    with pytest.raises(ValueError, match="6x8 pixels are too few for a part of 7x7"):
        T.RandomCrop(7)(mg.tensor(images, device=device))


@pytest.mark.parametrize("value", [[7, 8, 9], "random"], ids=str)
def test_erasing_fills_rectangles(device, images, value):
    erased = T.RandomErasing(0.7, value=value)(mg.tensor(images, device=device)).cpu().numpy()
    assert 3 < (erased != images).any((1, 2, 3)).sum() < 20
    for before, after in zip(images, erased, strict=True):
        changed = (before != after).all(0)
        rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
        if rows.size:
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert changed.mean() < 0.5
            assert value == "random" or (after[:, changed] == [[7], [8], [9]]).all()


def test_a_rectangle_that_never_fits_is_none(device, images):
    before = mg.tensor(images, device=device)
    after = T.RandomErasing(1.0, scale=(2.0, 3.0))(before)
    assert (after == before).all().item()


def test_a_resized_crop_is_a_part_resized(device, rng):
    image = rng.random((1, 12, 10)).astype(np.float32)
    boxes = [
        (top, left, height, width)
        for height, width in itertools.product(range(1, 13), range(1, 11))
        for top, left in itertools.product(range(13 - height), range(11 - width))
    ]
    parts = [resize(image[:, t : t + h, f : f + w], 3, 4).ravel() for t, f, h, w in boxes]
    crop = T.RandomResizedCrop((3, 4), scale=(0.3, 0.5), ratio=(0.5, 2))
    found = crop(mg.tensor(np.stack([image] * 100), device=device)).cpu().numpy().reshape(100, -1)
    errors = np.abs(found[:, None] - np.array(parts)).max(2)
    assert errors.min(1).max() < 1e-5
    top, left, height, width = np.transpose([boxes[i] for i in errors.argmin(1)])
    assert all(len(set(numbers)) > 4 for numbers in (top, left, height, width))
    share, ratio = height * width / image.size, width / height
    assert share.min() > 0.25 and share.max() < 0.56 and ratio.min() > 0.4 and ratio.max() < 2.5  # rounded


def test_resizing_is_exact_under_autocast(device, images):
    images = mg.tensor(images, device=device)
    with mg.autocast(device.type, mg.float16):
        found = T.Resize(4)(images)
    assert found.dtype == np.float32 and (found == T.Resize(4)(images)).all().item()


def test_a_generator_of_its_own(device, images):
    images = mg.tensor(images, device=device)
    first, again = (T.RandomCrop(4, generator=mg.Generator(5))(images).cpu().numpy() for _ in range(2))
    assert (first == again).all()


def test_what_works_on_the_cpu_alone(device, images):
    images = mg.tensor(images, device=device)

    class Negative(T.Transform):
        def batch(self, images, rng):
            return 255 - images

    with pytest.raises(TypeError, match=f"Negative transforms images on the CPU .* are on {device.type}"):
        Negative()(images)
    with pytest.raises(TypeError, match=r"expected an image \(C, H, W\) .* got Tensor of shape \(6, 8\)"):
        T.RandomCrop(4)(images[0, 0])
    with pytest.raises(TypeError, match="expected floats, got int64"):
        T.Normalize([0.5], [1.0])(images.long())


def test_an_empty_batch(device):
    augment = T.Compose([T.RandomCrop(4, padding=1), T.RandomHorizontalFlip(), T.Normalize([0.5], [0.5])])
    assert augment(mg.zeros(0, 3, 5, 5, device=device)).shape == (0, 3, 4, 4)
