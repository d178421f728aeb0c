"""Launches ``attention_tensor_core.cu``: attention and its gradients in 16 bits, on a card or simulated.

The arrays are those of ``attention``, float16 or bfloat16 but for lse, which *forward* gives in float32, and
*backward* takes in any floating dtype. The kernels read q, k, v and g where they lie if rows are multiples of
16 bytes apart; else they are given copies that are so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .attention import (
    MASKS,
    PLAIN,
    Dropout,
    Three,
    mask_type,
    padded,
    row_stride,
    row_sums,
    shape_of,
    weighting,
    with_whole_chunks,
)
from .matmul_tensor_core import CHUNK_BYTES, is_supported

__all__ = ["backward", "bytes_needed", "forward", "is_supported"]

THREADS = 128  # as in attention_tensor_core.cu
PER_CHUNK = 8  # elements
OF_QUERY_BYTES = 8  # its lse, and sum(g * out)

# By the size of the features, D: how many queries and keys are in a tile.
FORWARD_TILES = {64: (128, 64), 128: (128, 32)}
GRAD_KEYS_TILES = {64: (32, 128), 128: (32, 64)}
GRAD_QUERIES_TILES = {64: (128, 32), 128: (64, 32)}

# With masks or dropout: for more rows there are not enough registers.
WEIGHTED_FORWARD_TILES = {64: (64, 64), 128: (64, 64)}
WEIGHTED_GRAD_KEYS_TILES = {64: (32, 64), 128: (16, 64)}
WEIGHTED_GRAD_QUERIES_TILES = {64: (64, 32), 128: (64, 32)}

_source = CudaSource(Path(__file__).with_suffix(".cu"))


WEIGHTED = tuple(f"{mask}, true" for mask in MASKS)

Tiles = dict[int, tuple[int, int]]


def _instances(kernel: str, tiles: Tiles, weighted: Tiles) -> dict[tuple[int, str], CudaKernel]:
    """By D, and by the mask's type and whether there is a mask or dropout."""
    return {
        (D, weights): CudaKernel(_source, f"{kernel}<T, {D}, {q}, {k}, {weights}>")
        for sizes, variants in ((tiles, (PLAIN,)), (weighted, WEIGHTED))
        for D, (q, k) in sizes.items()
        for weights in variants
    }


def _weights(mask: Any, dropout: Dropout | None) -> str:
    return PLAIN if mask is None and dropout is None else f"{mask_type(mask)}, true"


_forward = _instances("attention_tensor_core", FORWARD_TILES, WEIGHTED_FORWARD_TILES)
_grad_keys = _instances("attention_tensor_core_grad_keys", GRAD_KEYS_TILES, WEIGHTED_GRAD_KEYS_TILES)
_grad_queries = _instances(
    "attention_tensor_core_grad_queries", GRAD_QUERIES_TILES, WEIGHTED_GRAD_QUERIES_TILES
)


def forward(
    out: Any,
    lse: Any,
    q: Any,
    k: Any,
    v: Any,
    is_causal: bool,
    scale: float,
    mask: Any = None,
    dropout: Dropout | None = None,
) -> None:
    """``out`` and ``lse``: products on tensor cores, whose scores and probabilities stay in registers."""
    B, H, L, _ = q.shape
    D = padded(q, v, FORWARD_TILES)
    weights = _weights(mask, dropout)
    queries, keys = (FORWARD_TILES if weights == PLAIN else WEIGHTED_FORWARD_TILES)[D]
    q, k, v = map(with_whole_chunks, (q, k, v))
    shape = shape_of(q, k, v, is_causal, scale)
    arguments = (out, lse, strided(q), strided(k), strided(v), shape, *weighting(mask, dropout))
    shared_bytes = _tile_bytes(D, queries + 2 * keys)
    _forward[D, weights].launch(B * H * blocks(L, queries), THREADS, arguments, shared_bytes)


def backward(
    grads: Three,
    g: Any,
    qkv: Three,
    out: Any,
    lse: Any,
    is_causal: bool,
    scale: float,
    mask: Any = None,
    dropout: Dropout | None = None,
) -> None:
    """``grads``, of ``q``, ``k`` and ``v``, for ``g``, that of ``out``; probabilities are computed anew."""
    (dq, dk, dv), (q, k, v) = grads, qkv
    B, H, L, _ = q.shape
    D = padded(q, v, FORWARD_TILES)
    lse = lse.astype(np.float32, copy=False)
    sums = row_sums(g, out)
    q, k, v, g = map(with_whole_chunks, (q, k, v, g))
    shape = shape_of(q, k, v, is_causal, scale)
    arrays = strided(g), strided(q), strided(k), strided(v), lse, sums
    inputs = *arrays, row_stride(g), shape, *weighting(mask, dropout)
    weights = _weights(mask, dropout)
    tile = (GRAD_KEYS_TILES if weights == PLAIN else WEIGHTED_GRAD_KEYS_TILES)[D]
    grid, shared_bytes = B * H * blocks(k.shape[2], tile[1]), _grad_keys_bytes(D, tile)
    _grad_keys[D, weights].launch(grid, THREADS, (dk, dv, *inputs), shared_bytes)
    queries, keys = (GRAD_QUERIES_TILES if weights == PLAIN else WEIGHTED_GRAD_QUERIES_TILES)[D]
    grid, shared_bytes = B * H * blocks(L, queries), _tile_bytes(D, 2 * queries + 4 * keys)
    _grad_queries[D, weights].launch(grid, THREADS, (dq, *inputs), shared_bytes)


def bytes_needed(q: Any, v: Any) -> int:
    """The most shared memory that a block of these kernels takes."""
    D = padded(q, v, FORWARD_TILES)
    return max(
        _tile_bytes(D, FORWARD_TILES[D][0] + 2 * FORWARD_TILES[D][1]),
        _grad_keys_bytes(D, GRAD_KEYS_TILES[D]),
        _tile_bytes(D, 2 * GRAD_QUERIES_TILES[D][0] + 4 * GRAD_QUERIES_TILES[D][1]),
    )


def _grad_keys_bytes(D: int, tile: tuple[int, int]) -> int:
    queries, keys = tile
    return _tile_bytes(D, 2 * keys + 4 * queries) + 2 * queries * OF_QUERY_BYTES


def _tile_bytes(D: int, rows: int) -> int:
    return rows * (D // PER_CHUNK + 1) * CHUNK_BYTES
