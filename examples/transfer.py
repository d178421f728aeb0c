"""What a network has learned from a million photographs serves to tell flowers apart, with 400 examples.

The layers of MobileNetV2 turn a picture into 1280 numbers that tell what is in it: edges and textures first,
then petals, leaves and eyes. On these frozen features a linear classifier suffices. Fine-tuning then goes on
with the last layers, too, by small steps. Both see each picture and its mirror image, which pass the layers
that stay as they are only once. For comparison, the same classifier learns from the pixels.

    python examples/transfer.py                        # train, test, save the network
    python examples/transfer.py --photo my_tulip.jpg   # what kind of flower is on a picture of your own
"""

import argparse
import time
from pathlib import Path

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import models, nn, optim
from minigrad.data import DataError, DataLoader, Flowers, Subset, read_image

CUT = 14  # of the 19 layers of features; those from here on are fine-tuned
WEIGHTS = models.MobileNet_V2_Weights.DEFAULT
KINDS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def load(train, every):
    """Images (N, 3, 224, 224) and labels (N,): each ``every``-th flower of a set."""
    flowers = Flowers(train=train, transform=WEIGHTS.transforms())
    batches = DataLoader(Subset(flowers, range(0, len(flowers), every)), batch_size=50)
    return [mg.cat(part) for part in zip(*batches, strict=True)]


@mg.no_grad()
def apply(layers, views):
    """What the layers make of two views of all images, (2, N, ...)."""
    layers.eval()
    return mg.stack([mg.cat([layers(batch) for batch in view.split(25)]) for view in views])


def fit(model, views, labels, epochs, lr):
    """Train with the views (2, N, ...): in each epoch every image once, as it is or mirrored."""
    optimizer = optim.AdamW(model.parameters(), lr=lr)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in mg.randperm(len(labels)).to(labels.device).split(25):
            mirrored = mg.randint(0, 2, (len(batch),), device=labels.device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(views[mirrored, batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        scheduler.step()
        if epoch % 5 == 0:
            print(f"    epoch {epoch}: loss {total / len(labels):.4f}", flush=True)


def classify(path, model, saved, device):
    """Print how likely each kind of flower is to be on a photograph, for the network that was saved."""
    try:
        model.load_state_dict(mg.load(saved))
        image = WEIGHTS.transforms()(read_image(path))
    except (DataError, OSError) as error:
        raise SystemExit(f"transfer: {error}") from None
    views = image.to(device).unsqueeze(0), image.flip(2).to(device).unsqueeze(0)
    probabilities = apply(model, views).softmax(2).mean((0, 1))
    for kind, probability in sorted(zip(KINDS, probabilities.tolist(), strict=True), key=lambda p: -p[1]):
        print(f"    {probability:7.2%}  {kind}")


def plot(accuracies, images, labels, probabilities, path):
    """The accuracies as bars, and the mistakes that the fine-tuned network is surest of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.2])
    axis = left.subplots()
    bars = axis.barh(list(accuracies), list(accuracies.values()), color=["gray", "tab:blue", "tab:orange"])
    axis.bar_label(bars, [f"{accuracy:.1%}" for accuracy in accuracies.values()], padding=-40, color="white")
    axis.set(xlim=(0, 1), title=f"recognised of {len(labels)} new flowers")
    axis.invert_yaxis()
    confidence, guesses = probabilities.max(1)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if guesses[i] != labels[i]]
    axes = right.subplots(2, 4).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, wrong, strict=False):
        axis.imshow((images[i].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()[::2, ::2])
        axis.set_title(f"{KINDS[labels[i]]}\nnot {KINDS[guesses[i]]}", size=8)
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photo", type=Path, help="tell what is on it, with the network saved before")
    parser.add_argument("--quick", action="store_true", help="each sixteenth flower, one epoch")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    mg.manual_seed(args.seed)
    model = models.mobilenet_v2(weights=WEIGHTS)
    model.classifier[1] = nn.Linear(model.last_channel, len(KINDS))  # a new last layer, for the five kinds
    model.to(args.device)
    saved = args.output / "transfer.safetensors"
    if args.photo:
        return classify(args.photo, model, saved, args.device)

    every, epochs = (16, 1) if args.quick else (1, args.epochs)
    (images, labels), (test_images, test_labels) = (
        [part.to(args.device) for part in load(train, every)] for train in (True, False)
    )
    accuracies, start = {}, time.perf_counter()

    def test(name, layers, views):
        probabilities = apply(layers, views).softmax(2).mean(0)
        accuracies[name] = (probabilities.argmax(1) == test_labels).float().mean().item()
        seconds = time.perf_counter() - start
        print(f"{name}: {accuracies[name]:.1%} of {len(test_labels)} test flowers, {seconds:.0f} s")
        return probabilities

    views, test_views = ((x, x.flip(3)) for x in (images, test_images))
    shrink = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten())
    classifier = nn.Linear(3 * 16 * 16, len(KINDS)).to(args.device)
    fit(classifier, apply(shrink, views), labels, epochs=30, lr=1e-3)
    test("pixels", classifier, apply(shrink, test_views))

    body = model.features[:CUT]
    head = nn.Sequential(model.features[CUT:], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    views, test_views = apply(body, views), apply(body, test_views)  # each image passes here only once
    fit(model.classifier, apply(head, views), labels, epochs=30, lr=3e-3)
    test("frozen", model.classifier, apply(head, test_views))

    head.append(model.classifier)
    fit(head, views, labels, epochs, lr=2e-4)
    probabilities = test("fine-tuned", head, test_views)
    mg.save(model.state_dict(), saved)
    try:
        results = (tensor.cpu() for tensor in (test_images, test_labels, probabilities))
        plot(accuracies, *results, args.output / "transfer.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
