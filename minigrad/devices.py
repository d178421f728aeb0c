"""Devices: which arrays a tensor holds, and who computes on them.

===========  ==========  ==============================================  ==============
device       arrays      kernels                                         needs
===========  ==========  ==============================================  ==============
``cpu``      NumPy       Cython, at the best instruction-set level       nothing
``cuda``     CuPy        raw CUDA, compiled by NVRTC on first use        CuPy, a driver
``sim``      NumPy       the same CUDA sources, run on the CPU           g++ or clang++
===========  ==========  ==============================================  ==============

Nothing is probed when minigrad is imported: CuPy is looked for when a ``cuda`` device is first asked for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from minigrad.errors import DeviceError

__all__ = ["Device", "available_devices", "device"]

KINDS = ("cpu", "cuda", "sim")


class Device:
    """One place where arrays live. Made by :func:`device`; there is one object per device.

    Attributes:
        type: ``"cpu"``, ``"cuda"`` or ``"sim"``.
        index: the card's number on ``cuda``, otherwise 0.
        xp: the array module, NumPy or CuPy.
        array_type: the type of its arrays.
    """

    __slots__ = ("array_type", "index", "type", "xp")

    def __init__(self, type: str, index: int, xp: Any):
        self.type = type
        self.index = index
        self.xp = xp
        self.array_type = xp.ndarray

    def __repr__(self) -> str:
        return f"device('{self}')"

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.type == "cuda" else self.type

    def __reduce__(self):
        return device, (str(self),)

    def active(self) -> contextlib.AbstractContextManager:
        """A context in which new arrays are made on this device and kernels run on it."""
        return self.xp.cuda.Device(self.index) if self.type == "cuda" else contextlib.nullcontext()

    def from_numpy(self, array: np.ndarray) -> Any:
        """``array`` on this device: itself on ``cpu`` and ``sim``, a copy on ``cuda``."""
        if self.type != "cuda":
            return array
        with self.active():
            return self.xp.asarray(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """``array``, which lives on this device, as a NumPy array (no copy on ``cpu`` and ``sim``)."""
        return array if self.type != "cuda" else self.xp.asnumpy(array)

    def synchronize(self) -> None:
        """Wait until all work handed to this device is done. Only ``cuda`` works asynchronously."""
        if self.type == "cuda":
            with self.active():
                self.xp.cuda.get_current_stream().synchronize()


_devices: dict[str, Device] = {}


def device(spec: str | Device, index: int | None = None) -> Device:
    """The device named ``spec``: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"sim"``; or with a number apart.

    Raises:
        DeviceError: the name is unknown, or the device cannot be used on this machine (the message says
            what is missing).
    """
    if isinstance(spec, Device):
        return spec
    if index is not None:
        spec = f"{spec}:{index}"
    found = _devices.get(spec)
    if found is None:
        found = _open(spec)
        _devices[spec] = _devices.setdefault(str(found), found)
    return _devices[spec]


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
        return Device(kind, 0, np)

    from minigrad.kernels import cuda

    if not cuda.is_available():
        raise DeviceError(f"device {spec!r} cannot be used: {cuda.why_unavailable()}")
    import cupy

    index, count = int(number or 0), cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise DeviceError(f"there is no device {spec!r}: this machine has {count} CUDA device(s)")
    return Device(kind, index, cupy)


def available_devices() -> list[Device]:
    """The devices that this machine can use, ``cpu`` first."""
    from minigrad.kernels import cuda, sim

    names = ["cpu"] + (["sim"] if sim.is_available() else [])
    if cuda.is_available():
        import cupy

        names += [f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount())]
    return [device(name) for name in names]


cpu = device("cpu")
