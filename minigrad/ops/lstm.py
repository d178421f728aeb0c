"""The long short-term memory (Hochreiter and Schmidhuber 1997), as one op over a whole sequence.

All values of the gates are kept for the gradient, which walks back along the sequence for the gradients of
the pre-activations z; from those of all steps come the others, each in one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad.dispatch import only_if_selected
from minigrad.graph import mode
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.composed import composed_gradient, tensors
from minigrad.ops.elementwise import zeros_like
from minigrad.ops.join import concat
from minigrad.ops.linear import has_product, linear
from minigrad.ops.matmul import _matmul as matmul
from minigrad.ops.matmul import multiply
from minigrad.ops.repeated_rows import has_numbers, project_each_kind, projection_grads
from minigrad.ops.shape import unsqueeze


@op(materialize_grads=False)
def lstm(xp, x, h0, c0, weight_ih, weight_hh, bias=None, numbers=None, *, reverse=False):
    """(T, N, E) -> hidden states (T, N, H), cell states (T, N, H) and gates (T, N, 4 H).

    z = x_t weight_ih^T + h_{t-1} weight_hh^T + bias has the pre-activations of the gates i, f, g and o side
    by side; i, f and o are sigmoids, g is a tanh. c_t = f c_{t-1} + i g, and h_t = o tanh(c_t).

    Of 16 bits, all results have 16 bits, as in PyTorch. But from step to step c goes in float32: it is a sum
    over the steps, to which 16 bits would soon add nothing more.

    Args:
        x: the sequence.
        h0, c0: (N, H), the states before the first step.
        weight_ih, weight_hh: (4 H, E) and (4 H, H), of the input and of the hidden state.
        bias: (4 H,), or None.
        numbers: (T, N), integers from 0 on, or None: vectors of x with the same number are equal, so that a
            kernel may multiply each of them once; see :mod:`minigrad.ops.repeated_rows`.
        reverse: the first step is the last in time; the results stay where their inputs are.
    """
    sigmoid = get_op("sigmoid").reference
    projected = get_op("linear").reference(xp, x, weight_ih, bias)
    h, c = h0, c0
    steps = []
    for t in times(x.shape[0], reverse):
        i, f, g, o = quarters(projected[t] + h @ weight_hh.T)
        i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
        c = f * c + i * g
        h = o * xp.tanh(c)
        steps.append((h, c, joined(xp, i, f, g, o)))
    return tuple(xp.stack(parts) for parts in zip(*in_order(steps, reverse), strict=True))


@op(materialize_grads=False)
def lstm_grad(xp, weight_hh, c0, c, gates, grad_y=None, grad_c=None, grad_gates=None, *, reverse=False):
    """The gradients of ``lstm``'s z, h0 and c0, from those of its three outputs that have one."""
    dh = dc = dz = None
    steps = []
    for t in times(gates.shape[0], not reverse):
        before = t + 1 if reverse else t - 1
        c_before = c[before] if 0 <= before < gates.shape[0] else c0
        i, f, g, o = quarters(gates[t])
        tanh_c = xp.tanh(c[t])
        dh = total(dz if dz is None else dz @ weight_hh, grad_y if grad_y is None else grad_y[t])
        dc = total(dc, grad_c if grad_c is None else grad_c[t])
        if dh is None:
            dh = c0 * 0
        dc = total(dc, dh * o * (1 - tanh_c * tanh_c))
        slopes = dc * g, dc * c_before, dc * i, dh * tanh_c
        if grad_gates is not None:
            slopes = tuple(s + extra for s, extra in zip(slopes, quarters(grad_gates[t]), strict=True))
        di, df, dg, do = slopes
        dz = joined(xp, di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o))
        dc = dc * f
        steps.append(dz)
    return xp.stack(in_order(steps, not reverse)), dz @ weight_hh, dc


