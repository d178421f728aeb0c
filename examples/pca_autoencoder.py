"""A linear autoencoder finds the plane of PCA; a nonlinear one bends it.

    python examples/pca_autoencoder.py

What are the best two numbers to keep of a digit's 784 pixels, to draw it again from them? Among linear
answers, PCA has the best: the two directions in which digits vary most. An autoencoder is a network that has
to give back its input through a narrow middle. If it is linear, training leads it to PCA's plane, in axes of
its own. With hidden layers the plane becomes a surface that follows the digits.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, TensorDataset


def principal_components(x):
    """The directions of greatest variance of the centred rows of ``x``, one a row, the greatest first.

    They are the right singular vectors of x, and so of the much smaller x^T x.
    """
    _, _, directions = np.linalg.svd((x.T @ x).cpu().double().numpy())
    return mg.tensor(directions, dtype=mg.float32, device=x.device)


def linear_autoencoder():
    return nn.Sequential(nn.Linear(784, 2), nn.Linear(2, 784))


def deep_autoencoder():
    return nn.Sequential(
        nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)),
        nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 784)),
    )


def train(name, model, images, epochs, lr):
    """The model learns to give back its input; the rate falls to zero, to come to rest."""
    loader = DataLoader(TensorDataset(images), batch_size=256, shuffle=True)
    criterion = nn.MSELoss()
    optimizer = optim.Adam(model.parameters(), lr=lr)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for (batch,) in loader:
            optimizer.zero_grad()
            loss = criterion(model(batch), batch)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(batch)
        if epoch in (1, epochs) or epoch % 10 == 0:
            seconds = time.perf_counter() - start
            print(f"{name}, epoch {epoch}/{epochs}: squared error {total / len(images):.5f}  {seconds:.1f} s")


def angle_between_planes(a, b):
    """The larger of the two angles between what the rows of ``a`` and of ``b`` span, in degrees."""
    first, second = (np.linalg.qr(rows.detach().cpu().numpy().T)[0] for rows in (a, b))
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return np.degrees(np.arccos(min(cosines.min(), 1.0)))


def draw(results, mean, originals, labels, path):
    """``results``: name to (error, two numbers of each image, what is drawn from them)."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, axes = plt.subplots(1, 4, figsize=(14, 4.2), layout="constrained", width_ratios=[3, 3, 3, 2])
    for axis, (name, (error, codes, _)) in zip(axes, results.items(), strict=False):
        points = axis.scatter(*codes[:1500].T, c=labels[:1500], cmap="tab10", s=4)
        axis.set(title=f"{name}: squared error {error:.4f}", xticks=[], yticks=[])
    axes[2].legend(*points.legend_elements(), fontsize=7, markerscale=0.7)

    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    rows = [originals, *(drawn for _, _, drawn in results.values())]
    strips = [np.vstack((row[chosen] + mean).reshape(10, 28, 28)) for row in rows]
    axes[3].imshow(np.hstack(strips).clip(0, 1), cmap="gray_r")
    axes[3].set_xticks([14, 42, 70, 98], ["digit", *results], rotation=20)
    axes[3].set(title="drawn from two numbers", yticks=[])
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,000 images, few epochs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6, help="of the deep one")
    parser.add_argument("--output", type=Path, default=Path("runs/pca_autoencoder"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)
    limit, epochs = (2000, 4) if arguments.quick else (60000, arguments.epochs)

    images = MNIST(train=True).as_tensors()[0][:limit].flatten(1).to(arguments.device)
    test_images, labels = (t[:limit] for t in MNIST(train=False).as_tensors())
    test_images = test_images.flatten(1).to(arguments.device)
    mean = images.mean(0)
    images, test_images = images - mean, test_images - mean

    components = principal_components(images)
    linear = linear_autoencoder().to(arguments.device)
    deep = deep_autoencoder().to(arguments.device)
    train("linear autoencoder", linear, images, 20, lr=1e-2)
    train("deep autoencoder", deep, images, epochs, lr=3e-3)
    angle = angle_between_planes(components[:2], linear[1].weight.T)
    print(f"the planes of PCA and of the linear autoencoder differ by {angle:.2f} degrees")

    results = {}
    with mg.no_grad():
        codes = test_images @ components.T
        squares = (codes**2).mean(0).cumsum(0)  # what the first directions explain
        pca_errors = ((test_images**2).mean(0).sum() - squares) / 784
        two = codes[:, :2]
        outcomes = {"PCA": (two, two @ components[:2])}
        for name, model in (("linear", linear), ("deep", deep)):
            codes = model[0](test_images)
            outcomes[name] = codes, model[1](codes)
        for name, (codes, drawn) in outcomes.items():
            error = nn.functional.mse_loss(drawn, test_images).item()
            results[name] = error, codes.cpu().numpy(), drawn.cpu().numpy()
            print(f"{name}: squared error {error:.5f} on the test images, from two numbers")
    enough = (pca_errors > results["deep"][0]).sum().item() + 1
    print(f"PCA needs {enough} numbers to draw as well as the deep autoencoder does from two")
    mg.save(deep.state_dict(), arguments.output / "pca_autoencoder.safetensors")
    path = arguments.output / "pca_autoencoder.png"
    draw(results, mean.cpu().numpy(), test_images.cpu().numpy(), labels.numpy(), path)


if __name__ == "__main__":
    main()
