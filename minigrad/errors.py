"""The errors that callers may need to tell apart. Everything else is a ValueError or a TypeError."""

from minigrad.kernels.errors import (
    KernelAccessError,
    KernelCompileError,
    KernelLaunchError,
    KernelOrderError,
    OutOfMemoryError,
)

__all__ = [
    "CaptureError",
    "DeviceError",
    "KernelAccessError",
    "KernelCompileError",
    "KernelLaunchError",
    "KernelOrderError",
    "OutOfMemoryError",
]


class DeviceError(RuntimeError):
    """A device is unknown or absent, or tensors of two devices met in one operation."""


class CaptureError(RuntimeError):
    """A step that :func:`minigrad.capture` records does what no replay can do, such as looking at a value."""
