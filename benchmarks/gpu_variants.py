"""Kernels of minigrad beside variants of themselves on one card: does a change pay?

    python benchmarks/gpu_variants.py                       # every question below, some five minutes
    python benchmarks/gpu_variants.py --only 'batch norm'   # the questions in which this is found
    python benchmarks/gpu_variants.py --device sim --quick  # the same code at tiny sizes, with no card
    python benchmarks/gpu_variants.py --edit kernels/cuda/gemv.cu 'AT_ONCE = 4' 'AT_ONCE = 8' --rows gemv

A variant is the package with a line or two written otherwise, in a copy that is thrown away. It runs in a
process of its own, as the package itself does. First all compile their kernels, on all cores; then those of a
question take turns, sample by sample. A row is one of ``gpu_vs_torch.py``, checked against float64 by each of
them before it is timed. Shown are the times of the card alone for what is there now, and these over each
variant's: above 1 the variant is faster.

The questions are constants that were found by counting, or on another card than yours. ``--edit FILE OLD
NEW``, as often as need be, asks another one: FILE is told from the root of the repository, and OLD stands
there once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_bench import Bench
from gpu_case import Case
from gpu_cases import cases
from gpu_layers import norms
from gpu_vs_torch import ROW_SECONDS, at_most, checked, set_up

import minigrad as mg

Edit = tuple[str, str, str]

"""(file from the repository's root, what stands there once, what takes its place)"""

NOW = "now"  # the variant that is the package as it is
PACKAGE, KERNELS = Path(mg.__file__).parent, Path(mg.kernels.__file__).parent


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked: of which rows, and what else could stand where.

    Attributes:
        name: what the lines are about.
        rows: a regular expression: of all rows, those in whose name and size it is found.
        variants: by a short name, the edits that make each.
    """

    name: str
    rows: str
    variants: dict[str, tuple[Edit, ...]]


def instead(path: str, line: str, now: str, *others: str, of: str = "") -> dict[str, tuple[Edit, ...]]:
    """Variants that have one of ``others`` where ``line`` has ``now``, called so, behind ``of``."""
    return {of + other: ((path, line % now, line % other),) for other in others}


PRODUCTS, BATCH_NORM = "kernels/cuda/matmul_tensor_core", "kernels/cuda/batch_norm_cluster"
WGMMA = "kernels/cuda/matmul_wgmma"
PERSISTENT = (f"{BATCH_NORM}.py", "PERSISTENT = False", "PERSISTENT = True")
WITH_512_THREADS = (
    (f"{BATCH_NORM}.cu", "BLOCK_THREADS = 256", "BLOCK_THREADS = 512"),
    (f"{BATCH_NORM}.py", "THREADS = 256", "THREADS = 512"),
)
MANY_TILES = r"^matmul \w+, tensor_core (72x72|4096|8192)x"
FEW_TILES = r"^matmul bfloat16, tensor_core (64|72x136|72x264|512|1024|128|768)"
SKINNY, FEW_ROWS = "kernels/cuda/matmul_skinny", r"^matmul( bfloat16)?, skinny "
CONVOLUTIONS, STRIPS = "kernels/cuda/conv2d_tensor_core.cu", "kernels/cuda/conv2d_strips.py"
QUESTIONS = [
    Question(
        "mma.sync, product: how much faster (1.1) tiles of 256 x 192 are than those of 256 x 128",
        MANY_TILES,
        instead(f"{PRODUCTS}.py", "WIDE_RATE = %s ", "1.1", "0.1", "9"),
    ),
    Question(
        "mma.sync, product: bytes of shared memory, at a multiple of which tiles begin (128)",
        MANY_TILES,
        instead(f"{PRODUCTS}.cu", "__align__(%s) uint4 tiles", "128", "16"),
    ),
    Question(
        "mma.sync, product: the half of a step that begins copies, where a warp makes 64 x 64 (1)",
        MANY_TILES,
        instead("kernels/cuda/tensor_core_tiles.cuh", "COPYING = %s;", "AHEAD == GROUPS", "0"),
    ),
    Question(
        "mma.sync, product: bytes that the L2 cache asks memory for, for a copy of 16 (128)",
        MANY_TILES,
        instead("kernels/cuda/async_copy.cuh", "L2::%sB ", "128", "64", "256"),
    ),
    Question(
        "mma.sync, product: pairs of tiles on their way to a block, at least (3)",
        MANY_TILES,
        {
            "4": (
                (f"{PRODUCTS}.cu", "FEWEST_PAIRS = 3;", "FEWEST_PAIRS = 4;"),
                (f"{PRODUCTS}.py", "STAGES = 16, 4, 3", "STAGES = 16, 4, 4"),
            )
        },
    ),
    Question(
        "mma.sync, product in TF32: the largest tile (256 x 128)",
        r"^matmul tf32, tensor_core (72x72|4096|8192)x",
        {"256 x 192": ((f"{PRODUCTS}.py", 'LARGE if element == "float" or ', "LARGE if "),)},
    ),
    Question(
        "mma.sync, product of few tiles: KB of tiles on their way to a block (48)",
        FEW_TILES,
        {
            size: (
                (f"{PRODUCTS}.cu", "RING = 48 * 1024", f"RING = {size} * 1024"),
                (f"{PRODUCTS}.py", "RING_BYTES = 48 * 1024", f"RING_BYTES = {size} * 1024"),
            )
            for size in ("64", "96")
        },
    ),
    Question(
        "mma.sync, product of few tiles: microseconds of a step of 64 x 128 (0.18)",
        FEW_TILES,
        instead(f"{PRODUCTS}.py", "HALF: %s,", "0.18", "0.26", "9"),
    ),
    Question(
        "mma.sync, product of few tiles: microseconds that adding up the parts of K takes besides (5)",
        FEW_TILES,
        instead("kernels/cuda/matmul_parts.py", "SECOND_PASS_RATE = %s,", "5.0", "2.5", "1e9"),
    ),
    Question(
        "wgmma, product of few tiles: columns of a tile (64, 128, 256), and parts of K",
        FEW_TILES.replace("tensor_core", "wgmma"),
        instead(f"{WGMMA}.py", "COLUMNS = (%s)", "64, 128, 256", "256,", "128, 256")
        | instead(f"{WGMMA}.py", "PART_STEPS = %s ", "8", "10**9", of="parts of steps: "),
    ),
    Question(
        "product of few rows: steps on their way to a warp (2, of floats with up to 8 rows 4)",
        FEW_ROWS,
        instead(f"{SKINNY}.cu", "VECTORS > 8 ? %s;", "2 : 4", "1 : 2", "3 : 3"),
    ),
    Question(
        "product of few rows: warps of a block (16, of floats 8)",
        FEW_ROWS,
        {
            "8, 4": (
                (f"{SKINNY}.cu", "ON_TENSOR_CORES<T> ? 16 : 8;", "ON_TENSOR_CORES<T> ? 8 : 4;"),
                (f"{SKINNY}.py", "WARPS_OF_FLOATS, WARPS = 8, 16", "WARPS_OF_FLOATS, WARPS = 4, 8"),
            )
        },
    ),
    Question(
        "wgmma, convolution of few tiles: columns of tiles that may have parts of K (128)",
        r"^conv2d (forward|input gradient) bfloat16, (channels last, )?wgmma (2|8)x",
        instead("kernels/cuda/conv2d_wgmma.py", "MOST_IN_PARTS = %s ", "128", "64", "0"),
    ),
    Question(
        "mma.sync, convolution: pixels on their way to shared memory stay in L1, too (true)",
        r"^conv2d (forward|input gradient) bfloat16, channels last, tensor_core",
        instead(CONVOLUTIONS, "copies.copy<CHUNK_BYTES, %s>(&b_tile", "true", "false"),
    ),
    Question(
        "mma.sync, convolution: blocks with tiles of 32 rows that a multiprocessor has room for (4)",
        r"^conv2d (forward|input gradient) bfloat16, .*tensor_core .* groups",
        instead(CONVOLUTIONS, "TILE_M == 64 ? 3 : %s;", "4", "3", "5"),
    ),
    Question(
        "batch norm by clusters: a cluster for each channel, of blocks of 256 threads",
        r"^(small planes: )?batch norm(, forward \+ backward)?(, bfloat16)? \d",
        {
            "512 threads": WITH_512_THREADS,
            "persistent": (PERSISTENT,),
            "both": (PERSISTENT, *WITH_512_THREADS),
        },
    ),
    Question(
        "depthwise convolution: rows that a thread makes of a strip as wide as a vector (7, gradients 2)",
        r"^conv2d .*, strips(, bfloat16)? .* (128|4) groups",
        instead(STRIPS, '"forward": %s, "input_grad": 2,', "7", "4", "14")
        | instead(STRIPS, '"input_grad": %s, "weight_grad": 2}', "2", "4", of="input's ")
        | instead(STRIPS, '"input_grad": 2, "weight_grad": %s}', "2", "4", of="weight's "),
    ),
    Question(
        "depthwise convolution, weight's gradient: blocks (1024)",
        r"^conv2d weight gradient, strips(, bfloat16)? .* (128|4) groups",
        instead(STRIPS, "min(%s // max(", "ENOUGH_BLOCKS", "528", "2048"),
    ),
    Question(
        "pooling of channels last: rows that a thread makes of the gradient (4)",
        r"^(max|avg) pooling, forward \+ backward, channels_last",
        instead("kernels/cuda/pool2d_channels_last.py", "ROWS = %s ", "4", "1", "8"),
    ),
    Question(
        "pooling: rows that a thread makes of the gradient by four neighbours (4)",
        r"^(max|avg) pooling, forward \+ backward, rows",
        instead("kernels/cuda/pool2d_rows.py", "ROWS = %s ", "4", "1", "8"),
    ),
    Question(
        "attention: blocks with the most keys come first",
        r"^attention.*(causal|1024|9x8)",
        {
            "last": (
                ("kernels/cuda/attention.cuh", "(blocks - 1 - blockIdx.x % blocks)", "(blockIdx.x % blocks)"),
                (
                    "kernels/cuda/attention.cuh",
                    "are_keys ? place.column : blocks - 1 - place.column",
                    "place.column",
                ),
            )
        },
    ),
]


def all_rows(quick: bool, device: str) -> Iterator[Case]:
    """Those of ``gpu_vs_torch.py``, and what the questions ask beside them."""
    yield from cases(quick, device)
    for planes in [(3, 4, 4, 4)] if quick else [(128, 512, 4, 4), (128, 256, 8, 8), (128, 128, 16, 16)]:
        for case in norms((6, 20), planes):
            yield replace(case, name=f"small planes: {case.name}")


# ---- in the process of a variant ---------------------------------------------------------------------------


def serve(device: str, quick: bool, wanted: str) -> None:
    """Check the rows that are wanted, and tell of each what went wrong; then time those that are asked for.

    Answers are lines of JSON: for each row its name and what went wrong, null behind the last, and from then
    on seconds of a call for each line that comes in, the number of a row.
    """
    bench = Bench(device, quick, float("inf"), alone=True)
    bench.samples = 2

    def answer(what: Any) -> None:
        print(json.dumps(what), flush=True)

    @contextlib.contextmanager
    def limited(case: Case) -> Iterator[None]:
        limit = at_most(ROW_SECONDS, case.name) if bench.on_card else contextlib.nullcontext()
        with limit, set_up(bench, case):
            yield

    with bench.device.active():
        rows = []
        for case in all_rows(quick, bench.device.type):
            name = f"{case.name} {case.size}"
            if re.search(wanted, name):
                failure, runs = None, {}
                try:
                    with limited(case):
                        result, runs = checked(bench, case)
                    failure = result.get("failure")
                except Exception as error:
                    failure = f"{type(error).__name__}: {error}".splitlines()[0]
                rows.append((case, runs))
                answer({"row": name, "failure": failure})
                if bench.on_card:
                    bench.xp.get_default_memory_pool().free_all_blocks()
        answer(None)
        for number in sys.stdin:
            case, runs = rows[int(number)]
            with limited(case):
                times = bench.alternate_queued(runs, bench.alternate(runs))
            answer(times["minigrad"]["median"])


# ---- in the process that asks ------------------------------------------------------------------------------


def write_variant(folder: Path, edits: Iterable[Edit]) -> None:
    """Write a copy of the package into ``folder``, edited; edited Python runs as such where it was compiled.

    ValueError: what an edit replaces does not stand there once.
    """
    copies = {PACKAGE: folder / "minigrad"}
    if KERNELS.parent != PACKAGE:  # of an editable installation
        copies[KERNELS] = folder / "minigrad/kernels"
    for source, copy in copies.items():
        shutil.copytree(
            source, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True
        )
        for library in source.rglob("*.so"):
            (copy / library.relative_to(source)).symlink_to(library)
    for path, old, new in edits:
        file = folder / (path if path.startswith("minigrad/") else f"minigrad/{path}")
        for compiled in file.parent.glob(f"{file.stem}.*.so") if file.suffix == ".py" else ():
            compiled.unlink()
        text = file.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{path}: {old!r} stands there {text.count(old)} times, not once")
        file.write_text(text.replace(old, new))


def write_variants(folder: Path, question: Question) -> dict[str, Path | None]:
    """By name the copies that ``question`` asks for, in ``folder``; for the package as it is None."""
    folders: dict[str, Path | None] = {NOW: None}
    for name, edits in question.variants.items():
        folders[name] = copy = folder / str(len(folders))
        write_variant(copy, edits)
    return folders


class Process:
    """A process that has the rows of a question, with the package as it is or with the copy in ``folder``."""

    def __init__(self, options: argparse.Namespace, rows: str, folder: Path | None):
        environment = dict(os.environ)
        if folder:
            paths = [str(folder), environment.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, __file__, "--serve", rows, "--device", options.device]
        command += ["--quick"] * options.quick
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line.startswith(("{", "null", *"0123456789")):  # it ended, or tells why it will
            raise RuntimeError(line.strip() or f"the process of a variant ended with {self.process.wait()}")
        return json.loads(line)

    def rows(self) -> list[dict[str, Any]]:
        """What it says of each row, when all its kernels are compiled."""
        return list(iter(self.answer, None))

    def time(self, row: int) -> float:
        """Seconds of a call, in one sample."""
        print(row, file=self.process.stdin, flush=True)
        return self.answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def compile_kernels(options: argparse.Namespace, rows: str, folder: Path | None) -> None:
    """Have a process go through its rows, whatever comes of it: what it compiles is kept on disk."""
    process = Process(options, rows, folder)
    with contextlib.suppress(RuntimeError):
        process.rows()
    process.stop()


def ask(
    question: Question, options: argparse.Namespace, folders: dict[str, Path | None]
) -> list[dict[str, Any]]:
    """Time the rows of ``question`` in all its variants, and show them."""
    print(f"\n{question.name}", flush=True)
    with contextlib.ExitStack() as stack:
        processes = {name: Process(options, question.rows, folder) for name, folder in folders.items()}
        for process in processes.values():
            stack.callback(process.stop)
        told = {name: process.rows() for name, process in processes.items()}
        if not told[NOW]:
            raise RuntimeError(f"no row has {question.rows!r} in its name and size")
        print(" " * 72 + "".join(f"{name:>20}" for name in processes), flush=True)
        rows = []
        for number, about in enumerate(told[NOW]):
            failures = {name: of[number]["failure"] for name, of in told.items() if of[number]["failure"]}
            times: dict[str, list[float]] = {name: [] for name in processes if name not in failures}
            for _ in range(options.rounds):
                for name, found in times.items():
                    found.append(processes[name].time(number))
            row = {"question": question.name, "row": about["row"], "times": times, "failures": failures}
            print(line(row, list(processes)), flush=True)
            rows.append(row)
    means = "".join(f"{mean_ratio(rows, name):>12}{'':8}" for name in question.variants)
    print(f"{'geometric mean':92}{means}".rstrip(), flush=True)
    return rows


def ratio(row: dict[str, Any], name: str) -> float | None:
    """The time of what is there now over the variant's: medians. None where one of them failed."""
    times = row["times"]
    return (
        statistics.median(times[NOW]) / statistics.median(times[name]) if {NOW, name} <= set(times) else None
    )


def mean_ratio(rows: list[dict[str, Any]], name: str) -> str:
    """The geometric mean over all rows."""
    ratios = [found for row in rows if (found := ratio(row, name))]
    return f"{statistics.geometric_mean(ratios):.3f}" if ratios else "-"


def line(row: dict[str, Any], names: list[str]) -> str:
    """A row of the table: microseconds of what is there now, then each variant's ratio; each with the spread
    of its samples."""
    cells = []
    for name in names:
        if name not in row["times"]:
            cells.append(f"{'failed':>20}")
            continue
        times = row["times"][name]
        shown = f"{statistics.median(times) * 1e6:.1f} us" if name == NOW else f"{ratio(row, name) or 0:.3f}"
        cells.append(f"{shown:>12} +-{(max(times) / min(times) - 1) / 2:4.1%}")
    failures = "".join(f"\n    {name}: {failure}" for name, failure in row["failures"].items())
    return f"{row['row'][:71]:72}" + "".join(f"{cell:>20}" for cell in cells) + failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ... or sim")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--only", default="", metavar="REGEX", help="the questions in which it is found")
    parser.add_argument(
        "--rounds", type=int, default=5, help="samples of each variant (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    parser.add_argument(
        "--edit", nargs=3, action="append", metavar=("FILE", "OLD", "NEW"), help="a variant of your own"
    )
    parser.add_argument("--rows", metavar="REGEX", help="the rows that --edit is about")
    parser.add_argument("--serve", metavar="REGEX", help=argparse.SUPPRESS)  # of the process of a variant
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.device, options.quick, options.serve)
        return 0
    try:
        on_card = mg.device(options.device).type == "cuda"
    except mg.errors.DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    if not on_card and not options.quick:
        parser.error("without a card only the --quick form makes sense")
    if bool(options.edit) != bool(options.rows):
        parser.error("--edit says what to change, --rows what to time: neither goes without the other")

    asked = [question for question in QUESTIONS if re.search(options.only, question.name)]
    if options.edit:
        asked = [Question(options.rows, options.rows, {"edited": tuple(map(tuple, options.edit))})]
    if not asked:
        parser.error(f"no question has {options.only!r} in its name")
    if not on_card:
        print("On the simulator: this shows that it runs; its times say nothing about speed.")
    with tempfile.TemporaryDirectory() as root:
        try:
            folders = {
                question: write_variants(Path(root, str(n)), question) for n, question in enumerate(asked)
            }
        except (OSError, ValueError) as error:
            parser.error(str(error))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for question in asked:
                for folder in folders[question].values():
                    pool.submit(compile_kernels, options, question.rows, folder)
        answers, failed = [], False
        for question in asked:
            try:
                answers += ask(question, options, folders[question])
            except (RuntimeError, OSError) as error:  # one of its processes is gone
                print(error, flush=True)
                failed = True
            if options.json:
                options.json.write_text(json.dumps(answers, indent=1) + "\n")
    return int(failed or not answers or any(row["failures"] for row in answers))


if __name__ == "__main__":
    sys.exit(main())
