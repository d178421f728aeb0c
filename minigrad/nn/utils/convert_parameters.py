"""All parameters of a network as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.ops.join import concat
from minigrad.tensor import Tensor

__all__ = ["parameters_to_vector", "vector_to_parameters"]


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """The elements of all ``parameters``, one after the other."""
    return concat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy the elements of ``vec`` into ``parameters``, in the order of :func:`parameters_to_vector`.

    Raises:
        ValueError: ``vec`` has not as many elements as they have; nothing has been changed then.
    """
    parameters = list(parameters)
    total = sum(p.numel() for p in parameters)
    if vec.shape != (total,):
        raise ValueError(
            f"vector_to_parameters: expected a vector of {total} elements, got shape {vec.shape}"
        )
    start = 0
    for p in parameters:
        p.data.copy_(vec.detach()[start : start + p.numel()].reshape(p.shape))
        start += p.numel()
