"""Forger and police: two networks that learn to draw digits by playing against each other.

The generator (the forger) turns noise into images by transposed convolutions; the discriminator (the police)
tells real digits from forged ones. The police lowers the error of its verdicts, the forger raises it, by the
gradient that comes back through the police's network. Neither ever sees a label. A third network, which has
learned to read digits, judges the forgeries. After https://arxiv.org/abs/1511.06434 (DCGAN).

    python examples/gan.py                # 20 times a third of MNIST, about twelve minutes on one core
    python examples/gan.py --quick        # some seconds: blots, not digits
"""

import argparse
import time
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, TensorDataset
from minigrad.nn.functional import binary_cross_entropy_with_logits as bce
from minigrad.nn.functional import cross_entropy

NOISE = 64  # numbers that each image is made from


def make_generator(width):
    """Noise (N, NOISE, 1, 1) to images (N, 1, 28, 28) with values in (-1, 1)."""
    return nn.Sequential(
        nn.ConvTranspose2d(NOISE, 2 * width, 7, bias=False),  # 7 x 7
        *(nn.BatchNorm2d(2 * width), nn.ReLU()),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # 14 x 14
        *(nn.BatchNorm2d(width), nn.ReLU()),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),  # 28 x 28
        nn.Tanh(),
    )


def make_discriminator(width, outputs=1):
    """Images to logits (N, outputs): one, which is above 0 for a real image, or one for each digit."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),  # 14 x 14
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),  # 7 x 7
        *(nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(2 * width * 7 * 7, outputs)),
    )


def train_step(real, generator, discriminator, forger, police):
    """One move of each player; the losses of forger and police, means of a verdict."""
    fake = generator(mg.randn(len(real), NOISE, 1, 1, device=real.device))
    is_real, is_forged = mg.ones(len(real), 1, device=real.device), mg.zeros(len(real), 1, device=real.device)

    police.zero_grad()
    police_loss = bce(discriminator(real), is_real) / 2 + bce(discriminator(fake.detach()), is_forged) / 2
    police_loss.backward()
    police.step()

    forger.zero_grad()  # the same forgeries ought to pass for real
    forger_loss = bce(discriminator(fake), is_real)
    forger_loss.backward()
    forger.step()
    return forger_loss.item(), police_loss.item()


def train_judge(images, labels, device):
    """A network of the police's kind that has learned, in one epoch, to read digits."""
    judge = make_discriminator(32, outputs=10).to(device)
    optimizer = optim.Adam(judge.parameters(), lr=2e-3)
    for batch, target in DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True):
        optimizer.zero_grad()
        cross_entropy(judge(batch.to(device)), target.to(device)).backward()
        optimizer.step()
    return judge.eval()


@mg.no_grad()
def examine(judge, images):
    """The share of images that the judge is 95 % sure of, and how many of each digit are among them."""
    confidence, digit = judge(images).softmax(1).max(1)
    sure = confidence > 0.95
    return sure.float().mean().item(), mg.bincount(digit[sure], minlength=10).tolist()


def plot(sheets, losses, title, path):
    """Every sheet; and some of them, from the first to the last, above the losses of both players."""
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    for epoch, sheet in enumerate(sheets, 1):
        imsave(path.with_name(f"epoch_{epoch:02}.png"), sheet, cmap="gray")
    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle(title)
    shown = sorted({round(i * (len(sheets) - 1) / 4) for i in range(5)})
    axes = figure.subplot_mosaic([shown, ["losses"] * len(shown)])
    for i in shown:
        axes[i].imshow(sheets[i][:140, :140], cmap="gray")
        axes[i].set(title=f"epoch {i + 1}", xticks=[], yticks=[])
    means = [steps.mean(0) for steps in np.array_split(losses, min(100, len(losses)))]
    axes["losses"].plot(np.linspace(0, len(sheets), len(means)), means, label=["forger", "police"])
    axes["losses"].set(xlabel="epoch", ylabel="mean loss of a verdict", ylim=(0, None))
    axes["losses"].legend()
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little data, small networks")
    parser.add_argument("--epochs", type=int, help="20, or 2 with --quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/gan"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(args.seed)
    width, count, epochs = (32, 20_000, 20) if not args.quick else (16, 1280, 2)
    images, labels = MNIST().as_tensors()
    images = images * 2 - 1  # the range of tanh
    judge = train_judge(images[-2 * count :], labels[-2 * count :], args.device)
    real_share, _ = examine(judge, MNIST(train=False).as_tensors()[0][:1000].to(args.device) * 2 - 1)
    print(f"the judge is sure of {real_share:.1%} of 1000 real images")

    generator = make_generator(width).to(args.device)
    discriminator = make_discriminator(width).to(args.device)
    forger = optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))  # its task is the harder one
    police = optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    players = generator, discriminator, forger, police
    loader = DataLoader(TensorDataset(images[:count]), batch_size=64, shuffle=True, drop_last=True)
    noise = mg.randn(1000, NOISE, 1, 1, device=args.device)  # the same after each epoch
    sheets, losses, start = [], [], time.perf_counter()
    for epoch in range(1, (args.epochs or epochs) + 1):
        losses += [train_step(real.to(args.device), *players) for (real,) in loader]
        with mg.no_grad():
            drawn = generator(noise)
        share, digits = examine(judge, drawn)
        sheets.append(drawn[:64].reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224).cpu().numpy())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: sure of {share:.1%} of the forgeries {digits}, {seconds:.0f} s", flush=True)
    mg.save(generator.state_dict(), args.output / "generator.safetensors")
    title = f"The judge is sure of {share:.0%} of the forgeries, and of {real_share:.0%} of real digits"
    try:
        plot(sheets, losses, title, args.output / "gan.png")
    except ImportError:
        print('no pictures: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
