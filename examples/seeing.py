"""What a convolutional network sees: its filters, its feature maps, and the digits that it gets wrong.

    python examples/mnist_cnn.py     # leaves its weights in runs/mnist_cnn
    python examples/seeing.py        # looks at them; without them it trains a network for a minute first

The first layer's filters are pictures: most have become edges, bars and spots. A feature map is where a
filter found its pattern; a forward hook takes it out of the running network. The confusion matrix counts
which digit is taken for which; and the mistakes that the network was most sure of tell whether it is blind,
or whether the digit cannot be read.
"""

import argparse
from pathlib import Path

from mnist_cnn import Net, load_data, make_step, run

import minigrad as mg
from minigrad import optim, plot
from minigrad.data import DataLoader


def trained(model, loader, augment, epochs):
    """``model`` after a short training."""
    optimizer = optim.Adam(model.parameters())
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * len(loader))
    step = make_step(model, augment, optimizer)
    for epoch in range(1, epochs + 1):
        loss, accuracy = run(step, loader, scheduler)
        print(f"epoch {epoch}/{epochs}  loss {loss:.4f}  accuracy {accuracy:.2%}", flush=True)
    return model


@mg.no_grad()
def probabilities(model, batches, device):
    """(N, 10): how sure the network is of each class for each image."""
    model.eval()
    return mg.cat([model(images.to(device)).softmax(1).cpu() for images in batches])


def main():
    arguments = parse_arguments()
    mg.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)

    limit = 1000 if arguments.quick else None
    train, test, augment, normalize = load_data("mnist", limit, "cpu")
    model = Net(28)
    if arguments.weights.exists():
        model.load_state_dict(mg.load(arguments.weights))
        print(f"weights of {arguments.weights}")
    else:
        model = trained(model, DataLoader(train, batch_size=32, shuffle=True), augment, epochs=1)
    model = model.to(arguments.device)

    images, labels = normalize(test.tensors[0]), test.tensors[1]
    chances = probabilities(model, images.split(500), arguments.device)
    predictions = chances.argmax(1)
    accuracy = (predictions == labels).float().mean().item()
    counts = mg.bincount(10 * labels + predictions, minlength=100).reshape(10, 10)
    print(f"{(predictions != labels).sum().item()} of {len(labels)} are wrong: accuracy {accuracy:.2%}")

    plot.filters(model.features[0], columns=8, path=arguments.output / "filters.png")
    ran = [
        "features.0",
        "features.2",
        "features.6",
        "features.10",
    ]  # a convolution, and what each ReLU lets through
    plot.feature_maps(model, images[0], ran, path=arguments.output / "feature_maps.png")
    plot.confusion_matrix(counts, path=arguments.output / "confusion_matrix.png")
    plot.worst_mistakes(images, labels, chances, columns=8, path=arguments.output / "seeing.png")
    print(f"pictures in {arguments.output}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..., or sim")
    parser.add_argument("--weights", type=Path, default=Path("runs/mnist_cnn/model.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short run: trained on 1000 images")
    parser.add_argument("--output", type=Path, default=Path("runs/seeing"), help="folder for the pictures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
