"""Convolutional networks on CIFAR-10: small photographs in colour, cropped and mirrored anew each time.

    python examples/cifar10.py            # the small network, minutes on a CPU
    python examples/cifar10.py --device cuda --model resnet9 --epochs 24 --batch-size 512 --lr 0.4 --amp

Both networks have shortcuts, ``x + f(x)``: a layer need only learn what to change (He et al., 2015). One is
the ResNet-9 of David Page's series "How to Train Your ResNet" (2018); the small one halves its pictures
earlier, with a sixth of the work at the same width. On a card, the pictures stay there as bytes, and a step,
from cropping and mirroring them to the new weights, is one CUDA graph (``mg.capture``).
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import CIFAR10, DataLoader, TensorDataset
from minigrad.data import transforms as T

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, by colour
NORMALIZE = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
CROP = T.RandomCrop(32, padding=4, padding_mode="reflect")
AUGMENT = T.Compose([CROP, T.RandomHorizontalFlip(), NORMALIZE])


def block(channels, out_channels, pool=False):
    """3x3 convolution, batch norm, ReLU, and 2x2 max pooling where ``pool``."""
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), *[nn.MaxPool2d(2)] * pool)


class Shortcut(nn.Module):
    """x + block(block(x))."""

    def __init__(self, channels):
        super().__init__()
        self.blocks = nn.Sequential(block(channels, channels), block(channels, channels))

    def forward(self, x):
        return x + self.blocks(x)


class Net(nn.Module):
    """(N, 3, 32, 32) to (N, 10): blocks, then the largest value of each channel, then a linear layer."""

    def __init__(self, model, width=None):
        super().__init__()
        width = width or {"small": 32, "resnet9": 64}[model]
        if model == "small":
            channels = 4 * width
            blocks = [block(3, width, pool=True), block(width, 2 * width, pool=True)]
            blocks += [block(2 * width, channels, pool=True), Shortcut(channels)]
        else:
            channels = 8 * width
            blocks = [block(3, width), block(width, 2 * width, pool=True), Shortcut(2 * width)]
            blocks += [block(2 * width, 4 * width, pool=True), block(4 * width, channels, pool=True)]
            blocks += [Shortcut(channels)]
        self.features = nn.Sequential(*blocks, nn.MaxPool2d(4), nn.Flatten())
        self.classifier = nn.Linear(channels, 10, bias=False)

    def forward(self, images):
        return 0.125 * self.classifier(self.features(images))


def load_data(limit, quick, device):
    """The training set and the test set, as bytes, on ``device``."""
    train, test = CIFAR10(train=not quick), CIFAR10(train=False)  # in the short form one file alone
    parts = (train, slice(limit)), (test, slice(-(limit or 0), None))
    return [TensorDataset(d.data[part].to(device), d.targets[part].to(device)) for d, part in parts]


@mg.no_grad()
def confusion(model, loader):
    """(10, 10): how often each class is taken for which, by the scores of a picture and its mirror image."""
    model.eval()
    found = []
    for images, labels in loader:
        images = NORMALIZE(images)
        found.append(10 * labels + (model(images) + model(images.flip(3))).argmax(1))
    return mg.bincount(mg.cat(found).cpu(), minlength=100).reshape(10, 10)


def main():
    arguments = parse_arguments()
    device = mg.device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(arguments.seed)

    train, test = load_data(arguments.limit, arguments.quick, device)
    train_loader = DataLoader(train, arguments.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test, batch_size=500)
    # In 16 bits convolutions read the channels of a pixel side by side, and leave them so.
    order = mg.channels_last if arguments.amp else mg.contiguous_format
    model = Net(arguments.model, arguments.width).to(device, memory_format=order)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = arguments.epochs * len(train_loader)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, steps, cycle_momentum=False)

    @mg.capture
    def step(images, labels):
        images = AUGMENT(images).contiguous(memory_format=order)
        optimizer.zero_grad()
        with mg.autocast(device.type, "bfloat16", enabled=arguments.amp):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    print(f"CIFAR-10: {len(train)} training and {len(test)} test images, on {device}")
    start = time.perf_counter()
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        total = mg.zeros((), device=device)
        for images, labels in train_loader:
            total += step(images, labels)
            scheduler.step()
        counts = confusion(model, test_loader)
        accuracy = counts.diagonal().sum().item() / len(test)
        print(
            f"epoch {epoch}/{arguments.epochs}  loss {total.item() / len(train_loader):.4f}  "
            f"test accuracy {accuracy:.2%}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )
    mg.save(model.state_dict(), arguments.output / "model.safetensors")
    mg.plot.confusion_matrix(counts, CIFAR10.classes, path=arguments.output / "cifar10.png")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--model", default="small", choices=["small", "resnet9"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2, help="the highest learning rate")
    parser.add_argument("--width", type=int, help="channels of the first layer: 32, or 64 of resnet9")
    parser.add_argument("--amp", action="store_true", help="products and convolutions in bfloat16")
    parser.add_argument("--limit", type=int, help="use only so many images of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short run: 500 images, 1 epoch")
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10"), help="folder for what is saved")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.limit, arguments.epochs, arguments.batch_size = 500, 1, 32
    return arguments


if __name__ == "__main__":
    main()
