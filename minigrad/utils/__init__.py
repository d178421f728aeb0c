"""Names that PyTorch keeps under ``torch.utils``."""

from minigrad.utils import checkpoint, data

__all__ = ["checkpoint", "data"]
