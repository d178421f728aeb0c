"""Making tensors: from data, filled, ranges, random.

All take ``dtype``, ``device`` and ``requires_grad`` by keyword, with PyTorch's defaults: Python floats give
the default dtype (float32), Python ints int64, NumPy arrays their own dtype.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.devices import Device, cpu, get_default_device
from minigrad.devices import device as find_device
from minigrad.dtypes import is_floating, is_supported, to_dtype
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.memory_format import MemoryFormat, preserve_format
from minigrad.promotion import get_default_dtype
from minigrad.random import Generator, default_generator
from minigrad.recording import refuse_in_capture
from minigrad.tensor import Tensor

SUPPORTED = "float16 bfloat16 float32 float64, int8 to int64, uint8 to uint64, and bool"


def tensor(
    data: Any, dtype: Any = None, device: str | Device | None = None, requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of ``data``: a number, nested lists, an array, or a tensor."""
    where = _place(device, data)
    array = data
    if isinstance(data, Tensor):
        array = data._array if data.device is where else data.device.to_numpy(data._array)
    dtype = None if dtype is None else to_dtype(dtype)
    if isinstance(array, where.array_type):
        with where.active():
            return _finish(where.xp.array(array, dtype=dtype, order="C"), where, requires_grad)
    made = np.array(array, dtype=dtype, order="C")
    if dtype is None and made.dtype == np.float64 and not hasattr(data, "dtype"):
        with np.errstate(over="ignore"):  # a number beyond the default dtype becomes infinity
            made = made.astype(_list_dtype(data))
    return _finish(where.from_numpy(made), where, requires_grad)


def _list_dtype(data: Any) -> np.dtype:
    """The dtype for nested lists of floats: the default, unless they hold float64 arrays or tensors."""
    while isinstance(data, (list, tuple)) and len(data):
        data = data[0]
    return data.dtype if hasattr(data, "dtype") else get_default_dtype()


def from_numpy(array: np.ndarray) -> Tensor:
    """A CPU tensor that shares memory with ``array``: a write to either is seen in both.

    Raises:
        TypeError: it is no array, or its dtype is not supported.
        ValueError: its memory is not aligned to its dtype, as in a file read at an odd offset.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(array).__name__}")
    if not array.flags.aligned:
        raise ValueError(f"from_numpy: the memory is not aligned to {array.dtype}; pass array.copy()")
    return _finish(array, cpu, False)


def as_tensor(data: Any, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """``data`` as a tensor, without a copy where that is possible."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if isinstance(data, np.ndarray) and data.flags.aligned:
        return from_numpy(data).to(device=device, dtype=dtype)
    return tensor(data, dtype, device)


def zeros(
    *sizes: Any, size: Any = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros."""
    return full(
        _size(sizes, size),
        0.0,
        dtype=dtype or get_default_dtype(),
        device=device,
        requires_grad=requires_grad,
    )


def ones(
    *sizes: Any, size: Any = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones."""
    return full(
        _size(sizes, size),
        1.0,
        dtype=dtype or get_default_dtype(),
        device=device,
        requires_grad=requires_grad,
    )


def full(
    size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ``size`` with every element ``fill_value``, a number or a tensor of one element."""
    where = find_device(device or get_default_device())
    if fill_value is None:  # of which NumPy makes NaN
        raise TypeError("full: fill_value must be a number, got None")
    fill_value = _as_number(fill_value)
    if dtype is None:
        dtype = (
            np.bool_ if isinstance(fill_value, bool) else np.int64 if isinstance(fill_value, int) else None
        )
    with where.active():
        array = where.xp.full(_size((size,)), fill_value, to_dtype(dtype or get_default_dtype()))
    return _finish(array, where, requires_grad)


def _as_number(value: Any) -> Any:
    """A tensor of one element, or NumPy's number, as Python's."""
    return value.item() if hasattr(value, "item") else value


def empty(
    *sizes: Any, size: Any = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor whose elements are whatever the memory held."""
    where = find_device(device or get_default_device())
    with where.active():
        array = where.empty(_size(sizes, size), to_dtype(dtype or get_default_dtype()))
    return _finish(array, where, requires_grad)


def zeros_like(input: Tensor, **options: Any) -> Tensor:
    """Zeros of ``input``'s shape, and its dtype and device unless given; options are :func:`full_like`'s."""
    return full_like(input, 0, **options)


def ones_like(input: Tensor, **options: Any) -> Tensor:
    """Ones of ``input``'s shape, and its dtype and device unless given; options are :func:`full_like`'s."""
    return full_like(input, 1, **options)


def empty_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: MemoryFormat = preserve_format,
) -> Tensor:
    """A tensor of ``input``'s shape, dtype and device unless given, with whatever the memory held."""
    made = empty(input.shape, dtype=dtype or input.dtype, device=device or input.device)
    return made.contiguous(memory_format).requires_grad_(requires_grad)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: MemoryFormat = preserve_format,
) -> Tensor:
    """``fill_value`` in ``input``'s shape, and its dtype and device unless given.

    It lies in C order, or in the ``memory_format`` that is asked for.
    """
    made = full(input.shape, fill_value, dtype=dtype or input.dtype, device=device or input.device)
    return made.contiguous(memory_format).requires_grad_(requires_grad)


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below ``end``; ``arange(end)`` starts at 0. Integers give int64."""
    start, end, step = map(_as_number, (0, start, step) if end is None else (start, end, step))
    if step == 0:
        raise ValueError("arange: step must not be 0")
    whole = all(isinstance(v, numbers.Integral) for v in (start, end, step))
    dtype = to_dtype(dtype or (np.int64 if whole else get_default_dtype()))
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy(np.arange(start, end, step).astype(dtype)), where, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` numbers from ``start`` to ``end``, both included, equally far apart."""
    array = np.linspace(start, end, steps, dtype=to_dtype(dtype or get_default_dtype()))
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy(array), where, requires_grad)


