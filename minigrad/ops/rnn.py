"""The steps of a plain recurrent layer (Elman 1990) and of gated recurrent units (https://arxiv.org/abs/1406.1078).

Both take z, what the inputs of all steps contribute: one product, made before. What is left for a step is the
product with the state; and its weight's gradient, a sum over all steps, is again one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dispatch import only_if_selected
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.composed import composed_gradient, from_reference, tensors
from minigrad.ops.join import concat
from minigrad.ops.linear import linear_weight_grad
from minigrad.ops.lstm import HALVES, in_order, joined, times, total
from minigrad.ops.matmul import _matmul as matmul
from minigrad.ops.shape import unsqueeze

_sum = get_op("sum")


@op(one_dtype=True)
def rnn(xp, z, h0, weight_hh, *, nonlinearity="tanh", reverse=False):
    """h_t = tanh(z_t + h_{t-1} weight_hh^T), or ReLU in its place: (T, N, H) -> (T, N, H).

    Args:
        z: the pre-activations, but for what the state adds.
        h0: (N, H), the state before the first step.
        weight_hh: (H, H).
        nonlinearity: ``"tanh"`` or ``"relu"``.
        reverse: the first step is the last in time; the results stay where their inputs are.
    """
    activation = get_op(nonlinearity).reference
    h, steps = h0, []
    for t in times(z.shape[0], reverse):
        h = activation(xp, z[t] + h @ weight_hh.T)
        steps.append(h)
    return xp.stack(in_order(steps, reverse))


@op
def rnn_grad(xp, g, y, weight_hh, *, nonlinearity="tanh", reverse=False):
    """The gradient of ``rnn``'s z, from that of its states ``y``."""
    dz, steps = None, []
    for t in times(y.shape[0], not reverse):
        dh = g[t] if dz is None else g[t] + dz @ weight_hh
        dz = dh * (1 - y[t] * y[t] if nonlinearity == "tanh" else y[t] > 0)
        steps.append(dz)
    return xp.stack(in_order(steps, not reverse))


@rnn.grad
def _(g, y, z, h0, weight_hh, *, nonlinearity, reverse):
    dz = rnn_grad(g, y, weight_hh, nonlinearity=nonlinearity, reverse=reverse)
    first = dz[-1] if reverse else dz[0]
    return dz, matmul(first, weight_hh), linear_weight_grad(dz, _before(h0, y, reverse))


rnn_grad.grad(from_reference(rnn_grad))


@op(one_dtype=True, materialize_grads=False)
def gru(xp, z, h0, weight_hh, bias_hh=None, *, reverse=False):
    """(T, N, 3 H) -> states (T, N, H), and for the gradient r, u, n and c, (T, 4, N, H).

    a = z_t and b = h_{t-1} weight_hh^T + bias_hh have thirds: r and u = sigmoid(a + b) of the first two, of
    the last c = b and n = tanh(a + r c). Then h_t = (1 - u) n + u h_{t-1}.

    Args:
        z: what the inputs contribute.
        h0: (N, H), the state before the first step.
        weight_hh, bias_hh: (3 H, H), and (3 H,) or None.
        reverse: the first step is the last in time; the results stay where their inputs are.
    """
    sigmoid, H = get_op("sigmoid").reference, h0.shape[1]
    h, steps = h0, []
    for t in times(z.shape[0], reverse):
        a, b = z[t], h @ weight_hh.T
        b = b if bias_hh is None else b + bias_hh
        r, u = sigmoid(xp, a[:, :H] + b[:, :H]), sigmoid(xp, a[:, H : 2 * H] + b[:, H : 2 * H])
        c = b[:, 2 * H :]
        n = xp.tanh(a[:, 2 * H :] + r * c)
        h = n + u * (h - n)
        steps.append((h, xp.stack([r, u, n, c])))
    return tuple(xp.stack(parts) for parts in zip(*in_order(steps, reverse), strict=True))


