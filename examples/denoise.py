"""A convolutional autoencoder repairs digits: it takes noise away and fills in lost pixels.

The encoder looks at ever larger pieces of a damaged image, by strides; the decoder makes an image of what it
saw, by transposed convolutions. The loss compares that with the image before the damage, and needs no labels.
Every exercise is a new one, and to solve them all the network must learn what digits look like.

    python examples/denoise.py            # five times MNIST, about six minutes on one core
    python examples/denoise.py --quick    # some seconds

What a repair is worth says the peak signal-to-noise ratio, PSNR = -10 log10(mean squared error), in decibels:
with 10 dB more, a tenth of the squared error is left. After Vincent et al., "Extracting and Composing Robust
Features with Denoising Autoencoders", ICML 2008.
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn, optim
from minigrad.data import MNIST, DataLoader, TensorDataset


def add_noise(images):
    """Normal noise of deviation 0.5, half the way from black to white."""
    return (images + 0.5 * mg.randn_like(images)).clamp(0, 1)


def lose_pixels(images):
    """Each pixel is black with probability 0.7."""
    return images * (mg.rand_like(images) < 0.3)


DAMAGES = {"noise": add_noise, "lost pixels": lose_pixels}


class Autoencoder(nn.Module):
    """Damaged images (N, 1, 28, 28) to repaired ones."""

    def __init__(self, width):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 5, stride=2, padding=2), nn.BatchNorm2d(width), nn.ReLU()),  # 14 x 14
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),  # 7 x 7
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1), nn.Sigmoid()),  # 28 x 28
        )

    def forward(self, images):
        return self.decoder(self.encoder(images))


def train_epoch(model, loader, optimizer, scheduler, device):
    """One pass over the clean images, each damaged in one of two ways; the mean squared error."""
    model.train()
    total = 0.0
    for (clean,) in loader:
        clean = clean.to(device)
        half = len(clean) // 2
        damaged = mg.cat([add_noise(clean[:half]), lose_pixels(clean[half:])])
        optimizer.zero_grad()
        loss = F.mse_loss(model(damaged), clean)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / len(loader)


def psnr(images, clean):
    """In dB, for pixels from 0 to 1, the mean over the images (N, 1, 28, 28)."""
    errors = ((images - clean) ** 2).mean((1, 2, 3))
    return (-10 * mg.log10(errors)).mean().item()


@mg.no_grad()
def repair(model, clean):
    """For each kind of damage: damaged images, repaired ones, and the PSNR of both."""
    model.eval()
    results = {}
    for name, damage in DAMAGES.items():
        damaged = damage(clean)
        repaired = model(damaged)
        results[name] = damaged, repaired, psnr(damaged, clean), psnr(repaired, clean)
    return results


def plot(clean, results, path):
    """Ten digits before the damage; then, for each kind of it, after it, and repaired."""
    from matplotlib.figure import Figure

    rows = [("original", clean)]
    for name, (damaged, repaired, before, after) in results.items():
        rows += [(f"{name}\n{before:.1f} dB", damaged), (f"repaired\n{after:.1f} dB", repaired)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    for axis, (label, images) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        strip = images[:10, 0].permute(1, 0, 2).reshape(28, -1).cpu().numpy()
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle("Digits that the autoencoder has never seen, repaired")
    figure.savefig(path, dpi=75)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little data, a small network")
    parser.add_argument("--epochs", type=int, help="5, or 2 with --quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/denoise"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(args.seed)
    width, count, epochs = (32, 60_000, 5) if not args.quick else (16, 2560, 2)

    train, test = (MNIST(train=part).as_tensors()[0] for part in (True, False))
    test = test[: count // 20].to(args.device)
    loader = DataLoader(TensorDataset(train[:count]), batch_size=64, shuffle=True)
    model = Autoencoder(width).to(args.device)
    optimizer = optim.Adam(model.parameters(), lr=4e-3)
    epochs = args.epochs or epochs
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))

    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        loss = train_epoch(model, loader, optimizer, scheduler, args.device)
        results = repair(model, test)
        gains = ", ".join(
            f"{name} {before:.2f} -> {after:.2f} dB" for name, (*_, before, after) in results.items()
        )
        print(f"epoch {epoch}: loss {loss:.4f}; {gains}; {time.perf_counter() - start:.0f} s", flush=True)
    mg.save(model.state_dict(), args.output / "model.safetensors")
    try:
        plot(test, results, args.output / "denoise.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
