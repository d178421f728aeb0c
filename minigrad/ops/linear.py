"""The linear layer x W^T + b as one op, and with ReLU; bias and ReLU are fused into the product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels import cpu, cuda
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.activation import relu_grad
from minigrad.ops.matmul import _matmul as matmul
from minigrad.ops.matmul import multiply
from minigrad.ops.shape import reshaped


@op(one_dtype=True, arithmetic=True, ops_alone=True)
def linear(xp, x, weight, bias=None):
    """(..., K) and (N, K) -> (..., N): x weight^T + bias."""
    product = xp.matmul(x, weight.T)
    return product if bias is None else product + bias


@op(one_dtype=True, arithmetic=True, ops_alone=True)
def linear_relu(xp, x, weight, bias=None):
    """(..., K) and (N, K) -> (..., N): x weight^T + bias where that is above 0, else 0."""
    return xp.maximum(linear.reference(xp, x, weight, bias), 0)


@op(one_dtype=True, arithmetic=True, ops_alone=True)
def linear_weight_grad(xp, g, x):
    """(..., N) and (..., K) -> (N, K): the sum of the outer products of the rows."""
    return xp.matmul(_rows(g).T, _rows(x))


_sum = get_op("sum")


def _input_grad(g: Any, weight: Any) -> Any:
    """g weight, for rows of any number of dimensions as one product of matrices."""
    return matmul(g, weight) if g.ndim == 2 else linear(g, weight.T, None)


linear.grad(
    x=lambda g, _y, _x, weight, _bias: _input_grad(g, weight),
    weight=lambda g, _y, x, _weight, _bias: linear_weight_grad(g, x),
    bias=lambda g, _y, _x, _weight, _bias: _sum(g, dim=tuple(range(g.ndim - 1)), keepdim=False),
)


@linear_relu.grad
def _(g, y, x, weight, bias, *, needed=None):
    wanted = [need or None for need in needed]
    return linear.apply_gradient(relu_grad(g, y), None, (x, weight, bias), {}, wanted)


linear_weight_grad.grad(
    g=lambda gg, _z, _g, x: linear(x, gg, None),
    x=lambda gg, _z, g, _x: matmul(g, gg),
)


@linear.shape
@linear_relu.shape
def _(x, weight, bias=None):
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: weight expects {weight.shape[-1]} input features (weight shape {weight.shape}), "
            f"got input of shape {x.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"linear: bias must have shape {weight.shape[:1]} (weight shape {weight.shape}), got {bias.shape}"
        )
    return *x.shape[:-1], weight.shape[0]


@linear_weight_grad.shape
def _(g, x):
    if g.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"linear_weight_grad: all sizes but the last must agree, got shapes {g.shape}, {x.shape}"
        )
    return g.shape[-1], x.shape[-1]


def _rows(x: Any) -> Any:
    """(..., K) as a matrix, a view where the strides allow it."""
    return x if x.ndim == 2 else reshaped(x, (math.prod(x.shape[:-1]), x.shape[-1]))


# ---- kernels ----------------------------------------------------------------------------------------------


def _in_order_of_memory(g: Any, x: Any) -> tuple[Any, Any]:
    """Both with the axes of their rows in the order in which the larger one has them in memory: a transposed
    sequence need then not be copied to become a matrix. The sum is the same."""
    larger = x if x.size > g.size else g
    if is_contiguous(larger):
        return g, x
    rows = larger.ndim - 1
    order = (*sorted(range(rows), key=larger.strides.__getitem__, reverse=True), rows)
    return g.transpose(order), x.transpose(order)


def _register(run: Any, name: str) -> None:
    def forward(out, x, weight, bias):
        run(_rows(out), _rows(x), weight.T, get_num_threads())
        if bias is not None:
            out += bias

    def weight_grad(out, g, x):
        g, x = _in_order_of_memory(g, x)
        run(out, _rows(g).T, _rows(x), get_num_threads())

    forward.__doc__ = weight_grad.__doc__ = run.__doc__
    linear.kernel("cpu", name=name, layout="strided")(forward)
    linear_weight_grad.kernel("cpu", name=name, layout="strided")(weight_grad)


for _name in ("naive", "tiled", "packed", "threaded"):
    _register(getattr(cpu.matmul, _name), _name)


def _directly(x: Any, weight: Any, bias: Any) -> Any:
    return cpu.matmul.product(x, weight.T, get_num_threads(), bias)


def _weight_grad_directly(g: Any, x: Any) -> Any:
    if g.ndim > 2:
        if g.shape[:-1] != x.shape[:-1]:
            return None  # the rule of the shapes says what is wrong
        g, x = _in_order_of_memory(g, x)
        g, x = _rows(g), _rows(x)
    return cpu.matmul.product(g.T, x, get_num_threads())


def _with_relu_directly(x: Any, weight: Any, bias: Any) -> Any:
    return cpu.matmul.product(x, weight.T, get_num_threads(), bias, True)


linear.direct = _directly
linear_relu.direct = _with_relu_directly
linear_weight_grad.direct = _weight_grad_directly


def has_product(x: Any, *_: Any, **__: Any) -> bool:
    """Whether matmul has a kernel for this dtype: for 16 bits that takes tensor cores."""
    return x.itemsize > 2 or cuda.matmul_tensor_core.is_supported(x)


@linear.kernel("cuda", "sim", name="product", dtypes="f4 f8 f2 bf16", layout="strided", when=has_product)
def _(out, x, weight, bias):
    """The best kernel of matmul; most of them add the bias to the sums that they have in registers."""
    multiply(_rows(out), _rows(x), weight.T, bias)


@linear_weight_grad.kernel(
    "cuda", "sim", name="product", dtypes="f4 f8 f2 bf16", layout="strided", when=has_product
)
def _(out, g, x):
    """The best kernel of matmul."""
    multiply(out, _rows(g).T, _rows(x))


@linear.kernel("cpu", name="fused_bias", layout="strided")
def _(out, x, weight, bias):
    """Adds the bias in the epilogue of *threaded*, which saves a second pass over the output."""
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    cpu.matmul.threaded(_rows(out), _rows(x), weight.T, get_num_threads(), bias)


@linear_relu.kernel("cpu", name="fused", layout="strided")
def _(out, x, weight, bias):
    """Applies ReLU in the epilogue of *threaded*, too. On a card it stays an op of its own."""
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    cpu.matmul.threaded(_rows(out), _rows(x), weight.T, get_num_threads(), bias, True)
