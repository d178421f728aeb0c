"""Launches ``resample.cu``: images seen through affine maps, each its own; on a card or the simulator.

``images`` are (N, C, H, W), ``out`` is (N, C, height, width), ``matrices`` are (N, 2, 3), all C-contiguous.
Images of bytes or float32 go with matrices of float32, those of float64 with float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource

THREADS = 256  # in a block
MAX_GRID_Y = 65535
BORDERS = ("constant", "edge", "reflect", "symmetric")  # enum Border

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_kernels = {bilinear: CudaKernel(_source, f"resample<T, C, {bilinear}>") for bilinear in (False, True)}


def resample(out: Any, images: Any, matrices: Any, border: str, fill: float, bilinear: bool) -> None:
    """A thread for a pixel of the result, in all channels; outside is a ``border`` of :data:`BORDERS`."""
    N, C, H, W = images.shape
    if out.shape[:2] != (N, C) or matrices.shape != (N, 2, 3):
        raise ValueError(
            f"resample kernel: images of {images.shape} and matrices of {matrices.shape} do not give "
            f"{out.shape}"
        )
    height, width = out.shape[2:]
    grid = blocks(height * width, THREADS), min(N, MAX_GRID_Y)
    arguments = (out, images, matrices, fill, BORDERS.index(border), N, C, H, W, height, width)
    _kernels[bilinear].launch(grid, THREADS, arguments)
