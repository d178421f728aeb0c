"""MobileNetV2: recognition in 0.3 billion multiplications; https://arxiv.org/abs/1801.04381."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minigrad import nn
from minigrad.data.download import RemoteFiles
from minigrad.io.weights import load_file
from minigrad.models.tflite import read_tflite
from minigrad.models.weights import ImageClassification, Weights, WeightsEnum, load_weights
from minigrad.nn import functional as F
from minigrad.tensor import Tensor

__all__ = ["InvertedResidual", "MobileNetV2", "MobileNet_V2_Weights", "mobilenet_v2"]

SETTING = (  # expansion, output channels, blocks, stride of the first block: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LABELS_SHA256 = "b8aaeb5630c62626a7d124a05c0e14230a7ffdd2136a31d0190a4fb71c1d82f1"

BLOCKS = sum(count for _, _, count, _ in SETTING)

NormLayer = Callable[[int], nn.Module]


class TensorFlowConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding "SAME": the output has ``ceil(size / stride)`` pixels.

    Where the border's width is odd, the wider part is on the right and below, so that a 3x3 kernel of stride
    2 starts at pixel 0 of an even size, and not at -1 as with ``padding=1``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        (top, bottom), (left, right) = (
            self._border(size, axis) for axis, size in enumerate(input.shape[-2:])
        )
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _border(self, size: int, axis: int) -> tuple[int, int]:
        stride, reach = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        width = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        return width // 2, width - width // 2

    def extra_repr(self) -> str:
        """The convolution's arguments, and the padding."""
        return f"{super().extra_repr()}, padding='SAME'"


class Conv2dNormActivation(nn.Sequential):
    """Convolution, normalization where there is one, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        tensorflow_padding: bool = False,
    ):
        options: dict[str, Any] = {"groups": groups, "bias": norm_layer is None}
        if tensorflow_padding and stride > 1:
            conv: nn.Conv2d = TensorFlowConv2d(in_channels, out_channels, kernel_size, stride, **options)
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, **options)
        super().__init__(conv, *([norm_layer(out_channels)] if norm_layer else []), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Channels expanded by a 1x1 convolution, filtered one by one, projected; added to the input if alike.

    Args:
        inp, oup: channels of input and output.
        stride: of the 3x3 depthwise convolution.
        expand_ratio: how many times more channels there are in between.
        norm_layer, tensorflow_padding: as of :class:`MobileNetV2`.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: int,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        tensorflow_padding: bool = False,
    ):
        super().__init__()
        hidden = round(inp * expand_ratio)
        self.use_res_connect = stride == 1 and inp == oup
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(Conv2dNormActivation(inp, hidden, kernel_size=1, norm_layer=norm_layer))
        layers.append(
            Conv2dNormActivation(
                hidden,
                hidden,
                stride=stride,
                groups=hidden,
                norm_layer=norm_layer,
                tensorflow_padding=tensorflow_padding,
            )
        )
        layers.append(nn.Conv2d(hidden, oup, kernel_size=1, bias=norm_layer is None))
        if norm_layer:
            layers.append(norm_layer(oup))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inp, H, W) to (N, oup, H / stride, W / stride)."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """The network; with the arguments that torchvision's has, too, it is torchvision's.

    Args:
        num_classes: outputs.
        width_mult: scales the channels of all layers.
        inverted_residual_setting: (expansion, channels, blocks, stride) of each stage.
        round_nearest: channels are multiples of this.
        norm_layer: makes the normalization of so many channels. None: there is none, and the convolutions
            have a bias, as after a trained batch norm was folded into them.
        dropout: the share of the features that training leaves out.
        tensorflow_padding: whether convolutions of stride 2 pad as in TensorFlow (:class:`TensorFlowConv2d`).

    Attributes:
        features: the first convolution, 17 blocks, the last convolution.
        classifier: dropout and a Linear; to train for other classes, put another into ``classifier[1]``.
        last_channel: its inputs.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        round_nearest: int = 8,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        dropout: float = 0.2,
        tensorflow_padding: bool = False,
    ):
        super().__init__()
        channels = _divisible(32 * width_mult, round_nearest)
        self.last_channel = _divisible(1280 * max(1.0, width_mult), round_nearest)
        options: dict[str, Any] = {"norm_layer": norm_layer, "tensorflow_padding": tensorflow_padding}
        features: list[nn.Module] = [Conv2dNormActivation(3, channels, stride=2, **options)]
        for expansion, width, blocks, stride in inverted_residual_setting or SETTING:
            out_channels = _divisible(width * width_mult, round_nearest)
            for block in range(blocks):
                step = stride if block == 0 else 1
                features.append(InvertedResidual(channels, out_channels, step, expansion, **options))
                channels = out_channels
        last = Conv2dNormActivation(channels, self.last_channel, kernel_size=1, norm_layer=norm_layer)
        self.features = nn.Sequential(*features, last)
        self.classifier = nn.Sequential(nn.Dropout(p=dropout), nn.Linear(self.last_channel, num_classes))
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, num_classes); 224 pixels are usual."""
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(x.flatten(1))


def _divisible(channels: float, divisor: int) -> int:
    """The multiple of ``divisor`` that is nearest to ``channels``, and not below nine tenths of it."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


