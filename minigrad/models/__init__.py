"""Networks that come trained, with torchvision's names (``torchvision.models``).

    weights = models.MobileNet_V2_Weights.DEFAULT
    model = models.mobilenet_v2(weights=weights).eval()
    scores = model(weights.transforms()(picture).unsqueeze(0))
    print(weights.meta["categories"][scores.argmax().item()])

The networks are torchvision's, name by name, so that the state dict of a network there fits the one here. The
weights are others, see :class:`SqueezeNet1_1_Weights` and :class:`MobileNet_V2_Weights`.
"""

from minigrad.models.mobilenet_v2 import MobileNet_V2_Weights, MobileNetV2, mobilenet_v2
from minigrad.models.registry import get_model, get_model_weights, list_models
from minigrad.models.squeezenet import SqueezeNet, SqueezeNet1_1_Weights, squeezenet1_1
from minigrad.models.weights import Weights, WeightsEnum

__all__ = [
    "MobileNetV2",
    "MobileNet_V2_Weights",
    "SqueezeNet",
    "SqueezeNet1_1_Weights",
    "Weights",
    "WeightsEnum",
    "get_model",
    "get_model_weights",
    "list_models",
    "mobilenet_v2",
    "squeezenet1_1",
]
