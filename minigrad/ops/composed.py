"""Gradients by recorded ops, for the second derivative of ops with a fused first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from minigrad.autograd import enable_grad, grad, mode
from minigrad.op import Op
from minigrad.ops.activation import tanh
from minigrad.ops.elementwise import exp, where, zeros_like
from minigrad.ops.join import stack
from minigrad.ops.matmul import _matmul as matmul
from minigrad.ops.shape import transpose

tensors = SimpleNamespace(exp=exp, matmul=matmul, stack=stack, swapaxes=transpose, tanh=tanh, where=where)
"""What stands in for the array module where a formula that is written in ``xp`` runs on tensors."""


def composed_gradient(function: Callable, inputs: Sequence, grad_outputs: Sequence) -> list:
    """The gradient of ``function(*inputs)``, a tuple of tensors, for each of the inputs.

    The function runs on copies, and its ops are recorded: what is returned are its partial derivatives,
    though the inputs may come from one another. Where the gradient's own graph is wanted, it leads on to the
    inputs.

    Args:
        function: takes tensors (None for an input that is None) and computes with tensors.
        inputs: tensors, or None.
        grad_outputs: the gradient of each output; None where none came.

    Returns:
        A tensor for each input, or None for an input that is None.
    """
    create_graph = mode.grad
    with enable_grad():
        copies = [None if x is None else _copy(x, create_graph) for x in inputs]
        pairs = [(y, g) for y, g in zip(function(*copies), grad_outputs, strict=True) if g is not None]
        outputs, grads = zip(*pairs, strict=True)
        targets = [x for x in copies if x is not None]
        found = iter(grad(outputs, targets, grads, create_graph=create_graph, allow_unused=True))
        return [None if x is None else _or_zeros(next(found), x) for x in copies]


def from_reference(op: Op) -> Callable:
    """A gradient rule for ``op``: its reference runs on tensors, whose ops have gradients of their own.

    It is meant for an op that computes a gradient, fused, and whose own gradient is wanted for the second
    order alone: ``bias_gelu_grad.grad(from_reference(bias_gelu_grad))``. The reference may use operators,
    methods that tensors have too, and what :data:`tensors` holds.
    """

    def rule(g: Any, _y: Any, *inputs: Any, **attributes: Any) -> list:
        def function(*copies: Any) -> tuple:
            found = op.reference(tensors, *copies, **attributes)
            return found if isinstance(found, tuple) else (found,)

        return composed_gradient(function, inputs, g if isinstance(g, tuple) else (g,))

    return rule


def _copy(x: Any, create_graph: bool) -> Any:
    return x.clone() if create_graph and x.requires_grad else x.detach().requires_grad_()


def _or_zeros(gradient: Any, x: Any) -> Any:
    return zeros_like(x) if gradient is None else gradient
