"""PyTorch's questions about CUDA cards: is there one, how many, wait for it."""

from __future__ import annotations

from minigrad.devices import Device
from minigrad.devices import device as find_device

__all__ = ["device_count", "is_available", "synchronize"]


def is_available() -> bool:
    """Whether tensors can be put on the device ``cuda``."""
    from minigrad.kernels import cuda

    return cuda.is_available()


def device_count() -> int:
    """The number of CUDA cards."""
    if not is_available():
        return 0
    import cupy

    return cupy.cuda.runtime.getDeviceCount()


def synchronize(device: str | Device = "cuda") -> None:
    """Wait until all work handed to ``device`` is done."""
    find_device(device).synchronize()
