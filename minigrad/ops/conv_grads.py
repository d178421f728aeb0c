"""Both gradients of a convolution from one copy of the output's gradient.

Tensor cores read images channels last. Their kernels copy what lies otherwise, in a launch of its own; and
for the gradient of the input and that of the weight they would copy the same. Here one launch makes all
copies for both.
"""

from __future__ import annotations

from typing import Any

from minigrad.devices import Device
from minigrad.dispatch import run_into
from minigrad.graph import mode
from minigrad.kernels import cuda
from minigrad.kernels.channels_last import is_channels_last, nchw
from minigrad.kernels.cuda.transpose import Copy, transpose_together
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
    if any(map(is_channels_last, (g, x, weight))) or not _has_whole_pixels(g) or not g.size:
        return None
    calls = (
        (conv2d_input_grad, weight, input_grad_options(x, attrs)),
        (conv2d_weight_grad, x, weight_grad_options(weight, attrs)),
    )
    chosen = [op.kernels.choose(device.type, g.dtype, [g, other], options) for op, other, options in calls]
    if any(kernel is None or kernel.user_defined or kernel.name not in COPY_IMAGES for kernel in chosen):
        return None
    images: list[Copy] = []
    of_weight: list[Copy] = []
    g_read = _as_images(g, images)
    x_read = _as_images(x, images) if _has_whole_pixels(x) else x
    options_of_input, options_of_weight = (options for *_, options in calls)
    if attrs["groups"] == 1:
        module = getattr(cuda, f"conv2d_{chosen[0].name}")
        options_of_input["weights"] = module.weights_backwards(weight, g.dtype, of_weight)
    transpose_together(images, of_weight)
    x_grad, weight_grad = device.empty(x.shape, x.dtype), device.empty(weight.shape, weight.dtype)
    return [
        run_into(x_grad, chosen[0], device, [g_read, weight], options_of_input),
        run_into(weight_grad, chosen[1], device, [g_read, x_read], options_of_weight),
    ]


def _has_whole_pixels(x: Any) -> bool:
    """Whether the channels of a pixel of ``x`` (N, C, H, W) are whole chunks of 16 bytes."""
    return cuda.conv2d_tensor_core.padded_pitch(x.shape[1], x.itemsize) == x.shape[1]


def _as_images(x: Any, later: list[Copy]) -> Any:
    """``x`` (N, C, H, W) channels last: in a copy yet to be made, unless that is how it can be read."""
    N, C, height, width = x.shape
    copy, _ = cuda.conv2d_tensor_core.channels_last(x, later=later)
    return x if copy is x else nchw(copy.reshape(N, height, width, C))
