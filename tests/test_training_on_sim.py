"""The network of examples/mnist_cnn.py learns on the simulator as it does on the CPU."""

import importlib.util

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim
from minigrad.data import MNIST
from minigrad.kernels import sim
from minigrad.nn import functional as F

BATCH, STEPS = 2, 3


def network(root):
    spec = importlib.util.spec_from_file_location("mnist_cnn", root / "examples" / "mnist_cnn.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    mg.manual_seed(1)
    return example.Net(28)


def digits():
    """Real digits where they are, noise of their shape elsewhere."""
    try:
        images, labels = MNIST(train=True, download=False).as_tensors()
        return images[: BATCH * STEPS].numpy(), labels[: BATCH * STEPS].numpy()
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        return rng.random((BATCH * STEPS, 1, 28, 28), np.float32), rng.integers(0, 10, BATCH * STEPS)


def train(model, device, images, labels):
    """The losses of a few steps of Adam, and the parameters after them."""
    model = model.to(device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        x, y = mg.tensor(images[part], device=device), mg.tensor(labels[part], device=device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach().cpu().numpy() for name, p in model.named_parameters()}


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_three_steps_of_the_mnist_network(repo_root):
    images, labels = digits()
    with mg.convolution_precision("highest"):  # a gradient of rounding noise decides where Adam goes
        expected, on_cpu = train(network(repo_root), "cpu", images, labels)
    with sim.checks(True):
        losses, on_sim = train(network(repo_root), "sim", images, labels)
    # A loss is a mean of sums of up to 9 * 64 * 49 terms, each rounded a few times.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] != losses[0]
    for name, value in on_cpu.items():
        # In its first steps Adam moves every element by about the learning rate, whatever its gradient: where
        # that is rounding noise, by as much in either direction.
        np.testing.assert_allclose(on_sim[name], value, atol=2 * 1e-3 * STEPS, err_msg=name)
        assert np.mean(np.abs(on_sim[name] - value) > 1e-5) < 0.01, name
