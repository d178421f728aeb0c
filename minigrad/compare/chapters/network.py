"""The network: a CNN learns to read digits, on each device; and where the time of its layers goes.

The images are those of MNIST where its files lie on this machine; otherwise the Digits, which ship with
minigrad. Nothing is downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minigrad import nn, optim
from minigrad.autograd import no_grad
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.networks import NETWORKS, describe, mnist_cnn, normal_images, training_step
from minigrad.compare.numbers import seconds, share, significant
from minigrad.compare.rows import Fact, LayerTime, StepTime, TrainingPoint
from minigrad.compare.session import Session
from minigrad.compare.timing import Call, Timing, active, sample_calls, told, warm_up
from minigrad.creation import from_numpy
from minigrad.data import MNIST, DataError, Digits, ImageDataset
from minigrad.devices import Device
from minigrad.random import manual_seed
from minigrad.tensor import Tensor

NAME = "network"
TITLE = "A network that learns"
QUESTION = "What does all this bring to a network, from the first step to the last?"
TABLES = {"training": TrainingPoint, "layers": LayerTime, "steps": StepTime, "facts": Fact}
COLUMNS = {
    "training": [
        ("dataset", lambda row: row.dataset),
        ("device", lambda row: row.device),
        ("images", lambda row: str(row.samples)),
        ("time", lambda row: seconds(row.seconds) if row.samples else ""),
        ("training loss", lambda row: f"{row.train_loss:.4f}" if row.train_loss is not None else ""),
        ("test loss", lambda row: f"{row.test_loss:.4f}"),
        ("accuracy", lambda row: f"{row.test_accuracy:.2%}"),
    ],
    "layers": [
        ("layer", lambda row: row.layer),
        ("output", lambda row: row.output),
        ("device", lambda row: row.device),
        ("forward", lambda row: seconds(row.forward)),
        ("backward", lambda row: seconds(row.backward)),
        ("share", lambda row: share(row.share)),
    ],
    "steps": [
        ("network", lambda row: row.network),
        ("mode", lambda row: row.mode),
        ("batch", lambda row: str(row.batch)),
        ("device", lambda row: row.device),
        ("time", lambda row: row.failure or seconds(row.seconds)),
        ("samples/s", lambda row: significant(row.samples_per_second) if row.samples_per_second else ""),
    ],
}
SHORT = ("training", "layers")

NETWORK = "MNIST CNN"
BATCH = 128
LEARNING_RATE = 2e-3
TESTS, QUICK_TESTS = 8, 4  # in a training run
TEST_IMAGES, QUICK_TEST_IMAGES, TEST_BATCH = 2000, 500, 500
SEED = 0


@dataclass
class _Data:
    """A data set, with the mean and the deviation of its training images' pixels."""

    name: str
    train: ImageDataset
    test: ImageDataset
    test_images: int
    mean: float
    deviation: float

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return self.train.data.shape[-1]

    def batch(self, part: ImageDataset, indices: Any, device: Device) -> tuple[Tensor, Tensor]:
        """Some images, normalised, and their labels, on ``device``."""
        images, labels = part.get_batch(indices)
        return ((images - self.mean) / self.deviation).to(device), labels.to(device)


def measure(session: Session, chapter: Chapter) -> None:
    """Train on each device, then time the layers and whole steps."""
    data = load_data(chapter, QUICK_TEST_IMAGES if session.quick else TEST_IMAGES)
    devices = session.timed_devices(chapter)
    for what, run in (("training", partial(_train, data)), ("timing the layers", _profile)):
        for device, threads in devices:
            session.progress(f"network: {what} on {device}")
            try:
                run(session, chapter, device, threads)
            except Exception as error:  # a card's memory may be full: the rest goes on
                chapter.notes.append(told(f"{what} on {device} failed", error) + ".")
    _time_steps(session, chapter, devices)


def load_data(chapter: Chapter, test_images: int) -> _Data:
    """MNIST, or with a note the Digits."""
    name = "MNIST"
    train: ImageDataset
    test: ImageDataset
    try:
        train, test = (MNIST(train=train, download=False) for train in (True, False))
    except (DataError, OSError):
        name = "Digits"
        train, test = (Digits(train=train) for train in (True, False))
        chapter.notes.append(
            "MNIST is not on this machine, so the network learns the Digits that ship with minigrad, of 8x8 "
            "pixels: times and accuracy are not those of MNIST. MINIGRAD_DATA names the folder that holds "
            "mnist/; examples/mnist_cnn.py downloads it."
        )
    pixels, _ = train.get_batch(range(0, len(train), 10))
    return _Data(
        name, train, test, min(test_images, len(test)), pixels.mean().item(), pixels.numpy().std().item()
    )


