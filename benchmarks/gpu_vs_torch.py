"""minigrad and PyTorch eager side by side on one card: every row with its share of what the card can do.

    python benchmarks/gpu_vs_torch.py                          # on a card, about two minutes
    python benchmarks/gpu_vs_torch.py --device sim --quick     # the same code at tiny sizes, with no card

First come the card's own rates, of copying and of multiplying matrices, and the overhead of a launch; then
training steps, plain and captured; then the rows that are measured on the processor too (``suite_cases.py``:
results are compared between the libraries before anything is timed), as most of these are quick; then a row
for each op and rung (``gpu_cases.py``: results are checked against float64, PyTorch's as well as ours).

Both libraries run in this one process: they share the card's stream and clock, keep no threads that would
disturb each other, and take turns, sample by sample. All is strict float32, with PyTorch's TF32 switches off,
but for the rows that name another format; their ceiling is the matrix rate in that format.
Times come from CUDA events around several calls, after a warm-up; shown is the median of the samples. The
calls go around sets of random inputs that together exceed the L2 cache. Where the processor cannot hand out
work as fast as the card does it, the time is that of handing it out, as it is for users. So there is a second
pair of times, of the card alone: it is kept busy until all calls of a sample wait in its queue. Shares of the
ceiling are of these.

A row that loses the CUDA context, or does not end, takes the process with it: the exit status is then 3, and
with --resume a new process goes on without that row (``gpu.sh`` does so). The same goes on where the time was
over: two short runs measure all rows. Most of the time of a first run goes into compiling kernels; with
--compile all cores do that beforehand.

Times on the simulator say nothing about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_suite
import numpy as np
from gpu_bench import Bench, around, finish, relative_error
from gpu_case import Case, noted, references
from gpu_cases import cases, mnist_cnn, mnist_cost, trainer

import minigrad as mg
from minigrad.compare import machine
from minigrad.compare.peaks import card_arithmetic
from minigrad.dtypes import BFLOAT16
from minigrad.kernels.launch import CudaKernel

# Relative errors by norm: strict float32 stays far below its own, TF32 is above.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 5e-3, "autocast": 1e-2}

ROW_SECONDS = 60  # the longest that a row may take, with all that it compiles
TAKEN_DOWN = 3  # the exit status where a row took the process with it

EMPTY = "__global__ void empty(float* out, int n) { if (n > 0 && threadIdx.x == 0) out[0] = n; }"


# ---- the card itself ---------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> dict[str, float]:
    """The device's own rates: bytes per second of a copy, operations per second of a matrix product."""
    xp, n = bench.xp, 64 if bench.quick else 8192
    rates = {"copy": copy_rate(bench)}
    a, b = bench.normal((n, n)), bench.normal((n, n))
    out = xp.empty_like(a)
    rates["matrix"] = 2.0 * n**3 / bench.one(lambda: xp.matmul(a, b, out=out))
    if bench.torch:
        rates["matrix"] = max(rates["matrix"], torch_matrix_rate(bench, a, b))
    if bench.on_card:
        rates["multiply_adds"] = max(card_arithmetic(bench.device, 3))
    return rates | tensor_core_rates(bench, a, b)


def tensor_core_rates(bench: Bench, a: Any, b: Any) -> dict[str, float]:
    """The rates in 16 bits and in TF32, the better of minigrad's and PyTorch's; what fails is left out."""
    rates = {}
    for name, dtype in (("matrix_bf16", "bfloat16" if BFLOAT16 else "float16"), ("matrix_tf32", "float32")):
        with precision(bench, tf32=dtype == "float32"):
            ours = [mg.tensor(x, device=bench.device).to(dtype) for x in (a, b)]
            runs = [lambda ours=ours: 2.0 * len(a) ** 3 / bench.one(lambda: ours[0] @ ours[1])]
            if bench.torch:
                own = getattr(bench.torch, dtype)
                runs.append(lambda own=own: torch_matrix_rate(bench, a, b, own))
            for run in runs:
                try:
                    rates[name] = max(rates.get(name, 0.0), run())
                except Exception as error:
                    print(f"{name} was not measured by both: {type(error).__name__}: {error}")
    return rates


def copy_rate(bench: Bench) -> float:
    """Bytes read and written per second when a long array is copied, by the better of the libraries."""
    source = bench.normal((1 << 12 if bench.quick else 1 << 28,))
    target = bench.xp.empty_like(source)
    runs = {"array library": lambda: bench.xp.copyto(target, source)}
    if bench.torch:
        ours, theirs = bench.to_torch(source), bench.to_torch(target)
        runs["torch"] = lambda: theirs.copy_(ours)
    return 2 * source.nbytes / min(times["median"] for times in bench.alternate(runs).values())


