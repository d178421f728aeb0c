"""Which neighbouring modules of a Sequential run as one fused op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minigrad.devices import cpu
from minigrad.nn.activation import ReLU
from minigrad.nn.conv import Conv2d
from minigrad.nn.module import Module
from minigrad.nn.pooling import MaxPool2d
from minigrad.op import get_op
from minigrad.ops.conv_pooled import conv2d_pooled
from minigrad.ops.conv_relu import conv2d_relu
from minigrad.tensor import Tensor

_relu = get_op("relu")


def merged(modules: list[Module], input: Any) -> Sequence[Callable]:
    """What to call one after the other, in the place of ``modules``, for an ``input`` to the first of them.

    Not on the processor, where ReLU finds what the convolution wrote in the caches.
    """
    if type(input) is not Tensor or input.device is cpu:
        return modules
    functions: list[Callable] = []
    convolution = None  # the last one, if a ReLU can still join it
    with_relu = None  # the last one, if a ReLU has joined it and nothing else is behind
    for module in modules:
        if convolution is not None and type(module) is ReLU and _are_plain(convolution, module):
            functions[-1] = partial(convolution.convolve, conv2d_relu)
            convolution, with_relu = None, convolution
        elif with_relu is not None and _pools_squares(module) and _are_plain(module):
            functions[-1] = partial(with_relu.convolve, conv2d_pooled)
            with_relu = None
        else:
            functions.append(module)
            convolution, with_relu = module if type(module) is Conv2d else None, None
    return functions


def _pools_squares(module: Module) -> bool:
    if type(module) is not MaxPool2d or module.return_indices or module.ceil_mode:
        return False
    sizes = module.kernel_size, module.stride, module.padding, module.dilation
    return sizes in ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1))


def _are_plain(*modules: Module) -> bool:
    """Whether nobody sees if these run by themselves: not hooks, nor a method or a kernel of the user's."""
    plain = all(module._hooks is None and "forward" not in module.__dict__ for module in modules)
    return plain and _relu.kernels.takes_shortcuts
