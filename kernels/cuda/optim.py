"""Launches ``optim.cu``: one step of an optimizer for one parameter, in place, on a card or on the simulator.

All arrays of a call have the parameter's shape and dtype (float32, float64, float16 or bfloat16) and are
C-contiguous.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .live import Live
from .vector import VECTOR_BYTES

THREADS = 256  # as in optim.cuh

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_sgd = CudaKernel(_source, "sgd_step<T>")
_momentum = CudaKernel(_source, "momentum_step<T>")
_adam = CudaKernel(_source, "adam_step<T>")


def sgd_step(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    lr: float | Live,
    momentum: float | Live,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first_step: bool,
) -> None:
    """Stochastic gradient descent with momentum, PyTorch's formula.

    ``lr`` and ``momentum`` may each be a :class:`Live`.

    ``momentum_buffer`` is None without momentum. At the ``first_step`` it becomes the gradient itself,
    whatever it held and whatever ``dampening`` is.
    """
    lr_now, live = number_and_words(lr)
    if momentum_buffer is None:
        _launch(_sgd, (param, grad), lr_now, weight_decay, live)
        return
    _check_same(param, grad, momentum_buffer)
    if first_step:
        momentum_buffer.fill(0)
    new_share = 1 if first_step else 1 - dampening
    momentum_now, live_momentum = number_and_words(momentum)
    factors = (lr_now, momentum_now, new_share, weight_decay, bool(nesterov), live, live_momentum)
    _launch(_momentum, (param, grad, momentum_buffer), *factors)


def number_and_words(number: float | Live) -> tuple[float, Any]:
    """(a number, the place of the live one that stands for it, or None), as the kernels of SGD take them."""
    return (0, number.words) if isinstance(number, Live) else (number, None)


def adam_step(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int | Live,
) -> None:
    """Adam, or AdamW if ``decoupled``. eps is added to the corrected square root.

    ``step`` counts from 1, or is a :class:`Live` of what :func:`adam_factors` gives.
    """
    arguments = adam_arguments(lr, beta1, beta2, eps, weight_decay, decoupled, step)
    _launch(_adam, (param, grad, exp_avg, exp_avg_sq), *arguments)


def adam_arguments(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, step: int | Live
) -> tuple:
    """What the kernels of Adam take after the arrays: the struct of ``optim.cuh``, and ``live``."""
    if isinstance(step, Live):
        factors, live = (1, 0, 1, 0), step.words
    else:
        factors, live = adam_factors(lr, beta1, beta2, weight_decay, decoupled, step), None
    shrink, step_size, sqrt_correction, new1 = factors
    l2 = 0 if decoupled else weight_decay
    return new1, beta2, 1 - beta2, eps, shrink, l2, step_size, sqrt_correction, live


def adam_factors(
    lr: float, beta1: float, beta2: float, weight_decay: float, decoupled: bool, step: int
) -> tuple[float, float, float, float]:
    """(what the parameter shrinks by, the step size, the root of the second average's correction, the
    gradient's share in the first average)."""
    if step < 1:
        raise ValueError(f"adam_step counts steps from 1, got {step}")
    shrink = 1 - lr * weight_decay if decoupled else 1
    return shrink, lr / (1 - beta1**step), math.sqrt(1 - beta2**step), 1 - beta1


def _launch(kernel: CudaKernel, arrays: tuple, *factors: Any) -> None:
    _check_same(*arrays)
    param = arrays[0]
    per_block = THREADS * (VECTOR_BYTES // param.itemsize)
    kernel.launch(blocks(param.size, per_block), THREADS, (*arrays, param.size, *factors))


def _check_same(param: Any, *others: Any) -> None:
    if any(array.shape != param.shape for array in others):
        shapes = ", ".join(str(array.shape) for array in (param, *others))
        raise ValueError(f"optimizer kernel: expected arrays of one shape, got {shapes}")
    if any(array.dtype != param.dtype for array in others):
        dtypes = ", ".join(str(array.dtype) for array in (param, *others))
        raise TypeError(f"optimizer kernel: expected arrays of one dtype, got {dtypes}")
