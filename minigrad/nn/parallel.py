"""``DataParallel``, for scripts that use it: the module runs on the device where it is."""

from __future__ import annotations

from typing import Any

from minigrad.nn.module import Module

__all__ = ["DataParallel"]


class DataParallel(Module):
    """Calls ``module``, on the device of its parameters alone; a batch is not shared out among cards.

    Args:
        module: found as the attribute ``module``, as are its parameters in the ``state_dict``.
        device_ids, output_device, dim: accepted and ignored.
    """

    def __init__(self, module: Module, device_ids: Any = None, output_device: Any = None, dim: int = 0):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """What ``module`` makes of the arguments."""
        return self.module(*inputs, **kwargs)
