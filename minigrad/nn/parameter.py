"""The parameter: a tensor that a module owns and an optimizer changes."""

from __future__ import annotations

from minigrad.autograd import written_cell
from minigrad.tensor import Tensor

__all__ = ["Parameter"]


class Parameter(Tensor):
    """A tensor that a :class:`~minigrad.nn.Module` registers when it is assigned to one of its attributes.

    Args:
        data: the values, a floating tensor; its memory is shared, its graph is left behind.
        requires_grad: whether it is trained.

    Raises:
        TypeError: ``data`` is not a tensor, or not a floating one although it is to be trained.
    """

    def __init__(self, data: Tensor, requires_grad: bool = True):
        if not isinstance(data, Tensor):
            raise TypeError(f"Parameter: expected a Tensor, got {type(data).__name__}; see minigrad.tensor")
        self._array = data._array
        self.device = data.device
        self._written = written_cell(data)
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
