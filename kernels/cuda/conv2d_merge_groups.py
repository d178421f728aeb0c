"""Launches ``conv2d_merge_groups.cu``: which groups of a convolution share a product, and their weights.

A tile of tensor cores has 32 rows at least, and what copies it takes 16 bytes of channels. Groups that have
fewer share one: to multiply with the zeros of the others' channels takes no longer than to leave the rows
idle, and pixels are copied, and stored, in longer runs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import workspace
from .matmul_tensor_core import ELEMENTS

THREADS = 256
SMALLEST_TILE = 32  # rows

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_merge = {element: CudaKernel(_source, f"conv2d_merge_groups<{element}>") for element in ELEMENTS}


@lru_cache(maxsize=1024)
def groups_of_product(groups: int, rows: int, copied: tuple[int, ...], per_chunk: int) -> int:
    """How many neighbouring ones of ``groups`` one product makes.

    As many as share the smallest tile's rows, if a group has ``rows``. The channels that are ``copied``, so
    many of a group, must begin at whole chunks of ``per_chunk``, unless there is but one product.
    """
    fitting = [
        merged
        for merged in range(1, groups + 1)
        if groups % merged == 0 and (merged == groups or not any(n * merged % per_chunk for n in copied))
    ]
    return max((merged for merged in fitting if merged * rows <= SMALLEST_TILE), default=fitting[0])


def merged_weights(weight: Any, element: str, groups: int, merged: int, pitch: int, transposed: bool) -> Any:
    """(rows, taps, pitch), of all groups: rows are the output's channels, or, ``transposed``, the input's."""
    outputs, channels, KH, KW = weight.shape
    of_output, of_channel, down, right = (stride // weight.itemsize for stride in weight.strides)
    outputs //= groups
    rows, columns, row_stride, column_stride = outputs, channels, of_output, of_channel
    if transposed:
        rows, columns, row_stride, column_stride = columns, rows, column_stride, row_stride
    out = workspace(weight, (groups * rows, KH * KW, pitch))
    fields = {"rows": rows, "columns": columns, "merged": merged, "KH": KH, "KW": KW, "pitch": pitch}
    fields |= {"row_stride": row_stride, "column_stride": column_stride, "down": down, "right": right}
    fields["group_stride"] = outputs * of_output
    arguments = (strided(out), strided(weight), out.size, fields)
    _merge[element].launch(blocks(out.size, THREADS), THREADS, arguments)
    return out