def logspace(
    start: float,
    end: float,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` numbers from base^start to base^end, whose logarithms are equally far apart."""
    array = np.logspace(start, end, steps, base=base, dtype=to_dtype(dtype or get_default_dtype()))
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy(array), where, requires_grad)


def tril_indices(row: int, col: int, offset: int = 0, *, device: Any = None) -> Tensor:
    """(2, n): the rows and columns (int64) of a row x col matrix that :func:`tril` does not set to 0."""
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy(np.stack(np.tril_indices(row, offset, col))), where, False)


def triu_indices(row: int, col: int, offset: int = 0, *, device: Any = None) -> Tensor:
    """(2, n): the rows and columns (int64) of a row x col matrix that :func:`triu` does not set to 0."""
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy(np.stack(np.triu_indices(row, offset, col))), where, False)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """The identity matrix, n x n or n x m."""
    where = find_device(device or get_default_device())
    array = np.eye(n, n if m is None else m, dtype=to_dtype(dtype or get_default_dtype()))
    return _finish(where.from_numpy(array), where, requires_grad)


# ---- random -----------------------------------------------------------------------------------------------


def rand(
    *sizes: Any,
    size: Any = None,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [0, 1), drawn on ``device``; the same bits on every device."""
    return _drawn("uniform", _size(sizes, size), generator, dtype, device, requires_grad)


def randn(
    *sizes: Any,
    size: Any = None,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal, with mean 0 and variance 1, drawn on ``device``; to within rounding the same on every one."""
    return _drawn("normal", _size(sizes, size), generator, dtype, device, requires_grad)


def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None, **options: Any
) -> Tensor:
    """Normal, with means and standard deviations that are tensors, or numbers and then of ``size``.

    ``options`` (dtype, device, requires_grad) are those of :func:`randn`, for numbers alone.
    """
    given = next((v for v in (mean, std) if isinstance(v, Tensor)), None)
    if given is None:
        if size is None:
            raise TypeError("normal: mean and std are numbers, so it needs a size")
        requires_grad = options.pop("requires_grad", False)
        drawn = randn(_size((size,)), generator=generator, **options) * std + mean
        return drawn.requires_grad_() if requires_grad else drawn
    if size is not None or options:
        raise TypeError("normal: size, dtype and device are those of the tensor that is given")
    shape = np.broadcast_shapes(*(v.shape for v in (mean, std) if isinstance(v, Tensor)))
    noise = randn(shape, generator=generator, dtype=given.dtype, device=given.device)
    detached = [v.detach() if isinstance(v, Tensor) else v for v in (mean, std)]
    return noise * detached[1] + detached[0]


def randint(
    low: int,
    high: Any,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Integers in [low, high), int64 unless given; ``randint(high, size)`` starts at 0. Drawn on the CPU."""
    if size is None:
        low, high, size = 0, low, high
    if high <= low:
        raise ValueError(f"randint: expected low < high, got {low} and {high}")
    _refuse_in_capture("randint()")
    where = find_device(device or get_default_device())
    array = (generator or default_generator).numpy.integers(low, high, _size((size,)))
    return _finish(where.from_numpy(array.astype(to_dtype(dtype or np.int64))), where, False)


def randperm(n: int, *, generator: Generator | None = None, device: Any = None) -> Tensor:
    """The integers 0 .. n - 1 in random order, int64. Drawn on the CPU."""
    if not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"randperm: n must be an integer of at least 0, got {n!r:.60}")
    _refuse_in_capture("randperm()")
    where = find_device(device or get_default_device())
    return _finish(where.from_numpy((generator or default_generator).numpy.permutation(n)), where, False)


def rand_like(input: Tensor, **options: Any) -> Tensor:
    """:func:`rand` in ``input``'s shape, dtype and device."""
    return rand(input.shape, **{"dtype": input.dtype, "device": input.device, **options})


def randn_like(input: Tensor, **options: Any) -> Tensor:
    """:func:`randn` in ``input``'s shape, dtype and device."""
    return randn(input.shape, **{"dtype": input.dtype, "device": input.device, **options})


def randint_like(input: Tensor, low: int, high: int | None = None, **options: Any) -> Tensor:
    """:func:`randint` in ``input``'s shape, dtype and device."""
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, input.shape, **{"dtype": input.dtype, "device": input.device, **options})


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that ``input`` has for each element, else 0; of its shape, dtype and device."""
    uniform = rand_like(input, generator=generator)
    return (uniform < input).to(dtype=input.dtype)


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """``num_samples`` numbers (int64) in [0, n), each with the probability that ``input`` gives to it.

    Args:
        input: weights (n,) or (rows, n), not negative; they need not add up to 1.
        num_samples: how many for each row.
        replacement: whether a number may be drawn again. If not, so many weights must be above 0.
        generator: the source of random numbers. They are drawn on the CPU.

    Returns:
        (num_samples,) or (rows, num_samples).

    Raises:
        ValueError: a weight is negative, NaN or infinite, a row has none above 0, or too few.
    """
    _refuse_in_capture("multinomial()")
    weights = np.asarray(input.device.to_numpy(input.detach()._array), np.float64)
    if weights.ndim not in (1, 2) or num_samples < 1:
        raise ValueError(
            f"multinomial: expected weights (n,) or (rows, n) and at least one sample, got shape "
            f"{input.shape} and {num_samples}"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("multinomial: the weights must be finite and not negative")
    enough = 1 if replacement else num_samples
    if ((weights > 0).sum(-1) < enough).any():
        raise ValueError(
            f"multinomial: a row has fewer than {enough} weights above 0, for {num_samples} samples"
        )
    numbers = (generator or default_generator).numpy
    rows = weights.reshape(-1, weights.shape[-1])
    if replacement:
        sums = np.cumsum(rows, 1)
        places = numbers.random((len(rows), num_samples)) * sums[:, -1:]
        drawn = np.stack([np.searchsorted(s, p, side="right") for s, p in zip(sums, places, strict=True)])
    else:  # exponential times of these rates come in the order of draws without replacement
        with np.errstate(divide="ignore"):
            drawn = np.argsort(numbers.exponential(size=rows.shape) / rows, 1)[:, :num_samples]
    drawn = drawn.reshape(*weights.shape[:-1], num_samples).astype(np.int64)
    return _finish(input.device.from_numpy(drawn), input.device, False)


def _refuse_in_capture(function: str) -> None:
    refuse_in_capture(f"{function}, which draws on the CPU", "draw outside, and pass it as an argument")


def _drawn(
    distribution: str,
    size: tuple[int, ...],
    generator: Generator | None,
    dtype: Any,
    device: Any,
    requires_grad: bool,
) -> Tensor:
    dtype = to_dtype(dtype or get_default_dtype())
    if not is_floating(dtype):
        raise TypeError(f"random numbers are floating, got dtype {dtype}; for integers see randint")
    where = find_device(device or get_default_device())
    seed, offset = (generator or default_generator).next_stream(where)
    with where.active():
        array = where.empty(size, dtype if dtype.itemsize >= 4 else np.float32)
        if where.type == "cpu":
            getattr(kernels.cpu.random, distribution)(array, seed, offset, get_num_threads())
        else:
            getattr(kernels.cuda.random, f"{distribution}_block")(array, seed, offset)
        return _finish(array.astype(dtype, copy=False), where, requires_grad)


# ---- shared -----------------------------------------------------------------------------------------------


def _size(sizes: tuple, size: Any = None) -> tuple[int, ...]:
    """``(2, 3)`` from ``f(2, 3)`` as well as from ``f((2, 3))`` and ``f(size=(2, 3))``."""
    size = sizes if size is None else (size,)
    if len(size) == 1 and isinstance(size[0], (tuple, list)):
        size = tuple(size[0])
    for n in size:
        if not isinstance(n, (int, np.integer)):
            raise TypeError(f"sizes are integers, got {n!r}")
        if n < 0:
            raise ValueError(f"sizes must not be negative, got {tuple(size)}")
    return tuple(int(n) for n in size)


def _place(device: Any, data: Any) -> Device:
    if device is not None:
        return find_device(device)
    return data.device if isinstance(data, Tensor) else get_default_device()


def _finish(array: Any, device: Device, requires_grad: bool) -> Tensor:
    if not is_supported(array.dtype):
        raise TypeError(f"tensors hold {SUPPORTED}; got {array.dtype}")
    made = Tensor.__new__(Tensor)
    made._array = array
    made.device = device
    return made.requires_grad_() if requires_grad else made
