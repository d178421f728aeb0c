"""Launches ``gather.cu``: elements taken along the middle axis, and put back; on a card or on the simulator.

``take``: ``x`` is (outer, size, inner), ``out`` and ``indices`` are (outer, n, inner). ``put``: ``g`` and
``indices`` are (outer, n, inner), ``out`` is (outer, size, inner). Indices are int64 in [-size, size); others
take NaN, and are left out of sums. Arrays are C-contiguous; floats are float32 or float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import array_module, embedding

THREADS = 256  # in a block

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_take = CudaKernel(_source, "take<T>")
_put = CudaKernel(_source, "put<T>")


def take(out: Any, x: Any, indices: Any) -> None:
    """A thread for each element of the output."""
    n, size, inner = _sizes("take", x, out, indices)
    _take.launch(blocks(out.size, THREADS), THREADS, (out, x, indices, out.size, n, size, inner))


def put_walk(out: Any, g: Any, indices: Any) -> None:
    """A thread for each element of the sums, which looks through the indices of its column."""
    n, size, inner = _sizes("put", out, g, indices)
    _put.launch(blocks(out.size, THREADS), THREADS, (out, g, indices, out.size, n, size, inner))


def put_sorted(out: Any, g: Any, indices: Any) -> None:
    """All indices are sorted first, as positions in the output; for columns too long to be looked through."""
    _, size, inner = _sizes("put", out, g, indices)
    xp = array_module(out)
    outer = xp.arange(out.shape[0]).reshape(-1, 1, 1)
    rows = xp.where(indices < 0, indices + size, indices)
    # Where, not a mask: to write through a mask, CuPy counts on the host what it selects, and waits for that.
    outside = (rows < 0) | (rows >= size)
    positions = xp.where(outside, -1, (outer * size + rows) * inner + xp.arange(inner))
    embedding.sum_found(out.reshape(-1, 1), g.reshape(-1, 1), positions.reshape(-1))


def _sizes(what: str, whole: Any, picked: Any, indices: Any) -> tuple[int, int, int]:
    """(n, size, inner), where the shapes fit."""
    if whole.ndim != 3 or picked.shape != indices.shape or picked.shape[::2] != whole.shape[::2]:
        raise ValueError(
            f"{what} kernel: indices of {indices.shape} into {whole.shape} along axis 1 do not give "
            f"{picked.shape}"
        )
    return picked.shape[1], whole.shape[1], whole.shape[2]
