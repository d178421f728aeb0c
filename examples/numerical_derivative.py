"""What a derivative is, in numbers, and that autograd finds the same.

    python examples/numerical_derivative.py

A derivative is the slope of a curve, and a slope can be measured, from two points that are h apart. If h is
large, the curve bends between them (truncation); if h is small, the two values differ in their last digits
alone, which are noise (rounding). Autograd needs no h: it applies the chain rule to the program's own steps.
So slopes are not measured to train a network, but to check its gradients (``mg.testing.gradcheck``).
"""

import argparse
import math
from pathlib import Path

import minigrad as mg
from minigrad import nn

EPSILON = {mg.float32: 2.0**-23, mg.float64: 2.0**-52}  # the distance from 1 to the next number


def f(x):
    return mg.exp(mg.sin(x**2))


def third_derivative(x):
    """What the truncation of the central difference is made of, found by autograd, three times over."""
    x = x.detach().requires_grad_()
    y = f(x)
    for _ in range(3):
        (y,) = mg.autograd.grad(y, x, create_graph=True)
    return y.item()


def forward_difference(f, x, h):
    return (f(x + h) - f(x)) / h


def central_difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


def show_chain_rule(x, h=1e-5):
    """The slopes of the three steps of f, each measured alone, multiply to the slope of f."""
    steps = {"u = x^2": mg.square, "v = sin(u)": mg.sin, "y = exp(v)": mg.exp}
    product, value = 1.0, x
    print(f"f(x) = exp(sin(x^2)) at x = {x.item()}, a chain of three steps:")
    for name, step in steps.items():
        slope = central_difference(step, value, h).item()
        product, value = product * slope, step(value)
        print(f"  {name:12} = {value.item():.6f}   slope {slope:.8f}")
    print(f"  the product of the slopes          {product:.8f}")


def measure_errors(x, exact):
    """(h, error of the forward, of the central difference) for each dtype, h from 1 to its last digit."""
    errors = {}
    for dtype, epsilon in EPSILON.items():
        h = mg.logspace(0, math.log10(epsilon), 400, dtype=dtype, device=x.device)
        good = {forward_difference: epsilon ** (1 / 2), central_difference: epsilon ** (1 / 3)}
        of_both = []
        for difference, best in good.items():
            error = (difference(f, x.to(dtype), h).double() - exact).abs()
            of_both.append(error.cpu().numpy())
            nearby = error[(h - best).abs() < best / 4].median().item()  # a single one may be right by luck
            digits = f"{-math.log10(nearby / exact):4.1f} digits are right at h = {best:.0e}"
            print(f"  {dtype}, {difference.__name__}: {digits}")
        errors[dtype] = h.cpu().numpy(), *of_both
    return errors


def check_network(device, h=1e-6):
    """The gradient of a small network's parameters, by autograd, and by moving each of them by h."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().to(device)
    x = mg.randn(8, 4, dtype=mg.float64, device=device)
    target = mg.randint(0, 3, (8,), device=device)
    nn.functional.cross_entropy(model(x), target).backward()
    by_autograd = mg.cat([parameter.grad.flatten() for parameter in model.parameters()])
    measured = []
    with mg.no_grad():
        for parameter in model.parameters():
            values = parameter.view(-1)  # the same memory: to write here moves the parameter
            for i in range(len(values)):
                losses = []
                for step in (h, -h):
                    values[i] += step
                    losses.append(nn.functional.cross_entropy(model(x), target).item())
                    values[i] -= step
                measured.append((losses[0] - losses[1]) / (2 * h))
    return by_autograd.cpu(), mg.tensor(measured, dtype=mg.float64)


def draw(x, slope, errors, gradients, path):
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print('no picture: pip install "minigrad[plot]"')
    _, (curve, noise, check) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")

    xs, h = mg.linspace(0.1, 1.75, 200).numpy(), 0.5
    x, y = x.item(), f(x).item()
    curve.plot(xs, f(mg.tensor(xs)).numpy(), "black", label="f(x) = exp(sin(x²))")
    curve.plot(xs, y + slope * (xs - x), "C2", label="tangent: autograd")
    for name, ends, colour in (("forward", (x, x + h), "C1"), ("central", (x - h, x + h), "C0")):
        curve.plot(ends, f(mg.tensor(ends)).numpy(), "o--", color=colour, label=f"{name} difference")
    curve.set(title=f"Slopes through two points, h = {h}, and the tangent's", xlabel="x", ylim=(0.4, 3.6))
    curve.legend(loc="upper left")

    for (dtype, (h, forward, central)), style in zip(errors.items(), ("C3", "C0"), strict=True):
        noise.loglog(h, forward, ":", color=style, alpha=0.7, label=f"{dtype}, forward")
        noise.loglog(h, central, color=style, alpha=0.8, label=f"{dtype}, central")
        noise.loglog(h, EPSILON[dtype] * y / h, "--", color="grey", linewidth=1)
    truncation = h**2 / 6 * abs(third_derivative(mg.tensor(x, dtype=mg.float64)))
    noise.loglog(h, truncation, "-.", color="grey", linewidth=1)
    noise.text(2e-3, 2e-9, "truncation\nh² |f'''| / 6", color="dimgrey")
    noise.text(2e-12, 3e-3, "rounding\nε |f| / h", color="dimgrey")
    noise.set(title="A large h truncates, a small one rounds", xlabel="h", ylabel="error", ylim=(1e-14, 30))
    noise.legend(loc="lower left", fontsize=8)
    check.axline((0, 0), slope=1, color="lightgrey")
    check.plot(*(gradient.numpy() for gradient in gradients), "o", markersize=4)
    check.set(title="A network's gradients: measured = autograd's", xlabel="by autograd", ylabel="measured")
    plt.savefig(path, dpi=80)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="as it is: this one takes a second")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the small network")
    parser.add_argument("--output", type=Path, default=Path("runs/numerical_derivative"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    x = mg.tensor(0.7, dtype=mg.float64, device=arguments.device, requires_grad=True)
    f(x).backward()
    slope, x = x.grad.item(), x.detach()
    show_chain_rule(x)
    print(f"  autograd                           {slope:.8f}")
    errors = measure_errors(x, slope)
    by_autograd, measured = check_network(arguments.device)
    largest = (by_autograd - measured).abs().max().item()
    print(f"a network of {len(measured)} parameters: gradients differ by {largest:.1e} at most")
    draw(x, slope, errors, (by_autograd, measured), arguments.output / "numerical_derivative.png")


if __name__ == "__main__":
    main()
