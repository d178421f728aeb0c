"""The errors that callers may need to tell apart. Everything else is a ValueError or a TypeError."""

from minigrad.kernels.errors import (
    KernelAccessError,
    KernelCompileError,
    KernelLaunchError,
    KernelOrderError,
    OutOfMemoryError,
)

__all__ = [
    "DeviceError",
    "KernelAccessError",
    "KernelCompileError",
    "KernelLaunchError",
    "KernelOrderError",
    "OutOfMemoryError",
]


class DeviceError(RuntimeError):
    """A device is unknown or absent, or tensors of two devices met in one operation."""
