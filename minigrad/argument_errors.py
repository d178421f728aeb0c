"""A clear TypeError for a call such as ``softmax(5)``, where a tensor is expected.

Functions read ``x.ndim`` or ``x.dtype`` without a look at what ``x`` is, so ``softmax(5)`` would end in an
AttributeError about an int. :func:`explain_arguments` has the public functions of a module raise a TypeError
instead, which names the function and the argument. It wraps them, which costs a call some 60 ns; functions as
quick as that matters to are left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from minigrad.graph import Variable

__all__ = ["explain_arguments", "not_a_tensor"]

FUNCTIONS = ("function", "cython_function_or_method")
"""The types of Python's functions, and of those of a compiled file."""


def not_a_tensor(function: str, argument: str, value: Any) -> TypeError:
    """The error of ``function`` for an ``argument`` that should be a tensor, and is ``value``."""
    return TypeError(
        f"{function}: {argument} must be a tensor, got {type(value).__name__}; of an array or a list of "
        "numbers, mg.tensor(...) makes one"
    )


def explain_arguments(module: dict[str, Any], but: Collection[str] = ()) -> None:
    """Wrap a module's functions of tensors: its own, and those of :mod:`minigrad.ops` and ``creation``.

    Args:
        module: the module's ``globals()``.
        but: functions to leave as they are, by their names, and modules whose functions are.
    """
    own = module["__name__"]
    for name, function in list(module.items()):
        if type(function).__name__ not in FUNCTIONS or name.startswith("_"):
            continue
        home = function.__module__
        if home not in (own, "minigrad.creation") and not home.startswith("minigrad.ops."):
            continue
        if name not in but and home not in but:
            module[name] = _explaining(function, own, name)


_wrapped: dict[Callable, Callable] = {}


def _explaining(function: Callable, module: str, name: str) -> Callable:
    """``function`` with explained errors; one and the same for all the names that it has."""

    @functools.wraps(function)
    def explaining(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except AttributeError as error:
            explained = _explain(error, name, function, args, kwargs)
            if explained is None:
                raise
            raise explained from error

    explaining.__module__, explaining.__qualname__ = module, name  # where pickle looks for it
    return _wrapped.setdefault(function, explaining)


def _explain(error: AttributeError, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
    """A TypeError, if ``error`` came from the use of something as a tensor that is none; else None."""
    from minigrad.tensor import Tensor

    is_of_tensors = error.name == "_array" or hasattr(Tensor, str(error.name))
    if isinstance(error.obj, Variable) or not is_of_tensors:
        return None
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    values = [(key, v) for key, value in given.items() for v in _items(value)]
    for key, value in values:
        if value is error.obj:
            return not_a_tensor(name, key, value)
    if not values or any(isinstance(value, Variable) for _, value in values):
        return None
    return not_a_tensor(name, *values[0])  # the object was computed from it


def _items(value: Any) -> list:
    return [value, *value] if isinstance(value, (tuple, list)) else [value]
