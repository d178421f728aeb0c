"""Which kernels compute the elementwise ops, on the processor and on cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.dispatch import REORDERED
from minigrad.dtypes import is_floating
from minigrad.kernels import cpu, cuda
from minigrad.kernels.channels_last import is_channels_last
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import Op, get_op
from minigrad.ops.elementwise import _clamp, _where, bounds, cast, clamp_grad, clone, pow

__all__ = ["have_one_dtype", "register_clamp", "register_cpu", "register_cuda"]


def have_one_dtype(*inputs: Any, **_: Any) -> bool:
    """Whether all that are arrays, and not numbers, are of one dtype."""
    dtype = None
    for x in inputs:
        own = getattr(x, "dtype", None)
        if own is not None and own is not dtype:
            if dtype is not None and own != dtype:
                return False
            dtype = own
    return True


def _are_floating(_condition: Any, x: Any, y: Any) -> bool:
    dtypes = {v.dtype for v in (x, y) if hasattr(v, "dtype")}
    return len(dtypes) == 1 and dtypes.pop() in (np.float32, np.float64)


def _are_floating_or_halves(_condition: Any, x: Any, y: Any) -> bool:
    dtypes = {v.dtype for v in (x, y) if hasattr(v, "dtype")}
    return len(dtypes) == 1 and is_floating(dtypes.pop())


def _is_between_kernel_dtypes(x: Any, *, dtype: np.dtype) -> bool:
    return cuda.cast.converts(x.dtype, dtype)


def register_cuda(target: Op, run: Callable, **options: Any) -> None:
    """Make ``run``, a function of ``cuda.elementwise``, a kernel of ``target``."""
    if target.arity > 1:
        options.setdefault("when", have_one_dtype)
    options = {"dtypes": "f4 f8 f2 bf16", "layout": "strided", "channels_last": REORDERED} | options
    target.kernel("cuda", "sim", name="vectorized", **options)(run)


def register_cpu(target: Op, run: Any, **options: Any) -> None:
    """Make ``run``, a function of ``cpu.elementwise``, a kernel of ``target``."""

    def kernel(out, *inputs):
        run(out, *inputs, get_num_threads())

    _register_cpu(target, kernel, run, **options)
    target.direct = lambda *inputs: run.new(*inputs, get_num_threads())
    if target.small is None and not target.attributes:
        target.small = run.small


def _register_cpu(target: Op, kernel: Callable, run: Callable, **options: Any) -> None:
    kernel.__doc__ = f"{(run.__doc__ or '').rstrip('.')}: by vectors and threads, whatever the strides."
    target.kernel("cpu", name="vectorized", layout="strided", **options)(kernel)


cast.kernels.decides = lambda x, *, dtype: dtype


@cast.kernel(
    "cuda",
    "sim",
    name="vectorized",
    dtypes="f4 f2 bf16",
    when=_is_between_kernel_dtypes,
    channels_last=REORDERED,
)
def _(out, x, *, dtype):
    """Between float32 and 16 bits, by vectors."""
    cuda.cast.cast(out, x)


@clone.kernel(
    "cuda",
    "sim",
    name="channels_last",
    dtypes="f4 f8 f2 bf16",
    layout="strided",
    when=is_channels_last,
    channels_last=REORDERED,
)
def _(out, x):
    """Images stored channels last stay so."""
    out[...] = x


def _with_bounds(run: Callable) -> Callable:
    def kernel(out, *inputs, min, max):
        run(out, *inputs, *bounds(min, max))

    kernel.__doc__ = run.__doc__
    return kernel


def register_clamp(target: Op) -> None:
    """Give ``target``, an op with attributes ``min`` and ``max``, the kernels of clamp."""
    register_cuda(target, _with_bounds(cuda.elementwise.FUNCTIONS["clamp"]))
    _register_cpu(target, _clamp_cpu, cpu.elementwise.clamp, prefer=cpu.elementwise.is_large)
    target.direct = _clamp_directly


for _name, _run in cuda.elementwise.FUNCTIONS.items():
    if _name == "clamp":
        continue
    if _name == "clamp_grad":
        register_cuda(get_op(_name), _with_bounds(_run))
    elif _name == "where":
        register_cuda(_where, _run, dtypes="?", when=_are_floating_or_halves)
    else:
        register_cuda(get_op(_name), _run)

# Where NumPy's loops are as quick as any, the kernels take over from where threads pay.
for _name in (
    *("add", "sub", "mul", "div", "neg", "maximum", "minimum", "square", "abs", "sqrt"),
    *("eq", "ne", "lt", "le", "gt", "ge", "divisor_grad", "larger_share", "abs_grad"),
):
    register_cpu(get_op(_name), getattr(cpu.elementwise, _name), prefer=cpu.elementwise.is_large)
for _name in ("exp", "log", "sin", "cos"):
    register_cpu(get_op(_name), getattr(cpu.elementwise, _name))
register_cpu(_where, cpu.elementwise.where, dtypes="?", when=_are_floating)


def _power_kernel(out, x, y):
    """A square, a cube or a reciprocal: exponents that need no logarithm."""
    _POWERS[y](out, *_factors(x, y), get_num_threads())


def _power_directly(x, y):
    return _POWERS[y].new(*_factors(x, y), get_num_threads()) if _is_easy_power(x, y) else None


def _factors(x, y):
    return (1.0, x) if y == -1 else (x,)


_POWERS = {2: cpu.elementwise.square, 3: cpu.elementwise.cube, -1: cpu.elementwise.div}


def _is_easy_power(x: Any, y: Any) -> bool:
    return isinstance(y, (int, float)) and y in _POWERS


def _clamp_cpu(out, x, *, min, max):
    cpu.elementwise.clamp(out, x, *bounds(min, max), get_num_threads())


def _clamp_directly(x, *, min, max):
    return cpu.elementwise.clamp.new(x, *bounds(min, max), get_num_threads())


def _clamp_grad_cpu(out, g, x, *, min, max):
    cpu.elementwise.clamp_grad(out, g, x, *bounds(min, max), get_num_threads())


_register_cpu(pow, _power_kernel, _power_kernel, when=_is_easy_power, prefer=cpu.elementwise.is_large)
pow.direct = _power_directly
register_clamp(_clamp)
_register_cpu(clamp_grad, _clamp_grad_cpu, cpu.elementwise.clamp_grad, prefer=cpu.elementwise.is_large)
