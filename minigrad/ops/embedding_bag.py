"""The function ``embedding_bag``: the sum, mean or maximum of the embeddings of several indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.ops.elementwise import where
from minigrad.ops.embedding import row_number
from minigrad.ops.index import getitem
from minigrad.ops.lookup import embedding
from minigrad.ops.padding import pad
from minigrad.ops.reduce import amax
from minigrad.ops.scatter import index_add

__all__ = ["embedding_bag"]

MODES = ("sum", "mean", "max")


def embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """The rows of ``weight`` whose numbers stand in each bag, combined to one.

    Args:
        input: integers (bags, size), or all bags one after the other (n,), with ``offsets``.
        weight: (num_embeddings, embedding_dim).
        offsets: where each bag begins in ``input``, (bags,), rising from 0; a bag may be empty.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        per_sample_weights: of the input's shape, what rows are multiplied by; for ``"sum"`` alone.
        include_last_offset: ``offsets`` has one more, the number of elements.
        padding_idx: a number that belongs to no bag.
        max_norm, norm_type, scale_grad_by_freq, sparse: as in :func:`embedding`.

    Returns:
        (bags, embedding_dim); zeros for an empty bag.

    Raises:
        ValueError: shapes, offsets or options do not fit.
    """
    if mode not in MODES:
        raise ValueError(f"embedding_bag: mode is one of {MODES}, got {mode!r}")
    if per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape):
        raise ValueError(
            "embedding_bag: per_sample_weights have the input's shape, and need mode='sum'; got "
            f"{tuple(per_sample_weights.shape)} for {tuple(input.shape)}, mode {mode!r}"
        )
    bags, count = _bags(input, offsets, include_last_offset)
    device, flat = input.device, input.reshape(-1)
    padding = row_number("embedding_bag", padding_idx, weight.shape[0])
    options = (padding, max_norm, norm_type, scale_grad_by_freq, sparse)
    kept = (
        np.arange(len(bags)) if padding is None else np.flatnonzero(device.to_numpy(flat._array) != padding)
    )
    bags = bags[kept]
    chosen = device.from_numpy(kept)
    rows = embedding(getitem(flat, index=chosen), weight, *options)
    if per_sample_weights is not None:
        rows = rows * getitem(per_sample_weights.reshape(-1), index=chosen).unsqueeze(1)
    sizes = np.bincount(bags, minlength=count)
    if mode == "max":
        return _largest(rows, bags, sizes)
    with device.active():
        out = wrap(device.xp.zeros((count, weight.shape[1]), weight.dtype), device)
    out = index_add(out, 0, wrap(device.from_numpy(bags), device), rows)
    if mode == "sum":
        return out
    divisors = np.maximum(sizes, 1).astype(weight.dtype)[:, None]
    return out / wrap(device.from_numpy(divisors), device)


def _bags(input: Any, offsets: Any, include_last_offset: bool) -> tuple[np.ndarray, int]:
    """The bag of each element, and how many there are."""
    if input.ndim == 2:
        if offsets is not None:
            raise ValueError("embedding_bag: offsets belong to an input of one dimension")
        return np.repeat(np.arange(input.shape[0]), input.shape[1]), input.shape[0]
    if input.ndim != 1 or offsets is None:
        raise ValueError(
            "embedding_bag: expected an input (bags, size), or (n,) with offsets; got shape "
            f"{tuple(input.shape)}"
        )
    starts = offsets.device.to_numpy(offsets._array).astype(np.int64)
    ends = starts[1:] if include_last_offset else np.append(starts[1:], len(input))
    starts = starts[:-1] if include_last_offset else starts
    if len(starts) and (starts[0] != 0 or (ends < starts).any() or ends[-1] > len(input)):
        raise ValueError(f"embedding_bag: offsets rise from 0 to at most {len(input)}, got {starts.tolist()}")
    last = int(ends[-1]) if len(ends) else 0
    if last != len(input):
        raise ValueError(f"embedding_bag: the last offset is {last}, the input has {len(input)} elements")
    return np.repeat(np.arange(len(starts)), ends - starts), len(starts)


def _largest(rows: Any, bags: np.ndarray, sizes: np.ndarray) -> Any:
    """The largest of the rows of each bag, which follow one another: by a matrix that is filled up."""
    device = rows.device
    width = max(int(sizes.max(initial=0)), 1)
    is_there = np.arange(width) < sizes[:, None]
    places = np.full(is_there.shape, len(bags), np.int64)  # what fills up shows a row of zeros
    places[is_there] = np.arange(len(bags))
    spread = getitem(pad(rows, (0, 0, 0, 1)), index=device.from_numpy(places))
    mask = wrap(device.from_numpy(is_there[..., None]), device)
    found = amax(where(mask, spread, -math.inf), 1)
    return where(wrap(device.from_numpy((sizes > 0)[:, None]), device), found, 0.0)
