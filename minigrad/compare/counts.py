"""What each rung of a CUDA ladder asks of a card, counted on the simulator: ``minigrad sim-profile``.

Times show that a rung is faster; counts show why: fewer bytes asked of the memory, none of them wasted, no
bank conflicts, more arithmetic for each byte.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.sim import LaunchProfile
from minigrad.kernels.sim.profiler import format_bytes

__all__ = ["LADDERS", "profile_ladder", "profile_script", "render_ladder"]


def _normal(*shape: int) -> mg.Tensor:
    return mg.randn(*shape, device="sim")


# For each ladder its op, what to call, and the inputs: large enough to show what is behind a rung, small
# enough to be simulated in a second or two.
LADDERS: dict[str, tuple[str, Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "matmul": ("matmul", lambda a, b: a @ b, ((128, 128), (128, 128))),
    "conv2d": (
        "conv2d",
        lambda x, w: mg.nn.functional.conv2d(x, w, padding=1),
        ((2, 8, 16, 16), (16, 8, 3, 3)),
    ),
    "max_pool2d": ("max_pool2d", lambda x: mg.nn.functional.max_pool2d(x, 2), ((2, 8, 32, 32),)),
    "max_pool2d_3x3": (
        "max_pool2d",
        lambda x: mg.nn.functional.max_pool2d(x, 3, 1, 1),
        ((2, 8, 32, 32),),
    ),
    "softmax": ("softmax", lambda x: mg.softmax(x, -1), ((64, 1100),)),
    "sum": ("sum", lambda x: x.sum(-1), ((4, 8192),)),
}


def profile_ladder(
    name: str, rungs: Sequence[str] | None = None, dtype: Any = mg.float32
) -> Iterator[tuple[str, list[LaunchProfile]]]:
    """For each of ``rungs``, by default all of a ladder of LADDERS that there are for ``dtype``, its name and
    its launches; none if it does not take such inputs."""
    op, call, shapes = LADDERS[name]
    mg.manual_seed(0)
    inputs = [_normal(*shape).to(dtype) for shape in shapes]
    for kernel in mg.list_kernels(op, "sim"):
        if dtype in kernel.dtypes and (rungs is None or kernel.name in rungs):
            with mg.use_kernel(op, kernel.name, "sim"), sim.profile() as launches:
                call(*inputs)
            yield kernel.name, launches


def profile_script(path: Path, arguments: Sequence[str] = ()) -> list[LaunchProfile]:
    """Run a Python program as a main program, with its ``arguments``; every launch on the simulator."""
    before = sys.argv, sys.path
    sys.argv = [str(path), *arguments]
    sys.path = [str(path.parent.resolve()), *sys.path]  # as Python does, for what the program imports
    try:
        with sim.profile() as launches, contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path = before
    return launches


HEADINGS = ("rung", "asked", "used", "distinct", "shared", "conflicts", "barriers", "diverge", "ops/byte")
LEGEND = """\
asked: bytes of the 32-byte sectors of global memory that the warps' requests touch; used: how much of them
the requests need; distinct: bytes of the different sectors, what a perfect cache would leave. shared:
wavefronts of shared memory; conflicts: those that bank conflicts cost. barriers: of each block. diverge: how
often a warp's lanes met along different paths. ops/byte: floating-point operations for each byte asked."""


def render_ladder(name: str, dtype: Any = mg.float32) -> str:
    """The table of a ladder: a line for each launch of each rung."""
    shapes = " and ".join("x".join(map(str, shape)) for shape in LADDERS[name][2])
    rows: list[tuple[str, ...]] = [HEADINGS]
    for rung, launches in profile_ladder(name, dtype=dtype):
        rows += [_row(rung if i == 0 else "", launch) for i, launch in enumerate(launches)]
        if not launches:
            rows.append((rung, "does not take such inputs", *[""] * (len(HEADINGS) - 2)))
    widths = [max(len(row[i]) for row in rows if row[2] or i == 0) for i in range(len(HEADINGS))]
    lines = []
    for rung, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([rung.ljust(widths[0]), *padded]))
    return "\n".join([f"{name} of {shapes}, {dtype}, simulated", "", *map(str.rstrip, lines), "", LEGEND])


def _row(rung: str, launch: LaunchProfile) -> tuple[str, ...]:
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    of_global = launch.total("global load") + launch.total("global store") + launch.total("global atomic")
    of_shared = launch.total("shared load") + launch.total("shared store") + launch.total("shared atomic")
    return (
        rung,
        format_bytes(launch.asked_bytes),
        f"{of_global.efficiency:.0%}",
        format_bytes(launch.distinct_loaded + launch.distinct_stored),
        f"{of_shared.cost}",
        f"{launch.bank_conflicts}",
        f"{launch.barriers / blocks:.3g}",
        f"{launch.divergent / max(launch.meetings, 1):.0%}",
        f"{launch.intensity:.2f}" if launch.intensity else "-",
    )
