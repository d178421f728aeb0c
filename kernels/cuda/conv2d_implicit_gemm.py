"""Launches ``conv2d_implicit_gemm.cu``: convolution and its gradients as matrix products, in tiles.

Arrays and options are those of :mod:`.conv2d`. In each group the product has O/groups rows, for the input's
gradient C/groups: a tile is 32 rows high in the tiled rung and 64 in the other, so with few rows most of it
is computed in vain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import split_k, workspace
from .conv2d import largest_phase, shape_fields, tap_steps
from .conv2d_parts import ENOUGH_BLOCKS, cut_into_parts

TILINGS = {"tiled": (32, 1), "registers": (16, 4)}  # (SIDE, R): SIDE x SIDE threads make R x R results each
PART = 512  # the fewest outputs that are worth a block of their own in the weight's gradient

_source = CudaSource(Path(__file__).with_suffix(".cu"))


def _rungs(kernel: str) -> dict[str, CudaKernel]:
    return {rung: CudaKernel(_source, f"{kernel}<T, {side}, {r}>") for rung, (side, r) in TILINGS.items()}


_forward = _rungs("conv2d_forward_gemm")
_input_grad = _rungs("conv2d_input_grad_gemm")
_weight_grad = _rungs("conv2d_weight_grad_gemm")


def forward_tiled(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """A matrix product, whose 32 x 32 tiles of pixels and weights are gathered into shared memory."""
    _run_forward("tiled", out, x, weight, bias, options, relu)


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """Tiles of 64 x 64, with 4 x 4 results for each thread, which reuses what it reads, from registers."""
    _run_forward("registers", out, x, weight, bias, options, relu)


def input_grad_tiled(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """A matrix product in 32 x 32 tiles, one for each phase of the stride: of the taps that reach it."""
    _run_input_grad("tiled", out, grad_output, weight, options)


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """Tiles of 64 x 64, with 4 x 4 results for each thread, which reuses what it reads, from registers."""
    _run_input_grad("registers", out, grad_output, weight, options)


def weight_grad_tiled(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """A matrix product in 32 x 32 tiles; blocks share its long sums, and a second launch adds their parts."""
    _run_weight_grad("tiled", out, grad_output, x, options)


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tiles of 64 x 64, with 4 x 4 results for each thread, which reuses what it reads, from registers."""
    _run_weight_grad("registers", out, grad_output, x, options)


def _run_forward(
    rung: str, out: Any, x: Any, weight: Any, bias: Any | None, options: tuple, relu: bool
) -> None:
    shape = shape_fields(x, weight, out, options, bias)
    groups = shape["groups"]
    tiles = _tiles(rung, shape["O"] // groups, shape["N"] * shape["OH"] * shape["OW"])
    _forward[rung].launch(tiles * groups, _block(rung), (out, x, weight, bias, relu, shape))


def _run_input_grad(rung: str, out: Any, grad_output: Any, weight: Any, options: tuple) -> None:
    shape = shape_fields(out, weight, grad_output, options)
    groups, (phases, pixels, _) = shape["groups"], largest_phase(shape)
    tiles = _tiles(rung, shape["C"] // groups, pixels)
    arguments = (out, grad_output, weight, shape, tap_steps(shape))
    _input_grad[rung].launch(tiles * groups * phases, _block(rung), arguments)


def _run_weight_grad(rung: str, out: Any, grad_output: Any, x: Any, options: tuple) -> None:
    shape = shape_fields(x, out, grad_output, options)
    rows, columns = shape["O"] // shape["groups"], out[0].size if shape["O"] else 0
    outputs = shape["N"] * shape["OH"] * shape["OW"]
    tiles = _tiles(rung, rows, columns) * shape["groups"]
    parts, length = cut_into_parts(outputs, tiles, ENOUGH_BLOCKS, PART, step=TILINGS[rung][0])
    partial = workspace(out, (parts, out.size)) if parts > 1 else out
    _weight_grad[rung].launch(tiles * parts, _block(rung), (partial, grad_output, x, length, shape))
    if parts > 1:
        split_k.add_up(out, partial)


def _block(rung: str) -> tuple[int, int]:
    side, _ = TILINGS[rung]
    return side, side


def _tiles(rung: str, rows: int, columns: int) -> int:
    """How many tiles cover a product of ``rows`` x ``columns``."""
    side, r = TILINGS[rung]
    return blocks(rows, side * r) * blocks(columns, side * r)
