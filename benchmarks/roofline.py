"""The roofline of this machine, with the rungs of the CPU ladders on it, one thread.

    python benchmarks/roofline.py [PICTURE]          # about a minute; docs/roofline.png by default

A kernel can be no faster than the arithmetic units, and no faster than its data arrive. How fast they must
arrive depends on its arithmetic intensity, the operations made for each byte; see Williams, Waterman and
Patterson, "Roofline" (CACM, 2009). The picture has two panels, for data arrive in two places:

- from memory: each input read once, each output written once. That is a property of the op, so all rungs of a
  ladder stand above one another;
- from the L1 cache to the registers: what the inner loop of each rung loads and stores. That is where the
  rungs differ.

The roofs and the rates are measured here; the intensities of the inner loops are counted from their code.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import compare
from minigrad.compare.problems import LADDERS
from minigrad.kernels import cpu

FLOAT = 4  # bytes


def register_tile(rows: int, columns: int) -> float:
    """Of a micro-kernel's step along K: it loads a row and a column, and makes all their products."""
    return 2 * rows * columns / (FLOAT * (rows + columns))


TILE = {"x86_64_v4": (12, 32), "x86_64_v3": (6, 16), "x86_64_v2": (6, 8), "baseline": (8, 12)}[cpu.isa]
LANES = TILE[1] // 2 if cpu.isa != "baseline" else 4

INNER_LOOPS: dict[tuple[str, str], float] = {
    # Two operations on one element of a and one of b.
    ("matmul", "naive"): 2 / (2 * FLOAT),
    # Four multiply-adds on four elements of the tile and one of out, which is loaded and stored.
    ("matmul", "tiled"): 8 / (6 * FLOAT),
    ("matmul", "packed"): register_tile(*TILE),
    # y += weight * x along a row: load x and y, store y.
    ("conv2d", "direct"): 2 / (3 * FLOAT),
    ("conv2d", "im2col"): register_tile(*TILE),
    ("conv2d", "implicit_gemm"): register_tile(*TILE),
    # Three comparisons of four elements; the result and its tap (four bytes, of which one is kept, or one).
    ("pooling", "naive"): 3 / (5 * FLOAT + 1),
    ("pooling", "vectorized"): 3 / (5 * FLOAT + 1),
}
"""Operations for each byte between L1 and the registers, of one step of the inner loop.

Winograd's algorithm is not here: it makes fewer operations than are counted for the others.
"""


def l1_bandwidth() -> float:
    """Bytes per second read from L1, by the difference of two lengths: the call itself does not count."""
    lengths = 6 << 10, 3 << 10  # both fit in the smallest L1
    arrays = [np.ones(n, np.float32) for n in lengths]
    best = [float("inf")] * 2
    for _ in range(300):
        for i, array in enumerate(arrays):
            start = time.perf_counter()
            for _ in range(100):
                cpu.peak.read(array, 1)
            best[i] = min(best[i], (time.perf_counter() - start) / 100)
    return FLOAT * (lengths[0] - lengths[1]) / (best[0] - best[1])


def points(found: Any) -> list[dict[str, Any]]:
    """For each rung measured on one thread: operations per second, and its two intensities."""
    rows = []
    for record in found:
        if record.kind != "kernel" or record.threads != 1 or record.seconds is None:
            continue
        rows.append(
            {
                "ladder": record.ladder,
                "rung": record.rung,
                "rate": record.operations / record.seconds,
                "memory": record.operations / record.bytes,
                "l1": INNER_LOOPS.get((record.ladder, record.rung)),
            }
        )
    return rows


NOTE: dict[str, Any] = {"xytext": (-4, 6), "textcoords": "offset points", "color": "#5f5f5f"}
COLOURS = {"matmul": "#0072B2", "conv2d": "#D55E00", "pooling": "#009E73"}
NAMES = {"matmul": "matrix product", "conv2d": "3x3 convolution", "pooling": "2x2 max pooling"}


def draw(found: Any, l1: float, path: Path) -> None:
    """The two panels."""
    from matplotlib.figure import Figure

    rows = points(found)
    peak, memory = (found.peak("cpu", 1, bound) for bound in ("compute", "memory"))
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, key, bandwidth, place in (
        (axes[0], "memory", memory, "memory"),
        (axes[1], "l1", l1, "the L1 cache"),
    ):
        x = np.geomspace(0.05, 500 if key == "memory" else 20, 200)
        ax.loglog(x, np.minimum(peak, bandwidth * x) / 1e9, color="#1a1a1a", linewidth=1.5)
        ax.annotate(f"{bandwidth / 1e9:.3g} GB/s", (0.2, bandwidth * 0.2 / 1e9), **NOTE, ha="right")
        ax.annotate(f"{peak / 1e9:.3g} GFLOP/s", (x[-1], peak / 1e9), **NOTE, ha="right")
        ax.set_ylim(0.05, 4 * peak / 1e9)
        _place_rungs(ax, [row for row in rows if row[key]], key)
        ax.set_xlabel(f"operations for each byte to and from {place}")
        ax.grid(color="#e8e8e8")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("GFLOP/s, one thread")
    axes[0].set_title("What the op allows: every input read once from memory", loc="left", size=11)
    axes[1].set_title("What the rung asks: loads and stores of its inner loop", loc="left", size=11)
    handles = [axes[0].scatter([], [], color=COLOURS[name], label=NAMES[name]) for name in LADDERS]
    axes[0].legend(handles=handles, loc="lower right", frameon=False)
    figure.suptitle(f"{found.machine['processor']}, {cpu.isa}, {found.date[:10]}", x=0.01, ha="left", size=13)
    figure.savefig(path, dpi=120, facecolor="white")


def _place_rungs(ax: Any, rows: list[dict[str, Any]], key: str) -> None:
    """The points and their names, those of the convolution on the left: ladders must not cover each other.

    A name that would cover one below it is moved up.
    """
    for ladder in LADDERS:
        left, height = ladder == "conv2d", 0.0
        for row in sorted((row for row in rows if row["ladder"] == ladder), key=lambda row: row["rate"]):
            x, y = row[key], row["rate"] / 1e9
            ax.scatter(x, y, color=COLOURS[ladder], s=36, zorder=3)
            height = max(y, 1.25 * height)
            align = {"xytext": (-8 if left else 8, -3), "ha": "right" if left else "left"}
            ax.annotate(row["rung"], (x, height), textcoords="offset points", size=9, **align)


def main() -> None:
    root = Path(__file__).parents[1]
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "roofline.png"
    l1 = l1_bandwidth()
    found = compare.run(list(LADDERS), devices=["cpu"], progress=lambda text: print(text, file=sys.stderr))
    for row in points(found):
        share = f"{row['l1']:.2f}" if row["l1"] else "-"
        print(
            f"{row['ladder']:8} {row['rung']:14} {row['rate'] / 1e9:8.2f} GFLOP/s, operations per byte: "
            f"{row['memory']:.3g} of memory, {share} of L1"
        )
    draw(found, l1, path)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
