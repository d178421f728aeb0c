"""A multilayer perceptron reads handwritten digits: 784 pixels, two hidden layers, ten scores.

    python examples/mnist_mlp.py
    python examples/mnist_mlp.py --device cuda
    python examples/mnist_mlp.py --dataset digits     # the set that comes with minigrad: no download

The network takes an image as a row of numbers. It does not know which pixels are neighbours, and to it a
digit that is moved by two pixels is another one. It learns all the same, from 60,000 examples, in steps that
follow the gradient of 128 images each, a mini-batch. It soon knows by heart those that it was trained on;
what counts is the accuracy on the test images, which it has never seen.
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, Digits, FashionMNIST, Subset

DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "digits": Digits}


def train(model, loader, criterion, optimizer, device):
    """One epoch: (mean loss, accuracy), both measured while the network changes."""
    model.train()
    total_loss, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(labels)
        correct += (outputs.argmax(1) == labels).sum().item()
        count += len(labels)
    return total_loss / count, correct / count


def test(model, loader, criterion, device):
    """(mean loss, accuracy) on images that the network has not learned from."""
    model.eval()
    total_loss, correct, count = 0.0, 0, 0
    with mg.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            total_loss += criterion(outputs, labels).item() * len(labels)
            correct += (outputs.argmax(1) == labels).sum().item()
            count += len(labels)
    return total_loss / count, correct / count


def main():
    arguments = parse_arguments()
    mg.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)

    train_set, test_set = (DATASETS[arguments.dataset](train=part) for part in (True, False))
    if arguments.quick:
        train_set, test_set = Subset(train_set, range(1000)), Subset(test_set, range(300))
    train_loader = DataLoader(train_set, batch_size=arguments.batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=500)

    pixels = train_set[0][0].numel()
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).to(arguments.device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=arguments.lr)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train_set)} training and {len(test_set)} test images; {parameters} parameters")

    history, start = [], time.perf_counter()
    for epoch in range(1, arguments.epochs + 1):
        train_loss, train_accuracy = train(model, train_loader, criterion, optimizer, arguments.device)
        test_loss, test_accuracy = test(model, test_loader, criterion, arguments.device)
        history.append({"train_loss": train_loss, "test_loss": test_loss})
        history[-1] |= {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        print(
            f"epoch {epoch}/{arguments.epochs}  train: loss {train_loss:.4f} accuracy {train_accuracy:.2%}  "
            f"test: loss {test_loss:.4f} accuracy {test_accuracy:.2%}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )

    mg.save(model.state_dict(), arguments.output / "model.safetensors")
    title = f"Learned by heart: {train_accuracy:.1%}. Read when never seen before: {test_accuracy:.1%}"
    mg.plot.training_curves(history, title=title, path=arguments.output / "mnist_mlp.png")
    title = "What the first hidden units look for: ink where it is red, none where it is blue"
    mg.plot.filters(model[1], count=24, columns=8, title=title, path=arguments.output / "filters.png")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--dataset", default="mnist", choices=DATASETS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short run: 1000 images, 3 epochs")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/mnist_mlp"), help="folder for what is saved"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.batch_size = 3, 32
    return arguments


if __name__ == "__main__":
    main()
