"""What the examples that make pictures promise beyond running: digits white on black, repairs that repair."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minigrad as mg
from minigrad.data import MNIST
from minigrad.data.download import cache_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_quick(name, output):
    """What the short form of an example prints, on one thread; skipped where MNIST is missing."""
    environment = {"MINIGRAD_DATA": str(cache_folder())} | os.environ | {"MINIGRAD_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--output", output],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    missing = re.search(r"^FileNotFoundError: (.+ is missing.*)", done.stderr, re.MULTILINE)
    if done.returncode and missing:
        pytest.skip(missing[1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_forger_learns_that_digits_are_white_on_black(tmp_path):
    printed = run_quick("gan", tmp_path)
    assert float(re.search(r"sure of ([\d.]+)% of 1000 real images", printed)[1]) > 40
    assert len(re.findall(r"^epoch", printed, re.MULTILINE)) == 2
    assert len(list(tmp_path.glob("epoch_*.png"))) == 2

    spec = importlib.util.spec_from_file_location("gan", EXAMPLES / "gan.py")
    gan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gan)
    mg.manual_seed(0)
    generator = gan.make_generator(16)
    noise = mg.randn(64, gan.NOISE, 1, 1)
    with mg.no_grad():
        untrained = generator(noise).mean().item()
        generator.load_state_dict(mg.load(tmp_path / "generator.safetensors"))
        trained = generator(noise).mean().item()
    real = (MNIST().as_tensors()[0][:1000] * 2 - 1).mean().item()  # about -0.74
    assert abs(trained - real) < abs(untrained - real) / 2


def test_the_autoencoder_s_repairs_are_closer_to_the_originals(tmp_path):
    printed = run_quick("denoise", tmp_path)
    for damage in ("noise", "lost pixels"):
        before, after = re.findall(rf"{damage} ([\d.]+) -> ([\d.]+) dB", printed)[-1]
        assert float(after) > float(before) + 2
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000
