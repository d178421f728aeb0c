"""Filling tensors with starting values. Each function changes its tensor in place and returns it.

Weights are seen as (fan_out, fan_in, ...): a linear layer's (out, in), a convolution's (out, in / groups, KH,
KW), whose receptive field counts into both fans.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import no_grad
from minigrad.creation import randn
from minigrad.random import Generator
from minigrad.tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor on a weight's standard deviation that keeps a signal's size through ``nonlinearity``.

    ``param`` is the negative slope of ``"leaky_relu"``, 0.01 by default.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope * slope))
    convolutions = (f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
    gains = {
        "linear": 1.0,
        **dict.fromkeys(convolutions, 1.0),
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "selu": 0.75,
    }
    if nonlinearity not in gains:
        raise ValueError(
            f"calculate_gain: unknown nonlinearity {nonlinearity!r}, expected one of "
            f"{', '.join([*gains, 'leaky_relu'])}"
        )
    return gains[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform in [a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Normal, with the given mean and standard deviation."""
    if not std >= 0:
        raise ValueError(f"normal_: std must not be negative, got {std}")
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, but limited to [a, b]: what falls outside is drawn again.

    Raises:
        ValueError: less than a thousandth of the normal distribution lies in [a, b].
    """
    inside = 0.0
    if std > 0 and a < b:
        reach = std * math.sqrt(2.0)
        inside = 0.5 * (math.erf((b - mean) / reach) - math.erf((a - mean) / reach))
    if inside < 1e-3:
        raise ValueError(
            f"trunc_normal_: almost nothing of the normal distribution with mean {mean} and std {std} lies "
            f"in [{a}, {b}]"
        )
    # In float64, so that rounding to the tensor's dtype is the last step and the limits hold.
    values = (randn(tensor.numel(), dtype=np.float64, generator=generator) * std + mean)._array
    outside = np.flatnonzero((values < a) | (values > b))
    while outside.size:
        values[outside] = (randn(outside.size, dtype=np.float64, generator=generator) * std + mean)._array
        outside = outside[(values[outside] < a) | (values[outside] > b)]
    return _assign(tensor, values.reshape(tensor.shape))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element ``val``."""
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """Every element 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element 1."""
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """A matrix with ones on its diagonal and zeros elsewhere: what goes in comes out."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: expected two dimensions, got shape {tensor.shape}")
    return _assign(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution's weight (out, in / groups, ...) that passes on as many input channels as there are.

    A one stands in the middle of the kernel from input to output channel i of each group; the rest is 0.

    Raises:
        ValueError: not 3 to 5 dimensions, or ``groups`` does not divide the output channels.
    """
    if tensor.ndim not in (3, 4, 5):
        raise ValueError(f"dirac_: expected 3 to 5 dimensions, got shape {tensor.shape}")
    out_channels, in_channels, *kernel_size = tensor.shape
    if groups < 1 or out_channels % groups:
        raise ValueError(f"dirac_: groups must divide the {out_channels} output channels, got {groups}")
    values = np.zeros(tensor.shape)
    middle = tuple(size // 2 for size in kernel_size)
    per_group = out_channels // groups
    for group in range(groups):
        for i in range(min(per_group, in_channels)):
            values[(group * per_group + i, i, *middle)] = 1.0
    return _assign(tensor, values)


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None) -> Tensor:
    """A matrix, normal with mean 0, with ceil(``sparsity`` rows) zeros in each column; Martens 2010."""
    if tensor.ndim != 2:
        raise ValueError(f"sparse_: expected two dimensions, got shape {tensor.shape}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparse_: sparsity must lie in [0, 1], got {sparsity}")
    zeros = math.ceil(sparsity * tensor.shape[0])
    values = (randn(*tensor.shape, dtype=np.float64, generator=generator) * std)._array
    order = randn(*tensor.shape, dtype=np.float64, generator=generator)._array.argsort(0)
    np.put_along_axis(values, order[:zeros], 0.0, axis=0)
    return _assign(tensor, values)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform, with std = gain sqrt(2 / (fan_in + fan_out)); Glorot and Bengio 2010."""
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal, with std = gain sqrt(2 / (fan_in + fan_out)); Glorot and Bengio 2010."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform, with std = gain / sqrt(fan); https://arxiv.org/abs/1502.01852.

    Args:
        tensor: a weight of at least two dimensions.
        a: the negative slope, for ``"leaky_relu"``.
        mode: ``"fan_in"`` keeps the size of the signal, ``"fan_out"`` that of its gradient.
        nonlinearity: what follows the layer: see :func:`calculate_gain`.
        generator: the source of random numbers.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal, with std = gain / sqrt(fan); the arguments are those of :func:`kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """A random (semi-)orthogonal matrix times ``gain``; https://arxiv.org/abs/1312.6120.

    More than two dimensions are seen as (first, product of the others); the rows are orthonormal, or the
    columns, whichever are fewer.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: needs at least 2 dimensions, got shape {tensor.shape}")
    if tensor.numel() == 0:
        return tensor
    rows = tensor.shape[0]
    columns = tensor.numel() // rows
    normal = randn(max(rows, columns), min(rows, columns), dtype=np.float64, generator=generator)._array
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the distribution uniform; arXiv:math-ph/0609050
    return _assign(tensor, gain * (q.T if rows < columns else q).reshape(tensor.shape))


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out): how many inputs feed each output of this weight, and the reverse."""
    if tensor.ndim < 2:
        raise ValueError(f"fan_in and fan_out need at least 2 dimensions, got shape {tensor.shape}")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


_calculate_fan_in_and_fan_out = fans  # PyTorch's name, which initialisations of one's own call
uniform, normal, constant, orthogonal = uniform_, normal_, constant_, orthogonal_  # its names of 2017
xavier_uniform, xavier_normal = xavier_uniform_, xavier_normal_
kaiming_uniform, kaiming_normal = kaiming_uniform_, kaiming_normal_


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2.0 / max(sum(fans(tensor)), 1))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming: mode is 'fan_in' or 'fan_out', got {mode!r}")
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def _assign(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        tensor[...] = values
    return tensor
