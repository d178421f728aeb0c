"""Activation functions as modules. All keep their input's shape.

``inplace=True`` is a permission, as a network is written with in PyTorch: it allows the input to be
overwritten, which minigrad makes no use of here. :func:`minigrad.nn.functional.relu` with ``inplace=True``
does overwrite it.
"""

from __future__ import annotations

from typing import Any

from minigrad.creation import full
from minigrad.nn import functional as F
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]


class _Overwriting(Module):
    """An activation whose only argument is ``inplace``."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        """``inplace``, where it is set."""
        return "inplace=True" if self.inplace else ""


class ReLU(_Overwriting):
    """max(x, 0)"""

    def forward(self, input: Tensor) -> Tensor:
        """max(input, 0)"""
        return F.relu(input)


class LeakyReLU(Module):
    """x where x > 0, else negative_slope x"""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"negative_slope={self.negative_slope}" + (", inplace=True" if self.inplace else "")


class PReLU(Module):
    """x where x > 0, else weight x, with a slope that is learned; https://arxiv.org/abs/1502.01852

    Args:
        num_parameters: 1, or the number of the input's channels (axis 1), each of which has then its own.
        init: what the slopes start with.
        device, dtype: of the parameter; float32 on the CPU by default.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None):
        super().__init__()
        self.num_parameters = num_parameters
        self.init = init
        self.weight = Parameter(full((num_parameters,), float(init), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the slopes to what they started with."""
        self.weight.data.fill_(self.init)

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        """The number of slopes."""
        return f"num_parameters={self.num_parameters}"


class _WithAlpha(Module):
    """A function with the parameter ``alpha``."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__()
        self.alpha = alpha
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The arguments."""
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


class ELU(_WithAlpha):
    """x where x > 0, else alpha (exp(x) - 1); https://arxiv.org/abs/1511.07289"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.elu(input, self.alpha)


class CELU(_WithAlpha):
    """x where x > 0, else alpha (exp(x / alpha) - 1); https://arxiv.org/abs/1704.07483"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.celu(input, self.alpha)


class SELU(_Overwriting):
    """scale elu(x, alpha), with the numbers that keep mean 0 and variance 1;
    https://arxiv.org/abs/1706.02515"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.selu(input)


class SiLU(_Overwriting):
    """x sigmoid(x), also called swish; https://arxiv.org/abs/1702.03118"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.silu(input)


class Mish(_Overwriting):
    """x tanh(log(1 + exp(x))); https://arxiv.org/abs/1908.08681"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.mish(input)


class GELU(Module):
    """x Phi(x), Phi being the normal distribution function; https://arxiv.org/abs/1606.08415

    ``approximate="tanh"`` computes it by a hyperbolic tangent.
    """

    def __init__(self, approximate: str = "none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate is 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """The argument."""
        return f"approximate={self.approximate!r}"


class Sigmoid(Module):
    """1 / (1 + exp(-x))"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.sigmoid(input)


class LogSigmoid(Module):
    """log(1 / (1 + exp(-x)))"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.logsigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.tanh(input)


class Tanhshrink(Module):
    """x - tanh(x)"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.tanhshrink(input)


class Softsign(Module):
    """x / (1 + |x|)"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.softsign(input)


class Softplus(Module):
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``"""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"beta={self.beta}, threshold={self.threshold}"


# ---- pieces of straight lines -----------------------------------------------------------------------------


class Hardtanh(Module):
    """Each element limited to [min_val, max_val]."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"Hardtanh: min_val must be below max_val, got {min_val} and {max_val}")
        self.min_val = min_val
        self.max_val = max_val
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.hardtanh(input, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        """The arguments."""
        inplace = ", inplace=True" if self.inplace else ""
        return f"min_val={self.min_val}, max_val={self.max_val}{inplace}"


class ReLU6(Hardtanh):
    """min(max(x, 0), 6)"""

    def __init__(self, inplace: bool = False):
        super().__init__(0.0, 6.0, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.relu6(input)

    def extra_repr(self) -> str:
        """``inplace``, where it is set."""
        return "inplace=True" if self.inplace else ""


class _Hard(_Overwriting):
    def extra_repr(self) -> str:
        """Nothing, as in PyTorch."""
        return ""


class Hardsigmoid(_Hard):
    """relu6(x + 3) / 6"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.hardsigmoid(input)


class Hardswish(_Hard):
    """x relu6(x + 3) / 6; https://arxiv.org/abs/1905.02244"""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.hardswish(input)


class _Shrink(Module):
    """A function with the parameter ``lambd``."""

    def __init__(self, lambd: float = 0.5):
        super().__init__()
        self.lambd = lambd

    def extra_repr(self) -> str:
        """The argument."""
        return str(self.lambd)


class Softshrink(_Shrink):
    """x moved towards 0 by ``lambd``, and 0 within [-lambd, lambd]."""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.softshrink(input, self.lambd)


class Hardshrink(_Shrink):
    """x, but 0 within [-lambd, lambd]."""

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.hardshrink(input, self.lambd)


class Threshold(Module):
    """x where x > threshold, else ``value``"""

    def __init__(self, threshold: float, value: float, inplace: bool = False):
        super().__init__()
        self.threshold = threshold
        self.value = value
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """The function of each element."""
        return F.threshold(input, self.threshold, self.value)

    def extra_repr(self) -> str:
        """The arguments."""
        inplace = ", inplace=True" if self.inplace else ""
        return f"threshold={self.threshold}, value={self.value}{inplace}"
