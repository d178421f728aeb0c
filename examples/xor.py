"""What one neuron cannot learn, and why a hidden layer can.

    python examples/xor.py

A perceptron says yes on one side of a line. Its rule, to move the line after each mistake, finds AND and OR
in a few rounds. For XOR it goes on for ever: no line has (0, 1) and (1, 0) on one side, and (0, 0) and (1, 1)
on the other. A hidden layer moves the four points to where a line parts them, and gradient descent finds out
where; with only two hidden units, not from every start.
"""

import argparse
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim

INPUTS = mg.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = {
    "AND": mg.tensor([0.0, 0.0, 0.0, 1.0]),
    "OR": mg.tensor([0.0, 1.0, 1.0, 1.0]),
    "XOR": mg.tensor([0.0, 1.0, 1.0, 0.0]),
}


def train_perceptron(targets, rounds=100):
    """Rosenblatt's rule, 1958: (weight, bias, the round that had no mistake or None)."""
    weight, bias = mg.zeros(2), mg.zeros(())
    for number in range(1, rounds + 1):
        mistakes = 0
        for x, target in zip(INPUTS, targets, strict=True):
            error = target - (x @ weight + bias > 0).float()  # 0 if right, else 1 or -1
            weight += error * x
            bias += error
            mistakes += int(error != 0)
        if mistakes == 0:
            return weight, bias, number
    return weight, bias, None


def train_network(targets, hidden, steps, device="cpu"):
    """(a network with one hidden layer, whether all four answers are right)."""
    x, targets = INPUTS.to(device), targets.to(device)
    model = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1), nn.Flatten(0)).to(device)
    criterion = nn.BCEWithLogitsLoss()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), targets)
        loss.backward()
        optimizer.step()
    with mg.no_grad():
        right = ((model(x) > 0) == (targets > 0)).all().item()
    return model, right


@mg.no_grad()
def draw(axis, logit, points, targets, title, low=-0.4, high=1.4):
    """Where the answer is yes (blue) and no (red), and the four points."""
    grid = np.linspace(low, high, 201, dtype=np.float32)
    places = mg.tensor(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    values = logit(places).cpu().numpy().reshape(201, 201)
    axis.contourf(grid, grid, values > 0, [-0.5, 0.5, 1.5], colors=["#f4c7c3", "#c6d9f1"])
    for (a, b), target in zip(points.cpu().tolist(), targets.tolist(), strict=True):
        axis.plot(a, b, "o" if target else "X", color="darkblue" if target else "darkred", markersize=11)
    axis.set(title=title, xlim=(low, high), ylim=(low, high), aspect="equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two starts in place of twenty")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("runs/xor"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    perceptrons = {}
    for name, targets in TARGETS.items():
        weight, bias, number = train_perceptron(targets)
        outcome = "never without a mistake" if number is None else f"without a mistake in round {number}"
        print(f"{name}: one neuron, weights {weight.tolist()}, bias {bias.item():+g}: {outcome}")
        perceptrons[name] = weight, bias, outcome

    for start in range(arguments.seed, arguments.seed + 100):
        mg.manual_seed(start)
        model, right = train_network(TARGETS["XOR"], 2, arguments.steps, arguments.device)
        print(f"XOR: a hidden layer of 2 units, start {start}: {'solved' if right else 'not solved'}")
        if right:
            break
    mg.save(model.state_dict(), arguments.output / "xor.safetensors")
    starts = 2 if arguments.quick else 20
    for hidden in (2, 3, 4, 8):
        solved = 0
        for start in range(starts):
            mg.manual_seed(start)
            solved += train_network(TARGETS["XOR"], hidden, arguments.steps)[1]
        print(f"XOR: a hidden layer of {hidden} units solves it from {solved} of {starts} starts")

    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, axes = plt.subplots(1, 5, figsize=(15, 3.5), layout="constrained")
    for axis, (name, (weight, bias, outcome)) in zip(axes, perceptrons.items(), strict=False):
        title = f"{name}: one neuron,\n{outcome}"
        draw(axis, lambda x, w=weight, b=bias: x @ w + b, INPUTS, TARGETS[name], title)
    hidden_layer, output_layer, device = model[:2], model[2:], arguments.device
    title = f"XOR: with two hidden units,\n{'solved' if right else 'not solved'}"
    draw(axes[3], lambda x: model(x.to(device)), INPUTS, TARGETS["XOR"], title)
    points = hidden_layer(INPUTS.to(device)).detach()
    title = "XOR: after the hidden layer,\none line is enough"
    draw(axes[4], lambda x: output_layer(x.to(device)), points, TARGETS["XOR"], title, -1.3, 1.3)
    axes[4].set(xlabel="first hidden unit", ylabel="second hidden unit")
    path = arguments.output / "xor.png"
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
