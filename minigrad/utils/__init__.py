"""Names that PyTorch keeps under ``torch.utils``."""

from minigrad.utils import data

__all__ = ["data"]