# ---- training ---------------------------------------------------------------------------------------------


@dataclass
class _Training:
    """A training run on one device, and where it stands."""

    data: _Data
    device: Device
    threads: int | None
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        manual_seed(SEED)  # every device begins with the same weights
        self.model = mnist_cnn(self.data.size).to(self.device)
        self.optimizer = optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.losses: list[Tensor] = []

    @property
    def samples(self) -> int:
        return min(self.step * BATCH, len(self.data.train))

    def learn(self, batches: Iterator[tuple[Tensor, Tensor]]) -> bool:
        """Fetch a batch and make a step, both timed; whether there was a batch."""
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return False
        self.losses.append(_step(self.model, self.optimizer, *batch))
        self.device.synchronize()
        self.seconds += time.perf_counter() - start
        self.step += 1
        return True

    def test(self) -> TrainingPoint:
        """The state of the run; what this takes is not counted."""
        losses = [loss.item() for loss in self.losses]
        self.losses.clear()
        test_loss, accuracy = _test(self.model, self.data, self.device)
        return TrainingPoint(
            device=str(self.device),
            dataset=self.data.name,
            threads=self.threads,
            step=self.step,
            samples=self.samples,
            seconds=self.seconds,
            train_loss=float(np.mean(losses)) if losses else None,
            test_loss=test_loss,
            test_accuracy=accuracy,
            test_samples=self.data.test_images,
        )


def _train(data: _Data, session: Session, chapter: Chapter, device: Device, threads: int | None) -> None:
    """Train for the seconds of the effort, or for an epoch; every device sees the same batches."""
    budget = session.effort.training
    between_tests = budget / (QUICK_TESTS if session.quick else TESTS)
    points = chapter.tables["training"]
    with active(device, threads):
        _Training(data, device, threads).learn(_batches(data, device))  # loads and compiles the kernels
        run, batches = _Training(data, device, threads), _batches(data, device)
        points.append(run.test())
        next_test = between_tests
        while run.learn(batches) and run.seconds < budget:
            if run.seconds >= next_test:
                session.progress(f"network: {device} has learned from {run.samples} images")
                points.append(run.test())
                next_test += between_tests
        if run.losses:
            points.append(run.test())
    parameters = sum(p.numel() for p in run.model.parameters())
    facts: list[tuple[str, float | str, str]] = [("data set", data.name, ""), ("parameters", parameters, "")]
    facts.append(("time of an image", run.seconds / run.samples, "s"))
    chapter.tables["facts"] += [
        Fact(device=str(device), what=what, value=value, unit=unit) for what, value, unit in facts
    ]


