"""Inputs of ops that need conversion (lists, arrays, mixed dtypes), and the errors of bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.devices import cpu
from minigrad.dispatch import Spec
from minigrad.dtypes import is_floating
from minigrad.errors import DeviceError
from minigrad.graph import Variable, wrap
from minigrad.op_definition import OpDefinition, _ops
from minigrad.promotion import result_dtype

SCALARS = (float, int, bool)


def convert_inputs(op: OpDefinition, args: tuple, device: Any) -> tuple | None:
    """``args`` as tensors, promoted to one dtype if the op asks for that; None if nothing was changed."""
    device = device or cpu
    changed = [_as_input(op, a, device) for a in args]
    if op.promote:
        dtype = result_dtype(a if a is None or type(a) in SCALARS else a._array for a in changed)
        cast = _ops["cast"]
        changed = [
            cast(a, dtype=dtype) if isinstance(a, Variable) and a._array.dtype != dtype else a
            for a in changed
        ]
        if all(type(a) in SCALARS for a in changed):
            changed[0] = wrap(device.from_numpy(np.asarray(changed[0], dtype)), device)
    else:
        if op.promote is False:
            check_dtypes(op, changed, of_all=op.one_dtype)
        if all(type(a) in SCALARS for a in changed):
            changed[0] = wrap(device.from_numpy(np.asarray(changed[0], result_dtype(changed[:1]))), device)
    return None if all(a is b for a, b in zip(args, changed, strict=True)) else tuple(changed)


def _as_input(op: OpDefinition, arg: Any, device: Any) -> Any:
    """Arrays and lists as tensors, NumPy scalars as Python's; tensors, Python scalars, None as they are."""
    if isinstance(arg, Variable) or type(arg) in SCALARS or (arg is None and op.optional):
        return arg
    if isinstance(arg, Spec):
        raise TypeError(
            f"op {op.name!r}: got the shape and dtype alone of {arg}: a gradient rule is not given what it "
            "names with an underscore; name it without, and it is kept"
        )
    if isinstance(arg, np.generic) and arg.dtype.kind in "fiub":
        return arg.item()
    if isinstance(arg, (np.ndarray, list, tuple)) and device.type != "cuda":
        array = np.asarray(arg)
        if array.dtype.kind in "fiub":
            return wrap(array, device)
    raise TypeError(f"op {op.name!r}: expected a tensor or a number, got {type(arg).__name__}: {arg!r:.60}")


def check_dtypes(op: OpDefinition, args: Sequence, of_all: bool) -> None:
    """Raise if there are several floating dtypes, or several ``of_all`` dtypes, among the inputs."""
    dtypes = [
        (i, a.dtype)
        for i, a in enumerate(args)
        if isinstance(a, Variable) and (of_all or is_floating(a.dtype))
    ]
    if len({t for _, t in dtypes}) > 1:
        found = ", ".join(f"{op.input_name(i)} is {t}" for i, t in dtypes)
        raise TypeError(f"{op.name}: inputs of different dtypes ({found}); convert one with .to(dtype)")


def device_error(op: OpDefinition, args: tuple) -> DeviceError:
    places = ", ".join(
        f"{op.input_name(i)} on {a.device}" for i, a in enumerate(args) if isinstance(a, Variable)
    )
    return DeviceError(f"{op.name}: tensors of different devices ({places}); move one with .to(device)")


def check_broadcast(op: OpDefinition, arrays: Sequence) -> None:
    """Raise a ValueError that names the shapes, if they do not broadcast."""
    if op.variadic or op._shape_rule is not None:
        return
    shapes = [tuple(a.shape) for a in arrays if hasattr(a, "shape")]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"{op.name}: the shapes {' and '.join(map(str, shapes))} do not broadcast; counted from "
            "the last dimension, sizes must be equal, or one of them 1"
        ) from None
