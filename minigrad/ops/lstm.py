"""The long short-term memory (Hochreiter and Schmidhuber 1997), as one op over a whole sequence.

The input has been projected beforehand, for all steps in one product: what is left for each step is the
product with the hidden state, and the cell. All values of the gates are kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minigrad.kernels import cpu
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.composed import composed_gradient, tensors
from minigrad.ops.index import getitem
from minigrad.ops.linear import linear_weight_grad
from minigrad.ops.shape import unsqueeze


@op(materialize_grads=False)
def lstm(xp, x, h0, c0, weight, *, reverse=False):
    """(T, N, 4 H) -> hidden states (T, N, H), cell states (T, N, H) and gates (T, N, 4 H).

    z = x_t + h_{t-1} weight^T has the pre-activations of the gates i, f, g and o side by side; i, f and o are
    sigmoids, g is a tanh. c_t = f c_{t-1} + i g, and h_t = o tanh(c_t).

    Args:
        x: the projected input, with the biases.
        h0, c0: (N, H), the states before the first step.
        weight: (4 H, H), of the hidden state.
        reverse: the first step is the last in time; the results stay where their inputs are.
    """
    sigmoid = get_op("sigmoid").reference
    h, c = h0, c0
    steps = []
    for t in _times(x.shape[0], reverse):
        i, f, g, o = _quarters(x[t] + h @ weight.T)
        i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
        c = f * c + i * g
        h = o * xp.tanh(c)
        steps.append((h, c, _joined(xp, i, f, g, o)))
    return tuple(xp.stack(parts) for parts in zip(*_in_order(steps, reverse), strict=True))


@op(materialize_grads=False)
def lstm_grad(xp, weight, c0, c, gates, grad_y=None, grad_c=None, grad_gates=None, *, reverse=False):
    """The gradients of ``lstm``'s x, h0 and c0, from those of its three outputs that have one."""
    dh = dc = dz = None
    steps = []
    for t in _times(gates.shape[0], not reverse):
        before = t + 1 if reverse else t - 1
        c_before = c[before] if 0 <= before < gates.shape[0] else c0
        i, f, g, o = _quarters(gates[t])
        tanh_c = xp.tanh(c[t])
        dh = _total(dz if dz is None else dz @ weight, grad_y if grad_y is None else grad_y[t])
        dc = _total(dc, grad_c if grad_c is None else grad_c[t])
        if dh is None:
            dh = c0 * 0
        dc = _total(dc, dh * o * (1 - tanh_c * tanh_c))
        slopes = dc * g, dc * c_before, dc * i, dh * tanh_c
        if grad_gates is not None:
            slopes = tuple(s + extra for s, extra in zip(slopes, _quarters(grad_gates[t]), strict=True))
        di, df, dg, do = slopes
        dz = _joined(xp, di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o))
        dc = dc * f
        steps.append(dz)
    return xp.stack(_in_order(steps, not reverse)), dz @ weight, dc


@lstm.grad
def _(g, y, _x, h0, c0, weight, *, reverse):
    hidden, c, gates = y
    grad_x, grad_h0, grad_c0 = lstm_grad(weight, c0, c, gates, *g, reverse=reverse)
    first, others, before = (slice(-1, None), slice(0, -1), slice(1, None)) if reverse else (
        slice(0, 1), slice(1, None), slice(0, -1)
    )  # fmt: skip
    grad_weight = linear_weight_grad(getitem(grad_x, index=first), unsqueeze(h0, 0))
    if grad_x.shape[0] > 1:
        grad_weight = grad_weight + linear_weight_grad(
            getitem(grad_x, index=others), getitem(hidden, index=before)
        )
    return grad_x, grad_h0, grad_c0, grad_weight


@lstm_grad.grad
def _(g, _z, weight, c0, c, gates, grad_y, grad_c, grad_gates, *, reverse):
    def composed(*inputs):
        return lstm_grad.reference(tensors, *inputs, reverse=reverse)

    return composed_gradient(composed, (weight, c0, c, gates, grad_y, grad_c, grad_gates), g)


@lstm.shape
def _(x, h0, c0, weight, *, reverse):
    H = weight.shape[-1]
    if weight.shape != (4 * H, H):
        raise ValueError(f"lstm: weight must have shape (4 H, H), got {weight.shape}")
    if x.ndim != 3 or x.shape[2] != 4 * H or x.shape[0] == 0:
        raise ValueError(f"lstm: expected a projected input (T, N, {4 * H}) with T > 0, got shape {x.shape}")
    T, N = x.shape[:2]
    for name, state in (("h0", h0), ("c0", c0)):
        if state.shape != (N, H):
            raise ValueError(f"lstm: {name} must have shape ({N}, {H}), got {state.shape}")
    return [(T, N, H), (T, N, H), (T, N, 4 * H)]


@lstm_grad.shape
def _(weight, c0, c, gates, grad_y, grad_c, grad_gates, *, reverse):
    return [gates.shape, c0.shape, c0.shape]


# ---- the pieces of a step, for arrays and for tensors -----------------------------------------------------


def _times(T: int, reverse: bool) -> range:
    return range(T - 1, -1, -1) if reverse else range(T)


def _in_order(steps: list, reverse: bool) -> list:
    return steps[::-1] if reverse else steps


def _quarters(z: Any) -> Iterator:
    H = z.shape[1] // 4
    return (z[:, k * H : (k + 1) * H] for k in range(4))


def _joined(xp: Any, *quarters: Any) -> Any:
    N, H = quarters[0].shape
    return xp.stack(quarters, 1).reshape(N, 4 * H)


def _total(x: Any, y: Any) -> Any:
    """The sum of what is there."""
    if x is None or y is None:
        return y if x is None else x
    return x + y


# ---- kernels ----------------------------------------------------------------------------------------------


@lstm.kernel("cpu", name="fused_sequence")
def _(outs, x, h0, c0, weight, *, reverse):
    """All steps in one call: the weight packed once, the gates' functions on tiles that lie in cache, and
    each thread with its own rows of the batch from the first step to the last."""
    cpu.lstm.forward(*outs, x, h0, c0, weight, reverse, get_num_threads())


def _has_outer_gradients(
    weight: Any, c0: Any, c: Any, gates: Any, grad_y: Any, grad_c: Any, grad_gates: Any, **_: Any
) -> bool:
    return grad_y is not None and grad_gates is None


@lstm_grad.kernel("cpu", name="fused_sequence", when=_has_outer_gradients)
def _(outs, weight, c0, c, gates, grad_y, grad_c, _grad_gates, *, reverse):
    """All steps in one call, as in the forward direction."""
    cpu.lstm.backward(*outs, weight, c0, c, gates, grad_y, grad_c, reverse, get_num_threads())
