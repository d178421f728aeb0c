"""The command ``minigrad``: options, errors, output, files, exit statuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad import cli
from minigrad.compare import Comparison, Effort, machine, measure, peaks, picture, session
from minigrad.dispatch import kernel_table
from minigrad.kernels import cuda, sim

TINY = Effort(rounds=1, turn=0.0, longest=0.01, slow=1.0, slow_rounds=1, chapter=0.0, training=0.0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    """Little effort, and a current directory that may be written to."""
    for name in ("STANDARD", "FULL", "QUICK"):
        monkeypatch.setattr(measure, name, TINY)
    monkeypatch.setattr(peaks, "STREAM_BYTES", 1 << 16)
    monkeypatch.setattr(peaks, "BURST", 1e-4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_measuring(monkeypatch):
    """Fails the test if anything is measured."""

    def sample(*args, **options):
        raise AssertionError("measured, although the command line is wrong")

    monkeypatch.setattr(peaks.Peaks, "sample", sample)


def refused(capsys, *arguments):
    """What the command prints on standard error when it refuses ``arguments``."""
    try:
        status = cli.main(arguments)
    except SystemExit as error:  # argparse
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    return captured.err


# ---- the command itself -----------------------------------------------------------------------------------


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out == f"minigrad {mg.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([command, "--help"] for command in ("info", "compare", "sim-profile", "new-kernel"))],
)
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: minigrad")
    if arguments[0] == "compare":
        for option in ("--only", "--quick", "--full", "--device", "--output", "--json", "--open", "--record"):
            assert option in text


@pytest.mark.parametrize("arguments", [[], ["compete"], ["info", "--loud"], ["compare", "matmul"]])
def test_wrong_command_line(arguments, capsys, no_measuring):
    assert "usage: minigrad" in refused(capsys, *arguments)


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "minigrad", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"minigrad {mg.__version__}\n"


# ---- minigrad info ----------------------------------------------------------------------------------------


def test_info(capsys):
    assert cli.main(["info"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (mg.__version__, np.__version__, mg.kernels.cpu.isa, "Kernels of matmul", "float32"):
        assert part in text
    for kernel in mg.list_kernels("matmul"):
        assert kernel.name in text
    assert f"threads {mg.get_num_threads()} (" in text
    if not cuda.is_available():
        assert " ".join(f"cuda not available: {cuda.why_unavailable()}".split()) in text


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["isa"] in found["isa_available"]
    assert found["default_dtype"] == "float32"
    assert found["devices"][0]["device"] == "cpu"
    assert all(row["name"] if row["available"] else row["reason"] for row in found["devices"])
    assert [kernel["name"] for kernel in found["kernels"]["matmul"]] == [
        kernel.name for kernel in mg.list_kernels("matmul")
    ]
    assert all(kernel["adds"] and kernel["dtypes"] for kernel in found["kernels"]["matmul"])


def test_info_without_a_compiler(monkeypatch):
    monkeypatch.setattr(machine, "device", _no_simulator)
    row = machine.devices()[-1]
    assert row["device"] == "sim" and not row["available"] and "g++" in row["reason"]


def _no_simulator(spec):
    if spec == "sim":
        raise mg.errors.DeviceError("device 'sim' needs a C++ compiler: install g++ or clang++, or set CXX")
    return mg.device(spec)


def test_where_the_thread_count_comes_from(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MINIGRAD_NUM_THREADS", raising=False)
    assert "processors" in machine.threads_source()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads_source() == "from the environment variable OMP_NUM_THREADS"
    monkeypatch.setenv("MINIGRAD_NUM_THREADS", "2")
    assert machine.threads_source() == "from the environment variable MINIGRAD_NUM_THREADS"


# ---- minigrad compare -------------------------------------------------------------------------------------


def test_compare(capsys, tmp_path):
    assert cli.main(["compare", "--only", "matmul", "--quick", "--threads", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for part in ("matmul on cpu", "python", "naive", "threaded", "numpy", "of peak", "written: "):
        assert part in out
    assert "conv2d on" not in out
    found = json.loads((tmp_path / "minigrad-compare" / "results.json").read_text())
    assert {record["ladder"] for record in found["records"]} == {"matmul"}
    if picture.is_available():
        assert (tmp_path / "minigrad-compare" / "ladder.png").exists()


def test_compare_json_on_standard_output(capsys, tmp_path):
    folder = tmp_path / "a" / "b"
    arguments = ["compare", "--only=pooling", "--json", "--threads=1", "--device=cpu", f"--output={folder}"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((folder / "results.json").read_text())
    assert "written: " in captured.err


def test_compare_without_matplotlib(capsys, monkeypatch):
    monkeypatch.setattr(picture, "is_available", lambda: False)
    assert cli.main(["compare", "--only", "pooling", "--device", "cpu", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert 'pip install "minigrad[plot]"' in out and "pooling on cpu" in out


def test_compare_on_the_simulator(capsys):
    if not sim.is_available():
        pytest.skip("no C++ compiler")
    assert cli.main(["compare", "--device", "sim", "--only", "matmul"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "say nothing about a card" in out and "No picture: nothing was measured but on the simulator" in out
    )


def test_compare_says_why_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(cuda, "why_unavailable", lambda: "the reason")
    assert cli.main(["compare", "--only", "pooling", "--threads", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No GPU: the reason." in out and "minigrad compare --device sim" in out


OWN_KERNEL = """
import numpy as np
import minigrad as mg

