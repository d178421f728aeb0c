"""CUDA cards, by PyTorch's names (``torch.cuda``): which there are, their memory, streams and events.

A card is given by its name (``"cuda:1"``), its number, its :class:`minigrad.Device`, or left out: the current
card, which is CuPy's, one for each thread. ``"cuda"`` means the current card too. A tensor is always computed
with on the card that it lives on, whichever is current.

Where there is no card, :func:`is_available` and :func:`device_count` say so; the others raise a
:class:`minigrad.errors.DeviceError` that says what is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from minigrad.devices import Device, find_card
from minigrad.devices import device as find_device
from minigrad.errors import OutOfMemoryError
from minigrad.kernels import cuda
from minigrad.memory import (
    empty_cache,
    max_memory_allocated,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    reset_peak_memory_stats,
)
from minigrad.random import default_generator
from minigrad.streams import Event, Stream, current_stream, default_stream, stream

__all__ = [
    "Event",
    "OutOfMemoryError",
    "Stream",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "is_available",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "stream",
    "synchronize",
]


def __getattr__(name: str) -> Any:
    """What stands on floors above: mixed precision, and the tensors of a dtype."""
    if name == "amp":
        return import_module("minigrad.cuda.amp")
    if name.endswith("Tensor"):
        return import_module("minigrad.typed").on_cuda(name)
    raise AttributeError(f"module 'minigrad.cuda' has no attribute {name!r}")


def is_available() -> bool:
    """Whether tensors can be put on the device ``cuda``."""
    return cuda.is_available()


def device_count() -> int:
    """The number of CUDA cards."""
    return cuda.cupy().cuda.runtime.getDeviceCount() if is_available() else 0


def current_device() -> int:
    """The number of the current card."""
    return find_card().index


def set_device(device: str | int | Device) -> None:
    """Make a card the current one of this thread."""
    find_card(device).use()


class device:
    """A context in which a card is the current one: ``with mg.cuda.device(1):``. None changes nothing."""

    def __init__(self, device: str | int | Device | None):
        self.device = None if device is None else find_card(device)
        self._before: list[Any] = []

    def __enter__(self) -> None:
        if self.device is not None:
            self._before.append(self.device.use())

    def __exit__(self, *exc: object) -> None:
        if self.device is not None:
            self._before.pop().use()


class DeviceProperties(NamedTuple):
    """What :func:`get_device_properties` tells of a card.

    Attributes:
        name: such as ``"NVIDIA H100 80GB HBM3"``.
        major, minor: the compute capability, (9, 0) for Hopper.
        total_memory: bytes.
        multi_processor_count: how many blocks can run at the same time, at least.
    """

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int


def get_device_properties(device: str | int | Device | None = None) -> DeviceProperties:
    """What a card is and has."""
    card = find_card(device)
    found = card.xp.cuda.runtime.getDeviceProperties(card.index)
    return DeviceProperties(
        name=found["name"].decode(),
        major=found["major"],
        minor=found["minor"],
        total_memory=found["totalGlobalMem"],
        multi_processor_count=found["multiProcessorCount"],
    )


def get_device_name(device: str | int | Device | None = None) -> str:
    """The name of a card."""
    return get_device_properties(device).name


def get_device_capability(device: str | int | Device | None = None) -> tuple[int, int]:
    """The compute capability of a card: (9, 0) for Hopper."""
    properties = get_device_properties(device)
    return properties.major, properties.minor


def manual_seed(seed: int) -> None:
    """As :func:`minigrad.manual_seed`: there is one generator for all devices."""
    default_generator.manual_seed(seed)


manual_seed_all = manual_seed


def synchronize(device: str | int | Device | None = None) -> None:
    """Wait until all work handed to a card, in any stream, is done. Other devices never keep one waiting."""
    where = find_device(device) if isinstance(device, (str, Device)) else find_card(device)
    where.synchronize()
