"""Launches ``attention_wgmma.cu``: attention in 16 bits on a card of compute capability 9.0.

The arrays are those of ``attention_tensor_core``. The copy engine reads q, k and v where they lie if features
are neighbours and all else is multiples of 16 bytes apart; else it is given copies that are so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import attention_tensor_core, tensor_map
from .attention import copied, padded, shape_of
from .matmul_wgmma import BOX_ALIGNMENT, BOX_BYTES, BOX_ROWS, THREADS, is_supported, require

__all__ = ["forward", "is_supported"]

QUERIES, KEYS, STAGES = 128, 128, 6  # as in attention_wgmma.cu
LEAST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # scores of -infinity are multiplied with it

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")
_forward = {D: CudaKernel(_source, f"attention_wgmma<T, {D}>") for D in (64, 128)}


def forward(out: Any, lse: Any, q: Any, k: Any, v: Any, is_causal: bool, scale: float) -> None:
    """Tensor cores of compute capability 9.0, which multiply while the softmax is taken of other scores.

    There is at least one key, and ``scale`` is from LEAST_SCALE to LARGEST_SCALE.
    """
    require(out, "attention_wgmma")
    if not LEAST_SCALE <= scale <= LARGEST_SCALE:
        raise ValueError(f"attention wgmma kernel: expected a positive scale, got {scale}")
    B, H, L, V = out.shape
    if 0 in (*out.shape, q.shape[-1]) or max(L, k.shape[2]) > tensor_map.LARGEST_SIZE:
        return attention_tensor_core.forward(out, lse, q, k, v, is_causal, scale)
    D = padded_features(q, v)
    q, k, v = map(for_copy_engine, (q, k, v))
    whole = out.reshape(B * H, L, V)
    by_boxes = tensor_map.fits(whole)
    maps = [tensor_map.describe(x) for x in (q, k, v)]
    maps.append(tensor_map.describe(whole) if by_boxes else maps[0])  # which is then not used
    shape = shape_of(q, k, v, is_causal, scale)
    arguments = (out, lse, strided(q), strided(k), strided(v), *maps, by_boxes, shape)
    _forward[D].launch(B * H * blocks(L, QUERIES), THREADS, arguments, shared_bytes(D))


def padded_features(q: Any, v: Any) -> int:
    """The size of the features in tiles, D."""
    return padded(q, v, _forward)


def shared_bytes(D: int) -> int:
    """Of a block: a tile of queries, and the ring."""
    boxes = (QUERIES + STAGES * KEYS) // BOX_ROWS * (2 * D // tensor_map.BOX_ROW_BYTES)
    return boxes * BOX_BYTES + BOX_ALIGNMENT


def for_copy_engine(x: Any) -> Any:
    """``x`` (B, H, rows, features), or a copy of it that the copy engine can read."""
    return x if tensor_map.fits(x) else copied(x)
