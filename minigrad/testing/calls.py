"""The calls of one kernel in one trial: with some inputs, with others, with the first again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minigrad.dispatch import REFERENCE, Kernel
from minigrad.op import Op, _as_specs
from minigrad.tensor import Tensor
from minigrad.testing.arrays import (
    HUGE,
    LOW,
    NAN,
    Errors,
    PlacedArray,
    check_type,
    describe_errors,
    errors_of,
    to_numpy,
)
from minigrad.testing.diagnosis import WrongOutput, likely_cause
from minigrad.testing.oracle import Oracle, Trial
from minigrad.testing.watch import SHORTCUTS, Watch

REFERENCE_SLACK = 8.0
"""How many times what is allowed the reference's own error may be."""

OUTPUT_GARBAGE = (0x3F, 0xFF, 0x5A)
"""The byte that the output's memory is full of before each of three runs: as a float below 1, NaN, huge."""


def sees(kernel: Kernel, layout: str) -> bool:
    """Whether the kernel is given inputs of this layout as they are, and no contiguous copies."""
    channels_last = bool(kernel.channels_last) and layout == "channels last"
    return kernel.layout == "strided" or layout == "contiguous" or channels_last


def check_trial(trial: Trial, watch: Watch, once: bool = False) -> tuple[int, float]:
    """Check a kernel on one trial: how often it ran (0: it refuses this), and its largest share of error.

    With ``once``, what would be called three times is called once.
    """
    kernel = watch.kernel
    of_reference = kernel.name == REFERENCE and trial.layout != "contiguous"
    other = trial.special if kernel.amplification is None else trial.second
    # Kernels that are given contiguous inputs in any case see nothing new in other layouts.
    thorough = sees(kernel, trial.layout) and not of_reference and not once
    turns = [trial.first, other, trial.first] if thorough else [trial.first]
    placed = [
        PlacedArray(v, watch.device, trial.layout) if isinstance(v, np.ndarray) else None
        for v in trial.first.values
    ]
    tensors = [
        v if place is None else place.tensor for v, place in zip(trial.first.values, placed, strict=True)
    ]
    results, worst = [], 0.0
    for turn, oracle in enumerate(turns):
        for place, values in zip(placed, oracle.values, strict=True):
            if place is not None:
                place.fill(values, (NAN, HUGE, LOW)[turn])
        outputs = watch.call(tensors, trial.case.attrs, OUTPUT_GARBAGE[turn], look=turn == 0)
        if outputs is None:
            return 0, 0.0
        for i, place in enumerate(placed):
            if place is not None and not place.is_unchanged():
                raise AssertionError(f"the kernel changed its input {trial.op.input_name(i)!r}")
        if watch.kernel.name == REFERENCE:
            _check_reference(trial, tensors, outputs)
        results.append([to_numpy(y).copy() for y in outputs])
        for k, actual in enumerate(results[-1]):
            garbage = None if watch.kernel.name in (REFERENCE, *SHORTCUTS) else OUTPUT_GARBAGE[turn]
            worst = max(worst, _check_output(k, actual, oracle, turns[:turn], trial, watch, garbage))
    watch.check_earlier_outputs()
    if len(turns) == 3 and not (watch.device.is_card and watch.kernel.name == REFERENCE):
        # CuPy adds what is scattered by atomics, in no fixed order.
        for k, (first, again) in enumerate(zip(results[0], results[2], strict=True)):
            if first.tobytes() != again.tobytes():
                raise AssertionError(
                    f"output {k} differs from run to run: the same inputs gave other bits; it depends on "
                    "memory that was not set, on the order of threads, or on what was computed before"
                )
    return len(turns), worst


