"""A network that knows a thousand things names what is in a photograph.

MobileNetV2 was trained on ImageNet: 1.3 million photographs of a thousand kinds of things, from tench to
toilet tissue. A photograph is brought to the size and the range of values that it was trained with; what
comes out is a score for each kind, and softmax makes probabilities of them. What it does not know it cannot
say: it names the nearest of its thousand kinds, which a low probability may or may not tell.

    python examples/recognise.py my_photo.jpg another.png      # your own
    python examples/recognise.py                               # those in the folder photos/ of MINIGRAD_DATA
    python examples/recognise.py --model squeezenet1_1         # a network of a third of the size
"""

import argparse
import math
import os
import time
from pathlib import Path

import minigrad as mg
from minigrad import models
from minigrad.data import DataError, read_image


def recognise(model, picture, preprocess, categories):
    """The five likeliest names of what is in a picture, with their probabilities."""
    image = preprocess(picture).unsqueeze(0)  # a batch of one, (1, 3, H, W)
    with mg.no_grad():
        probabilities = model(image.to(next(model.parameters()).device)).softmax(1)[0]
    values, places = probabilities.topk(5)
    return [(categories[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]


def default_photos():
    """Those of the data folder."""
    folder = Path(os.environ.get("MINIGRAD_DATA", "")) / "photos"
    photos = sorted(folder.glob("*.jpg"))
    if not photos:
        raise FileNotFoundError(
            f"{folder} is missing: name photographs, or set MINIGRAD_DATA to a folder that holds photos/"
        )
    return photos


def plot(answers, path):
    """Each photograph beside bars of its five answers; ``answers`` are (picture, [(name, probability)])."""
    from matplotlib.figure import Figure

    columns = min(2, len(answers))
    rows = math.ceil(len(answers) / columns)
    figure = Figure(figsize=(4.6 * columns, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 1.5] * columns).reshape(-1, 2)
    for axis in axes.flat:
        axis.set_axis_off()
    for (photo, bars), (picture, answer) in zip(axes, answers, strict=False):
        photo.imshow(picture)
        for row, (name, probability) in enumerate(answer):
            bars.barh(row, probability, height=0.9, color="tab:orange" if row == 0 else "lightgray")
            bars.text(0.02, row, f"{name}  {probability:.1%}", va="center", size=9)
        bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "photos", nargs="*", type=Path, help="files of pictures; default: MINIGRAD_DATA/photos"
    )
    parser.add_argument("--model", default="mobilenet_v2", choices=models.list_models())
    parser.add_argument("--quick", action="store_true", help="two photographs at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/recognise"))
    parser.add_argument("--seed", type=int, default=0, help="of no effect: nothing here is random")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    photos = args.photos or default_photos()
    weights = models.get_model_weights(args.model).DEFAULT
    model = models.get_model(args.model, weights=weights).to(args.device).eval()
    preprocess, categories = weights.transforms(), weights.meta["categories"]

    answers = []
    for path in photos[: 2 if args.quick else None]:
        try:
            picture = read_image(path)
        except (DataError, OSError) as error:
            raise SystemExit(f"recognise: {error}") from None
        start = time.perf_counter()
        answer = recognise(model, picture, preprocess, categories)
        print(f"{path.name}  ({1000 * (time.perf_counter() - start):.0f} ms)")
        for name, probability in answer:
            print(f"    {probability:7.2%}  {name}")
        picture.thumbnail((240, 240))
        answers.append((picture, answer))
    try:
        plot(answers, args.output / "recognise.png")
    except ImportError:
        print('no picture: pip install "minigrad[plot]"')


if __name__ == "__main__":
    main()
