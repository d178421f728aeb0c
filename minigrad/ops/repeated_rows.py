"""Products with rows that a lookup repeats: the projection of looked-up rows is a lookup of projected rows.

    x = table[indices]     so     x W^T = (table W^T)[indices]

A batch of 32 x 64 characters shows 65 different ones at most. A recurrent layer over their embedding
multiplies these 65 rows with its weight, in place of 2048. Backward, the gradients dz of all places t that
show the row k are added up first, and only their sums S_k are multiplied:

    dW = sum over t of dz_t^T x_t = sum over k of S_k^T row_k       S_k = sum of dz_t over all t that show k

The gradient of x is dz W, one row for each place, of which the embedding then adds those that show the same
row. These sums are S_k W. So where nobody looks at the gradient on its way, S_k W is sent from the first
place that shows row k, and nothing from the others: what reaches the table is the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.devices import cpu
from minigrad.dispatch import kernel_table
from minigrad.dtypes import is_half
from minigrad.graph import Node, mode, wrap
from minigrad.kernels import cpu as cpu_kernels
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.embedding import embedding_grad, embedding_rows
from minigrad.ops.linear import linear, linear_weight_grad
from minigrad.ops.matmul import _matmul as matmul

__all__ = ["linear_of_repeated", "project_each_kind", "projection_grads", "repeated_rows"]

_permute, _sum = get_op("permute"), get_op("sum")
_products = kernel_table("matmul")

LEAST_WORK = 1 << 18
"""Elements of a product's result below which to look for repetitions takes longer than it saves."""


def repeated_rows(x: Any, columns: int) -> Any:
    """For each row of ``x`` (..., E) the number of its kind, (...): rows with the same number are equal.

    None where that is not known, does not pay for a product with ``columns`` columns, or is not wanted: for
    16 bits, in which sums of gradients lose digits, or where another kernel for products was selected. It is
    known of the output of an embedding, and of a transposition of it, if the embedding's node is there (so
    not under ``no_grad``). ``x`` may have been changed since: rows that should be equal are compared.
    """
    if math.prod(x.shape[:-1]) * columns < LEAST_WORK or x.device is not cpu or is_half(x.dtype):
        return None
    if mode.autocast is not None or _products.is_replaced or _products.selected:
        return None
    node, order = x._node, None
    if node is not None and node.op is _permute and node.attrs["dims"][-1] == x.ndim - 1:
        node, order = node.edges[0], node.attrs["dims"][:-1]
    if not isinstance(node, Node) or node.op is not embedding_rows or node.inputs is None:
        return None
    indices = node.inputs[1]._array
    if order is not None:
        indices = indices.transpose(order)
    if 2 * (indices.max() + 1) <= indices.size:  # a small table: its rows number themselves, but for gaps
        present = np.bincount(indices.reshape(-1)) > 0
        numbers = np.ascontiguousarray((np.cumsum(present) - 1)[indices])
    else:
        numbers = np.unique(indices, return_inverse=True)[1].reshape(x.shape[:-1])
    rows = different_rows(x._array, numbers)
    if 2 * len(rows) > numbers.size or not np.array_equal(rows[numbers], x._array):
        return None
    return wrap(numbers, cpu)


def different_rows(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The rows of ``x`` by their ``numbers``, each once: (kinds, E)."""
    return x[np.unravel_index(_first_places(numbers), numbers.shape)]


def _first_places(numbers: np.ndarray) -> np.ndarray:
    """For each kind of row its first place in the flat ``numbers``; 0 for one that is not there."""
    flat = numbers.reshape(-1)
    first = np.zeros(flat.max() + 1, np.int64)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # of several values, the last one stays
    return first


def projection_grads(dz: Any, x: Any, weight: Any, numbers: Any) -> tuple[Any, Any, Any]:
    """The gradients of ``x``, ``weight`` and a bias, from that of z = x weight^T + bias; not differentiable.

    Args:
        dz: (..., N).
        x: (..., K), a tensor as :func:`repeated_rows` found it.
        weight: (N, K).
        numbers: (...), what it returned.
    """
    rows = wrap(different_rows(x._array, numbers._array), cpu)
    sums = embedding_grad(dz, numbers, num_embeddings=rows.shape[0])
    grad_x, grad_weight, grad_bias = None, linear_weight_grad(sums, rows), _sum(sums, dim=(0,), keepdim=False)
    if x.requires_grad and _is_watched(x):
        grad_x = matmul(dz, weight)
    elif x.requires_grad:
        first, places = wrap(_first_places(numbers._array), cpu), math.prod(numbers.shape)
        grad_x = embedding_grad(matmul(sums, weight), first, num_embeddings=places).reshape(x.shape)
    return grad_x, grad_weight, grad_bias


def _is_watched(x: Any) -> bool:
    """Whether anyone but the embedding sees the gradient of ``x``: a hook, or who asked ``grad`` for it."""
    node = x._node
    while isinstance(node, Node) and not node.hooks and (node.number, 0) not in mode.targets:
        if node.op is embedding_rows:
            return False
        node = node.edges[0] if node.op is _permute else None
    return True


# ---- the projection as an op of its own -------------------------------------------------------------------


@op
def linear_of_repeated(xp, x, weight, bias=None, numbers=None):
    """``linear``, where rows of x with the same one of ``numbers`` (...), integers from 0 on, are equal."""
    return linear.reference(xp, x, weight, bias)


@linear_of_repeated.grad
def _(g, _z, x, weight, bias, numbers):
    if numbers is None or mode.grad:  # what is differentiated again has the plain derivatives
        grad_x, grad_weight = matmul(g, weight) if x.requires_grad else None, linear_weight_grad(g, x)
        grad_bias = _sum(g, dim=tuple(range(g.ndim - 1)), keepdim=False)
    else:
        grad_x, grad_weight, grad_bias = projection_grads(g, x, weight, numbers)
    return grad_x, grad_weight, None if bias is None else grad_bias, None


@linear_of_repeated.shape
def _(x, weight, bias=None, numbers=None):
    if numbers is not None and numbers.shape != x.shape[:-1]:
        raise ValueError(
            f"linear_of_repeated: numbers must have the shape {x.shape[:-1]} of the rows, got {numbers.shape}"
        )
    return linear._shape_rule(x, weight, bias)


def has_numbers(*inputs: Any, **_: Any) -> bool:
    """Whether the last input of an op, the numbers of the kinds, is there."""
    return inputs[-1] is not None and inputs[-1].size > 0


def project_each_kind(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, numbers: np.ndarray) -> Any:
    """The different rows of ``x``, projected: (kinds, N)."""
    rows = different_rows(x, numbers)
    projected = np.empty((len(rows), len(weight)), x.dtype)
    cpu_kernels.matmul.threaded(projected, rows, weight.T, get_num_threads(), bias)
    return projected


@linear_of_repeated.kernel("cpu", name="projected_once", when=has_numbers)
def _(out, x, weight, bias, numbers):
    """One product for each kind of row, whose result is then copied to all its places."""
    projected = project_each_kind(x, weight, bias, numbers)
    cpu_kernels.embedding.gather(
        out.reshape(numbers.size, len(weight)), projected, numbers.reshape(-1), get_num_threads()
    )
