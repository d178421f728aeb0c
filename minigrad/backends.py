"""PyTorch's switches of its libraries, which scripts set; minigrad's own kernels heed only that of TF32.

What the others ask for holds anyway: the same seed gives the same bits, and no kernel is tried out first.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from minigrad.precision import get_float32_matmul_precision, set_float32_matmul_precision

__all__ = ["cuda", "cudnn", "mps"]


class _Matmul:
    """``backends.cuda.matmul``"""

    @property
    def allow_tf32(self) -> bool:
        """Whether products of float32 may be computed in TF32, as
        :func:`minigrad.set_float32_matmul_precision` says: True sets "high", False "highest"."""
        return get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        set_float32_matmul_precision("high" if value else "highest")


cudnn = SimpleNamespace(
    enabled=False, benchmark=False, deterministic=True, allow_tf32=False, is_available=lambda: False
)
cuda = SimpleNamespace(matmul=_Matmul(), is_built=lambda: False)
mps = SimpleNamespace(is_available=lambda: False, is_built=lambda: False)

for _name in __all__:  # so that "import minigrad.backends.cudnn as cudnn" finds them
    sys.modules[f"{__name__}.{_name}"] = globals()[_name]
