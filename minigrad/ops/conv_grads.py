"""Both gradients of a convolution from one copy of the output's gradient.

Tensor cores read images channels last. Their kernels copy what lies otherwise, in a launch of its own; and
for the gradient of the input and that of the weight they would copy the same.
"""

from __future__ import annotations

from typing import Any

from minigrad.devices import Device
from minigrad.dispatch import run_into
from minigrad.graph import mode
from minigrad.kernels import cuda
from minigrad.kernels.channels_last import is_channels_last, nchw
from minigrad.op import get_op
from minigrad.ops.conv import conv2d_input_grad, conv2d_weight_grad, input_grad_options, weight_grad_options
from minigrad.ops.conv_choice_on_cards import may_use_tensor_cores

_conv2d = get_op("conv2d")

COPY_IMAGES = ("tensor_core", "wgmma")
"""The kernels that do so."""


@_conv2d.grad_together("x", "weight")
def _(g, y, x, weight, bias, **attrs):
    """The gradients for x and weight."""
    device = mode.bare
    if device is not None and device.type != "cpu" and may_use_tensor_cores(g, x):
        found = _from_one_copy(device, g, x, weight, attrs)
        if found is not None:
            return found
    return [rule(g, y, x, weight, bias, **attrs) for rule in _conv2d._rules[:2]]


def _from_one_copy(device: Device, g: Any, x: Any, weight: Any, attrs: dict) -> list | None:
    """The same on bare arrays in C order; None where not both kernels would copy ``g``."""
    N, O, height, width = g.shape  # noqa: E741
    pitch = cuda.conv2d_tensor_core.padded_pitch(O, g.itemsize)
    if any(map(is_channels_last, (g, x, weight))) or pitch > O or not g.size:
        return None
    calls = (
        (conv2d_input_grad, weight, input_grad_options(x, attrs), x),
        (conv2d_weight_grad, x, weight_grad_options(weight, attrs), weight),
    )
    chosen = [op.kernels.choose(device.type, g.dtype, [g, other], options) for op, other, options, _ in calls]
    if any(kernel is None or kernel.user_defined or kernel.name not in COPY_IMAGES for kernel in chosen):
        return None
    copy, _ = cuda.conv2d_tensor_core.channels_last(g)
    read = g if copy is g else nchw(copy.reshape(N, height, width, O))
    return [
        run_into(device.empty(like.shape, like.dtype), kernel, device, [read, other], options)
        for kernel, (_, other, options, like) in zip(chosen, calls, strict=True)
    ]
