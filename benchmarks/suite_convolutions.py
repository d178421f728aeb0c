"""The suite's convolutions: layers of networks that people know, and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from suite_case import Case, Data, passes


@dataclass
class Layer:
    """A convolution: its input (N, C, size, size), and what is not asked for in it, ``input_grad``."""

    what: str
    N: int
    C: int
    size: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    input_grad: bool = True

    @property
    def name(self) -> str:
        options = f"/{self.stride}" if self.stride > 1 else ""
        options += f" dilated {self.dilation}" if self.dilation > 1 else ""
        shape = f"{self.N}x{self.C}x{self.size}^2 -> {self.out}"
        return f"{self.what}: {shape}, {self.kernel}x{self.kernel}{options}"

    def make(self, lib: Any, data: Data) -> tuple:
        x = data.normal(self.N, self.C, self.size, self.size, grad=self.input_grad)
        fan_in = self.C // self.groups * self.kernel**2
        weight = data.normal(self.out, self.C // self.groups, self.kernel, self.kernel) / fan_in**0.5
        weight = weight.requires_grad_()
        bias = data.normal(self.out, grad=True)
        options = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        leaves = (x, weight, bias) if self.input_grad else (weight, bias)
        return lambda: lib.nn.functional.conv2d(x, weight, bias, **options), leaves


LAYERS = (
    Layer("MNIST first", 128, 1, 28, 32, 3, padding=1, input_grad=False),
    Layer("MNIST second", 128, 32, 14, 64, 3, padding=1),
    Layer("LeNet first", 128, 1, 28, 6, 5, padding=2, input_grad=False),
    Layer("LeNet second", 128, 6, 14, 16, 5),
    Layer("CIFAR first", 128, 3, 32, 32, 3, padding=1, input_grad=False),
    Layer("stem", 8, 3, 224, 64, 7, stride=2, padding=3, input_grad=False),
    Layer("ResNet-20", 128, 16, 32, 16, 3, padding=1),
    Layer("ResNet-20", 128, 32, 16, 32, 3, padding=1),
    Layer("ResNet-20", 128, 64, 8, 64, 3, padding=1),
    Layer("ResNet-20", 128, 16, 32, 32, 3, stride=2, padding=1),
    Layer("VGG", 4, 64, 112, 64, 3, padding=1),
    Layer("ResNet", 8, 64, 56, 64, 3, padding=1),
    Layer("ResNet", 8, 128, 28, 128, 3, padding=1),
    Layer("ResNet", 8, 256, 14, 256, 3, padding=1),
    Layer("ResNet", 8, 512, 7, 512, 3, padding=1),
    Layer("ResNet", 1, 64, 56, 64, 3, padding=1),
    Layer("strided", 8, 64, 56, 128, 3, stride=2, padding=1),
    Layer("1x1", 8, 256, 56, 64, 1),
    Layer("1x1", 8, 512, 14, 1024, 1),
    Layer("1x1 strided", 8, 256, 56, 512, 1, stride=2),
    Layer("5x5", 8, 64, 28, 64, 5, padding=2),
    Layer("dilated", 8, 64, 28, 64, 3, padding=2, dilation=2),
    Layer("depthwise", 8, 128, 56, 128, 3, padding=1, groups=128),
    Layer("depthwise strided", 8, 128, 56, 128, 3, stride=2, padding=1, groups=128),
    Layer("depthwise", 8, 128, 28, 128, 5, padding=2, groups=128),
    *(
        Layer("MobileNetV2", 8, C, size, C, 3, stride=stride, padding=1, groups=C)
        for C, size, stride in (
            *((96, 112, 2), (144, 56, 2), (192, 28, 2), (576, 14, 2)),
            *((32, 112, 1), (144, 56, 1), (384, 14, 1), (960, 7, 1)),
        )
    ),
    Layer("4 groups", 8, 128, 28, 128, 3, padding=1, groups=4),
    Layer("32 groups", 8, 128, 28, 128, 3, padding=1, groups=32),
    Layer("to RGB", 8, 32, 64, 3, 3, padding=1),
)


SMALL_LAYERS = (
    Layer("first", 2, 1, 6, 4, 3, padding=1, input_grad=False),
    Layer("3x3", 2, 8, 6, 8, 3, padding=1),
    Layer("1x1", 2, 8, 4, 16, 1),
    Layer("dilated", 2, 4, 7, 8, 3, stride=2, padding=2, dilation=2),
    Layer("depthwise", 2, 4, 7, 4, 3, padding=1, groups=4),
    Layer("2 groups", 2, 8, 5, 8, 3, padding=1, groups=2),
)


def convolutions(small: bool) -> Iterator[Case]:
    for layer in SMALL_LAYERS if small else LAYERS:
        yield from passes("convolution", layer.name, layer.make)
    transpositions = [(16, 128, 14, 64, 4, 2, 1), (16, 64, 14, 32, 2, 2, 0)]
    for N, C, size, out, kernel, stride, padding in [(2, 4, 3, 5, 4, 2, 1)] if small else transpositions:

        def transposed(
            lib, data, N=N, C=C, size=size, out=out, kernel=kernel, stride=stride, padding=padding
        ):
            x = data.normal(N, C, size, size, grad=True)
            weight = (data.normal(C, out, kernel, kernel) / (C * kernel) ** 0.5).requires_grad_()
            convolve = lib.nn.functional.conv_transpose2d
            return lambda: convolve(x, weight, stride=stride, padding=padding), (x, weight)

        name = f"transposed: {N}x{C}x{size}^2 -> {out}, {kernel}x{kernel}/{stride}"
        yield from passes("convolution", name, transposed)
