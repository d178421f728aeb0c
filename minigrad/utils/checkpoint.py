"""Activation checkpointing: activations are computed again in the backward pass, not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad import autograd
from minigrad.autograd import Function, enable_grad, mode
from minigrad.creation import zeros
from minigrad.random import default_generator
from minigrad.tensor import Tensor

__all__ = ["checkpoint", "checkpoint_sequential"]


class _Checkpoint(Function):
    """Runs ``call`` outside the graph, and again inside it, on the way back, when its graph is needed.

    ``wanted`` is a tensor that requires a gradient, so that the way back comes here although the inputs may
    require none: the parameters inside ``call`` do.
    """

    @staticmethod
    def forward(ctx: Any, wanted: Tensor, call: Callable, *inputs: Any) -> Any:
        ctx.call, ctx.inputs = call, inputs
        ctx.random, ctx.autocast = default_generator.get_state(), mode.autocast
        return call(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple:
        if mode.grad:
            raise RuntimeError("checkpoint: a gradient of the gradient (create_graph=True) is not possible")
        inputs = [
            value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
            for value in ctx.inputs
        ]
        now, before = default_generator.get_state(), mode.autocast
        default_generator.set_state(ctx.random)
        mode.autocast = ctx.autocast
        try:
            with enable_grad():
                outputs = ctx.call(*inputs)
        finally:
            default_generator.set_state(now)
            mode.autocast = before
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if o.requires_grad]
        autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return None, None, *(value.grad if isinstance(value, Tensor) else None for value in inputs)


def checkpoint(function: Callable, *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, of whose graph only the inputs are kept until the gradient is computed.

    It then runs again, with the same random numbers and under the same autocast. What is saved is the memory
    of all that lies between the inputs and the outputs; what it costs is about a third of a step.

    Args:
        function: a module, or a function of tensors, that returns a tensor or a tuple of tensors.
        use_reentrant: accepted and ignored, as are ``preserve_rng_state`` and PyTorch's other options.
        kwargs: for ``function``; gradients flow to its positional arguments, and to parameters.

    Raises:
        RuntimeError: on the way back, if a gradient of the gradient is asked for.
    """
    for option in ("preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"):
        kwargs.pop(option, None)
    if not mode.grad:
        return function(*args, **kwargs)

    def call(*inputs: Any) -> Any:
        return function(*inputs, **kwargs)

    device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
    return _Checkpoint.apply(zeros(1, device=device, requires_grad=True), call, *args)


def checkpoint_sequential(functions: Any, segments: int, input: Any, **options: Any) -> Any:
    """A Sequential, or a list of functions, in ``segments`` parts, each under :func:`checkpoint`."""
    functions = list(functions)
    size = -(-len(functions) // segments)

    def run(part: list) -> Callable:
        def through(value: Any) -> Any:
            for function in part:
                value = function(value)
            return value

        return through

    for start in range(0, len(functions), size):
        input = checkpoint(run(functions[start : start + size]), input, **options)
    return input
