"""Train a small residual network on CIFAR-10, every picture shifted and mirrored anew on the device itself.

    python examples/train_cifar10.py --device cuda                      # 24 epochs on a GPU
    python examples/train_cifar10.py --device cuda --amp                # the same in bfloat16 on tensor cores
    python examples/train_cifar10.py --limit 512 --width 8 --epochs 2   # a look at it without a GPU

The network is the ResNet-9 of David Page's series "How to Train Your ResNet" (2018), which made CIFAR-10 a
matter of a minute: eight convolutions, two of its stages with a shortcut, and a learning rate that rises for
a fifth of the training and falls for the rest. The pictures stay on the device as bytes. A step
(augmentation, forward, backward, update) is recorded as a CUDA graph by ``mg.capture`` and replayed; on other
devices it runs plainly.
"""

import argparse
import contextlib
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import CIFAR10

F = nn.functional
SHIFT = 4  # pixels at most, in each direction
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, by colour


class Block(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, and 2x2 max pooling where ``pool``."""

    def __init__(self, channels: int, out_channels: int, pool: bool = False):
        layers = [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
        super().__init__(*layers, *[nn.MaxPool2d(2)] * pool)


class Shortcut(nn.Module):
    """x + block(block(x))."""

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.Sequential(Block(channels, channels), Block(channels, channels))

    def forward(self, x):
        return x + self.blocks(x)


class ResNet9(nn.Module):
    """(N, 3, 32, 32) to (N, 10); ``width`` channels in the first layer, eight times as many in the last."""

    def __init__(self, width: int):
        super().__init__()
        self.features = nn.Sequential(
            Block(3, width),
            Block(width, 2 * width, pool=True),
            Shortcut(2 * width),
            Block(2 * width, 4 * width, pool=True),
            Block(4 * width, 8 * width, pool=True),
            Shortcut(8 * width),
            nn.MaxPool2d(4),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(8 * width, 10, bias=False)

    def forward(self, images):
        return 0.125 * self.classifier(self.features(images))


def normalized(images):
    """uint8 (N, 3, 32, 32) as float32 of mean 0 and deviation 1 by colour."""
    mean, std = (mg.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augmented(images):
    """Each image (N, C, H, W) shifted by up to SHIFT pixels, its border reflected, and half of them mirrored.

    Where a pixel comes from is computed as a row and a column, and both are gathered: no copy with a border.
    """
    N, C, H, W = images.shape

    def random():
        return mg.rand(N, 1, 1, 1, device=images.device)

    def source(places, last):
        shifted = (places + (random() * (2 * SHIFT + 1)).floor() - SHIFT).abs()
        return last - (last - shifted).abs()

    y, x = (mg.arange(float(size), device=images.device) for size in (H, W))
    rows = source(y.reshape(1, 1, H, 1), H - 1)
    columns = source(x.reshape(1, 1, 1, W), W - 1)
    columns = mg.where(random() < 0.5, columns, W - 1 - columns)
    for index, dim in ((rows, 2), (columns, 3)):
        images = mg.take_along_dim(images, index.to(mg.int64).expand(N, C, H, W), dim)
    return images


def learning_rate(step: int, steps: int) -> float:
    """The share of the highest rate: up to it in a fifth of the steps, then down to zero, along two lines."""
    rise = max(1, steps // 5)
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


@mg.no_grad()
def evaluate(model, images, labels, batch_size=1000) -> float:
    """The share of images that the network knows, those mirrored counting as much as those not."""
    model.eval()
    correct = 0
    for start in range(0, len(images), batch_size):
        x = normalized(images[start : start + batch_size])
        scores = model(x) + model(x.flip(3))
        correct += (scores.argmax(1) == labels[start : start + batch_size]).sum().item()
    return correct / len(images)


def load_data(device, limit: int | None):
    """[images, labels] of the training and of the test set: bytes and int64, on the device."""
    for train in (True, False):
        dataset = CIFAR10(train=train)
        yield [part[:limit].to(device) for part in (dataset.data, dataset.targets)]


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.4, help="the highest learning rate")
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--amp", action="store_true", help="products and convolutions in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only so many images of each set")
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10"), help="folder for what is saved")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "width", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return arguments


def main() -> float:
    arguments = parse_arguments()
    device = mg.device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    (images, labels), test = load_data(device, arguments.limit)
    batch_size = min(arguments.batch_size, len(images))
    model = ResNet9(arguments.width).to(device)
    optimizer = optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = arguments.epochs * (len(images) // batch_size)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    precision = mg.autocast(device.type, dtype=mg.bfloat16) if arguments.amp else contextlib.nullcontext()

    @mg.capture
    def step(pictures, targets):
        optimizer.zero_grad()
        with precision:
            outputs = model(augmented(normalized(pictures)))
            loss = F.cross_entropy(outputs, targets)
        loss.backward()
        optimizer.step()
        return loss

    print(f"CIFAR-10: {len(images)} training and {len(test[0])} test images, on {device}")
    start, accuracies = time.perf_counter(), []
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        order = mg.randperm(len(images)).to(device)
        total = mg.zeros((), device=device)
        for first in range(0, len(images) - batch_size + 1, batch_size):
            batch = order[first : first + batch_size]
            total += step(images[batch], labels[batch]).detach()
            scheduler.step()
        mean_loss = total.item() / (len(images) // batch_size)
        accuracies.append(evaluate(model, *test))
        print(
            f"epoch {epoch}/{arguments.epochs}  loss {mean_loss:.4f}  test accuracy {accuracies[-1]:.2%}  "
            f"{time.perf_counter() - start:.1f} s"
        )
    mg.save(model.state_dict(), arguments.output / "model.safetensors")
    try:
        plot(accuracies, arguments.output / "accuracy.png")
    except ImportError:
        print('no picture of the accuracy: pip install "minigrad[plot]"')
    return accuracies[-1]


def plot(accuracies: list[float], path: Path) -> None:
    """Test accuracy by epoch, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axis.plot(range(1, len(accuracies) + 1), accuracies, "o-")
    axis.set(xlabel="epoch", ylabel="test accuracy")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
