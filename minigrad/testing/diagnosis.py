"""What a wrong result looks like: a guess at the cause, in a sentence, for the message that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minigrad.dtypes import is_floating
from minigrad.testing.arrays import Errors, errors_of
from minigrad.testing.oracle import Oracle


class WrongOutput(NamedTuple):
    """An output that differs from what it should be.

    Attributes:
        number: which of the outputs it is.
        actual, expected, errors: the output, what it should be, and how they differ.
        oracle: the inputs, and what the reference makes of them.
        earlier: the inputs of the calls before, of the same shapes, and what they give.
        layout: the memory layout of the inputs.
        garbage: the byte that the memory of the output was full of; None where it was not.
    """

    number: int
    actual: np.ndarray
    expected: np.ndarray
    errors: Errors
    oracle: Oracle
    earlier: Sequence[Oracle]
    layout: str
    garbage: int | None


def likely_cause(found: WrongOutput) -> str:
    """A sentence on the likely cause; empty if the result looks like nothing that is known."""
    return next(filter(None, _guesses(found)), "")


def _guesses(found: WrongOutput) -> Iterator[str]:
    """From the surest to the vaguest."""
    yield _not_written(found)
    yield _added(found)
    yield _constant(found)
    yield _old_result(found)
    yield _ignored_attribute(found)
    yield _layout_ignored(found)
    yield _only_at_special_values(found)
    yield _nan(found)
    yield _low_precision(found)
    yield _lost_digits(found)
    yield _only_the_tail(found)
    yield _other_order(found)
    yield _factor(found)


def _not_written(found: WrongOutput) -> str:
    if found.garbage is None:
        return ""
    actual, wrong = found.actual, found.errors.wrong.ravel()
    content = np.ascontiguousarray(actual).reshape(-1).view(np.uint8).reshape(actual.size, -1)
    left = (content == found.garbage).all(axis=1) & wrong
    count = int(left.sum())
    if not count or count < int(wrong.sum()):
        return ""
    if count == actual.size:
        return "the kernel wrote nothing: the output still holds what was in its memory before"
    if left[-count:].all():
        return (
            f"the last {count} of {actual.size} elements were not written: a tail that fills no whole "
            "vector, tile or block?"
        )
    first = tuple(int(n) for n in np.unravel_index(int(np.argmax(left)), actual.shape))
    return f"{count} of {actual.size} elements were not written, the first of them {first}"


def _added(found: WrongOutput) -> str:
    if found.garbage is None or not is_floating(found.actual.dtype):
        return ""
    left = np.full(found.actual.dtype.itemsize, found.garbage, np.uint8).view(found.actual.dtype)[0]
    with np.errstate(all="ignore"):
        less = found.actual - left
    if errors_of(less, found.expected, 4 * found.oracle.length, 1.0).wrong.any():
        return ""
    return "the result was added to what the output's memory held before: set it to zero first"


def _constant(found: WrongOutput) -> str:
    actual = found.actual
    if actual.size > 1 and (actual == 0).all():
        return "the kernel wrote zeros"
    if actual.size > 1 and is_floating(actual.dtype) and np.isnan(actual).all():
        return "the kernel wrote NaN everywhere"
    return ""


def _old_result(found: WrongOutput) -> str:
    for oracle in found.earlier:
        if _is(found, oracle.expected):
            return (
                "this is the result for the inputs of an earlier call: the kernel keeps an old result, by "
                "the shape or the address of its input; look at the values each time"
            )
    return ""


def _ignored_attribute(found: WrongOutput) -> str:
    oracle = found.oracle
    for name, default in oracle.op.attributes.items():
        value = oracle.attrs[name]
        others = [default] if isinstance(default, (int, float, bool)) else []
        others += [0.0, 1.0] if isinstance(value, float) else []
        for other in others:
            if other == value:
                continue
            try:
                expected = oracle.reference(oracle.values, **{name: other})
            except Exception:  # not a value of this attribute
                continue
            if _is(found, expected):
                return f"this is the result for {name}={other!r}: is the attribute {name!r} passed on?"
    return ""


def _layout_ignored(found: WrongOutput) -> str:
    """Whether the inputs were read as if they were contiguous from their first element on."""
    if found.layout != "transposed":
        return ""
    misread = [
        v.T.reshape(v.shape) if isinstance(v, np.ndarray) and v.ndim > 1 else v for v in found.oracle.values
    ]
    if not _is(found, found.oracle.reference(misread)):
        return ""
    return (
        "the inputs are transposed views, and were read as if they were contiguous: use the strides, or "
        "leave out layout='strided'"
    )


def _only_at_special_values(found: WrongOutput) -> str:
    if not found.oracle.special:
        return ""
    marked = np.zeros(found.actual.shape, bool)
    seen = []
    for value in found.oracle.values:
        if isinstance(value, np.ndarray) and is_floating(value.dtype):
            try:
                special = np.broadcast_to(_is_special(value), marked.shape)
            except ValueError:
                continue
            marked |= special
            hit = np.broadcast_to(value, marked.shape)[special & found.errors.wrong]
            seen += [f"{v:g}" for v in hit.ravel().astype(np.float64)]
    if not seen or (found.errors.wrong & ~marked).any():
        return ""
    return f"it is wrong only where an input is {', '.join(sorted(set(seen)))}"


def _is_special(value: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        wide = value.astype(np.float64)
        return (
            ~np.isfinite(wide)
            | np.isin(np.abs(wide), (0.0, 1.0))
            | (np.abs(wide) > 1e9)
            | (np.abs(wide) < 1e-9)
        )


def _nan(found: WrongOutput) -> str:
    if not is_floating(found.actual.dtype):
        return ""
    wrong = found.errors.wrong
    if np.isnan(found.actual[wrong]).any() and np.isfinite(found.expected[wrong]).all():
        return (
            "NaN where there is none: what lies around each input is NaN; is something read outside of an "
            "input, or from memory that was not set?"
        )
    return ""


def _low_precision(found: WrongOutput) -> str:
    """Whether the result is right to within the rounding of a smaller dtype."""
    for smaller in (np.dtype(np.float32), np.dtype(np.float16)):
        if found.actual.dtype.kind != "f" or smaller.itemsize >= found.actual.dtype.itemsize:
            continue
        with np.errstate(all="ignore"):
            magnitude = found.oracle.magnitudes[found.number] + np.abs(found.expected)
            limit = 8.0 * float(np.finfo(smaller).eps) * found.oracle.length**0.5 * magnitude
            limit = limit + float(np.finfo(smaller).smallest_normal)
            fits = found.errors.difference <= limit
        if (
            fits.all()
            and np.isfinite(found.errors.difference).all()
            and found.errors.wrong.sum() > found.actual.size / 4
        ):
            return (
                f"it is as exact as {smaller}: is something computed in {smaller} (a variable, a constant "
                "like 1.0f, a function like expf)?"
            )
    return ""


FEW_ROUNDINGS = 100  # times what is allowed


def _lost_digits(found: WrongOutput) -> str:
    if not is_floating(found.actual.dtype) or found.errors.share.max() > FEW_ROUNDINGS:
        return ""
    return (
        "right, but for some roundings too many: does the kernel, or the reference, take the difference of "
        "nearly equal numbers (1 + tanh(x)), or carry a long sum in a small dtype?"
    )


def _only_the_tail(found: WrongOutput) -> str:
    wrong = found.errors.wrong.ravel()
    count = int(wrong.sum())
    if count == wrong.size or not wrong[-count:].all():
        return ""
    return f"only the last {count} of {wrong.size} elements are wrong: a tail that fills no vector or block?"


def _other_order(found: WrongOutput) -> str:
    wrong = found.errors.wrong
    if wrong.sum() < 2 or not is_floating(found.actual.dtype):
        return ""
    actual, expected = np.sort(found.actual[wrong]), np.sort(found.expected[wrong])
    if errors_of(actual, expected, found.oracle.length).wrong.any():
        return ""
    return "these are the right values in another order: are two indices exchanged?"


def _factor(found: WrongOutput) -> str:
    if not is_floating(found.actual.dtype):
        return ""
    with np.errstate(all="ignore"):
        ratios = found.actual.astype(np.float64) / found.expected
    ratios = ratios[np.isfinite(ratios)]
    if ratios.size < 3 or not np.ptp(ratios) <= 1e-4 * abs(ratios[0]) or abs(ratios[0] - 1) < 1e-3:
        return ""
    return f"each element is {ratios[0]:.6g} times what it should be: is a constant factor wrong?"


def _is(found: WrongOutput, candidates: Sequence[np.ndarray]) -> bool:
    """Whether the output is that of ``candidates``, which is not the expected one."""
    candidate = np.asarray(candidates[found.number])
    if candidate.shape != found.actual.shape or candidate.dtype.kind != found.actual.dtype.kind:
        return False
    magnitude = found.oracle.magnitudes[found.number]
    right = ~errors_of(found.actual, candidate, found.oracle.length, magnitude).wrong
    different = errors_of(found.actual, found.expected, found.oracle.length, magnitude).wrong
    return bool(right.all() and different.any())