def torch_matrix_rate(bench: Bench, a: Any, b: Any, dtype: Any = None) -> float:
    """Operations per second of PyTorch's product of two square matrices."""
    a, b = (bench.to_torch(x).to(dtype) for x in (a, b))
    out = bench.torch.empty_like(a)
    return 2.0 * len(a) ** 3 / bench.one(lambda: bench.torch.matmul(a, b, out=out))


def overheads(bench: Bench) -> dict[str, float]:
    """Microseconds of a launch that does next to nothing, and of tiny ops, one after another."""
    out = bench.xp.zeros(4, np.float32)
    kernel, count = CudaKernel(EMPTY, "empty"), np.int32(1)
    x = mg.tensor(out, device=bench.device)
    matrix = mg.tensor(bench.normal((4, 4)), device=bench.device)
    runs = {
        "CudaKernel.launch": lambda: kernel.launch(1, 32, (out, 1)),
        "minigrad x + x": lambda: x + x,
        "minigrad 4x4 @ 4x4": lambda: matrix @ matrix,
    }
    if bench.on_card:
        raw = bench.xp.RawKernel('extern "C" ' + EMPTY, "empty")
        runs["CuPy RawKernel"] = lambda: raw((1,), (32,), (out, count))
    if bench.torch:
        y, theirs = bench.to_torch(out), bench.to_torch(bench.array(matrix))
        runs["PyTorch x + x"] = lambda: y + y
        runs["PyTorch 4x4 @ 4x4"] = lambda: theirs @ theirs
    return {name: bench.one(run) * 1e6 for name, run in runs.items()}


# ---- a row -------------------------------------------------------------------------------------------------


def row(bench: Bench, case: Case) -> dict[str, Any]:
    """Check ``case`` against float64, time it in both libraries, and set it against the floor."""
    with set_up(bench, case):
        result, runs = checked(bench, case)
        return result if "failure" in result else finish(bench, result, runs)


