"""When is a GPU faster? A matrix product from tiny to large, on the processor and on the card.

A call costs something before it computes anything: Python, and on a card the launch of a kernel. Tiny
products take just that long, wherever they run. Large ones take as long as the arithmetic, of which a card
does a hundred times more in the same time. Somewhere in between the lines cross. If the matrices lie in the
computer's own memory, the way to the card and back comes on top, and the lines cross later, or never.

    python examples/cpu_vs_gpu_size.py            # about ten seconds
    python examples/cpu_vs_gpu_size.py --quick    # two

Without a card it draws what was recorded on one, as a dashed line.
"""

import argparse
import statistics
import time
from pathlib import Path

import minigrad as mg


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small matrices, few repetitions")
    parser.add_argument("--device", nargs="+", help="by default cpu, and cuda where there is one")
    parser.add_argument("--output", type=Path, default=Path("runs/cpu_vs_gpu_size"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def seconds_of(call, device, repeats):
    """The median time of ``call``. A card works on while Python has gone ahead: wait for it."""
    call()  # the first call loads, compiles, and fills caches
    mg.cuda.synchronize(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        mg.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(device, sizes, repeats):
    """For each size the seconds of a product on ``device``, and with the way there and back."""
    rows = []
    for n in sizes:
        host_a, host_b = mg.randn(n, n), mg.randn(n, n)
        a, b = host_a.to(device), host_b.to(device)

        def there_and_back(host_a=host_a, host_b=host_b):
            return (host_a.to(device) @ host_b.to(device)).cpu()

        error = (a @ b - (host_a.double() @ host_b.double()).to(device).float()).abs().max().item()
        if error > 1e-6 * n:  # a wrong result may be as fast as it likes
            raise SystemExit(f"{n} x {n} on {device} is wrong by {error}")
        alone = seconds_of(lambda a=a, b=b: a @ b, device, repeats)
        moved = seconds_of(there_and_back, device, repeats) if device.type == "cuda" else alone
        rows.append((n, alone, moved))
        print(f"{device!s:8} {n:5} x {n:<5} {1e6 * alone:10.1f} us   {2 * n**3 / alone / 1e9:8.1f} GFLOP/s")
    return rows


def crossing(cpu, card):
    """The smallest size from which on the second is faster, of those that both have; or None."""
    shared = sorted(cpu.keys() & card.keys())
    slower = [n for n in shared if card[n] >= cpu[n]]
    return next((n for n in shared if not slower or n > slower[-1]), None)


def recorded():
    """(the card, its seconds by size) of the run that ships with minigrad."""
    run = mg.compare.recorded_run()
    name = run.device_name("cuda:0")
    points = [row for row in run.chapters["size"].rows if row.op == "matmul"]
    return f"{name}, recorded on {run.date[:10]}", {row.n: row.seconds for row in points}


def plot(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for label, style, points in lines:
        axis.loglog(points.keys(), [1e6 * t for t in points.values()], style, label=label, base=2)
    axis.set_yscale("log")
    axis.set(xlabel="n", ylabel="microseconds of a call", title="A product of n x n matrices")
    axis.set_xticks(ticks := sorted({n for _, _, points in lines for n in points}), [str(n) for n in ticks])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)


def main():
    arguments = parse_arguments()
    mg.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = arguments.device or ["cpu", *(["cuda"] if mg.cuda.is_available() else [])]
    sizes = [2**k for k in range(2, 9 if arguments.quick else 12)]

    lines, cards = [], {}
    for device in map(mg.device, names):
        rows = measure(device, sizes, repeats=3 if arguments.quick else 7)
        points = {n: alone for n, alone, _ in rows}
        lines.append((str(device), "o-", points))
        if device.type == "cuda":
            cards[str(device)] = points
            moved = {n: seconds for n, _, seconds in rows}
            cards[f"{device} with the way there and back"] = moved
            lines.append((f"{device} with the way there and back", "o:", moved))
    if not cards:
        name, points = recorded()
        cards[name] = points
        lines.append((name, "s--", points))

    cpu = next((points for name, _, points in lines if name == "cpu"), {})
    for name, points in cards.items():
        n = crossing(cpu, points)
        print(
            f"{name}: faster than the processor " + (f"from {n} x {n} on" if n else "at none of these sizes")
        )
    try:
        plot(lines, arguments.output / "cpu_vs_gpu_size.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
