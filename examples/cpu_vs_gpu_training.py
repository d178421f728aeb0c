"""What does a GPU bring to a whole training run? The same network learns MNIST on each device.

Every device starts from the same weights and sees the same images in the same order, so the losses agree but
for rounding: what differs is the clock. The picture shows the loss by the number of images, where the lines
lie on each other, and by time, where they do not.

    python examples/cpu_vs_gpu_training.py            # an epoch, about half a minute on two cores
    python examples/cpu_vs_gpu_training.py --quick    # some seconds

Without a card it also draws what was recorded on one, of three epochs.
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, TensorDataset


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,000 images instead of 60,000")
    parser.add_argument("--device", nargs="+", help="by default cpu, and cuda where there is one")
    parser.add_argument("--output", type=Path, default=Path("runs/cpu_vs_gpu_training"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    return parser.parse_args()


def load_data(limit):
    """Training and test images of mean 0 and deviation 1, and their labels."""
    (images, labels), test = (MNIST(train=train).as_tensors() for train in (True, False))
    mean, std = images.mean().item(), images.std().item()
    train = TensorDataset((images[:limit] - mean) / std, labels[:limit])
    return train, TensorDataset((test[0][:limit] - mean) / std, test[1][:limit])


def make_network():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 10)),
    )


@mg.no_grad()
def accuracy(model, loader, device):
    """The share of images that are read rightly."""
    correct = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def train(device, data, test, epochs, seed):
    """Train on ``device``: rows of (images seen, seconds, mean loss since the last row), and the accuracy."""
    mg.manual_seed(seed)  # the same weights and the same order on every device
    model = make_network().to(device)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(data, batch_size=128, shuffle=True)
    rows, seen, losses = [], 0, []
    start = time.perf_counter()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            seen += len(labels)
            losses.append(loss.detach())
            if len(losses) == min(15, len(loader) // 4):  # item() waits for the card: not in every step
                rows.append((seen, time.perf_counter() - start, sum(x.item() for x in losses) / len(losses)))
                losses.clear()
    mg.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    reached = accuracy(model, DataLoader(test, batch_size=500), device)
    print(
        f"{device}: {seen} images in {seconds:.1f} s, {1e6 * seconds / seen:.0f} us for each, "
        f"then {reached:.2%} of {len(test)} test images"
    )
    return rows


def recorded():
    """(the card, rows as of :func:`train`) of the run that ships with minigrad."""
    run = mg.compare.recorded_run()
    rows = run.chapters["network"].rows
    label = f"{run.device_name('cuda:0')}, recorded on {run.date[:10]}"
    return label, [(row.samples, row.seconds, row.train_loss) for row in rows]


def plot(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for axis, column, label in zip(axes, (0, 1), ("images seen", "seconds"), strict=True):
        for name, style, rows in lines:
            axis.semilogy([row[column] for row in rows], [row[2] for row in rows], style, label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training loss")
    axes[0].legend()
    figure.suptitle("The same network learns MNIST")
    figure.savefig(path, dpi=100)


def main():
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = arguments.device or ["cpu", *(["cuda"] if mg.cuda.is_available() else [])]
    data, test = load_data(2_000 if arguments.quick else None)
    lines = []
    for device in map(mg.device, names):
        lines.append((str(device), ".-", train(device, data, test, arguments.epochs, arguments.seed)))
    if not any(name.startswith("cuda") for name in names):
        name, rows = recorded()
        lines.append((name, "s--", rows))
    try:
        plot(lines, arguments.output / "cpu_vs_gpu_training.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
