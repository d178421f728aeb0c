"""Linear regression by gradient descent, on its loss surface, beside the solution in closed form.

    python examples/linear_regression.py

How wide is a petal of which we know the length? The answer is a line, and the best line is where the mean
squared error, a bowl over weight and bias, is lowest. Gradient descent rolls down this bowl; least squares
jumps to its bottom. How fast it rolls depends on the bowl's shape: for a length in centimetres it is a narrow
valley, and for a standardised one (mean 0, deviation 1) it is round.
"""

import argparse
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import Iris


def train(x, y, lr, steps):
    """A linear model of ``y``, its loss before each step, and its parameters there: (steps, features + 1)."""
    model = nn.Linear(x.shape[1], 1).to(x.device)
    with mg.no_grad():
        model.weight.fill_(-0.5)  # a bad start, so that there is a way to see
        model.bias.fill_(2.0)
    criterion = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=lr)
    losses, way = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        losses.append(loss.item())
        way.append(parameters(model))
        optimizer.step()
    return model, losses, np.array(way)


def parameters(model):
    return [*model.weight.flatten().tolist(), model.bias.item()]


def least_squares(x, y):
    """(the weights and the bias at the bottom of the bowl, where the derivative is zero; the loss there)."""
    with_ones = mg.cat([x, mg.ones_like(y)], 1).cpu().double().numpy()  # the bias is the weight of a one
    y = y.cpu().double().numpy()
    solution, squared_error, *_ = np.linalg.lstsq(with_ones, y, rcond=None)
    return solution.ravel(), squared_error.item() / len(y)


def fit(title, x, y, lr, steps):
    """Both ways, printed side by side."""
    model, losses, way = train(x, y, lr, steps)
    solution, lowest = least_squares(x, y)
    near = next((step for step, loss in enumerate(losses) if loss <= 1.01 * lowest), None)
    print(f"{title}: learning rate {lr}, {steps} steps")
    for name, values, loss in (
        ("gradient descent", parameters(model), losses[-1]),
        ("closed form", solution, lowest),
    ):
        print(f"  {name:17}", *(f"{value:8.4f}" for value in values), f"  mean squared error {loss:.6f}")
    print(
        "  not yet within 1 % of the lowest loss"
        if near is None
        else f"  within 1 % of the lowest loss after {near} steps"
    )
    return way, solution, near


def draw_surface(axis, x, y, way, solution, title):
    """The loss as a landscape over weight and bias, and the way through it."""
    reach = 1.2 * np.abs(way - solution).max(0)
    weights, biases = (np.linspace(s - r, s + r, 150) for s, r in zip(solution, reach, strict=True))
    x, y = x.cpu().numpy().ravel(), y.cpu().numpy().ravel()
    losses = ((weights[:, None] * x + biases[:, None, None] - y) ** 2).mean(-1)
    axis.contourf(weights, biases, losses, np.geomspace(losses.min(), losses.max(), 16), cmap="Blues_r")
    axis.plot(*way.T, ".-", color="C1", markersize=4, linewidth=0.8, label="gradient descent")
    axis.plot(*solution, "*", color="C3", markersize=12, label="closed form")
    axis.set(title=title, xlabel="weight", ylabel="bias")
    axis.legend(loc="upper right")


def draw(length, width, standardised, raw_fit, round_fit, path):
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, (data, valley, bowl) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    x, (way, solution, _) = length.cpu().numpy(), raw_fit
    data.plot(x, width.cpu().numpy(), ".", color="grey", label="150 irises")
    ends = np.array([x.min(), x.max()])
    for step, style in ((0, ":"), (10, "-."), (100, "--")):
        line = way[step, 0] * ends + way[step, 1]
        data.plot(ends, line, "C1" + style, label=f"gradient descent, {step} steps")
    data.plot(ends, solution[0] * ends + solution[1], "C3", label="closed form")
    data.set(
        title="A line from length to width",
        xlabel="petal length, cm",
        ylabel="petal width, cm",
        ylim=(-1.5, 4),
    )
    data.legend(loc="upper left")
    title = "{}: within 1 % after {} steps"
    draw_surface(valley, length, width, way, solution, title.format("In cm a valley", raw_fit[2]))
    draw_surface(bowl, standardised, width, *round_fit[:2], title.format("Standardised a bowl", round_fit[2]))
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="changes nothing: there is no chance in this one")
    parser.add_argument("--output", type=Path, default=Path("runs/linear_regression"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    measures = Iris().tensors[0].to(arguments.device)
    features, width = measures[:, :3], measures[:, 3:]
    standardised = (features - features.mean(0)) / features.std(0)
    length, standardised_length = features[:, 2:], standardised[:, 2:]

    raw_fit = fit("petal width from its length, in cm", length, width, lr=0.05, steps=1000)
    round_fit = fit("from its length, standardised", standardised_length, width, lr=0.4, steps=20)
    steps = 300 if arguments.quick else 3000
    fit("from three lengths, in cm", features, width, lr=0.015, steps=steps)
    fit("from three lengths, standardised", standardised, width, lr=0.4, steps=steps // 10)
    draw(length, width, standardised_length, raw_fit, round_fit, arguments.output / "linear_regression.png")


if __name__ == "__main__":
    main()
