"""Activation functions. Each that has a kernel has one for its gradient too, as an op of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.graph import mode
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu import small
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops import elementwise
from minigrad.ops.elementwise import (
    _erf,
    clamp,
    clamp_grad,
    exp,
    expm1,
    floating,
    log1p,
    mul,
    where,
    zeros_like,
)
from minigrad.ops.elementwise_kernels import register_clamp, register_cpu, register_cuda
from minigrad.ops.join import split
from minigrad.ops.shape import reshape


@op(arithmetic=True, ops_alone=True, small=small.relu)
def relu(xp, x):
    """max(x, 0); NaN stays NaN."""
    return xp.maximum(x, 0)


@op(small=small.relu_grad)
def relu_grad(xp, g, y):
    """0 where ``y``, a ReLU's output, is 0, else ``g``: where it is NaN, too, as in PyTorch."""
    return xp.where(y <= 0, xp.zeros((), g.dtype), g)


relu.grad(x=lambda g, y, _x: relu_grad(g, y))
relu_grad.grad(
    g=lambda gg, _z, _g, y: relu_grad(gg, y),
    y=lambda gg, _z, _g, _y: zeros_like(gg),
)


@op(name="sigmoid", arithmetic=True, ops_alone=True)
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


@op(name="tanh", arithmetic=True, ops_alone=True)
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


@op(name="silu", arithmetic=True, ops_alone=True)
def _silu(xp, x):
    return x * _sigmoid.reference(xp, x)


@op
def silu_grad(xp, g, x):
    """g s (1 + x (1 - s)), with s = sigmoid(x)."""
    s = _sigmoid.reference(xp, x)
    return g * s * (1 + x * (1 - s))


_silu.grad(x=lambda g, _y, x: silu_grad(g, x))


def _silu_curvature(gg, _z, g, x):
    s = sigmoid(x)
    return gg * g * s * (1.0 - s) * (x * (1.0 - s * 2.0) + 2.0)


silu_grad.grad(g=lambda gg, _z, _g, x: silu_grad(gg, x), x=_silu_curvature)


def silu(x: Any) -> Any:
    """x sigmoid(x), also called swish."""
    return _silu(floating(x))


def _normal_cdf(xp, x):
    """Phi(x), by erfc so that small values keep their digits."""
    argument = x * -math.sqrt(0.5)
    if xp is np:  # NumPy has no erfc
        return 0.5 * np.asarray(np.frompyfunc(math.erfc, 1, 1)(argument)).astype(x.dtype)
    from cupyx.scipy.special import erfc

    return 0.5 * erfc(argument)


def _normal_density(xp, x):
    return xp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))


@op(name="gelu", arithmetic=True, ops_alone=True)
def _gelu(xp, x):
    return x * _normal_cdf(xp, x)


@op
def gelu_grad(xp, g, x):
    """g (Phi(x) + x phi(x)), with the normal distribution's Phi and its density phi."""
    return g * (_normal_cdf(xp, x) + x * _normal_density(xp, x))


_gelu.grad(x=lambda g, _y, x: gelu_grad(g, x))
gelu_grad.grad(
    g=lambda gg, _z, _g, x: gelu_grad(gg, x),
    x=lambda gg, _z, g, x: gg * g * _gelu_curvature(x),
)


def _gelu_curvature(x: Any) -> Any:
    """The second derivative of GELU."""
    return (2.0 - x * x) * _normal_density(elementwise, x)


@op(outputs=("y", "slope"), saved_outputs=(1,), materialize_grads=False)
def gelu_and_slope(xp, x):
    """GELU; its derivative, which costs little beside it, is kept: the gradient is a product."""
    cdf = _normal_cdf(xp, x)
    return x * cdf, cdf + x * _normal_density(xp, x)


@gelu_and_slope.grad
def _(g, y, x):
    grad, grad_slope = g
    total = None if grad is None else mul(grad, y[1])
    if grad_slope is not None:
        of_slope = grad_slope * _gelu_curvature(x)
        total = of_slope if total is None else total + of_slope
    return total


@gelu_and_slope.shape
def _(x):
    return [x.shape, x.shape]


# The tanh form: u = C (x + A x^3), y = x (1 + tanh u) / 2. With s = sigmoid(2 u) = (1 + tanh u) / 2 small
# values keep their digits.
_A, _C = 0.044715, math.sqrt(2 / math.pi)


@op(name="gelu_tanh", arithmetic=True, ops_alone=True)
def _gelu_tanh(xp, x):
    return x * _sigmoid.reference(xp, (x + x * x * x * _A) * (2 * _C))