def _check_reference(trial: Trial, tensors: Sequence, outputs: Sequence) -> None:
    """Raise an AssertionError unless the reference's outputs have memory and dtypes of their own."""
    op = trial.op
    inputs = [(i, t._array) for i, t in enumerate(tensors) if isinstance(t, Tensor)]
    dtypes = op_dtypes(op, [t._array if isinstance(t, Tensor) else t for t in tensors], trial.first.attrs)
    if dtypes is not None and len(dtypes) != len(outputs):
        raise AssertionError(
            f"the reference gives {len(outputs)} outputs, kernels are given {len(dtypes)}: let "
            f"@{op.name}.shape return a list, with a shape for each output"
        )
    for k, y in enumerate(outputs):
        if dtypes is not None and y.dtype != dtypes[k]:
            raise AssertionError(
                f"output {k} is {y.dtype}, where kernels give {dtypes[k]}: let the reference keep the dtype "
                "of its inputs (a NumPy float64 among them makes all float64), or declare the output's with "
                f"@{op.name}.dtype or @{op.name}.shape"
            )
        for i, array in inputs:
            if not op.view and isinstance(array, np.ndarray) and np.may_share_memory(array, y._array):
                raise AssertionError(
                    f"output {k} lies in the memory of input {op.input_name(i)!r}: who writes to one changes "
                    "both. Return a copy, or declare it with op(view=True)"
                )


def op_dtypes(op: Op, inputs: Sequence, attrs: dict) -> list[np.dtype] | None:
    """The dtypes that a kernel's outputs would have; None if there is neither a kernel nor a rule."""
    first = next(a.dtype for a in inputs if hasattr(a, "dtype"))
    if op._shape_rule is not None:
        return [spec[1] for spec in _as_specs(op.name, op._shape_rule(*inputs, **attrs), first)]
    if op._dtype_rule is not None:
        return [op._dtype_rule(*inputs, **attrs)]
    return [first] if op.kernels.kernels else None


def _check_output(
    k: int,
    actual: np.ndarray,
    oracle: Oracle,
    earlier: Sequence[Oracle],
    trial: Trial,
    watch: Watch,
    garbage: int | None,
) -> float:
    """The largest error of output ``k``, as a share of what is allowed; an AssertionError beyond it."""
    what = f"output {k}"
    expected = oracle.expected[k]
    check_type(actual, expected, what)
    magnitude = oracle.magnitudes[k]
    amplification = watch.kernel.amplification
    if amplification is not None:
        magnitude = np.full_like(magnitude, amplification * np.max(magnitude, initial=0))
    errors = errors_of(actual, expected, oracle.length, magnitude)
    is_reference = watch.kernel.name == REFERENCE
    if errors.wrong.any() and (oracle.special or is_reference):
        errors = _excused(k, actual, oracle, errors, magnitude, is_reference)
    if not errors.wrong.any():
        return float(np.max(errors.share, initial=0.0))
    message = describe_errors(what, actual, expected, errors)
    cause = likely_cause(WrongOutput(k, actual, expected, errors, oracle, earlier, trial.layout, garbage))
    raise AssertionError(f"{message}\n  Likely: {cause}" if cause else message)


def _excused(
    k: int, actual: np.ndarray, oracle: Oracle, errors: Errors, magnitude: np.ndarray, is_reference: bool
) -> Errors:
    """``errors`` of output ``k``, measured with what the definition itself does in the outputs' dtype.

    Where terms cancel that the inputs share, it may lose more digits than ``magnitude`` tells; and of huge
    numbers something may overflow on the way.
    """
    own = oracle.in_own_dtype[k].astype(oracle.expected[k].dtype)
    if oracle.special:
        theirs = errors_of(actual, own, oracle.length, magnitude)
        errors = Errors(*(np.where(theirs.wrong, a, b) for a, b in zip(errors, theirs, strict=True)))
    if is_reference:
        slack = REFERENCE_SLACK
    else:
        shares = errors_of(own.astype(actual.dtype), oracle.expected[k], oracle.length, magnitude).share
        slack = max(1.0, 4.0 * float(np.max(shares, where=np.isfinite(shares), initial=0.0)))
    return Errors(errors.difference, slack * errors.allowed, errors.share / slack)
