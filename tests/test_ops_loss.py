"""Losses against their definitions, one sample at a time; gradients; bad targets."""

import itertools
import math

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.kernels import sim
from minigrad.kernels.launch import CudaKernel
from minigrad.op import Op


def log_softmax(row):
    return row - (np.log(np.sum(np.exp(row - row.max()))) + row.max())


def cross_entropy_by_definition(logits, targets, weight, ignore_index, smoothing, reduction):
    """(N, C) logits, (N,) classes."""
    losses, weights = [], []
    for row, target in zip(logits, targets, strict=True):
        if target == ignore_index:
            losses.append(0.0)
            weights.append(0.0)
            continue
        log_p, classes = log_softmax(row), len(row)
        w = np.ones(classes) if weight is None else weight
        loss = -(1 - smoothing) * w[target] * log_p[target] - smoothing / classes * np.sum(w * log_p)
        losses.append(loss)
        weights.append(w[target])
    if reduction == "none":
        return np.array(losses)
    return np.sum(losses) / (np.sum(weights) if reduction == "mean" else 1.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction, smoothing, weighted, rng, check_gradients):
    logits, targets = rng.standard_normal((6, 5)) * 2, np.array([0, 4, 2, -100, 1, 2])
    weight = rng.uniform(0.5, 2, 5) if weighted else None

    def loss(x):
        w = None if weight is None else mg.tensor(weight)
        return F.cross_entropy(x, mg.tensor(targets), w, reduction=reduction, label_smoothing=smoothing)

    wanted = cross_entropy_by_definition(logits, targets, weight, -100, smoothing, reduction)
    np.testing.assert_allclose(loss(mg.tensor(logits)).numpy(), wanted, rtol=1e-12)
    check_gradients(loss, logits)


def test_cross_entropy_of_images_and_of_one_sample(rng, check_gradients):
    logits, targets = rng.standard_normal((2, 4, 3, 2)), rng.integers(0, 4, (2, 3, 2))
    flat = logits.transpose(0, 2, 3, 1).reshape(-1, 4)
    wanted = cross_entropy_by_definition(flat, targets.ravel(), None, -100, 0.0, "none")
    found = F.cross_entropy(mg.tensor(logits), mg.tensor(targets), reduction="none")
    np.testing.assert_allclose(found.numpy(), wanted.reshape(2, 3, 2), rtol=1e-12)
    check_gradients(lambda x: F.cross_entropy(x, mg.tensor(targets)), logits)
    one = F.cross_entropy(mg.tensor(flat[0]), mg.tensor(targets.ravel()[0]))
    assert one.item() == pytest.approx(wanted[0], rel=1e-12)


def test_cross_entropy_with_probabilities(rng, check_gradients):
    logits, targets = rng.standard_normal((4, 3)), rng.dirichlet(np.ones(3), 4)
    wanted = np.mean([-np.sum(t * log_softmax(row)) for row, t in zip(logits, targets, strict=True)])
    found = F.cross_entropy(mg.tensor(logits), mg.tensor(targets))
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    check_gradients(lambda x, t: F.cross_entropy(x, t, label_smoothing=0.2), logits, targets)


