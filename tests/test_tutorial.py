"""docs/tutorial-kernel.md, followed from its top in an empty folder: each file, each change, each command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.kernels import sim

PAGE = Path(__file__).parents[1] / "docs/tutorial-kernel.md"
BLOCKS = re.findall(
    r"^(<!-- .* -->\n)?```(python|cython|cuda|diff|console)\n(.*?)^```", PAGE.read_text(), re.M | re.S
)


def write(code, folder):
    """A block of code: a file, named by its first line, or more of one that is there."""
    name, more = re.match(r"(?://|#) ([\w.]+)(, below the rest)?\n", code).groups()
    path = folder / name
    assert path.exists() == bool(more), f"{name}: {'added to' if more else 'written'}, at\n{code}"
    path.write_text(f"{path.read_text()}\n\n{code.partition(chr(10))[2]}" if more else code)


def change(diff, folder):
    """A block that changes a file: its lines stand together in one place, and are replaced."""
    header, lines = diff.split("@@\n")
    path = folder / re.match(r"--- (\S+)\n\+\+\+ \1\n", header)[1]
    before = "".join(line[1:] for line in lines.splitlines(True) if line[0] in " -")
    after = "".join(line[1:] for line in lines.splitlines(True) if line[0] in " +")
    text = path.read_text()
    assert text.count(before) == 1, f"{path.name} has not once\n{before}"
    path.write_text(text.replace(before, after))


def type_in(session, folder, exact):
    """A block of commands, each after a `$`, with what they print; `...` stands for any number of lines."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.M):
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "100",
        }
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, text=True, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        words = (lambda text: text.split()) if exact else first_words
        pattern = " ".join(map(re.escape, words(expected)))
        pattern = pattern.replace(r" \.\.\.", "( .*)?").replace(r"\.\.\. ", "(.* )?")
        assert re.fullmatch(pattern, " ".join(words(done.stdout))), f"$ {command}\n{done.stdout}"
        assert done.returncode == ("Error: " in expected), f"$ {command}\n{done.stdout}"


def first_words(text):
    """The first word of each line: the others are times."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_the_tutorial_as_a_student_follows_it(tmp_path):
    for note, language, text in BLOCKS:
        if language == "console":
            type_in(text, tmp_path, exact=not note)
        elif language == "diff":
            change(text, tmp_path)
        else:
            write(text, tmp_path)
