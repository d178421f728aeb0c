"""PyTorch's switches of its libraries, which scripts set; minigrad's own kernels heed none of them.

What they ask for holds anyway: the same seed gives the same bits, and no kernel is tried out first.
"""

from __future__ import annotations

from types import SimpleNamespace

__all__ = ["cudnn", "mps"]

cudnn = SimpleNamespace(
    enabled=False, benchmark=False, deterministic=True, allow_tf32=False, is_available=lambda: False
)
mps = SimpleNamespace(is_available=lambda: False, is_built=lambda: False)
