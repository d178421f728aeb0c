"""``no_grad``, ``enable_grad`` and their like: whether the ops of a thread record the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from minigrad.graph import mode

__all__ = ["enable_grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled"]


class _GradMode(contextlib.ContextDecorator):
    """Context manager and decorator: record the graph, or not, in this thread."""

    def __init__(self, enabled: bool):
        self.enabled = bool(enabled)
        self.before: list[bool] = []

    def _recreate_cm(self) -> _GradMode:
        return _GradMode(self.enabled)  # for each call of a decorated function: threads share none

    def __enter__(self) -> None:
        self.before.append(mode.grad)
        mode.grad = self.enabled

    def __exit__(self, *exc: object) -> None:
        mode.grad = self.before.pop()


class no_grad(_GradMode):
    """Ops inside record no graph: ``with no_grad():``, ``@no_grad()`` or ``@no_grad``."""

    def __new__(cls, function: Callable | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_GradMode):
    """Ops inside record the graph, also within :class:`no_grad`; used in the same ways."""

    def __new__(cls, function: Callable | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_GradMode):
    """Record the graph, or not, from now on; with ``with`` or as a decorator, only inside."""

    def __init__(self, enabled: bool):
        super().__init__(enabled)
        super().__enter__()

    def __enter__(self) -> None:
        mode.grad = self.enabled

    def __call__(self, function: Any) -> Any:
        self.__exit__()  # what is decorated sets it at each call, not now
        return super().__call__(function)


def inference_mode(mode: bool | Callable = True) -> Any:
    """As :class:`no_grad`, which saves as much here; ``inference_mode(False)`` changes nothing."""
    if callable(mode):
        return no_grad()(mode)
    return _GradMode(is_grad_enabled() and not mode)


def is_grad_enabled() -> bool:
    """Whether ops of this thread record the graph."""
    return mode.grad
