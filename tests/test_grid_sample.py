"""F.affine_grid and F.grid_sample beside PyTorch's, and their gradients by finite differences."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F


@pytest.mark.filterwarnings("ignore:Since version 1.3.0:UserWarning")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 1, 3)])
def test_grids_of_affine_maps(size, align_corners, rng, check_gradients):
    torch = pytest.importorskip("torch")
    theta = rng.standard_normal((2, 2, 3))
    theirs = torch.nn.functional.affine_grid(torch.tensor(theta), size, align_corners=align_corners)
    np.testing.assert_allclose(
        F.affine_grid(mg.tensor(theta), size, align_corners).numpy(), theirs, atol=1e-12
    )
    check_gradients(lambda theta: F.affine_grid(theta, size, align_corners), theta)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_images_at_places(mode, padding_mode, align_corners, size, rng, device):
    torch = pytest.importorskip("torch")
    values = rng.standard_normal((2, 3, *size)), rng.uniform(-2.5, 2.5, (2, 6, 7, 2))
    results = []
    for lib, where in ((mg, {"device": device}), (torch, {})):
        x, grid = (lib.tensor(v, requires_grad=True, **where) for v in values)
        out = lib.nn.functional.grid_sample(x, grid, mode, padding_mode, align_corners)
        (out * out).sum().backward()
        gradients = [x.grad] if mode == "nearest" else [x.grad, grid.grad]
        results.append([t.detach().cpu().numpy() for t in (out, *gradients)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_second_gradients(rng, check_gradients):
    grid = mg.tensor(rng.uniform(-0.9, 0.9, (1, 2, 2, 2)))
    check_gradients(lambda x, grid: F.grid_sample(x, grid), rng.standard_normal((1, 2, 3, 3)), grid.numpy())


def test_errors():
    with pytest.raises(ValueError, match=r"expected theta \(N, 2, 3\)"):
        F.affine_grid(mg.ones(2, 3), (1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\) and a grid"):
        F.grid_sample(mg.ones(2, 3, 4, 4), mg.ones(1, 2, 2, 2))
    with pytest.raises(ValueError, match="unknown mode 'cubic'"):
        F.grid_sample(mg.ones(1, 3, 4, 4), mg.ones(1, 2, 2, 2), "cubic")
