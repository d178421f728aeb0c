"""examples/recognise.py and examples/transfer.py: what they say, and what they say of a wrong file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def data() -> Path:
    """The folder of MINIGRAD_DATA; the test is skipped, visibly, where it lacks what the examples read."""
    root = os.environ.get("MINIGRAD_DATA")
    if not root or not all((Path(root) / name).is_dir() for name in ("mobilenet_v2", "photos", "flowers5")):
        pytest.skip("set MINIGRAD_DATA to a folder that holds mobilenet_v2/, photos/ and flowers5/")
    return Path(root)


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300
    )  # fmt: skip


def test_recognise_names_what_is_in_photographs(data, tmp_path):
    photos = data / "photos/koala.jpg", data / "photos/pizza.jpg"
    done = run(EXAMPLES / "recognise.py", *photos, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("koala", "pizza"):
        assert re.search(rf"^{name}\.jpg .*\n +[89]\d\.\d\d%  {name}$", done.stdout, re.MULTILINE)
    assert (tmp_path / "recognise.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [b"no picture", None])
def test_recognise_names_a_file_that_is_no_picture(content, tmp_path):
    path = tmp_path / "photo.jpg"
    if content:
        path.write_bytes(content)
    done = run(EXAMPLES / "recognise.py", path, "--output", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    expected = "not a picture, or a damaged one" if content else "No such file"
    assert done.stderr.startswith("recognise: ") and expected in done.stderr and str(path) in done.stderr


def test_transfer_says_that_no_network_was_saved(data, tmp_path):
    done = run(EXAMPLES / "transfer.py", "--photo", data / "photos/cat.jpg", "--output", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.match(r"transfer: .*No such file.*transfer\.safetensors", done.stderr)


def test_transfer_learns_from_a_sixteenth_of_the_flowers_and_knows_another(data, tmp_path):
    done = run(EXAMPLES / "transfer.py", "--quick", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    accuracies = re.findall(r"^(\S+): ([\d.]+)% of 10 test flowers", done.stdout, re.MULTILINE)
    assert [name for name, _ in accuracies] == ["pixels", "frozen", "fine-tuned"]
    assert min(float(accuracies[1][1]), float(accuracies[2][1])) >= 60  # chance is 20
    photo = sorted((data / "flowers5/val/sunflowers").iterdir())[1]
    done = run(EXAMPLES / "transfer.py", "--photo", photo, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^ +([\d.]+)%  (\w+)$", done.stdout, re.MULTILINE)
    assert len(answers) == 5 and sum(float(p) for p, _ in answers) == pytest.approx(100, abs=0.1)
    assert answers == sorted(answers, key=lambda answer: -float(answer[0]))
