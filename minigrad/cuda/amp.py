"""The older names of mixed precision on cards, ``torch.cuda.amp``: :mod:`minigrad.amp`, less the device."""

from __future__ import annotations

from typing import Any

from minigrad import amp
from minigrad.cuda import is_available

__all__ = ["GradScaler", "autocast"]


class autocast(amp.autocast):
    """``minigrad.autocast("cuda", dtype, enabled)``"""

    def __init__(self, enabled: bool = True, dtype: Any = None, cache_enabled: bool | None = None):
        super().__init__("cuda", dtype, enabled, cache_enabled)

    def _recreate_cm(self) -> autocast:
        return autocast(self.enabled, self.dtype, self.cache_enabled)


class GradScaler(amp.GradScaler):
    """``minigrad.amp.GradScaler("cuda", ...)``, which is not enabled where there is no card."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        enabled = enabled and is_available()
        super().__init__("cuda", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