def test_cross_entropy_does_not_overflow():
    x = mg.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    loss = F.cross_entropy(x, mg.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 500.0 and np.isfinite(x.grad.numpy()).all()


def test_nothing_but_ignored_targets_is_nan_as_a_mean():
    t = mg.tensor([-100, -100])
    for function in (F.cross_entropy, F.nll_loss):
        x = mg.ones(2, 3, requires_grad=True)
        loss = function(x, t)
        loss.backward()
        assert math.isnan(loss.item()) and (x.grad.numpy() == 0).all()
        assert function(x, t, reduction="sum").item() == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_of_the_weights(reduction, rng, check_gradients):
    logits, targets = rng.standard_normal((6, 5)), mg.tensor([0, 4, 2, -100, 1, 2])
    options = {"reduction": reduction, "label_smoothing": 0.2}
    check_gradients(lambda x, w: F.cross_entropy(x, targets, w, **options), logits, rng.uniform(0.5, 2, 5))
    check_gradients(
        lambda x, w: F.nll_loss(x, targets, w, reduction=reduction), logits, rng.uniform(0.5, 2, 5)
    )


def test_a_logit_of_minus_infinity_leaves_the_gradient_of_the_weights_finite():
    weight = mg.ones(3, requires_grad=True)
    F.cross_entropy(mg.tensor([[0.0, 0.0, -math.inf]]), mg.tensor([1]), weight, reduction="sum").backward()
    np.testing.assert_allclose(weight.grad.numpy(), [0, math.log(2), 0], rtol=1e-6)


def test_nll_and_mse(rng, check_gradients):
    x, t = rng.standard_normal((3, 4)), np.array([1, 0, 3])
    assert F.nll_loss(mg.tensor(x), mg.tensor(t)).item() == pytest.approx(-np.mean(x[range(3), t]))
    check_gradients(lambda x: F.nll_loss(x, mg.tensor(t), reduction="sum"), x)
    y = rng.standard_normal((3, 4))
    assert F.mse_loss(mg.tensor(x), mg.tensor(y)).item() == pytest.approx(np.mean((x - y) ** 2))
    check_gradients(F.mse_loss, x, y)


def test_an_empty_batch():
    x = mg.ones(0, 3, requires_grad=True)
    loss = F.cross_entropy(x, mg.zeros(0, dtype=mg.int64), reduction="sum")
    loss.backward()
    assert loss.item() == 0.0 and x.grad.shape == (0, 3)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_how_many_kernels_a_card_launches(monkeypatch):
    """One for the losses, or their sums over parts, and one more to reduce these; as few for the gradient."""
    names, launch, reference = [], CudaKernel.launch, Op._run_reference

    def launched(self, *args):
        names.append(self.name)
        launch(self, *args)

    def fell_back(self, *args):  # to the reference, whose operations are a launch each
        names.append(f"reference of {self.name}")
        return reference(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", launched)
    monkeypatch.setattr(Op, "_run_reference", fell_back)
    rng = np.random.default_rng(0)
    x, t = (mg.tensor(rng.uniform(0.1, 0.9, (17, 1031)), mg.float32, device="sim") for _ in range(2))
    classes = mg.tensor(rng.integers(0, 1031, 17), device="sim")
    elementwise = (
        *(F.l1_loss, F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy),
        *(F.binary_cross_entropy_with_logits, F.kl_div),
    )
    losses = [(f, t, 1) for f in elementwise] + [(f, classes, 2) for f in (F.cross_entropy, F.nll_loss)]
    for (loss, target, backward), reduction in itertools.product(losses, ("mean", "none")):
        given = x.detach().requires_grad_()
        names.clear()
        found = loss(given, target, reduction=reduction)
        assert len(names) == (1 if reduction == "none" else 2), (loss, names)
        names.clear()
        found.backward(mg.ones_like(found))
        expected = 1 if reduction == "none" else backward
        assert len(names) == expected, (loss, names)


X = mg.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.cross_entropy(X, mg.tensor([0, 3])), ValueError, r"target 3.*3 classes.*\(2, 3\)"),
        (lambda: F.cross_entropy(X, mg.tensor([0, -1])), ValueError, "target -1"),
        (lambda: F.cross_entropy(X, mg.tensor([0])), ValueError, r"\(2, 3\).*\(2,\).*\(1,\)"),
        (lambda: F.cross_entropy(X, mg.ones(2, 4)), ValueError, r"\(2, 3\).*\(2, 4\)"),
        (lambda: F.cross_entropy(X, mg.tensor([True, False])), TypeError, "integers.*bool"),
        (lambda: F.cross_entropy(X, mg.tensor([0, 1]), label_smoothing=1.5), ValueError, r"1\.5"),
        (lambda: F.cross_entropy(X, mg.tensor([0, 1]), mg.ones(2)), ValueError, r"weight.*\(3,\).*\(2,\)"),
        (lambda: F.cross_entropy(X, mg.tensor([0, 1]), reduction="avg"), ValueError, "reduction.*'avg'"),
        (lambda: F.cross_entropy(mg.ones(()), mg.tensor(0)), (ValueError, IndexError), "dim"),
        (lambda: F.mse_loss(X, mg.ones(3)), ValueError, r"\(2, 3\).*\(3,\)"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_logits_and_classes_exchanged():
    with pytest.raises(TypeError, match="are the two exchanged"):
        F.cross_entropy(mg.tensor([1, 2]), mg.randn(2, 3))
