"""The card, whatever its kind, by PyTorch's names (``torch.accelerator``): here a CUDA card or none."""

from __future__ import annotations

from minigrad.cuda import current_device as current_device_index
from minigrad.cuda import device_count, is_available, synchronize
from minigrad.devices import Device, device

__all__ = ["current_accelerator", "current_device_index", "device_count", "is_available", "synchronize"]


def current_accelerator(check_available: bool = False) -> Device | None:
    """The device ``cuda`` where there is a card, else None; ``check_available`` makes no difference."""
    return device("cuda") if is_available() else None