@op(materialize_grads=False)
def gru_grad(xp, weight_hh, h0, y, gates, grad_y=None, grad_gates=None, *, reverse=False):
    """The gradients of ``gru``'s a and b, (T, N, 3 H), and of h0, from those of its outputs that have one."""
    carried, steps = None, []
    for t in times(y.shape[0], not reverse):
        earlier = t + 1 if reverse else t - 1
        h = y[earlier] if 0 <= earlier < y.shape[0] else h0
        r, u, n, c = (gates[t, k] for k in range(4))
        dh = total(carried, None if grad_y is None else grad_y[t])
        dh = h0 * 0 if dh is None else dh
        of_r, of_u, of_n, of_c = (None if grad_gates is None else grad_gates[t, k] for k in range(4))
        da = total(dh * (1 - u), of_n) * (1 - n * n)
        dr = total(da * c, of_r) * r * (1 - r)
        du = total(dh * (h - n), of_u) * u * (1 - u)
        db = joined(xp, dr, du, total(da * r, of_c))
        steps.append((joined(xp, dr, du, da), db))
        carried = db @ weight_hh + dh * u
    da, db = (xp.stack(parts) for parts in zip(*in_order(steps, not reverse), strict=True))
    return da, db, carried


@gru.grad
def _(g, outputs, z, h0, weight_hh, bias_hh, *, reverse):
    y, gates = outputs
    da, db, grad_h0 = gru_grad(weight_hh, h0, y, gates, *g, reverse=reverse)
    grad_bias = None if bias_hh is None else _sum(db, dim=(0, 1), keepdim=False)
    return da, grad_h0, linear_weight_grad(db, _before(h0, y, reverse)), grad_bias


@gru_grad.grad
def _(g, _z, *inputs, reverse):
    return composed_gradient(lambda *copies: gru_grad.reference(tensors, *copies, reverse=reverse), inputs, g)


def _before(h0: Any, y: Any, reverse: bool) -> Any:
    """The states before each step."""
    return concat([y[1:], unsqueeze(h0, 0)] if reverse else [unsqueeze(h0, 0), y[:-1]])


@rnn.shape
def _(z, h0, weight_hh, *, nonlinearity, reverse):
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"rnn: nonlinearity is 'tanh' or 'relu', got {nonlinearity!r}")
    _check("rnn", 1, z, h0, weight_hh, None)
    return z.shape


@rnn_grad.shape
def _(g, y, weight_hh, *, nonlinearity, reverse):
    return y.shape


@gru.shape
def _(z, h0, weight_hh, bias_hh, *, reverse):
    T, N, H = _check("gru", 3, z, h0, weight_hh, bias_hh)
    return [(T, N, H), (T, 4, N, H)]


@gru_grad.shape
def _(weight_hh, h0, y, gates, grad_y, grad_gates, *, reverse):
    thirds = (*y.shape[:2], 3 * h0.shape[1])
    return [thirds, thirds, h0.shape]


def _check(name: str, parts: int, z: Any, h0: Any, weight_hh: Any, bias_hh: Any) -> tuple[int, int, int]:
    """(T, N, H), if all shapes fit."""
    if z.ndim != 3 or z.shape[0] == 0:
        raise ValueError(f"{name}: expected z of shape (T, N, {parts} H) with T > 0, got {z.shape}")
    (T, N, _), H = z.shape, weight_hh.shape[-1]
    for what, array, shape in (
        ("weight_hh", weight_hh, (parts * H, H)),
        ("z", z, (T, N, parts * H)),
        ("h0", h0, (N, H)),
        ("bias_hh", bias_hh, (parts * H,)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name}: {what} must have shape {shape}, got {array.shape}")
    return T, N, H


# ---- kernels ----------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "tanh": (cpu.elementwise.tanh, cpu.elementwise.tanh_grad),
    "relu": (cpu.elementwise.relu, cpu.elementwise.relu_grad),
}


@rnn.kernel("cpu", name="steps")
def _(out, z, h0, weight_hh, *, nonlinearity, reverse):
    """Three calls a step, of matmul's kernel and two elementwise ones, in place: no tensors, no copies."""
    threads, (activation, _) = get_num_threads(), ACTIVATIONS[nonlinearity]
    h = h0
    for t in times(len(z), reverse):
        cpu.matmul.threaded(out[t], h, weight_hh.T, threads)
        h = out[t]
        cpu.elementwise.add(h, h, z[t], threads)
        activation(h, h, threads)


@rnn_grad.kernel("cpu", name="steps")
def _(out, g, y, weight_hh, *, nonlinearity, reverse):
    """Three calls a step, as in the forward direction."""
    threads, (_, activation_grad) = get_num_threads(), ACTIVATIONS[nonlinearity]
    sent_back, dz = np.empty_like(g[0]), None
    for t in times(len(y), not reverse):
        dh = g[t]
        if dz is not None:
            cpu.matmul.threaded(sent_back, dz, weight_hh, threads)
            cpu.elementwise.add(sent_back, sent_back, dh, threads)
            dh = sent_back
        dz = out[t]
        activation_grad(dz, dh, y[t], threads)


