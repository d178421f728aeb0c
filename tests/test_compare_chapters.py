"""The chapters of the comparison: what they measure, record and say. Never how fast anything is."""

import importlib.util
import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from pretended_card import PretendedCard

import minigrad as mg
from minigrad.compare import Comparison, Effort, Record, measure, peaks, picture, recording, rows, table
from minigrad.compare.chapters import CHAPTERS, batch, begin, network, precision, size
from minigrad.compare.networks import check_outputs, mnist_cnn
from minigrad.compare.problems import Matmul
from minigrad.compare.rungs import RungError
from minigrad.compare.timing import Call, Timing, in_turns, told
from minigrad.errors import OutOfMemoryError
from minigrad.kernels import cuda, sim

TINY = Effort(
    rounds=2, turn=0.0, longest=0.002, slow=1.0, slow_rounds=1, ladder=0.0, chapter=0.0, training=0.0
)
OTHERS = [name for name in CHAPTERS if name not in ("ladder", "roofline")]


@pytest.fixture(autouse=True)
def _short_stream(monkeypatch):
    shorten(monkeypatch)


def shorten(patch):
    patch.setattr(peaks, "STREAM_BYTES", 1 << 16)
    patch.setattr(peaks, "CARD_STREAM_BYTES", 1 << 16)
    patch.setattr(peaks, "BURST", 1e-4)


