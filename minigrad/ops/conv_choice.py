"""Which of the CPU's convolution kernels runs for which layer: the one place that says so, and why.

Each rule is a condition of a rung of the ladder (``kernels/cpu/conv2d.pyx``, ``conv2d_winograd.pyx``). They
are asked in the order *winograd*, *depthwise*, *planes*, *implicit_gemm*, *im2col*, and ``use_kernel``
overrides them. The figures are GFLOP/s on one thread of an AMD EPYC (AVX2, 47 GFLOP/s at best), batch 8 to
128, float32; where *depthwise* takes part, of another (AVX-512, 117 GFLOP/s at best).

A rung is fast where it fills its vectors, and idle lanes are what the rules avoid: *implicit_gemm* has
output channels in the lanes of a vector, *depthwise* groups, *planes* neighbouring pixels of a row. Channels
below are those of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.ops.conv_phases import have_equal_phases, phase_shape
from minigrad.precision import get_convolution_precision

FEW_CHANNELS = 4
"""With no more channels at one end *planes* is ahead, with more *implicit_gemm*."""

FEW_RESULTS = 8 if cpu.isa == "x86_64_v4" else FEW_CHANNELS
"""The same for the channels that are made: they fill no more than half a vector of float32."""

FEW_CHANNELS_OF_PHASES = 31
"""With no more at one end, moving the pixels of a dilated convolution outweighs what *winograd* gains."""

LARGEST_STRIDE = 8
"""*planes* copies every column, also those that a larger stride skips."""

REMEMBERED = 1024
"""Answers of each rule that are kept: a layer of a network is asked for again at every step."""


class Layer(NamedTuple):
    """A convolution as seen by one of its three functions, in one group."""

    images: int
    source: int  # channels that are summed over (for the weight's gradient: the input's)
    result: int  # channels that are made (for the weight's gradient: the output's)
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pixels: int  # of an image of the output, nearly
    width: int  # of the result (for the weight's gradient: of the output)
    groups: int
    threads: int


def _forward(
    x: tuple, weight: tuple, _size: None, stride: tuple[int, int], groups: int, threads: int
) -> Layer:
    (images, _channels, height, width), (out_channels, channels, *kernel) = x, weight
    pixels, columns = height * width // (stride[0] * stride[1]), width // stride[1]
    result = out_channels // groups
    return Layer(images, channels, result, tuple(kernel), stride, pixels, columns, groups, threads)


def _input_grad(
    g: tuple, weight: tuple, input_size: tuple, stride: tuple[int, int], groups: int, threads: int
) -> Layer:
    (images, _channels, height, width), (out_channels, channels, *kernel) = g, weight
    source, pixels = out_channels // groups, height * width
    return Layer(images, source, channels, tuple(kernel), stride, pixels, input_size[1], groups, threads)


def _weight_grad(
    g: tuple, x: tuple, kernel_size: tuple, stride: tuple[int, int], groups: int, threads: int
) -> Layer:
    images, out_channels, height, width = g
    source, result = x[1] // groups, out_channels // groups
    return Layer(images, source, result, kernel_size, stride, height * width, width, groups, threads)


def _is_product(layer: Layer, pixels: int) -> bool:
    """A 1x1 kernel makes each image one product of matrices, for *im2col* to compute without a copy.

    It needs an image for each thread, and ``pixels`` and channels enough for a product. 64 -> 128 channels at
    28 x 28: 32 (*implicit_gemm* 29), 64 -> 6: 28 (14); at stride 2 34 (29), its input's gradient 31 (25). At
    7 x 7 it is behind: 34 (37).
    """
    return (
        layer.kernel == (1, 1)
        and min(layer.source, layer.result) > FEW_CHANNELS
        and layer.pixels >= pixels
        and layer.images >= layer.threads
    )


def _prefers_depthwise(layer: Layer, width: int = 20) -> bool:
    """The two transposes of *depthwise* take as long whatever a row's width, and whatever the stride; rows of
    less than two vectors, and their phases, leave lanes of *planes* idle.

    3x3 at 7 x 7: 35 (*planes* 12), 14 x 14: 37 (26), 20 x 20: 29 (29), 28 x 28: 29 (42); at stride 2, from
    14 x 14: 20 (6), 28 x 28: 20 (8), and from 112 x 112, where the transposed planes leave the second-level
    cache, 7 (8). From 56 x 56 it is ahead while all images lie in cache, 16 (9); where they come from memory,
    as those of a network do, sixteen planes at a time take 15 % longer than one.
    """
    strided = max(layer.stride) > 1
    small = layer.pixels * layer.stride[0] * layer.stride[1] <= 2048 if strided else layer.width <= width
    return layer.source == layer.result == 1 and layer.groups >= 16 and small


def _weight_grad_prefers_depthwise(layer: Layer) -> bool:
    """As forward; but *planes* has registers for the sums of 9 taps, and reads its planes again for more: 5x5
    at 28 x 28: 54 (*planes* 40)."""
    return _prefers_depthwise(layer, 28 if layer.kernel[0] * layer.kernel[1] > 9 else 20)


def _prefers_planes(layer: Layer) -> bool:
    """A few channels at either end do not fill the lanes of *implicit_gemm*.

    Forward with 1 -> 32 channels 24 (*implicit_gemm* 15), 3 -> 32: 36 (26), 32 -> 3: 27 (11), 64 -> 1: 11
    (5); 32 groups of 4 -> 4: 27 (12); depthwise 3x3: 12 (5), 5x5: 21 (3). With 16 -> 16 in a group it is
    behind: 33 (35). With vectors of 16 lanes, 16 groups of 8 -> 8: 78 (50); 16 -> 8, 5x5: 85 (54).
    """
    return _has_few_channels(layer) and max(layer.stride) <= LARGEST_STRIDE


def _has_few_channels(layer: Layer) -> bool:
    return layer.source <= FEW_CHANNELS or layer.result <= FEW_RESULTS


def _prefers_im2col(layer: Layer) -> bool:
    return _is_product(layer, 128)


def _input_grad_prefers_planes(layer: Layer) -> bool:
    """As forward; and with strides, where *planes* interleaves the phases in cache and *implicit_gemm* stores
    element by element.

    At 32 x 32 and stride 2, 3x3 with 16 channels 30 (*implicit_gemm* 18), 2x2 with 32 channels 29 (20), 4x4:
    38 (35). With phases of fewer than two vectors, or more channels, it is behind: 3x3 with 64 channels at
    28 x 28: 20 (31).
    """
    phases = max(layer.stride) > 1 and layer.result <= 32 and layer.width >= 16 * layer.stride[1]
    few = phases or _has_few_channels(layer)
    return few and max(layer.stride) <= LARGEST_STRIDE and not _input_grad_prefers_im2col(layer)


def _input_grad_prefers_im2col(layer: Layer) -> bool:
    """One channel summed from many: as a GEMM, the kernel's taps take the place of the missing channels.

    The gradient for the input of 1 -> 32 channels, 3x3: 18 (*planes* 11, whose many planes leave L1).
    """
    one_from_many = layer.result == 1 and layer.source >= 16 and max(layer.kernel) > 1
    return one_from_many or _is_product(layer, 128)


def _weight_grad_prefers_planes(layer: Layer) -> bool:
    """There a tap of *planes* needs a load for each multiply-add, so that few output channels alone pay.

    64 -> 1 channels 13 (*implicit_gemm* 5), 32 -> 3: 16 (11), 32 groups of 4 -> 4: 11 (10), depthwise 3x3: 14
    (5). With 1 -> 32 channels it is behind: 11 (21). With one tap there is not even its reuse of a row. Of 1
    or 2 channels *implicit_gemm* has few taps to fill its tiles, too: with AVX-512, 1 -> 6, 5x5: 39 (30).
    """
    few = layer.result <= (FEW_CHANNELS if layer.source > 2 else 8) and layer.kernel != (1, 1)
    return few and max(layer.stride) <= LARGEST_STRIDE


def _weight_grad_prefers_im2col(layer: Layer) -> bool:
    """As forward, for larger images: 64 -> 128 channels at 28 x 28: 36 (*implicit_gemm* 34), 64 -> 6 at
    56 x 56: 26 (19); at 14 x 14 nothing is gained."""
    return _is_product(layer, 512)


def fits_depthwise(
    first: Any, second: Any, _bias: Any = None, *, groups: int, kernel_size: Any = None, **_: Any
) -> bool:
    """Whether each channel of the input makes one of the output."""
    ends = second.shape[:2] if kernel_size is None else (first.shape[1], second.shape[1] // groups)
    return ends == (groups, 1)


# ---- Winograd's algorithm ----------------------------------------------------------------------------------


def fits_winograd(
    _x: Any,
    weight: Any,
    _bias: Any = None,
    *,
    stride: tuple,
    dilation: tuple,
    kernel_size: Any = None,
    sizes: tuple[int, ...] = (3, 5),
    **_: Any,
) -> bool:
    """Whether the algorithm computes such a convolution at all: 3x3 or 5x5, with a stride of 1."""
    height, width = kernel_size or weight.shape[2:]  # the gradient for the weight is given its size instead
    return height == width and height in sizes and (*stride, *dilation) == (1, 1, 1, 1)


def fits_winograd_in_phases(
    first: Any, second: Any, bias: Any = None, *, padding: tuple, dilation: tuple, **options: Any
) -> bool:
    """The same with a dilation, if pixels fall into equal phases (those of its input and output do alike)."""
    undilated = fits_winograd(first, second, bias, dilation=(1, 1), **options)
    return undilated and have_equal_phases(first.shape[2:], padding, dilation)


fits_winograd_on_a_card = partial(fits_winograd, sizes=(3,))


# The shapes of the input and of the weight, whichever of them a function is given or makes.
_SHAPES: dict[str, Callable[..., tuple[tuple, tuple]]] = {
    "forward": lambda x, weight, _size, _groups: (x, weight),
    "input_grad": lambda g, weight, size, groups: ((g[0], weight[1] * groups, *size), weight),
    "weight_grad": lambda g, x, size, groups: (x, (g[1], x[1] // groups, *size)),
}


def _prefers_winograd(function: str, kernels: Any) -> Callable[..., bool]:
    """Where it is allowed and faster, by ``is_faster`` of ``kernels``. With padding as wide as the image it
    never is; and with few channels its transforms, of whole vectors, are behind *planes*, and the phases of a
    dilation cost more than is gained."""

    @lru_cache(REMEMBERED)
    def is_faster(
        first: tuple, second: tuple, size: Any, padding: tuple, dilation: tuple, groups: int
    ) -> bool:
        x, weight = _SHAPES[function](first, second, size, groups)
        few = FEW_CHANNELS
        if dilation != (1, 1):
            x, few = phase_shape(x, dilation), FEW_CHANNELS_OF_PHASES
            padding = padding[0] // dilation[0], padding[1] // dilation[1]
        sensible = min(weight[0] // groups, weight[1]) > few and max(padding) < max(x[2:])
        return sensible and kernels.is_faster(x, weight, *padding, function == "input_grad")

    def prefers(
        first: Any,
        second: Any,
        _bias: Any = None,
        *,
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        input_size: Any = None,
        kernel_size: Any = None,
        **_: Any,
    ) -> bool:
        return get_convolution_precision() == "high" and is_faster(
            first.shape, second.shape, input_size or kernel_size, padding, dilation, groups
        )

    return prefers


# ---- the table ---------------------------------------------------------------------------------------------


def _rule(read: Callable[..., Layer], rule: Callable[[Layer], bool]) -> Callable[..., bool]:
    """The rule as a condition on arrays and options. Its answers are remembered for all that it can see."""

    @lru_cache(REMEMBERED)
    def answer(first: tuple, second: tuple, size: Any, stride: tuple, groups: int, threads: int) -> bool:
        return rule(read(first, second, size, stride, groups, threads))

    def prefers(
        first: Any,
        second: Any,
        _bias: Any = None,
        *,
        stride: tuple[int, int],
        groups: int,
        input_size: Any = None,
        kernel_size: Any = None,
        **_: Any,
    ) -> bool:
        return answer(first.shape, second.shape, input_size or kernel_size, stride, groups, get_num_threads())

    return prefers


def _unless(read: Callable[..., Layer], rule: Callable[[Layer], bool]) -> Callable[..., bool]:
    return _rule(read, lambda layer: not rule(layer))


PREFERS: dict[str, dict[str, Callable[..., bool]]] = {
    "forward": {
        "depthwise": _rule(_forward, _prefers_depthwise),
        "planes": _rule(_forward, _prefers_planes),
        "implicit_gemm": _unless(_forward, _prefers_im2col),
        "winograd": _prefers_winograd("forward", cpu.conv2d_winograd),
    },
    "input_grad": {
        "depthwise": _rule(_input_grad, _prefers_depthwise),
        "planes": _rule(_input_grad, _input_grad_prefers_planes),
        "implicit_gemm": _unless(_input_grad, _input_grad_prefers_im2col),
        "winograd": _prefers_winograd("input_grad", cpu.conv2d_winograd),
    },
    "weight_grad": {
        "depthwise": _rule(_weight_grad, _weight_grad_prefers_depthwise),
        "planes": _rule(_weight_grad, _weight_grad_prefers_planes),
        "implicit_gemm": _unless(_weight_grad, _weight_grad_prefers_im2col),
        "winograd": _prefers_winograd("weight_grad", cpu.conv2d_winograd),
    },
}
"""function -> rung -> whether it is to run: what :meth:`minigrad.dispatch.KernelTable.choose` asks."""

PREFERS_WINOGRAD_ON_A_CARD = {name: _prefers_winograd(name, cuda.conv2d_winograd) for name in PREFERS}
"""function -> whether the CUDA kernels of Winograd's algorithm are to run."""
