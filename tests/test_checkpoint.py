"""Checkpoints: a training goes on with the same bits, and what is broken is refused as a whole."""

import copy
import errno
import json
import os
import random
import subprocess
import sys
import time

import checkpointed_training
import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.data import DataLoader, TensorDataset
from minigrad.io import load, load_checkpoint, save, save_checkpoint
from minigrad.io.files import ABANDONED_AFTER, write_atomically

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def parts(hidden=4, steps=2):
    """A model, its optimizer and its schedule, trained a little."""
    model = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(mg.randn(5, 3)) ** 2).sum().backward()
        optimizer.step()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def plain(value):
    """``value`` with its tensors and arrays as (dtype, shape, bytes), to be compared by ``==``."""
    if isinstance(value, mg.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(part) for part in value)
    return value


def states(of):
    return {name: plain(part.state_dict()) for name, part in of.items()}


def run(path, output, kill_after=None):
    """The training in a process of its own, killed a moment after ``kill_after`` steps were saved."""
    command = [sys.executable, checkpointed_training.__file__, str(path), str(output)]
    environment = {**os.environ, "MINIGRAD_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for count, _ in enumerate(process.stdout, 1):
            if count == kill_after:
                time.sleep(random.uniform(0, 0.01))  # somewhere in the next steps, or in a write
                process.kill()
                break
        process.stdout.read()
    return process.returncode


def test_a_training_that_is_killed_goes_on_with_the_same_bits(tmp_path):
    whole, interrupted = tmp_path / "whole.safetensors", tmp_path / "interrupted.safetensors"
    assert run(tmp_path / "whole.ckpt", whole) == 0
    path, steps = tmp_path / "interrupted.ckpt", []
    for kill_after in random.choices(range(1, 9), k=3):
        assert run(path, interrupted, kill_after) == -9
        steps.append(load_checkpoint(path, strict=False)["at"][1])
    assert not interrupted.exists() and steps == sorted(set(steps)) and steps[-1] < 100
    assert run(path, interrupted) == 0
    assert plain(load(interrupted)) == plain(load(whole))


def test_values_come_back_as_they_were(path):
    values = {
        "numbers": [1, -(2**200), 0.1, float("inf"), True, None, np.float32(0.5), np.int8(3)],
        "text": "größer \"'\n",
        "nested": {"a.b": (1, [2, (3,)]), 7: {}, "tensor": mg.tensor([1.5, 2.5]), None: ()},
        "arrays": [np.arange(6, dtype=np.uint64).reshape(2, 3).T, np.zeros((0, 2)), np.array(True)],
        "half": mg.tensor([1.0], dtype=mg.float16),
        "tree": {"tensor": 1},
    }
    save_checkpoint(path, **values)
    loaded = load_checkpoint(path)
    assert plain(loaded) == plain({**values, "numbers": [*values["numbers"][:6], 0.5, 3]})
    assert isinstance(loaded["half"], mg.Tensor) and isinstance(loaded["arrays"][0], np.ndarray)
    assert "numbers" not in load(path) and "half" in load(path)  # other programs can read its tensors


def test_names_that_clash_keep_their_values(path):
    save_checkpoint(path, **{"a": {"b": mg.ones(1), "b.c": mg.zeros(2)}, "a.b": mg.ones(3)})
    loaded = load_checkpoint(path)
    assert loaded["a.b"].shape == (3,) and loaded["a"]["b"].shape == (1,) and loaded["a"]["b.c"].shape == (2,)


def test_objects_and_random_numbers_are_restored(path):
    own = {"numpy": np.random.default_rng(1), "python": random.Random(1), "minigrad": mg.Generator(5)}
    saved = parts()
    save_checkpoint(path, **saved, **own, epoch=3)

    def draw():
        numbers = [own["numpy"].random(), own["python"].random(), own["minigrad"].numpy.random()]
        return numbers, mg.rand(3).tolist(), np.random.rand(), random.random()  # noqa: NPY002

    before, expected = states(saved), draw()
    other = parts(steps=1)
    assert load_checkpoint(path, **other, **own) == {"epoch": 3}
    assert states(other) == before and draw() == expected


def test_what_is_left_out_is_told(path):
    saved = parts()
    save_checkpoint(path, **saved, epoch=3)
    before = states(saved), mg.random.default_generator.get_state()
    with pytest.raises(ValueError, match=r"missing parts: \['loader'\]; unexpected parts: \['optimizer'\]"):
        load_checkpoint(path, model=saved["model"], scheduler=saved["scheduler"], loader=DataLoader([1]))
    with pytest.raises(TypeError, match="'epoch' cannot be restored, it is a int"):
        load_checkpoint(path, **saved, epoch=0)
    assert (states(saved), mg.random.default_generator.get_state()) == before
    rest = load_checkpoint(path, model=saved["model"], strict=False)
    assert rest["epoch"] == 3 and rest["scheduler"]["step_size"] == 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": nn.Sequential(nn.Linear(3, 4))}, RuntimeError, "unexpected keys: '1.weight'"),
        ({"model": parts(hidden=5)["model"]}, RuntimeError, r"shape \(4, 3\), the module \(5, 3\)"),
        ({"optimizer": parts(hidden=5)["optimizer"]}, ValueError, "parameter 0 has 'exp_avg' of shape"),
        ({"optimizer": optim.RMSprop(parts()["model"].parameters())}, ValueError, "lacks 'square_avg'"),
        (
            {"scheduler": optim.lr_scheduler.ExponentialLR(parts()["optimizer"], 0.5)},
            ValueError,
            r"unknown keys \['step_size'\]",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(path, change, error, text):
    save_checkpoint(path, **parts())
    other = {**parts(), **change}
    before = copy.deepcopy(states(other)), mg.random.default_generator.get_state()
    with pytest.raises(error, match=text) as raised:
        load_checkpoint(path, **other)
    assert f"while {next(iter(change))!r} was loaded" in raised.value.__notes__[0]
    assert (states(other), mg.random.default_generator.get_state()) == before


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file(path, keep):
    save_checkpoint(path, **parts())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"run\.ckpt: not a safetensors file, or a truncated or damaged"):
        load_checkpoint(path, **parts())


def test_a_damaged_file(path):
    save_checkpoint(path, **parts(), note="note of an epoch")
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [content.index(b"note of an"), *random.choices(range(header, len(content)), k=5)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            load_checkpoint(path, **parts(), strict=False)


def test_other_files_are_refused(path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)
    save({"w": mg.ones(2)}, path)
    with pytest.raises(ValueError, match=r"not a minigrad checkpoint 1; weights alone are read by load\(\)"):
        load_checkpoint(path)
    path.write_bytes(b"\x80\x04\x95cos\nsystem\n")
    with pytest.raises(ValueError, match="a pickle"):
        load_checkpoint(path)


def test_what_cannot_be_saved_is_told_with_its_place(path):
    with pytest.raises(TypeError, match=r"options\.1\.f is a function"):
        save_checkpoint(path, options=[1, {"f": plain}])
    with pytest.raises(ValueError, match="'random' is that of the global"):
        save_checkpoint(path, random=3)
    assert not path.exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(path):
    resource = pytest.importorskip("resource")
    save_checkpoint(path, **parts(), epoch=1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_checkpoint(path, **parts(), more=mg.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG and "as it was before" in raised.value.__notes__[0]
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(path):
    abandoned, fresh, other = (path.with_name(f".{name}.1-ab.tmp") for name in ("run.ckpt", "x", "y"))
    fresh = path.with_name(".run.ckpt.2-cd.tmp")
    for file in (abandoned, fresh, other):
        file.write_bytes(b"half of")
    long_ago = time.time() - 2 * ABANDONED_AFTER
    for file in (abandoned, other):
        os.utime(file, (long_ago, long_ago))

    def write(file):
        os.utime(file.name, (long_ago, long_ago))  # slow, but alive
        write_atomically(path, lambda second: second.write(b"second"))
        file.write(b"first")

    write_atomically(path, write)
    assert path.read_bytes() == b"first"
    assert {file.name for file in path.parent.iterdir()} == {path.name, fresh.name, other.name}


# ---- the place in a data set ------------------------------------------------------------------------------


@pytest.mark.parametrize("own_seed", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 3, 4])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(path, own_seed, num_workers, position):
    def make():
        return DataLoader(
            TensorDataset(mg.arange(10)),
            3,
            shuffle=True,
            num_workers=num_workers,
            seed=4 if own_seed else None,
        )

    loader = make()
    first = [batch.tolist() for (batch,) in loader]
    batches = iter(loader)
    begun = [next(batches)[0].tolist() for _ in range(position)]
    save_checkpoint(path, loader=loader)
    rest = [batch.tolist() for (batch,) in batches] if position else []
    following = [[batch.tolist() for (batch,) in loader] for _ in range(2)]
    assert begun + rest != first
    resumed = make()
    load_checkpoint(path, loader=resumed)
    if position:
        assert [batch.tolist() for (batch,) in resumed] == rest
    assert [[batch.tolist() for (batch,) in resumed] for _ in range(2)] == following


def test_an_epoch_that_was_left_is_over():
    loader = DataLoader(list(range(10)), 2)
    for _ in loader:
        break
    assert loader.state_dict()["epoch"] is None
    with pytest.raises(ValueError, match="a generator or a seed of its own"):
        DataLoader([1], seed=0).load_state_dict(loader.state_dict())


def test_the_header_is_json_of_plain_values(path):
    save_checkpoint(path, epoch=1, loss=0.5)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tree = json.loads(header["__metadata__"]["tree"])
    assert tree["epoch"] == {"restores": False, "state": 1} and tree["random"]["restores"]
