"""The dispatcher: which kernel computes an op, and what a kernel may rely on.

Every op has a *reference*, written for an array module (NumPy or CuPy), and any number of *kernels*. A
kernel has a name, and is registered for device types and dtypes. The kernels of an op form a ladder, from the
naive one to the fastest; the last one registered whose device, dtype and conditions fit runs, and
:func:`use_kernel` selects another. Where none fits, the reference runs, which is only slower.

What a kernel is given depends on the layout that it declares:

- ``"contiguous"`` (the default): every input C-contiguous, in its own shape;
- ``"strided"``: every input as it is, a view with any strides;
- ``"broadcast"``: every input C-contiguous and broadcast to the output's shape.

Its outputs are always allocated, C-contiguous and uninitialised. Kernels know nothing of gradients.

Images (N, C, H, W) may be stored channels last (:mod:`minigrad.kernels.channels_last`). To most kernels they
are views like any other, and are copied if the layout asks for it. A kernel that declares ``channels_last``
has outputs that are channels last, too, if one of its inputs is:

- ``"reordered"``, for elementwise functions: it is given all arrays transposed to (N, H, W, C);
- ``"kept"``: all arrays of four dimensions that it is given, the outputs too, are stored channels last.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
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
"""How many choices of kernels an op keeps in its cache: a network asks for the same few at every step."""
UNKNOWN: Any = object()
"""Marks a choice that is not in the cache; None there means the reference."""


class Spec(NamedTuple):
    """The shape and dtype of an array that does not exist yet, or was not kept."""

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
        summary: what it adds to the kernels before it on the ladder, in a sentence or two.
        amplification: for an algorithm that loses digits: by how much its rounding errors may exceed those of
            the op's definition, relative to the largest elements of the result; else None.
        channels_last: ``"reordered"``, ``"kept"`` or None: see the module's text.
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
        decides: None, or set where an op's kernels are registered: ``decides(*inputs, **attrs)`` returns, as
            a hashable key, all that the conditions of the CUDA kernels depend on. The choice is then made
            once for each key.
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
        self._note_selection()

    def scope(self, kernels: list[Kernel]) -> None:
        """Make ``kernels`` those that come before all others."""
        self.scoped = kernels
        self._forget()
        self._note_selection()

    def _note_selection(self) -> None:
        if self.selected or self.scoped:
            _selections[self.op] = self.op, *self.selected.items(), *[kernel.run for kernel in self.scoped]
        else:
            _selections.pop(self.op, None)

    def _forget(self) -> None:
        """Start new caches, and do not clear the old: another thread may be adding an outdated choice."""
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
            return self._first_that_fits(device_type, dtype, arrays, attrs)
        choices, key = self._choices, (device_type, dtype, self.decides(*arrays, **attrs))
        try:
            found = choices.get(key, UNKNOWN)  # one look-up: another thread may clear the cache afterwards
        except TypeError:  # a list among the attributes
            return self._first_that_fits(device_type, dtype, arrays, attrs)
        if found is UNKNOWN:
            if len(choices) >= REMEMBERED:
                choices.clear()
            found = choices[key] = self._first_that_fits(device_type, dtype, arrays, attrs)
        return found

    def _first_that_fits(self, device_type: str, dtype: np.dtype, arrays: list, attrs: dict) -> Kernel | None:
        """The first of the candidates whose conditions are true."""
        selected = device_type in self.selected
        for kernel in self.candidates(device_type, dtype):
            if (kernel.when is None or kernel.when(*arrays, **attrs)) and (
                selected or kernel.prefer is None or kernel.prefer(*arrays, **attrs)
            ):
                return kernel
        return None


_tables: dict[str, KernelTable] = {}
_selections: dict[str, tuple] = {}  # by the op's name, of the tables that use_kernel has changed


def kernel_table(op: str) -> KernelTable:
    """The table of the op named ``op``, made on first use."""
    return _tables.setdefault(op, KernelTable(op))


def only_if_selected(*_: Any, **__: Any) -> bool:
    """``prefer`` of a kernel that was not tested on a card yet: it runs only if ``use_kernel`` selects it."""
    return False


def parse_dtypes(dtypes: str | Sequence) -> tuple[np.dtype, ...]:
    """``"f4 f8"``, or a sequence of dtypes, as a tuple of dtypes; ``bf16`` where there is bfloat16."""
    given = dtypes.split() if isinstance(dtypes, str) else dtypes
    known = [BFLOAT16 if isinstance(t, str) and t == "bf16" else np.dtype(t) for t in given]
    return tuple(t for t in known if t is not None)


def run_kernel(kernel: Kernel, device: Device, arrays: list, attrs: dict, specs: list) -> Any:
    """Bring the inputs into the kernel's layout, allocate the outputs, and run ``kernel``.

    Args:
        specs: the (shape, dtype) of each output.

    Returns:
        The output, or a tuple of several.
    """
    if kernel.channels_last is not None and len(specs[0][0]) == 4:
        shape, dtype = specs[0]
        if kernel.channels_last == KEPT:
            if _some_are_channels_last(arrays):
                return _run_channels_last(kernel, device, arrays, attrs, specs)
        elif _some_are_channels_last(arrays, shape):
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
    """The same for a kernel with ``channels_last="kept"``, where one of the inputs is channels last."""
    if kernel.layout == "contiguous":
        arrays = [_dense(device, a) if hasattr(a, "ndim") else a for a in arrays]
    outs = tuple([empty_channels_last(device, *spec) for spec in specs])
    return run_into(outs[0] if len(outs) == 1 else outs, kernel, device, arrays, attrs)


def run_into(out: Any, kernel: Kernel, device: Device, arrays: list, attrs: dict) -> Any:
    """Run ``kernel`` on arrays in its layout and on allocated outputs, which are returned."""
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
    """A new, uninitialised array; if it has four dimensions, stored channels last."""
    if len(shape) != 4:
        return device.empty(shape, dtype)
    n, c, h, w = shape
    return nchw(device.empty((n, h, w, c), dtype))


def _some_are_channels_last(arrays: list, shape: tuple | None = None) -> bool:
    """Whether one of the arrays (of this shape, if given) is an image stored channels last."""
    for array in arrays:
        if getattr(array, "ndim", 0) == 4 and is_channels_last(array) and shape in (None, array.shape):
            return True
    return False


def _dense(device: Device, array: Any) -> Any:
    """``array`` in dense storage: channels last if it has four dimensions, else C-contiguous."""
    if array.ndim != 4:
        return device.xp.ascontiguousarray(array).reshape(array.shape) if _strided(array) else array
    return array if is_channels_last(array) else nchw(nhwc(array).copy(order="C"))


def _strided(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return not array.flags.c_contiguous
    return not getattr(array, "_c_contiguous", True)  # of a CuPy array: numbers and None have no strides


def _broadcast_contiguous(xp: Any, array: Any, shape: tuple, dtype: np.dtype) -> Any:
    array = xp.asarray(array, dtype=dtype) if np.isscalar(array) else array
    return array if array.shape == shape and not _strided(array) else xp.broadcast_to(array, shape).copy()


# NaN and infinity are results like others here, where NumPy would warn. np.errstate switches the warnings off
# in 0.9 us; setting the context variable underneath takes 0.1 us, which counts beside an addition of 0.3 us.
# `token = enter_quiet()` ... `leave_quiet(token)`.
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
    table = _table("use_kernel", op)
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


def selected_kernels() -> tuple:
    """What :func:`use_kernel` has selected now, hashable."""
    return tuple(_selections.values())


def get_kernel(op: str, device: str = "cpu", dtype: Any = np.float32) -> str:
    """The name of the kernel that the op named ``op`` would run, conditions on its inputs aside."""
    candidates = _table("get_kernel", op).candidates(device, to_dtype(dtype))
    return candidates[0].name if candidates else REFERENCE


def list_kernels(op: str | None = None, device: str | None = None) -> list[Kernel]:
    """All registered kernels, in the order of their ladders, of one op or device type if given."""
    if op is None:
        _define_all_ops()
    tables = [_tables[name] for name in sorted(_tables)] if op is None else [_table("list_kernels", op)]
    return [k for table in tables for k in table.kernels if device is None or device in k.devices]


def _table(caller: str, op: str) -> KernelTable:
    """The kernels of the op named ``op``."""
    if op not in _tables:
        _define_all_ops()
    if op not in _tables:
        having = ", ".join(sorted(name for name, table in _tables.items() if table.kernels))
        raise ValueError(f"{caller}: no op is named {op!r}; ops with kernels: {having}")
    return _tables[op]


def _define_all_ops() -> None:
    """Layers, optimizers and data sets are imported when they are first used, and some ops with them."""
    for name in ("minigrad.nn", "minigrad.optim", "minigrad.data"):
        importlib.import_module(name)
