"""``op.cython``: kernels from Cython source, compiled when they first run, and kept on disk."""

from __future__ import annotations

import re
import textwrap
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigrad.dispatch import parse_dtypes
from minigrad.kernel_code import Arguments, Origin
from minigrad.kernels.cython_source import cython_module
from minigrad.kernels.source import split_commas

if TYPE_CHECKING:
    from minigrad.op_definition import OpDefinition

C_NAMES = {
    np.dtype(code): name
    for code, name in {
        "f4": "float",
        "f8": "double",
        "i1": "char",
        "i2": "short",
        "i4": "int",
        "i8": "long",
    }.items()
}
"""How Cython names the versions of a function for the members of a fused type."""

TYPES = {name: dtype for dtype, name in C_NAMES.items() if name != "char"}
"""The dtypes of C's types."""

_FUNCTION = re.compile(
    r"^(?:def|cpdef(?:\s+[\w\[\]:, ]+?)?)\s+(?P<name>\w+)\s*\((?P<parameters>(?:[^()]|\([^()]*\))*)\)", re.M
)


class _Parameter(NamedTuple):
    """A parameter of a Cython function: its name, its element type, and its dimensions if it is an array."""

    name: str
    type: str
    dimensions: int
    text: str


class _Functions(dict):
    """The compiled function for each dtype of the array that decides: compiled when one is asked for."""

    def __init__(self, origin: Origin, function: str, options: dict):
        super().__init__()
        self.origin, self.function, self.options = origin, function, options
        self._lock = threading.Lock()

    def __missing__(self, dtype: np.dtype) -> Any:
        with self._lock:
            module = cython_module(self.origin.source, **self.options)
            found = getattr(module, self.function)
            versions = getattr(found, "__signatures__", None) or {}
            name = C_NAMES.get(dtype, "")
            self[dtype] = found[name] if name in versions else found
        return self[dtype]


def register_cython(
    op: OpDefinition,
    source: Any,
    function: str | None,
    args: str | Sequence[str] | None,
    name: str,
    dtypes: Any,
    summary: str,
    flags: Sequence[str],
    directives: Mapping[str, Any] | None,
    options: dict,
) -> None:
    """Register a kernel as :meth:`minigrad.op.Op.cython` describes it."""
    who = f"op {op.name!r}, kernel {name!r}"
    function = function or op.name
    origin = Origin(source, f"{function}.pyx", who)
    text = origin.source if isinstance(origin.source, str) else origin.source.read_text()
    parameters, found_summary = _read(textwrap.dedent(text), function, who)
    arguments = Arguments(op, who)
    bound = arguments.bind(args, [p.name for p in parameters])
    values, deciding, first_type = [], None, ""
    for parameter in parameters:
        expression = bound[parameter.name]
        is_array = arguments.is_array(expression) or expression in arguments.inputs
        if parameter.dimensions == 1 and is_array:
            absent = "None if {0} is None else " if expression in op.inputs[op.arity - op.optional :] else ""
            expression = f"({absent}{{0}}.ravel())".format(expression)
        values.append(expression)
        if parameter.dimensions and deciding is None:
            deciding, first_type = bound[parameter.name], parameter.type
    known = {"float": "f4", "double": "f8"}.get(first_type)
    accepted = parse_dtypes(dtypes or known or "f4 f8")

    functions = _Functions(origin, function, {"name": function, "flags": flags, "directives": directives})
    pairs = list(bound.items())

    def explain(error: Exception, names: dict) -> None:
        if "read-only" in str(error):
            error = ValueError(f"{error}: declare the arrays that are read as const: `const float[::1] x`")
        else:
            types = {**TYPES, first_type: getattr(names.get(deciding), "dtype", None)}
            for parameter in parameters:
                if parameter.dimensions and bound[parameter.name] in names:
                    _check_array(who, parameter, names[bound[parameter.name]], types)
        arguments.explain(error, names, pairs, origin)

    version = "functions[None]" if deciding is None else f"functions[{deciding}.dtype]"
    run = arguments.function([f"{version}({', '.join(values)})"], {"functions": functions}, explain)
    run.__name__, run.__doc__ = name, summary or found_summary
    op.kernel("cpu", name=name, dtypes=accepted, **options)(run)


def _check_array(who: str, parameter: _Parameter, value: Any, types: Mapping[str, Any]) -> None:
    """Raise if ``value`` is no array that ``parameter`` takes; ``types`` has the dtypes of element types."""
    expects = f"{who}: the parameter `{parameter.text}` expects an array"
    if value is None:  # of an input that may be left out; Cython's arrays may be None
        return
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f'{expects}, got {type(value).__name__} {value!r:.60}: layout="broadcast" makes an array of a '
            "number, or let when= leave numbers to the reference"
        )
    if parameter.dimensions not in (1, value.ndim):
        raise ValueError(
            f"{expects} of {parameter.dimensions} dimensions, got one of shape {value.shape}: reshape it "
            "with args=, or let when= leave other shapes to the reference"
        )
    dtype = types.get(parameter.type)
    if dtype is not None and value.dtype != dtype:
        raise ValueError(
            f"{expects} of {dtype}, got one of {value.dtype}: let when= leave other dtypes to the reference, "
            "or declare a type that fits"
        )


def _read(text: str, function: str, who: str) -> tuple[list[_Parameter], str]:
    """The parameters of a function of a Cython source, and the first paragraph of its docstring."""
    code = re.sub(r"#[^\n]*", lambda found: " " * len(found[0]), text)
    there: dict[str, re.Match] = {}
    for found in _FUNCTION.finditer(code):
        there.setdefault(found["name"], found)
    if function not in there:
        raise ValueError(
            f"{who}: the source has no function `def {function}(...)`; it has: {', '.join(there) or 'none'}; "
            "name one with function="
        )
    found = there[function]
    doc = re.match(r'[^\n]*:\s*(?P<quotes>"""|\'\'\'|")(?P<doc>.*?)(?P=quotes)', text[found.end() :], re.S)
    summary = " ".join(doc["doc"].strip().split("\n\n")[0].split()) if doc else ""
    return [_parameter(p, who) for p in split_commas(found["parameters"])], summary


def _parameter(text: str, who: str) -> _Parameter:
    declaration = re.sub(r"\b(?:not|or)\s+None\b", "", text.partition("=")[0]).strip()
    match = re.fullmatch(r"(?P<type>.*?)\s*(?P<dimensions>\[[^\]]*\])?\s*(?P<name>\w+)", declaration)
    if match is None or text.startswith("*"):
        raise ValueError(f"{who}: cannot read the parameter `{text}` of the function; expected `type name`")
    element = re.sub(r"\bconst\b", "", match["type"]).strip()
    dimensions = len(match["dimensions"].split(",")) if match["dimensions"] else 0
    return _Parameter(match["name"], element, dimensions, declaration)