@op
def lstm_weight_grad(xp, dz, x, h0, hidden, *, reverse=False, with_bias=True):
    """The gradients of ``lstm``'s weight_ih, weight_hh and bias, which may be left empty, from those of z."""
    T, N, E = x.shape
    before = xp.concatenate([hidden[1:], h0[None]] if reverse else [h0[None], hidden[:-1]])
    rows = dz.reshape(T * N, dz.shape[2])
    summed = rows if with_bias else rows[:, :0]
    return rows.T @ x.reshape(T * N, E), rows.T @ before.reshape(T * N, h0.shape[1]), summed.sum(0)


@lstm.grad
def _(g, y, x, h0, c0, weight_ih, weight_hh, bias, numbers, *, reverse):
    hidden, c, gates = y
    dz, grad_h0, grad_c0 = lstm_grad(weight_hh, c0, c, gates, *g, reverse=reverse)
    if numbers is None or mode.grad:  # what is differentiated again has the plain derivatives
        grad_ih, grad_hh, grad_bias = lstm_weight_grad(dz, x, h0, hidden, reverse=reverse)
        grad_x = matmul(dz, weight_ih) if x.requires_grad else None
    else:
        _, grad_hh, _ = lstm_weight_grad(dz, x[..., :0], h0, hidden, reverse=reverse, with_bias=False)
        grad_x, grad_ih, grad_bias = projection_grads(dz, x, weight_ih, numbers)
    return grad_x, grad_h0, grad_c0, grad_ih, grad_hh, grad_bias, None


@lstm_grad.grad
def _(g, _z, weight_hh, c0, c, gates, grad_y, grad_c, grad_gates, *, reverse):
    def composed(*inputs):
        return lstm_grad.reference(tensors, *inputs, reverse=reverse)

    return composed_gradient(composed, (weight_hh, c0, c, gates, grad_y, grad_c, grad_gates), g)


@lstm_weight_grad.grad
def _(g, _y, dz, x, h0, hidden, *, reverse, with_bias):
    """Each result is bilinear: what stands beside the other factor goes to the factor itself."""
    grad_ih, grad_hh, grad_bias = g
    grad_dz = linear(x, grad_ih, grad_bias if with_bias else None)
    before = concat([hidden[1:], unsqueeze(h0, 0)] if reverse else [unsqueeze(h0, 0), hidden[:-1]])
    grad_before = matmul(dz, grad_hh)
    last = zeros_like(unsqueeze(h0, 0))
    if reverse:
        grad_h0, grad_hidden = grad_before[-1], concat([last, grad_before[:-1]])
    else:
        grad_h0, grad_hidden = grad_before[0], concat([grad_before[1:], last])
    return grad_dz + linear(before, grad_hh), matmul(dz, grad_ih), grad_h0, grad_hidden


