"""Checks for ops and kernels: gradients against finite differences, kernels against their reference.

:func:`gradcheck` and :func:`gradgradcheck` test the gradient of any function of tensors. :func:`check_op`
tests an op as a whole: every kernel, on every device of this machine, for every dtype and memory layout,
then its gradient and its second gradient::

    mg.testing.check_op(swish, [case((3, 5)), case((0,)), case((4, 4), beta=2.0)])

They raise an AssertionError that shows the worst element when a check fails.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad import autograd
from minigrad.devices import Device, available_devices
from minigrad.devices import device as find_device
from minigrad.dispatch import REFERENCE, Kernel, kernel_table, use_kernel
from minigrad.dtypes import is_floating
from minigrad.op import Op
from minigrad.tensor import Tensor
from minigrad.testarrays import (
    GUARD,
    LAYOUTS,
    assert_close,
    assert_same_bits,
    guarded,
    like,
    tensor_in_layout,
    to_numpy,
    tolerance,
)

__all__ = ["LAYOUTS", "Case", "assert_close", "case", "check_op", "gradcheck", "gradgradcheck", "tolerance"]

# ---- gradients --------------------------------------------------------------------------------------------


def gradcheck(
    function: Callable,
    inputs: Sequence[Tensor],
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    *,
    elements: int | None = None,
    seed: int | None = None,
) -> bool:
    """Compare the gradient of ``function`` with central differences.

    The outputs are projected on random weights ``v``, and for each element ``x`` of each input that requires
    a gradient, backward's ``d(v . f)/dx`` is compared with ``(v . f(x + h) - v . f(x - h)) / 2h``. Backward
    runs twice, the second time with ``v`` in another memory layout, and must give the same.

    Args:
        function: takes the inputs, returns a tensor or a tuple or list of them; without side effects.
        inputs: tensors; those that require a gradient must be float64. None of them is changed.
        eps: the step h, relative to ``max(1, |x|)``.
        atol, rtol: passes where ``|backward - difference| <= atol + rtol |difference|``.
        elements: test so many random elements of each input; by default all.
        seed: of the weights and of the choice of elements; by default a fresh one.

    Returns:
        True.

    Raises:
        TypeError: an input is not float64; ValueError: no input requires a gradient.
        AssertionError: a gradient is wrong; the message shows the worst element.
    """
    inputs = list(inputs)
    rng, seed = _generator(seed)
    checked = _differentiable(inputs)
    before = [to_numpy(x).copy() if isinstance(x, Tensor) else x for x in inputs]
    outputs = _float_outputs(function(*inputs))
    weights = [like(rng.standard_normal(y.shape), y) for y in outputs]

    actual = _backward(outputs, [inputs[i] for i in checked], weights)
    again = _backward(
        _float_outputs(function(*inputs)), [inputs[i] for i in checked], [_odd_layout(w) for w in weights]
    )

    def projected(i: int, position: tuple, value: float) -> float:
        moved = list(inputs)
        array = before[i].copy()
        array[position] = value
        moved[i] = like(array, inputs[i])
        with autograd.no_grad():
            moved_outputs = _float_outputs(function(*moved))
        return math.fsum(
            float(np.sum(to_numpy(w) * to_numpy(y))) for w, y in zip(weights, moved_outputs, strict=True)
        )

    worst = None
    for i, gradient, second in zip(checked, actual, again, strict=True):
        assert_close(
            second, gradient, 1000, f"gradcheck: with a strided gradient to start from, that for input {i}"
        )
        for position in _positions(gradient.shape, elements, rng):
            at = float(before[i][position])
            h = eps * max(1.0, abs(at))
            high, low = at + h, at - h
            expected = (projected(i, position, high) - projected(i, position, low)) / (high - low)
            found = float(gradient[position])
            excess = abs(found - expected) - (atol + rtol * abs(expected))
            if not (excess <= 0) and (worst is None or not excess <= worst[0]):
                worst = (excess, i, position, expected, found)
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            assert_same_bits(to_numpy(x), before[i], f"gradcheck: the function changed its input {i}")
    if worst is not None:
        _, i, position, expected, found = worst
        allowed = atol + rtol * abs(expected)
        raise AssertionError(
            f"gradcheck: the gradient for input {i} is wrong; the worst element is {position} "
            f"of shape {before[i].shape}\n"
            f"  Expect {expected:.10g}  (central difference)\n"
            f"  Actual {found:.10g}  (backward)\n"
            f"  difference {abs(found - expected):.3g}, allowed {allowed:.3g}; seed={seed}"
        )
    return True


def gradgradcheck(
    function: Callable,
    inputs: Sequence[Tensor],
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    *,
    elements: int | None = None,
    seed: int | None = None,
) -> bool:
    """As :func:`gradcheck`, for the gradient of the gradient.

    What is differentiated is ``function``'s gradient, as a function of the inputs and of the gradient that
    it starts from: both second derivatives are tested.
    """
    inputs = list(inputs)
    rng, seed = _generator(seed)
    checked = _differentiable(inputs)
    outputs = _float_outputs(function(*inputs))
    starts = [like(rng.standard_normal(y.shape), y, requires_grad=True) for y in outputs]
    if not any(y.requires_grad for y in outputs):
        return True  # the gradient is zero everywhere, and so is its own

    def gradient(*arguments: Any) -> list:
        xs, gs = list(arguments[: len(inputs)]), arguments[len(inputs) :]
        with autograd.enable_grad():
            for i in checked:
                xs[i] = xs[i] if xs[i].requires_grad else xs[i].detach().requires_grad_()
            ys = _float_outputs(function(*xs))
            tracked = [(y, g) for y, g in zip(ys, gs, strict=True) if y.requires_grad]
            found = autograd.grad(
                [y for y, _ in tracked],
                [xs[i] for i in checked],
                [g for _, g in tracked],
                create_graph=True,
                allow_unused=True,
            )
        return [
            like(np.zeros(xs[i].shape), xs[i]) if g is None else g
            for i, g in zip(checked, found, strict=True)
        ]

    try:
        return gradcheck(gradient, inputs + starts, eps, atol, rtol, elements=elements, seed=seed)
    except AssertionError as error:
        raise AssertionError(
            f"gradgradcheck: in the gradient's gradient ({len(inputs)} inputs, then {len(starts)} starting "
            f"gradients)\n{error}"
        ) from None


def _differentiable(inputs: Sequence) -> list[int]:
    checked = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires a gradient")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise TypeError(
                f"gradcheck: finite differences need float64, input {i} is {inputs[i].dtype}; use .double()"
            )
    return checked


def _backward(outputs: Sequence, inputs: Sequence, weights: Sequence) -> list[np.ndarray]:
    tracked = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not tracked:
        return [np.zeros(x.shape, x.dtype) for x in inputs]
    found = autograd.grad([y for y, _ in tracked], inputs, [w for _, w in tracked], allow_unused=True)
    for i, (x, g) in enumerate(zip(inputs, found, strict=True)):
        if g is not None and (g.shape != x.shape or g.dtype != x.dtype):
            raise AssertionError(
                f"gradcheck: the gradient for input {i} has the wrong type\n"
                f"  Expect shape {x.shape}, {x.dtype}\n  Actual shape {g.shape}, {g.dtype}"
            )
    return [
        np.zeros(x.shape, x.dtype) if g is None else to_numpy(g) for x, g in zip(inputs, found, strict=True)
    ]


def _float_outputs(outputs: Any) -> list[Tensor]:
    several = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    return [y for y in several if is_floating(y.dtype)]


def _positions(shape: tuple, count: int | None, rng: np.random.Generator) -> Iterable[tuple]:
    everything = list(np.ndindex(*shape))
    if count is None or len(everything) <= count:
        return everything
    return [everything[k] for k in rng.choice(len(everything), count, replace=False)]


def _odd_layout(tensor: Tensor) -> Tensor:
    """The same values, neither contiguous nor in the usual order of memory."""
    return like(to_numpy(tensor), tensor, layout="sliced")


# ---- ops --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call of an op, made by :func:`case`."""

    inputs: tuple
    attrs: dict
    length: int | None
    gradient: bool

    def __str__(self) -> str:
        attrs = "".join(f", {name}={value!r}" for name, value in self.attrs.items())
        return f"({', '.join(getattr(i, '__name__', repr(i)) for i in self.inputs)}{attrs})"