@gru.kernel("cpu", name="steps")
def _(outs, z, h0, weight_hh, bias_hh, *, reverse):
    """A product and ten elementwise calls a step, in place: no tensors, few copies."""
    (y, gates), H, threads, elementwise = outs, h0.shape[1], get_num_threads(), cpu.elementwise
    b, h = np.empty_like(z[0]), h0
    for t in times(len(z), reverse):
        cpu.matmul.threaded(b, h, weight_hh.T, threads, bias_hh)
        r, u, n, c = gates[t]
        for k, gate in enumerate((r, u)):
            third = slice(k * H, (k + 1) * H)
            elementwise.add(gate, z[t, :, third], b[:, third], threads)
            elementwise.sigmoid(gate, gate, threads)
        c[...] = b[:, 2 * H :]
        elementwise.mul(n, r, c, threads)
        elementwise.add(n, n, z[t, :, 2 * H :], threads)
        elementwise.tanh(n, n, threads)
        elementwise.sub(y[t], h, n, threads)
        elementwise.mul(y[t], y[t], u, threads)
        elementwise.add(y[t], y[t], n, threads)
        h = y[t]


def _is_of_states_alone(
    weight_hh: Any, h0: Any, y: Any, gates: Any, grad_y: Any, grad_gates: Any, **_: Any
) -> bool:
    return grad_y is not None and grad_gates is None


@gru_grad.kernel("cpu", name="steps", when=_is_of_states_alone)
def _(outs, weight_hh, h0, y, gates, grad_y, _grad_gates, *, reverse):
    """A product and twelve elementwise calls a step, as in the forward direction."""
    (da, db, dh), H, threads, elementwise = outs, h0.shape[1], get_num_threads(), cpu.elementwise
    work, (dr, du, dn) = np.empty_like(h0), np.empty_like(gates[0, :3])
    dh[...] = 0
    for t in times(len(y), not reverse):
        earlier = t + 1 if reverse else t - 1
        h = y[earlier] if 0 <= earlier < len(y) else h0
        r, u, n, c = gates[t]
        elementwise.add(dh, dh, grad_y[t], threads)
        elementwise.sub(work, 1.0, u, threads)
        elementwise.mul(work, work, dh, threads)
        elementwise.tanh_grad(dn, work, n, threads)
        elementwise.mul(work, dn, c, threads)
        elementwise.sigmoid_grad(dr, work, r, threads)
        elementwise.sub(work, h, n, threads)
        elementwise.mul(work, work, dh, threads)
        elementwise.sigmoid_grad(du, work, u, threads)
        elementwise.mul(work, dn, r, threads)
        for k, (a_part, b_part) in enumerate(((dr, dr), (du, du), (dn, work))):
            third = slice(k * H, (k + 1) * H)
            da[t, :, third], db[t, :, third] = a_part, b_part
        elementwise.mul(dh, dh, u, threads)
        cpu.matmul.threaded(work, db[t], weight_hh, threads)
        elementwise.add(dh, dh, work, threads)


@rnn.kernel("cuda", "sim", name="fused_step", dtypes=HALVES)
def _(out, z, h0, weight_hh, *, nonlinearity, reverse):
    """A launch for each step, from the product with the state before to the new state."""
    cuda.recurrent.rnn(out, z, h0, weight_hh, nonlinearity, reverse)


@rnn_grad.kernel("cuda", "sim", name="fused_step", dtypes=HALVES)
def _(out, g, y, weight_hh, *, nonlinearity, reverse):
    """A launch for each step, as in the forward direction."""
    cuda.recurrent.rnn_grad(out, g, y, weight_hh, nonlinearity, reverse)


@gru.kernel("cuda", "sim", name="fused_step", dtypes=HALVES)
def _(outs, z, h0, weight_hh, bias_hh, *, reverse):
    """A launch for each step, from the product with the state before to the new state."""
    cuda.recurrent.gru(outs, z, h0, weight_hh, bias_hh, reverse)


@gru_grad.kernel("cuda", "sim", name="fused_step", dtypes=HALVES, when=_is_of_states_alone)
def _(outs, weight_hh, h0, y, gates, grad_y, _grad_gates, *, reverse):
    """A launch for each step, as in the forward direction."""
    cuda.recurrent.gru_grad(outs, weight_hh, h0, y, gates, grad_y, reverse)


