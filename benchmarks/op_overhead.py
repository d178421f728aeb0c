"""The overhead of a tiny op, forward and backward, in minigrad and in PyTorch.

On four elements the arithmetic costs nothing, so what is left is the library itself: the call, the choice of
a kernel, the graph, the walk back. Each case is a chain of 100 ops, timed per op. `exp` is computed once by
minigrad's own op and once by the same op as a user of minigrad or of PyTorch defines it. Each library runs in
a process of its own, so that neither's threads disturb the other's; the processes alternate, so that both
meet the same load. Shown are the medians over the rounds of each process's best time, and PyTorch's over
minigrad's: above 1 minigrad is quicker.

    python benchmarks/op_overhead.py [--rounds N]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable

import numpy as np

CHAIN = 100
REPEATS, NUMBER = 40, 20


def cases(lib) -> dict[str, Callable[[], object]]:
    """The chains, by their names, on ``lib``: minigrad, or PyTorch under the same names."""
    x = lib.rand(4, requires_grad=True)
    ones = lib.ones(4)
    own_exp = exp_of_a_user(lib)

    def mul():
        y = x
        for _ in range(CHAIN):
            y = y * x
        y.backward(ones)

    def add():
        y = x
        for _ in range(CHAIN):
            y = y + x
        y.backward(ones)

    def neg():
        y = x
        for _ in range(CHAIN):
            y = -y
        y.backward(ones)

    def exp(function):
        with lib.no_grad():
            start = x - 1
        start.requires_grad_()

        def run():
            for _ in range(CHAIN):
                y = function(start)
            y.backward(ones)

        return run

    def mul_forward():
        y = x
        with lib.no_grad():
            for _ in range(CHAIN):
                y = y * x

    return {
        "x * y, forward + backward": mul,
        "x + y, forward + backward": add,
        "-x, forward + backward": neg,
        "x * y, no_grad": mul_forward,
        "exp(x), forward": exp(lib.exp),
        "a user's exp(x), forward": exp(own_exp),
    }


def exp_of_a_user(lib) -> Callable:
    """exp, as a user of ``lib`` defines it."""
    if lib.__name__ == "minigrad":
        own = lib.op(lambda xp, x: xp.exp(x), name="own_exp")
        own.grad(x=lambda g, y, _x: g * y)
        own.kernel("cpu", name="numpy")(lambda out, x: np.exp(x, out=out))
        return own

    class OwnExp(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    return OwnExp.apply


def measure(library: str) -> dict[str, float]:
    """In this process: for each case the best time of an op, in microseconds."""
    if library == "torch":
        import torch as lib
    else:
        import minigrad as lib
    lib.set_num_threads(1)
    return {
        name: min(timeit.repeat(run, number=NUMBER, repeat=REPEATS)) / NUMBER / CHAIN * 1e6
        for name, run in cases(lib).items()
    }


def measure_apart(library: str) -> dict[str, float]:
    """As :func:`measure`, in a process of its own."""
    command = [sys.executable, __file__, "--library", library]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def engine() -> str:
    """Whether minigrad's engine is compiled (in wheels) or plain Python (in editable installs)."""
    file = importlib.util.find_spec("minigrad.autograd").origin
    return "plain Python" if file.endswith(".py") else "compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes per library (default: %(default)s)")
    parser.add_argument("--library", choices=("minigrad", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(json.dumps(measure(options.library)))
        return

    libraries = ["minigrad"]
    if importlib.util.find_spec("torch"):
        libraries.append("torch")
    else:
        print("PyTorch is not installed: minigrad's times stand alone.")
    rounds = {library: [] for library in libraries}
    for _ in range(options.rounds):
        for library in libraries:
            rounds[library].append(measure_apart(library))

    print(f"Microseconds per op on 4 elements; minigrad's engine: {engine()}; {options.rounds} rounds.")
    print(f"{'':28}{'minigrad':>10}" + (f"{'PyTorch':>10}{'ratio':>8}" if "torch" in rounds else ""))
    for name in rounds["minigrad"][0]:
        times = [statistics.median(found[name] for found in rounds[library]) for library in libraries]
        ratio = f"{times[1] / times[0]:8.2f}" if len(times) == 2 else ""
        print(f"{name:28}" + "".join(f"{time:10.2f}" for time in times) + ratio)


if __name__ == "__main__":
    main()
