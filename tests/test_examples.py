"""The README and the examples do what they say: every Python block and every script is executed."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import sim

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(*command, **options):
    """The finished process of a Python script of this checkout; its output is shown if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def mnist_folder():
    """The folder of real data; where there is none, the test is skipped."""
    folder = os.environ.get("MINIGRAD_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("real MNIST: set MINIGRAD_DATA to a folder that holds mnist/")
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=[b.strip().splitlines()[-1][:40] for b in BLOCKS])
def test_readme_block_runs(block, tmp_path):
    if 'device="sim"' in block:
        try:
            mg.device("sim")
        except mg.errors.DeviceError as error:
            pytest.skip(str(error))
    script = tmp_path / "block.py"
    script.write_text(block)
    printed = run(script, cwd=tmp_path)
    for expected in re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE):
        assert expected in printed


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_the_simulator_says_what_its_page_shows():
    """Each Python block of docs/simulator.md, with what it prints or ends in: the next block that is text."""
    page = (ROOT / "docs/simulator.md").read_text()
    namespace = {}
    for code, expected in re.findall(r"```python\n(.*?)```\n.*?```\n(.*?)```", page, re.DOTALL):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        except mg.errors.KernelLaunchError as error:
            printed.write(f"{type(error).__name__}: {error}")
        assert printed.getvalue().split() == expected.split()


def test_mnist_cnn_learns_the_digits_and_reloads_its_weights(tmp_path):
    out = tmp_path / "run"
    options = ("--dataset", "digits", "--batch-size", 32, "--epochs", 3)
    printed = run(ROOT / "examples/mnist_cnn.py", *options, "--output", out, cwd=tmp_path)
    accuracy = float(re.search(r"test accuracy ([\d.]+)%, the same after reloading", printed)[1])
    assert accuracy >= 75  # chance is 10
    assert (out / "model.safetensors").stat().st_size > 10_000
    assert (out / "mnist_cnn.png").read_bytes().startswith(b"\x89PNG")


def test_mnist_cnn_learns_from_real_mnist(tmp_path):
    mnist_folder()
    options = ("--limit", 1500, "--batch-size", 32, "--epochs", 2)
    printed = run(ROOT / "examples/mnist_cnn.py", *options, "--output", tmp_path, cwd=tmp_path)
    assert float(re.search(r"test accuracy ([\d.]+)%", printed)[1]) >= 90


def test_mnist_cnn_on_the_simulator_takes_the_cpu_s_steps(tmp_path):
    """The CUDA kernels, run by the simulator, give the losses that the CPU's kernels give."""
    try:
        mg.device("sim")
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))
    losses = {}
    for device in ("cpu", "sim"):
        printed = run(
            ROOT / "examples/mnist_cnn.py",
            *("--dataset", "digits", "--limit", 32, "--batch-size", 16, "--epochs", 1),
            *("--no-augmentation", "--device", device, "--output", tmp_path / device),
            cwd=tmp_path,
        )
        losses[device] = float(re.search(r"train: loss ([\d.]+)", printed)[1])
    assert losses["sim"] == pytest.approx(losses["cpu"], rel=1e-3)


@pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--batch-size", "-1"], ["--device", "tpu"]])
def test_mnist_cnn_refuses_wrong_options(wrong, tmp_path):
    command = [sys.executable, str(ROOT / "examples/mnist_cnn.py"), "--dataset", "digits", *wrong]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode != 0
    assert "must be at least 1" in done.stderr or "unknown device 'tpu'" in done.stderr


def test_cifar10_runs_and_saves(tmp_path):
    """On random pictures of two classes, so that it needs no data: dark ones and bright ones."""
    rng = np.random.default_rng(0)
    (tmp_path / "cifar10").mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 2, (40, 1))
        pictures = rng.integers(0, 128, (40, 3072)) + 127 * labels
        content = np.concatenate([labels, pictures], 1).astype(np.uint8)
        (tmp_path / "cifar10" / name).write_bytes(content.tobytes())
    options = ("--width", 4, "--epochs", 3, "--batch-size", 20, "--lr", 0.1, "--output", tmp_path / "run")
    environment = os.environ | {"MINIGRAD_DATA": str(tmp_path)}
    printed = run(ROOT / "examples/cifar10.py", *options, env=environment)
    assert "CIFAR-10: 200 training and 40 test images, on cpu" in printed
    accuracies = [float(found) for found in re.findall(r"test accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == 3 and accuracies[-1] >= 90
    assert (tmp_path / "run/model.safetensors").stat().st_size > 10_000
    assert (tmp_path / "run/cifar10.png").read_bytes().startswith(b"\x89PNG")


def load_example(name):
    """The module of a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_cifar10_pictures_are_shifted_and_mirrored():
    """Every augmented picture is one of the 2 x 9 x 9 windows of the picture with a reflected border."""
    example = load_example("cifar10")
    pictures = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8)
    found = example.AUGMENT(mg.tensor(pictures)).numpy()
    padded = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    padded = example.NORMALIZE(mg.tensor(padded)).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (32, 32), (2, 3))
    choices = []
    for n in range(20):
        same = [(windows[n][..., ::step] == found[n][:, None, None]).all((0, 3, 4)) for step in (1, -1)]
        assert np.sum(same) == 1
        choices.append(tuple(np.argwhere(same)[0]))
    assert len(set(choices)) > 10 and len({mirrored for mirrored, *_ in choices}) == 2


def test_cifar10_has_the_resnet_9_of_its_docstring():
    network = load_example("cifar10").Net("resnet9")
    assert sum(p.numel() for p in network.parameters()) == 6_573_120  # Page's, with biases of batch norm


def test_mnist_mlp_learns_the_digits(tmp_path):
    options = ("--dataset", "digits", "--batch-size", 32, "--epochs", 5)
    printed = run(ROOT / "examples/mnist_mlp.py", *options, "--output", tmp_path, cwd=tmp_path)
    assert float(re.findall(r"test: .* accuracy ([\d.]+)%", printed)[-1]) >= 85
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")


def test_seeing_looks_at_the_weights_that_mnist_cnn_leaves(tmp_path):
    weights = tmp_path / "model.safetensors"
    mg.save(load_example("mnist_cnn").Net(28).state_dict(), weights)
    options = ("--quick", "--weights", weights, "--output", tmp_path)
    printed = run(
        ROOT / "examples/seeing.py", *options, env=os.environ | {"MINIGRAD_DATA": str(mnist_folder())}
    )
    assert f"weights of {weights}" in printed
    for name in ("seeing", "filters", "feature_maps", "confusion_matrix"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
