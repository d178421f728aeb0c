"""A ready-made classifier on a classic table: fit, evaluate, predict.

    python examples/iris.py

Four lengths tell three kinds of iris apart: TensorFlow's 120 to learn from, its 30 to be tested by, and a
network of layers of 10, 20 and 10 units. The loop is left to a Trainer. One flower of thirty is 3.3 %, so
that one number says little: the whole training is repeated from ten seeds.
"""

import argparse
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import DataLoader, Iris
from minigrad.train import Trainer, summary

NEW_FLOWERS = mg.tensor([[5.1, 3.3, 1.7, 0.5], [5.9, 3.0, 4.2, 1.5], [6.9, 3.1, 5.4, 2.1]])


class Standardise(nn.Module):
    """(x - mean) / std, saved with the weights: who uses the model gives it centimetres."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):
        return (x - self.mean) / self.std


def make_model(mean, std):
    return nn.Sequential(
        Standardise(mean, std),
        *(nn.Linear(4, 10), nn.ReLU()),
        *(nn.Linear(10, 20), nn.ReLU()),
        *(nn.Linear(20, 10), nn.ReLU()),
        nn.Linear(10, 3),
    )


def train(seed, train_set, test_set, epochs, device):
    """A Trainer that has done its work."""
    mg.manual_seed(seed)
    features = train_set.tensors[0]
    model = make_model(features.mean(0), features.std(0)).to(device)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), ["accuracy"])
    loader = DataLoader(train_set, batch_size=16, shuffle=True)
    trainer.fit(loader, epochs, validation=test_set, progress=False)
    return trainer


def confusion(predicted, true):
    """How many flowers of each kind (row) were taken for each kind (column)."""
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (true.numpy(), predicted.numpy()), 1)
    return matrix


def draw(history, test_set, predicted, matrix, accuracies, path):
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, (curves, flowers, table) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    epochs = range(1, len(history) + 1)
    for name, label in (("accuracy", "training"), ("val_accuracy", "test")):
        curves.plot(epochs, history[name], label=f"accuracy, {label}")
    curves.plot(epochs, history["loss"], "--", color="grey", label="loss, training")
    curves.set(title=f"Learned in {len(history)} epochs", xlabel="epoch", ylim=(0, 1.15))
    curves.legend(loc="center right")

    features, kinds = (t.numpy() for t in test_set.tensors)
    for kind, name in enumerate(Iris.classes):
        flowers.plot(*features[kinds == kind, 2:].T, "os^"[kind], label=name)
    wrong = predicted.numpy() != kinds
    flowers.plot(*features[wrong, 2:].T, "o", color="red", markersize=16, fillstyle="none", label="mistaken")
    flowers.plot(*NEW_FLOWERS[:, 2:].numpy().T, "k*", markersize=10, label="the three new ones")
    flowers.set(title=f"{wrong.sum()} of {len(kinds)} test flowers mistaken")
    flowers.set(xlabel="petal length, cm", ylabel="petal width, cm")
    flowers.legend(loc="upper left")

    table.imshow(matrix, cmap="Blues")
    for row, column in np.ndindex(3, 3):
        colour = "white" if matrix[row, column] > matrix.max() / 2 else "black"
        table.text(column, row, matrix[row, column], ha="center", va="center", color=colour)
    names = [name.removeprefix("Iris-") for name in Iris.classes]
    table.set_xticks(range(3), names)
    table.set_yticks(range(3), names)
    table.set(xlabel="taken for", ylabel="is")
    table.set_title(f"{len(accuracies)} seeds together: {np.mean(accuracies):.1%} right")
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two seeds in place of ten, fewer epochs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("runs/iris"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    epochs, seeds = (20, 2) if arguments.quick else (arguments.epochs, 10)

    train_set, test_set = Iris(train=True), Iris(train=False)
    accuracies, matrix, first = [], 0, None
    for seed in range(arguments.seed, arguments.seed + seeds):
        trainer = train(seed, train_set, test_set, epochs, arguments.device)
        if first is None:
            first = trainer
            print(summary(trainer.model, (4,)))
        values = trainer.evaluate(test_set)
        predicted = trainer.predict(test_set).argmax(1)
        matrix += confusion(predicted, test_set.tensors[1])
        accuracies.append(values["accuracy"])
        print(f"seed {seed}: test loss {values['loss']:.4f}, accuracy {values['accuracy']:.1%}")
    spread = f"from {min(accuracies):.1%} to {max(accuracies):.1%}"
    print(f"accuracy over {seeds} seeds: mean {np.mean(accuracies):.1%}, {spread}")
    print("confusion of all seeds (rows: what it is; columns: what it is taken for)")
    print(matrix)

    for flower, scores in zip(NEW_FLOWERS.tolist(), first.predict(NEW_FLOWERS).softmax(1), strict=True):
        lengths = ", ".join(f"{length:.1f}" for length in flower)
        kind = Iris.classes[scores.argmax().item()]
        print(f"a new flower ({lengths}): {kind}, {scores.max().item():.1%} sure")
    mg.save(first.model.state_dict(), arguments.output / "iris.safetensors")
    predicted = first.predict(test_set).argmax(1)
    draw(first.history, test_set, predicted, matrix, accuracies, arguments.output / "iris.png")


if __name__ == "__main__":
    main()