def _batches(data: _Data, device: Device) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images in a random order, once, in batches on ``device``."""
    order = np.random.default_rng(SEED).permutation(len(data.train))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield data.batch(data.train, chosen, device)


def _step(model: nn.Module, optimizer: optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _test(model: nn.Module, data: _Data, device: Device) -> tuple[float, float]:
    """(mean loss, accuracy) on the test images."""
    loss, correct, count = 0.0, 0, data.test_images
    with no_grad():
        for start in range(0, count, TEST_BATCH):
            images, labels = data.batch(data.test, range(start, min(start + TEST_BATCH, count)), device)
            outputs = model(images)
            loss += nn.functional.cross_entropy(outputs, labels).item() * len(labels)
            correct += int((outputs.argmax(1) == labels).sum().item())
    return loss / count, correct / count


# ---- layers and steps -------------------------------------------------------------------------------------


def _profile(session: Session, chapter: Chapter, device: Device, threads: int | None) -> None:
    """Time each layer alone, forward and backward, on what the layers before it give."""
    images, labels = normal_images(session.rng, BATCH)
    model, x = mnist_cnn().to(device), from_numpy(images).to(device)
    target = from_numpy(labels).to(device)
    optimizer = optim.Adam(model.parameters())
    rows: list[tuple[str, str, float, float | None]] = []
    with active(device, threads):
        for position, layer in enumerate(model):
            x = x.detach()
            x.requires_grad = position > 0  # the images need no gradient
            y = layer(x)
            rows.append((describe(layer), str(tuple(y.shape)), *_both_ways(session, layer, x, device)))
            x = y
        x = x.detach()
        x.requires_grad = True
        loss = partial(nn.functional.cross_entropy, target=target)
        rows.append(("loss", "()", *_both_ways(session, loss, x, device)))
        _step(model, optimizer, from_numpy(images).to(device), target)
        rows.append(("optimizer", "", _seconds(session, optimizer.step, device), None))
    total = sum(forward + (backward or 0.0) for _, _, forward, backward in rows)
    chapter.tables["layers"] += [
        LayerTime(
            device=str(device),
            network=NETWORK,
            batch=BATCH,
            threads=threads,
            position=position,
            layer=name,
            output=output,
            forward=forward,
            backward=backward,
            share=(forward + (backward or 0.0)) / total,
        )
        for position, (name, output, forward, backward) in enumerate(rows)
    ]


def _both_ways(
    session: Session, layer: Callable[[Tensor], Tensor], x: Tensor, device: Device
) -> tuple[float, float | None]:
    """Seconds of a layer's forward and of its backward pass. The second is the difference of both together
    and the first, for a graph can be run through only once."""
    forward = _seconds(session, lambda: layer(x), device)
    y = layer(x)
    if not y.requires_grad:
        return forward, None
    ones = y.new_ones(y.shape)
    both = _seconds(session, lambda: layer(x).backward(ones), device)
    return forward, max(0.0, both - forward)


def _seconds(session: Session, call: Callable[[], Any], device: Device) -> float:
    estimate, _ = warm_up(call, device.synchronize)
    samples = sample_calls(call, device.synchronize, estimate, session.effort.turn)
    return Timing.of(samples).seconds or 0.0


def _time_steps(session: Session, chapter: Chapter, devices: list[tuple[Device, int | None]]) -> None:
    """Whole training steps of several networks, in turns."""
    images, labels = normal_images(session.rng, BATCH)
    calls: dict[tuple[str, Device], Call] = {}
    stop = time.monotonic() + session.effort.chapter / 4
    try:
        for device, threads in devices:
            for name in NETWORKS:
                session.progress(f"network: a training step of {name} on {device}")
                call = calls[name, device] = _step_call(name, images, labels, device, threads)
                try:
                    call.prepare()
                except Exception as error:
                    call.failure = told("failed", error)
        session.take_turns("network", list(calls.values()), stop)
    finally:
        for (name, device), call in calls.items():
            timing = call.timing()
            found = timing["seconds"]
            if found or call.failure:
                chapter.tables["steps"].append(
                    StepTime(
                        device=str(device),
                        threads=call.threads,
                        network=name,
                        batch=BATCH,
                        mode="training step",
                        samples_per_second=BATCH / found if found else None,
                        **timing,
                    )
                )


def _step_call(
    name: str, images: np.ndarray, labels: np.ndarray, device: Device, threads: int | None
) -> Call:
    """The call of a training step; what it needs on the device is made when it is first called."""
    made: list[Callable[[], Tensor]] = []

    def run() -> Tensor:
        if not made:
            x, target = from_numpy(images).to(device), from_numpy(labels).to(device)
            make, make_optimizer = NETWORKS[name]
            made.append(training_step(make().to(device), x, target, make_optimizer))
        return made[0]()

    return Call(run, device, threads)


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    return _learned(chapter.rows) + _layers(chapter.tables["layers"]) + _steps(comparison, chapter)


def _learned(rows: list[Any]) -> list[str]:
    found = []
    for device in dict.fromkeys(row.device for row in rows):
        last = max((row for row in rows if row.device == device), key=lambda row: row.step)
        if last.samples and last.seconds:
            found.append(
                f"On {device} the network was trained on {last.samples} images of {last.dataset} in "
                f"{seconds(last.seconds)}, {seconds(last.seconds / last.samples)} each, and then classified "
                f"{last.test_accuracy:.1%} of {last.test_samples} test images correctly."
            )
    return found


def _layers(rows: list[Any]) -> list[str]:
    found = []
    for device in dict.fromkeys(row.device for row in rows):
        most = max((row for row in rows if row.device == device), key=lambda row: row.share)
        found.append(f"The largest part of a step on {device}, {share(most.share)}, goes to {most.layer}.")
    return found


def _steps(comparison: Comparison, chapter: Chapter) -> list[str]:
    """The processor beside the card, for the network with the largest difference."""
    cpu = {row.network: row for row in chapter.tables["steps"] if row.device == "cpu" and row.seconds}
    own = [row for row in chapter.tables["steps"] if row.device.startswith("cuda") and row.seconds]
    cards = own or chapter.recorded.get("steps", [])
    pairs = [
        (cpu[row.network], row)
        for row in cards
        if row.seconds and row.network in cpu and row.batch == cpu[row.network].batch
    ]
    found = []
    for choose in (max, min):
        if pairs:
            a, b = choose(pairs, key=lambda pair: pair[0].seconds / pair[1].seconds)
            found.append(
                f"A {b.mode} of {b.network} with {b.batch} images takes {seconds(b.seconds)} on "
                f"{comparison.called(b)}, {seconds(a.seconds)} on this processor, "
                f"{significant(a.seconds / b.seconds)} times as long."
            )
    return list(dict.fromkeys(found))
