"""Which neighbours in a chain of modules run as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minigrad.devices import cpu
from minigrad.nn.activation import ReLU
from minigrad.nn.conv import Conv2d
from minigrad.nn.module import Module
from minigrad.op import get_op
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
    before = None
    for module in modules:
        if type(before) is Conv2d and type(module) is ReLU and _are_plain(before, module):
            functions[-1] = partial(before.convolve, conv2d_relu)
        else:
            functions.append(module)
        before = module
    return functions


def _are_plain(*modules: Module) -> bool:
    """Whether nobody sees if these run by themselves: not hooks, nor a method or a kernel of the user's."""
    plain = all(module._hooks is None and "forward" not in module.__dict__ for module in modules)
    return plain and _relu.kernels.takes_shortcuts
