"""Networks that come trained, with torchvision's names (``torchvision.models``).

    weights = models.MobileNet_V2_Weights.DEFAULT
    model = models.mobilenet_v2(weights=weights).eval()
    scores = model(weights.transforms()(picture).unsqueeze(0))
    print(weights.meta["categories"][scores.argmax().item()])

The weights are those of the networks' authors, see :class:`SqueezeNet1_1_Weights` and
:class:`MobileNet_V2_Weights`. The networks are torchvision's, name by name, so that its weights fit, too.
Where it is installed::

    state = torchvision.models.mobilenet_v2(weights="DEFAULT").state_dict()
    safetensors.torch.save_file(state, "mobilenet_v2.safetensors")

and then here ``models.mobilenet_v2().load_state_dict(mg.load("mobilenet_v2.safetensors"))``.
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
