"""New arrays for kernels to fill, on a card or on the simulator. Their elements are not set."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


@cache
def maker(array_type: Any) -> Callable[..., Any]:
    """``make(shape, dtype)``: what makes arrays of CuPy's type.

    A call of the type does the same in twice the time: it looks for options that none of our calls has.
    """
    base = array_type.__base__
    if not hasattr(base, "_init"):  # a CuPy with other internals
        return array_type
    new = base.__new__

    def make(shape: int | tuple[int, ...], dtype: Any) -> Any:
        array = new(array_type)
        array._init(shape, dtype)
        return array

    return make


_makers: dict[type, Callable[..., Any]] = {}
"""By the type of the array that a workspace is to lie beside: the simulator takes NumPy's."""


def workspace(like: Any, shape: int | tuple[int, ...], dtype: Any = None) -> Any:
    """A new array where ``like`` is, for what one kernel leaves to the next.

    Of ``like``'s dtype by default. The simulator finds reads of unwritten elements.
    """
    dtype = like.dtype if dtype is None else dtype
    make = _makers.get(type(like))
    if make is not None:
        return make(shape, dtype)
    if isinstance(like, np.ndarray):
        from .. import sim

        return sim.empty(shape, dtype, like)
    make = _makers[type(like)] = maker(type(like))
    return make(shape, dtype)


_unused: dict[tuple, Any] = {}
"""What :func:`unused` has made, by the type of the array beside it, the card and the dtype."""


def unused(like: Any, dtype: Any) -> Any:
    """An array of no elements where ``like`` is, for a parameter that a kernel does not look at this time."""
    if isinstance(like, np.ndarray):
        return workspace(like, 0, dtype)
    key = type(like), like.data.device_id, dtype
    found = _unused.get(key)
    if found is None:
        found = _unused[key] = workspace(like, 0, dtype)
    return found


def workspaces(like: Any, shape: int | tuple[int, ...], dtype: Any = None) -> tuple[Any, Any]:
    """Two of them: to make another array takes less than to see one as its halves."""
    return workspace(like, shape, dtype), workspace(like, shape, dtype)
