"""The networks of the comparison, and a training step that can be timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrad import nn, optim
from minigrad.autograd import no_grad
from minigrad.compare.rungs import RungError
from minigrad.creation import from_numpy
from minigrad.devices import Device
from minigrad.tensor import Tensor

__all__ = ["NETWORKS", "check_outputs", "lenet", "mlp", "mnist_cnn", "training_step"]

CLASSES = 10
CHECKED_SAMPLES = 8
TOLERANCE = 1e-4  # of outputs, relative to the largest: a few layers of sums of some thousand terms each


def mnist_cnn(size: int = 28) -> nn.Sequential:
    """conv 32 - pool - conv 64 - pool - linear, for images of one channel of ``size`` x ``size`` pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, CLASSES)),
    )


def mlp() -> nn.Sequential:
    """784 - 256 - 128 - 10, with ReLU."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 256), nn.ReLU()),
        *(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )


def lenet() -> nn.Sequential:
    """LeNet-5 as LeCun et al. have it (1998), with average pooling and tanh."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, CLASSES)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[Any], optim.Optimizer]]] = {
    "MLP 784-256-128-10": (mlp, partial(optim.SGD, lr=0.01, momentum=0.9)),
    "LeNet": (lenet, partial(optim.SGD, lr=0.01)),
    "MNIST CNN": (mnist_cnn, optim.Adam),
}
"""By name the network, for images of 1 x 28 x 28, and its optimizer."""


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    make_optimizer: Callable[[Any], optim.Optimizer] = optim.Adam,
) -> Callable[[], Tensor]:
    """A function that makes one training step on these images, and returns the loss before it."""
    optimizer = make_optimizer(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def check_outputs(
    make: Callable[[], nn.Module], model: nn.Module, images: np.ndarray, device: Device
) -> float:
    """The largest error of a few outputs of ``model``, a network on ``device``, of the whole batch
    ``images``, relative to the largest in float64.

    Raises:
        RungError: it is more than rounding explains.
    """
    chosen = np.linspace(0, len(images) - 1, min(CHECKED_SAMPLES, len(images))).astype(int)
    exact = make().double()
    exact.load_state_dict({name: value.cpu().double() for name, value in model.state_dict().items()})
    with no_grad():
        outputs = model(from_numpy(images).to(device)).numpy()[chosen]
        expected = exact(from_numpy(images[chosen].astype(np.float64))).numpy()
    error = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise RungError(f"wrong: the outputs differ by {error:.2g} from those in float64")
    return error


def normal_images(rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images of 1 x 28 x 28 and labels: times do not depend on what is in them."""
    return rng.standard_normal((batch, 1, 28, 28), np.float32), rng.integers(0, CLASSES, batch)


def describe(layer: nn.Module) -> str:
    """A layer in a few words: ``"Conv2d 3x3, 1 -> 32"``, ``"Linear 3136 -> 10"``, ``"MaxPool2d 2x2"``."""
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        kernel = "x".join(map(str, layer.kernel_size))
        return f"{name} {kernel}, {layer.in_channels} -> {layer.out_channels}"
    if isinstance(layer, nn.Linear):
        return f"{name} {layer.in_features} -> {layer.out_features}"
    if isinstance(layer, nn.MaxPool2d):
        return f"{name} {layer.kernel_size}x{layer.kernel_size}"
    return name
