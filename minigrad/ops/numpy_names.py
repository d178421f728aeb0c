"""NumPy's argument names ``axis`` and ``keepdims``, which PyTorch's functions accept as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["renamed"]

_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def renamed(function: Callable, names: dict[str, Any], **arguments: Any) -> Any:
    """``function(**arguments)``, once more, with what was given as ``axis`` and ``keepdims`` among them."""
    for name, value in names.items():
        if name == "out" and value is None:  # np.mean(x) calls x.mean(axis=None, dtype=None, out=None)
            continue
        if _NAMES.get(name) not in arguments:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
        arguments[_NAMES[name]] = value
    return function(**arguments)
