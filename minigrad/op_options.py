"""Options of an op: typed attributes, inputs without a gradient, extra outputs, writing in place.

A call of an op that has any of them goes through :func:`call`; other ops do not pay for it.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np

from minigrad.graph import Variable, wrap, written_cell

if TYPE_CHECKING:
    from minigrad.op import Op

Converter = Callable[[Any], Any]


def attribute_types(reference: Callable, names: Any) -> dict[str, tuple[Any, Converter]]:
    """(type, what checks and converts a value) of each attribute whose annotation is a type known here."""
    try:
        hints = typing.get_type_hints(reference)
    except (NameError, TypeError, AttributeError):  # an annotation for readers alone
        return {}
    converters = {name: (hints[name], _converter(hints[name])) for name in names if name in hints}
    return {name: (hint, found) for name, (hint, found) in converters.items() if found is not None}


def _converter(hint: Any) -> Any:
    """A function that gives a value of type ``hint``, or raises TypeError or ValueError; None: no check."""
    simple = {float: _to_float, int: _to_int, bool: _to_bool, str: _to_str}.get(hint)
    if simple is not None:
        return simple
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return lambda value: _one_of(value, arguments)
    if origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        inner = _converter(next(a for a in arguments if a is not type(None)))
        return None if inner is None else lambda value: None if value is None else inner(value)
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        inner = [_converter(a) for a in (arguments[:1] if several else arguments)]
        return None if None in inner else lambda value: _to_tuple(value, inner, several)
    return None


def _to_float(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError
    return float(value)


def _to_int(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)


def _to_bool(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _one_of(value: Any, choices: tuple) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError
    return value


def _to_tuple(value: Any, inner: list, several: bool) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise TypeError
    if several:
        return tuple(inner[0](item) for item in value)
    if len(value) != len(inner):
        raise ValueError
    return tuple(convert(item) for convert, item in zip(inner, value, strict=True))


def call(op: Op, args: tuple, attrs: dict) -> Any:
    """The call of an op that has options, with all inputs and attributes."""
    if op.attribute_types:
        if attrs.keys() != op.attributes.keys():  # as many, but one has another name
            attrs = op._complete(attrs)
        attrs = _convert(op, attrs)
    if op.non_differentiable:
        args = tuple(
            _detached(arg) if op.inputs[i] in op.non_differentiable and isinstance(arg, Variable) else arg
            for i, arg in enumerate(args)
        )
    if op.in_place is not None:
        return _write_in_place(op, args, attrs)
    outputs = op.apply(args, attrs)
    if op.returns is None:
        return outputs
    if not isinstance(outputs, tuple) or len(outputs) < op.returns:
        raise RuntimeError(
            f"op {op.name!r} returns {op.returns} of its outputs, and the reference gave "
            f"{len(outputs) if isinstance(outputs, tuple) else 1}: change returns=, or the reference"
        )
    return outputs[0] if op.returns == 1 else outputs[: op.returns]


def _convert(op: Op, attrs: dict) -> dict:
    converted = dict(attrs)
    for name, (hint, convert) in op.attribute_types.items():
        try:
            converted[name] = convert(attrs[name])
        except (TypeError, ValueError) as error:
            expected = getattr(hint, "__name__", "") if isinstance(hint, type) else ""
            raise type(error)(
                f"op {op.name!r}: the attribute {name!r} is {expected or str(hint).replace('typing.', '')}, "
                f"got {type(attrs[name]).__name__} {attrs[name]!r:.60}"
            ) from None
    return converted


def _detached(variable: Any) -> Any:
    """The variable's value, through which no gradient flows; a write to it is still noticed."""
    out = wrap(variable._array, variable.device)
    out._written = written_cell(variable)
    return out


def _write_in_place(op: Op, args: tuple, attrs: dict) -> Any:
    at = op.inputs.index(op.in_place)
    if not isinstance(args[at], Variable):
        raise TypeError(
            f"op {op.name!r} writes its input {op.in_place!r}: expected a tensor, "
            f"got {type(args[at]).__name__}"
        )
    target: Any = args[at]

    def compute(before: Any, *others: Any) -> Any:
        return op.apply((*others[:at], before, *others[at:]), attrs)

    compute.__name__ = op.name
    return target._in_place(compute, *args[:at], *args[at + 1 :])
