"""The notebook of the comparison: every cell runs, in order, and those that draw give a figure."""

import json
from pathlib import Path

import pytest

from minigrad.compare import Effort, measure
from minigrad.dispatch import kernel_table

NOTEBOOK = Path(__file__).parents[1] / "examples/compare.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
TINY = Effort(rounds=2, turn=0.0, longest=0.01, slow=1.0, slow_rounds=1, chapter=0.0, training=0.0)


@pytest.fixture(autouse=True)
def _only_here():
    """The notebook registers a kernel of matmul: for the length of the test."""
    table = kernel_table("matmul")
    before = list(table.kernels)
    yield
    table.kernels = before
    table.select({})


def test_the_cells_run(monkeypatch, tmp_path, capsys):
    figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib: pip install minigrad[plot]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "QUICK", TINY)
    names: dict = {}
    drawn = 0
    for cell in CELLS:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("comparison.draw("):
            assert isinstance(eval(source, names), figure.Figure)
            drawn += 1
        elif cell["cell_type"] == "code":
            exec(source.removeprefix("%matplotlib inline\n"), names)
    assert drawn == 5
    printed = capsys.readouterr().out
    for expected in ("What made each step faster?", "packed", "operations for each byte", "by_numpy"):
        assert expected in printed
    assert list(tmp_path.iterdir()) == []
