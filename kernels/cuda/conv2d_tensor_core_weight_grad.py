"""Launches ``conv2d_tensor_core_weight_grad.cu``: on tensor cores the gradient of convolution for its weight.

Arrays and options are those of :mod:`.conv2d_tensor_core`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import workspace
from .conv2d import fields_of
from .conv2d_merge_groups import SMALLEST_TILE, groups_of_product
from .conv2d_parts import add_taps, cut_into_parts
from .conv2d_tensor_core import THREADS, channels_last, padded_pitch
from .matmul import MULTIPROCESSORS
from .matmul_tensor_core import CHUNK_BYTES, CHUNKS, STAGES, element_of
from .transpose import Copy, transpose_together

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


class _Plan(NamedTuple):
    """How a gradient is found: what follows from the shapes.

    Attributes:
        shape, products: the fields of struct Conv2dShape and of struct Products.
        tile, tiles: the rows of a tile, and how many there are.
        parts, length: into how many parts the pixels are cut, and how many one has.
    """

    shape: unchanging
    products: unchanging
    tile: int
    tiles: int
    parts: int
    length: int


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """Tensor cores on tiles that are transposed on their way; blocks share the long sums over all pixels."""
    if out.size == 0:
        return
    shapes, element = (x.shape, out.shape, grad_output.shape, options), element_of(x)
    plan = _plan(shapes, element, x.itemsize)
    images: list[Copy] = []
    grads, grad_pitch = channels_last(grad_output, later=images)
    source, source_pitch = channels_last(x, later=images)
    transpose_together(images, [])
    partial = workspace(out, (plan.parts, out.size), np.float32)
    arguments = (partial, strided(grads), strided(source), grad_pitch, source_pitch, plan.length)
    structs = plan.products, plan.shape, _walk(shapes, x.itemsize, source_pitch)
    shared_bytes = STAGES * (plan.tile + TILE_N) * CHUNKS * CHUNK_BYTES
    kernel = _weight_grad[element, plan.tile]
    kernel.launch(plan.tiles * plan.parts, THREADS, (*arguments, *structs), shared_bytes)
    add_taps(out, partial)


@lru_cache(maxsize=1024)  # the same few convolutions come in every step of a training
def _plan(shapes: tuple, element: str, itemsize: int) -> _Plan:
    """For ``shapes``, the arguments of :func:`fields_of`."""
    shape = fields_of(*shapes)
    groups, pixels = shape["groups"], shape["N"] * shape["OH"] * shape["OW"]
    group_rows, group_channels = shape["O"] // groups, shape["C"] // groups
    merged = groups_of_product(groups, group_rows, (group_rows, group_channels), CHUNK_BYTES // itemsize)
    rows, channels = merged * group_rows, merged * group_channels
    products = {"count": groups // merged, "rows": rows, "channels": channels}
    products |= {"group_rows": group_rows, "group_channels": group_channels}
    columns = blocks(padded_pitch(channels, itemsize) * shape["KH"] * shape["KW"], TILE_N)
    columns *= groups // merged
    tile = SMALLEST_TILE if rows <= SMALLEST_TILE else tile_rows(element, rows, columns)
    tiles = blocks(rows, tile) * columns
    return _Plan(shape, unchanging(products), tile, tiles, *cut_pixels(pixels, tiles, element, tile))


@lru_cache(maxsize=1024)
def _walk(shapes: tuple, itemsize: int, pitch: int) -> unchanging:
    """The fields of struct Walk, from a pixel of the output that a thread copies to its next."""
    shape, pixels = fields_of(*shapes), THREADS * (CHUNK_BYTES // itemsize) // TILE_N
    H, W, OH, OW, stride_h, stride_w = (shape[name] for name in WALKED)
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
