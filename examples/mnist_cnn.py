"""A convolutional network reads more than 99.3 % of MNIST's digits, after minutes on a CPU.

    python examples/mnist_cnn.py                          # all of MNIST
    python examples/mnist_cnn.py --device cuda            # the same on a GPU
    python examples/mnist_cnn.py --dataset fashion-mnist  # clothes instead of digits
    python examples/mnist_cnn.py --dataset digits         # the set that comes with minigrad: no download
    python examples/mnist_cnn.py --device sim --dataset digits --limit 64 --epochs 1

A convolution looks for the same few patterns everywhere in the image: it needs few weights, and what it has
learned in one place it knows in all. Every image is turned, moved and resized a little each time it is seen
(augmentation): the network never sees one twice, and cannot learn them by heart. The learning rate rises and
falls in one cycle. At the end the weights are saved, loaded into a fresh network, and tested again.
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, Digits, FashionMNIST, TensorDataset
from minigrad.data import transforms as T

DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "digits": Digits}


def block(channels, out_channels):
    """3x3 convolution (without a bias, which batch norm would take away), batch norm and ReLU."""
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()


class Net(nn.Module):
    """Three convolutions, then one linear layer, for grey images of ``size`` x ``size`` pixels."""

    def __init__(self, size: int, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            *block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 64)
        )
        outputs = nn.Linear(64 * (size // 4) ** 2, classes)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.25), outputs)

    def forward(self, images):
        return self.classifier(self.features(images))


def load_data(name, limit, device):
    """Training and test set on ``device``, as bytes, and what makes of these what the network is given."""
    found = [DATASETS[name](train=train) for train in (True, False)]
    scaled = T.ToTensor()(found[0].data)
    normalize = T.Compose([T.ToTensor(), T.Normalize([scaled.mean().item()], [scaled.std().item()])])
    move = T.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation="bilinear")
    pairs = ((one.data[:limit, None].to(device), one.targets[:limit].to(device)) for one in found)
    return *(TensorDataset(*pair) for pair in pairs), T.Compose([T.ToTensor(), move, normalize]), normalize


def make_step(model, transform, optimizer=None):
    """A step that learns if there is an optimizer; on a card a CUDA graph, from the bytes to the weights."""

    @mg.capture
    @mg.set_grad_enabled(optimizer is not None)
    def step(images, labels):
        model.train(optimizer is not None)
        outputs = model(transform(images))
        loss = nn.functional.cross_entropy(outputs, labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return mg.stack([loss.detach() * len(labels), (outputs.argmax(1) == labels).float().sum()])

    return step


def run(step, loader, scheduler=None):
    """One pass over the data: (mean loss, accuracy). Only at its end a card is waited for."""
    total = 0
    for images, labels in loader:
        total = total + step(images, labels)
        if scheduler is not None:
            scheduler.step()
    return (total / len(loader.dataset)).tolist()


def main():
    arguments = parse_arguments()
    device = mg.device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    train, test, augment, normalize = load_data(arguments.dataset, arguments.limit, device)
    train_loader = DataLoader(train, batch_size=arguments.batch_size, shuffle=True)
    test_loader = DataLoader(test, batch_size=500)
    size = test[0][0].shape[-1]
    model = Net(size).to(device)
    optimizer = optim.Adam(model.parameters())
    steps = arguments.epochs * len(train_loader)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=arguments.lr, total_steps=steps)
    learn = make_step(model, normalize if arguments.no_augmentation else augment, optimizer)
    examine = make_step(model, normalize)
    print(f"{arguments.dataset}: {len(train)} training and {len(test)} test images, on {device}")

    history, start = [], time.perf_counter()
    for epoch in range(1, arguments.epochs + 1):
        train_loss, train_accuracy = run(learn, train_loader, scheduler)
        test_loss, test_accuracy = run(examine, test_loader)
        history.append({"train_loss": train_loss, "test_loss": test_loss})
        history[-1] |= {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        print(
            f"epoch {epoch}/{arguments.epochs}  train: loss {train_loss:.4f} accuracy {train_accuracy:.2%}  "
            f"test: loss {test_loss:.4f} accuracy {test_accuracy:.2%}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )

    weights = arguments.output / "model.safetensors"
    mg.save(model.state_dict(), weights)
    reloaded = Net(size).to(device)
    reloaded.load_state_dict(mg.load(weights))
    _, accuracy = run(make_step(reloaded, normalize), test_loader)
    if accuracy != history[-1]["test_accuracy"]:
        raise SystemExit(f"the reloaded network reaches {accuracy:.2%}: it was not saved well")
    print(f"test accuracy {accuracy:.2%}, the same after reloading {weights}")
    title = f"{accuracy:.2%} of the test images are read; those for training are distorted, and harder"
    mg.plot.training_curves(history, title=title, path=arguments.output / "mnist_cnn.png")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--dataset", default="mnist", choices=DATASETS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-2, help="the highest learning rate")
    parser.add_argument("--no-augmentation", action="store_true", help="show the images as they are")
    parser.add_argument("--limit", type=int, help="use only so many images of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short run: 1000 images, 1 epoch")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_cnn"), help="folder for results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.limit, arguments.epochs, arguments.batch_size = 1000, 1, 32
    if min(arguments.epochs, arguments.batch_size, 1 if arguments.limit is None else arguments.limit) < 1:
        parser.error("--epochs, --batch-size and --limit must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
