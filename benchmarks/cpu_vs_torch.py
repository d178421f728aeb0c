"""minigrad and PyTorch eager side by side on the processor: ops, their gradients, whole training steps.

    python benchmarks/cpu_vs_torch.py                                  # every row, at 1 and at all threads
    python benchmarks/cpu_vs_torch.py --only 'convolution.*ResNet'     # the rows whose group and name match
    python benchmarks/cpu_vs_torch.py --save benchmarks/results/NAME   # also NAME.json, NAME.md, NAME.png
    python benchmarks/cpu_vs_torch.py --only 'training' --busy 2       # beside two programs that compute, too

Each library runs in a process of its own, for two pools of threads in one would disturb each other. The
processes take turns, sample by sample, so that both meet the same load; shown are the medians, and PyTorch's
over minigrad's: above 1 minigrad is quicker. The inputs are random, the same for both, and so must be the
results: a row whose results differ shows no time.

Where in memory a process has its arrays changes what bandwidth bounds by up to a fifth, for as long as it
lives. So the rows below 1, and the training steps, are measured again in other processes (``--again``), and
all samples of a row count alike.

The memory of a row is what the process grows by, from before its inputs are made to the highest point of its
first calls. Without PyTorch there is nothing to compare, and the script says so.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from suite_case import Case, Data
from suite_cases import cases

LIBRARIES = ("minigrad", "torch")
NAMES = {"minigrad": "minigrad", "torch": "PyTorch"}
TOLERANCE = 1e-3  # relative difference by norm: Winograd's algorithm and sums in another order stay below
WARM_UP = 0.1  # seconds
WAKING = 0.01  # seconds in which a library's threads start again after a pause
PAUSE = 0.04  # seconds before a sample, in which the threads of the other process stop spinning
RESULT_SIZE = 1 << 16  # elements of each result that are compared
FRESH = ("training step",)  # groups whose rows each start new processes


# ---- in the process of one library -------------------------------------------------------------------------


def work(library: str, threads: int, pipe: Any) -> None:
    """Serve the parent: build a row, take a sample of it, until there is no more."""
    lib = importlib.import_module(library)
    lib.set_num_threads(threads)
    rows = {(case.group, case.name): case for case in cases()}
    run = None
    while True:
        command, *arguments = pipe.recv()
        if command == "stop":
            return
        try:
            if command == "build":
                run = None
                run, answer = build(lib, rows[tuple(arguments)])
            else:
                time.sleep(PAUSE)
                answer = sample(run, *arguments)
        except Exception:
            answer = traceback.format_exc()
        pipe.send(answer)


def build(lib: Any, case: Case) -> tuple[Any, dict[str, Any]]:
    """The row's call, and what its first calls gave: results, bytes, seconds per call."""
    empty_caches(lib)
    before = resident()
    run = case.build(lib, Data(lib))
    result = run()
    results = [compared(r) for r in (result if isinstance(result, (list, tuple)) else [result])]
    del result
    start = time.perf_counter()
    for calls in itertools.count(1):  # noqa: B007
        run()
        if time.perf_counter() - start > WARM_UP:
            break
    seconds = sample(run, max(1, calls // 4))
    return run, {"results": results, "bytes": resident(peak=True) - before, "seconds": seconds}


def sample(run: Any, calls: int) -> float:
    """Seconds per call, once the threads are awake and each on a core of its own, which after a pause
    may take milliseconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < WAKING:
        run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def compared(result: Any) -> np.ndarray | None:
    """The elements of a result that are compared between the libraries."""
    if result is None:
        return None
    array = result.detach().numpy().ravel()
    return array[:: max(1, array.size // RESULT_SIZE)].astype(np.float64)


def empty_caches(lib: Any) -> None:
    """Give back what the library keeps for later, and let the peak of memory start from here."""
    if hasattr(lib, "memory"):
        lib.memory.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass  # not on this system


def resident(peak: bool = False) -> int:
    """The bytes of memory that this process has now, or had at most; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)[1]) * 1024


