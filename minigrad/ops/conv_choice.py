"""Which of the CPU's convolution kernels runs for which layer: the one place that says so, and why.

Each rule is a condition of a rung of the ladder (``kernels/cpu/conv2d.pyx``, ``conv2d_winograd.pyx``), in the
order in which they are asked: *winograd*, *planes*, then *implicit_gemm*, then *im2col*; ``use_kernel``
overrides them. The figures are
GFLOP/s on one thread of an AMD EPYC (AVX2, 47 GFLOP/s at best), batch 8 to 128, float32.

A rung is fast where it fills its vectors, and idle lanes are what the rules avoid: *implicit_gemm* has output
channels in the lanes of a vector, *planes* neighbouring pixels of a row, and both keep a tile of several
vectors in registers. Channels below are those of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minigrad.kernels import cpu
from minigrad.precision import get_convolution_precision

FEW_CHANNELS = 4
"""Half a vector of float32: with fewer channels at one end *planes* is ahead, with more *implicit_gemm*."""


class Layer(NamedTuple):
    """A convolution as seen by one of its three functions, in one group."""

    source: int  # channels that are summed over (for the weight's gradient: the input's)
    result: int  # channels that are made (for the weight's gradient: the output's)
    kernel: tuple[int, int]


def _forward(x: Any, weight: Any, bias: Any, *, groups: int, **_: Any) -> Layer:
    return Layer(weight.shape[1], weight.shape[0] // groups, weight.shape[2:])


def _input_grad(g: Any, weight: Any, *, groups: int, **_: Any) -> Layer:
    return Layer(weight.shape[0] // groups, weight.shape[1], weight.shape[2:])


def _weight_grad(g: Any, x: Any, *, groups: int, kernel_size: tuple[int, int], **_: Any) -> Layer:
    return Layer(x.shape[1] // groups, g.shape[1] // groups, kernel_size)


def _prefers_planes(layer: Layer) -> bool:
    """A few channels at either end do not fill the lanes of *implicit_gemm*.

    Forward with 1 -> 32 channels 24 (*implicit_gemm* 15), 3 -> 32: 33 (26), 32 -> 3: 29 (11), 64 -> 1: 9 (5);
    32 groups of 4 -> 4: 26 (12); depthwise 3x3: 10 (5), 5x5: 14 (3). With 16 -> 16 in a group it is behind:
    31 (35).
    """
    return min(layer.source, layer.result) <= FEW_CHANNELS and not _prefers_im2col(layer)


def _prefers_im2col(layer: Layer) -> bool:
    """One channel summed from many: as a GEMM, the kernel's taps take the place of the missing channels.

    The gradient for the input of 1 -> 32 channels: 18 (*planes* 8, whose many planes leave L1).
    """
    return layer.result == 1 and layer.source >= 16 and layer.kernel != (1, 1)


def _weight_grad_prefers_planes(layer: Layer) -> bool:
    """There a tap of *planes* needs a load for each multiply-add, so that few output channels alone pay.

    64 -> 1 channels 13 (*implicit_gemm* 5), 32 -> 3: 16 (11), 32 groups of 4 -> 4: 11 (10), depthwise 3x3: 14
    (5). With 1 -> 32 channels it is behind: 11 (21). With one tap there is not even its reuse of a row.
    """
    return layer.result <= FEW_CHANNELS and layer.kernel != (1, 1)


# ---- Winograd's algorithm ----------------------------------------------------------------------------------

# The shapes of the input and of the weight, whichever of them a function is given or makes.
_SHAPES: dict[str, Callable[..., tuple[tuple, tuple]]] = {
    "forward": lambda x, weight, bias, **_: (x.shape, weight.shape),
    "input_grad": lambda g, weight, input_size, **_: (
        (g.shape[0], weight.shape[1], *input_size),
        weight.shape,
    ),
    "weight_grad": lambda g, x, kernel_size, **_: (x.shape, (g.shape[1], x.shape[1], *kernel_size)),
}


def _fits_winograd(function: str) -> Callable[..., bool]:
    def fits(*arrays: Any, stride: Any, dilation: Any, groups: int, **attrs: Any) -> bool:
        _, weight = _SHAPES[function](*arrays, **attrs)
        return (*weight[2:], *stride, *dilation, groups) == (3, 3, 1, 1, 1, 1, 1)

    return fits


def _prefers_winograd(function: str) -> Callable[..., bool]:
    """Where it is allowed and faster (``is_faster`` has the measured rule); with padding as wide as the image
    it never is."""

    def prefers(*arrays: Any, padding: tuple[int, int], **attrs: Any) -> bool:
        x, weight = _SHAPES[function](*arrays, **attrs)
        return (
            get_convolution_precision() == "high"
            and max(padding) < max(x[2:])
            and cpu.conv2d_winograd.is_faster(x, weight[0], *padding, function == "input_grad")
        )

    return prefers


FITS_WINOGRAD = {function: _fits_winograd(function) for function in _SHAPES}
"""function -> whether the algorithm computes such a convolution at all: 3x3, with a stride of 1."""

# ---- the table ---------------------------------------------------------------------------------------------


def _rule(read: Callable[..., Layer], rule: Callable[[Layer], bool]) -> Callable[..., bool]:
    return lambda *arrays, **attrs: rule(read(*arrays, **attrs))


PREFERS: dict[str, dict[str, Callable[..., bool]]] = {
    "forward": {
        "planes": _rule(_forward, _prefers_planes),
        "winograd": _prefers_winograd("forward"),
    },
    "input_grad": {
        "planes": _rule(_input_grad, _prefers_planes),
        "implicit_gemm": _rule(_input_grad, lambda layer: not _prefers_im2col(layer)),
        "winograd": _prefers_winograd("input_grad"),
    },
    "weight_grad": {
        "planes": _rule(_weight_grad, _weight_grad_prefers_planes),
        "winograd": _prefers_winograd("weight_grad"),
    },
}
"""function -> rung -> whether it is to run: what :func:`minigrad.dispatch.KernelTable.choose` asks."""
