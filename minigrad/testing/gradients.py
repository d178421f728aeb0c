"""Gradients of functions of tensors, compared with finite differences."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minigrad import autograd
from minigrad.dtypes import is_floating
from minigrad.tensor import Tensor
from minigrad.testing.arrays import assert_close, assert_same_bits, like, to_numpy


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
        elements: of an input that has more, test so many random elements, and then one random direction in
            which all of them move; by default all elements.
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

    def projected(i: int, array: np.ndarray) -> float:
        moved = list(inputs)
        moved[i] = like(array, inputs[i])
        with autograd.no_grad():
            moved_outputs = _float_outputs(function(*moved))
        return math.fsum(
            float(np.sum(to_numpy(w) * to_numpy(y))) for w, y in zip(weights, moved_outputs, strict=True)
        )

    worst = None

    def compare(i: int, gradient: np.ndarray, where: Any, whither: Any, what: str) -> None:
        """Compare where the elements at ``where`` of input i move by up to h, and note the worst."""
        nonlocal worst
        at = before[i][where]
        high, low = before[i].copy(), before[i].copy()
        high[where] += eps * np.maximum(1.0, abs(at)) * whither
        low[where] -= eps * np.maximum(1.0, abs(at)) * whither
        step = high[where] - low[where]
        length = np.max(abs(step))
        expected = (projected(i, high) - projected(i, low)) / length
        found = float(np.sum(gradient[where] * (step / length)))
        excess = abs(found - expected) - (atol + rtol * abs(expected))
        if not (excess <= 0) and (worst is None or not excess <= worst[0]):
            worst = (excess, i, what, expected, found)

    for i, gradient, second in zip(checked, actual, again, strict=True):
        assert_close(
            second, gradient, 1000, f"gradcheck: with a strided gradient to start from, that for input {i}"
        )
        for position in _positions(gradient.shape, elements, rng):
            compare(i, gradient, position, 1.0, f"the worst element is {position}")
        if elements is not None and gradient.size > elements and worst is None:
            direction = rng.uniform(0.5, 1.0, gradient.shape) * rng.choice([-1.0, 1.0], gradient.shape)
            compare(i, gradient, ..., direction, "what shows it is a random move of all elements")
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            assert_same_bits(to_numpy(x), before[i], f"gradcheck: the function changed its input {i}")
    if worst is not None:
        _, i, what, expected, found = worst
        allowed = atol + rtol * abs(expected)
        raise AssertionError(
            f"gradcheck: the gradient for input {i} is wrong; {what} "
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


def _generator(seed: int | None) -> tuple[np.random.Generator, int]:
    seed = secrets.randbits(32) if seed is None else seed
    return np.random.default_rng(seed), seed
