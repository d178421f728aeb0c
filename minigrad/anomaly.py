"""Anomaly mode: find the op, or the gradient rule, that makes the first NaN."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minigrad.dtypes import is_floating
from minigrad.graph import Node, mode

__all__ = ["detect_anomaly", "set_detect_anomaly"]


class set_detect_anomaly:
    """Turn anomaly mode on or off for this thread, from here on or for a ``with``.

    See :func:`detect_anomaly`.
    """

    def __init__(self, enabled: bool):
        self._before = mode.anomaly
        mode.anomaly = bool(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        mode.anomaly = self._before


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Look for NaN after every op and every gradient rule; the error names the op that made the first one.

    Slow: meant for finding out where a NaN comes from.
    """
    before = mode.anomaly
    mode.anomaly = True
    try:
        yield
    finally:
        mode.anomaly = before


def calling_stack() -> list:
    """Where an op was called: the stack without the engine's own frames, which are not there if compiled."""
    stack = traceback.extract_stack()
    while stack and stack[-1].filename.startswith(_ENGINE):
        stack.pop()
    return stack


_ENGINE = tuple(
    os.path.join(os.path.dirname(__file__), f"{name}.py")
    for name in ("anomaly", "inplace", "op", "op_inputs", "op_options", "operators", "tensor")
)


def check_outputs(op: Any, inputs: Iterable, outputs: Iterable) -> None:
    """In anomaly mode: raise if an output has a NaN although no input has one."""
    if any(_has_nan(out) for out in outputs) and not any(_has_nan(arg) for arg in inputs):
        raise RuntimeError(f"anomaly mode: {op.name!r} made a NaN from inputs that have none")


def check_gradients(node: Node, grads: Sequence) -> None:
    for i, g in enumerate(grads):
        if g is not None and _has_nan(g):
            where = "".join(traceback.format_list(node.stack)) if node.stack else "  (not recorded)\n"
            raise RuntimeError(
                f"anomaly mode: the gradient of {node.op.name!r} for {node.op.input_name(i)!r} has a NaN; "
                f"the op was called at:\n{where}"
            )


def _has_nan(value: Any) -> bool:
    """Whether a tensor or an array has a NaN; numbers and integers have none."""
    array = getattr(value, "_array", value)
    if getattr(array, "dtype", None) is None or not is_floating(array.dtype):
        return False
    # A bare array comes from the walk back, which has made its device the current one.
    with contextlib.nullcontext() if array is value else value.device.active():
        return bool((array != array).any())