def checked(bench: Bench, case: Case) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """What is known of ``case`` before it is timed, its errors against float64 among it, and each library's
    call."""
    result = {"name": case.name, "size": case.size, "operations": case.operations, "bytes": case.bytes}
    dtype = case.format if "16" in case.format else "float32"
    # Roundings to 16 bits are so large that they may add up; of float32 nothing more is allowed.
    result |= {"format": case.format, "steps": case.steps if "16" in dtype else 1}
    nbytes = (2 if "16" in dtype else 4) * sum(map(np.prod, case.shapes))
    sets = int(min(16, max(2, -(-2 * bench.cache_bytes // nbytes))))
    bench.seed(f"{case.name} {case.size}")  # the same numbers whatever rows come before
    arrays = [[bench.normal(shape) for shape in case.shapes] for _ in range(sets)]
    ours = [[mg.tensor(a, device=bench.device).to(dtype) for a in group] for group in arrays]
    with noted() as notes:
        found = bench.array(case.ours(*ours[0]).float())
    result["kernels"] = notes.kernels
    if failure := notes.failure(case):
        return result | {"failure": failure}, {}
    exact = reference(bench, case, [mg.tensor(a, device=bench.device).to(dtype) for a in arrays[0]])
    result["error"] = relative_error(bench.xp, found, exact)
    runs = {"minigrad": around(case.ours, ours)}
    if bench.torch:
        theirs = [[bench.to_torch(a).to(getattr(bench.torch, dtype)) for a in group] for group in arrays]
        if not case.random:
            other = bench.array(case.theirs(bench.torch, *theirs[0]).float())
            result["torch_error"] = relative_error(bench.xp, other, exact)
        runs["torch"] = around(lambda *tensors: case.theirs(bench.torch, *tensors), theirs)
    torch_steps = max(result["steps"], case.torch_steps if "16" in dtype else 1)
    allowed = {"error": result["steps"], "torch_error": torch_steps}
    if not all(
        result[key] < TOLERANCES[case.format] * steps**0.5 for key, steps in allowed.items() if key in result
    ):
        result["failure"] = "the result is wrong, or the two libraries compute different things"
    return result, runs


@contextlib.contextmanager
def set_up(bench: Bench, case: Case) -> Iterator[None]:
    """A context in which the rung that ``case`` names runs, in its precision."""
    rung = mg.use_kernel(case.ops[0], case.rung, bench.device.type) if case.rung else contextlib.nullcontext()
    with rung, precision(bench, tf32=case.format == "tf32"):
        yield


@contextlib.contextmanager
def precision(bench: Bench, tf32: bool) -> Iterator[None]:
    """A context in which both libraries may round float32 factors to TF32, or may not."""
    before = mg.get_float32_matmul_precision()
    mg.set_float32_matmul_precision("high" if tf32 else before)
    if bench.torch:
        bench.torch.backends.cuda.matmul.allow_tf32 = bench.torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        mg.set_float32_matmul_precision(before)
        if bench.torch:
            bench.torch.backends.cuda.matmul.allow_tf32 = bench.torch.backends.cudnn.allow_tf32 = False


def reference(bench: Bench, case: Case, inputs: list[Any]) -> Any:
    """The result in float64, by the ops' references."""
    with references(bench.device.type):
        return bench.array(case.ours(*(x.to(mg.float64) for x in inputs)))


# ---- a training step ---------------------------------------------------------------------------------------


PLAIN, CAPTURED = "MNIST CNN, training step", "MNIST CNN, captured training step"
AUTOCAST, AUTOCAST_CAPTURED = f"{PLAIN}, autocast", f"{CAPTURED}, autocast"


def mnist_size(bench: Bench) -> tuple[int, int, int]:
    """(batch, height and width, channels of the first layer)."""
    return (4, 8, 2) if bench.quick else (128, 28, 32)


def training_step(bench: Bench, name: str) -> dict[str, Any]:
    """A step of the MNIST CNN with Adam: ours plain or, if ``name`` says so, captured; PyTorch's is eager.

    With ``autocast`` in the name, both find the loss under it, in bfloat16. Checked: the losses of three
    steps, against float64 on the CPU.
    """
    autocast = name in (AUTOCAST, AUTOCAST_CAPTURED)
    batch, size, channels = mnist_size(bench)
    operations, moved = mnist_cost(batch, size, channels)
    result = {"name": name, "size": f"batch {batch}", "format": "autocast" if autocast else "float32"}
    result |= {"operations": operations, "bytes": moved}
    images = mg.device("cpu").from_numpy(np.random.default_rng(0).standard_normal((batch, 1, size, size)))
    labels = np.random.default_rng(1).integers(0, 10, batch)
    mg.manual_seed(0)
    start = {name: value.numpy() for name, value in mnist_cnn(mg, size, channels).state_dict().items()}

    def prepared(dtype: Any, device: Any) -> tuple[Callable[[Any, Any], Any], Any, Any]:
        model = mnist_cnn(mg, size, channels).to(dtype)
        model.load_state_dict({name: mg.tensor(value, dtype) for name, value in start.items()})
        inputs = mg.tensor(images, dtype, device=device), mg.tensor(labels, device=device)
        rounds = autocast and dtype == mg.float32
        context = functools.partial(mg.autocast, bench.device.type, "bfloat16", enabled=rounds)
        return trainer(mg, model.to(device), context), *inputs

    exact, *inputs = prepared(mg.float64, "cpu")
    expected = np.array([exact(*inputs).item() for _ in range(3)])
    step, *ours = prepared(mg.float32, bench.device)
    if name in (CAPTURED, AUTOCAST_CAPTURED):
        step = mg.capture(step, warmup=1)
    with noted() as notes:
        result["error"] = float(np.abs([step(*ours).item() for _ in range(3)] / expected - 1).max())
    result["kernels"] = notes.kernels
    runs = {"minigrad": lambda: step(*ours)}
    if bench.torch:
        torch = bench.torch
        where = f"cuda:{bench.device.index}" if bench.on_card else "cpu"
        model = mnist_cnn(torch, size, channels)
        model.load_state_dict({name: torch.tensor(value) for name, value in start.items()})
        context = functools.partial(torch.autocast, torch.device(where).type, torch.bfloat16, autocast)
        their_step = trainer(torch, model.to(where), context)
        theirs = torch.tensor(images, dtype=torch.float32, device=where), torch.tensor(labels, device=where)
        losses = [their_step(*theirs).item() for _ in range(3)]
        result["torch_error"] = float(np.abs(losses / expected - 1).max())
        runs["torch"] = lambda: their_step(*theirs)
    if not all(result.get(key, 0.0) < (2e-2 if autocast else 1e-3) for key in ("error", "torch_error")):
        result["failure"] = "the losses are wrong"
        return result
    return finish(bench, result, runs)


# ---- the run -----------------------------------------------------------------------------------------------


def describe(bench: Bench) -> dict[str, Any]:
    """When, where and with what: plain values for JSON."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": str(bench.device),
        "speed_claim": bench.on_card,
        "machine": machine.describe(),
        "torch": bench.torch.__version__ if bench.torch else None,
        "card": None,
    }
    if not bench.on_card:
        return about
    found, runtime = bench._properties(), bench.xp.cuda.runtime
    about["card"] = {
        "name": machine.card_name(str(bench.device)),
        "compute_capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory_bytes": found["totalGlobalMem"],
        "l2_bytes": found["l2CacheSize"],
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
    }
    return about


def commit() -> str | None:
    """The commit of this checkout, or what MINIGRAD_COMMIT says where there is no git; None if unknown."""
    here = str(Path(__file__).resolve().parent)
    return os.environ.get("MINIGRAD_COMMIT") or first_line("git", "-C", here, "rev-parse", "HEAD")


def first_line(*command: str) -> str | None:
    """The first line that ``command`` prints, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [None])[0]


Row = tuple[str, str, Callable[[], dict[str, Any]]]

"""(name, size, function that measures)"""


def rows(bench: Bench, only: str) -> list[Row]:
    """All rows in whose name and size ``only``, a regular expression, is found."""
    steps = (PLAIN, CAPTURED, *((AUTOCAST, AUTOCAST_CAPTURED) if BFLOAT16 else ()))
    batch = f"batch {mnist_size(bench)[0]}"
    found = [(name, batch, functools.partial(training_step, bench, name)) for name in steps]
    suite = [(name, "", run) for name, run in gpu_suite.rows(bench)]
    found += sorted(suite, key=lambda one: "training step" not in one[0])
    for case in cases(bench.quick, bench.device.type):
        found.append((case.name, case.size, functools.partial(row, bench, case)))
    return [(name, size, run) for name, size, run in found if re.search(only, f"{name} {size}")]


def place(found: dict[str, Any]) -> tuple[str, str]:
    """The name and the size of a row of a record, by which it is known again."""
    return found["name"], found["size"]


def remaining(todo: list[Row], told: list[dict[str, Any]], after: list[Path]) -> list[Row]:
    """The rows of ``todo`` that are not among those ``told``; last, those that a record of ``after`` has."""
    done, known = {place(found) for found in told}, set()
    for path in after:
        record = json.loads(path.read_text())
        known |= {place(found) for found in (record.get("benchmark") or record)["rows"] if "times" in found}
    return sorted((one for one in todo if one[:2] not in done), key=lambda one: one[:2] in known)


def measured(
    bench: Bench, todo: list[Row], begins: Callable[[str, str], None] = lambda name, size: None
) -> Iterator[dict[str, Any]]:
    """Every row of ``todo``; ``begins(name, size)`` is called before each.

    A row that fails says why; those after the time is over, or after an interrupt, are left out, and named.
    One that takes this process with it is the last.
    """
    gc.collect()
    gc.freeze()  # what is there already need not be looked through after each row
    for name, size, run in todo:
        began = time.monotonic()
        if began > bench.stop:
            yield {"name": name, "size": size, "skipped": "the time was over"}
            continue
        try:
            begins(name, size)
            with at_most(ROW_SECONDS, f"{name} {size}") if bench.on_card else contextlib.nullcontext():
                found = run()
        except KeyboardInterrupt:  # as `timeout` of gpu.sh sends it
            bench.stop = began
            yield {"name": name, "size": size, "skipped": "the time was over"}
            continue
        except Exception as error:  # whatever goes wrong in one row, the others are still of use
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            found = {"name": name, "size": size, "failure": told}
            if bench.has_lost_the_card():
                yield found | {"lost": True}
                return
        yield found | {"seconds": round(time.monotonic() - began, 2)}
        gc.collect()  # arrays in cycles: rows of gigabytes come one after another
        if bench.on_card:
            bench.xp.get_default_memory_pool().free_all_blocks()
            if bench.torch:
                bench.torch.cuda.empty_cache()


def compile_share(bench: Bench, todo: list[Row]) -> None:
    """Call every one of our rows of ``todo`` once, whatever comes of it."""
    bench.rates = {"copy": 1.0, "matrix": 1.0}
    for _ in measured(bench, todo):
        pass


def compile_all() -> int:
    """Compile the kernels of the rows in as many processes as there are cores; 1 if one of these failed."""
    shares = os.cpu_count() or 1
    command = [sys.executable, __file__, *sys.argv[1:]]
    workers = [subprocess.Popen([*command, "--share", str(n), str(shares)]) for n in range(shares)]
    statuses = [worker.wait() for worker in workers]
    return int(any(statuses))


@contextlib.contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """A context that ends the process if it takes longer: nothing else ends a kernel that runs on and on."""

    def end() -> None:
        print(f"{what}: not done after {seconds} seconds", flush=True)
        os._exit(TAKEN_DOWN)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def label(name: str, size: str) -> str:
    """What a line of the table begins with."""
    return f"{name:32} {size}"[:61].rstrip()


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    text = label(found["name"], found["size"]).ljust(61)
    if "times" not in found:
        return f"{text} {found.get('failure') or found['skipped']}"
    cells = []
    for times, ratio in (("times", "ratio"), ("card_times", "card_ratio")):
        for side in ("minigrad", "torch"):
            cells.append(f"{found[times][side]['median'] * 1e6:.1f}" if side in found[times] else "-")
        cells.append(f"{found[ratio]:.2f}" if ratio in found else "-")
    cells += [f"{found[key]:.1%}" if key in found else "-" for key in ("share", "torch_share")]
    return (
        text + "".join(f"{cell:>10}" for cell in cells) + f"  {found.get('bound', '-'):7}{found['error']:.0e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ... or sim")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two samples")
    parser.add_argument(
        "--seconds", type=float, default=150, help="start no row after (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file, anew after every row")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the rows that the file does not have yet"
    )
    parser.add_argument(
        "--after",
        type=Path,
        nargs="*",
        default=[],
        metavar="RECORD",
        help="measure the rows last that this JSON has times for",
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="rows in whose name and size it is found")
    parser.add_argument(
        "--compile", action="store_true", help="measure nothing, but compile all kernels, on all cores"
    )
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)  # of a process of --compile
    options = parser.parse_args()
    try:
        bench = Bench(options.device, options.quick, options.seconds, options.compile)
    except mg.errors.DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    if not bench.on_card and not options.quick:
        parser.error("without a card only the --quick form makes sense")

    if options.compile and not options.share:
        return compile_all()
    resumed = options.resume and options.json and options.json.exists()
    result: dict[str, Any] = json.loads(options.json.read_text()) if resumed else describe(bench)
    told = [row for row in result.get("rows", ()) if "skipped" not in row]
    with bench.device.active():
        todo = remaining(rows(bench, options.only), told, options.after)
        if options.compile:
            first, shares = options.share
            compile_share(bench, todo[first::shares])
            return 0
        if resumed:
            bench.rates = result["ceilings"]
        else:
            result["ceilings"] = bench.rates = ceilings(bench)
            result["launch_microseconds"] = overheads(bench)
        return measure(bench, todo, result | {"rows": told}, options.json)


def measure(bench: Bench, todo: list[Row], result: dict[str, Any], path: Path | None) -> int:
    """Add the rows of ``todo`` to ``result``, and to the file; the exit status.

    The file names the row that is being measured, as ``running``: a process that goes on knows in which one
    ended.
    """
    header(bench, result)
    of_commit = {} if commit() == result["commit"] else {"commit": commit()}

    def tell(found: dict[str, Any]) -> None:
        print(line(found), flush=True)
        result["rows"].append(found | of_commit)

    def begins(name: str, size: str) -> None:
        if path:
            save(result | {"running": [name, size]}, path)

    if ended := result.pop("running", None):
        tell(dict(zip(("name", "size"), ended, strict=True)) | {"failure": "the process ended in this row"})
        todo = [row for row in todo if list(row[:2]) != ended]
    for found in measured(bench, todo, begins):
        tell(found)
    if path:
        save(result, path)
    if any(row.get("lost") for row in result["rows"][-1:]):
        sys.stdout.flush()
        os._exit(TAKEN_DOWN)  # without a card nothing can be given back
    return 1 if any("failure" in found for found in result["rows"]) else 0


def header(bench: Bench, result: dict[str, Any]) -> None:
    """Print what comes before the rows."""
    if bench.on_card:
        print(f"{result['card']['name']}, {result['date']}, commit {result['commit']}")
    else:
        print("On the simulator: this shows that the benchmark runs; its times say nothing about speed.")
    if not bench.torch:
        print("PyTorch is not installed (or finds no card): minigrad's times stand alone.")
    for name, rate in bench.rates.items():
        scale, unit = (1e9, "GB/s") if name == "copy" else (1e12, "TFLOP/s")
        print(f"{name:24}{rate / scale:12.4g} {unit}")
    for name, cost in result["launch_microseconds"].items():
        print(f"{name:24}{cost:12.2f} microseconds")
    columns = (*("minigrad", "PyTorch", "ratio", "card", "PyTorch", "ratio"), "share", "PyTorch")
    print(f"{'microseconds':61}{''.join(f'{name:>10}' for name in columns)}  bound  error")


def save(result: dict[str, Any], path: Path) -> None:
    """Write the file in one move, so that whoever reads it never finds half of it."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
