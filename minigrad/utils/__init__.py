"""Names that PyTorch keeps under ``torch.utils``, and torchvision under ``torchvision.utils``."""

from minigrad.utils import checkpoint, data, tensorboard
from minigrad.utils.images import make_grid, save_image

__all__ = ["checkpoint", "data", "make_grid", "save_image", "tensorboard"]
