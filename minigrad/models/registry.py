"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.models.mobilenet_v2 import MobileNet_V2_Weights, mobilenet_v2
from minigrad.models.squeezenet import SqueezeNet1_1_Weights, squeezenet1_1
from minigrad.models.weights import WeightsEnum
from minigrad.nn.module import Module

__all__ = ["get_model", "get_model_weights", "list_models"]

MODELS: dict[str, tuple[Callable[..., Module], type[WeightsEnum]]] = {
    "mobilenet_v2": (mobilenet_v2, MobileNet_V2_Weights),
    "squeezenet1_1": (squeezenet1_1, SqueezeNet1_1_Weights),
}


def list_models() -> list[str]:
    """The names of all networks."""
    return sorted(MODELS)


def get_model(name: str, **config: Any) -> Module:
    """The network of that name; ``config`` is what its function takes. ValueError for an unknown name."""
    return _find(name)[0](**config)


def get_model_weights(name: str) -> type[WeightsEnum]:
    """The weights there are for the network of that name. ValueError for an unknown name."""
    return _find(name)[1]


def _find(name: str) -> tuple[Callable[..., Module], type[WeightsEnum]]:
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(list_models())}")
    return MODELS[name]
