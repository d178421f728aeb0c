"""``minigrad.autograd.functional``, PyTorch's older interface to :mod:`minigrad.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.func import jacobian

__all__ = ["hessian", "jacobian"]


def hessian(func: Callable, inputs: Any, create_graph: bool = False, **options: Any) -> Any:
    """The second derivatives of ``func``, whose result is a number, at ``inputs``, a tensor or a tuple.

    With several inputs it is a tuple of tuples, with an entry for each pair.
    """

    def first(*args: Any) -> Any:
        return jacobian(func, args if isinstance(inputs, tuple) else args[0], create_graph=True)

    return jacobian(first, inputs, create_graph)