def _initialize(module: nn.Module) -> None:
    """Normalizations start as they are, ones and zeros."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def from_tensorflow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's tensors as the state dict of a :class:`MobileNetV2` without normalization.

    The first of its 1001 classes, which stands for none of ImageNet's, is left out.
    """
    names = {"Conv": "features.0.0", "Conv_1": f"features.{BLOCKS + 1}.0", "Logits": "classifier.1"}
    for block in range(BLOCKS):
        scope = f"expanded_conv_{block}" if block else "expanded_conv"
        layers = ("expand", "depthwise", "project") if block else ("depthwise", "project")
        for place, layer in enumerate(layers):
            inner = "" if layer == "project" else ".0"
            names[f"{scope}/{layer}"] = f"features.{block + 1}.conv.{place}{inner}"
    state = {}
    for key, tensor in tensors.items():
        layer, _, kind = key.rpartition(".")
        if layer == "Logits":
            tensor = tensor[1:].flatten(1) if kind == "weight" else tensor[1:]
        state[f"{names.get(layer, layer)}.{kind}"] = tensor
    return state


def from_tflite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the TensorFlow Lite file in PyTorch's layouts, under names such as "Conv_1.weight"."""
    state = {}
    part = re.compile(r"MobilenetV2/([^;]+?)(?:/Conv2d_1c_1x1)?/(weights_quant|BatchNorm_Fold/bias|biases)")
    for names, tensor in tensors.items():
        found = part.search(names)  # of several operations that were merged into one; none for a shape
        if found is None:
            continue
        layer, kind = found.groups()
        if kind == "weights_quant":  # (output, H, W, input), or depthwise (1, H, W, channels)
            dims = (3, 0, 1, 2) if layer.endswith("/depthwise") else (0, 3, 1, 2)
            state[f"{layer}.weight"] = tensor.permute(dims)
        else:
            state[f"{layer}.bias"] = tensor
    return state


def read_labels(text: str) -> list[str]:
    """The first name in each line but the first."""
    return [line.partition(",")[0] for line in text.splitlines()[1:]]


class MobileNet_V2_Weights(WeightsEnum):
    """Weights of :func:`mobilenet_v2`.

    ``IMAGENET1K_V1`` are Google's, trained with TensorFlow for 8-bit arithmetic (Apache 2.0), and here in
    float32; torchvision's of that name were trained by others. Batch norm is folded into the convolutions,
    and padding is TensorFlow's. Pictures are RGB, of 224 pixels, ``(value - 128) / 128`` of values 0 to 255.
    """

    IMAGENET1K_V1 = Weights(
        files=RemoteFiles(
            name="MobileNetV2",
            folder="mobilenet_v2",
            mirrors=(
                "https://raw.githubusercontent.com/google-coral/test_data/"
                "104342d2d3480b3e66203073dac24f4e2dbb4c41/",
            ),
            sha256={
                "mobilenet_v2_1.0_224.safetensors": "16ad558da94bd92e9fcdd4f22f51c2f8b9e478327cf3ced23a6da723a8cc8bb7",  # noqa: E501
                "mobilenet_v2_1.0_224_quant.tflite": "7aad0c74c5e3c06e5eb3c827e13304fdd68a83da6087d92ee169c24ff9fd4776",  # noqa: E501
                "imagenet_labels_1001.txt": LABELS_SHA256,
                "imagenet_labels.txt": LABELS_SHA256,
            },
        ),
        states={
            "mobilenet_v2_1.0_224.safetensors": lambda path: from_tensorflow(load_file(path)),
            "mobilenet_v2_1.0_224_quant.tflite": lambda path: from_tensorflow(from_tflite(read_tflite(path))),
        },
        labels={"imagenet_labels_1001.txt": read_labels, "imagenet_labels.txt": read_labels},
        transforms=partial(
            ImageClassification,
            crop_size=224,
            mean=(128 / 255, 128 / 255, 128 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        ),
        config={"num_classes": 1000, "norm_layer": None, "tensorflow_padding": True},
        description={
            "num_params": 3_487_816,
            "source": "https://github.com/google-coral/test_data",
            "_metrics": {"ImageNet-1K": {"acc@1": 70.8, "acc@5": 89.9}},  # of the 8-bit network, as published
        },
    )
    DEFAULT = IMAGENET1K_V1


def mobilenet_v2(
    *, weights: MobileNet_V2_Weights | str | None = None, pretrained: bool = False, **kwargs: Any
) -> MobileNetV2:
    """MobileNetV2, with random weights, or published ones.

    Args:
        weights: a member of :class:`MobileNet_V2_Weights`, or its name: ``"DEFAULT"``.
        pretrained: the older way to ask for the weights ``"DEFAULT"``.
        kwargs: the arguments of :class:`MobileNetV2`.

    Raises:
        FileNotFoundError, DataError: the weights' file is missing or damaged.
        ValueError: an argument does not fit the weights.
    """
    weights = "DEFAULT" if weights is None and pretrained else weights
    return load_weights(MobileNetV2, MobileNet_V2_Weights.verify(weights), kwargs)
