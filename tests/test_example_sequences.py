"""What the examples on sequences promise: words spelled, killed runs resumed, attention looking back only."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad.data import TinyShakespeare
from minigrad.data.download import cache_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
# Nothing is downloaded: the data are those of MINIGRAD_DATA, or what earlier downloads have left. One thread
# does for nets as small as these.
ENVIRONMENT = {"MINIGRAD_DATA": str(cache_folder()), "MINIGRAD_NUM_THREADS": "1"} | os.environ


def command(name, output, *options):
    return [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--output", output, *options]


def run(name, output, *options):
    """What the example prints."""
    done = subprocess.run(
        command(name, output, *options), capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def shakespeare_is_here():
    try:
        TinyShakespeare(download=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def example(request):
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ssido_spells_its_words_and_remembers(tmp_path):
    printed = run("ssido", tmp_path)
    assert "SSID -> SIDO\n" in printed
    for word in ("SSIDO", "BANANA", "MISSISSIPPI", "TOMORROW", "ENGINEER"):
        assert f"{word[0]} -> {word}." in printed
    known = re.search(r"open at first knows the first letter: (\d+)% after 2, (\d+)% after 5", printed)
    assert min(map(int, known.groups())) >= 90  # guessing is 25


@pytest.mark.usefixtures("shakespeare_is_here")
def test_shakespeare_resumes_with_the_same_bits(tmp_path):
    whole = run("shakespeare", tmp_path / "whole", "--epochs", "4")
    process = subprocess.Popen(
        command("shakespeare", tmp_path / "killed", "--epochs", "4"),
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch 2/4"):
            process.kill()
            break
    assert process.wait() < 0
    process.stdout.close()
    resumed = run("shakespeare", tmp_path / "killed", "--epochs", "4", "--resume")
    assert [line[:9] for line in resumed.splitlines()[:2]] == ["epoch 3/4", "epoch 4/4"]
    assert without_seconds(whole).endswith(without_seconds(resumed))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    surprises = [float(nats) for nats in re.findall(r"validation ([\d.]+) nats", whole)]
    assert surprises == sorted(surprises, reverse=True)
    assert surprises[-1] < 3.0  # log 65 = 4.17 without any learning


def without_seconds(printed):
    return re.sub(r"  \d+ s\n", "\n", printed)


@pytest.mark.usefixtures("shakespeare_is_here")
def test_gpt_learns(tmp_path):
    surprises = [float(nats) for nats in re.findall(r"validation ([\d.]+) nats", run("gpt", tmp_path))]
    assert surprises[-1] < min(2.9, surprises[0])
    weights = mg.load(tmp_path / "model.safetensors")
    assert weights["tokens"].shape == (65, 64)


@pytest.mark.parametrize("example", ["gpt"], indirect=True)
def test_gpt_looks_back_only(example, rng):
    mg.manual_seed(0)
    model = example.GPT(vocabulary=11, window=16, size=32, heads=4, layers=2)
    characters = rng.integers(0, 11, 9)
    changed = characters.copy()
    changed[5:] = (changed[5:] + 1) % 11
    with mg.no_grad():
        before, after = (model(mg.tensor(text).unsqueeze(0))[0].numpy() for text in (characters, changed))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(1).all()
    maps = example.attention_maps(model, mg.tensor(characters)).numpy()
    assert maps.shape == (4, 9, 9)
    np.testing.assert_array_equal(maps, np.tril(maps))
    np.testing.assert_allclose(maps.sum(2), 1, rtol=1e-6)


@pytest.mark.parametrize("example", ["gpt"], indirect=True)
def test_gpt_draws_from_the_likeliest(example):
    mg.manual_seed(0)
    model = example.GPT(vocabulary=11, window=4, size=32, heads=4, layers=1)
    written = example.write(model, mg.tensor([3]), length=12, temperature=1.0, top_k=2)
    assert len(written) == 13 and written[0].item() == 3
    for place in range(1, 13):
        with mg.no_grad():
            logits = model(written[max(0, place - 4) : place].unsqueeze(0))[0, -1]
        assert written[place].item() in mg.topk(logits, 2)[1].tolist()


@pytest.mark.parametrize("example", ["shakespeare"], indirect=True)
def test_shakespeares_windows_follow_each_other(example):
    text = mg.arange(10_000)
    inputs, targets = (part.numpy() for part in example.windows(text))
    count = 9_999 // (example.READERS * example.WINDOW)
    assert inputs.shape == targets.shape == (count, example.READERS, example.WINDOW)
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs[1:, :, 0], inputs[:-1, :, -1] + 1)


@pytest.mark.parametrize("example", ["ssido"], indirect=True)
def test_an_open_lstm_keeps_its_state(example):
    layer = example.OpenLSTM(3, 5)
    bias = layer.bias_ih_l0.detach().numpy()
    np.testing.assert_array_equal(bias[5:10], 3)
    assert np.abs(bias[[*range(5), *range(10, 20)]]).max() <= 5**-0.5
