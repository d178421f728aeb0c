"""Kronecker and cross products, block matrices, combinations, stacking and rotating; all composed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.ops.index import getitem
from minigrad.ops.join import concat, narrow, split, stack
from minigrad.ops.padding import pad
from minigrad.ops.shape import axis_of, broadcast_to, flip, reshape, transpose, unsqueeze

__all__ = [
    "block_diag",
    "cartesian_prod",
    "column_stack",
    "combinations",
    "cross",
    "dstack",
    "kron",
    "rot90",
    "tensor_split",
]


def kron(input: Any, other: Any) -> Any:
    """Kronecker's product: each element of ``input``, multiplied by the whole of ``other``, as a block."""
    ndim = max(input.ndim, other.ndim)
    a, b = ((1,) * (ndim - x.ndim) + tuple(x.shape) for x in (input, other))
    left = reshape(input, tuple(n for size in a for n in (size, 1)))
    right = reshape(other, tuple(n for size in b for n in (1, size)))
    return reshape(left * right, tuple(m * n for m, n in zip(a, b, strict=True)))


def block_diag(*tensors: Any) -> Any:
    """The matrices, scalars and rows among ``tensors`` along the diagonal of one matrix, zeros elsewhere."""
    blocks = []
    for i, x in enumerate(tensors):
        if x.ndim > 2:
            raise ValueError(f"block_diag: tensor {i} has more than two dimensions, shape {x.shape}")
        blocks.append(x if x.ndim == 2 else reshape(x, (1, x.numel())))
    width, left, rows = sum(x.shape[1] for x in blocks), 0, []
    for x in blocks:
        rows.append(pad(x, (left, width - left - x.shape[1])))
        left += x.shape[1]
    return concat(rows)


def cartesian_prod(*tensors: Any) -> Any:
    """All choices of one element of each vector, (n1 n2 ..., number of vectors); of one vector, itself."""
    for i, x in enumerate(tensors):
        if x.ndim != 1:
            raise ValueError(f"cartesian_prod: expected vectors, tensor {i} has shape {x.shape}")
    if len(tensors) == 1:
        return tensors[0]
    sizes = tuple(len(x) for x in tensors)
    spread = [reshape(x, (*(1,) * i, -1, *(1,) * (len(sizes) - 1 - i))) for i, x in enumerate(tensors)]
    return stack([reshape(broadcast_to(x, sizes), (-1,)) for x in spread], 1)


def combinations(input: Any, r: int = 2, with_replacement: bool = False) -> Any:
    """All choices of ``r`` elements of a vector in its order, (number of choices, r)."""
    if input.ndim != 1 or r < 0:
        raise ValueError(f"combinations: expected a vector and r of at least 0, got {input.shape} and {r}")
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    chosen = np.array(list(choose(range(len(input)), r)), np.int64).reshape(-1, r)
    return getitem(input, index=input.device.from_numpy(chosen))


def column_stack(tensors: Sequence) -> Any:
    """``tensors`` one after the other along dim 1; vectors as columns."""
    return concat([x if x.ndim > 1 else reshape(x, (x.numel(), 1)) for x in tensors], 1)


def dstack(tensors: Sequence) -> Any:
    """``tensors`` one after the other along dim 2, which those of fewer dimensions are given."""
    return concat([x if x.ndim > 2 else unsqueeze(_as_matrix(x), -1) for x in tensors], 2)


def _as_matrix(x: Any) -> Any:
    return x if x.ndim == 2 else reshape(x, (1, x.numel()))


def rot90(input: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Any:
    """Turned ``k`` times by 90 degrees in the plane of ``dims``, from the first to the second."""
    first, second = (axis_of("rot90", d, input.ndim) for d in dims)
    if first == second:
        raise ValueError(f"rot90: dims must be two different ones, got {tuple(dims)}")
    if k % 4 == 0:
        return input
    if k % 4 == 2:
        return flip(input, (first, second))
    turned = transpose(input, first, second)
    return flip(turned, (first,)) if k % 4 == 1 else flip(turned, (second,))


def tensor_split(input: Any, indices_or_sections: int | Sequence[int], dim: int = 0) -> tuple:
    """Views along ``dim``: so many pieces, of sizes that differ by at most 1, or pieces cut at indices."""
    size = input.shape[axis_of("tensor_split", dim, input.ndim)]
    if isinstance(indices_or_sections, int):
        count = indices_or_sections
        if count < 1:
            raise ValueError(f"tensor_split: the number of pieces must be positive, got {count}")
        return split(input, [size // count + (i < size % count) for i in range(count)], dim)
    cuts = [min(max(i + size if i < 0 else i, 0), size) for i in indices_or_sections]
    ends = zip([0, *cuts], [*cuts, size], strict=True)
    return tuple(narrow(input, dim, start, max(end - start, 0)) for start, end in ends)


def cross(input: Any, other: Any, dim: int = -1) -> Any:
    """The vector product along ``dim``, whose size is 3; the other sizes broadcast."""
    if any(x.shape[axis_of("cross", dim, x.ndim)] != 3 for x in (input, other)):
        raise ValueError(
            f"cross: dim {dim} must have size 3, got shapes {tuple(input.shape)} and {tuple(other.shape)}"
        )
    a, b = (_parts(x, dim) for x in (input, other))
    product = [a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)]
    return stack(product, dim)


def _parts(x: Any, dim: int) -> list:
    axis = dim % x.ndim
    return [getitem(x, index=(*(slice(None),) * axis, i)) for i in range(3)]
