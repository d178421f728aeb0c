"""Devices: which arrays a tensor holds, and who computes on them.

===========  ==========  ==============================================  ==============
device       arrays      kernels                                         needs
===========  ==========  ==============================================  ==============
``cpu``      NumPy       Cython, at the best instruction-set level       nothing
``cuda``     CuPy        raw CUDA, compiled by NVRTC on first use        CuPy, a driver
``sim``      NumPy       the same CUDA sources, run on the CPU           g++ or clang++
===========  ==========  ==============================================  ==============

Nothing is probed when minigrad is imported: CuPy is looked for when a ``cuda`` device is first asked for.
``cuda`` without a number is the current card: see :func:`minigrad.cuda.set_device`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.errors import DeviceError, OutOfMemoryError
from minigrad.kernels.channels_last import is_channels_last, nchw, nhwc
from minigrad.kernels.cpu import memory
from minigrad.kernels.cuda import index_check
from minigrad.kernels.cuda.memory import maker
from minigrad.recording import recorder

__all__ = ["Device", "available_devices", "device", "get_default_device", "set_default_device"]

KINDS = ("cpu", "cuda", "sim")


class Device:
    """One place where arrays live. Made by :func:`device`; there is one object per device.

    Attributes:
        type: ``"cpu"``, ``"cuda"`` or ``"sim"``.
        index: the card's number on ``cuda``, otherwise 0.
        xp: the array module, NumPy or CuPy.
        array_type: the type of its arrays.
        is_card: whether it is a CUDA card: what works on its arrays must do so inside of :meth:`active`.
        is_one_of_several: whether there are other cards besides it; a single one is current at all times.
        active: ``active()``, a context in which new arrays are made on this device and kernels run on it. On
            ``cpu`` NumPy then takes memory from minigrad's allocator; on a card CuPy's errors about memory
            and about kernels that failed become minigrad's.
        empty: ``empty(shape, dtype)``, a new array whose elements are not set.
        operation: on ``sim``, the context in which a kernel computes outputs from inputs, and is watched.
    """

    __slots__ = (
        *("active", "array_type", "empty", "index", "is_card", "is_one_of_several", "operation", "type"),
        "xp",
    )

    def __init__(
        self,
        type: str,
        index: int,
        xp: Any,
        active: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        is_one_of_several: bool = False,
    ):
        self.type = type
        self.index = index
        self.xp = xp
        self.array_type = xp.ndarray
        self.is_card = type == "cuda"
        self.is_one_of_several = is_one_of_several
        self.active = active
        self.empty = xp.empty
        self.operation: Any = None
        if type == "cuda":
            self.empty = maker(xp.ndarray)
        elif type == "cpu":
            self.active, self.empty = memory.numpy_allocates_here, memory.empty
        elif type == "sim":
            from minigrad.kernels import sim

            self.empty, self.operation = sim.empty, sim.operation

    def __repr__(self) -> str:
        return f"device('{self}')"

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.is_card else self.type

    def __reduce__(self):
        return device, (str(self),)

    def __enter__(self) -> Device:
        """Be the default device (:func:`set_default_device`) for a ``with``."""
        _replaced.append(_default)
        set_default_device(self)
        return self

    def __exit__(self, *exc: object) -> None:
        set_default_device(_replaced.pop())

    def use(self) -> Any:
        """Make this card CuPy's current one; returns CuPy's device that was current before."""
        before = self.xp.cuda.Device()
        self.xp.cuda.Device(self.index).use()
        return before

    def from_numpy(self, array: np.ndarray, non_blocking: bool = False) -> Any:
        """``array`` on this device: itself on ``cpu`` and ``sim``, a copy on ``cuda``.

        In a captured step it is refused, there too: a program that runs on them is one for a card.

        With ``non_blocking`` a copy from pinned memory may still be under way when this returns; CuPy keeps
        the memory until it is done. Pageable memory has been read, and may be changed, in any case.
        """
        recording = recorder.current
        if recording is not None and (self.is_card or recording.device is self):
            recording.refuse(
                "a copy from the CPU",
                "make the tensor on the device, or before the step, or pass it as an argument",
            )
        if not self.is_card:
            return array
        blocking = not non_blocking and is_pinned(array)
        with self.active():
            if is_channels_last(array):
                return nchw(self.xp.asarray(nhwc(array), blocking=blocking))
            return self.xp.asarray(array, blocking=blocking)

    def from_card(self, array: Any, source: Device) -> Any:
        """A copy of ``array``, which lives on the card ``source``, on this card.

        The copy joins this card's current stream, after what the other card's stream holds so far; and what
        comes next in that stream, which may use the memory anew, waits for the copy.
        """
        if is_channels_last(array):
            return nchw(self.from_card(nhwc(array), source))
        with source.active():
            source_stream = self.xp.cuda.get_current_stream()
            array = self.xp.ascontiguousarray(array).reshape(array.shape)
            ready = source_stream.record()
        with self.active():
            stream = self.xp.cuda.get_current_stream()
            stream.wait_event(ready)
            copied = array.copy()
            done = stream.record()
        with source.active():
            source_stream.wait_event(done)
        return copied

    def to_numpy(self, array: Any) -> np.ndarray:
        """``array``, which lives on this device, as a NumPy array (no copy on ``cpu`` and ``sim``)."""
        if recorder.current is not None:
            recorder.current.refuse(
                "a look at values (item(), tolist(), numpy(), bool(), print() or a copy to the CPU)",
                "return the tensor, and look at it outside",
            )
        if not self.is_card:
            return array
        with self.active():
            last = is_channels_last(array)
            found = nchw(self.xp.asnumpy(nhwc(array))) if last else self.xp.asnumpy(array)
        self.raise_late_errors()
        return found

    def synchronize(self) -> None:
        """Wait until all work handed to this device is done. Only ``cuda`` works asynchronously.

        Raises:
            IndexError, ValueError: an index that the card has come upon since is out of range.
        """
        if recorder.current is not None:
            recorder.current.refuse("synchronize()", "wait outside of the step")
        if self.is_card:
            with self.active():
                self.xp.cuda.Device(self.index).synchronize()
            self.raise_late_errors()

    def raise_late_errors(self) -> None:
        """Raise what the card has found wrong, in work that it has done, after the call had returned."""
        index_check.raise_found(self.index)


def is_pinned(array: np.ndarray) -> bool:
    """Whether the array lies in page-locked memory, from which a card copies without the processor's help."""
    from minigrad.kernels import cuda

    if not array.size or not cuda.is_available():
        return False
    runtime = cuda.cupy().cuda.runtime
    return runtime.pointerGetAttributes(array.ctypes.data).type == runtime.memoryTypeHost


