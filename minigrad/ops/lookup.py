"""The function ``embedding``, with all of PyTorch's options; its op is in :mod:`minigrad.ops.embedding`."""

from __future__ import annotations

from typing import Any

from minigrad.autograd import mark_written, wrap
from minigrad.devices import cpu
from minigrad.graph import Variable
from minigrad.ops.elementwise import where
from minigrad.ops.embedding import check_numbers, embedding_grad, embedding_rows, row_number
from minigrad.ops.squares import norm

__all__ = ["embedding"]


def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """The rows of ``weight`` at the indices ``input``.

    Args:
        input: integers of any shape (...), in [0, num_embeddings).
        weight: (num_embeddings, embedding_dim).
        padding_idx: a row that gets no gradient; negative ones count from the end.
        max_norm: first scale the rows that are looked up and have a larger norm to this norm, in place.
        norm_type: the p of that p-norm.
        scale_grad_by_freq: divide the gradient of a row by how often its index is in ``input``.
        sparse: accepted and ignored; gradients are dense.

    Returns:
        (..., embedding_dim). Its gradient has the same bits in every run, on a card too.

    Raises:
        TypeError: ``input`` does not hold integers.
        ValueError: ``weight`` is no matrix, or ``padding_idx`` none of its rows.
        IndexError: a number is out of range. A card computes on, with NaN in its place, and the error is
            raised when a value is brought to the host, or by :func:`minigrad.cuda.synchronize`.
    """
    if not isinstance(input, Variable) or input.dtype.kind not in "iu":
        got = input.dtype if isinstance(input, Variable) else type(input).__name__
        raise TypeError(f"embedding: input must be a tensor of integers, got {got}")
    if weight.ndim != 2:
        raise ValueError(
            f"embedding: weight must be (num_embeddings, embedding_dim), got shape {weight.shape}"
        )
    if input.device is not cpu:  # where the kernel looks itself
        with input.device.active():
            check_numbers(input._array, weight._array)
    padding_idx = row_number("embedding", padding_idx, weight.shape[0])
    if max_norm is not None:
        _limit_norms(weight, input, max_norm, norm_type)
    out = embedding_rows(weight, input, padding_idx=padding_idx)
    if scale_grad_by_freq and out.requires_grad:
        frequency = _frequency(input, weight)
        out.register_hook(lambda g: g / frequency)
    return out


def _limit_norms(weight: Any, numbers: Any, max_norm: float, norm_type: float) -> None:
    """Scale the rows with these ``numbers`` that are longer than ``max_norm`` to that length, in place."""
    rows = embedding_rows(weight.detach(), numbers, padding_idx=None)
    norms = norm(rows, norm_type, -1, keepdim=True)
    limited = where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows)
    with weight.device.active():  # a number that comes twice writes the same twice
        weight._array[numbers._array] = limited._array
    mark_written(weight)


def _frequency(numbers: Any, weight: Any) -> Any:
    """How often each of the ``numbers`` comes among them, (..., 1), in the dtype of ``weight``."""
    with weight.device.active():
        ones = wrap(weight.device.xp.ones((*numbers.shape, 1), weight.dtype), weight.device)
    counts = embedding_grad(ones, numbers, num_embeddings=weight.shape[0], padding_idx=None)
    return embedding_rows(counts, numbers, padding_idx=None)
