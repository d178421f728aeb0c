"""Dropout; https://jmlr.org/papers/v15/srivastava14a.html."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.random import default_generator


def dropout(input: Any, p: float = 0.5, training: bool = True) -> Any:
    """Each element set to 0 with probability ``p``, the others scaled by 1 / (1 - p); only in training."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be a probability in [0, 1], got {p}")
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return input * 0.0
    kept = default_generator.numpy.random(input.shape, np.float32) >= p
    mask = kept.astype(input.dtype) * np.asarray(1.0 / (1.0 - p), input.dtype)
    return input * wrap(input.device.from_numpy(mask), input.device)
