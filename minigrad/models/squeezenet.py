"""SqueezeNet 1.1: AlexNet's accuracy with a fiftieth of its parameters; https://arxiv.org/abs/1602.07360."""

from __future__ import annotations

from functools import partial
from typing import Any

from minigrad import nn
from minigrad.data.download import RemoteFiles
from minigrad.io.weights import load_file
from minigrad.models.weights import ImageClassification, Weights, WeightsEnum, load_weights
from minigrad.ops.join import concat
from minigrad.tensor import Tensor

__all__ = ["Fire", "SqueezeNet", "SqueezeNet1_1_Weights", "squeezenet1_1"]


class Fire(nn.Module):
    """Channels squeezed to a few by a 1x1 convolution, then expanded by 1x1 and 3x3 ones side by side."""

    def __init__(self, inplanes: int, squeeze_planes: int, expand1x1_planes: int, expand3x3_planes: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze_planes, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze_planes, expand1x1_planes, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze_planes, expand3x3_planes, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, expand1x1_planes + expand3x3_planes, H, W)."""
        x = self.squeeze_activation(self.squeeze(x))
        ones = self.expand1x1_activation(self.expand1x1(x))
        threes = self.expand3x3_activation(self.expand3x3(x))
        return concat([ones, threes], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet in version 1.1, which computes a third of what 1.0 does.

    Args:
        num_classes: outputs.
        dropout: the share of the features that training leaves out.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(64, 16, 64, 64),
            Fire(128, 16, 64, 64),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(128, 32, 128, 128),
            Fire(256, 32, 128, 128),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(256, 48, 192, 192),
            Fire(384, 48, 192, 192),
            Fire(384, 64, 256, 256),
            Fire(512, 64, 256, 256),
        )
        final_conv = nn.Conv2d(512, num_classes, kernel_size=1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout), final_conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is final_conv:
                    nn.init.normal_(module.weight, mean=0.0, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, num_classes); 224 or 227 pixels are usual, 17 the least."""
        return self.classifier(self.features(x)).flatten(1)


FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # number in the paper: place in ``features``
NAMES = {
    "conv1": "features.0",
    "conv10": "classifier.1",
    **{
        f"fire{number}/{published}": f"features.{place}.{name}"
        for number, place in FIRES.items()
        for published, name in (("squeeze1x1", "squeeze"), ("expand1x1", "expand1x1"), ("expand3x3",) * 2)
    },
}


def from_caffe(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe's tensors as the state dict of :class:`SqueezeNet`.

    Caffe's pictures are blue, green, red; those here the other way round, and so is the first kernel.
    """
    state = {}
    for key, tensor in tensors.items():
        layer, _, kind = key.rpartition(".")
        state[f"{NAMES.get(layer, layer)}.{kind}"] = tensor.flip(1) if key == "conv1.weight" else tensor
    return state


def read_synsets(text: str) -> list[str]:
    """The first name in each line, which stands behind WordNet's number."""
    return [line.partition(" ")[2].partition(",")[0] for line in text.splitlines()]


class SqueezeNet1_1_Weights(WeightsEnum):
    """Weights of :func:`squeezenet1_1`.

    ``IMAGENET1K_V1`` are those that the authors published (https://github.com/forresti/SqueezeNet, BSD
    licence), rounded to 16 bits; torchvision's of that name were trained by others. Pictures are 227 pixels
    wide, as Caffe's, RGB, of values 0 to 255 with the mean (123, 117, 104) subtracted.
    """

    IMAGENET1K_V1 = Weights(
        files=RemoteFiles(
            name="SqueezeNet 1.1",
            folder="squeezenet1_1",
            mirrors=(),
            sha256={
                "squeezenet1_1.safetensors": "b8dda101a98069af847b492352b2369dec78fadc46309a2933766fe8bfe9ea1f",  # noqa: E501
                "synset_words.txt": "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
            },
            origin="The network is that of https://github.com/forresti/SqueezeNet, stored as safetensors",
        ),
        states={"squeezenet1_1.safetensors": lambda path: from_caffe(load_file(path))},
        labels={"synset_words.txt": read_synsets},
        transforms=partial(
            ImageClassification,
            crop_size=227,
            mean=(123 / 255, 117 / 255, 104 / 255),
            std=(1 / 255, 1 / 255, 1 / 255),
        ),
        config={"num_classes": 1000},
        description={
            "num_params": 1_235_496,
            "source": "https://github.com/forresti/SqueezeNet",
            "_metrics": {"ImageNet-1K": {"acc@1": 57.5, "acc@5": 80.3}},  # as published
        },
    )
    DEFAULT = IMAGENET1K_V1


def squeezenet1_1(
    *, weights: SqueezeNet1_1_Weights | str | None = None, pretrained: bool = False, **kwargs: Any
) -> SqueezeNet:
    """SqueezeNet 1.1, with random weights, or published ones.

    Args:
        weights: a member of :class:`SqueezeNet1_1_Weights`, or its name: ``"DEFAULT"``.
        pretrained: the older way to ask for the weights ``"DEFAULT"``.
        kwargs: the arguments of :class:`SqueezeNet`.

    Raises:
        FileNotFoundError, DataError: the weights' file is missing or damaged.
        ValueError: ``num_classes`` is not that of the weights.
    """
    weights = "DEFAULT" if weights is None and pretrained else weights
    return load_weights(SqueezeNet, SqueezeNet1_1_Weights.verify(weights), kwargs)
