"""Why are samples given to a network in batches? The same network, one image at a time or a thousand.

Every layer is a call, and a call costs the same for one image as for many: with one image at a time most of
the time goes into calling. A batch shares that cost, and gives a processor's vectors and threads, and even
more so a card's thousands of threads, enough to do. From some size on all are busy: nothing more is gained.

    python examples/cpu_vs_gpu_batch.py            # about twenty seconds
    python examples/cpu_vs_gpu_batch.py --quick    # three

Without a card it also draws what was recorded on one, a point at batch 128.
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sizes, few repetitions")
    parser.add_argument("--device", nargs="+", help="by default cpu, and cuda where there is one")
    parser.add_argument("--output", type=Path, default=Path("runs/cpu_vs_gpu_batch"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_network():
    """Two convolutions with pooling, then a linear layer: 28 x 28 pixels to 10 classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 10)),
    )


def training_step(batch, device):
    """A function that makes one training step. The images are noise: the time does not depend on them."""
    model = make_network().to(device)
    optimizer = optim.Adam(model.parameters())
    images, labels = mg.randn(batch, 1, 28, 28).to(device), mg.randint(0, 10, (batch,)).to(device)

    def step():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def images_per_second(batch, device, seconds):
    """How many images ``device`` trains on in a second, in steps of ``batch``; and whether it had room."""
    step = training_step(batch, device)
    for _ in range(2):  # the first steps load, compile, and make room for gradients
        step()
    mg.cuda.synchronize(device)
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        step()
        count += 1
        if count % 8 == 0:  # a card takes orders faster than it works: do not let them pile up
            mg.cuda.synchronize(device)
    mg.cuda.synchronize(device)
    return count * batch / (time.perf_counter() - start)


def measure(device, batches, seconds):
    points = {}
    for batch in batches:
        try:
            points[batch] = images_per_second(batch, device, seconds)
        except mg.errors.OutOfMemoryError as error:
            print(f"{device!s:8} batch {batch:5}: {error}")
            break
        print(f"{device!s:8} batch {batch:5}: {points[batch]:10.0f} images/s")
    return points


def recorded():
    """(label, images per second by batch size) for each way that was recorded on a card."""
    run = mg.compare.recorded_run()
    name = f"{run.device_name('cuda:0')}, recorded on {run.date[:10]}"
    rows = run.chapters["batch"].rows
    return [(f"{name}, {row.mode}", {row.batch: row.samples_per_second}) for row in rows]


def plot(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for label, style, points in lines:
        axis.loglog(points.keys(), points.values(), style, label=label)
    ticks = sorted({batch for _, _, points in lines for batch in points})
    axis.set_xticks(ticks, [str(batch) for batch in ticks], minor=False)
    axis.minorticks_off()
    axis.set(xlabel="images in a batch", ylabel="images per second", title="Training a small CNN")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)


def main():
    arguments = parse_arguments()
    mg.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = arguments.device or ["cpu", *(["cuda"] if mg.cuda.is_available() else [])]
    batches = [1, 8, 64] if arguments.quick else [2**k for k in range(11)]

    lines = []
    for device in map(mg.device, names):
        points = measure(device, batches, seconds=0.2 if arguments.quick else 0.8)
        if points:
            best = max(points, key=points.get)
            factor = points[best] / points[batches[0]]
            print(
                f"{device!s:8} does {factor:.1f} times as many with batches of {best} as with single images"
            )
            lines.append((str(device), "o-", points))
    if not any(name.startswith("cuda") for name in names):
        lines += [(label, "s", points) for label, points in recorded()]
    try:
        plot(lines, arguments.output / "cpu_vs_gpu_batch.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
