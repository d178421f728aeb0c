"""Launches ``attention_wgmma_grad.cu``: gradients of attention in 16 bits, for compute capability 9.0.

The arrays are those of ``attention_tensor_core``; what the copy engine cannot read is copied, as in
``attention_wgmma``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from . import attention_tensor_core, tensor_map
from .attention import Three, padded, row_sums, shape_of
from .attention_wgmma import for_copy_engine
from .matmul_wgmma import BOX_ALIGNMENT, BOX_BYTES, BOX_ROWS, THREADS, is_supported, require

__all__ = ["backward", "is_supported"]

OWN, OTHERS, STAGES = 128, 64, 4  # as in attention_wgmma_grad.cu
FEATURES = (64, 128)  # in tiles, D

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")
_grad_keys = {D: CudaKernel(_source, f"attention_wgmma_grad_keys<T, {D}>") for D in FEATURES}
_grad_queries = {D: CudaKernel(_source, f"attention_wgmma_grad_queries<T, {D}>") for D in FEATURES}


def backward(grads: Three, g: Any, qkv: Three, out: Any, lse: Any, is_causal: bool, scale: float) -> None:
    """Tensor cores of compute capability 9.0; probabilities are computed anew, and stay in registers."""
    (dq, dk, dv), (q, k, v) = grads, qkv
    require(g, "attention_wgmma_grad")
    B, H, L, V = g.shape
    S, E = k.shape[2:]
    if 0 in (B, H, L, S, E, V) or max(L, S) > tensor_map.LARGEST_SIZE:
        return attention_tensor_core.backward(grads, g, qkv, out, lse, is_causal, scale)
    D = padded(q, v, FEATURES)
    lse = lse.astype(np.float32, copy=False)
    sums = row_sums(g, out)
    q, k, v = map(for_copy_engine, (q, k, v))
    g = for_copy_engine(g.reshape(1, B * H, L, V))
    gradients = [x.reshape(B * H, *x.shape[2:]) for x in grads]
    by_boxes = [tensor_map.fits(x) for x in gradients]
    maps = [tensor_map.describe(x) for x in (g, q, k, v)]
    to_q, to_k, to_v = (
        tensor_map.describe(x) if fits else maps[0]  # which is then not used
        for x, fits in zip(gradients, by_boxes, strict=True)
    )
    inputs = strided(g), strided(q), strided(k), strided(v), lse, sums, *maps
    shape = shape_of(q, k, v, is_causal, scale)
    shared_bytes = _shared_bytes(D)
    arguments: tuple = (dk, dv, *inputs, to_k, to_v, *by_boxes[1:], shape)
    _grad_keys[D].launch(B * H * blocks(S, OWN), THREADS, arguments, shared_bytes)
    arguments = (dq, *inputs, to_q, by_boxes[0], shape)
    _grad_queries[D].launch(B * H * blocks(L, OWN), THREADS, arguments, shared_bytes)


def _shared_bytes(D: int) -> int:
    """Of a block: two tiles of its own, and pairs of others."""
    rows = 2 * OWN + 2 * STAGES * OTHERS
    return rows // BOX_ROWS * (2 * D // tensor_map.BOX_ROW_BYTES) * BOX_BYTES + BOX_ALIGNMENT