def case(*inputs: Any, length: int | None = None, gradient: bool = True, **attrs: Any) -> Case:
    """One call of an op, for :func:`check_op`.

    Args:
        inputs: for each input a shape (filled with normal random numbers); or ``f(rng)``, which returns an
            array, given a :class:`numpy.random.Generator`; or an array. Numbers and None are passed on.
        length: how many terms are summed for one element of the output; by default 1 for an op without a
            shape rule, otherwise the number of elements of all inputs.
        gradient: whether the gradients are tested too.
        attrs: the op's attributes.
    """
    return Case(inputs, attrs, length, gradient)


DEFAULT_SHAPES = ((), (1,), (7,), (3, 5), (33, 17), (2, 3, 4), (0,), (2, 0, 3))


def check_op(
    op: Op,
    cases: Iterable | None = None,
    *,
    devices: Iterable | None = None,
    dtypes: str | Sequence = "f4 f8",
    kernels: Iterable[str] | None = None,
    gradients: bool = True,
    elements: int = 24,
    seed: int | None = None,
) -> None:
    """Check an op: all kernels against the reference, the gradient, the second gradient.

    Each kernel, on each device, dtype and layout, must equal the op's reference in float64 to within
    :func:`tolerance` (times its own amplification, for one that loses digits); write all of its output and
    nothing beside it; give the same bits again; leave its inputs alone; and run at least once. Input arrays
    lie in NaN, outputs are filled with different garbage for each run, so that a read outside of an input or
    an element left out shows. The bits of a reference on a card are CuPy's affair.

    Args:
        op: the op.
        cases: calls, each made by :func:`case` (or a plain tuple of inputs). An op of any number of equal
            shapes (no shape rule) needs none.
        devices: by default all that this machine has.
        dtypes: of the floating inputs.
        kernels: names of the kernels to check; by default ``"reference"`` and all that there are.
        gradients: whether to check gradients too, with the first and the last of these kernels.
        elements: how many elements of each input finite differences are taken for.
        seed: of all random numbers; by default fresh, and told by the message.

    Raises:
        AssertionError: something is wrong; the message says on which device, kernel, dtype, layout and case.
    """
    found = [c if isinstance(c, Case) else case(*c) for c in (_default_cases(op) if cases is None else cases)]
    rng, seed = _generator(seed)
    wanted = available_devices() if devices is None else [find_device(d) for d in devices]
    for device in wanted:
        for kernel in _rungs(op, device, kernels):
            ran = 0
            for one in found:
                for dtype in dtypes.split() if isinstance(dtypes, str) else dtypes:
                    for layout in LAYOUTS:
                        with _context(op, device, kernel, one, np.dtype(dtype), layout, seed):
                            ran += _check_kernel(op, device, kernel, one, np.dtype(dtype), layout, rng)
            if found and not ran:
                raise AssertionError(
                    f"check_op: {op.name} on {device}: no case made kernel {kernel.name!r} run; add one that "
                    "meets its condition and dtypes"
                )
        if not gradients or not op.differentiable:
            continue
        rungs = [k.name for k in _rungs(op, device, kernels)]
        for name in dict.fromkeys((*rungs[:1], *rungs[-1:])):
            for one in found:
                if one.gradient:
                    with _context(op, device, name, one, np.dtype(np.float64), "contiguous", seed):
                        _check_gradients(op, device, name, one, elements, rng)


