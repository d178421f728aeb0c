"""Distances and similarities of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dtypes import is_half
from minigrad.mixed_precision import WIDER, in_float32
from minigrad.ops.elementwise import as_dtype, clamp, floating_pair, sqrt
from minigrad.ops.reduce import sum
from minigrad.ops.shape import broadcast_to, unsqueeze
from minigrad.ops.squares import norm
from minigrad.promotion import result_dtype


def cdist(x1: Any, x2: Any, p: float = 2.0) -> Any:
    """The p-norm of each difference: (..., P, M) and (..., R, M) -> (..., P, R).

    The differences themselves are formed, (..., P, R, M), so that near points keep their digits. The gradient
    of a distance of 0 is 0.
    """
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise ValueError(f"cdist: expected (..., P, M) and (..., R, M), got shapes {x1.shape} and {x2.shape}")
    return norm(unsqueeze(x1, -2) - unsqueeze(x2, -3), p, -1)


def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    """The p-norm of x1 - x2 + eps over the last axis; both broadcast."""
    return norm(x1 - x2 + eps, p, -1, keepdim)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)), over ``dim``; both broadcast."""
    x1, x2 = floating_pair(x1, x2)
    dtype = result_dtype((x1._array, x2._array))
    x1, x2 = (as_dtype(x, dtype, x.device) for x in (x1, x2))
    if is_half(dtype):
        return in_float32(cosine_similarity, x1, x2, dim, eps, policy=WIDER)
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = broadcast_to(x1, shape), broadcast_to(x2, shape)
    # The limit is applied under the root, whose gradient at 0 would be infinite.
    squares = (clamp(sum(x * x, dim), min=eps * eps) for x in (x1, x2))
    first, second = (sqrt(square) for square in squares)
    return sum(x1 * x2, dim) / (first * second)
