"""The benchmark for a card runs to its end on the simulator, and says clearly when there is no card."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import minigrad as mg
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda, sim
from minigrad.kernels.sim import build

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++ or clang++"
)
# The rungs of convolution that have rows of other formats than float32.
FORMATS = {
    "tensor_core": (" float16", " tf32"),
    "pointwise": (" float16", " tf32"),
    "wgmma": (" bfloat16", " bfloat16, channels last"),
}
no_card = pytest.mark.skipif(cuda.is_available(), reason="this machine has a card")


def run(*command, **environment):
    """The finished process; scripts find minigrad where this test found it."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def quick(repo_root, tmp_path_factory):
    """(the process, the JSON) of the benchmark's small form on the simulator."""
    path = tmp_path_factory.mktemp("gpu") / "benchmark.json"
    script = repo_root / "benchmarks/gpu_vs_torch.py"
    done = run(sys.executable, script, "--device", "sim", "--quick", "--seconds", 500, "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(path.read_text())


@needs_simulator
def test_every_row_is_right_and_has_its_share_of_the_ceiling(quick):
    done, result = quick
    names = [row["name"] for row in result["rows"]]
    for name in ("MNIST CNN, training step", "softmax", "sum of all", "max pooling, forward + backward"):
        assert name in names
    one_sum = "uncoalesced", "naive", "tiled", "register_tile", "vectorized"
    for rung in (*one_sum, "warp_tile", "gemv", "split_k", "skinny"):
        assert f"matmul, {rung}" in names
    for name in ("layer norm", "group norm, forward + backward", "batch norm", "cross-entropy"):
        assert name in names
    weighted = "attention, padding", "attention, forward + backward, dropout"
    for name in ("dropout, block", "embedding", "embedding gradient", *weighted):
        assert name in names
    for name, op in (("forward", ""), ("input gradient", "_input_grad"), ("weight gradient", "_weight_grad")):
        for rung in mg.list_kernels(f"conv2d{op}", "sim"):
            if rung.name == "wgmma" and not BFLOAT16:
                continue
            formats = FORMATS.get(rung.name, ("",))
            assert {f"conv2d {name}{format}, {rung.name}" for format in formats} <= set(names)
    for format in ("float32", "tf32", "float16"):
        for pooling in ("", " + max pooling"):
            assert f"conv2d + bias + ReLU{pooling} {format}" in names
    assert "conv_transpose2d, implicit_gemm" in names
    assert {"matmul float16, tensor_core", "matmul tf32, tensor_core"} <= set(names)
    if BFLOAT16:
        assert {"training step: ResNet-20, bfloat16, channels_last", "LSTM, bfloat16"} <= set(names)
    groups = {name.partition(": ")[0] for name in names if ": " in name}
    kinds = {
        "matmul",
        "convolution",
        "pooling",
        "elementwise",
        "softmax",
        "norm",
        "reduction",
        "loss",
        "random",
    }
    kinds |= {"optimizer", "embedding", "LSTM", "GRU", "RNN", "attention", "overhead"}
    assert groups == kinds | {"training step", "captured training step"}
    largest = {"tf32": 1e-3, "float16": 1e-3, "bfloat16": 5e-3, "autocast": 2e-2}
    for row in result["rows"]:
        assert row["error"] < largest.get(row.get("format"), 1e-4) * row.get("steps", 1) ** 0.5, row
        assert row["share"] > 0 and row["floor"] > 0 and row["bound"] in ("matrix", "copy"), row
        assert row["times"]["minigrad"]["median"] > 0, row
        assert row["name"][:32] in done.stdout
        if row["name"].startswith("matmul") and ": " not in row["name"]:
            ran, dtype = row["kernels"]["matmul"][0].split()
            assert ran == row["name"].partition(", ")[2] and dtype in ("float32", row["format"]), row


@needs_simulator
def test_the_record_says_when_where_and_with_what_and_claims_no_speed(quick):
    done, result = quick
    assert result["device"] == "sim" and result["card"] is None and result["speed_claim"] is False
    assert "its times say nothing about speed" in done.stdout
    assert result["date"].startswith("20") and "commit" in result and "torch" in result
    assert result["machine"]["numpy"] and result["machine"]["minigrad"] == mg.__version__
    assert all(result["ceilings"][rate] > 0 for rate in ("copy", "matrix", "matrix_tf32", "matrix_bf16"))
    assert result["launch_microseconds"]["CudaKernel.launch"] > 0


@needs_simulator
def test_the_record_becomes_a_page(quick, repo_root, tmp_path):
    _, result = quick
    stages = [{"name": "op-tests", "status": 124, "seconds": 60, "limit": 60, "tests": {"passed": 5}}]
    record = {"card": "a card", "commit": "abc", "date": result["date"], "versions": {}, "stages": stages}
    path = tmp_path / "gpu.json"
    for benchmark in (result, None):
        path.write_text(json.dumps(record | {"benchmark": benchmark}))
        done = run(sys.executable, repo_root / "benchmarks/gpu_table.py", path)
        assert done.returncode == 0, done.stderr
        assert "| op-tests | 60 | its time was over, 5 passed |" in done.stdout
        for row in benchmark["rows"] if benchmark else ():
            assert f"| {row['name'].partition(': ')[2] or row['name']} " in done.stdout
    first, *others = result["rows"]
    again = result | {"rows": [first | {"commit": "def"}, *others]}
    path.write_text(json.dumps(record | {"benchmark": again}))
    done = run(sys.executable, repo_root / "benchmarks/gpu_table.py", path)
    assert "(2): measured later, on the same kind of card, with commit def." in done.stdout
    assert done.stdout.count(" (2) |") == 1


@needs_simulator
def test_no_row_starts_after_the_time_is_over(repo_root, tmp_path):
    path = tmp_path / "benchmark.json"
    script = repo_root / "benchmarks/gpu_vs_torch.py"
    done = run(sys.executable, script, "--device", "sim", "--quick", "--seconds", 0, "--json", path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert rows and all(row["skipped"] == "the time was over" for row in rows)


@needs_simulator
@pytest.mark.parametrize("how", ["ended", "lost the card", "had no more time"])
def test_a_new_process_goes_on_with_the_rows_that_are_not_told(repo_root, tmp_path, how):
    path, earlier = tmp_path / "benchmark.json", tmp_path / "earlier.json"
    script = repo_root / "benchmarks/gpu_vs_torch.py"
    ended, told = ["softmax", "6x20"], {"name": "relu", "size": "6x20", "error": 0.0}
    told |= {"failure": "an error", "lost": True} if how == "lost the card" else {}
    rates = {"ceilings": {"copy": 1e9, "matrix": 1e9}, "launch_microseconds": {}, "commit": "another"}
    skipped = {"name": "gelu", "size": "6x20", "skipped": "the time was over"}
    before = rates | {"rows": [told, skipped]} | ({"running": ended} if how == "ended" else {})
    path.write_text(json.dumps(before))
    earlier.write_text(json.dumps({"benchmark": {"rows": [{"name": "gelu", "size": "6x20", "times": {}}]}}))
    arguments = ["--device", "sim", "--quick", "--seconds", 0, "--json", path, "--resume", "--after", earlier]
    arguments += ["--only", "^(softmax|relu|gelu|dropout)"]
    done = run(sys.executable, script, *arguments)
    assert done.returncode == (how != "had no more time"), done.stderr
    result = json.loads(path.read_text())
    first, *new = result["rows"]
    assert first == told and result["ceilings"] == rates["ceilings"] and "running" not in result
    assert all("commit" in row and row["commit"] != "another" for row in new)
    if how == "ended":
        row = new.pop(0)
        assert [row["name"], row["size"]] == ended and row["failure"] == "the process ended in this row"
    assert all(row["skipped"] == "the time was over" for row in new)
    places = [(row["name"], row["size"]) for row in result["rows"]]
    assert len(set(places)) == len(places) > 10
    assert places[-1] == ("gelu", "6x20"), "what an earlier record has comes last"


@needs_simulator
def test_a_row_fails_whose_rung_refuses(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    from gpu_case import Case, noted

    case = Case("matmul, wgmma", "", (), None, None, 0.0, 0.0, ("matmul",), "wgmma")
    with noted() as notes:
        assert notes.failure(case) == "matmul ran without a kernel, not wgmma"
    for size, failure in ((40, "matmul ran without a kernel, not wgmma"), (64, None)):
        a = mg.ones(size, size, device="sim")
        with noted() as notes, mg.use_kernel("matmul", "wgmma", "sim"):
            mg.set_float32_matmul_precision("high")
            try:
                a @ a
            finally:
                mg.set_float32_matmul_precision("highest")
        assert notes.failure(case) == failure
        assert notes.kernels == ({} if failure else {"matmul": ["wgmma float32"]})


@needs_simulator
def test_kernels_can_be_compiled_beforehand(repo_root, tmp_path):
    script = repo_root / "benchmarks/gpu_vs_torch.py"
    arguments = "--device", "sim", "--quick", "--only", "^softmax", "--seconds", 100
    (tmp_path / "sim").mkdir()
    shutil.copy(build._runtime(), tmp_path / "sim")  # which takes as long to compile as all of these kernels
    done = run(sys.executable, script, *arguments, "--compile", MINIGRAD_CACHE=tmp_path)
    assert done.returncode == 0 and not done.stdout, done.stderr
    compiled = set(tmp_path.rglob("*softmax*.so"))
    assert run(sys.executable, script, *arguments, MINIGRAD_CACHE=tmp_path).returncode == 0
    assert compiled and not set(tmp_path.rglob("*softmax*.so")) - compiled


@needs_simulator
def test_what_no_card_has_timed_is_listed(repo_root):
    done = run(sys.executable, repo_root / "benchmarks/gpu_untimed.py")
    assert done.returncode == 0, done.stderr
    assert "## Rows without a time of the card alone: " in done.stdout and "†" in done.stdout
    # Of this group the record of 27 November 2026 has all rows.
    assert "conv_transpose2d" not in done.stdout.partition("†")[0]


@needs_simulator
def test_an_interrupt_before_a_row_leaves_it_out(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    from gpu_bench import Bench
    from gpu_vs_torch import measured

    def begins(name, size):  # while it writes the file
        raise KeyboardInterrupt

    bench, todo = Bench("sim", quick=True, seconds=100, alone=True), [("relu", "6x20", None)] * 2
    assert [row["skipped"] for row in measured(bench, todo, begins)] == ["the time was over"] * 2


@pytest.mark.parametrize(
    "arguments", [["OUT", "--resume"], ["--again"], ["OUT", "other"], ["--resume", "-v"]]
)
def test_the_one_command_refuses_other_arguments(repo_root, arguments):
    done = run(repo_root / "benchmarks/gpu.sh", *arguments, PYTHON="false")
    assert done.returncode == 64 and done.stderr.startswith(
        "gpu.sh: usage: benchmarks/gpu.sh [--resume] [OUT]"
    )


@pytest.mark.parametrize(
    ("stages", "resume", "stays"),
    [("build training", [], True), ("build benchmark", [], False), ("build benchmark", ["--resume"], True)],
)
def test_the_one_command_begins_anew_only_if_it_measures(repo_root, tmp_path, stages, resume, stays):
    """With a Python that does nothing, and so finds a card."""
    script = tmp_path / "benchmarks" / "gpu.sh"
    script.parent.mkdir()
    shutil.copy(repo_root / "benchmarks/gpu.sh", script)
    measured = [tmp_path / "out" / name for name in ("benchmark.json", "gpu.json")]
    measured[0].parent.mkdir()
    for path in measured:
        path.write_text("{}")
    done = run(script, *resume, tmp_path / "out", PYTHON="true", MINIGRAD_GPU_STAGES=stages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.exists() for path in measured] == [stays] * 2


@needs_simulator
def test_a_row_is_timed_where_a_record_names_it_or_a_printed_line_can_mean_no_other(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    from gpu_untimed import timed
    from gpu_vs_torch import label

    name = "conv2d input gradient bfloat16, channels last, tensor_core"
    first, second, third = places = [(name, "64x64"), (name, "64x128"), ("gelu", "6x20")]
    assert label(*first) == label(*second)
    rows = [{"name": name, "size": "64x64", "card_times": {}}, {"name": "gelu", "size": "6x20"}]
    assert timed(places, [{"benchmark": {"rows": rows}}], []) == {first}
    assert timed(places, [], [label(*first), label(*third).ljust(61)]) == {third}


@needs_simulator
def test_every_kernel_is_launched_and_right(repo_root):
    done = run(sys.executable, repo_root / "benchmarks/gpu_every_kernel.py", "--device", "sim")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels launched on sim" in done.stdout


@no_card
@pytest.mark.parametrize("script", ["gpu_vs_torch.py", "gpu_vs_torch.py --compile", "gpu_every_kernel.py"])
def test_a_script_without_a_card_says_so(repo_root, script):
    name, *options = script.split()
    done = run(sys.executable, repo_root / "benchmarks" / name, *options)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("device 'cuda' cannot be used: ")
    assert len(done.stderr.splitlines()) == 1


@no_card
def test_the_one_command_without_a_card_says_so_and_leaves_nothing(repo_root, tmp_path):
    done = run(repo_root / "benchmarks/gpu.sh", tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("gpu.sh: no NVIDIA card can be used here, so nothing was run: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