def _default_cases(op: Op) -> list[Case]:
    if op._shape_rule is not None or op.variadic or inspect.Parameter.empty in op.attributes.values():
        raise ValueError(f"check_op: op {op.name!r} needs cases, such as case((3, 4), (4, 5))")
    return [case(*[shape] * len(op.inputs)) for shape in DEFAULT_SHAPES]


def _rungs(op: Op, device: Device, names: Iterable[str] | None) -> list[Kernel]:
    own = [k for k in kernel_table(op.name).kernels if device.type in k.devices]
    own.insert(0, Kernel(op.name, REFERENCE, (device.type,), (), op.reference, "strided", None, ""))
    return own if names is None else [k for k in own if k.name in set(names)]


@contextlib.contextmanager
def _context(op: Op, device: Device, kernel: Any, one: Case, dtype: Any, layout: str, seed: int) -> Iterator:
    try:
        yield
    except AssertionError as error:
        name = getattr(kernel, "name", kernel)
        raise AssertionError(
            f"check_op: {op.name}{one} on {device}, kernel {name!r}, {dtype}, {layout} inputs (seed={seed})\n"
            f"{error}"
        ) from None


def _check_kernel(
    op: Op, device: Device, kernel: Kernel, one: Case, dtype: np.dtype, layout: str, rng: np.random.Generator
) -> int:
    """Check one call; returns how often the kernel ran: 0 where its condition or dtypes exclude it."""
    values = [_draw(value, dtype, rng) for value in one.inputs]
    tensors = [tensor_in_layout(v, device, layout) if isinstance(v, np.ndarray) else v for v in values]
    values = [to_numpy(t) if isinstance(t, Tensor) else t for t in tensors]  # a layout may repeat values
    before = [v.copy() if isinstance(v, np.ndarray) else v for v in values]

    attrs = op._complete(one.attrs)
    wide = [v.astype(np.float64) if isinstance(v, np.ndarray) and is_floating(v.dtype) else v for v in before]
    with np.errstate(all="ignore"):
        expected = tuple(np.asarray(e) for e in _tuple(op.reference(np, *wide, **attrs)))
    length = one.length
    if length is None:
        length = 1 if op._shape_rule is None else sum(v.size for v in wide if isinstance(v, np.ndarray))

    runs = []
    for garbage in (0xFF, 0x5A):  # all ones is NaN as a float and -1 as an integer
        with autograd.no_grad(), _watched(kernel, device, garbage) as calls:
            runs.append(_tuple(op(*tensors, **one.attrs)))
        if not calls:
            return 0
    for i, (t, v) in enumerate(zip(tensors, before, strict=True)):
        if isinstance(t, Tensor):
            assert_same_bits(to_numpy(t), v, f"the kernel changed its input {op.input_name(i)!r}")
    magnitudes = _magnitudes(op, wide, attrs, expected, rng)
    if kernel.amplification is not None:
        magnitudes = [np.full_like(m, kernel.amplification * np.max(m, initial=0)) for m in magnitudes]
    for k, (first, second, wanted) in enumerate(zip(*runs, expected, strict=True)):
        assert_close(first, wanted, length, f"output {k}", magnitudes[k])
        if device.is_card and kernel.name == REFERENCE:
            continue  # CuPy adds what is scattered by atomics, in no fixed order
        assert_same_bits(
            to_numpy(first),
            to_numpy(second),
            f"output {k} differs from run to run: it was not all written, or is not deterministic",
        )
    return 1


