"""Launches ``attention.cu``: scaled dot-product attention and its gradients, on a card or on the simulator.

All arrays are float32. q is (B, H, L, E), k (B, H, S, E), v (B, H, S, V): features are neighbours, other
strides are free. out and its gradient are (B, H, L, V), lse is (B, H, L), all C-contiguous. There is at least
one key, and at most ``MAX_FEATURES`` features. The kernels read q, k, v and g where they lie if rows are
multiples of 16 bytes apart; else they are given copies that are so.

A mask is (B, H, L, S), of bool or float32, with any strides. Dropout is (p, seed, offset), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import philox
from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import most_shared_bytes, workspace
from .live import Live
from .matmul_tensor_core import CHUNK_BYTES, padded_rows
from .vector import VECTOR_BYTES, is_wide, starts_at_vector

MAX_FEATURES = 128
THREADS = 256
WARP = 32
ROWS_AT_ONCE = 4  # by a thread of attention_row_sums, as in attention.cu
PAD = 4  # of the rows of a tile, as in attention.cu
FLOAT = 4  # bytes

Three = tuple[Any, Any, Any]
Dropout = tuple[float, Any, Any]
Tile = tuple[int, int, int]

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_row_sums = {wide: CudaKernel(_source, f"attention_row_sums<T, {wide}>") for wide in (False, True)}


# By the size of the features, D: how many rows a block has of its own (queries, or keys for their gradients),
# how many of the other side are in a step, and the block's warps. The first is taken of which there is the
# shared memory for WARPS_AT_A_TIME on a multiprocessor; else the first that fits a block.
FORWARD_TILES = {
    32: ((128, 64, 4), (64, 32, 4)),
    64: ((128, 64, 4), (128, 32, 4), (64, 32, 4)),
    128: ((64, 64, 4), (64, 32, 4), (32, 32, 4)),
}
BACKWARD_TILES = {
    32: ((128, 32, 4), (64, 32, 4)),
    64: ((128, 32, 4), (64, 32, 4)),
    128: ((128, 64, 8), (64, 64, 8), (32, 32, 4)),
}
WARPS_AT_A_TIME = 8  # as in attention.cu
PART = 32  # columns of p that go from lane to lane at a time, as in attention.cu
L2_BYTES = 32 * 2**20  # of caches of 40 to 72 MB
RESERVED = 1024  # bytes of a multiprocessor's shared memory, which a card takes for each block


def _instances(kernel: str, tiles: dict[int, tuple[Tile, ...]]) -> dict[tuple[int, Tile], CudaKernel]:
    return {
        (D, tile): CudaKernel(_source, f"{kernel}<{D}, {', '.join(map(str, tile))}, {PLAIN}>")
        for D, sizes in tiles.items()
        for tile in sizes
    }


def _weighted_instances(kernel: str, tiles: dict[int, tuple[Tile, ...]]) -> dict[tuple[int, str], CudaKernel]:
    """Those for masks and dropout, by D and the type of the mask: with the smallest tile, for most cards."""
    return {
        (D, mask): CudaKernel(_source, f"{kernel}<{D}, {', '.join(map(str, sizes[-1]))}, {mask}, true>")
        for D, sizes in tiles.items()
        for mask in MASKS
    }


PLAIN = "float, false"  # neither a mask nor dropout
MASKS = ("bool", "float")  # the latter also where there is none

_forward = _instances("attention_forward", FORWARD_TILES)
_grad_keys = _instances("attention_grad_keys", BACKWARD_TILES)
_grad_queries = _instances("attention_grad_queries", BACKWARD_TILES)
_forward_weighted = _weighted_instances("attention_forward", FORWARD_TILES)
_grad_keys_weighted = _weighted_instances("attention_grad_keys", BACKWARD_TILES)
_grad_queries_weighted = _weighted_instances("attention_grad_queries", BACKWARD_TILES)


def forward(
    out: Any,
    lse: Any,
    q: Any,
    k: Any,
    v: Any,
    is_causal: bool,
    scale: float,
    tile: Tile | None = None,
    mask: Any = None,
    dropout: Dropout | None = None,
) -> None:
    """``out`` and ``lse``, by an online softmax over tiles of keys."""
    B, H, L, _ = q.shape
    D = padded(q, v)
    if mask is None and dropout is None:
        rows, _, warps = tile = tile or _tile_for(q, FORWARD_TILES[D], partial(_forward_bytes, D))
        kernel = _forward[D, tile]
    else:
        rows, _, warps = tile = FORWARD_TILES[D][-1]
        kernel = _forward_weighted[D, mask_type(mask)]
    q, k, v = map(with_whole_chunks, (q, k, v))
    shape = shape_of(q, k, v, is_causal, scale)
    kernel.launch(
        B * H * blocks(L, rows),
        warps * WARP,
        (out, lse, strided(q), strided(k), strided(v), shape, *weighting(mask, dropout)),
        shared_bytes=_forward_bytes(D, tile),
    )


def backward(
    grads: Three,
    g: Any,
    qkv: Three,
    out: Any,
    lse: Any,
    is_causal: bool,
    scale: float,
    tile: Tile | None = None,
    mask: Any = None,
    dropout: Dropout | None = None,
) -> None:
    """``grads``, of ``q``, ``k`` and ``v``, for ``g``, that of ``out``; probabilities are computed anew."""
    (dq, dk, dv), (q, k, v) = grads, qkv
    B, H, L, _ = q.shape
    S, D = v.shape[2], padded(q, v)
    if mask is None and dropout is None:
        rows, _, warps = tile = tile or _tile_for(q, BACKWARD_TILES[D], partial(_backward_bytes, D))
        of_keys, of_queries = _grad_keys[D, tile], _grad_queries[D, tile]
    else:
        rows, _, warps = tile = BACKWARD_TILES[D][-1]
        which = D, mask_type(mask)
        of_keys, of_queries = _grad_keys_weighted[which], _grad_queries_weighted[which]
    sums = row_sums(g, out)
    q, k, v, g = map(with_whole_chunks, (q, k, v, g))
    shape = shape_of(q, k, v, is_causal, scale)
    arrays = strided(g), strided(q), strided(k), strided(v), lse, sums
    inputs = *arrays, row_stride(g), shape, *weighting(mask, dropout)
    threads, shared_bytes = warps * WARP, _backward_bytes(D, tile)
    of_keys.launch(B * H * blocks(S, rows), threads, (dk, dv, *inputs), shared_bytes)
    of_queries.launch(B * H * blocks(L, rows), threads, (dq, *inputs), shared_bytes)


def row_sums(g: Any, out: Any) -> Any:
    """sum(g * out) of each query, in float32."""
    sums, features = workspace(out, out.shape[:-1], np.float32), out.shape[-1]
    wide = is_wide(features, g, out)
    vectors = features * out.itemsize // VECTOR_BYTES if wide else features
    lanes = min(1 << max(vectors - 1, 0).bit_length(), WARP)  # a power of two
    rows = THREADS // lanes
    arguments = sums, g, out, sums.size, features
    _row_sums[wide].launch(blocks(sums.size, rows * ROWS_AT_ONCE), (lanes, rows), arguments)
    return sums


def padded(q: Any, v: Any, tiles: Iterable[int] = FORWARD_TILES) -> int:
    """The size of the features in tiles, D."""
    return next(D for D in tiles if max(q.shape[-1], v.shape[-1]) <= D)


def forward_bytes(D: int) -> int:
    """The shared memory that a block of the forward kernel needs at least."""
    return min(_forward_bytes(D, tile) for tile in FORWARD_TILES[D])


def backward_bytes(D: int) -> int:
    """The shared memory that a block of either gradient needs at least."""
    return min(_backward_bytes(D, tile) for tile in BACKWARD_TILES[D])


def _forward_bytes(D: int, tile: Tile) -> int:
    """Of tiles of queries, of keys, of values, and of probabilities."""
    rows, columns, _ = tile
    return FLOAT * ((rows + 2 * columns) * (D + PAD) + rows * (PART + PAD))


def _backward_bytes(D: int, tile: Tile) -> int:
    """Of two tiles of queries, two of keys, and one of both."""
    rows, columns, _ = tile
    return FLOAT * (2 * (rows + columns) * (D + PAD) + rows * (PART + PAD))


def _tile_for(array: Any, tiles: tuple[Tile, ...], bytes_of: Callable[[Tile], int]) -> Tile:
    """Which of the ``tiles`` suits the card that ``array`` is on."""
    most = most_shared_bytes(array)
    for tile in tiles:
        at_a_time = WARPS_AT_A_TIME // tile[2]
        if at_a_time * (bytes_of(tile) + RESERVED) <= most + RESERVED:
            return tile
    return next((tile for tile in tiles if bytes_of(tile) <= most), tiles[-1])


def with_whole_chunks(x: Any) -> Any:
    """``x`` (B, H, rows, features), or a copy of it, with rows that are multiples of 16 bytes apart."""
    steps = [stride for size, stride in zip(x.shape[:3], x.strides[:3], strict=True) if size > 1]
    return x if starts_at_vector(x) and not any(n % CHUNK_BYTES for n in steps) else copied(x)


def copied(x: Any) -> Any:
    """A copy of ``x`` (B, H, rows, features), with rows that are multiples of 16 bytes apart."""
    B, H, rows, features = x.shape
    padded = padded_rows(x.reshape(B * H, rows, features))[:, :, :features]
    return padded.reshape(B, H, rows, features)


def row_stride(x: Any) -> int:
    """How many elements the rows of ``x`` (B, H, rows, features) are apart; 0 where there is one, or none."""
    B, H, rows, features = x.shape
    matrices = x.reshape(B * H, rows, features)
    axis = 1 if rows > 1 else 0  # of one row each, the next one is the next matrix
    return matrices.strides[axis] // x.itemsize if matrices.shape[axis] > 1 and x.size else 0


def shape_of(q: Any, k: Any, v: Any, is_causal: bool, scale: float) -> unchanging:
    """The fields of struct AttentionShape.

    Where there is one matrix or row, or no element, they are 0 apart: what a kernel starts to copy beyond the
    last row is nothing, but from an address that must be a multiple of 16 bytes.
    """
    layouts = [(x.shape, x.strides) for x in (q, k, v)]
    return _shape_of(*layouts, q.itemsize, is_causal, scale)


@lru_cache(maxsize=1024)  # the same few layouts come in every step of a training
def _shape_of(q: tuple, k: tuple, v: tuple, itemsize: int, is_causal: bool, scale: float) -> unchanging:
    """From (shape, strides) of each array."""
    strides = {
        f"{name}_stride": tuple(
            step // itemsize if size > 1 and 0 not in shape else 0
            for size, step in zip(shape[:3], steps[:3], strict=True)
        )
        for name, (shape, steps) in (("q", q), ("k", k), ("v", v))
    }
    _, heads, L, E = q[0]
    _, _, S, V = v[0]
    return unchanging(
        heads=heads,
        L=L,
        S=S,
        **strides,
        E=E,
        V=V,
        scale=scale,
        is_causal=is_causal,
        matrices_together=matrices_together(q[0], v[0], itemsize) if is_causal else 1,
    )


def mask_type(mask: Any) -> str:
    """The type in the names of the kernels that take ``mask``."""
    return "bool" if mask is not None and mask.dtype == np.bool_ else "float"


def weighting(mask: Any, dropout: Dropout | None) -> tuple[Any, Any, Any]:
    """A kernel's last arguments: the mask, the live words, and the fields of struct AttentionWeighting."""
    if mask is None and dropout is None:
        return NO_WEIGHTING
    p, seed, offset = dropout or (0.0, 0, 0)
    live = None
    if isinstance(seed, Live):
        seed, offset, live = 0, 0, seed.words
    fields = {
        "mask_stride": (0, 0, 0, 0) if mask is None else _steps(mask),
        "seed": seed,
        "offset": offset,
        "threshold": philox.threshold(p),
        "kept_scale": 1 / (1 - p) if p < 1 else 0.0,
        "drops": p > 0,
    }
    return None if mask is None else strided(mask), live, fields


def _steps(mask: Any) -> tuple[int, ...]:
    return tuple(
        step // mask.itemsize if size > 1 else 0 for size, step in zip(mask.shape, mask.strides, strict=True)
    )


NO_WEIGHTING = (
    None,
    None,
    unchanging(mask_stride=(0, 0, 0, 0), seed=0, offset=0, threshold=0, kept_scale=1.0, drops=False),
)


def matrices_together(q: tuple[int, ...], v: tuple[int, ...], itemsize: int) -> int:
    """How many matrices' blocks are numbered together, by the shapes of ``q`` and ``v``.

    They are parts of all, of one size, for which an L2 cache has room for what their blocks read in common.
    """
    (B, H, _, E), (_, _, S, V) = q, v
    parts = blocks(B * H * S * (E + V) * itemsize, L2_BYTES)
    return max(blocks(B * H, max(parts, 1)), 1)
