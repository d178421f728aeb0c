"""Einstein's summation: sums of products, told by the labels of the axes; and what it makes easy.

Two tensors at a time are contracted, from left to right, each pair by one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from minigrad.ops.diagonal import diagonal
from minigrad.ops.matmul import matmul
from minigrad.ops.reduce import sum
from minigrad.ops.shape import broadcast_to, permute, reshape

Labels = tuple[Hashable, ...]


def einsum(equation: str, *operands: Any) -> Any:
    """Sums of products, such as ``einsum("bij,bjk->bik", a, b)`` for a batch of matrix products.

    Args:
        equation: a letter for each axis of each operand, separated by commas; after ``->`` the output's.
            Axes of one letter have one size (or size 1, which is stretched) and are multiplied; letters that
            are not in the output are summed over. ``...`` stands for any number of axes, which broadcast.
            Without ``->`` the output has the axes of ``...`` and then the letters that occur once, sorted.
        operands: tensors of one dtype, or one sequence of them.

    Raises:
        ValueError: the equation is malformed, or does not fit the shapes.
    """
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    labels, output = _parse(equation, operands)
    sizes = _sizes(equation, labels, operands)
    terms = [_without_repeats(x, own, sizes) for x, own in zip(operands, labels, strict=True)]
    total, own = terms[0]
    for i, (x, others) in enumerate(terms[1:], start=2):
        wanted = set(output).union(*(later for _, later in terms[i:]))
        total, own = _contract(total, own, x, others, wanted, sizes)
    total, own = _summed(total, own, set(output))
    return permute(total, tuple(own.index(label) for label in output))


def tensordot(a: Any, b: Any, dims: int | Sequence[Sequence[int]] = 2) -> Any:
    """The sum of products over pairs of axes.

    ``dims`` is a number n, for the last n axes of ``a`` with the first n of ``b``, or two lists of axes. The
    output has the other axes of ``a``, then those of ``b``.
    """
    if isinstance(dims, int):
        pairs = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    else:
        pairs = ([d % max(a.ndim, 1) for d in dims[0]], [d % max(b.ndim, 1) for d in dims[1]])
    if len(pairs[0]) != len(pairs[1]) or any(
        not (0 <= i < a.ndim and 0 <= j < b.ndim and a.shape[i] == b.shape[j])
        for i, j in zip(*pairs, strict=False)
    ):
        raise ValueError(
            f"tensordot: dims {dims} do not pair axes of one size of shapes {a.shape} and {b.shape}"
        )
    own: list[Hashable] = [("a", d) for d in range(a.ndim)]
    others: list[Hashable] = [("b", d) for d in range(b.ndim)]
    for i, j in zip(*pairs, strict=True):
        others[j] = own[i]
    wanted = {label for label in own + others if (label in own) != (label in others)}
    sizes = dict(zip(own + others, a.shape + b.shape, strict=True))
    return _contract(a, tuple(own), b, tuple(others), wanted, sizes)[0]


def inner(a: Any, b: Any) -> Any:
    """The sums of products over the last axes of both; the product, if one has no axes."""
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    return tensordot(a, b, ([-1], [-1]))


# ---- the equation -----------------------------------------------------------------------------------------


def _parse(equation: str, operands: Sequence) -> tuple[list[Labels], Labels]:
    """The labels of each operand's axes, and of the output's; axes of ``...`` are numbered from the last."""
    inputs, arrow, given = equation.replace(" ", "").partition("->")
    parts = inputs.split(",")
    if len(parts) != len(operands):
        raise ValueError(
            f"einsum: {equation!r} names {len(parts)} operands, but there are {len(operands)} tensors"
        )
    labels = [_labels(equation, part, x.ndim) for part, x in zip(parts, operands, strict=True)]
    stretched = max((len([n for n in own if isinstance(n, int)]) for own in labels), default=0)
    ellipsis = tuple(range(stretched - 1, -1, -1))
    letters = [label for own in labels for label in own if isinstance(label, str)]
    if not arrow:
        return labels, (*ellipsis, *sorted(c for c in set(letters) if letters.count(c) == 1))
    before, dots, after = given.partition("...")
    output = (*before, *(ellipsis if dots else ()), *after)
    wrong = [c for c in before + after if c not in letters or (before + after).count(c) > 1]
    if wrong:
        raise ValueError(
            f"einsum: {wrong[0]!r} in the output of {equation!r} is in no input, or is there twice"
        )
    return labels, output


def _labels(equation: str, part: str, ndim: int) -> Labels:
    before, dots, after = part.partition("...")
    extra = ndim - len(before + after)
    if not all(c.isalpha() for c in before + after):
        raise ValueError(f"einsum: {part!r} in {equation!r} holds what is neither a letter nor '...'")
    if extra < 0 or (extra and not dots):
        raise ValueError(f"einsum: {part!r} in {equation!r} does not name the axes of a tensor of {ndim}")
    return (*before, *range(extra - 1, -1, -1), *after)


def _sizes(equation: str, labels: Sequence[Labels], operands: Sequence) -> dict:
    sizes: dict[Hashable, int] = {}
    for own, x in zip(labels, operands, strict=True):
        for label, size in zip(own, x.shape, strict=True):
            if sizes.get(label, 1) != size != 1 and sizes.get(label, 1) != 1:
                raise ValueError(
                    f"einsum: the axes {label!r} of {equation!r} have the sizes {sizes[label]} and {size} "
                    f"(shapes {', '.join(str(t.shape) for t in operands)})"
                )
            if size != 1 or label not in sizes:
                sizes[label] = size
    return sizes


# ---- the sums ---------------------------------------------------------------------------------------------


def _without_repeats(x: Any, labels: Labels, sizes: dict) -> tuple[Any, Labels]:
    """The diagonals along axes of one label; the diagonal's axis comes last."""
    for label in set(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            shape = [sizes[label] if d in (first, second) else n for d, n in enumerate(x.shape)]
            x = diagonal(broadcast_to(x, tuple(shape)), 0, first, second)
            labels = (*(own for d, own in enumerate(labels) if d not in (first, second)), label)
    return x, labels


def _summed(x: Any, labels: Labels, wanted: set) -> tuple[Any, Labels]:
    """``x`` summed over the labels that nobody wants."""
    gone = tuple(d for d, label in enumerate(labels) if label not in wanted)
    return (sum(x, gone) if gone else x), tuple(label for label in labels if label in wanted)


def _contract(a: Any, own: Labels, b: Any, others: Labels, wanted: set, sizes: dict) -> tuple[Any, Labels]:
    """The product of ``a`` and ``b``, summed over the labels that are not ``wanted``."""
    a, own = _summed(a, own, wanted.union(others))
    b, others = _summed(b, others, wanted.union(own))
    batch = tuple(label for label in own if label in others and label in wanted)
    shared = tuple(label for label in own if label in others and label not in wanted)
    left = tuple(label for label in own if label not in others)
    right = tuple(label for label in others if label not in own)
    counts = {name: tuple(sizes[label] for label in part) for name, part in
              (("batch", batch), ("left", left), ("right", right))}  # fmt: skip
    rows = _as_matrices(a, own, (batch, left, shared), sizes)
    columns = _as_matrices(b, others, (batch, shared, right), sizes)
    product = matmul(rows, columns) if shared else rows * columns
    shape = counts["batch"] + counts["left"] + counts["right"]
    return reshape(product, shape), (*batch, *left, *right)


def _as_matrices(x: Any, labels: Labels, groups: Sequence[Labels], sizes: dict) -> Any:
    """``x`` with each group of its axes made one, in that order; axes of size 1 stretched."""
    order = [label for group in groups for label in group]
    x = permute(x, tuple(labels.index(label) for label in order))
    x = broadcast_to(x, tuple(sizes[label] for label in order))
    return reshape(x, tuple(math.prod(sizes[label] for label in group) for group in groups))
