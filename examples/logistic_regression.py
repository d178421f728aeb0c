"""Logistic regression: yes or no as a probability, and the line where it is one half.

    python examples/logistic_regression.py

A linear model gives any number, a logit; the sigmoid makes a probability of it. What is minimised is the
surprise at the answers, the binary cross-entropy. First the exams of 400 simulated students, whose chances
are known; then two kinds of iris that no line separates without an error.
"""

import argparse
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import Iris

TRUE_WEIGHT, TRUE_BIAS = (1.2, 0.6), -9.0  # of an hour studied, of an hour slept


def simulate_exams(students):
    """Hours studied and slept, and who passed: 1 or 0."""
    hours = mg.stack([mg.rand(students) * 8, 4 + mg.rand(students) * 5], 1)
    chance = mg.sigmoid(hours @ mg.tensor(TRUE_WEIGHT) + TRUE_BIAS)
    return hours, (mg.rand(students) < chance).float()


def train(x, y, steps, lr=0.1):
    """A linear model of the logit of ``y``, on standardised features."""
    mean, std = x.mean(0), x.std(0)
    model = nn.Linear(x.shape[1], 1).to(x.device)
    criterion = nn.BCEWithLogitsLoss()
    optimizer = optim.Adam(model.parameters(), lr=lr)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = criterion(model((x - mean) / std).squeeze(1), y)
        loss.backward()
        optimizer.step()
        if step in (1, steps // 10, steps):
            print(f"  step {step:4}  loss {loss.item():.4f}")
    with mg.no_grad():  # the same line in the units of x: w (x - mean) / std + b
        weight = model.weight[0] / std
        bias = model.bias[0] - (weight * mean).sum()
    return weight, bias


def report(x, y, weight, bias):
    logit = x @ weight + bias
    right = ((logit > 0) == (y == 1)).float().mean().item()  # a logit of 0 is a probability of one half
    w1, w2 = weight.tolist()
    print(f"  logit = {w1:.2f} x1 + {w2:.2f} x2 {bias.item():+.2f}; right: {right:.1%} of {len(y)}")


def draw_map(axis, x, y, weight, bias, labels, **words):
    """The probability as a colour, with lines at 10, 50 and 90 %, and the data."""
    x, y, weight, bias = (t.cpu().numpy() for t in (x, y, weight, bias))
    low, high = x.min(0) - 0.3, x.max(0) + 0.3
    across, up = np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True)))
    chance = 1 / (1 + np.exp(-(weight[0] * across + weight[1] * up + bias)))
    axis.contourf(across, up, chance, np.linspace(0, 1, 11), cmap="RdBu", alpha=0.6)
    lines = axis.contour(across, up, chance, [0.1, 0.5, 0.9], colors="black", linewidths=[0.6, 1.8, 0.6])
    axis.clabel(lines, fmt="%.1f", fontsize=8)
    for value, marker, colour in ((0, "o", "darkred"), (1, "^", "darkblue")):
        axis.plot(*x[y == value].T, marker, color=colour, markersize=3, label=labels[value])
    axis.set(**words)
    axis.legend(loc="upper left")


def draw_losses(axis):
    """Why the loss takes the logit: a probability so near 1 that float32 rounds it to 1 has no slope."""
    logits = mg.linspace(-5, 30, 500, requires_grad=True)
    no = mg.zeros_like(logits)
    of_sigmoid = nn.functional.binary_cross_entropy(mg.sigmoid(logits), no, reduction="sum")
    of_logit = nn.functional.binary_cross_entropy_with_logits(logits, no, reduction="sum")
    losses = {"BCELoss of the sigmoid": of_sigmoid, "BCEWithLogitsLoss": of_logit}
    for (name, loss), style in zip(losses.items(), ("C1", "C0--"), strict=True):
        (slope,) = mg.autograd.grad(loss, logits)
        axis.plot(logits.detach().numpy(), slope.numpy(), style, label=name)
    axis.set(title="Only the loss of the logit mends a sure mistake")
    axis.set(xlabel="logit, where the answer is no", ylabel="slope of the loss, in float32")
    axis.legend()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/logistic_regression"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)
    steps = 300 if arguments.quick else 2000

    print("400 exams: x1 hours studied, x2 hours slept; the true logit is 1.20 x1 + 0.60 x2 - 9.00")
    hours, passed = (t.to(arguments.device) for t in simulate_exams(400))
    exams = hours, passed, *train(hours, passed, steps)
    report(*exams)

    print("100 irises: x1 petal length, x2 petal width; virginica or versicolor?")
    measures, kinds = (t.to(arguments.device) for t in Iris().tensors)
    petals, virginica = measures[kinds > 0][:, 2:], (kinds[kinds > 0] == 2).float()
    irises = petals, virginica, *train(petals, virginica, steps)
    report(*irises)

    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    draw_map(
        axes[0],
        *exams,
        ("failed", "passed"),
        title="The chance to pass, found from 400 exams",
        xlabel="hours studied",
        ylabel="hours slept",
    )
    draw_map(
        axes[1],
        *irises,
        ("versicolor", "virginica"),
        title="Irises: a sharper line, six errors left",
        xlabel="petal length, cm",
        ylabel="petal width, cm",
    )
    (w1, w2), b = TRUE_WEIGHT, TRUE_BIAS
    ends = np.array([4.0, 9.0])
    axes[0].plot(-(b + w2 * ends) / w1, ends, "k:", label="one half, in truth")
    axes[0].legend(loc="upper left")
    draw_losses(axes[2])
    path = arguments.output / "logistic_regression.png"
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