def _fits_one_launch(a: Any, b: Any, weight_hh: Any, *_: Any, **__: Any) -> bool:
    return cuda.recurrent_sequence.takes(weight_hh)


def _prefers_one_launch(sequence: Any, _: Any, weight_hh: Any, *__: Any, **___: Any) -> bool:
    return cuda.recurrent_sequence.is_reckoned_faster(sequence.shape[1], weight_hh)


def _gru_grad_fits_one_launch(weight_hh: Any, *others: Any, **_: Any) -> bool:
    return cuda.recurrent_sequence.takes(weight_hh) and _is_of_states_alone(weight_hh, *others)


def _gru_grad_prefers_one_launch(weight_hh: Any, h0: Any, *_: Any, **__: Any) -> bool:
    return cuda.recurrent_sequence.is_reckoned_faster(len(h0), weight_hh)


_ONE_LAUNCH = {"name": "fused_sequence", "dtypes": HALVES}
_OF_LAYERS = _ONE_LAUNCH | {"when": _fits_one_launch, "prefer": _prefers_one_launch}


@rnn.kernel("cuda", "sim", **_OF_LAYERS)
def _(out, z, h0, weight_hh, *, nonlinearity, reverse):
    """One launch for all steps, of blocks that go through time each on their own."""
    cuda.recurrent_sequence.rnn(out, z, h0, weight_hh, nonlinearity, reverse)


@rnn_grad.kernel("cuda", "sim", **_OF_LAYERS)
def _(out, g, y, weight_hh, *, nonlinearity, reverse):
    """One launch for all steps, as in the forward direction."""
    cuda.recurrent_sequence.rnn_grad(out, g, y, weight_hh, nonlinearity, reverse)


@gru.kernel("cuda", "sim", **_OF_LAYERS)
def _(outs, z, h0, weight_hh, bias_hh, *, reverse):
    """One launch for all steps, of blocks that go through time each on their own."""
    cuda.recurrent_sequence.gru(outs, z, h0, weight_hh, bias_hh, reverse)


@gru_grad.kernel(
    "cuda", "sim", **_ONE_LAUNCH, when=_gru_grad_fits_one_launch, prefer=_gru_grad_prefers_one_launch
)
def _(outs, weight_hh, h0, y, gates, grad_y, _grad_gates, *, reverse):
    """One launch for all steps, as in the forward direction."""
    cuda.recurrent_sequence.gru_grad(outs, weight_hh, h0, y, gates, grad_y, reverse)


def _fits_a_cluster(a: Any, b: Any, weight_hh: Any, *_: Any, **__: Any) -> bool:
    return cuda.recurrent_cluster.takes(weight_hh)


def _gru_grad_fits_a_cluster(weight_hh: Any, *others: Any, **_: Any) -> bool:
    return cuda.recurrent_cluster.takes(weight_hh) and _is_of_states_alone(weight_hh, *others)


_CLUSTER = {"name": "fused_cluster", "dtypes": HALVES, "prefer": only_if_selected}


@rnn.kernel("cuda", "sim", **_CLUSTER, when=_fits_a_cluster)
def _(out, z, h0, weight_hh, *, nonlinearity, reverse):
    """The same for larger layers, on compute capability 9.0: blocks of a cluster share out the weights, and
    exchange states by way of their shared memories."""
    cuda.recurrent_cluster.rnn(out, z, h0, weight_hh, nonlinearity, reverse)


@rnn_grad.kernel("cuda", "sim", **_CLUSTER, when=_fits_a_cluster)
def _(out, g, y, weight_hh, *, nonlinearity, reverse):
    """The same by the blocks of a cluster, as in the forward direction."""
    cuda.recurrent_cluster.rnn_grad(out, g, y, weight_hh, nonlinearity, reverse)


@gru.kernel("cuda", "sim", **_CLUSTER, when=_fits_a_cluster)
def _(outs, z, h0, weight_hh, bias_hh, *, reverse):
    """The same for larger layers, on compute capability 9.0: blocks of a cluster share out the weights, and
    exchange states by way of their shared memories."""
    cuda.recurrent_cluster.gru(outs, z, h0, weight_hh, bias_hh, reverse)


@gru_grad.kernel("cuda", "sim", **_CLUSTER, when=_gru_grad_fits_a_cluster)
def _(outs, weight_hh, h0, y, gates, grad_y, _grad_gates, *, reverse):
    """The same by the blocks of a cluster, as in the forward direction."""
    cuda.recurrent_cluster.gru_grad(outs, weight_hh, h0, y, gates, grad_y, reverse)