@op
def gelu_tanh_grad(xp, g, x):
    """g (s + 2 x s (1 - s) u')."""
    u2 = (x + x * x * x * _A) * (2 * _C)
    s, rest = _sigmoid.reference(xp, u2), _sigmoid.reference(xp, -u2)  # 1 - s would cancel
    return g * (s + x * s * rest * ((x * x * (3 * _A) + 1) * (2 * _C)))


_gelu_tanh.grad(x=lambda g, _y, x: gelu_tanh_grad(g, x))


def _gelu_tanh_curvature(gg, _z, g, x):
    t = tanh((x + x * x * x * _A) * _C)
    du, ddu = (x * x * (3 * _A) + 1.0) * _C, x * (6 * _A * _C)
    return gg * g * (1.0 - t * t) * (du + x * (ddu - t * du * du * 2.0) * 0.5)


gelu_tanh_grad.grad(g=lambda gg, _z, _g, x: gelu_tanh_grad(gg, x), x=_gelu_tanh_curvature)


def gelu(x: Any, approximate: str = "none") -> Any:
    """x Phi(x), Phi being the normal distribution function; https://arxiv.org/abs/1606.08415.

    ``approximate="tanh"`` uses 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    """
    if approximate == "none":
        x = floating(x)
        return gelu_and_slope(x)[0] if _keeps_slope(x) else _gelu(x)
    if approximate == "tanh":
        return _gelu_tanh(floating(x))
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")


def _keeps_slope(x: Any) -> bool:
    """Whether GELU will be differentiated, where the processor's kernel gives the derivative beside it."""
    recorded = mode.grad and x.requires_grad and x.device.type == "cpu" and x.dtype.itemsize >= 4
    return recorded and _gelu.kernels.takes_shortcuts  # no other kernel is asked for


@op(name="leaky_relu")
def _leaky_relu(xp, x, *, negative_slope):
    return xp.where(x > 0, x, x * negative_slope)


@op
def leaky_relu_grad(xp, g, x, *, negative_slope):
    """``g`` where x > 0, else g negative_slope."""
    return xp.where(x > 0, g, g * negative_slope)


_leaky_relu.grad(x=lambda g, _y, x, *, negative_slope: leaky_relu_grad(g, x, negative_slope=negative_slope))
leaky_relu_grad.grad(
    g=lambda gg, _z, _g, x, *, negative_slope: leaky_relu_grad(gg, x, negative_slope=negative_slope),
    x=lambda gg, _z, _g, _x, *, negative_slope: zeros_like(gg),
)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where x > 0, else negative_slope x."""
    return _leaky_relu(floating(x), negative_slope=float(negative_slope))


def prelu(x: Any, weight: Any) -> Any:
    """x where x > 0, else weight x; ``weight`` has one element, or one for each channel (axis 1)."""
    if weight.ndim > 1 or (weight.numel() != 1 and (x.ndim < 2 or weight.numel() != x.shape[1])):
        raise ValueError(
            f"prelu: weight must have 1 element, or one for each channel of the input (shape {x.shape}), "
            f"got shape {weight.shape}"
        )
    slope = reshape(weight, (-1, *(1,) * (x.ndim - 2))) if x.ndim > 1 else reshape(weight, (1,) * x.ndim)
    return where(x > 0, x, x * slope)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """alpha (exp(x) - 1) where x <= 0, else x; at NaN, as in PyTorch, the gradient is that of x."""
    return where(x <= 0, expm1(where(x <= 0, x, 0.0)) * alpha, x)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """alpha (exp(x / alpha) - 1), whose slope at 0 is 1 for every alpha, where x <= 0, else x."""
    if alpha == 0:
        raise ValueError("celu: alpha must not be 0")
    return where(x <= 0, expm1(where(x <= 0, x, 0.0) * (1.0 / alpha)) * alpha, x)


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu(x: Any) -> Any:
    """scale elu(x, alpha), with the numbers for which mean 0 and variance 1 are a fixed point."""
    return elu(x, SELU_ALPHA) * SELU_SCALE


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), computed without overflow."""
    # max(x, 0) + log(1 + exp(-|x|)), both with the derivatives of x > 0 at 0 too: their sum is smooth.
    negative = x < 0
    return where(negative, 0.0, x) + log1p(exp(where(negative, x, -x)))


def mish(x: Any) -> Any:
    """x tanh(log(1 + exp(x)))."""
    return x * tanh(softplus(x))


def softsign(x: Any) -> Any:
    """x / (1 + |x|)."""
    return x / (x.abs() + 1.0)


