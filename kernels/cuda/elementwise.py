"""Elementwise kernels, on a card or on the simulator: each is generated from one C++ expression.

A function here is called as ``function(out, x, y)``: ``out`` is C-contiguous and has the shape to which the
inputs broadcast; an input is an array with any strides, or a number. All are of one floating dtype, but for
the results of comparisons and the condition of ``where``, which are bools. float16 and bfloat16 are computed
with in float32, and rounded once. NaN, infinities and -0 give what they give in NumPy, but that on a card, as
everywhere, float32 numbers below 1.2e-38 count as zero. The kernels' two ways through memory stand in
``elementwise.cuh``.

What has no kernel here runs on CuPy's own elementwise functions: arithmetic on integers and bools, logic,
casts and copies. CuPy generates those in the same way, an expression for each pair of dtypes, and they too
read and write everything once: kernels for some ten dtypes more would add nothing but their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..arguments import is_contiguous, unchanging
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource, is_bfloat16
from . import array_module
from .matmul import collapse_batch
from .vector import VECTOR_BYTES, starts_at_vector

THREADS = 256  # as in elementwise.cuh
MAX_DIMS, MAX_INPUTS = 6, 4  # of struct Layout

_CODE = """\
#include "elementwise.cuh"

template <typename S, typename T>
__global__ void __launch_bounds__(THREADS) {name}_flat({parameters}, long long n) {{
    flat<16 / sizeof(S)>(out, n, {function}, {inputs});
}}

template <typename S, typename T>
__global__ void __launch_bounds__(THREADS) {name}_strided({parameters}, long long n, Layout layout) {{
    strided<16 / sizeof(S)>(out, n, layout, {function}, {inputs});
}}
"""

WIDE = {"float32": "float, float", "float64": "double, double"}
HALVES = {"float16": "__half, float", "bfloat16": "__nv_bfloat16, float"}
"""By the dtype's name, the types S of what is stored and T of what is computed with."""

FLOAT32 = np.dtype(np.float32)
_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = (int, float, np.number, np.bool_)


