"""The ladders of the CUDA kernels as a card ran them: a picture of the record that ``gpu.sh`` leaves.

    python benchmarks/gpu_ladders.py benchmarks/results/NAME.json [PICTURE]  # else docs/cuda-ladders.png

Three panels: rungs of a product of matrices and of a convolution by the operations that they make in a
second, and kernels that memory bounds by the bytes that they move, each input read once and each output
written once. Grey is PyTorch (cuBLAS, cuDNN) in the same run. Dashed lines are what the card was measured to
do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MATMUL = ("naive", "tiled", "register_tile", "vectorized", "warp_tile")
CONVOLUTION = ("direct", "tiled", "implicit_gemm", "pipelined", "winograd")
MATRIX, IMAGES = "8192x8192x8192", "128x128x28x28 -> 128, 3x3"
MEMORY = (
    ("max pooling, naive", "64x64x112x112"),
    ("max pooling, vectorized", "64x64x112x112"),
    ("dropout, naive", "65536x1024"),
    ("dropout, block", "65536x1024"),
    ("x + y", "65536x1024"),
    ("softmax", "65536x1024"),
    ("layer norm", "65536x1024"),
    ("cross-entropy", "32768x32000"),
    ("Adam step", "4096x4096"),
)
BLUE, GREY = "#0072b2", "#9a9a9a"
BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}


def main(record: dict[str, Any], picture: Path) -> None:
    from matplotlib.figure import Figure

    benchmark = record["benchmark"]
    rows = {(row["name"], row["size"]): row for row in benchmark["rows"] if "times" in row}
    ceilings = benchmark["ceilings"]
    products = [(name, rows.get((f"matmul, {name}", MATRIX))) for name in MATMUL]
    for kind in ("tf32", "bfloat16"):
        for rung in ("tensor_core", "wgmma"):
            products.append((f"{rung}, {kind}", rows.get((f"matmul {kind}, {rung}", f"{MATRIX}, a @ b.T"))))
    convolutions = [(name, rows.get((f"conv2d forward, {name}", IMAGES))) for name in CONVOLUTION]
    memory = [(name, rows.get((name, size))) for name, size in MEMORY]

    figure = Figure(figsize=(13, 5.4), layout="constrained")
    panels = figure.subplots(1, 3)
    lines = [
        (ceilings[key] / 1e12, name)
        for key, name in (("multiply_adds", "float32"), ("matrix_bf16", "bfloat16"))
    ]
    bars(panels[0], f"Product of matrices, {MATRIX}", "TFLOP/s", products, "operations", 1e12, lines)
    bars(panels[1], f"Convolution, {IMAGES}", "TFLOP/s", convolutions, "operations", 1e12, lines[:1])
    bars(panels[2], "Bound by memory", "GB/s", memory, "bytes", 1e9, [(ceilings["copy"] / 1e9, "copy")])
    panels[0].set_xscale("log")
    panels[0].set_xlim(1, 2 * ceilings["matrix_bf16"] / 1e12)
    sides = f"minigrad (blue), PyTorch {record['versions']['torch']} (grey)"
    figure.suptitle(
        f"{benchmark['card']['name']}, {record['date'][:10]}: {sides}",
        x=0.01,
        ha="left",
        size=13,
    )
    figure.savefig(picture, dpi=110, facecolor="white")


def bars(
    ax: Any,
    title: str,
    unit: str,
    rungs: list[tuple[str, Row | None]],
    quantity: str,
    scale: float,
    lines: list[tuple[float, str]],
) -> None:
    """A pair of bars for each rung that the record has, the first on top."""
    measured = [(name, row) for name, row in rungs if row]
    for side, colour, shift, height in (("torch", GREY, 0.26, 0.26), ("minigrad", BLUE, -0.14, 0.5)):
        rates = [row[quantity] / row["times"][side]["median"] / scale for _, row in measured]
        drawn = ax.barh([i + shift for i in range(len(rates))], rates, height, color=colour, zorder=2)
    ax.bar_label(drawn, [readable(rate) for rate in rates], padding=4, size=9, zorder=4, bbox=BACKGROUND)
    for rate, name in lines:
        ax.axvline(rate, color="#1a1a1a", linestyle="--", linewidth=1, zorder=3)
        ax.annotate(f"{name} {readable(rate)} ", (rate, -0.75), ha="right", size=9, color="#555555")
    ax.set_yticks(range(len(measured)), [name for name, _ in measured])
    ax.set_ylim(len(measured) - 0.4, -1.1)
    ax.set_xlabel(unit)
    ax.set_title(title, loc="left", size=11)
    ax.grid(axis="x", color="#e8e8e8", zorder=0)
    ax.spines[["top", "right"]].set_visible(False)


def readable(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = Path(__file__).parents[1] / "docs" / "cuda-ladders.png"
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]) if len(sys.argv) == 3 else default)