@pytest.fixture(scope="module")
def comparison():
    """A whole run on a machine without a GPU and without MNIST."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setenv("MINIGRAD_DATA", "/no/such/folder")
        patch.setattr(cuda, "why_unavailable", lambda: "the reason")
        return mg.compare.run(threads=1, quick=True, effort=TINY, seed=0)


def run(*only, **options):
    return mg.compare.run(only, devices="cpu", threads=1, quick=True, effort=TINY, **options)


# ---- a whole run ------------------------------------------------------------------------------------------


def test_every_chapter_has_rows_of_its_types(comparison):
    assert list(comparison.chapters) == list(CHAPTERS)
    for name, chapter in comparison.chapters.items():
        assert not chapter.failed, chapter.notes
        assert list(chapter.tables) == list(CHAPTERS[name].TABLES)
        if name != "simulator" or sim.is_available():
            assert chapter.rows, name
        for found, is_recorded in ((chapter.tables, False), (chapter.recorded, True)):
            for table_name, entries in found.items():
                assert {type(row) for row in entries} <= {CHAPTERS[name].TABLES[table_name]}
                assert all((row.recorded is not None) == is_recorded for row in entries)
        assert chapter.title and chapter.question.endswith("?")


def test_measured_rows_hold_together(comparison):
    timed = [
        row
        for chapter in comparison.chapters.values()
        for entries in chapter.tables.values()
        for row in entries
        if isinstance(row, rows.TimedRow)
    ]
    assert timed
    for row in timed:
        assert row.failure is None and row.device == "cpu" and row.threads == 1 and row.calls > 0
        assert 0 < row.seconds_min <= row.seconds <= row.seconds_max and row.spread >= 0
    for row in comparison.chapters["size"].rows:
        work = row.operations if row.unit == "GFLOP/s" else row.bytes
        assert row.rate == pytest.approx(work / row.seconds) and row.error < 1e-5
    for row in comparison.chapters["batch"].rows:
        assert row.samples_per_second == pytest.approx(row.batch / row.seconds) and row.error < 1e-4
    layers = comparison.chapters["network"].tables["layers"]
    assert sum(row.share for row in layers) == pytest.approx(1)
    assert [row.position for row in layers] == list(range(len(layers)))
    assert layers[0].layer == "Conv2d 3x3, 1 -> 32" and layers[-1].layer == "optimizer"


def test_roofline_places_every_rung_below_its_roof_line(comparison):
    chapter = comparison.chapters["roofline"]
    assert len(chapter.rows) == len([record for record in comparison if record.rate])
    for row in chapter.rows:
        compute, memory = (comparison.peak("cpu", row.threads, b) for b in ("compute", "memory"))
        assert row.roof == pytest.approx(min(compute, row.intensity * memory))
        assert row.bound == ("compute" if compute <= row.intensity * memory else "memory")
        assert row.roof_share == pytest.approx(row.rate / row.roof)


def test_json_round_trip(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "is_available", lambda: False)
    comparison.save(tmp_path)
    for path in (tmp_path, tmp_path / "results.json"):
        loaded = Comparison.load(path)
        assert loaded.to_json() == comparison.to_json()
        assert list(loaded) == list(comparison)
        assert loaded.chapters == comparison.chapters
        assert loaded.table() == comparison.table()
    json.loads(comparison.to_json(), parse_constant=pytest.fail)  # no NaN, no Infinity


def test_rows_as_a_data_frame_takes_them(comparison):
    found = comparison.chapters["size"].to_dicts()
    assert {row["recorded"] for row in found} == {None, *comparison.recordings}
    assert {row["recorded"] for row in comparison.chapters["size"].to_dicts(recorded=False)} == {None}
    assert all(isinstance(v, str | int | float | None) for row in found for v in row.values())
    assert comparison.chapters["network"].to_dicts("layers")[0]["forward"] > 0
    with pytest.raises(KeyError, match="no table 'lines'; there are: points, costs"):
        comparison.chapters["size"].to_dicts("lines")


@pytest.mark.parametrize("width", [60, 110])
def test_terminal_shows_every_chapter(comparison, width):
    text = comparison.table(width)
    assert text.isascii()
    for chapter in comparison.chapters.values():
        assert f"{chapter.title}: {chapter.question}" in text
        for sentence in chapter.findings:
            assert sentence.split()[0] in text
    words = " ".join(text.split())
    assert "Recorded on NVIDIA H200, 2026-11-27, minigrad 0.1.0:" in words and "No GPU: the reason." in words


def test_one_chapter_alone():
    found = run("precision")
    assert list(found.chapters) == ["precision"] and list(found) == []
    assert [row.format for row in found.chapters["precision"].rows if row.op == "matmul"] == [
        "float64",
        "float32",
    ]
    assert found.recordings == {}  # a device was named, so nothing stands in for a GPU


def test_a_ladder_and_a_chapter():
    found = run("pooling", "machine")
    assert list(found.chapters) == ["machine", "ladder"] and found.ladders == ["pooling"]


def test_the_roofline_brings_its_ladders():
    found = mg.compare.run(["roofline", "pooling"], devices="cpu", threads=1, effort=TINY)
    assert list(found.chapters) == ["ladder", "roofline"] and found.ladders == ["pooling"]


def test_random_numbers_of_the_program_go_on_as_before():
    mg.manual_seed(3)
    expected = mg.randn(4).numpy()
    mg.manual_seed(3)
    run("batch", "simulator")
    np.testing.assert_array_equal(mg.randn(4).numpy(), expected)


def test_quick_and_full_exclude_each_other():
    with pytest.raises(ValueError, match="one of quick and full"):
        mg.compare.run(quick=True, full=True)


# ---- MNIST, or the digits ---------------------------------------------------------------------------------


def test_without_mnist_the_digits_say_so(comparison):
    chapter = comparison.chapters["network"]
    assert {row.dataset for row in chapter.rows} == {"Digits"}
    assert any("MNIST is not on this machine" in note for note in chapter.notes)


def test_with_mnist(monkeypatch):
    pytest.importorskip("pooch", reason="the files are found by the same way as they are fetched")
    try:
        mg.data.MNIST(train=False, download=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    chapter = begin("network")
    data = network.load_data(chapter, 100)
    images, labels = data.batch(data.train, range(50), mg.device("cpu"))
    assert data.name == "MNIST" and chapter.notes == [] and images.shape == (50, 1, 28, 28)
    assert abs(images.numpy().mean()) < 0.2 and labels.shape == (50,)


def test_network_learns(monkeypatch):
    monkeypatch.setenv("MINIGRAD_DATA", "/no/such/folder")
    effort = TINY._replace(training=60.0)  # the Digits' one epoch ends long before
    found = mg.compare.run("network", devices="cpu", threads=1, quick=True, effort=effort)
    points = found.chapters["network"].rows
    assert points[0].samples == 0 and points[0].train_loss is None
    assert points[-1].samples == len(mg.data.Digits(train=True))
    assert points[-1].test_loss < points[0].test_loss and points[-1].test_accuracy > 0.5
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)


# ---- checks, failures, interruption -----------------------------------------------------------------------


def test_wrong_results_are_not_timed(rng):
    problem = Matmul(8, 8, 8)
    inputs = problem.inputs(rng)
    right = inputs[0] @ inputs[1]
    assert size.check(problem, inputs, right, rng) < 1e-6
    for spoil in (lambda a: a + 1, lambda a: np.where(a == a.max(), np.nan, a)):
        with pytest.raises(RungError, match="wrong at 8x8x8"):
            size.check(problem, inputs, spoil(right), rng)
    add = size.Add(9)
    a, b = add.inputs(rng)
    assert size.check(add, [a, b], a + b, rng) < 1e-6
    with pytest.raises(RungError):
        size.check(add, [a, b], a - b, rng)


def test_wrong_network_is_not_timed(rng, monkeypatch):
    model = mnist_cnn()
    images = rng.standard_normal((3, 1, 28, 28), np.float32)
    assert check_outputs(mnist_cnn, model, images, mg.device("cpu")) < 1e-4

    def other():
        return mg.nn.Sequential(*mnist_cnn(), mg.nn.ReLU())

    with pytest.raises(RungError, match="wrong: the outputs differ"):
        check_outputs(other, model, images, mg.device("cpu"))


def test_precision_knows_a_wrong_result(rng):
    problem = Matmul(40, 40, 40)
    inputs = [array.astype(np.float64) for array in problem.inputs(rng)]
    right = inputs[0] @ inputs[1]
    assert precision.error_of(problem, inputs, right) < 1e-15
    assert precision.error_of(problem, inputs, right.astype(np.float32)) < precision.tolerance("float32")
    assert precision.error_of(problem, inputs, 1.01 * right) == pytest.approx(0.01, rel=1e-3)
    assert [precision.tolerance(name) for name in precision.BITS] == sorted(
        map(precision.tolerance, precision.BITS)
    )


def test_full_memory_ends_a_row_and_not_the_run(monkeypatch):
    def check(make, model, images, device):
        if len(images) > 1:
            raise OutOfMemoryError("cuda:0: 3.2 GB wanted, 1 GB left")
        return 0.0

    monkeypatch.setattr(batch, "check_outputs", check)
    monkeypatch.setattr(batch, "QUICK_BATCHES", (1, 2, 4))
    effort = TINY._replace(longest=60.0)
    found = mg.compare.run(["batch", "precision"], devices="cpu", threads=1, quick=True, effort=effort)
    chapter = found.chapters["batch"]
    assert [row.batch for row in chapter.rows if row.mode == "forward"] == [1, 2]
    assert chapter.rows[1].failure == "out of memory: cuda:0: 3.2 GB wanted, 1 GB left"
    assert chapter.rows[1].seconds is None and chapter.rows[0].seconds
    assert found.chapters["precision"].rows
    assert "out of memory: cuda:0" in found.table()


def test_a_chapter_that_fails_is_told_and_the_next_goes_on(monkeypatch):
    def measure(session, chapter):
        raise RuntimeError("no idea")

    monkeypatch.setattr(batch, "measure", measure)
    found = run("batch", "precision")
    assert found.chapters["batch"].failed and not found.chapters["precision"].failed
    assert "the chapter on the batch ended early: RuntimeError: no idea" in " ".join(found.table().split())


@pytest.mark.parametrize(
    ("chapter", "stage", "rows_left"),
    [
        ("machine", "measuring the machine's peaks", False),
        ("size", "size: timing, round 2", True),
        ("batch", "batch: timing, round 2", True),
        ("network", "network: a training step of LeNet", True),
        ("precision", "precision: checking conv2d", False),
    ],
)
def test_interrupted_chapter_keeps_what_was_measured(chapter, stage, rows_left, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGRAD_DATA", "/no/such/folder")

    def progress(text):
        if text.startswith(stage):
            raise KeyboardInterrupt

    found = run(chapter, "simulator", progress=progress)
    assert found.interrupted and list(found.chapters) == [chapter]
    assert bool(found.chapters[chapter].rows) == rows_left
    assert "Interrupted" in found.table()
    found.save(tmp_path)
    assert Comparison.load(tmp_path).interrupted


def test_the_simulator_is_not_timed():
    if not sim.is_available():
        pytest.skip("no C++ compiler")
    found = mg.compare.run(["size", "simulator"], devices="sim", quick=True, effort=TINY)
    assert found.chapters["size"].rows == []
    assert "say nothing about a card" in found.chapters["size"].notes[0]
    assert [row.rung for row in found.chapters["simulator"].rows] == ["naive", "tiled"]
    naive, tiled = found.chapters["simulator"].rows
    assert naive.asked_bytes > 10 * tiled.asked_bytes and naive.shared_wavefronts == 0
    assert naive.distinct_bytes == tiled.distinct_bytes == 3 * 128 * 128 * 4


def test_without_a_compiler_the_simulator_says_so(monkeypatch):
    from minigrad.compare.chapters import simulator

    def refuse(spec):
        raise mg.errors.DeviceError("device 'sim' needs a C++ compiler")

    monkeypatch.setattr(simulator, "device", refuse)
    chapter = run("simulator").chapters["simulator"]
    assert chapter.rows == [] and chapter.notes == ["Nothing was counted: device 'sim' needs a C++ compiler."]


# ---- timing -----------------------------------------------------------------------------------------------


def test_timing_of_samples():
    assert Timing.of([]) == Timing()
    found = Timing.of([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (found.seconds, found.seconds_min, found.seconds_max, found.calls) == (3.0, 1.0, 10.0, 5)
    assert found.spread == pytest.approx((4 - 2) / 2 / 3)


def test_a_call_that_fails_while_timed():
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("enough")

    bad, good = (Call(f, mg.device("cpu"), 1) for f in (failing, lambda: None))
    bad.prepare(), good.prepare()
    in_turns([bad, good], TINY, math.inf, "a test")
    assert bad.failure == "failed: ValueError: enough" and bad.timing()["seconds"] is None
    assert good.failure is None and good.timing()["calls"] == 2


def test_told():
    assert told("failed", ValueError("a\nb")) == "failed: ValueError: a"
    assert told("failed", OutOfMemoryError("full")) == "out of memory: full"


# ---- a card -----------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_card(monkeypatch):
    """Chapters measured on a card whose kernels the simulator runs."""
    if not sim.is_available():
        pytest.skip("no C++ compiler")
    from minigrad.compare import machine

    row = {"device": "cuda:0", "available": True, "name": "Pretended", "reason": ""}
    monkeypatch.setattr(machine, "devices", lambda: [row])
    monkeypatch.setattr(peaks, "card_arithmetic", lambda device, repeats: [2e12] * repeats)
    monkeypatch.setattr(size, "LINK_BYTES", 1 << 10)
    card = mg.Device("cuda", 0, PretendedCard())
    return mg.compare.run(["machine", "size"], devices=["cpu", card], threads=1, quick=True, effort=TINY)


def test_card(on_a_card):
    machine, found = (on_a_card.chapters[name] for name in ("machine", "size"))
    facts = {row.what: row.value for row in machine.rows if row.device == "cuda:0"}
    assert facts["multiprocessors (SMs)"] == 132 and facts["peak arithmetic, float32"] == 2e12
    card = [row for row in found.rows if row.device == "cuda:0"]
    assert card and all(row.failure is None and row.transfer_seconds > 0 for row in card)
    assert any("Pretended" in sentence for sentence in found.findings + machine.findings)
    costs = [row.what for row in found.tables["costs"] if row.device == "cuda:0"]
    assert "launch of a kernel, waited for" in costs and "from the card" in costs


def test_record_and_load_it_elsewhere(on_a_card, tmp_path, monkeypatch):
    path = recording.save(on_a_card, tmp_path / "records")
    assert path.name == f"recorded-pretended-{on_a_card.date[:10]}.json"
    monkeypatch.setattr(recording, "folder", lambda: path.parent)
    (origin, shipped), *rest = recording.shipped()
    assert not rest and origin["card"] == "Pretended"
    assert {row.device for row in shipped.chapters["size"].rows} == {"cuda:0"}
    found = run("size", recorded=path)  # a run of its own choice, though a device was named
    assert {row.recorded for row in found.chapters["size"].recorded_rows} == set(found.recordings)
    assert found.recordings == {recording.label(origin): origin}
    here = Comparison(on_a_card.machine, on_a_card.date)
    here.chapters = {name: begin(name) for name in ("machine", "size", "batch")}
    recording.attach(here)
    assert here.chapters["size"].rows == [] and here.chapters["size"].recorded_rows
    assert {row.recorded for row in here.chapters["size"].recorded_rows} == set(here.recordings)
    assert here.chapters["batch"].notes == [
        f"No figures of a GPU: none were recorded for this chapter on {next(iter(here.recordings))}."
    ]


def test_nothing_to_record(comparison, tmp_path):
    with pytest.raises(ValueError, match="nothing was measured on a card"):
        recording.save(comparison, tmp_path)


# ---- what ships with minigrad -----------------------------------------------------------------------------


def test_shipped_figures_are_those_that_were_measured(repo_root):
    """Every time in the recorded run stands in the results of the card, and nothing else does."""
    benchmarks = repo_root / "benchmarks"
    if not (benchmarks / "results").exists():
        pytest.skip("the results of the card are not here")
    spec = importlib.util.spec_from_file_location("record", benchmarks / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    assert json.loads(record.TARGET.read_text()) == json.loads(json.dumps(record.make()))
    measured = set()
    for name in (record.SOURCE, record.SIZES):
        source = json.loads((benchmarks / "results" / name).read_text())["benchmark"]
        measured |= {t["median"] for row in source["rows"] for t in row.get("times", {}).values()}
    ((_, shipped),) = recording.shipped()
    entries = [row for c in shipped.chapters.values() for rows in c.tables.values() for row in rows]
    times = [row.seconds for row in entries if isinstance(row, rows.TimedRow | Record)]
    assert len(times) > 40 and set(times) <= measured


def test_shipped_rows_are_marked_and_apart(comparison):
    (label,) = comparison.recordings
    assert label == "NVIDIA H200, 2026-11-27, minigrad 0.1.0"
    assert comparison.recordings[label]["source"].startswith("benchmarks/gpu.sh")
    assert all(record.device == "cpu" and record.recorded is None for record in comparison)
    for name in ("machine", "ladder", "roofline", "size", "batch", "network", "precision"):
        assert {row.recorded for row in comparison.chapters[name].recorded_rows} == {label}
    assert comparison.chapters["simulator"].recorded == {}


# ---- loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}'])
def test_load_refuses_what_is_something_else(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: "):
        Comparison.load(path)


def test_load_refuses_a_newer_format(comparison, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**comparison.to_dict(), "format": 99}))
    with pytest.raises(ValueError, match="format 99 is newer"):
        Comparison.load(path)


def test_load_an_older_format(repo_root):
    path = repo_root / "benchmarks" / "results" / "2026-11-21-epyc-zen4-compare.json"
    if not path.exists():
        pytest.skip("the results are not here")
    found = Comparison.load(path)
    assert found.ladders == ["matmul", "conv2d", "pooling"] and found.chapters == {}
    assert "matmul on cpu" in found.table()


def test_own_kernels_of_an_installed_package(monkeypatch):
    def broken():
        raise ImportError("no module named nowhere")

    loaded = []
    points = [
        SimpleNamespace(value="good", load=lambda: loaded.append(1)),
        SimpleNamespace(value="nowhere", load=broken),
    ]
    monkeypatch.setattr(measure, "entry_points", lambda group: points if group == "minigrad.kernels" else [])
    found = run("machine")
    assert loaded == [1]
    assert found.notes == ["the kernels of nowhere could not be loaded: ImportError: no module named nowhere"]


# ---- findings, whatever the data --------------------------------------------------------------------------


def random_row(row_type, rng, device, recorded):
    """A row of plausible types and odd values."""
    texts = ("matmul", "naive", "tiled", "training step", "float32", "float64", "cpu", "kernel", "")
    values = {}
    for f in fields(row_type):
        kind = str(f.type)
        if "None" in kind and rng.random() < 0.3:
            values[f.name] = None
        elif "int" in kind and "float" not in kind:
            values[f.name] = int(rng.choice([0, 1, 2, 3, 128, 10**12]))
        elif "float" in kind:
            values[f.name] = float(rng.choice([1e-9, 0.5, 1.0, 1.0, 3.0, 1e15]))
        elif "bool" in kind:
            values[f.name] = bool(rng.integers(2))
        elif "tuple" in kind:
            values[f.name] = ()
        else:
            values[f.name] = str(rng.choice(texts))
    return row_type(**{**values, "device": device, "recorded": recorded})


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", CHAPTERS)
def test_findings_of_odd_data(name, seed, comparison):
    rng = np.random.default_rng([seed, list(CHAPTERS).index(name)])
    (label,) = comparison.recordings
    odd = Comparison(comparison.machine, comparison.date)
    odd.recordings = comparison.recordings
    chapter = odd.chapters[name] = begin(name)
    for table_name, row_type in CHAPTERS[name].TABLES.items():
        for where in ("cpu", "cuda:0"):
            chapter.tables[table_name] += [
                random_row(row_type, rng, where, None) for _ in range(rng.integers(0, 4))
            ]
        chapter.recorded[table_name] = [
            random_row(row_type, rng, "cuda:0", label) for _ in range(rng.integers(0, 4))
        ]
    odd += chapter.rows if name == "ladder" else []
    chapter.findings = CHAPTERS[name].findings(odd, chapter)
    for sentence in chapter.findings:
        assert sentence.endswith(".") and sentence.isascii()
        assert not {"None", "nan", "inf"} & set(sentence.replace("(", " ").replace(",", " ").split()), (
            sentence
        )
    assert table.render(odd, 100)


@pytest.mark.parametrize("name", CHAPTERS)
def test_findings_of_nothing(name, comparison):
    empty = Comparison(comparison.machine, comparison.date)
    assert CHAPTERS[name].findings(empty, begin(name)) == []


def sized(n, device, seconds, **more):
    work = {"operations": 2 * n**3, "bytes": 12 * n**2, "unit": "GFLOP/s", "size": f"{n}x{n}x{n}"}
    rate = 2 * n**3 / seconds
    return rows.SizePoint(op="matmul", n=n, device=device, seconds=seconds, rate=rate, **work, **more)


def size_findings(comparison, *points):
    chapter = begin("size")
    chapter.tables["points"] = list(points)
    return " ".join(size.findings(comparison, chapter))


def test_where_the_card_overtakes(comparison):
    cpu = [sized(n, "cpu", n**3 * 1e-9) for n in (10, 100, 1000)]
    card = [sized(n, "cuda:0", 1e-4 + n**3 * 1e-11, transfer_seconds=1e-3) for n in (10, 100, 1000)]
    found = size_findings(comparison, *cpu, *card)
    assert "is faster from 100x100x100 on; at 1000x1000x1000 it takes 10.1 ms, this processor 1 s" in found
    assert "including the copies to the card and back it is faster from 1000x1000x1000 on" in found
    slow = [replace(row, seconds=9.0) for row in card]
    assert "is not faster than this processor at the largest size they share" in size_findings(
        comparison, *cpu, *slow
    )
    far = [replace(row, transfer_seconds=9.0) for row in card]
    assert "it is never faster" in size_findings(comparison, *cpu, *far)
    # A card that wins at a small size only by chance, and loses at the largest, is not faster "from" there.
    chance = [replace(card[0], seconds=1e-9), *slow[1:]]
    assert "from 10x10x10 on" not in size_findings(comparison, *cpu, *chance)


def test_sizes_that_are_not_shared_are_not_compared(comparison):
    found = size_findings(comparison, sized(10, "cpu", 1.0), sized(20, "cuda:0", 1e-6))
    assert "faster" not in found
