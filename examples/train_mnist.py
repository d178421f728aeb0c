"""Train a small convolutional network on MNIST, on the CPU, on a GPU, or on the CUDA simulator.

    python examples/train_mnist.py                          # all of MNIST, 5 epochs
    python examples/train_mnist.py --device cuda            # the same on a GPU
    python examples/train_mnist.py --dataset digits         # the set that comes with minigrad: no download
    python examples/train_mnist.py --device sim --dataset digits --limit 64 --epochs 1

The network has two convolutions, each followed by ReLU and 2x2 max pooling, and one linear layer. After the
last epoch the weights are saved, loaded into a fresh network, and tested again: what was saved is what runs.
"""

import argparse
import sys
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, Digits, FashionMNIST, TensorDataset

DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "digits": Digits}


class Net(nn.Module):
    """conv 32 - pool - conv 64 - pool - linear, for images of ``size`` x ``size`` pixels."""

    def __init__(self, size: int, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * (size // 4) ** 2, classes)
        )

    def forward(self, images):
        return self.classifier(self.features(images))


def load_data(name: str, limit: int | None) -> tuple[TensorDataset, TensorDataset]:
    """The training and the test set, normalised to mean 0 and deviation 1 by the training images."""
    (images, labels), test = (DATASETS[name](train=train).as_tensors() for train in (True, False))
    mean, std = images.mean().item(), images.std().item()
    train = TensorDataset((images[:limit] - mean) / std, labels[:limit])
    return train, TensorDataset((test[0][:limit] - mean) / std, test[1][:limit])


def train_epoch(model, loader, optimizer, scheduler, criterion, device, title):
    """One pass over the training data: (mean loss, accuracy)."""
    model.train()
    total_loss, correct, count = 0.0, 0, 0
    for images, labels in progress(loader, title):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total_loss += loss.item() * len(labels)
        correct += (outputs.argmax(1) == labels).sum().item()
        count += len(labels)
    return total_loss / count, correct / count


@mg.no_grad()
def evaluate(model, loader, criterion, device):
    """(mean loss, accuracy) on data the network has not learned from."""
    model.eval()
    total_loss, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        outputs = model(images)
        total_loss += criterion(outputs, labels).item() * len(labels)
        correct += (outputs.argmax(1) == labels).sum().item()
        count += len(labels)
    return total_loss / count, correct / count


def progress(loader, title):
    """``loader`` with a progress bar, if tqdm is installed and someone is watching."""
    try:
        from tqdm import tqdm
    except ImportError:
        return loader
    return tqdm(loader, desc=title, unit="batch", leave=False, disable=not sys.stderr.isatty())


def plot(history: list[dict], path: Path) -> None:
    """Loss and accuracy by epoch, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = range(1, len(history) + 1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for part, style in (("train", "o--"), ("test", "o-")):
            axis.plot(epochs, [row[f"{part}_{what}"] for row in history], style, label=part)
        axis.set(xlabel="epoch", ylabel=what, xticks=list(epochs))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--dataset", default="mnist", choices=DATASETS)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only so many images of each set")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist"), help="folder for what is saved")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return arguments


def main() -> float:
    arguments = parse_arguments()
    device = mg.device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    train, test = load_data(arguments.dataset, arguments.limit)
    train_loader = DataLoader(train, batch_size=arguments.batch_size, shuffle=True)
    test_loader = DataLoader(test, batch_size=500)
    size = train.tensors[0].shape[-1]
    model = Net(size).to(device)
    optimizer = optim.Adam(model.parameters(), lr=arguments.lr)
    steps = arguments.epochs * len(train_loader)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    criterion = nn.CrossEntropyLoss()
    print(f"{arguments.dataset}: {len(train)} training and {len(test)} test images, on {device}")

    history, start = [], time.perf_counter()
    for epoch in range(1, arguments.epochs + 1):
        title = f"epoch {epoch}/{arguments.epochs}"
        train_loss, train_accuracy = train_epoch(
            model, train_loader, optimizer, scheduler, criterion, device, title
        )
        test_loss, test_accuracy = evaluate(model, test_loader, criterion, device)
        history.append(
            {
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
            }
        )
        print(
            f"{title}  train: loss {train_loss:.4f} accuracy {train_accuracy:.2%}  "
            f"test: loss {test_loss:.4f} accuracy {test_accuracy:.2%}  "
            f"{time.perf_counter() - start:.1f} s"
        )

    weights = arguments.output / "model.safetensors"
    mg.save(model.state_dict(), weights)
    reloaded = Net(size).to(device)
    reloaded.load_state_dict(mg.load(weights))
    _, accuracy = evaluate(reloaded, test_loader, criterion, device)
    if accuracy != history[-1]["test_accuracy"]:
        raise SystemExit(
            f"the reloaded network reaches {accuracy:.2%}, the trained one did not: not saved well"
        )
    try:
        plot(history, arguments.output / "history.png")
    except ImportError:
        print('no picture of the history: pip install "minigrad[plot]"')
    print(f"test accuracy {accuracy:.2%}, the same after reloading {weights}")
    return accuracy


if __name__ == "__main__":
    main()
