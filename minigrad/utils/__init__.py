"""Names that PyTorch keeps under ``torch.utils``."""

from minigrad.utils import checkpoint, data, tensorboard

__all__ = ["checkpoint", "data", "tensorboard"]