@mg.get_op("matmul").kernel("cpu", name="from_elsewhere")
def multiply(out, a, b):
    '''Somebody's own.'''
    np.matmul(a, b, out=out)
"""


@pytest.mark.parametrize("name", ["own_kernels_of_a_test", "own_kernels_of_a_test.py"])
def test_own_kernels_are_rungs(name, capsys, tmp_path, monkeypatch, forget_ops):
    monkeypatch.delitem(sys.modules, "own_kernels_of_a_test", raising=False)
    (tmp_path / "own_kernels_of_a_test.py").write_text(OWN_KERNEL)
    assert cli.main(["compare", "--only=matmul", "--device=cpu", "--threads=1", "--import", name]) == 0
    out = capsys.readouterr().out
    assert "from_elsewhere" in out and "Somebody's own." in out


def test_a_module_that_cannot_be_imported(capsys, tmp_path, no_measuring):
    (tmp_path / "half.py").write_text("1 / 0")
    assert "--import half.py: ZeroDivisionError: division by zero" in refused(
        capsys, "compare", "--import", "half.py"
    )
    assert "--import nowhere: ModuleNotFoundError" in refused(capsys, "compare", "--import", "nowhere")


def test_recording_needs_a_card(capsys, monkeypatch, no_measuring):
    monkeypatch.setattr(cuda, "why_unavailable", lambda: "the reason")
    assert "--record needs a card: the reason" in refused(capsys, "compare", "--record")
    monkeypatch.setattr(cuda, "why_unavailable", lambda: "")
    assert "--device names none" in refused(capsys, "compare", "--record", "--device", "cpu")


def test_recorded_run_that_is_none(capsys, tmp_path, no_measuring):
    (tmp_path / "other.json").write_text("{}")
    assert "other.json is no recorded run" in refused(capsys, "compare", "--recorded", "other.json")
    assert "--recorded none.json: No such file" in refused(capsys, "compare", "--recorded", "none.json")


def test_open_shows_the_report(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(cli.webbrowser, "open", opened.append)
    cli._open([tmp_path / "results.json", tmp_path / "a.png"])
    cli._open([tmp_path / "a.png", tmp_path / "report.html"])
    cli._open([tmp_path / "results.json"])
    assert opened == [(tmp_path / "a.png").as_uri(), (tmp_path / "report.html").as_uri()]


def test_compare_a_chapter(capsys, tmp_path):
    assert cli.main(["compare", "--only", "precision", "--quick", "--device", "cpu", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "The number format: What do fewer bits bring, and what do they cost?" in out
    assert "float64" in out and "matmul on cpu:" not in out
    assert Comparison.load(tmp_path / "minigrad-compare").chapters["precision"].rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--full"], "not allowed with argument"),
        (["--only", "sorting"], "invalid choice: 'sorting'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--threads", "0"], "must be a whole number from 1 to 1024, got '0'"),
        (["--threads", "two"], "must be a whole number from 1 to 1024, got 'two'"),
    ],
)
def test_wrong_options_are_refused_at_once(arguments, message, capsys, no_measuring):
    assert message in refused(capsys, "compare", *arguments)


def test_cuda_without_a_card(capsys, monkeypatch, no_measuring):
    if cuda.is_available():
        pytest.skip("there is a card")
    assert cuda.why_unavailable() in refused(capsys, "compare", "--device", "cuda")


def test_unwritable_folder(capsys, tmp_path, no_measuring):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/no/such"):
        assert f"--output {folder}: cannot write there" in refused(capsys, "compare", "--output", str(folder))


def test_wrong_kernel_sets_the_exit_status(capsys):
    table = kernel_table("max_pool2d")
    before = list(table.kernels)
    try:

        @mg.ops.pool._max_pool2d.kernel("cpu", name="lazy")
        def _(outs, x, **options):
            outs[0][...] = 0
            outs[1][...] = 0

        assert cli.main(["compare", "--only", "pooling", "--device", "cpu", "--threads", "1"]) == 1
    finally:
        table.kernels = before
        table.select({})
    assert "lazy: not timed, wrong at" in capsys.readouterr().out


def test_interrupted(capsys, monkeypatch, tmp_path):
    def in_turns(rungs, *rest):
        for rung in rungs[:2]:
            rung.sample(0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "in_turns", in_turns)
    assert cli.main(["compare", "--device", "cpu", "--threads", "1"]) == 130
    out = capsys.readouterr().out
    assert "Interrupted: this is what was measured until then." in out
    assert "python" in out and "naive" in out and "tiled " not in out
    found = json.loads((tmp_path / "minigrad-compare" / "results.json").read_text())
    assert found["interrupted"] and len(found["records"]) == 2


def test_interrupted_before_anything_was_measured(capsys, monkeypatch):
    def sample(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(peaks.Peaks, "sample", sample)
    assert cli.main(["compare"]) == 130
    assert "Interrupted" in capsys.readouterr().out


# ---- minigrad sim-profile ---------------------------------------------------------------------------------

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

PROGRAM = """
import sys
import numpy as np
from minigrad.kernels.launch import CudaKernel

