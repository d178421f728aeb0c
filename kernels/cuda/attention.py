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
from . import workspace

MAX_FEATURES = 128
THREADS = 256
WARP = 32
PAD = 4  # of the rows of a tile, as in attention.cu
FLOAT = 4  # bytes

Three = tuple[Any, Any, Any]

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_row_sums = CudaKernel(_source, "attention_row_sums<T>")


# By the size of the features, D: how many queries and keys are in a tile.
FORWARD_TILES = {32: (64, 64), 64: (64, 64), 128: (64, 32)}
BACKWARD_TILES = {32: (64, 64), 64: (64, 64), 128: (32, 32)}


def _instances(kernel: str, tiles: dict[int, tuple[int, int]]) -> dict[int, CudaKernel]:
    return {D: CudaKernel(_source, f"{kernel}<{D}, {q}, {k}>") for D, (q, k) in tiles.items()}


_forward = _instances("attention_forward", FORWARD_TILES)
_grad_keys = _instances("attention_grad_keys", BACKWARD_TILES)
_grad_queries = _instances("attention_grad_queries", BACKWARD_TILES)


def forward(out: Any, lse: Any, q: Any, k: Any, v: Any, is_causal: bool, scale: float) -> None:
    """``out`` and ``lse``, by an online softmax over tiles of keys."""
    B, H, L, _ = q.shape
    D = padded(q, v)
    queries, _ = FORWARD_TILES[D]
    _forward[D].launch(
        B * H * blocks(L, queries),
        THREADS,
        (out, lse, strided(q), strided(k), strided(v), shape_of(q, k, v, is_causal, scale)),
        shared_bytes=forward_bytes(D),
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
    sums, rows = workspace(out, out.shape[:-1], np.float32), THREADS // WARP
    _row_sums.launch(blocks(sums.size, rows), (WARP, rows), (sums, g, out, sums.size, out.shape[-1]))
    return sums


def padded(q: Any, v: Any, tiles: Iterable[int] = FORWARD_TILES) -> int:
    """The size of the features in tiles, D."""
    return next(D for D in tiles if max(q.shape[-1], v.shape[-1]) <= D)


def forward_bytes(D: int) -> int:
    """The shared memory of a block: tiles of queries, of keys or values, and of probabilities."""
    queries, keys = FORWARD_TILES[D]
    return FLOAT * ((queries + keys) * (D + PAD) + queries * (keys + PAD))


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
