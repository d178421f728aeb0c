"""Launches ``cast.cu``: between float32, float16 and bfloat16, on a card or on the simulator.

bfloat16 is the package ml_dtypes' dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks
from ..source import CudaSource, is_bfloat16

THREADS, N, VECTORS = 256, 4, 2  # as in cast.cu

_kernel = CudaKernel(CudaSource(Path(__file__).with_suffix(".cu")), "cast<To, From>")


def cast(out: Any, x: Any) -> None:
    """Vectors of four, 16 bytes of float32 and 8 of the 16-bit dtypes, two of them on their way at a time."""
    if out.shape != x.shape:
        raise ValueError(f"cast kernel: shapes {out.shape} and {x.shape} differ")
    _kernel.launch(blocks(x.size, THREADS * N * VECTORS), THREADS, (out, x, x.size))


def converts(source: np.dtype, target: np.dtype) -> bool:
    """Whether the kernel converts between these dtypes."""
    return source != target and _is_known(source) and _is_known(target)


def _is_known(dtype: np.dtype) -> bool:
    return dtype in (np.float32, np.float16) or is_bfloat16(dtype)
