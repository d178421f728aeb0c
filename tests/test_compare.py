"""The comparison: what it checks, what it reports, what it writes. Never how fast anything is."""

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from pretended_card import PretendedCard

import minigrad as mg
from minigrad.compare import LADDERS, Comparison, Effort, Record, machine, numbers, peaks, picture
from minigrad.compare.records import with_steps
from minigrad.compare.rungs import RungError, Trial
from minigrad.compare.worker import NumpyProcess, NumpyRung
from minigrad.dispatch import kernel_table
from minigrad.kernels import sim
from minigrad.kernels.launch import CudaKernel

TINY = Effort(rounds=2, turn=0.0, longest=0.01, slow=1.0, slow_rounds=1, chapter=0.0, training=0.0)
ALL_LADDERS = list(LADDERS)


@pytest.fixture(autouse=True)
def _short_stream(monkeypatch):
    monkeypatch.setattr(peaks, "STREAM_BYTES", 1 << 16)
    monkeypatch.setattr(peaks, "CARD_STREAM_BYTES", 1 << 16)
    monkeypatch.setattr(peaks, "BURST", 1e-4)


@pytest.fixture
def matmul_kernel():
    """A decorator that registers a kernel of matmul for the length of the test."""
    table = kernel_table("matmul")
    before = list(table.kernels)
    yield mg.get_op("matmul").kernel
    table.kernels = before
    table.select({})


