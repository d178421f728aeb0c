"""The command ``minigrad``: ``info``, ``compare``, ``sim-profile`` and ``new-kernel``."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import shutil
import sys
import tempfile
import textwrap
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minigrad
from minigrad.errors import DeviceError

__all__ = ["main"]

OK, WRONG, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; WRONG means that a rung gave a wrong result or failed."""

CHAPTERS = ("machine", "ladder", "roofline", "size", "batch", "network", "precision", "simulator")
LADDERS = ("matmul", "conv2d", "pooling")
DEFAULT_OUTPUT = "minigrad-compare"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments ``argv`` (by default the process's own); the exit status."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (DeviceError, UsageError) as error:
        print(f"minigrad {options.command}: error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"minigrad {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        sys.stderr.close()
        return OK


class UsageError(Exception):
    """An option cannot be followed; the message says why."""


# ---- options ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minigrad",
        description="A deep-learning framework small enough to read down to the silicon. "
        "The commands show what it runs on, and what makes it fast.",
        epilog="Start with `minigrad info`, then `minigrad compare --quick`.",
    )
    parser.add_argument("--version", action="version", version=f"minigrad {minigrad.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_compare(commands)
    _add_sim_profile(commands)
    _add_new_kernel(commands)
    return parser


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="what this machine offers: devices, instruction sets, threads, kernels",
        description="Shows versions, devices (and why one cannot be used), the instruction-set level of the "
        "CPU kernels, the number of threads, and the kernels of every op.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=_info)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="why GPUs speed up deep learning, measured, drawn and explained on this machine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            """\
            Measures, in chapters, why a GPU is faster than a processor, when it is not, and what made each
            step faster:

              machine    cores, vectors, caches, the card; their measured peaks
              ladder     matmul, conv2d and pooling, from plain Python to the fastest kernel
              roofline   every rung between the limits of arithmetic and of memory
              size       from tiny to large: where the GPU overtakes, what a call and the transfers cost
              batch      the same network at batch 1 to 1024
              network    a CNN learns to read digits; where the time of its layers goes
              precision  float64, float32, and on a card TF32, bfloat16, float16: speed and error
              simulator  what the threads of a naive and of a tiled CUDA kernel ask of the memory

            Every result is first checked against float64; a wrong one is reported and not timed. Without a
            GPU its columns come from a recorded run, and say so. Kernels of your own are rungs, too."""
        ),
        epilog="Takes under two minutes on two cores, with --quick under 20 seconds, with --full some five "
        "minutes. Ctrl-C reports what was measured.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=(*CHAPTERS, *LADDERS),
        metavar="CHAPTER",
        help=f"one chapter, or one ladder, alone (may be repeated): {', '.join((*CHAPTERS, *LADDERS))}",
    )
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions")
    how_long.add_argument("--full", action="store_true", help="larger sizes and more repetitions")
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="a module, or a .py file, that registers kernels of your own (may be repeated)",
    )
    parser.add_argument(
        "--device",
        action="append",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 or sim (may be repeated); by default cpu, and cuda where there is one. "
        "sim checks the CUDA kernels on the CPU, at small sizes",
    )
    parser.add_argument(
        "--threads", type=_thread_count, metavar="N", help="CPU threads for the rungs that use several"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(DEFAULT_OUTPUT),
        metavar="DIR",
        help=f"folder for the pictures (PNG and SVG) and the results (JSON); by default {DEFAULT_OUTPUT}",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")
    parser.add_argument("--open", action="store_true", help="show the report in the web browser")
    parser.add_argument(
        "--record",
        action="store_true",
        help="also write what the card did as a recorded run, for --recorded on machines without one",
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        metavar="FILE",
        help="show this recorded run beside the machine, in place of the one that ships with minigrad",
    )
    parser.set_defaults(run=_compare)


def _add_sim_profile(commands: Any) -> None:
    parser = commands.add_parser(
        "sim-profile",
        help="what CUDA kernels ask of a card's memory, counted on the simulator",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            """\
            Counts, with no card, what makes a CUDA kernel fast or slow on one: bytes and sectors of global
            memory, bank conflicts, barriers, divergent warps, arithmetic for each byte.

            TARGET is a ladder (matmul, conv2d, max_pool2d, max_pool2d_3x3, softmax, sum): all its rungs are
            compared. Or it is a Python program: each of its launches on the simulator is shown, line by
            line."""
        ),
        epilog="In a program of your own: with minigrad.kernels.sim.profile() as launches: ...",
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "bfloat16", "float32", "float64"],
        default="float32",
        help="of a ladder's inputs: tensor cores are for 16 bits (float32 by default)",
    )
    parser.add_argument("target", metavar="TARGET", help="a ladder, or the path of a Python program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    parser.set_defaults(run=_sim_profile)


def _add_new_kernel(commands: Any) -> None:
    parser = commands.add_parser(
        "new-kernel",
        help="write an op of your own, with kernels for the CPU and for CUDA, ready to run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            """\
            Writes NAME.py, with a reference in NumPy terms, a gradient, a Cython kernel and a CUDA
            kernel, and test_NAME.py. Both run as they are, with a GPU or without one: put your own operation
            in the place of the example. With --package it writes a folder NAME that pip can install, with
            the kernels in files of their own, tests and a README."""
        ),
        epilog="docs/tutorial-kernel.md goes from a NumPy function to a tiled CUDA kernel in half an hour.",
    )
    parser.add_argument("name", metavar="NAME", help="the op's name, such as smooth_step")
    parser.add_argument("--package", action="store_true", help="a package with pyproject.toml, not a file")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder to write into, made if it is missing; by default the current one",
    )
    parser.set_defaults(run=_new_kernel)


def _thread_count(text: str) -> int:
    from minigrad.kernels.cpu.threads import MAX_THREADS

    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_THREADS}, got {text!r}")
    return int(text)


# ---- minigrad info ----------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from minigrad.compare.machine import info

    found = info()
    print(json.dumps(found, indent=1) if options.json else _info_text(found, _width()))
    return OK


def _info_text(found: dict[str, Any], width: int) -> str:
    from minigrad.compare.numbers import count

    caches = ", ".join(f"{name} {size // 1024} KB" for name, size in found["caches"].items())
    rows = [
        ("minigrad", found["minigrad"]),
        ("Python", found["python"]),
        ("NumPy", f"{found['numpy']} ({found['blas']})"),
        ("CuPy", found["cupy"] or "not installed"),
        ("processor", f"{found['processor']}, {count(found['cores'], 'core')}"),
        *([("caches", f"{caches} (of one core)")] if caches else []),
        ("kernels for", f"{found['isa']}: {found['vectors']} (of: {', '.join(found['isa_available'])})"),
        ("threads", f"{found['threads']} ({found['threads_source']})"),
        ("default dtype", found["default_dtype"]),
    ]
    lines = [_field(name, value, width) for name, value in rows]
    lines += ["", "Devices"]
    for row in found["devices"]:
        state = row["name"] if row["available"] else f"not available: {row['reason']}"
        lines.append(_field(f"  {row['device']}", state, width))
    for op, kernels in found["kernels"].items():
        lines += ["", f"Kernels of {op}"]
        for kernel in kernels:
            what = f"{', '.join(kernel['devices'])}; {', '.join(kernel['dtypes'])}"
            lines.append(_field(f"  {kernel['name']}", f"[{what}] {kernel['adds']}", width))
    return "\n".join(lines)


def _field(name: str, value: str, width: int) -> str:
    return textwrap.fill(f"{name:<17} {value}", width, subsequent_indent=" " * 18, break_on_hyphens=False)


# ---- minigrad compare -------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> int:
    from minigrad.compare import measure
    from minigrad.compare.table import render

    _check_writable(options.output)
    for name in options.imports:
        _import(name)
    if options.record:
        _check_card(options.device)
    if options.recorded:
        _check_recorded(options.recorded)
    progress = _Progress()
    try:
        comparison = measure.run(
            only=options.only,
            devices=options.device,
            threads=options.threads,
            quick=options.quick,
            full=options.full,
            recorded=options.recorded,
            progress=progress,
        )
    finally:
        progress.clear()
    print(comparison.to_json() if options.json else render(comparison, _width()))
    _write(comparison, options)
    if comparison.interrupted:
        return INTERRUPTED
    wrong = any(record.failure and not record.refused for record in comparison)
    return WRONG if wrong or any(c.failed for c in comparison.chapters.values()) else OK


def _write(comparison: Any, options: argparse.Namespace) -> None:
    """Write the files, tell which, and open the report."""
    from minigrad.compare import picture, recording

    notes = sys.stderr if options.json else sys.stdout
    paths: list[Path] = []
    try:
        if comparison.chapters:
            paths = comparison.save(options.output)
        if options.record:
            paths.append(recording.save(comparison, options.output))
    except OSError as error:
        raise UsageError(f"--output {options.output}: {error.strerror or error}") from None
    except ValueError as error:  # Ctrl-C came before the card's turn
        print(f"No recorded run: {error}", file=notes)
    if paths:
        print(f"\nwritten: {', '.join(map(str, paths))}", file=notes)
    if not picture.is_available():
        print(picture.INSTALL, file=notes)
    elif comparison and not picture.drawable(comparison):
        print("No picture: nothing was measured but on the simulator, or every rung was wrong", file=notes)
    if options.open:
        _open(paths)


def _open(paths: Sequence[Path]) -> None:
    """Show the report in the web browser; if there is none, the first picture."""
    for suffix in (".html", ".png"):
        for path in paths:
            if path.suffix == suffix:
                webbrowser.open(path.resolve().as_uri())
                return


def _import(name: str) -> None:
    """Import a module, or run a Python file, for the kernels that it registers."""
    sys.path.insert(0, "")  # as `python -m` does
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name=Path(name).stem)
        else:
            importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"--import {name}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove("")


def _check_recorded(path: Path) -> None:
    from minigrad.compare import recording

    try:
        recording.load(path)
    except OSError as error:
        raise UsageError(f"--recorded {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--recorded: {error}") from None


def _check_card(devices: Sequence[str] | None) -> None:
    """Refuse to record what no card will have measured."""
    from minigrad.kernels import cuda

    reason = cuda.why_unavailable()
    if reason:
        raise UsageError(f"--record needs a card: {reason}")
    if devices is not None and not any(name.startswith("cuda") for name in devices):
        raise UsageError("--record needs a card, and --device names none")


def _check_writable(folder: Path) -> None:
    """Make ``folder``, and try to write there: better now than after a minute of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise UsageError(f"--output {folder}: cannot write there: {reason}") from None


# ---- minigrad sim-profile ---------------------------------------------------------------------------------


def _sim_profile(options: argparse.Namespace) -> int:
    from minigrad.compare import counts

    minigrad.device("sim")  # or say what is missing
    path = Path(options.target)
    if options.target in counts.LADDERS and not options.arguments:
        print(counts.render_ladder(options.target, getattr(minigrad, options.dtype)))
    elif path.suffix == ".py" and path.is_file():
        launches = counts.profile_script(path, options.arguments)
        print("\n\n".join(map(str, launches)) or f"{path} launched no kernel on the simulator")
    else:
        raise UsageError(
            f"{options.target!r} is neither a ladder ({', '.join(counts.LADDERS)}) "
            "nor the path of a Python program"
        )
    return OK


# ---- minigrad new-kernel ----------------------------------------------------------------------------------


def _new_kernel(options: argparse.Namespace) -> int:
    from minigrad.new_kernel import NewKernelError, new_kernel

    name, folder = options.name, options.directory
    try:
        written = new_kernel(name, package=options.package, directory=folder)
    except NewKernelError as error:
        raise UsageError(str(error)) from None
    print("written:", *written, sep="\n  ")
    if options.package:
        steps = {
            f"cd {folder / name}": "",
            'python -m pip install -e ".[test]"': "install it; changes count at once",
            "python -m pytest": "check every kernel and the gradients",
            "python benchmark.py": "time the kernels",
        }
    else:
        steps = {
            **({f"cd {folder}": ""} if folder != Path() else {}),
            f"python {name}.py": "check every kernel and the gradients, then time the kernels",
            f"python -m pytest test_{name}.py": "the checks alone, as tests",
        }
    width = max(map(len, steps))
    print("\nNext:", *(f"{step:{width}}  {what}".rstrip() for step, what in steps.items()), sep="\n  ")
    return OK


# ---- what is shown ----------------------------------------------------------------------------------------


class _Progress:
    """Shows the current stage on one line of the terminal; says nothing where there is none."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        if self._shown:
            line = f"{time.monotonic() - self._start:4.0f} s  {text}"
            print(f"\r\x1b[K{line[: _width() - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((110, 24)).columns, 140))