scale = CudaKernel("__global__ void scale(float* y, float a) { y[threadIdx.x] *= a; }", "scale")
for argument in sys.argv[1:]:
    scale.launch(1, 32, (np.ones(32, np.float32), float(argument)))
sys.exit(0)
"""


@needs_simulator
def test_profile_of_a_ladder(capsys):
    assert cli.main(["sim-profile", "sum"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert printed.startswith("sum of 4x8192, float32, simulated")
    assert {"naive", "tree", "shuffle", "split"} < rows.keys()
    assert "25%" in rows["naive"] and "100%" in rows["tree"]
    assert rows["tree"].split()[-3] == "8"  # barriers, one for each level of 256 values


@needs_simulator
def test_profile_of_tensor_cores(capsys):
    assert cli.main(["sim-profile", "--dtype", "float16", "matmul"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"tensor_core", "wgmma"} < rows.keys() and "naive" not in rows
    # Of 256 x 128 x 128, of which half of the rows are used, in two tiles; and a little to round zeros.
    assert 64 < float(rows["wgmma"][-1]) < 65


@needs_simulator
@pytest.mark.parametrize("ladder", ["matmul", "conv2d", "max_pool2d", "max_pool2d_3x3", "softmax"])
def test_every_ladder_has_a_rung_that_takes_its_size(ladder):
    from minigrad.compare import counts

    assert ladder in counts.LADDERS
    op = counts.LADDERS[ladder][0]
    with mg.use_kernel(op, "naive" if ladder != "conv2d" else "direct", "sim"):
        name, launches = next(counts.profile_ladder(ladder))
    assert launches and launches[0].asked_bytes > 0, name


@needs_simulator
def test_profile_of_a_program(capsys, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert cli.main(["sim-profile", str(program), "2", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("scale: 1 blocks of 32 threads") == 2
    assert cli.main(["sim-profile", str(program)]) == 0
    assert "launched no kernel on the simulator" in capsys.readouterr().out


@needs_simulator
def test_a_profiled_program_imports_what_lies_beside_it(capsys, tmp_path):
    (tmp_path / "kernels_beside.py").write_text(PROGRAM.partition("for argument")[0])
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np\nfrom kernels_beside import scale\n"
        "scale.launch(1, 32, (np.ones(32, np.float32), 2.0))"
    )
    assert cli.main(["sim-profile", str(program)]) == 0
    assert "scale: 1 blocks of 32 threads" in capsys.readouterr().out


@needs_simulator
def test_profile_refuses_what_is_neither_ladder_nor_program(capsys):
    assert "'matmull' is neither a ladder (matmul, conv2d," in refused(capsys, "sim-profile", "matmull")
    assert "nor the path of a Python program" in refused(capsys, "sim-profile", "missing.py")
