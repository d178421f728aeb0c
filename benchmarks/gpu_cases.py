"""What ``gpu_vs_torch.py`` measures: for every row the inputs, our call, PyTorch's call, and its floor.

A row's floor is the time that no implementation goes below: its operations at the card's matrix rate, or its
bytes (each input read once, each output written once) at the card's copy rate, whichever takes longer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gpu_case import FLOAT, Case
from gpu_layers import (
    attentions,
    attentions_on_tensor_cores,
    cross_entropies,
    dropouts,
    embeddings,
    norms,
    optimizer_steps,
    overlapping_poolings,
    poolings,
    poolings_of_planes,
    recurrent_layers,
    rows,
    weighted_attentions,
)
from gpu_products import (
    convolutions,
    convolutions_of_channels_last,
    convolutions_with_relu,
    linear_layers,
    matmuls,
    tensor_core_convolutions,
    tensor_core_matmuls,
    transposed_convolution,
)

from minigrad.dtypes import BFLOAT16


def cases(small: bool, device: str) -> Iterator[Case]:
    """All rows; ``small`` ones take a simulator seconds, the others fill a card."""
    # (M, K, N): squares, a batch through a layer, a matrix and a vector, few outputs of many terms.
    products = [(36, 20, 40), (1, 40, 36), (5, 600, 7)]
    if not small:
        products = [(n, n, n) for n in (512, 1024, 2048, 4096, 8192)]
        products += [
            (128, 4096, 4096),
            (4096, 4096, 1),
            (1, 4096, 4096),
            (8, 4096, 4096),
            (16, 4096, 4096),
            (128, 1 << 17, 128),
            (1, 1 << 20, 1),
        ]
    yield from matmuls(products, device)
    squares = [(n, n, n) for n in ((64,) if small else (512, 1024, 2048))]
    # A layer of a transformer for one row and for 128, and its weight's gradient.
    rows_by_layer = [(1, 40, 36), (72, 136, 80)] if small else [(1, 4096, 4096), (128, 4096, 4096)]
    yield from tensor_core_matmuls(squares + rows_by_layer, device, ("a @ b.T",))
    few_rows = [(8, 40, 36)] if small else [(2, 4096, 4096), (8, 4096, 4096), (16, 4096, 14336)]
    yield from tensor_core_matmuls(few_rows, device, ("a @ b.T", "a @ b"))
    of_weight = [(72, 264, 80)] if small else [(768, 8192, 768)]
    yield from tensor_core_matmuls(of_weight, device, ("a.T @ b",))
    squares = [(n, n, n) for n in ((72,) if small else (4096, 8192))]
    yield from tensor_core_matmuls(squares, device, ("a @ b.T", "a @ b"), all_formats=True)
    yield from linear_layers(*(36, 20, 40) if small else (8192, 1024, 4096), device)
    # (N, C, O, H = W, kernel, stride, padding, groups)
    layers = [(2, 17, 18, 6, 3, 1, 1, 1), (2, 4, 8, 7, 3, 2, 1, 4)]
    transposed = [(2, 3, 17, 5, 4, 2, 1)]
    if not small:
        # A first layer, two of a ResNet, one of stride 2, a 1x1; then two depthwise ones.
        layers = [
            (128, 1, 32, 28, 3, 1, 1, 1),
            (64, 64, 64, 56, 3, 1, 1, 1),
            (128, 128, 128, 28, 3, 1, 1, 1),
            (64, 64, 128, 56, 3, 2, 1, 1),
            (64, 256, 64, 56, 1, 1, 0, 1),
            (64, 128, 128, 56, 3, 1, 1, 128),
            (64, 128, 128, 56, 3, 2, 1, 128),
        ]
        # Two layers that double an image, as a generator or a decoder has them.
        transposed = [(64, 128, 64, 28, 4, 2, 1), (64, 256, 128, 14, 2, 2, 0)]
    for layer in layers:
        yield from convolutions(layer, device)
    # The first layer of a ResNet, those of stride 1 and 2, a 1x1, and one of its last, also of a small batch.
    last = [(N, 512, 512, 7, 3, 1, 1, 1) for N in (64, 8)]
    on_tensor_cores = [(64, 3, 64, 224, 7, 2, 3, 1), *layers[1:5], *last]
    for layer in [layers[0], (2, 16, 18, 4, 1, 1, 0, 1)] if small else on_tensor_cores:
        yield from tensor_core_convolutions(layer, device)
        yield from convolutions_with_relu(layer)
    # The layers of a CNN on MNIST, and two of a ResNet, as if pooling followed.
    with_pooling = [layers[0], (128, 32, 64, 14, 3, 1, 1, 1), *layers[1:3]]
    for layer in [(2, 16, 18, 6, 3, 1, 1, 1)] if small else with_pooling:
        yield from convolutions_with_relu(layer, pooled=True)
    # A ResNeXt's first and last ones, in groups of 4 and of 32 channels.
    grouped = [(64, 128, 128, 56, 3, 1, 1, 32), (64, 1024, 1024, 7, 3, 1, 1, 32)]
    for layer in [(2, 32, 32, 5, 3, 1, 1, 8)] if small else grouped:
        yield from tensor_core_convolutions(layer, device)
        yield from convolutions_of_channels_last(layer, device)
    for layer in [(2, 16, 24, 5, 3, 1, 1, 1)] if small else on_tensor_cores[1:]:
        yield from convolutions_of_channels_last(layer, device)
    for layer in transposed:
        yield transposed_convolution(*layer, device)
    planes = (2, 3, 6, 8) if small else (64, 64, 112, 112)
    yield from poolings(planes, device)
    yield from overlapping_poolings(planes, device)
    yield from poolings_of_planes((2, 3, 6, 5) if small else (64, 512, 7, 7))
    yield from rows((6, 20) if small else (65536, 1024))
    yield from optimizer_steps((6, 20), (3, 5)) if small else optimizer_steps((4096, 4096), (256, 1024))
    yield from norms((6, 20), (3, 4, 5, 5)) if small else norms((65536, 1024), (64, 64, 56, 56))
    yield from cross_entropies((6, 20) if small else (32768, 32000), device)
    for shape in [(1, 2, 9, 8)] if small else [(8, 12, 1024, 64), (4, 16, 1024, 128)]:
        yield from attentions(shape)
        yield from in_16_bits(attentions(shape))
        yield from weighted_attentions(shape, device)
        yield from in_16_bits(weighted_attentions(shape, device))
    for shape in [(1, 2, 9, 8)] if small else [(2, 16, 4096, 64), (2, 16, 4096, 128)]:
        yield from attentions_on_tensor_cores(shape, device)
    yield from in_16_bits(
        rows((6, 24) if small else (65536, 1024)), "x + y", "gelu", "softmax", "sum over rows"
    )
    yield from in_16_bits(poolings((2, 3, 6, 16) if small else planes, device), "max pooling", "avg pooling")
    yield from in_16_bits(cross_entropies((6, 24) if small else (32768, 32000), device), "cross-entropy")
    yield from in_16_bits(norms((6, 24), (3, 4, 4, 8)) if small else norms((65536, 1024), (64, 64, 56, 56)))
    yield from in_16_bits(
        optimizer_steps((6, 24), (3, 8)) if small else optimizer_steps((4096, 4096), (256, 1024))
    )
    for layer in [(2, 4, 4, 8, 3, 1, 1, 4)] if small else layers[5:]:
        yield from in_16_bits(convolutions(layer, device), rung="strips")
    yield from dropouts((6, 20) if small else (65536, 1024), device)
    yield from embeddings(*(40, 9, 20) if small else (32768, 32000, 1024), device)
    for sizes in [(3, 2, 5, 6)] if small else [(64, 32, 65, 128), (64, 32, 64, 256), (128, 64, 512, 512)]:
        yield from recurrent_layers(*sizes, device)
        yield from in_16_bits(recurrent_layers(*sizes, device))
        yield from in_16_bits(recurrent_layers(*sizes, device), "LSTM", rung="fused_cluster")


def in_16_bits(cases: Iterable[Case], *names: str, rung: str | None = None) -> Iterator[Case]:
    """The ``cases`` that users get, or those of a rung, whose names begin so, with arrays of 16 bits."""
    format = "bfloat16" if BFLOAT16 else "float16"
    for case in cases:
        if case.rung == rung and case.name.startswith(names or ""):
            yield replace(case, name=f"{case.name}, {format}", bytes=case.bytes / 2, format=format)


# ---- a training step ---------------------------------------------------------------------------------------


def mnist_cnn(lib: Any, size: int, channels: int) -> Any:
    """conv - pool - conv - pool - linear on ``size`` x ``size`` images, in minigrad or in PyTorch."""
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(1, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * (size // 4) ** 2, 10),
    )


def mnist_cost(batch: int, size: int, channels: int) -> tuple[float, float]:
    """(operations, bytes) of one step: three passes of each layer; activations written and read twice."""
    pixels, features = size * size, 2 * channels * (size // 4) ** 2
    macs = pixels * channels * 9 + pixels // 4 * 2 * channels * channels * 9 + features * 10
    first = pixels * channels * 9  # whose input needs no gradient
    parameters = channels * 10 + 2 * channels * (9 * channels + 1) + 10 * (features + 1)
    activations = pixels * (1 + channels) + pixels // 4 * 3 * channels + features
    moved = FLOAT * (4 * batch * activations + 7 * parameters)  # Adam: 4 read, 3 written
    return 2.0 * batch * (3 * macs - first), moved


def trainer(
    lib: Any, model: Any, context: Callable[[], Any] = contextlib.nullcontext
) -> Callable[[Any, Any], Any]:
    """``step(images, labels)``: one step of Adam; returns the loss, which stays on the device.

    The loss is found in a ``context()``.
    """
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    criterion = lib.nn.CrossEntropyLoss()

    def step(images: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        with context():
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step
