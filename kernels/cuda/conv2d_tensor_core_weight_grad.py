"""Launches ``conv2d_tensor_core_weight_grad.cu``: on tensor cores the gradient of convolution for its weight.

Arrays and options are those of :mod:`.conv2d_tensor_core`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import workspace
from .conv2d import shape_fields
from .conv2d_merge_groups import SMALLEST_TILE, groups_of_product
from .conv2d_parts import add_taps, cut_into_parts
from .conv2d_tensor_core import THREADS, channels_last, padded_pitch
from .matmul import MULTIPROCESSORS
from .matmul_tensor_core import CHUNK_BYTES, CHUNKS, STAGES, element_of

TILE_N = 128  # channels of taps, as in conv2d_tensor_core_weight_grad.cu
PART = 512  # the fewest pixels that are worth a block of their own
WALKED = ("H", "W", "OH", "OW", "stride_h", "stride_w")  # of struct Conv2dShape, what struct Walk is made of
ROWS = {"float": (64,), "__half": (64, 128), "__nv_bfloat16": (64, 128)}  # of a tile, by the element

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_weight_grad = {
    (element, rows): CudaKernel(_source, f"conv2d_weight_grad_tensor_core<{element}, {rows}>")
    for element in ROWS
    for rows in (SMALLEST_TILE, *ROWS[element])
}


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tensor cores on tiles that are transposed on their way; blocks share the long sums over all pixels."""
    shape = shape_fields(x, out, grad_output, options)
    if 0 in out.shape:
        return
    element, groups, pixels = element_of(out), shape["groups"], shape["N"] * shape["OH"] * shape["OW"]
    group_rows, group_channels, taps = shape["O"] // groups, out.shape[1], shape["KH"] * shape["KW"]
    per_chunk = CHUNK_BYTES // x.itemsize
    merged = groups_of_product(groups, group_rows, (group_rows, group_channels), per_chunk)
    rows, channels = merged * group_rows, merged * group_channels
    products = {"count": groups // merged, "rows": rows, "channels": channels}
    products |= {"group_rows": group_rows, "group_channels": group_channels}
    columns = blocks(padded_pitch(channels, x.itemsize) * taps, TILE_N) * (groups // merged)
    tile = SMALLEST_TILE if rows <= SMALLEST_TILE else tile_rows(element, rows, columns)
    tiles = blocks(rows, tile) * columns
    parts, length = cut_pixels(pixels, tiles, element, tile)
    grads, grad_pitch = channels_last(grad_output)
    source, source_pitch = channels_last(x)
    partial = workspace(out, (parts, out.size), np.float32)
    apart = THREADS * per_chunk // TILE_N  # pixels, from one that a thread copies to its next
    walk = _walk(apart, source_pitch, **{name: shape[name] for name in WALKED})
    arguments = (partial, strided(grads), strided(source), grad_pitch, source_pitch, length, products)
    shared_bytes = STAGES * (tile + TILE_N) * CHUNKS * CHUNK_BYTES
    _weight_grad[element, tile].launch(tiles * parts, THREADS, (*arguments, shape, walk), shared_bytes)
    add_taps(out, partial)


@lru_cache(maxsize=1024)
def _walk(
    pixels: int, pitch: int, H: int, W: int, OH: int, OW: int, stride_h: int, stride_w: int
) -> unchanging:
    """The fields of struct Walk, in steps of so many ``pixels`` of the output."""
    rows, right = divmod(pixels, max(OW, 1))
    images, down = divmod(rows, max(OH, 1))
    height, width, down, right = OH * stride_h, OW * stride_w, down * stride_h, right * stride_w
    sizes = {"down": down, "right": right, "width": width, "height": height}
    elements = {
        "to_next": ((images * H + down) * W + right) * pitch,
        "to_next_row": (stride_h * W - width) * pitch,
        "to_next_image": (H - height) * W * pitch,
    }
    return unchanging(sizes | elements)


def tile_rows(element: str, rows: int, columns: int) -> int:
    """The height of a tile, of ``columns`` side by side: the larger, if there is one, and it covers ``rows``
    with no more.

    Where each multiprocessor has one, and sums are no longer cut into parts, it is the one with which the
    busiest has less to do. To bring what is multiplied by all rows counts as 32 more: an estimate.
    """
    large = ROWS[element][-1]
    if 2 * blocks(rows, 128) > blocks(rows, 64):
        return 64
    if blocks(rows, large) * columns <= MULTIPROCESSORS:
        return large

    def work(tile: int) -> int:
        return blocks(blocks(rows, tile) * columns, MULTIPROCESSORS) * (tile + 32)

    return min(large, 64, key=work)


def cut_pixels(pixels: int, tiles: int, element: str, tile: int) -> tuple[int, int]:
    """Into how many parts to cut sums over ``pixels``, and the length of one, a multiple of a step."""
    # Blocks of a multiprocessor: MIN_BLOCKS.
    resident = (4 if tile == SMALLEST_TILE else 2 if tile == 128 else 3) - (element == "float")
    step = CHUNKS * CHUNK_BYTES // (4 if element == "float" else 2)
    return cut_into_parts(pixels, tiles, resident * MULTIPROCESSORS, PART, step)
