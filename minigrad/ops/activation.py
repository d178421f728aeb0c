"""Activation functions. Each that has a kernel has one for its gradient too, as an op of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad.kernels import cpu
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import Op, op
from minigrad.ops.elementwise import erf, exp, expm1, floating, log1p, maximum, where, zeros_like


@op
def relu(xp, x):
    """max(x, 0); NaN stays NaN."""
    return xp.maximum(x, 0)


@op
def relu_grad(xp, g, y):
    """``g`` where ``y``, a ReLU's output, is above 0, else 0."""
    return xp.where(y > 0, g, xp.zeros((), g.dtype))


relu.grad(x=lambda g, y, _x: relu_grad(g, y))
relu_grad.grad(
    g=lambda gg, _z, _g, y: relu_grad(gg, y),
    y=lambda gg, _z, _g, _y: zeros_like(gg),
)


@op(name="sigmoid")
def _sigmoid(xp, x):
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


@op
def sigmoid_grad(xp, g, y):
    """g y (1 - y), with ``y`` a sigmoid's output."""
    return g * y * (1 - y)


_sigmoid.grad(x=lambda g, y, _x: sigmoid_grad(g, y))
sigmoid_grad.grad(
    g=lambda gg, _z, _g, y: sigmoid_grad(gg, y),
    y=lambda gg, _z, g, y: gg * g * (1.0 - y * 2.0),
)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), computed without overflow."""
    return _sigmoid(floating(x))


@op(name="tanh")
def _tanh(xp, x):
    return xp.tanh(x)


@op
def tanh_grad(xp, g, y):
    """g (1 - y^2), with ``y`` a tanh's output."""
    return g * (1 - y * y)


_tanh.grad(x=lambda g, y, _x: tanh_grad(g, y))
tanh_grad.grad(
    g=lambda gg, _z, _g, y: tanh_grad(gg, y),
    y=lambda gg, _z, g, y: gg * g * (y * -2.0),
)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of each element."""
    return _tanh(floating(x))


def silu(x: Any) -> Any:
    """x sigmoid(x), also called swish."""
    return x * sigmoid(x)


def gelu(x: Any, approximate: str = "none") -> Any:
    """x Phi(x), Phi being the normal distribution function; https://arxiv.org/abs/1606.08415.

    ``approximate="tanh"`` uses 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    """
    if approximate == "none":
        return x * (erf(x * math.sqrt(0.5)) + 1.0) * 0.5
    if approximate == "tanh":
        return x * (tanh((x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)) + 1.0) * 0.5
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where x > 0, else negative_slope x."""
    return where(x > 0, x, x * negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where x > 0, else alpha (exp(x) - 1)."""
    return where(x > 0, x, expm1(where(x > 0, 0.0, x)) * alpha)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), computed without overflow."""
    return maximum(x, 0.0) + log1p(exp(-x.abs()))


def _register(target: Op, run: Callable) -> None:
    def kernel(out, *inputs):
        run(out, *inputs, get_num_threads())

    kernel.__doc__ = run.__doc__
    target.kernel("cpu", name="vectorized")(kernel)


for _op, _run in (
    (relu, cpu.elementwise.relu),
    (relu_grad, cpu.elementwise.relu_grad),
    (_sigmoid, cpu.elementwise.sigmoid),
    (sigmoid_grad, cpu.elementwise.sigmoid_grad),
    (_tanh, cpu.elementwise.tanh),
    (tanh_grad, cpu.elementwise.tanh_grad),
):
    _register(_op, _run)
