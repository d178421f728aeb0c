"""The script that times variants of kernels runs on the simulator, and its questions fit the sources."""

import json
import re
import subprocess
import sys

import pytest

from minigrad.kernels import sim

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++ or clang++"
)


@pytest.fixture
def script(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import gpu_variants

    return gpu_variants


def run(repo_root, *arguments):
    command = [sys.executable, repo_root / "benchmarks/gpu_variants.py", "--device", "sim", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)


def test_every_question_fits_the_sources(script, tmp_path):
    for number, question in enumerate(script.QUESTIONS):
        copies = script.write_variants(tmp_path / str(number), question)
        for name, edits in question.variants.items():
            for path, old, new in edits:
                changed = (copies[name] / "minigrad" / path).read_text()
                assert new in changed and old not in changed


@needs_simulator
@pytest.mark.parametrize("quick", [False, True])
def test_every_question_has_rows(script, quick):
    names = [f"{case.name} {case.size}" for case in script.all_rows(quick, "sim")]
    for question in script.QUESTIONS:
        assert any(re.search(question.rows, name) for name in names), question.name


@needs_simulator
def test_variants_take_turns(repo_root, tmp_path):
    path = tmp_path / "answers.json"
    done = run(repo_root, "--quick", "--rounds", 2, "--only", "pooling of channels", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())
    assert [row["row"] for row in rows] == [
        "max pooling, forward + backward, channels_last 2x3x6x8",
        "avg pooling, forward + backward, channels_last 2x3x6x8",
    ]
    for row in rows:
        assert row["failures"] == {} and set(row["times"]) == {"now", "1", "8"}
        assert all(len(times) == 2 and min(times) > 0 for times in row["times"].values())
        assert row["row"] in done.stdout
    assert "say nothing about speed" in done.stdout and "geometric mean" in done.stdout


@needs_simulator
def test_a_variant_that_is_wrong_is_told_and_not_timed(repo_root):
    edit = "--edit", "kernels/cuda/gemv.cu", "Out(total);", "Out(2 * total);"
    done = run(repo_root, "--quick", "--rounds", 1, *edit, "--rows", "^matmul, gemv")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "edited: the result is wrong" in done.stdout and "now: " not in done.stdout


@needs_simulator
def test_a_variant_that_does_not_compile_is_told(repo_root):
    edit = "--edit", "kernels/cuda/gemv.cu", "AT_ONCE = 4;", "AT_ONCE = four;"
    done = run(repo_root, "--quick", "--rounds", 1, *edit, "--rows", "^matmul, gemv")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "edited: KernelCompileError" in done.stdout


@needs_simulator
def test_no_row_fits(repo_root):
    edit = "--edit", "kernels/cuda/gemv.cu", "AT_ONCE = 4;", "AT_ONCE = 2;"
    done = run(repo_root, "--quick", *edit, "--rows", "weather")
    assert done.returncode == 1 and "no row has 'weather'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "only the --quick form makes sense"),
        (("--quick", "--only", "weather"), "no question has 'weather' in its name"),
        (("--quick", "--rows", "gemv"), "neither goes without the other"),
        (("--quick", "--rows", "gemv", "--edit", "kernels/cuda/no.cu", "a", "b"), "kernels/cuda/no.cu"),
        (("--quick", "--rows", "gemv", "--edit", "kernels/cuda/gemv.cu", "int", "long"), "not once"),
    ],
)
def test_wrong_use(repo_root, arguments, said):
    done = run(repo_root, *arguments)
    assert done.returncode == 2 and said in done.stderr