@lstm.shape
def _(x, h0, c0, weight_ih, weight_hh, bias=None, numbers=None, *, reverse):
    H = weight_hh.shape[-1]
    if weight_hh.shape != (4 * H, H):
        raise ValueError(f"lstm: weight_hh must have shape (4 H, H), got {weight_hh.shape}")
    if x.ndim != 3 or x.shape[0] == 0:
        raise ValueError(f"lstm: expected a sequence (T, N, E) with T > 0, got shape {x.shape}")
    T, N, E = x.shape
    for name, array, shape in (
        ("weight_ih", weight_ih, (4 * H, E)),
        ("bias", bias, (4 * H,)),
        ("h0", h0, (N, H)),
        ("c0", c0, (N, H)),
        ("numbers", numbers, (T, N)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"lstm: {name} must have shape {shape}, got {array.shape}")
    return [(T, N, H), (T, N, H), (T, N, 4 * H)]


@lstm_grad.shape
def _(weight_hh, c0, c, gates, grad_y, grad_c, grad_gates, *, reverse):
    return [gates.shape, c0.shape, c0.shape]


@lstm_weight_grad.shape
def _(dz, x, h0, hidden, *, reverse, with_bias):
    return [(dz.shape[2], x.shape[2]), (dz.shape[2], h0.shape[1]), (dz.shape[2] if with_bias else 0,)]


# ---- the pieces of a step, for arrays and for tensors -----------------------------------------------------


def times(T: int, reverse: bool) -> range:
    return range(T - 1, -1, -1) if reverse else range(T)


def in_order(steps: list, reverse: bool) -> list:
    return steps[::-1] if reverse else steps


def quarters(z: Any) -> Iterator:
    H = z.shape[1] // 4
    return (z[:, k * H : (k + 1) * H] for k in range(4))


def joined(xp: Any, *parts: Any) -> Any:
    N, H = parts[0].shape
    return xp.stack(parts, 1).reshape(N, len(parts) * H)


def total(x: Any, y: Any) -> Any:
    """The sum of what is there."""
    if x is None or y is None:
        return y if x is None else x
    return x + y


# ---- kernels ----------------------------------------------------------------------------------------------

HALVES = "f4 f8 f2 bf16"


@lstm.kernel("cpu", name="fused_sequence")
def _(outs, x, h0, c0, weight_ih, weight_hh, bias, _numbers, *, reverse):
    """All steps in one call: the weights packed once, the gates' functions on tiles that lie in cache, and
    each thread with its own rows of the batch from the first step to the last."""
    cpu.lstm.forward(*outs, x, h0, c0, weight_ih, weight_hh, bias, reverse, get_num_threads())


@lstm.kernel("cpu", name="projected_once", when=has_numbers)
def _(outs, x, h0, c0, weight_ih, weight_hh, bias, numbers, *, reverse):
    """Adds the lookup of projections: weight_ih meets each different vector of x once, before all steps."""
    projected = project_each_kind(x, weight_ih, bias, numbers)
    cpu.lstm.forward_of_lookup(*outs, projected, numbers, h0, c0, weight_hh, reverse, get_num_threads())


def _has_outer_gradients(
    weight_hh: Any, c0: Any, c: Any, gates: Any, grad_y: Any, grad_c: Any, grad_gates: Any, **_: Any
) -> bool:
    return grad_y is not None and grad_gates is None


@lstm_grad.kernel("cpu", name="fused_sequence", layout="strided", when=_has_outer_gradients)
def _(outs, weight_hh, c0, c, gates, grad_y, grad_c, _grad_gates, *, reverse):
    """All steps in one call, as in the forward direction; a batch-first layer's gradient is read as it is."""
    weight_hh, c0, c, gates = (np.ascontiguousarray(x) for x in (weight_hh, c0, c, gates))
    grad_c = None if grad_c is None else np.ascontiguousarray(grad_c)
    if grad_y.strides[2] != grad_y.itemsize:
        grad_y = np.ascontiguousarray(grad_y)
    cpu.lstm.backward(*outs, weight_hh, c0, c, gates, grad_y, grad_c, reverse, get_num_threads())


@lstm_weight_grad.kernel("cpu", name="shared_packing")
def _(outs, dz, x, h0, hidden, *, reverse, with_bias):
    """Both products and the sum of dz in one walk: each block of dz is packed once for all three."""
    cpu.lstm.weight_grad(*outs, dz, x, h0, hidden, reverse, get_num_threads())


@lstm.kernel("cuda", "sim", name="fused_step", dtypes=HALVES, when=has_product)
def _(outs, x, h0, c0, weight_ih, weight_hh, bias, _numbers, *, reverse):
    """The inputs of all steps in one product; then a launch for each step, from its product to its state."""
    multiply(_rows(outs[2]), _rows(x), weight_ih.T)
    cuda.recurrent.lstm(outs, h0, c0, weight_hh, bias, reverse)


@lstm.kernel(
    "cuda",
    "sim",
    name="fused_sequence",
    dtypes=HALVES,
    when=lambda x, h0, c0, weight_ih, weight_hh, *_, **__: (
        has_product(x) and cuda.recurrent_sequence.takes(weight_hh)
    ),
    prefer=lambda x, h0, c0, weight_ih, weight_hh, *_, **__: cuda.recurrent_sequence.is_reckoned_faster(
        len(h0), weight_hh
    ),
)
def _(outs, x, h0, c0, weight_ih, weight_hh, bias, _numbers, *, reverse):
    """The same product; then one launch for all steps, of blocks that go through time each on their own."""
    multiply(_rows(outs[2]), _rows(x), weight_ih.T)
    cuda.recurrent_sequence.lstm(outs, h0, c0, weight_hh, bias, reverse)


@lstm.kernel(
    "cuda",
    "sim",
    name="fused_cluster",
    dtypes=HALVES,
    when=lambda x, h0, c0, weight_ih, weight_hh, *_, **__: (
        has_product(x) and cuda.recurrent_cluster.takes(weight_hh)
    ),
    prefer=only_if_selected,
)
def _(outs, x, h0, c0, weight_ih, weight_hh, bias, _numbers, *, reverse):
    """The same for larger layers, on compute capability 9.0: blocks of a cluster share out the weights, and
    exchange states by way of their shared memories."""
    multiply(_rows(outs[2]), _rows(x), weight_ih.T)
    cuda.recurrent_cluster.lstm(outs, h0, c0, weight_hh, bias, reverse)


@lstm_grad.kernel("cuda", "sim", name="fused_step", dtypes=HALVES, when=_has_outer_gradients)
def _(outs, weight_hh, c0, c, gates, grad_y, grad_c, _grad_gates, *, reverse):
    """A launch for each step, as in the forward direction."""
    cuda.recurrent.lstm_grad(outs, weight_hh, c0, c, gates, grad_y, grad_c, reverse)


@lstm_grad.kernel(
    "cuda",
    "sim",
    name="fused_sequence",
    dtypes=HALVES,
    when=lambda weight_hh, *others, **_: (
        cuda.recurrent_sequence.takes(weight_hh) and _has_outer_gradients(weight_hh, *others)
    ),
    prefer=lambda weight_hh, c0, *_, **__: cuda.recurrent_sequence.is_reckoned_faster(len(c0), weight_hh),
)
def _(outs, weight_hh, c0, c, gates, grad_y, grad_c, _grad_gates, *, reverse):
    """One launch for all steps, as in the forward direction."""
    cuda.recurrent_sequence.lstm_grad(outs, weight_hh, c0, c, gates, grad_y, grad_c, reverse)


@lstm_grad.kernel(
    "cuda",
    "sim",
    name="fused_cluster",
    dtypes=HALVES,
    when=lambda weight_hh, *others, **_: (
        cuda.recurrent_cluster.takes(weight_hh) and _has_outer_gradients(weight_hh, *others)
    ),
    prefer=only_if_selected,
)
def _(outs, weight_hh, c0, c, gates, grad_y, grad_c, _grad_gates, *, reverse):
    """The same by the blocks of a cluster, as in the forward direction."""
    cuda.recurrent_cluster.lstm_grad(outs, weight_hh, c0, c, gates, grad_y, grad_c, reverse)


@lstm_weight_grad.kernel("cuda", "sim", name="products", dtypes=HALVES, when=has_product)
def _(outs, dz, x, h0, hidden, *, reverse, with_bias):
    """A product for each weight, over all steps, and a sum down the columns of dz."""
    grad_ih, grad_hh, grad_bias = outs
    xp, dz = cuda.array_module(dz), _rows(dz)
    before = xp.concatenate([hidden[1:], h0[None]] if reverse else [h0[None], hidden[:-1]])
    multiply(grad_ih, dz.T, _rows(x))
    multiply(grad_hh, dz.T, _rows(before))
    if with_bias:
        cuda.reduce.axes(grad_bias, dz, (0,))


def _rows(sequence: Any) -> Any:
    """(T, N, features) as (T * N, features)."""
    T, N, features = sequence.shape
    return sequence.reshape(T * N, features)
