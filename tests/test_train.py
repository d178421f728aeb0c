"""The trainer: it does what the plain loop does, goes on where it was, and its callbacks do their part."""

import csv
import errno
import os
import struct

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import DataLoader, Digits, Subset, TensorDataset
from minigrad.event_file import crc32c
from minigrad.train import (
    Accuracy,
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    History,
    Schedule,
    TensorBoardLog,
    TopKAccuracy,
    Trainer,
    summary,
)


def network():
    mg.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def trainer(**options):
    model = network()
    return Trainer(
        model, optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss(), ["accuracy", "top3"], **options
    )


def digits(count=200, train=True):
    return Subset(Digits(train), range(count))


def weights(of):
    return {name: value.numpy().tobytes() for name, value in of.model.state_dict().items()}


def test_it_learns_the_digits(capsys):
    made = trainer()
    history = made.fit(Digits(), epochs=3, validation=Digits(train=False))
    assert history[-1]["val_accuracy"] > 0.85 and history["loss"][-1] < history["loss"][0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("epoch 3/3  loss ") and "val_top3 0.9" in lines[-1]
    values = made.evaluate(Digits(train=False))
    assert {f"val_{name}": value for name, value in values.items()}.items() <= history[-1].items()
    images, labels = Digits(train=False).as_tensors()
    for data in (Digits(train=False), images, images.numpy()):
        outputs = made.predict(data)
        assert (outputs.argmax(1) == labels).float().mean().item() == pytest.approx(values["accuracy"])
    assert made.model.training


def test_it_is_the_plain_loop_bit_for_bit():
    made = trainer(max_grad_norm=0.5)
    made.fit(DataLoader(digits(), 50, shuffle=True), epochs=2, progress=False)
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(digits(), 50, shuffle=True)
    for _ in range(2):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert weights(made) == weights(Trainer(model))


def test_values_are_means_over_samples_not_batches():
    made = trainer()
    images, labels = Digits(train=False).as_tensors()
    values = made.evaluate(DataLoader(TensorDataset(images[:70], labels[:70]), 64))
    with mg.no_grad():
        scores = made.model.eval()(images[:70])
    assert values["loss"] == pytest.approx(nn.functional.cross_entropy(scores, labels[:70]).item(), rel=1e-5)
    ranks = (-scores.numpy()).argsort(1)
    for k, name in ((1, "accuracy"), (3, "top3")):
        expected = (ranks[:, :k] == labels.numpy()[:70, None]).any(1).mean()
        assert values[name] == pytest.approx(expected, rel=1e-6)


def test_mixed_precision_with_a_scaled_loss():
    made = trainer(dtype=mg.float16)
    history = made.fit(digits(), epochs=4, progress=False)
    assert history["loss"][-1] < history["loss"][0] and made.scaler.is_enabled()


@pytest.mark.parametrize("monitor", [None, "val_loss"])
def test_a_training_resumes_with_the_same_bits(tmp_path, monitor):
    pytest.importorskip("safetensors")

    def run(epochs, resume=None):
        made = trainer()
        schedule = Schedule(optim.lr_scheduler.StepLR(made.optimizer, 1, 0.5))
        callbacks = [
            Checkpoint(tmp_path / "run.ckpt", monitor), schedule, EarlyStopping("loss", 9, restore_best=True),
        ]  # fmt: skip
        made.fit(digits(), epochs, digits(50, False), callbacks, progress=False, resume=resume)
        return made

    whole = run(4)
    run(2)
    mg.rand(5)  # the state of random numbers is restored
    resumed = run(4, tmp_path / "run.ckpt")
    assert weights(resumed) == weights(whole) and resumed.history == whole.history
    assert resumed.optimizer.param_groups[0]["lr"] == 1e-2 / 2**4


class Told(Callback):
    def __init__(self, fail=False):
        self.events, self.fail = [], fail

    def on_epoch_begin(self, trainer):
        self.events.append("epoch")

    def on_batch_end(self, trainer):
        self.events.append("batch")
        if self.fail:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer, values):
        self.events.append(sorted(values))

    def on_fit_end(self, trainer):
        self.events.append("end")


def test_what_callbacks_are_told():
    told, interrupted = Told(), Told(fail=True)
    trainer().fit(DataLoader(digits(20), 10), callbacks=[told], progress=False)
    assert told.events == ["epoch", "batch", "batch", ["accuracy", "loss", "top3"], "end"]
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(DataLoader(digits(20), 10), callbacks=[interrupted], progress=False)
    assert interrupted.events == ["epoch", "batch", "end"]


def test_early_stopping_ends_and_restores():
    made = trainer()
    losses, states = iter([3.0, 1.0, 2.0, 1.5, 0.5]), []

    class Pretend(Callback):
        def on_epoch_end(self, trainer, values):
            values["val_loss"] = next(losses)
            states.append(weights(trainer))

    made.fit(
        digits(50), 5, callbacks=[Pretend(), EarlyStopping(patience=1, restore_best=True)], progress=False
    )
    assert len(made.history) == 4 and weights(made) == states[1] != states[-1]


def test_schedules_by_batch_and_by_metric():
    made = trainer()
    cycle = Schedule(optim.lr_scheduler.OneCycleLR(made.optimizer, 0.1, total_steps=6), every="batch")
    made.fit(DataLoader(digits(30), 10), 2, callbacks=[cycle], progress=False)
    assert cycle.scheduler.last_epoch == 6
    plateau = Schedule(optim.lr_scheduler.ReduceLROnPlateau(made.optimizer, patience=0), monitor="loss")
    made.fit(digits(30), 3, callbacks=[plateau], progress=False)
    assert plateau.scheduler.best == made.history[-1]["loss"]