class Elementwise:
    """A function of each element, called as ``function(out, *inputs)``.

    Args:
        name: what its kernels are called.
        inputs: the inputs' names, ``"x y"``; a type other than T stands before the name, ``"bool:x"``.
        expression: the result in C++, in terms of the inputs and their type T.
        result: the result's type.

    Attributes:
        code: the generated CUDA code.
        kernels: its instances for float32 and float64, two for each.
        half_kernels: those for float16 and bfloat16.
    """

    def __init__(self, name: str, inputs: str, expression: str, result: str = "T"):
        typed = [tuple(("T:" + text).split(":")[-2:]) for text in inputs.split()]
        stored = {"T": "S"}  # in memory; what is no T is stored as it is
        self.name, self.expression = name, expression
        self.__doc__ = f"``{expression}``, 16 bytes a thread; views are read where they lie."
        arguments = ", ".join(f"{kind} {x}" for kind, x in typed)
        self.code = _CODE.format(
            name=name,
            parameters=", ".join(
                [f"{stored.get(result, result)}* out"]
                + [f"const {stored.get(t, t)}* {x}, {t} {x}_number" for t, x in typed]
            ),
            function=f"[]({arguments}) -> {result} {{ return {expression}; }}",
            inputs=", ".join(
                f"Input<{stored.get(t, t)}, {t}, {k}>{{{x}, {x}_number}}" for k, (t, x) in enumerate(typed)
            ),
        )
        source = CudaSource(self.code)
        self._pairs = {
            key: tuple(CudaKernel(source, f"{name}_{way}<{types}>") for way in ("flat", "strided"))
            for key, types in (WIDE | HALVES).items()
        }
        self._chosen: dict[np.dtype, tuple[CudaKernel, CudaKernel, int]] = {}
        self.kernels = tuple(kernel for key in WIDE for kernel in self._pairs[key])
        self.half_kernels = tuple(kernel for key in HALVES for kernel in self._pairs[key])

    def __repr__(self) -> str:
        return f"<elementwise kernel {self.name}: {self.expression}>"

    def __call__(self, out: Any, *inputs: Any) -> None:
        arguments, shape, flat, numbers, dtype = [out], out.shape, True, False, out.dtype
        array_type = type(out)
        for x in inputs:
            if type(x) is array_type or not isinstance(x, _NUMBERS):
                arguments.append(x)
                arguments.append(False)
                flat = flat and is_contiguous(x) and x.shape == shape
                if x.dtype is not dtype and dtype.kind == "b":  # a comparison, or a condition
                    dtype = x.dtype
            else:
                arguments.append(None)
                arguments.append(x)
                numbers = True
        launched, on_views, per_block = self._chosen.get(dtype) or self._choose(dtype)
        if numbers and dtype.itemsize <= FLOAT32.itemsize:
            arguments[2::2] = [_as_float32(number) for number in arguments[2::2]]
        if flat:
            size = out.size
            arguments.append(size)
            launched.launch(blocks(size, per_block), THREADS, arguments)
        else:
            self._launch_strided(on_views, out, inputs, arguments)

    def _choose(self, dtype: np.dtype) -> tuple[CudaKernel, CudaKernel, int]:
        """The kernels for arrays of this dtype, and how many elements a block of the first takes."""
        pair = self._pairs["bfloat16" if is_bfloat16(dtype) else dtype.name]
        self._chosen[dtype] = *pair, THREADS * (VECTOR_BYTES // dtype.itemsize)
        return self._chosen[dtype]

    def _launch_strided(self, kernel: CudaKernel, out: Any, inputs: Sequence, arguments: list) -> None:
        arrays = [out, *(x for x in inputs if not isinstance(x, _NUMBERS))]
        widest = max(x.itemsize for x in arrays)
        layout = layout_of(
            out.shape,
            VECTOR_BYTES // widest if starts_at_vector(*arrays) else 1,
            *(NUMBER if isinstance(x, _NUMBERS) else (x.shape, x.strides, x.itemsize) for x in inputs),
        )
        if layout is None:  # more dimensions than the kernel takes; as copies, they merge
            xp = array_module(out)
            copies = [
                x if isinstance(x, _NUMBERS) else xp.broadcast_to(x, out.shape).copy(order="C")
                for x in inputs
            ]
            return self(out, *copies)
        arguments[1::2] = [None if x is None else strided(x) for x in arguments[1::2]]
        grid = blocks(out.size, THREADS * layout["lanes"])
        kernel.launch(grid, THREADS, (*arguments, out.size, layout))


NUMBER = ((), (), 1)
"""How :func:`layout_of` is told of an input that is a number."""


@lru_cache(maxsize=4096)  # the same few layouts come in every step of a training
def layout_of(shape: tuple, lanes: int, *inputs: tuple[tuple, tuple, int]) -> dict[str, Any] | None:
    """struct Layout for inputs of these (shape, strides, itemsize), broadcast to ``shape``; None if it takes
    more dimensions than MAX_DIMS. Vectors have ``lanes`` elements; 1 where the arrays do not start at any."""
    dims = collapse_batch(shape, *(strides_in(shape, *x) for x in inputs))
    if len(dims) > MAX_DIMS:
        return None
    size, *strides = zip(*dims, strict=True) if dims else [()] * (1 + len(inputs))
    by_vectors = (
        len(dims) > 0
        and size[-1] % lanes == 0
        and all(row[-1] in (0, 1) for row in strides)
        and all(step % lanes == 0 for row in strides if row[-1] for step in row[:-1])
    )
    rest = (0,) * (MAX_DIMS - len(dims))
    padded = [stride for row in strides for stride in (*row, *rest)]
    unused = [0] * (MAX_DIMS * MAX_INPUTS - len(padded))
    fields = {"dims": len(dims), "lanes": lanes if by_vectors else 1, "size": (*size, *rest)}
    return unchanging(fields | {"stride": padded + unused})


def strides_in(shape: tuple, own_shape: tuple, own_strides: tuple, itemsize: int) -> list[int]:
    """The strides, in elements, of an array that is broadcast to ``shape``."""
    leading = len(shape) - len(own_shape)
    if leading < 0 or any(a not in (1, b) for a, b in zip(own_shape, shape[leading:], strict=True)):
        raise ValueError(f"elementwise kernel: an input of shape {own_shape} does not broadcast to {shape}")
    own = [0 if n == 1 else stride // itemsize for n, stride in zip(own_shape, own_strides, strict=True)]
    return [0] * leading + own


def _as_float32(number: float) -> float:
    """A number beyond the range of float32 as the infinity, or the largest number, that it is rounded to."""
    if -_LARGEST <= number <= _LARGEST or number != number:
        return number
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def _table(*functions: tuple[str, ...]) -> dict[str, Elementwise]:
    return {entry[0]: Elementwise(*entry) for entry in functions}


FUNCTIONS = _table(
    ("add", "x y", "x + y"),
    ("sub", "x y", "x - y"),
    ("mul", "x y", "x * y"),
    ("div", "x y", "x / y"),
    ("floor_divide", "x y", "floor_of_quotient(x, y)"),
    ("remainder", "x y", "remainder_of_floor(x, y)"),
    ("pow", "x y", "y == 2 ? x * x : pow(x, y)"),
    ("maximum", "x y", "larger(x, y)"),
    ("minimum", "x y", "smaller(x, y)"),
    ("neg", "x", "-x"),
    ("exp", "x", "exp(x)"),
    ("expm1", "x", "expm1(x)"),
    ("log", "x", "log(x)"),
    ("log1p", "x", "log1p(x)"),
    ("log2", "x", "log2(x)"),
    ("log10", "x", "log10(x)"),
    ("sqrt", "x", "sqrt(x)"),
    ("sin", "x", "sin(x)"),
    ("cos", "x", "cos(x)"),
    ("tan", "x", "tan(x)"),
    ("asin", "x", "asin(x)"),
    ("acos", "x", "acos(x)"),
    ("atan", "x", "atan(x)"),
    ("sinh", "x", "sinh(x)"),
    ("cosh", "x", "cosh(x)"),
    ("floor", "x", "floor(x)"),
    ("ceil", "x", "ceil(x)"),
    ("round", "x", "rint(x)"),  # halves to the even neighbour
    ("trunc", "x", "trunc(x)"),
    ("abs", "x", "fabs(x)"),
    ("sign", "x", "sign_of(x)"),
    ("square", "x", "x * x"),
    ("erf", "x", "erf(x)"),
    ("eq", "x y", "x == y", "bool"),
    ("ne", "x y", "x != y", "bool"),
    ("lt", "x y", "x < y", "bool"),
    ("le", "x y", "x <= y", "bool"),
    ("gt", "x y", "x > y", "bool"),
    ("ge", "x y", "x >= y", "bool"),
    ("isnan", "x", "isnan(x)", "bool"),
    ("isinf", "x", "isinf(x)", "bool"),
    ("isfinite", "x", "isfinite(x)", "bool"),
    ("where", "bool:condition x y", "condition ? x : y"),
    ("clamp", "x low high", "smaller(larger(x, low), high)"),
    ("divisor_grad", "g x y", "-g * x / (y * y)"),
    ("larger_share", "g x y", "x < y ? T(0) : x == y ? g / 2 : g"),
    ("clamp_grad", "g x low high", "x >= low && x <= high ? g : T(0)"),
    ("abs_grad", "g x", "x > 0 ? g : x < 0 ? -g : x * g"),
)
"""The functions of ``minigrad/ops/elementwise.py``, by name."""

ACTIVATIONS = _table(
    ("relu", "x", "x < 0 ? T(0) : x"),
    ("relu_grad", "g y", "y <= 0 ? T(0) : g"),
    ("sigmoid", "x", "logistic(x)"),
    ("sigmoid_grad", "g y", "g * y * (1 - y)"),
    ("tanh", "x", "tanh(x)"),
    ("tanh_grad", "g y", "g * (1 - y * y)"),
    ("silu", "x", "x * logistic(x)"),
    ("silu_grad", "g x", "g * (logistic(x) + x * logistic_slope(x))"),
    ("gelu", "x", "gelu(x)"),
    ("gelu_grad", "g x", "g * gelu_derivative(x)"),
    ("gelu_tanh", "x", "x * logistic(gelu_argument(x, x * x))"),
    ("gelu_tanh_grad", "g x", "g * gelu_tanh_derivative(x)"),
    ("leaky_relu", "x slope", "x > 0 ? x : x * slope"),
    ("leaky_relu_grad", "g x slope", "x > 0 ? g : g * slope"),
)
"""The functions of ``minigrad/ops/activation.py``, by name."""


def add_bias(out: Any, bias: Any) -> None:
    """out (..., N) += bias (N,), unless that is None: for a product by a rung that knows no bias."""
    if bias is not None:
        FUNCTIONS["add"](out, out, bias)
