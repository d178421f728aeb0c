"""The first stops of the road find what is known otherwise: closed forms, limits, the plane of PCA."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.data import Iris

needs_data = pytest.mark.skipif("MINIGRAD_DATA" not in os.environ, reason="MINIGRAD_DATA names no folder")


def example(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_slopes_are_those_of_autograd():
    module = example("numerical_derivative")
    by_autograd, measured = module.check_network("cpu")
    assert by_autograd.shape == (43,) and (by_autograd - measured).abs().max() < 1e-8
    x = mg.tensor(0.3, dtype=mg.float64)
    exact = 2 * 0.3 * np.cos(0.3**2) * np.exp(np.sin(0.3**2))
    assert module.central_difference(module.f, x, 1e-5).item() == pytest.approx(exact, rel=1e-9)
    assert module.forward_difference(module.f, x, 1e-8).item() == pytest.approx(exact, rel=1e-6)


def test_gradient_descent_ends_where_least_squares_jumps_to(rng):
    module = example("linear_regression")
    x = mg.tensor(rng.standard_normal((50, 3)), mg.float32)
    y = x @ mg.tensor([[1.0], [-2.0], [0.5]]) + 3 + 0.1 * mg.randn(50, 1)
    model, losses, way = module.train(x, y, lr=0.2, steps=200)
    solution, lowest = module.least_squares(x, y)
    assert solution == pytest.approx([1, -2, 0.5, 3], abs=0.1) and way.shape == (200, 4)
    assert module.parameters(model) == pytest.approx(solution, abs=1e-5)
    assert losses[-1] == pytest.approx(lowest, rel=1e-4) and losses[0] > losses[1] > lowest


def test_the_likeliest_line_has_no_slope_left():
    """Where the cross-entropy is lowest, the features' sums over the answers are those that were foretold."""
    module = example("logistic_regression")
    x, y = module.simulate_exams(300)
    weight, bias = module.train(x, y, steps=400)
    surplus = mg.sigmoid(x @ weight + bias) - y
    assert abs(surplus.mean().item()) < 1e-3
    assert np.abs((x.T @ surplus).numpy()).max() / 300 < 1e-2
    assert 0.5 < weight[0].item() < 2.5


def test_one_neuron_learns_what_a_line_parts():
    module = example("xor")
    for name, targets in module.TARGETS.items():
        weight, bias, rounds = module.train_perceptron(targets)
        right = ((module.INPUTS @ weight + bias > 0) == (targets > 0)).all().item()
        assert right == (name != "XOR") and (rounds is None) == (name == "XOR")


def test_a_hidden_layer_learns_xor():
    module = example("xor")
    model, right = module.train_network(module.TARGETS["XOR"], hidden=8, steps=300)
    assert right and (model(module.INPUTS) > 0).tolist() == [False, True, True, False]


@needs_data
def test_the_classifier_tells_irises_apart():
    module = example("iris")
    trainer = module.train(0, Iris(train=True), Iris(train=False), epochs=30, device="cpu")
    assert trainer.evaluate(Iris(train=False))["accuracy"] > 0.9
    assert trainer.predict(module.NEW_FLOWERS).argmax(1).tolist() == [0, 1, 2]
    table = module.confusion(mg.tensor([0, 1, 1, 2]), mg.tensor([0, 1, 2, 2]))
    assert table.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_the_linear_autoencoder_finds_the_plane(rng):
    module = example("pca_autoencoder")
    axes = np.linalg.qr(rng.standard_normal((20, 3)))[0]
    x = mg.tensor(rng.standard_normal((1000, 3)) * [3, 2, 0.5] @ axes.T, mg.float32)
    components = module.principal_components(x)
    assert module.angle_between_planes(components[:2], mg.tensor(axes[:, :2].T)) < 1
    assert module.angle_between_planes(components[:2], components[[1, 2]]) == pytest.approx(90)
    model = nn.Sequential(nn.Linear(20, 2), nn.Linear(2, 20))
    module.train("linear", model, x, epochs=100, lr=1e-2)
    assert module.angle_between_planes(components[:2], model[1].weight.T) < 2
