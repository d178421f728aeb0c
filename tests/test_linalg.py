"""minigrad.linalg: against NumPy in float64, gradients of first and second order, and PyTorch's."""

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import linalg


def positive(rng, *batch):
    x = rng.standard_normal((*batch, 4, 4))
    return x @ np.swapaxes(x, -1, -2) + 2 * np.eye(4)


FUNCTIONS = {
    "inv": (linalg.inv, np.linalg.inv),
    "det": (linalg.det, np.linalg.det),
    "logabsdet": (lambda x: linalg.slogdet(x).logabsdet, lambda x: np.linalg.slogdet(x)[1]),
    "cholesky": (linalg.cholesky, np.linalg.cholesky),
    "upper": (lambda x: linalg.cholesky(x, upper=True), lambda x: np.swapaxes(np.linalg.cholesky(x), -1, -2)),
    "solve": (
        lambda x: linalg.solve(x, x[..., :2] * 2 + 1),
        lambda x: np.linalg.solve(x, x[..., :2] * 2 + 1),
    ),
    "lower": (
        lambda x: linalg.solve_triangular(x, x + 1, upper=False),
        lambda x: np.linalg.solve(np.tril(x), x + 1),
    ),
    "upper from the right": (
        lambda x: linalg.solve_triangular(x, x + 1, upper=True, left=False, unitriangular=True),
        lambda x: (x + 1) @ np.linalg.inv(np.triu(x, 1) + np.eye(4)),
    ),
    "cholesky_solve": (
        lambda x: mg.cholesky_solve(x[..., :2] + 1, linalg.cholesky(x)),
        lambda x: np.linalg.solve(x, x[..., :2] + 1),
    ),
    "logdet": (mg.logdet, lambda x: np.log(np.linalg.det(x))),
    "vector": (lambda x: linalg.solve(x, mg.ones(4, dtype=x.dtype)), lambda x: np.linalg.inv(x).sum(-1)),
    "power": (lambda x: linalg.matrix_power(x, 3), lambda x: np.linalg.matrix_power(x, 3)),
    "inverse square": (lambda x: linalg.matrix_power(x, -2), lambda x: np.linalg.matrix_power(x, -2)),
    "multi_dot": (lambda x: linalg.multi_dot([x, x, x]), lambda x: x @ x @ x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 0)])
def test_functions_and_gradients(name, batch, rng, check_gradients):
    ours, numpys = FUNCTIONS[name]
    x = positive(rng, *batch)
    np.testing.assert_allclose(ours(mg.tensor(x)).numpy(), numpys(x), rtol=1e-10, atol=1e-12)
    if x.size:
        # A symmetric argument, which the Cholesky decomposition takes for granted.
        check_gradients(lambda x: ours((x + x.mT) * 0.5), x)
    assert ours(mg.tensor(x, dtype=mg.float32)).dtype == mg.float32


def test_decompositions(rng):
    x, symmetric = mg.tensor(rng.standard_normal((2, 5, 3))), mg.tensor(positive(rng, 2))
    u, s, vh = linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose((u * s.unsqueeze(-2) @ vh).numpy(), x.numpy(), atol=1e-12)
    q, r = linalg.qr(x)
    np.testing.assert_allclose((q @ r).numpy(), x.numpy(), atol=1e-12)
    values, vectors = linalg.eigh(symmetric)
    scaled = vectors * values.unsqueeze(-2)
    np.testing.assert_allclose((symmetric @ vectors).numpy(), scaled.numpy(), atol=1e-12)
    np.testing.assert_allclose(linalg.pinv(x).numpy(), np.linalg.pinv(x.numpy()), atol=1e-12)
    assert linalg.matrix_rank(x[:, :, :1] @ x.mT[:, :1]).tolist() == [1, 1]
    b = mg.tensor(rng.standard_normal((5, 2)))
    for ours, theirs in zip(linalg.lstsq(x[0], b), np.linalg.lstsq(x[0].numpy(), b.numpy()), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10)
    with pytest.raises(RuntimeError, match="has no gradient"):
        linalg.svd(x.requires_grad_())


@pytest.mark.parametrize("ord", [None, "fro", "nuc", 2, -2, 1, -1, math.inf, -math.inf, 3, 0])
@pytest.mark.parametrize("dim", [None, 0, (0, 2), (2, 1)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_norms(ord, dim, keepdim, rng):
    torch = pytest.importorskip("torch")
    found = []
    x = rng.standard_normal((3, 4, 5) if dim is not None else (4, 5))
    for lib in (mg, torch):
        try:
            found.append(lib.linalg.norm(lib.tensor(x), ord, dim, keepdim).numpy())
        except (ValueError, RuntimeError):
            found.append(None)
    if found[1] is not None:  # PyTorch refuses some
        np.testing.assert_allclose(*found, rtol=1e-12)


def test_powers():
    assert linalg.matrix_power(mg.eye(2), 2**60).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert linalg.matrix_power(mg.full((2, 2), math.nan), 0).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    x = mg.tensor([[1, 1], [0, 1]])
    assert [linalg.matrix_power(x, n)[0, 1].item() for n in range(9)] == list(range(9))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 0)])
def test_matrices_without_elements(shape):
    x = mg.zeros(*shape)
    assert linalg.pinv(x).shape == x.mT.shape and (linalg.matrix_rank(x) == 0).all()


def test_errors():
    with pytest.raises(ValueError, match=r"linalg.inv: expected square matrices"):
        linalg.inv(mg.ones(2, 3))
    with pytest.raises(ValueError, match="3 rows are expected"):
        linalg.solve(mg.eye(3), mg.ones(2, 2))
    with pytest.raises(linalg.LinAlgError):
        linalg.inv(mg.zeros(2, 2))
    for bad in (math.inf, math.nan):
        with pytest.raises(linalg.LinAlgError, match="infinite or NaN"):
            linalg.pinv(mg.full((2, 4, 4), bad))
    with pytest.raises(TypeError, match=r"n must be an integer, got 0\.5"):
        linalg.matrix_power(mg.eye(2), 0.5)
    with pytest.raises(ValueError, match="dim must be two axes, got 1"):
        linalg.matrix_norm(mg.eye(2), dim=1)
    assert mg.det(mg.eye(2)) == 1 and mg.inverse(mg.eye(2) * 2)[0, 0] == 0.5


def test_systems_without_equations_or_right_sides():
    assert linalg.solve(mg.eye(3), mg.zeros(3, 0)).shape == (3, 0)
    assert linalg.solve(mg.zeros(2, 0, 0), mg.zeros(0, 4)).shape == (2, 0, 4)
