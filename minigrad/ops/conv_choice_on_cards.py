"""Which of the kernels of convolution for cards takes which layer, and is preferred to those before it.

The conditions of Winograd's kernels are those of the CPU's, in :mod:`.conv_choice`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from minigrad.kernels import cuda
from minigrad.kernels.channels_last import is_channels_last
from minigrad.ops.windows import output_size
from minigrad.precision import get_convolution_precision, get_float32_matmul_precision

# With fewer rows than this most of a tile of 64 would be computed in vain, and the direct kernel does less.
# An estimate from the tiles' sizes, which a card has yet to confirm.
FEWEST_ROWS = 16


def fills_forward_tiles(x: Any, weight: Any, bias: Any, *, groups: int, **_: Any) -> bool:
    return weight.shape[0] >= FEWEST_ROWS * groups


def fills_input_grad_tiles(g: Any, weight: Any, **_: Any) -> bool:
    return weight.shape[1] >= FEWEST_ROWS


def fills_weight_grad_tiles(g: Any, x: Any, *, groups: int, **_: Any) -> bool:
    return g.shape[1] >= FEWEST_ROWS * groups


# With fewer channels than this most of a slice of 16 would be zeros.
FEWEST_CHANNELS = 8


def fits_pipelined(
    x: Any, weight: Any, bias: Any = None, *, dilation: Any, groups: int, input_size: Any = None, **_: Any
) -> bool:
    rows, channels = weight.shape[0] // groups, weight.shape[1]
    if input_size is not None:  # the gradient for the input exchanges them
        rows, channels = channels, rows
    width = (input_size or x.shape)[-1]
    enough = rows >= FEWEST_ROWS and channels >= FEWEST_CHANNELS
    return enough and cuda.conv2d_pipelined.fits(weight.shape, width, dilation)


def fits_weight_grad_pipelined(
    g: Any, x: Any, *, kernel_size: Any, dilation: Any, groups: int, **_: Any
) -> bool:
    weight_shape = g.shape[1], x.shape[1] // groups, *kernel_size
    enough = g.shape[1] >= FEWEST_ROWS * groups and weight_shape[1] >= FEWEST_CHANNELS
    return enough and cuda.conv2d_pipelined.fits(weight_shape, x.shape[3], dilation)


def _of_one_channel(fits: Callable[..., bool]) -> Callable[..., bool]:
    """A condition: groups of one channel, one dtype, and a kernel, stride and dilation for which ``fits``
    holds."""

    def condition(first: Any, weight: Any, bias: Any = None, *, stride: Any, dilation: Any, **_: Any) -> bool:
        is_alike = weight.shape[1] == 1 and weight.dtype == first.dtype
        return is_alike and fits(weight.shape[2:], stride, dilation)

    return condition


is_depthwise = _of_one_channel(cuda.conv2d_depthwise.fits)
fits_strips = _of_one_channel(cuda.conv2d_strips.fits)


def is_weight_grad_depthwise(g: Any, x: Any, *, groups: int, in_float32: bool = False, **_: Any) -> bool:
    return x.shape[1] == groups and (g.itemsize > 2 or not in_float32)


def fits_weight_grad_strips(
    g: Any, x: Any, *, kernel_size: Any, stride: Any, dilation: Any, groups: int, **options: Any
) -> bool:
    is_depthwise = is_weight_grad_depthwise(g, x, groups=groups, **options)
    return is_depthwise and cuda.conv2d_strips.fits(kernel_size, stride, dilation)


FITS: dict[str, dict[str, Callable[..., bool]]] = {
    "forward": {
        "implicit_gemm": fills_forward_tiles,
        "pipelined": fits_pipelined,
        "depthwise": is_depthwise,
        "strips": fits_strips,
    },
    "input_grad": {
        "implicit_gemm": fills_input_grad_tiles,
        "pipelined": fits_pipelined,
        "depthwise": is_depthwise,
        "strips": fits_strips,
    },
    "weight_grad": {
        "implicit_gemm": fills_weight_grad_tiles,
        "pipelined": fits_weight_grad_pipelined,
        "depthwise": is_weight_grad_depthwise,
        "strips": fits_weight_grad_strips,
    },
}
"""function -> rung -> whether it can run, of the kernels without tensor cores."""

# With more outputs of each channel than this, adding them one after the other leaves most of a card idle in
# the gradient for the input. On an H200, from 32 outputs, for 128 images of 28 x 28: direct 50 us, strips 58,
# depthwise 108.
MOST_OUTPUTS_OF_CHANNEL = 8


def has_few_outputs_of_channel(_: Any, weight: Any, *, groups: int, **__: Any) -> bool:
    return weight.shape[0] <= MOST_OUTPUTS_OF_CHANNEL * groups


def may_use_tensor_cores(first: Any, _second: Any, bias: Any = None, **_: Any) -> bool:
    rounds = first.dtype != np.float32 or get_float32_matmul_precision() != "highest"
    return rounds and cuda.conv2d_tensor_core.is_supported(first)


def suits_tensor_cores(first: Any, second: Any, bias: Any = None, *, groups: int, **_: Any) -> bool:
    """Whether a convolution of one group may be computed on tensor cores."""
    return groups == 1 and may_use_tensor_cores(first, second)


# In 16 bits whatever the sizes, as the other kernels need everything converted to float32 and back; but for
# groups of one channel, which have kernels of their own. Of floats from 16 channels at both ends of a group:
# with fewer most of a tile's rows, or of its steps of 16 channels, would be zeros. An estimate from the sizes
# of tiles, which a card has yet to confirm.
FEWEST_CHANNELS_OF_TF32 = 16


def prefers_tensor_cores(
    first: Any, second: Any, bias: Any = None, *, groups: int, kernel_size: Any = None, **_: Any
) -> bool:
    if kernel_size is None:
        outputs, channels = second.shape[0] // groups, second.shape[1]
    else:  # the gradient for the weight is given the output's gradient and the input
        outputs, channels = first.shape[1] // groups, second.shape[1] // groups
    if first.dtype == np.float32:
        return min(outputs, channels) >= FEWEST_CHANNELS_OF_TF32
    return groups == 1 or channels > 1


def suits_pointwise(
    first: Any,
    second: Any,
    bias: Any = None,
    *,
    stride: Any,
    padding: Any,
    groups: int,
    kernel_size: Any = None,
    **_: Any,
) -> bool:
    fits, kernel = cuda.conv2d_pointwise.fits, kernel_size or second.shape[2:]
    last = is_channels_last(first) or is_channels_last(second)
    images = (first,) if kernel_size is None else (first, second)
    if not suits_tensor_cores(first, second, groups=groups) or (last and kernel_size is not None):
        return False
    return all(fits(x, kernel, stride, padding, last) for x in images)


def suits_wgmma(
    first: Any,
    second: Any,
    bias: Any = None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    input_size: Any = None,
    kernel_size: Any = None,
    **_: Any,
) -> bool:
    wgmma, window = cuda.conv2d_wgmma, (stride, padding, dilation)
    channels = second.shape[1] if input_size or kernel_size else first.shape[1]  # of the input
    if input_size is None:
        fits = wgmma.fits(kernel_size or second.shape[2:], *window)
    else:
        fits = wgmma.fits_backwards(input_size, first.shape[2:], second.shape[2:], *window)
    return (
        fits
        and channels * first.itemsize % wgmma.ALIGNMENT == 0
        and suits_tensor_cores(first, second, groups=groups)
        and wgmma.is_supported(first)
    )


# wgmma's time over that of mma.sync, on an H200 in bfloat16: forward 0.41 to 0.75, the gradient for the input
# 0.37 to 0.59, that for the weight 0.31 to 0.91, where there are tiles for most multiprocessors and channels
# for whole steps and tiles; about the same where there are tiles for a quarter (8 images of 512 x 7 x 7). A
# step has 128 bytes of channels, a tile 64 channels or more, and what is missing there costs as much as what
# is there.
LEAST_SHARE_AT_WORK = 0.5
LEAST_SHARE_OF_CHANNELS = 2 / 3

# Of contiguous images. Those that are read are transposed for either kind of tensor cores. wgmma writes such
# in 16 bits, if their planes are whole vectors; of others it makes transposed ones, which takes a launch
# more: 4 bytes for each number, at the 4.2 TB/s of a copy 0.95 ps. For each multiply-add of the number's sum
# mma.sync took 2.8 to 6.6 fs longer than wgmma, channels last: so that is regained from sums of 340 terms on.
# With a stride, where all results are transposed, mma.sync took 33 fs altogether. In TF32, of which wgmma
# takes twice the bytes and was not timed itself, twice its times and those of transpositions add up to 142 us
# and 153 where mma.sync took 162 and 253 (64 and 128 channels, 3 x 3). conv2d_pointwise, for a kernel of 1 x
# 1, transposes nothing. On 64 images of 56 x 56, from 256 channels to 64, it took 55 us, wgmma 36, and to
# transpose what it reads would take 49; back from 64 to 256, 156, 41 and 12. All this is reckoned from times
# of the parts; as a whole it has yet to be timed. In 16 bits and without a bias wgmma transposes nothing for
# it, either.
FEWEST_TERMS_TO_TRANSPOSE = 512
MADE_FOR_EACH_READ = 2  # channels, from which on wgmma is ahead of pointwise


def prefers_wgmma(
    first: Any,
    second: Any,
    bias: Any = None,
    *,
    groups: int,
    input_size: Any = None,
    kernel_size: Any = None,
    **window: Any,
) -> bool:
    wgmma, images = cuda.conv2d_wgmma, first.shape[0]
    last = is_channels_last(first) or is_channels_last(second)
    pointwise = not last and suits_pointwise(first, second, groups=groups, kernel_size=kernel_size, **window)
    step = wgmma.STEP_BYTES // first.itemsize
    if kernel_size is not None:
        if pointwise:
            return False
        made, channels, pixels = first.shape[1], second.shape[1], images * prod(first.shape[2:])
        at_work = wgmma.weight_grad_share_at_work(first, prod(kernel_size), channels, made, pixels)
    else:
        made, channels = second.shape[:2] if input_size is None else second.shape[1::-1]
        phases = 1 if input_size is None else prod(window["stride"])
        if input_size is None:
            input_size = output_size("conv2d", first.shape[2:], second.shape[2:], **window)
        plane, terms = prod(input_size), channels * prod(second.shape[2:])
        transposes = phases > 1 or first.itemsize > 2 or plane * first.itemsize % wgmma.ALIGNMENT > 0
        transposes_much = transposes and terms < FEWEST_TERMS_TO_TRANSPOSE
        reads_much = pointwise and made < MADE_FOR_EACH_READ * channels
        is_product = pointwise and bias is None and first.itemsize == 2
        if not (last or is_product) and (transposes_much or reads_much):
            return False
        steps = prod(second.shape[2:]) * -(-channels // step) if phases == 1 else 1
        at_work = wgmma.share_at_work(first, images * plane // phases, made, steps)
    return (
        at_work >= LEAST_SHARE_AT_WORK
        and _share(channels, step) * _share(made, min(wgmma.COLUMNS)) >= LEAST_SHARE_OF_CHANNELS
    )


def _share(n: int, per_block: int) -> float:
    """How much of the blocks of so many is filled by ``n``."""
    return n / (-(-n // per_block) * per_block)


def decides(
    first: Any,
    second: Any,
    bias: Any = None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    input_size: Any = None,
    kernel_size: Any = None,
    in_float32: bool = False,
) -> tuple:
    """What the conditions of the CUDA kernels look at."""
    return (
        *(first.shape, first.strides, second.shape, second.strides, bias is None),
        *(stride, padding, dilation, groups, input_size, kernel_size, second.dtype, in_float32),
        *(get_float32_matmul_precision(), get_convolution_precision(), cuda.card_of(first)),
    )