def test_logs(tmp_path):
    made = trainer()
    made.fit(
        digits(50), 2, callbacks=[CSVLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path)], progress=False
    )
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["loss"]) for row in rows] == made.history["loss"]
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events = list(tensorboard_events(path.read_bytes()))
    assert [event.get(2) for event in events] == [None, 1, 2] and events[0][3] == b"brain.Event:2"
    assert np.float32(made.history[1]["loss"]) == scalars(events[2][5])["loss"]
    assert scalars(events[2][5])["lr"] == np.float32(1e-2)


def test_a_writer_of_summaries(tmp_path):
    with mg.utils.tensorboard.SummaryWriter(log_dir=tmp_path / "run", flush_secs=1) as writer:
        writer.add_scalar("loss/train", mg.tensor(0.5), 7)
        writer.add_scalar("loss/train", 1e300, 8)
        writer.add_scalars("accuracy", {"train": 0.75, "test": mg.tensor([0.25])}, global_step=8)
        with pytest.warns(UserWarning, match="add_histogram writes nothing"):
            writer.add_histogram("weights", mg.ones(3), 7)
        writer.flush()
    (path,) = (tmp_path / "run").glob("events.out.tfevents.*")
    _, event, diverged = tensorboard_events(path.read_bytes())
    assert event[2] == 7 and scalars(event[5]) == {"loss/train": 0.5}
    assert scalars(diverged[5]) == {"loss/train": np.inf}
    (path,) = (tmp_path / "run" / "accuracy_test").glob("events.out.tfevents.*")
    assert scalars(list(tensorboard_events(path.read_bytes()))[1][5]) == {"accuracy": 0.25}
    with pytest.raises(AttributeError, match="no attribute 'histogram'"):
        writer.histogram  # noqa: B018


def test_a_full_disk_leaves_the_earlier_log(tmp_path, monkeypatch):
    made, log = trainer(), CSVLog(tmp_path / "log.csv")
    made.fit(digits(50), 1, callbacks=[log], progress=False)
    before = log.path.read_bytes()

    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        made.fit(digits(50), 2, callbacks=[log], progress=False)
    assert log.path.read_bytes() == before and list(tmp_path.iterdir()) == [log.path]


def fields(message):
    """(number, value) of each field of a protocol buffer."""
    place = 0
    while place < len(message):
        number, kind = message[place] >> 3, message[place] & 7
        place += 1
        if kind in (1, 5):
            size, form = {1: (8, "<d"), 5: (4, "<f")}[kind]
            yield number, struct.unpack(form, message[place : place + size])[0]
            place += size
            continue
        value = shift = 0
        while True:
            byte = message[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                break
        if kind == 2:
            yield number, message[place : place + value]
            place += value
        else:
            yield number, value


def tensorboard_events(content):
    place = 0
    while place < len(content):
        (size,) = struct.unpack("<Q", content[place : place + 8])
        yield dict(fields(content[place + 12 : place + 12 + size]))
        place += size + 16


def scalars(message):
    values = (dict(fields(value)) for _, value in fields(message))
    return {value[1].decode(): np.float32(value[2]) for value in values}


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_the_history_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    history = History([{"loss": 1.0, "val_loss": 2.0}, {"loss": 0.5, "val_loss": 1.0, "accuracy": 0.9}])
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "loss" and [line.get_label() for line in loss.lines] == [
        "training",
        "validation",
    ]
    assert loss.lines[1].get_ydata().tolist() == [2.0, 1.0] and len(accuracy.lines) == 1


def test_a_summary_counts_each_parameter_once():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), shared, shared)
    shared.bias.requires_grad_(False)
    running = model[1].running_mean.tolist()
    found = summary(model, (1, 4, 4))
    assert [row[2:] for row in found.rows] == [
        ("(2, 2, 2, 2)", 20), ("(2, 2, 2, 2)", 4), ("(2, 8)", 0), ("(2, 8)", 72), ("(2, 8)", 0),
    ]  # fmt: skip
    assert (found.total, found.trainable, found.bytes) == (96, 88, 384)
    assert str(found).splitlines()[-1] == "96 parameters, 88 of them trained, 0.38 kB"
    assert (
        model.training
        and model[1].running_mean.tolist() == running
        and not any((model[0]._hooks or {}).values())
    )


def test_bad_input_is_told():
    made = trainer()
    with pytest.raises(ValueError, match="needs an optimizer and a loss"):
        Trainer(network()).fit(digits())
    with pytest.raises(ValueError, match="a batch is a list of inputs and targets, got list of 1"):
        made.fit(TensorDataset(mg.zeros(3, 64)), progress=False)
    with pytest.raises(ValueError, match=r"no value 'val_loss', only \['accuracy', 'loss', 'top3'\]"):
        made.fit(digits(20), callbacks=[EarlyStopping()], progress=False)
    for make in (lambda: Trainer(network(), metrics=["top0"]), lambda: TopKAccuracy(0)):
        with pytest.raises(ValueError, match=r"got .*0"):
            make()
    with pytest.raises(ValueError, match="every is"):
        Schedule(optim.lr_scheduler.StepLR(made.optimizer, 1), every="step")
    assert np.isnan(Accuracy().compute())
