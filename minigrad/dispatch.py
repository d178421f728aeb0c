"""The dispatcher: which kernel computes an op, and what a kernel may rely on.

Every op has a *reference*, written in terms of an array module (NumPy or CuPy), and any number of
*kernels*. A kernel is registered for device types and dtypes and has a name, its rung on the ladder. The
last one registered whose device, dtype and conditions fit is the one that runs; :func:`use_kernel` selects
another. Where none fits, the reference runs: nothing is lost but speed.

What a kernel is given depends on the layout that it declares:

- ``"contiguous"`` (the default): every input C-contiguous, in its own shape;
- ``"strided"``: every input as it is, a view with any strides;
- ``"broadcast"``: every input C-contiguous and broadcast to the output's shape.

Its outputs are always allocated, C-contiguous and uninitialised. Kernels know nothing of gradients.

Images (N, C, H, W) may lie channels last (:mod:`minigrad.kernels.channels_last`). As a rule they are views
like any others. A kernel may declare that from such images it makes such images:

- ``channels_last="reordered"``, of a function of each element: all arrays are seen as (N, H, W, C) then;
- ``channels_last="kept"``: arrays of four dimensions, the outputs too, lie channels last then, where
  ``"contiguous"`` would have them C-contiguous.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad.devices import KINDS, Device
from minigrad.dtypes import BFLOAT16, to_dtype
from minigrad.kernels.channels_last import is_channels_last, nchw, nhwc

__all__ = ["Kernel", "KernelTable", "Spec", "get_kernel", "kernel_table", "list_kernels", "use_kernel"]

LAYOUTS = ("contiguous", "strided", "broadcast")
REORDERED, KEPT = CHANNELS_LAST = ("reordered", "kept")
REFERENCE = "reference"
REMEMBERED = 1024
"""Choices of an op that are kept: a network asks for the same few at every step."""
UNKNOWN: Any = object()
"""What stands for a choice that was not made yet: None is the reference."""


class Spec(NamedTuple):
    """The shape and dtype of an array that is not there, or not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes, in C order."""
        return tuple([math.prod(self.shape[i + 1 :]) * self.itemsize for i in range(self.ndim)])


class Kernel(NamedTuple):
    """One way to compute an op.

    Attributes:
        op, name: the op's name, and the kernel's own (``"naive"``, ``"tiled"``, ...).
        devices: the device types that it runs on.
        dtypes: the dtypes that it accepts (of the op's first array input).
        run: ``run(out, *inputs, **attrs)``; with several outputs ``run(outs, ...)``, a tuple.
        layout: see the module's text.
        when: ``when(*inputs, **attrs)``, or None: runs only where this is true.
        prefer: ``prefer(*inputs, **attrs)``, or None: where this is not true, runs only if selected.
        amplification: how many times the rounding errors of the op's definition its own may be, then relative
            to the largest elements of the result; None for a kernel that computes the definition.
        summary: what this rung adds, in a sentence or two.
        channels_last: what it makes of images that lie so: see the module's text; None: nothing of its own.
        user_defined: whether it is not one of minigrad's own.
    """

    op: str
    name: str
    devices: tuple[str, ...]
    dtypes: tuple[np.dtype, ...]
    run: Callable[..., None]
    layout: str
    when: Callable[..., bool] | None
    summary: str
    prefer: Callable[..., bool] | None = None
    amplification: float | None = None
    channels_last: str | None = None
    user_defined: bool = False


class KernelTable:
    """The kernels of one op, and the cached choice among them.

    Attributes:
        decides: None, or set beside an op's kernels: ``decides(*inputs, **attrs)``, all that the conditions
            of those for cards look at, hashable. They are asked once for each.
    """

    def __init__(self, op: str):
        self.op = op
        self.kernels: list[Kernel] = []
        self.selected: dict[str, str] = {}  # device type -> name, set by use_kernel
        self.scoped: list[Kernel] = []  # functions given to use_kernel, which come before all others
        self.takes_shortcuts = True  # whether Op.small and Op.direct may stand in for the kernels
        self.is_replaced = False  # whether a kernel of the user's stands beside minigrad's own
        self.decides: Callable[..., Any] | None = None
        self._forget()

    def add(self, kernel: Kernel) -> None:
        """Register ``kernel``; it takes precedence over those before it, and replaces one of its own name."""
        same = [
            k
            for k in self.kernels
            if k.name == kernel.name
            and set(k.devices) & set(kernel.devices)
            and set(k.dtypes) & set(kernel.dtypes)
        ]
        self.kernels = [k for k in self.kernels if k not in same] + [kernel]
        self._forget()

    def select(self, names: dict[str, str]) -> None:
        """Make ``names`` (device type -> kernel name) the selected kernels."""
        self.selected = names
        self._forget()

    def scope(self, kernels: list[Kernel]) -> None:
        """Make ``kernels`` those that come before all others."""
        self.scoped = kernels
        self._forget()

    def _forget(self) -> None:
        """Start a new cache: another thread may just be adding to the old one what is no longer so."""
        self.is_replaced = bool(self.scoped) or any(k.user_defined for k in self.kernels)
        self.takes_shortcuts = not (self.selected or self.is_replaced)
        self._candidates: dict[str, dict[np.dtype, tuple[Kernel, ...]]] = {kind: {} for kind in KINDS}
        self._choices: dict[Any, Kernel | None] = {}

    def candidates(self, device_type: str, dtype: np.dtype) -> tuple[Kernel, ...]:
        """The kernels for this device type and dtype, the preferred one first."""
        known = self._candidates[device_type]
        found = known.get(dtype)
        if found is None:
            chosen = self.selected.get(device_type)
            fitting = [k for k in self.kernels if device_type in k.devices and dtype in k.dtypes]
            if chosen is not None:
                fitting = [k for k in fitting if k.name == chosen]
            scoped = [k for k in self.scoped if device_type in k.devices and dtype in k.dtypes]
            found = known[dtype] = tuple(reversed([*fitting, *scoped]))
        return found

    def choose(self, device_type: str, dtype: np.dtype, arrays: list, attrs: dict) -> Kernel | None:
        """The kernel to run on ``arrays``, or None for the reference."""
        if self.decides is None or device_type != "cuda" or self.is_replaced:
            return self._ask(device_type, dtype, arrays, attrs)
        choices, key = self._choices, (device_type, dtype, self.decides(*arrays, **attrs))
        found = choices.get(key, UNKNOWN)  # one question: another thread may clear them after it
        if found is UNKNOWN:
            if len(choices) >= REMEMBERED:
                choices.clear()
            found = choices[key] = self._ask(device_type, dtype, arrays, attrs)
        return found

    def _ask(self, device_type: str, dtype: np.dtype, arrays: list, attrs: dict) -> Kernel | None:
        """The first whose conditions are true."""
        selected = device_type in self.selected
        for kernel in self.candidates(device_type, dtype):
            if (kernel.when is None or kernel.when(*arrays, **attrs)) and (
                selected or kernel.prefer is None or kernel.prefer(*arrays, **attrs)
            ):
                return kernel
        return None


_tables: dict[str, KernelTable] = {}


def kernel_table(op: str) -> KernelTable:
    """The table of the op named ``op``, made on first use."""
    return _tables.setdefault(op, KernelTable(op))


def only_if_selected(*_: Any, **__: Any) -> bool:
    """``prefer`` of a kernel whose tests have yet to pass on a card: ``use_kernel`` alone chooses it."""
    return False


def parse_dtypes(dtypes: str | Sequence) -> tuple[np.dtype, ...]:
    """``"f4 f8"``, or a sequence of dtypes, as a tuple of dtypes; ``bf16`` where there is bfloat16."""
    given = dtypes.split() if isinstance(dtypes, str) else dtypes
    known = [BFLOAT16 if isinstance(t, str) and t == "bf16" else np.dtype(t) for t in given]
    return tuple(t for t in known if t is not None)


def run_kernel(kernel: Kernel, device: Device, arrays: list, attrs: dict, specs: list) -> Any:
    """Allocate the outputs, each of a (shape, dtype) of ``specs``, run ``kernel``, return one, or a tuple."""
    if kernel.channels_last is not None and len(specs[0][0]) == 4:
        shape, dtype = specs[0]
        if kernel.channels_last == KEPT:
            if _some_lie_channels_last(arrays):
                return _run_channels_last(kernel, device, arrays, attrs, specs)
        elif _some_lie_channels_last(arrays, shape):
            n, c, h, w = shape
            arrays = [nhwc(a) if hasattr(a, "ndim") else a for a in arrays]
            return nchw(_run(kernel, device, arrays, attrs, [((n, h, w, c), dtype)]))
    return _run(kernel, device, arrays, attrs, specs)


def _run(kernel: Kernel, device: Device, arrays: list, attrs: dict, specs: list) -> Any:
    shape, dtype = specs[0]
    if kernel.layout == "contiguous":
        for i, a in enumerate(arrays):
            if _strided(a):
                arrays = [*arrays[:i], device.xp.ascontiguousarray(a).reshape(a.shape), *arrays[i + 1 :]]
    elif kernel.layout == "broadcast":
        arrays = [_broadcast_contiguous(device.xp, a, shape, dtype) for a in arrays]
    out: Any
    if len(specs) == 1:
        out = device.empty(shape, dtype)
    else:
        out = tuple([device.empty(shape, dtype) for shape, dtype in specs])
    return run_into(out, kernel, device, arrays, attrs)


def _run_channels_last(kernel: Kernel, device: Device, arrays: list, attrs: dict, specs: list) -> Any:
    """The same for a kernel that keeps images channels last, from images some of which lie so."""
    if kernel.layout == "contiguous":
        arrays = [_without_gaps(device, a) if hasattr(a, "ndim") else a for a in arrays]
    outs = tuple([empty_channels_last(device, *spec) for spec in specs])
    return run_into(outs[0] if len(outs) == 1 else outs, kernel, device, arrays, attrs)


def run_into(out: Any, kernel: Kernel, device: Device, arrays: list, attrs: dict) -> Any:
    """Run ``kernel`` on arrays in its layout, and on outputs that are there; returns these."""
    if device.operation is not None:
        outs = out if isinstance(out, tuple) else (out,)
        with device.operation(f"op {kernel.op!r}, kernel {kernel.name!r}", arrays, outs):
            kernel.run(out, *arrays, **attrs)
    elif attrs:
        kernel.run(out, *arrays, **attrs)
    else:  # as above, but quicker
        kernel.run(out, *arrays)
    return out


def empty_channels_last(device: Device, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A new array whose elements are not set; of four dimensions one that lies channels last."""
    if len(shape) != 4:
        return device.empty(shape, dtype)
    n, c, h, w = shape
    return nchw(device.empty((n, h, w, c), dtype))


def _some_lie_channels_last(arrays: list, shape: tuple | None = None) -> bool:
    """Whether one of the arrays, of this shape if there is one, does."""
    for array in arrays:
        if getattr(array, "ndim", 0) == 4 and shape in (None, array.shape) and is_channels_last(array):
            return True
    return False


def _without_gaps(device: Device, array: Any) -> Any:
    """``array`` C-contiguous, or channels last if it has four dimensions."""
    if array.ndim != 4:
        return device.xp.ascontiguousarray(array).reshape(array.shape)
    return array if is_channels_last(array) else nchw(nhwc(array).copy(order="C"))


def _strided(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return not array.flags.c_contiguous
    return not getattr(array, "_c_contiguous", True)  # of a CuPy array: numbers and None have no strides


def _broadcast_contiguous(xp: Any, array: Any, shape: tuple, dtype: np.dtype) -> Any:
    array = xp.asarray(array, dtype=dtype) if np.isscalar(array) else array
    return array if array.shape == shape and not _strided(array) else xp.broadcast_to(array, shape).copy()


# A deep-learning framework lets NaN and infinity flow, as the hardware does, where NumPy would warn.
# np.errstate says so in 0.9 us; setting the context variable underneath takes 0.1 us, which counts beside an
# addition of 0.3 us. `token = enter_quiet()` ... `leave_quiet(token)`.
try:
    from numpy._core.umath import _extobj_contextvar, _make_extobj

    enter_quiet = functools.partial(_extobj_contextvar.set, _make_extobj(all="ignore"))
    leave_quiet = _extobj_contextvar.reset
except ImportError:  # a NumPy with other internals

    def enter_quiet() -> Any:  # type: ignore[misc]
        return np.seterr(all="ignore")

    def leave_quiet(token):
        np.seterr(**token)


@contextlib.contextmanager
def use_kernel(
    op: str,
    name: str | Callable[..., None],
    device: str | None = None,
    *,
    dtypes: str | Sequence = "f4 f8",
    layout: str = "contiguous",
    when: Callable[..., bool] | None = None,
) -> Iterator[None]:
    """Run the op named ``op`` with the kernel called ``name``, or a function, inside this context. ::

        with mg.use_kernel("matmul", my_matmul, device="cpu", dtypes="f4", when=lambda a, b: a.ndim == 2):
            model(x)

    Args:
        op: an op's name, such as ``"matmul"``.
        name: a kernel's name as :func:`list_kernels` shows it, or ``"reference"``; or a function
            ``run(out, *inputs, **attributes)``, a kernel that is there in this context alone. Where its
            conditions do not fit, the usual kernels run.
        device: a device type; by default every device that has a kernel of this name, and ``"cpu"`` for a
            function. Where the kernel has no version for an input's dtype, the reference runs.
        dtypes, layout, when: of a function, as for :meth:`Op.kernel`.

    The selection holds for the whole process, not for one thread.

    Raises:
        ValueError: there is no such op or kernel; the message lists those there are.
    """
    table = _tables.get(op)
    if table is None:
        raise ValueError(f"use_kernel: no op is named {op!r}; ops with kernels: {', '.join(_with_kernels())}")
    if device is not None and device not in KINDS:
        raise ValueError(f"use_kernel: unknown device type {device!r}, expected one of {', '.join(KINDS)}")
    if callable(name):
        if layout not in LAYOUTS:
            raise ValueError(f"use_kernel: {op!r}: the layout is one of {LAYOUTS}, got {layout!r}")
        own = getattr(name, "__name__", "function")
        kernel = Kernel(op, own, (device or "cpu",), parse_dtypes(dtypes), name, layout, when, "")
        table.scope([*table.scoped, kernel])
        try:
            yield
        finally:
            table.scope([k for k in table.scoped if k is not kernel])
        return
    wanted: tuple[str, ...] = KINDS if device is None else (device,)
    if name != REFERENCE:
        having = {kind for k in table.kernels if k.name == name for kind in k.devices}
        if not having & set(wanted):
            on = "" if device is None else f" on {device!r}"
            there = ", ".join(dict.fromkeys([k.name for k in table.kernels] + [REFERENCE]))
            raise ValueError(f"use_kernel: {op!r} has no kernel {name!r}{on}; it has: {there}")
        wanted = tuple(kind for kind in wanted if kind in having)
    before = table.selected
    table.select({**before, **dict.fromkeys(wanted, name)})
    try:
        yield
    finally:
        table.select(before)


def get_kernel(op: str, device: str = "cpu", dtype: Any = np.float32) -> str:
    """The name of the kernel that the op named ``op`` would run, conditions on its inputs aside."""
    if op not in _tables:
        raise ValueError(f"get_kernel: no op is named {op!r}; ops with kernels: {', '.join(_with_kernels())}")
    candidates = _tables[op].candidates(device, to_dtype(dtype))
    return candidates[0].name if candidates else REFERENCE


def list_kernels(op: str | None = None, device: str | None = None) -> list[Kernel]:
    """All registered kernels, in the order of their ladders, of one op or device type if given."""
    if op is not None and op not in _tables:
        raise ValueError(
            f"list_kernels: no op is named {op!r}; ops with kernels: {', '.join(_with_kernels())}"
        )
    tables = [_tables[op]] if op is not None else [_tables[name] for name in sorted(_tables)]
    return [k for table in tables for k in table.kernels if device is None or device in k.devices]


def _with_kernels() -> list[str]:
    return sorted(name for name, table in _tables.items() if table.kernels)
