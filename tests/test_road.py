"""The stops of docs/road.md: every script of examples/ runs, in its short form, and draws its picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.data.download import cache_folder

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("train_"))
PAGE = (ROOT / "docs/road.md").read_text()

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])


@each_example
def test_an_example_runs_and_draws(example, tmp_path):
    """It ends well, complains of nothing, and writes ``NAME.png`` to its folder, and nothing elsewhere."""
    # Nothing is downloaded: the data are those of MINIGRAD_DATA, or what earlier downloads have left.
    environment = {"MINIGRAD_DATA": str(cache_folder())} | os.environ
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "output"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, example, "--quick", "--output", output],
        capture_output=True, text=True, timeout=300, env=environment, cwd=elsewhere,
    )  # fmt: skip
    missing = re.search(r"^FileNotFoundError: (.+ is missing.*)", done.stderr, re.MULTILINE)
    if done.returncode and missing:
        pytest.skip(missing[1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    progress_bar = re.compile(r"\d+%\|")
    assert [line for line in done.stderr.splitlines() if line and not progress_bar.search(line)] == []
    assert done.stdout
    assert (output / f"{example.stem}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(elsewhere.iterdir()) == []


@each_example
def test_an_example_is_read_in_one_sitting(example):
    assert len(example.read_text().splitlines()) < 150


@each_example
def test_an_example_is_on_the_page(example):
    assert f"`examples/{example.name}`" in PAGE or f"python examples/{example.name}" in PAGE


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]+\]\((\S+)\)", PAGE))
def test_a_picture_of_the_page_is_there_and_light(picture):
    content = (ROOT / "docs" / picture).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) <= 120_000