@pytest.fixture(scope="module")
def comparison():
    """All ladders on the CPU, climbed as far as 10 ms allow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peaks, "STREAM_BYTES", 1 << 16)
        patch.setattr(peaks, "BURST", 1e-4)
        return mg.compare.run(ALL_LADDERS, devices="cpu", threads=2, effort=TINY, seed=0)


def by_rung(comparison, rung):
    found = [record for record in comparison if record.rung == rung]
    assert found, [record.rung for record in comparison]
    return found[0]


# ---- the problems -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LADDERS)
def test_three_solutions_agree(name, rng):
    problem = LADDERS[name].odd()
    trial = Trial(problem, rng)
    tensors = [mg.tensor(array) for array in trial.inputs]
    assert trial.check(problem.run(*tensors).numpy()) <= problem.tolerance
    python = np.array(problem.plain_python(*(array.tolist() for array in trial.inputs)))
    np.testing.assert_allclose(python, trial.expected, rtol=1e-12, atol=1e-12)
    assert [array.shape for array in trial.inputs] == list(problem.shapes)


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("device_type", ["cpu", "cuda", "sim"])
@pytest.mark.parametrize("quick", [False, True])
def test_sizes_grow(name, device_type, quick):
    sizes = LADDERS[name].sizes(device_type, quick)
    work = [problem.work for problem in sizes]
    assert sizes and work == sorted(work)


def test_work_of_the_problems():
    matmul = LADDERS["matmul"](2, 3, 4)
    assert (matmul.operations, matmul.bytes, matmul.size) == (2 * 2 * 3 * 4, 4 * (8 + 12 + 6), "2x3x4")
    conv = LADDERS["conv2d"](2, 3, 5, 7, 4)
    assert conv.operations == 2 * 2 * 4 * 5 * 7 * 3 * 9
    assert conv.bytes == 4 * (2 * 3 * 35 + 2 * 4 * 35 + 4 * 27)
    pool = LADDERS["pooling"](1, 2, 5, 4)
    assert (pool.operations, pool.bytes, pool.unit) == (3 * 2 * 4, 4 * (40 + 8), "GB/s")


def test_check_tells_right_from_wrong(rng):
    trial = Trial(LADDERS["matmul"].odd(), rng)
    right = trial.expected.astype(np.float32)
    trial.check(right)
    for spoil in (lambda a: a + 1e-2, lambda a: np.where(a == a.max(), np.nan, a), lambda a: a[1:]):
        with pytest.raises(RungError, match="wrong"):
            trial.check(spoil(right))


# ---- a whole run ------------------------------------------------------------------------------------------


def test_records_of_a_run(comparison):
    assert comparison.ladders == ["matmul", "conv2d", "pooling"]
    # Made for groups of one channel.
    assert {f"{record.ladder} {record.rung}" for record in comparison if record.refused} == {
        "conv2d depthwise"
    }
    for record in comparison:
        assert isinstance(record, Record)
        if record.refused:
            continue
        assert record.correct and record.failure is None
        assert record.seconds_min <= record.seconds <= record.seconds_max
        assert record.calls == len(record.samples) >= 1
        assert record.threads in (1, 2) and record.size and record.adds
        work = record.operations if record.bound == "compute" else record.bytes
        assert record.rate == pytest.approx(work / record.seconds)
        peak = comparison.peak("cpu", record.threads, record.bound)
        assert record.peak_share == pytest.approx(record.rate / peak)
    assert not comparison.interrupted and comparison.no_gpu == ""


def test_every_kernel_is_a_rung(comparison):
    for name, problem in LADDERS.items():
        rungs = list(dict.fromkeys(record.rung for record in comparison.ladder(name)))
        kernels = [kernel.name for kernel in mg.list_kernels(problem.op, "cpu")]
        assert rungs == ["python", *dict.fromkeys(kernels), "numpy"]


def test_comparison_as_json(comparison):
    found = json.loads(comparison.to_json())
    assert set(found) == {
        *("format", "date", "interrupted", "no_gpu", "notes", "machine"),
        *("peaks", "recordings", "records", "chapters"),
    }
    assert [set(row) for row in found["records"]] == [{f.name for f in fields(Record)}] * len(comparison)
    assert found["records"][0]["samples"] == list(comparison[0].samples)
    assert all(row["rate"] > 0 for row in found["peaks"])


@pytest.mark.parametrize("width", [60, 110, 140])
def test_table(comparison, width):
    text = comparison.table(width)
    assert text.isascii()
    for record in comparison:
        assert record.rung in text
    assert "measured peak of cpu" in text and "what it adds" in text


def test_only_one_ladder_and_any_thread_count():
    found = mg.compare.run(only="pooling", devices=["cpu"], threads=1, effort=TINY)
    assert found.ladders == ["pooling"]
    assert {record.threads for record in found} == {1}


def test_wrong_arguments_are_refused_at_once():
    with pytest.raises(
        ValueError, match="no chapter or ladder is named 'sorting'; there are: machine, ladder"
    ):
        mg.compare.run(only="sorting")
    with pytest.raises(mg.errors.DeviceError, match="unknown device 'tpu'"):
        mg.compare.run(devices="tpu")
    with pytest.raises(ValueError, match="from 1 to"):
        mg.compare.run(threads=0)


def taken(comparison, *and_refused):
    """The records but for those of kernels that are made for other problems, and say so."""
    refused = {f"{record.ladder} {record.rung}" for record in comparison if record.refused}
    # For vectors, one or few, for a longer K, for 16 bits and TF32; for groups of one channel; for windows
    # that overlap, and images that lie otherwise.
    of_matmul = {f"matmul {rung}" for rung in ("gemv", "split_k", "tensor_core", "wgmma", "skinny")}
    in_16_bits = {f"conv2d {rung}" for rung in ("tensor_core", "pointwise", "wgmma")}
    of_conv2d = in_16_bits | {"conv2d depthwise", "conv2d strips"}
    of_pooling = {"pooling tiled", "pooling rolling", "pooling channels_last"}
    assert refused == of_matmul | of_conv2d | of_pooling | set(and_refused)
    return [record for record in comparison if not record.refused]


def test_simulator(tmp_path):
    try:
        mg.device("sim")
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))
    found = mg.compare.run(ALL_LADDERS, devices="sim", effort=TINY)
    assert {record.rung for record in found.ladder("matmul")} >= {"naive", "tiled"}
    for record in taken(found, "conv2d pipelined"):
        assert record.correct and record.threads is None
        assert record.seconds and record.rate is record.peak_share is record.step is None
    assert "say nothing about a card" in " ".join(found.table().split())
    assert "sim time" in found.table()
    assert [path.name for path in found.save(tmp_path)] == ["results.json", "report.html"]


def pretend_name(monkeypatch):
    row = {"device": "cuda:0", "available": True, "name": "Pretended", "reason": ""}
    monkeypatch.setattr(machine, "devices", lambda: [row])


def test_card(monkeypatch):
    """All that happens on a card but its kernels, which the simulator runs."""
    if not sim.is_available():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(peaks, "card_arithmetic", lambda device, repeats: [2e12] * repeats)
    pretend_name(monkeypatch)
    card = mg.Device("cuda", 0, PretendedCard())
    found = mg.compare.run(ALL_LADDERS, devices=[card], effort=TINY)
    assert found.ladders == ["matmul", "conv2d", "pooling"]
    for record in taken(found, "matmul wgmma", "conv2d wgmma"):
        assert record.correct and record.threads is None and record.device == "cuda:0"
        assert record.rate and record.peak_share
        assert (record.transfer_seconds is not None) == (record.kind == "kernel")
    assert [r.rung for r in found.ladder("matmul")][-1] == "cupy"
    assert "cupy" not in [r.rung for r in found.ladder("conv2d")]
    assert by_rung(found, "tiled").step and found.peak("cuda:0", None, "memory")
    assert "Not counted: copying the inputs to the card" in found.table()
    assert "measured peak of cuda:0 (Pretended): float32 multiply-adds 2 TFLOP/s" in found.table()


def test_card_without_memory(monkeypatch):
    def full(*args):
        raise MemoryError("out of memory allocating 1,073,741,824 bytes")

    monkeypatch.setattr(peaks, "card_arithmetic", full)
    pretend_name(monkeypatch)
    monkeypatch.setattr(mg.Device, "from_numpy", full)
    found = mg.compare.run(only="matmul", devices=[mg.Device("cuda", 0, PretendedCard())], effort=TINY)
    assert {record.failure for record in found} == {
        "failed at 67x45x131: MemoryError: out of memory allocating 1,073,741,824 bytes"
    }
    assert "not timed, failed at" in found.table()
    assert found.notes == [
        "the peak of cuda:0 (compute) was not measured: MemoryError: out of memory allocating "
        "1,073,741,824 bytes"
    ]
    assert "was not measured: MemoryError" in found.table()


# ---- kernels that should not be timed ---------------------------------------------------------------------


def run_matmul():
    return mg.compare.run(only="matmul", devices="cpu", threads=1, effort=TINY)


def test_wrong_kernel_is_reported_and_not_drawn(matmul_kernel, tmp_path):
    @matmul_kernel("cpu", name="forgetful")
    def _(out, a, b):
        """Leaves out the last term."""
        np.matmul(a[..., :-1], b[..., :-1, :], out=out)

    found = run_matmul()
    record = by_rung(found, "forgetful")
    assert not record.correct and "wrong at" in record.failure
    assert record.seconds is record.rate is None and record.samples == ()
    assert "forgetful: not timed, wrong at" in found.table()
    drawn = [row[0].rung for row in picture._rows(found.ladder("matmul"))]
    assert "forgetful" not in drawn and "threaded" in drawn
    assert by_rung(found, "threaded").correct


def test_own_kernel_is_a_rung(matmul_kernel):
    @matmul_kernel("cpu", name="mine", when=lambda a, b: a.shape[0] % 64 == 0)
    def _(out, a, b):
        """Calls NumPy. In a second sentence,
        which goes on.

        And a second paragraph.
        """
        np.matmul(a, b, out=out)

    record = by_rung(run_matmul(), "mine")  # although it refuses the odd size
    assert record.correct and record.rate and record.step
    assert record.adds == "Calls NumPy. In a second sentence, which goes on."


def test_kernel_that_raises(matmul_kernel):
    @matmul_kernel("cpu", name="broken")
    def _(out, a, b):
        raise MemoryError("no room\nsecond line")

    record = by_rung(run_matmul(), "broken")
    assert record.failure == "failed at 67x45x131: MemoryError: no room"
    assert by_rung(run_matmul(), "naive").correct


def test_reference_is_not_timed_in_a_kernels_name(matmul_kernel):
    @matmul_kernel("cpu", name="choosy", when=lambda a, b: False)
    def _(out, a, b):
        raise AssertionError("must not run")

    assert "does not take" in by_rung(run_matmul(), "choosy").failure


def test_kernels_of_other_dtypes_are_left_out(matmul_kernel):
    @matmul_kernel("cpu", name="double", dtypes="f8")
    def _(out, a, b):
        np.matmul(a, b, out=out)

    assert "double" not in [record.rung for record in run_matmul()]


# ---- interruption -----------------------------------------------------------------------------------------


def test_interrupted_run_keeps_what_was_measured(tmp_path):
    def progress(text):
        if "matmul: timing, round 2" in text:
            raise KeyboardInterrupt

    found = mg.compare.run(ALL_LADDERS, devices="cpu", threads=1, effort=TINY, progress=progress)
    assert found.interrupted and found.ladders == ["matmul"]
    assert all(record.rate for record in found)
    assert "Interrupted" in found.table()
    assert (tmp_path / "results.json") in found.save(tmp_path)


def test_run_interrupted_before_anything_was_measured():
    def progress(text):
        raise KeyboardInterrupt

    found = mg.compare.run(effort=TINY, devices="cpu", progress=progress)
    assert list(found) == [] and found.interrupted
    assert "Interrupted" in found.table()


# ---- parts ------------------------------------------------------------------------------------------------


def test_numpy_runs_in_a_process_of_its_own(rng):
    process = NumpyProcess(threads=1)
    rung = NumpyRung(LADDERS["matmul"], process)
    problem = LADDERS["matmul"].odd()
    trial = Trial(problem, rng)
    try:
        trial.check(rung.solve(problem, trial.inputs))
        rung.sample(0.0)
        assert len(rung.samples) == 1 and not rung.parallel
        with pytest.raises(ValueError):  # the child's errors come back
            rung.solve(problem, trial.inputs[::-1])
        process._process.kill()
        process._process.wait()
        with pytest.raises(RungError, match="has ended"):
            rung.sample(0.0)
    finally:
        process.close()
    process.close()


def test_steps_compare_rates(comparison):
    first = comparison[0]

    def record(rung, threads, rate, kind="kernel"):
        return replace(first, rung=rung, threads=threads, rate=rate, kind=kind, step=None)

    steps = with_steps(
        [
            record("python", 1, 1.0, "python"),
            record("naive", 1, 10.0),
            record("tiled", 1, 30.0),
            record("tiled", 2, 57.0),
            record("packed", 1, 60.0),
            record("numpy", 1, 55.0, "library"),
            record("wrong", 1, None),
        ]
    )
    assert [r.step for r in steps] == [None, 10.0, 3.0, 1.9, 2.0, None, None]


def test_peaks_of_the_processor():
    found = peaks.Peaks([mg.device("cpu")], [1, 2])
    found.sample("compute")
    before = dict(found.best)
    found.sample("memory")
    found.sample("compute")
    assert {key[1:] for key in found.best} == {(t, b) for t in (1, 2) for b in ("compute", "memory")}
    assert all(found.best[key] >= rate > 0 for key, rate in before.items())
    assert found.get("sim", None, "compute") is None


@pytest.mark.parametrize("level", mg.kernels.cpu.available_levels())
@pytest.mark.parametrize("threads", [1, 3])
def test_peak_kernels_compute_what_they_say(level, threads, rng):
    module = mg.kernels.cpu.kernel_module("peak", level)
    operations, total = module.multiply_adds(50, threads)
    values = operations / (2 * 50)  # each is near 1
    assert total == pytest.approx(values, rel=0.2)
    for n in (0, 1, 1003):
        a, b = rng.integers(-8, 8, (2, n)).astype(np.float32)
        out = np.full(n, np.nan, np.float32)
        assert module.read(a, threads) == a.sum()
        module.triad(out, a, b, threads)
        np.testing.assert_array_equal(out, a + 3 * b)
    with pytest.raises(TypeError):
        module.read(np.zeros(3), 1)
    with pytest.raises(ValueError):
        module.triad(np.zeros(4, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32), 1)


def test_multiply_adds_of_the_card():
    try:
        mg.device("sim")
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))
    out = np.zeros(2 * 32, np.float32)
    CudaKernel(peaks.CARD_SOURCE, "multiply_adds").launch(2, 32, (out, 5))
    start = 1 + 0.01 * np.arange(8) + 0.001 * np.arange(32)[:, None]
    expected = 1 + (start - 1) * 0.999**5  # x -> 0.999 x + 0.001 keeps 1 where it is
    np.testing.assert_allclose(out, np.tile(expected.sum(1), 2), rtol=1e-5)


def test_numbers_as_text():
    assert [numbers.significant(x) for x in (0.01234, 0.5, 4.567, 78.91, 117.4, 5234)] == [
        "0.0123", "0.5", "4.57", "78.9", "117", "5234",
    ]  # fmt: skip
    assert [numbers.seconds(x) for x in (1.234, 0.0456, 7.89e-6, 5e-8)] == [
        "1.23 s",
        "45.6 ms",
        "7.89 us",
        "50 ns",
    ]
    assert [numbers.share(x) for x in (0.917, 0.0343, 0.0002, None)] == ["92 %", "3.4 %", "0.02 %", ""]
    assert [numbers.times(x) for x in (1.87, 86.2, None)] == ["x1.9", "x86", ""]
    assert numbers.per_second(4.3e12, "B/s") == "4.3 TB/s"


# ---- the files --------------------------------------------------------------------------------------------


def test_save_writes_results_and_pictures(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    paths = comparison.save(folder)
    assert [path.name for path in paths] == ["results.json", "report.html", "ladder.png", "ladder.svg"]
    assert json.loads(paths[0].read_text())["records"][0] == json.loads(json.dumps(asdict(comparison[0])))
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[3].read_text()


def test_save_without_matplotlib(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "is_available", lambda: False)
    assert [path.name for path in comparison.save(tmp_path)] == ["results.json", "report.html"]


def test_picture_with_a_card(comparison):
    pytest.importorskip("matplotlib")
    card = Comparison(comparison.machine, comparison.date)
    card += comparison
    card += [
        replace(r, device="cuda:0", threads=None, rate=1e13, size="4096x4096x4096", peak_share=0.5)
        for r in comparison.ladder("matmul")
        if r.rung in ("naive", "tiled")
    ]
    card.peaks = [
        *comparison.peaks,
        {"device": "cuda:0", "threads": None, "bound": "compute", "rate": 2e13},
    ]
    figure = picture.draw(card)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(figure.axes) == 3
    assert "naive" in texts and "naive, cuda:0" in texts
    assert any(text.startswith("4096x4096x4096: ") for text in texts)


def test_headline():
    assert picture.headline("Adds cache tiles: a block of b serves all rows.") == "Adds cache tiles"
    assert picture.headline("np.maximum of views (without winners).") == "np.maximum of views"
    assert len(picture.headline("word " * 40)) <= picture.HEADLINE
