"""The benchmark beside PyTorch runs, compares results before it shows a time, and writes what it found."""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import minigrad as mg


@pytest.fixture
def benchmark(repo_root, monkeypatch):
    """The modules of the benchmark, by their names."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import cpu_vs_torch
    import suite_cases

    return {"cases": suite_cases, "run": cpu_vs_torch}


def test_rows_run_and_are_saved(repo_root, tmp_path):
    """A few quick rows, in processes of their own, with whichever libraries there are."""
    command = [
        *(sys.executable, repo_root / "benchmarks/cpu_vs_torch.py", "--only", r"overhead.*(x \* y|relu)"),
        *("--threads", "1", "--rounds", "2", "--seconds", "0", "--save", tmp_path / "found"),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in result["rows"]] == [
        f"100 times {op} on 4x4, {passes}"
        for op in ("x * y", "relu")
        for passes in ("forward", "forward + backward")
    ]
    for row in result["rows"]:
        assert row["minigrad"]["median"] > 0
        assert row["name"] in done.stdout
        assert not find_spec("torch") or row["difference"] < 1e-5
    assert "100 times relu on 4x4" in (tmp_path / "found.md").read_text()


def test_every_row_has_a_name_of_its_own(benchmark):
    names = [(case.group, case.name) for case in benchmark["cases"].cases()]
    assert len(set(names)) == len(names) > 200


@pytest.mark.parametrize("group", ["optimizer", "embedding", "softmax", "loss", "LSTM", "norm"])
def test_rows_give_the_same_result_twice(benchmark, group):
    """The data are fixed by the seed: what one library is given, the other is given too."""
    case = next(case for case in benchmark["cases"].cases() if case.group == group)
    first, second = (case.build(mg, benchmark["cases"].Data(mg))() for _ in range(2))
    first, second = (r if isinstance(r, list) else [r] for r in (first, second))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_results_that_differ_are_told(benchmark):
    difference = benchmark["run"].difference
    a = np.array([3.0, 4.0])
    assert difference([a, None], [a.copy(), None]) == 0
    assert difference([np.array([3.0, 4.5])], [a]) == pytest.approx(0.1)
    assert difference([a], [a, a]) == difference([a], [None]) == difference([a[:1]], [a]) == np.inf
    assert not difference([a * np.nan], [a]) < 1


def test_doubtful_rows_are_measured_again(benchmark, monkeypatch):
    """A row below 1 and a training step, in as many more pairs of processes; all samples count alike."""
    run, wanted = benchmark["run"], []

    def run_once(options, libraries, threads, cases):
        wanted.append([case.name for case in cases])
        for case in cases:
            ours = 3.0 if case.name == "below" and len(wanted) == 1 else 1.0
            row = {"group": case.group, "name": case.name}
            row |= {"minigrad": {"samples": [ours]}, "torch": {"samples": [2.0]}}
            run.evaluate(row, libraries)
            yield row

    names = {"above": "matmul", "below": "matmul", "net": "training step"}
    cases = [run.Case(group, name, build=None) for name, group in names.items()]
    monkeypatch.setattr(run, "cases", lambda: cases)
    monkeypatch.setattr(run, "run_once", run_once)
    options = argparse.Namespace(only="", threads=[1], again=2)
    rows = {row["name"]: row for row in run.run_all(options, ["minigrad", "torch"])}
    assert wanted == [["above", "below", "net"], ["below", "net"], ["below", "net"]]
    assert rows["below"]["minigrad"]["samples"] == [3.0, 1.0, 1.0]
    assert rows["below"]["ratio"] == 2.0
    assert rows["above"]["minigrad"]["samples"] == [1.0]