_devices: dict[str, Device] = {}


def device(spec: str | Device, index: int | None = None) -> Device:
    """The device named ``spec``: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"sim"``; or with a number apart.

    ``"cuda"`` is the current card, the first unless another was chosen.

    Raises:
        DeviceError: the name is unknown, or the device cannot be used on this machine (the message says
            what is missing).
    """
    if isinstance(spec, Device):
        return spec
    if index is not None:
        spec = f"{spec}:{index}"
    found = _devices.get(spec)
    return _open(spec) if found is None else found


def get_default_device() -> Device:
    """Where tensors are made if no device is given: the CPU, unless :func:`set_default_device` was called."""
    return _default


def set_default_device(device_or_name: str | Device | None) -> None:
    """Make new tensors, and parameters of new layers, on this device unless another is given; None: the CPU.

    What has memory of its own, such as NumPy's arrays and loaded files, stays on the CPU. For a few lines,
    ``with device("cuda"):`` does the same.
    """
    global _default
    _default = cpu if device_or_name is None else device(device_or_name)


def _open(spec: str) -> Device:
    if not isinstance(spec, str):
        raise TypeError(f"device: expected a name such as 'cpu' or 'cuda:0', got {spec!r}")
    kind, _, number = spec.partition(":")
    if kind not in KINDS or (number and not number.isdecimal()):
        raise DeviceError(f"unknown device {spec!r}: expected one of {', '.join(KINDS)}, or 'cuda:N'")
    if kind != "cuda":
        if number not in ("", "0"):
            raise DeviceError(f"there is no device {spec!r}: {kind} has a single device, {kind!r}")
        if kind == "sim":
            from minigrad.kernels import sim

            if not sim.is_available():
                raise DeviceError("device 'sim' needs a C++ compiler: install g++ or clang++, or set CXX")
        found = _devices[spec] = _devices.setdefault(kind, Device(kind, 0, np))
        return found
    return _open_card(spec, number)


def _open_card(spec: str, number: str) -> Device:
    from minigrad.kernels import cuda

    if not cuda.is_available():
        raise DeviceError(f"device {spec!r} cannot be used: {cuda.why_unavailable()}")
    from minigrad.kernels.cuda.guard import Guard

    cupy = cuda.cupy()
    count = cupy.cuda.runtime.getDeviceCount()
    index = int(number) if number else cupy.cuda.runtime.getDevice()
    if index >= count:
        raise DeviceError(f"there is no device {spec!r}: this machine has {count} CUDA device(s)")
    name = f"cuda:{index}"
    found = _devices.get(name)
    if found is None:
        guard = Guard(cupy, index, count > 1)
        found = _devices.setdefault(name, Device("cuda", index, cupy, lambda: guard, count > 1))
    if number or count == 1:  # among several, "cuda" is another card after set_device()
        _devices[spec] = found
    return found


def pinned_copy(array: np.ndarray) -> np.ndarray:
    """``array`` copied, C-contiguous, into page-locked memory of the host.

    Raises:
        DeviceError: there is no card.
        OutOfMemoryError: the host has no such memory left.
    """
    cupy = device("cuda").xp
    from minigrad.kernels.cuda.guard import MEMORY_ALLOCATION

    try:
        memory = cupy.cuda.alloc_pinned_memory(array.nbytes)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != MEMORY_ALLOCATION:
            raise explain(error) from error
        raise OutOfMemoryError(
            f"the host has no {array.nbytes} bytes of page-locked memory left ({error}); leave "
            "the tensor in pageable memory, or pin fewer"
        ) from error
    pinned: np.ndarray = np.ndarray(array.shape, array.dtype, memory)
    pinned[...] = array
    return pinned


def find_card(spec: str | int | Device | None = None) -> Device:
    """The card named or numbered ``spec``, by default the current one; DeviceError for any other device."""
    found = device("cuda" if spec is None else f"cuda:{spec}" if isinstance(spec, int) else spec)
    if not found.is_card:
        raise DeviceError(f"expected a CUDA device, got {str(found)!r}")
    return found


def explain(error: Exception) -> Exception:
    """What to raise where ``error`` left work on a card that no :meth:`Device.active` surrounded."""
    from minigrad.kernels.cuda import guard

    return guard.explain(error) or error


def available_devices() -> list[Device]:
    """The devices that this machine can use, ``cpu`` first."""
    from minigrad.kernels import cuda, sim

    names = ["cpu"] + (["sim"] if sim.is_available() else [])
    if cuda.is_available():
        import cupy

        names += [f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount())]
    return [device(name) for name in names]


cpu = device("cpu")
_default = cpu
_replaced: list[Device] = []  # the default devices before each with that is open