def _magnitudes(
    op: Op, inputs: Sequence, attrs: dict, expected: Sequence, rng: np.random.Generator
) -> list[np.ndarray]:
    """For each output, how large the terms are that make it up: by how much it changes, relative to the
    change, when all inputs are changed at random by a few millionths."""
    step, draws = 1e-6, 8
    sums = [np.zeros(e.shape) for e in expected]
    for _ in range(draws):
        moved = [
            x * (1 + step * rng.standard_normal(x.shape))
            if isinstance(x, np.ndarray) and is_floating(x.dtype)
            else x
            for x in inputs
        ]
        with np.errstate(all="ignore"):
            for total, y, z in zip(sums, expected, _tuple(op.reference(np, *moved, **attrs)), strict=True):
                if is_floating(y.dtype):
                    total += np.nan_to_num((z - y) / step, nan=0.0, posinf=0.0, neginf=0.0) ** 2
    return [np.sqrt(total / draws) for total in sums]


@contextlib.contextmanager
def _watched(kernel: Kernel, device: Device, garbage: int) -> Iterator[list]:
    """Make ``kernel`` the op's only one, writing into guarded ``garbage``; yields the list of its calls."""
    calls: list = []
    if kernel.name == REFERENCE:
        with use_kernel(kernel.op, REFERENCE, device.type):
            yield [REFERENCE]
        return

    def run(out: Any, *inputs: Any, **attrs: Any) -> None:
        calls.append(kernel.name)
        outs = out if isinstance(out, tuple) else (out,)
        memories, copies = zip(*(guarded(device.xp, o, garbage) for o in outs), strict=True)
        kernel.run(copies if isinstance(out, tuple) else copies[0], *inputs, **attrs)
        for k, (o, memory, view) in enumerate(zip(outs, memories, copies, strict=True)):
            o[...] = view
            if not bool((memory[:GUARD] == garbage).all() and (memory[GUARD + o.nbytes :] == garbage).all()):
                raise AssertionError(f"the kernel wrote outside of output {k} (shape {o.shape}, {o.dtype})")

    table = kernel_table(kernel.op)
    kernels, selected = table.kernels, table.selected
    table.kernels = [kernel._replace(run=run, prefer=None)]
    table.select({})
    try:
        yield calls
    finally:
        table.kernels = kernels
        table.select(selected)


def _check_gradients(
    op: Op, device: Device, name: str, one: Case, elements: int, rng: np.random.Generator
) -> None:
    inputs = [_draw(value, np.dtype(np.float64), rng) for value in one.inputs]
    tensors = [tensor_in_layout(v, device, "contiguous") if isinstance(v, np.ndarray) else v for v in inputs]
    for t in tensors:
        if isinstance(t, Tensor) and t.dtype == np.float64:
            t.requires_grad_()
    if not any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return

    def call(*arguments: Any) -> Any:
        return op(*arguments, **one.attrs)

    seed = int(rng.integers(2**32))
    with use_kernel(op.name, name, device.type):
        gradcheck(call, tensors, elements=elements, seed=seed)
        gradgradcheck(call, tensors, elements=elements, seed=seed)


def _draw(value: Any, dtype: np.dtype, rng: np.random.Generator) -> Any:
    if isinstance(value, tuple):
        value = rng.standard_normal(value)
    elif callable(value):
        value = value(rng)
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value, dtype if is_floating(value.dtype) else value.dtype)
    return value


def _tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _generator(seed: int | None) -> tuple[np.random.Generator, int]:
    seed = secrets.randbits(32) if seed is None else seed
    return np.random.default_rng(seed), seed
