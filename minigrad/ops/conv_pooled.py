"""Convolution, bias, ReLU and max-pooling of 2 x 2 in one kernel, which stores a quarter of the elements.

On tensor cores alone: there the four pixels of a window can be neighbouring columns of a product, at no cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dispatch import KEPT, Spec
from minigrad.graph import Variable
from minigrad.kernels import cuda
from minigrad.op import get_op, op
from minigrad.ops.activation import relu_grad
from minigrad.ops.conv import WITH_RELU, convolve
from minigrad.ops.conv_choice_on_cards import suits_tensor_cores
from minigrad.ops.conv_relu import conv2d_relu
from minigrad.ops.pool import max_pool2d, max_pool2d_input_grad
from minigrad.ops.windows import output_size

_conv2d, _max_pool2d = get_op("conv2d"), get_op("max_pool2d")

SQUARES = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
"""The windows, as options of the pooling ops."""


@op(name="conv2d_pooled", promote=None, ops_alone=True)
def _conv2d_pooled(xp, x, weight, bias=None, *, stride, padding, dilation, groups):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = xp.maximum(_conv2d.reference(xp, x, weight, bias, **options), 0)
    return _max_pool2d.reference(xp, y, size=(y.shape[2] // 2, y.shape[3] // 2), **SQUARES)


@_conv2d_pooled.grad
def _(g, y, x, weight, bias, *, needed=None, **options):
    """That of the convolution, at the pixels that won a window and are above 0."""
    pooled, taps = y
    size = _conv2d._shape_rule(x, weight, bias, **options)[2:]
    g = relu_grad(g[0], pooled)
    g = max_pool2d_input_grad(g, taps, input_size=size, size=taps.shape[2:], **SQUARES)
    return _conv2d.apply_gradient(g, None, (x, weight, bias), options, [need or None for need in needed])


@_conv2d_pooled.shape
def _(x, weight, bias, **options):
    shape = _conv2d._shape_rule(x, weight, bias, **options)
    size = output_size("conv2d_pooled", shape, *SQUARES.values())
    return [Spec((*shape[:2], *size), x.dtype), Spec((*shape[:2], *size), np.dtype(np.uint8))]


def conv2d_pooled(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Any:
    """``max_pool2d(relu(conv2d(...)), 2)``, bit for bit; on tensor cores from registers, else one by one.

    The arguments and errors are those of :func:`minigrad.nn.functional.conv2d`.
    """
    return convolve(_pooled_or_one_by_one, input, weight, bias, stride, padding, dilation, groups)


def _pooled_or_one_by_one(input: Any, weight: Any, bias: Any, **options: Any) -> Any:
    if _runs_on_tensor_cores(input, weight, bias, options):
        return _conv2d_pooled(input, weight, bias, **options)[0]
    return max_pool2d(conv2d_relu(input, weight, bias, **options), 2)


def _runs_on_tensor_cores(input: Any, weight: Any, bias: Any, options: dict) -> bool:
    """Whether the three ops would be computed by minigrad's kernels, and the first, of one group, on tensor
    cores, by sums that are not cut into parts."""
    if input.device.type == "cpu" or options["groups"] > 1 or not _max_pool2d.kernels.takes_shortcuts:
        return False
    arrays = [v._array if isinstance(v, Variable) else v for v in (input, weight, bias)]
    kernel = _conv2d.kernels.choose(input.device.type, input.dtype, arrays, options)
    if kernel is None or kernel.run not in WITH_RELU or kernel.name != "tensor_core":
        return False
    numbers = *options["stride"], *options["padding"], *options["dilation"]
    return not cuda.conv2d_tensor_core.is_cut(*arrays[:2], *numbers)


@_conv2d_pooled.kernel(
    "cuda",
    "sim",
    name="tensor_core",
    dtypes="f2 bf16 f4",
    layout="strided",
    when=suits_tensor_cores,
    channels_last=KEPT,
)
def _(outs, x, weight, bias, *, stride, padding, dilation, groups):
    """The columns of a tile are windows of four pixels, whose largest is found between two lanes."""
    cuda.conv2d_tensor_core.pooled(outs, x, weight, bias, *stride, *padding, *dilation, groups)
