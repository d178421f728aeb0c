"""The calls that an op is checked with: those that are given, and more that follow from them.

A kernel that is right for the shapes of its author's cases may be wrong for others: where a vector, a tile or
a block is not full, where there is nothing at all. Where any shape will do, because the op has no shape rule,
the kinds of sizes that are missing are made from the cases given; so are values of attributes that no case
varies. Of what cannot be made, the report says that it is missing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from minigrad.dtypes import is_floating
from minigrad.op import Op

DEFAULT_SHAPES = ((), (1,), (7,), (3, 5), (33, 17), (2, 3, 4), (0,), (2, 0, 3))


class Case(NamedTuple):
    """One call of an op, made by :func:`case`."""

    inputs: tuple
    attrs: dict
    length: int | None
    gradient: bool
    special: bool
    derived: str = ""

    def __str__(self) -> str:
        attrs = "".join(f", {name}={value!r}" for name, value in self.attrs.items())
        return f"({', '.join(getattr(i, '__name__', repr(i)) for i in self.inputs)}{attrs})"


def case(
    *inputs: Any, length: int | None = None, gradient: bool = True, special: bool = True, **attrs: Any
) -> Case:
    """One call of an op, for :func:`check_op`.

    Args:
        inputs: for each input a shape (filled with normal random numbers); or ``f(rng)``, which returns an
            array, given a :class:`numpy.random.Generator`; or an array. Numbers and None are passed on.
        length: how many terms are summed for one element of the output; by default 1 for an op without a
            shape rule, otherwise the number of elements of all inputs.
        gradient: whether the gradients are tested too.
        special: whether NaN, infinities, zeros and huge numbers are put among the random numbers too, in
            inputs that are given by a shape.
        attrs: the op's attributes.
    """
    return Case(inputs, attrs, length, gradient, special)


def as_cases(op: Op, cases: Iterable | None) -> list[Case]:
    """``cases`` as a list; the default ones for an op of any number of equal shapes if there are none."""
    if not isinstance(op, Op):
        raise TypeError(f"expected an op, got {type(op).__name__} {op!r:.60}; get_op(name) finds one")
    if cases is not None:
        found = [c if isinstance(c, Case) else case(*c) for c in cases]
        if not found:
            raise ValueError(f"check_op: there is no case for op {op.name!r}; give at least one")
        return found
    if op._shape_rule is not None or op.variadic or inspect.Parameter.empty in op.attributes.values():
        raise ValueError(f"check_op: op {op.name!r} needs cases, such as case((3, 4), (4, 5))")
    return [case(*[shape] * len(op.inputs)) for shape in DEFAULT_SHAPES]


def draw(value: Any, dtype: np.dtype, rng: np.random.Generator) -> Any:
    """The input that an entry of :func:`case` stands for: an array, of ``dtype`` if floating; or as it is."""
    if isinstance(value, tuple):
        value = rng.standard_normal(value)
    elif callable(value):
        value = value(rng)
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value, dtype if is_floating(value.dtype) else value.dtype)
    return value


# ---- special values ---------------------------------------------------------------------------------------

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-30, 1.0, -1.0)
"""What a kernel may treat otherwise than a normal random number; in float16 the large are infinite."""

ONE_AT_A_TIME = (np.nan, np.inf, -np.inf, 0.0)
"""For an op that combines many elements, where one of them hides all others."""


def put_special(op: Op, one: Case, values: Sequence, number: int, rng: np.random.Generator) -> list:
    """``values``, the inputs of a case, with special ones among those that the case gives by a shape.

    Where each element of the output comes from one of each input, a quarter of them. Otherwise one
    element of one input; in every fourth ``number``, one input is all zeros instead.
    """
    values = list(values)
    if not one.special:
        return values
    normal = [
        i
        for i, (given, value) in enumerate(zip(one.inputs, values, strict=True))
        if isinstance(given, tuple) and value.size
    ]
    if op._shape_rule is None:
        for i in normal:
            values[i] = array = values[i].copy()
            with np.errstate(over="ignore"):
                count = math.ceil(array.size / 4)
                places = rng.choice(array.size, count, replace=False)
                array.reshape(-1)[places] = rng.choice(SPECIAL, count).astype(array.dtype)
    elif normal:
        i, value = rng.choice(normal), ONE_AT_A_TIME[number % len(ONE_AT_A_TIME)]
        values[i] = array = values[i].copy()
        array.reshape(-1)[slice(None) if value == 0 else rng.integers(array.size)] = value
    return values


# ---- kinds of sizes, and cases that follow from others ----------------------------------------------------

BLOCKS, LARGE = 2305, 66049
"""Elements: more than two blocks of 1024 threads have; more than CPU kernels leave to one thread."""

KINDS = {
    "odd sizes": lambda shapes: any(math.prod(s) > 4 and math.prod(s) % 2 for s in shapes),
    "several blocks": lambda shapes: any(math.prod(s) > 1024 for s in shapes),
    "large": lambda shapes: any(math.prod(s) > LARGE // 2 for s in shapes),
    "one element": lambda shapes: all(math.prod(shape) == 1 for shape in shapes),
    "empty": lambda shapes: any(0 in shape for shape in shapes),
}

WORDS = {
    "odd sizes": "an odd number of elements",
    "several blocks": "more than 1024 elements",
    "large": f"more than {LARGE // 2} elements",
    "one element": "a single element",
    "empty": "an empty input",
}


def kinds_of(shapes: Sequence[tuple]) -> set[str]:
    """Which kinds of sizes the inputs of these shapes are."""
    return {kind for kind, test in KINDS.items() if shapes and test(shapes)}


def derived_cases(op: Op, cases: Sequence[Case]) -> list[Case]:
    """Cases of the kinds of sizes that ``cases`` lack, where every shape will do, and of other attributes."""
    known = {kind for one in cases for kind in kinds_of([s for s in one.inputs if isinstance(s, tuple)])}
    found = list(_other_attributes(op, cases))
    if op._shape_rule is None and not op.variadic and not op.view:
        for template in _templates(cases):
            found += [
                resized._replace(gradient=False, derived=kind)
                for kind in KINDS
                if kind not in known
                for resized in _resized(template, kind)
            ]
    return found


def _templates(cases: Sequence[Case]) -> list[Case]:
    """For each choice of attributes the case with the most dimensions, of those with a size above 1."""
    best: dict[str, Case] = {}
    for one in cases:
        shapes = [s for s in one.inputs if isinstance(s, tuple)]
        others = [i for i in one.inputs if not isinstance(i, (tuple, int, float, type(None)))]
        if others or not any(n > 1 for shape in shapes for n in shape):
            continue
        key = repr((one.attrs, [type(i) for i in one.inputs]))
        if key not in best or max(map(len, shapes)) > max(
            len(s) for s in best[key].inputs if isinstance(s, tuple)
        ):
            best[key] = one
    return list(best.values())


def _resized(one: Case, kind: str) -> Iterator[Case]:
    """``one`` with other sizes, equal ones still equal: sizes of 1, which may be broadcast, stay."""
    shapes = [s for s in one.inputs if isinstance(s, tuple)]
    sizes = sorted({n for shape in shapes for n in shape} - {0, 1})
    dimensions = sum(n > 1 for n in np.broadcast_shapes(*shapes))
    if kind == "one element":
        new = dict.fromkeys(sizes, 1)
    elif kind == "empty":
        new = {**{n: n for n in sizes}, sizes[0]: 0}
    else:
        elements = {"odd sizes": 25, "several blocks": BLOCKS, "large": LARGE}[kind]
        side = math.ceil(elements ** (1 / dimensions)) | 1
        new = {n: side + 2 * i for i, n in enumerate(sizes)}
    inputs = tuple(tuple(new.get(n, n) for n in i) if isinstance(i, tuple) else i for i in one.inputs)
    if inputs != one.inputs:
        length = one.length and max(one.length, sum(new.values()))
        yield one._replace(inputs=inputs, length=length)


def _other_attributes(op: Op, cases: Sequence[Case]) -> Iterator[Case]:
    """A case with another value for each attribute that has one value in all of ``cases``, where others are
    known: another number between it and 0.4, the other truth value, each of what a Literal lists."""
    for name, values in unvaried_attributes(op, cases).items():
        for value in values:
            template = max(
                cases, key=lambda one: sum(isinstance(i, tuple) and 0 not in i for i in one.inputs)
            )
            attrs = {**template.attrs, name: value}
            yield template._replace(attrs=attrs, gradient=False, derived=f"another {name}")


def unvaried_attributes(op: Op, cases: Sequence[Case]) -> dict[str, list]:
    """The attributes that have one value in all cases, each with other values that it may have."""
    found = {}
    hints = _annotations(op)
    for name, default in op.attributes.items():
        values = [one.attrs.get(name, default) for one in cases]
        if any(repr(value) != repr(values[0]) for value in values):
            continue
        only = values[0]
        if get_origin(hints.get(name)) is Literal:
            found[name] = [value for value in get_args(hints[name]) if value != only]
        elif isinstance(only, bool):
            found[name] = [not only]
        elif isinstance(only, float) and math.isfinite(only):
            found[name] = [0.75 * only + 0.1]
        else:
            found[name] = []
    return found


def _annotations(op: Op) -> dict[str, Any]:
    try:
        return get_type_hints(op.reference)
    except (NameError, TypeError):  # names that only a type checker knows
        return {}
