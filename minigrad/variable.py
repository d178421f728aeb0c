"""``Variable``, PyTorch's old name for a tensor with a gradient."""

from __future__ import annotations

from typing import Any

from minigrad import graph

__all__ = ["Variable"]


class _VariableType(type):
    """The class of :class:`Variable`: called, it makes a tensor, and every tensor is an instance."""

    def __call__(cls, data: Any, requires_grad: bool = False) -> Any:
        return data.detach().requires_grad_(requires_grad)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, graph.Variable)


class Variable(metaclass=_VariableType):
    """``Variable(data, requires_grad=False)``: the tensor ``data`` as a leaf that shares its memory."""
