"""Launches ``attention.cu``: scaled dot-product attention and its gradients, on a card or on the simulator.

All arrays are float32. q is (B, H, L, E), k (B, H, S, E), v (B, H, S, V): features are neighbours, other
strides are free. out and its gradient are (B, H, L, V), lse is (B, H, L), all C-contiguous. There is at least
one key, and at most ``MAX_FEATURES`` features.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import most_shared_bytes, workspace
from .matmul_tensor_core import CHUNK_BYTES, padded_rows
from .vector import VECTOR_BYTES, is_wide, starts_at_vector

MAX_FEATURES = 128
THREADS = 256
WARP = 32
ROWS_AT_ONCE = 4  # by a thread of attention_row_sums, as in attention.cu
PAD = 4  # of the rows of a tile, as in attention.cu
FLOAT = 4  # bytes

Three = tuple[Any, Any, Any]

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_row_sums = {
    wide: CudaKernel(_source, f"attention_row_sums<T, {str(wide).lower()}>") for wide in (False, True)
}


# By the size of the features, D: how many queries and keys are in a tile. Forward, the first of which a
# multiprocessor has the shared memory for two blocks; else the last.
FORWARD_TILES = {
    32: ((128, 64), (64, 64)),
    64: ((128, 64), (64, 64), (64, 32)),
    128: ((64, 32), (32, 32)),
}
BACKWARD_TILES = {32: (64, 64), 64: (64, 64), 128: (32, 32)}
RESERVED = 1024  # bytes of a multiprocessor's shared memory, which a card takes for each block


def _instances(kernel: str, tiles: dict[int, tuple[int, int]]) -> dict[int, CudaKernel]:
    return {D: CudaKernel(_source, f"{kernel}<{D}, {q}, {k}>") for D, (q, k) in tiles.items()}


_forward = {
    (D, tile): CudaKernel(_source, f"attention_forward<{D}, {tile[0]}, {tile[1]}>")
    for D, tiles in FORWARD_TILES.items()
    for tile in tiles
}
_grad_keys = _instances("attention_grad_keys", BACKWARD_TILES)
_grad_queries = _instances("attention_grad_queries", BACKWARD_TILES)


def forward(
    out: Any, lse: Any, q: Any, k: Any, v: Any, is_causal: bool, scale: float, tile: Any = None
) -> None:
    """``out`` and ``lse``, by an online softmax over tiles of keys."""
    B, H, L, _ = q.shape
    D = padded(q, v)
    tile = tile or forward_tile(q, D)
    q, k, v = map(with_whole_chunks, (q, k, v))
    _forward[D, tile].launch(
        B * H * blocks(L, tile[0]),
        THREADS,
        (out, lse, strided(q), strided(k), strided(v), shape_of(q, k, v, is_causal, scale)),
        shared_bytes=_tile_bytes(D, *tile),
    )


def backward(grads: Three, g: Any, qkv: Three, out: Any, lse: Any, is_causal: bool, scale: float) -> None:
    """``grads``, of ``q``, ``k`` and ``v``, for ``g``, that of ``out``; probabilities are computed anew."""
    (dq, dk, dv), (q, k, v) = grads, qkv
    B, H, L, _ = q.shape
    S, D = v.shape[2], padded(q, v)
    queries, keys = BACKWARD_TILES[D]
    inputs = g, strided(q), strided(k), strided(v), lse, row_sums(g, out), shape_of(q, k, v, is_causal, scale)
    shared_bytes = backward_bytes(D)
    _grad_keys[D].launch(B * H * blocks(S, keys), THREADS, (dk, dv, *inputs), shared_bytes)
    _grad_queries[D].launch(B * H * blocks(L, queries), THREADS, (dq, *inputs), shared_bytes)


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


def forward_tile(q: Any, D: int) -> tuple[int, int]:
    """How many queries and keys are in a tile of the forward kernel, where ``q`` is."""
    *larger, smallest = FORWARD_TILES[D]
    there = most_shared_bytes(q) + RESERVED
    return next((tile for tile in larger if 2 * (_tile_bytes(D, *tile) + RESERVED) <= there), smallest)


def forward_bytes(D: int) -> int:
    """The shared memory that a block needs at least."""
    return _tile_bytes(D, *FORWARD_TILES[D][-1])


def _tile_bytes(D: int, queries: int, keys: int) -> int:
    """Of tiles of queries, of keys, of values, and of probabilities."""
    return FLOAT * ((queries + 2 * keys) * (D + PAD) + queries * (keys + PAD))


def with_whole_chunks(x: Any) -> Any:
    """``x`` (B, H, rows, features), or a copy of it, with rows that are multiples of 16 bytes apart."""
    steps = [stride for size, stride in zip(x.shape[:3], x.strides[:3], strict=True) if size > 1]
    return x if starts_at_vector(x) and not any(n % CHUNK_BYTES for n in steps) else copied(x)


def copied(x: Any) -> Any:
    """A copy of ``x`` (B, H, rows, features), with rows that are multiples of 16 bytes apart."""
    B, H, rows, features = x.shape
    padded = padded_rows(x.reshape(B * H, rows, features))[:, :, :features]
    return padded.reshape(B, H, rows, features)


def backward_bytes(D: int) -> int:
    """The shared memory of a block of either gradient: two tiles of queries, two of keys, one of both."""
    queries, keys = BACKWARD_TILES[D]
    return FLOAT * (2 * (queries + keys) * (D + PAD) + queries * keys + PAD * max(queries, keys))


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
    return unchanging(heads=heads, L=L, S=S, **strides, E=E, V=V, scale=scale, is_causal=is_causal)
