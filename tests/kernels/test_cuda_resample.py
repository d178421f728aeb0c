"""Images seen through affine maps, on the simulator and on a card; the op's cases are in layer_cases.py."""

import numpy as np
import pytest

from minigrad import get_op
from minigrad.kernels import cuda
from minigrad.kernels.cuda.resample import BORDERS

pytestmark = pytest.mark.usefixtures("checked_accesses")


def run(backend, images, matrices, size, border="constant", fill=0.0, bilinear=False):
    images, matrices = np.ascontiguousarray(images), np.ascontiguousarray(matrices)
    out = backend.put(np.zeros((*images.shape[:2], *size), images.dtype))
    cuda.resample.resample(out, backend.put(images), backend.put(matrices), border, fill, bilinear)
    return backend.get(out)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("bilinear", [False, True])
def test_bytes(backend, border, bilinear, rng):
    """By halves, so that sums are exact; between two bytes they are rounded to even, and limited to bytes."""
    images = rng.integers(0, 256, (3, 2, 6, 5), np.uint8)
    matrices = (rng.integers(-4, 5, (3, 2, 3)) / 2).astype(np.float32)
    options = {"border": border, "fill": 300.0, "bilinear": bilinear}
    expected = get_op("resample").reference(np, images, matrices, size=(7, 9), **options)
    np.testing.assert_array_equal(run(backend, images, matrices, (7, 9), **options), expected)


@pytest.mark.parametrize("border", [b for b in BORDERS if b != "constant"])
def test_borders_are_those_of_pad(backend, border, rng):
    images = rng.random((2, 3, 4, 5))
    identity = np.broadcast_to(np.eye(2, 3), (2, 2, 3))
    padded = np.pad(images, ((0, 0), (0, 0), (9, 9), (11, 11)), border)
    np.testing.assert_array_equal(run(backend, images, identity, (22, 27), border), padded)


def test_more_images_than_a_grid_has_rows(backend, rng, monkeypatch):
    monkeypatch.setattr(cuda.resample, "MAX_GRID_Y", 2)
    images = rng.random((7, 2, 3, 4)).astype(np.float32)
    mirrors = np.where(rng.random((7, 1, 1)) < 0.5, -1, 1) * np.eye(2, 3, dtype=np.float32)
    found = run(backend, images, mirrors.astype(np.float32), (3, 4))
    for image, mirror, result in zip(images, mirrors, found, strict=True):
        np.testing.assert_array_equal(result, image[:, ::-1, ::-1] if mirror[0, 0] < 0 else image)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e20])
def test_maps_to_nowhere(backend, border, bilinear, value, rng):
    """What is seen there is some pixel, or what is outside; nothing else is read."""
    images = rng.random((1, 1, 4, 5)).astype(np.float32)
    matrices = np.array([[[1, 0, value], [0, 1, value]]], np.float32)
    found = run(backend, images, matrices, (3, 3), border, 7.0, bilinear)
    assert ((found == 7) if border == "constant" else (found >= images.min()) & (found <= images.max())).all()


def test_nan_is_where_it_was(backend, rng):
    images = rng.random((1, 2, 4, 4)).astype(np.float32)
    images[0, 1, 2, 3] = np.nan
    quarter = np.array([[[0, -1, 0], [1, 0, 0]]], np.float32)
    np.testing.assert_array_equal(run(backend, images, quarter, (4, 4)), np.rot90(images, 1, (2, 3)))


def test_shapes_that_do_not_fit(backend):
    images, matrices = np.zeros((2, 1, 4, 4), np.float32), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"images of \(2, 1, 4, 4\) and matrices of \(1, 2, 3\)"):
        run(backend, images, matrices, (3, 3))