def glu(x: Any, dim: int = -1) -> Any:
    """a sigmoid(b), with a and b the halves of ``x`` along ``dim``."""
    if x.ndim == 0 or x.shape[dim] % 2:
        raise ValueError(f"glu: dim {dim} must have an even size, got shape {x.shape}")
    a, b = split(x, x.shape[dim] // 2, dim)
    return a * sigmoid(b)


# ---- pieces of straight lines -----------------------------------------------------------------------------


@op(name="hardtanh")
def _hardtanh(xp, x, *, min, max):
    return xp.clip(x, min, max)


def _hardtanh_grad(g, _y, x, *, min, max):
    """As that of clamp, but 0 at the bounds too: to be between them is to be between their neighbours."""
    real = np.float64 if x.dtype == np.float64 else np.float32
    inner = (np.nextafter(real(min), real(np.inf)), np.nextafter(real(max), real(-np.inf)))
    return clamp_grad(g, x, min=float(inner[0]), max=float(inner[1]))


_hardtanh.grad(x=_hardtanh_grad)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """Each element limited to [min_val, max_val]; there the gradient is 0, at the bounds too."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val must be below max_val, got {min_val} and {max_val}")
    return _hardtanh(floating(x), min=float(min_val), max=float(max_val))


def relu6(x: Any) -> Any:
    """min(max(x, 0), 6)."""
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: Any) -> Any:
    """relu6(x + 3) / 6."""
    return relu6(x + 3.0) * (1.0 / 6.0)


def hardswish(x: Any) -> Any:
    """x relu6(x + 3) / 6."""
    return x * hardsigmoid(x)


def softshrink(x: Any, lambd: float = 0.5) -> Any:
    """``x`` moved towards 0 by ``lambd``, and 0 within [-lambd, lambd]."""
    if lambd < 0:
        raise ValueError(f"softshrink: lambd must not be negative, got {lambd}")
    return x - clamp(x, -float(lambd), float(lambd))


def hardshrink(x: Any, lambd: float = 0.5) -> Any:
    """``x``, but 0 within [-lambd, lambd]."""
    return where((x >= -lambd) & (x <= lambd), 0.0, x)


def threshold(x: Any, threshold: float, value: float) -> Any:
    """``x`` where it is above ``threshold``, else ``value``."""
    return where(x <= threshold, value, x)


for _op, _run in (
    (_sigmoid, cpu.elementwise.sigmoid),
    (_tanh, cpu.elementwise.tanh),
    (_silu, cpu.elementwise.silu),
    (silu_grad, cpu.elementwise.silu_grad),
    (_gelu, cpu.elementwise.gelu),
    (gelu_grad, cpu.elementwise.gelu_grad),
    (_gelu_tanh, cpu.elementwise.gelu_tanh),
    (gelu_tanh_grad, cpu.elementwise.gelu_tanh_grad),
    (_erf, cpu.elementwise.erf),
    (relu_grad, cpu.elementwise.relu_grad),
    (sigmoid_grad, cpu.elementwise.sigmoid_grad),
    (tanh_grad, cpu.elementwise.tanh_grad),
):
    register_cpu(_op, _run)


@gelu_and_slope.kernel("cpu", name="vectorized")
def _(outs, x):
    """GELU and its derivative, from one exponential and distribution function, by vectors and threads."""
    cpu.elementwise.gelu_and_slope(*outs, x, get_num_threads())


register_cpu(relu, cpu.elementwise.relu, prefer=cpu.elementwise.is_large)
register_clamp(_hardtanh)


def _leaky_relu_cpu(out, x, *, negative_slope):
    cpu.elementwise.leaky_relu(out, x, negative_slope, 1.0, get_num_threads())


def _leaky_relu_grad_cpu(out, g, x, *, negative_slope):
    cpu.elementwise.leaky_relu_grad(out, g, x, negative_slope, 1.0, get_num_threads())


for _op, _kernel, _run in (
    (_leaky_relu, _leaky_relu_cpu, cpu.elementwise.leaky_relu),
    (leaky_relu_grad, _leaky_relu_grad_cpu, cpu.elementwise.leaky_relu_grad),
):
    _kernel.__doc__ = _run.__doc__
    _op.kernel("cpu", name="vectorized", layout="strided")(_kernel)


def _with_slope(run: Callable) -> Callable:
    def kernel(out, *inputs, negative_slope):
        run(out, *inputs, negative_slope)

    kernel.__doc__ = run.__doc__
    return kernel


for _name, _function in cuda.elementwise.ACTIVATIONS.items():
    _is_leaky = _name.startswith("leaky_relu")
    register_cuda(get_op(_name), _with_slope(_function) if _is_leaky else _function)