# ---- in the parent -----------------------------------------------------------------------------------------


class Workers:
    """A process for each library."""

    def __init__(self, libraries: list[str], threads: int):
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MINIGRAD_NUM_THREADS"):
            os.environ[variable] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for library in libraries:
            self.pipes[library], theirs = context.Pipe()
            process = context.Process(target=work, args=(library, threads, theirs), daemon=True)
            process.start()
            self.processes.append(process)

    def ask(self, library: str, *command: Any) -> Any:
        """What the library's process answers; RuntimeError if the row failed there."""
        self.pipes[library].send(command)
        answer = self.pipes[library].recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def stop(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(("stop",))
        for process in self.processes:
            process.join()


def measure(workers: Workers, case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """A row: for each library the seconds per call of all samples, and bytes; the difference."""
    built = {name: workers.ask(name, "build", case.group, case.name) for name in workers.pipes}
    row: dict[str, Any] = {"group": case.group, "name": case.name}
    if len(built) == 2 and not case.random:
        row["difference"] = difference(*(b["results"] for b in built.values()))
        if not row["difference"] < TOLERANCE:
            raise RuntimeError(f"the results differ by {row['difference']:.2g}")
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(rounds):
        for name, first in built.items():
            calls = max(1, round(seconds / max(first["seconds"], 1e-7)))
            times[name].append(workers.ask(name, "sample", calls))
    for name, values in times.items():
        row[name] = {"samples": values, "bytes": built[name]["bytes"]}
    return row


def evaluate(row: dict[str, Any], libraries: list[str]) -> None:
    """Add to the row what its samples say: median, least and largest time, and the ratio of medians."""
    for name in libraries:
        values = row[name]["samples"]
        row[name] |= {"median": statistics.median(values), "min": min(values), "max": max(values)}
    if len(libraries) == 2:
        row["ratio"] = row["torch"]["median"] / row["minigrad"]["median"]


def difference(ours: list, theirs: list) -> float:
    """The largest relative difference, by norm, of results that should be equal."""
    if len(ours) != len(theirs):
        return math.inf
    found = [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
            return math.inf
        if a is not None and a.size:
            found.append(norm(a - b) / max(norm(b), 1e-30))
    return float(np.max(found))  # NaN if there is one


def norm(x: np.ndarray) -> float:
    """The Euclidean norm, without NumPy's BLAS, whose threads would still spin during the first sample."""
    return math.sqrt(np.square(x).sum())


@contextlib.contextmanager
def busy(programs: int) -> Iterator[None]:
    """Inside it so many other processes want a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run_all(options: argparse.Namespace, libraries: list[str]) -> list[dict[str, Any]]:
    """Measure and print every row that is asked for, at each number of threads."""
    chosen = [case for case in cases() if re.search(options.only, f"{case.group}: {case.name}")]
    if not chosen:
        sys.exit(f"no row matches {options.only!r}")
    rows = []
    for threads in options.threads:
        print(f"\n{threads} thread{'s' if threads > 1 else ''}", flush=True)
        found = {(row["group"], row["name"]): row for row in run_once(options, libraries, threads, chosen)}
        doubtful = [case for case in chosen if is_doubtful(found[case.group, case.name])]
        for _ in range(options.again if doubtful else 0):
            print(f"\n{threads} thread{'s' if threads > 1 else ''}, in other processes", flush=True)
            for row in run_once(options, libraries, threads, doubtful):
                whole = found[row["group"], row["name"]]
                if "error" not in row:
                    for name in libraries:
                        whole[name]["samples"] += row[name]["samples"]
                    evaluate(whole, libraries)
        rows += [{"threads": threads, **row} for row in found.values()]
    return rows


def run_once(
    options: argparse.Namespace, libraries: list[str], threads: int, wanted: list[Case]
) -> Iterator[dict[str, Any]]:
    """Measure and print rows, those of a group in the same processes."""
    for group, members in itertools.groupby(wanted, key=lambda case: case.group):
        workers = Workers(libraries, threads)
        print(f"{group:58}" + "".join(f"{NAMES[name]:>12}" for name in libraries) + f"{'ratio':>8}")
        for case in members:
            if group in FRESH:
                workers.stop()
                workers = Workers(libraries, threads)
            try:
                row = measure(workers, case, options.rounds, options.seconds)
                evaluate(row, libraries)
            except RuntimeError as error:
                row = {"group": group, "name": case.name, "error": str(error)}
            print(line(row, libraries), flush=True)
            yield row
        workers.stop()


def is_doubtful(row: dict[str, Any]) -> bool:
    """Whether one pair of processes says too little about a row."""
    return "ratio" in row and (row["ratio"] < 1 or row["group"] in FRESH)


# ---- what is shown -----------------------------------------------------------------------------------------


def line(row: dict[str, Any], libraries: list[str]) -> str:
    """A row of the table as text."""
    name = f"  {row['name']:56}"
    if "error" in row:
        return f"{name}  failed: {row['error'].strip().splitlines()[-1]}"
    times = "".join(f"{duration(row[library]['median']):>12}" for library in libraries)
    return name + times + (f"{row['ratio']:8.2f}" if "ratio" in row else "") + memory(row)


def duration(seconds: float) -> str:
    """Seconds with their unit."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def memory(row: dict[str, Any]) -> str:
    """The memory of both libraries, for rows of some size."""
    if "ratio" not in row or row["torch"]["bytes"] < 1 << 24:
        return ""
    return "   " + " : ".join(f"{row[library]['bytes'] / 2**20:.0f}" for library in LIBRARIES) + " MiB"


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means for each group and over all, and the rows below 1, as a table in Markdown."""
    counts = sorted({row["threads"] for row in rows})
    groups = [*dict.fromkeys(row["group"] for row in rows)]
    lines = ["| geometric mean of ratios | " + " | ".join(f"{n} thread(s)" for n in counts) + " |"]
    lines.append("|---|" + "---:|" * len(counts))
    for group in [*groups, None]:
        cells = []
        for n in counts:
            mean = geometric_mean(rows, n, group)
            cells.append("" if mean is None else f"{mean:.2f}")
        lines.append(f"| {group or '**all rows**'} | " + " | ".join(cells) + " |")
    slow = sorted((row for row in rows if row.get("ratio", 1) < 1), key=lambda row: row["ratio"])
    lines += ["", f"Rows below 1: {len(slow)} of {len(rows)}."]
    lines += [
        f"- {row['ratio']:.2f}, {row['threads']} threads: {row['group']}, {row['name']}" for row in slow
    ]
    failed = [row for row in rows if "error" in row]
    lines += [f"- failed, {row['threads']} threads: {row['group']}, {row['name']}" for row in failed]
    return "\n".join(lines)


def geometric_mean(rows: list[dict[str, Any]], threads: int, group: str | None) -> float | None:
    """Of the ratios of one group, or of all."""
    ratios = [
        row["ratio"]
        for row in rows
        if row["threads"] == threads and "ratio" in row and group in (None, row["group"])
    ]
    return statistics.geometric_mean(ratios) if ratios else None


def table(rows: list[dict[str, Any]]) -> str:
    """All rows in Markdown, the thread counts side by side."""
    counts = sorted({row["threads"] for row in rows})
    by_name: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault((row["group"], row["name"]), {})[row["threads"]] = row
    head = "".join(f" minigrad, {n} | PyTorch, {n} | ratio, {n} |" for n in counts)
    lines = [
        f"| group | row |{head} MiB, minigrad : PyTorch |",
        "|---|---|" + "---:|" * (3 * len(counts) + 1),
    ]
    for (group, name), found in by_name.items():
        cells, bytes_ = [], ""
        for n in counts:
            row = found.get(n, {})
            if "ratio" in row:
                cells += [*(duration(row[library]["median"]) for library in LIBRARIES), f"{row['ratio']:.2f}"]
                bytes_ = memory(row).strip().removesuffix(" MiB")
            else:
                cells += ["", "", "failed" if "error" in row else ""]
        lines.append(f"| {group} | {name} | " + " | ".join(cells) + f" | {bytes_} |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """The ratios as points on a logarithmic axis, one line for each row, the groups apart."""
    from matplotlib.figure import Figure

    colours = dict(
        zip(sorted({row["threads"] for row in rows}), ("#0072B2", "#D55E00", "#009E73"), strict=False)
    )
    shown = [row for row in rows if "ratio" in row]
    names = list(dict.fromkeys((row["group"], row["name"]) for row in shown))
    places, place, group = {}, 0.0, None
    for name in names:
        place += 1.0 if name[0] == group else 1.8
        places[name], group = place, name[0]
    figure = Figure(figsize=(10, 0.17 * place + 1.6))
    axes = figure.add_axes((0.46, 0.6 / figure.get_figheight(), 0.51, 1 - 1.5 / figure.get_figheight()))
    for threads, colour in colours.items():
        points = [row for row in shown if row["threads"] == threads]
        axes.scatter(
            [row["ratio"] for row in points],
            [places[row["group"], row["name"]] for row in points],
            s=16,
            color=colour,
            label=f"{threads} thread{'s' if threads > 1 else ''}",
            zorder=3,
        )
    axes.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if t <= 2 * max(row["ratio"] for row in shown)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    axes.minorticks_off()
    axes.axvline(1, color="#1a1a1a", linewidth=1)
    axes.set_yticks(list(places.values()), [f"{group}: {name}" for group, name in places], fontsize=6.5)
    axes.set_ylim(place + 1, 0.8)
    axes.grid(axis="x", color="#e4e4e4")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("PyTorch's time over minigrad's: to the right of 1, minigrad is quicker")
    axes.legend(loc="lower right", frameon=False)
    figure.text(0.02, 1 - 0.35 / figure.get_figheight(), title, size=12, weight="bold")
    figure.savefig(path, dpi=110, facecolor="white")


def environment(libraries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The machine, the libraries and the way of measuring."""
    from minigrad.compare import machine

    engine = importlib.util.find_spec("minigrad.autograd").origin
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": machine.describe(),
        "versions": versions,
        "engine": "plain Python" if engine.endswith(".py") else "compiled",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "again": options.again,
        "busy": options.busy,
    }


def save(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the JSON, the table and, where matplotlib is, the picture."""
    path.with_suffix(".json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    computer, versions = facts["machine"], facts["versions"]
    title = (
        f"{computer['processor']}, {computer['cores']} cores, {computer['isa']}; "
        f"PyTorch {versions.get('torch', 'missing')}, "
        f"minigrad {facts['commit']} ({facts['engine']} engine), {facts['date']}"
        + (f", beside {facts['busy']} busy programs" if facts["busy"] else "")
    )
    text = f"# minigrad and PyTorch on the processor\n\n{title}\n\n{summary(rows)}\n\n{table(rows)}\n"
    path.with_suffix(".md").write_text(text)
    if importlib.util.find_spec("matplotlib") and any("ratio" in row for row in rows):
        picture(rows, title, path.with_suffix(".png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    all_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--only", default="", help="a regular expression for 'group: name' of the rows wanted"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, all_threads}))
    parser.add_argument(
        "--rounds", type=int, default=7, help="samples of each library (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.03, help="of a sample (default: %(default)s)")
    parser.add_argument(
        "--again",
        type=int,
        default=2,
        help="more processes for the rows below 1 and the training steps (default: %(default)s)",
    )
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="run beside N programs that want a core each"
    )
    parser.add_argument("--save", type=Path, help="write PATH.json, PATH.md and PATH.png")
    options = parser.parse_args()
    libraries = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    if "torch" not in libraries:
        print("PyTorch is not installed (pip install torch): minigrad's times stand alone.")
    with busy(options.busy):
        rows = run_all(options, libraries)
    if len(libraries) == 2:
        print(f"\n{summary(rows)}")
    if options.save:
        save(options.save, rows, environment(libraries, options))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
