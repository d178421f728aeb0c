"""Rows of ``gpu_vs_torch.py``: products of matrices, linear layers and convolutions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
from gpu_case import FLOAT, Case, Shape, rungs_that_take, torch_device, with_channels_last

import minigrad as mg
from minigrad.dispatch import Spec
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda
from minigrad.ops.conv import conv2d_input_grad, conv2d_weight_grad

conv2d_forward = mg.get_op("conv2d")

# Rungs that add up a row times a column in one float32 sum, and for how many terms that is precise enough.
ONE_SUM, LONGEST_SUM = ("uncoalesced", "naive", "tiled", "register_tile", "vectorized"), 1 << 18
LARGEST_UNCOALESCED = 2048  # rows and columns: larger products take seconds


def matmuls(sizes: list[tuple[int, int, int]], device: str) -> Iterator[Case]:
    """Every rung of the ladder at every size that it takes."""
    for M, K, N in sizes:
        operands = Spec((M, K), np.dtype(np.float32)), Spec((K, N), np.dtype(np.float32))
        for kernel in mg.list_kernels("matmul", device):
            rung = kernel.name
            if kernel.when is not None and not kernel.when(*operands):
                continue
            if rung in ONE_SUM and K > LONGEST_SUM:
                continue
            if rung == "uncoalesced" and max(M, N) > LARGEST_UNCOALESCED:
                continue
            yield Case(
                f"matmul, {rung}",
                f"{M}x{K}x{N}",
                ((M, K), (K, N)),
                lambda a, b: a @ b,
                lambda torch, a, b: a @ b,
                2.0 * M * N * K,
                FLOAT * (M * K + K * N + M * N),
                ("matmul",),
                rung,
            )


# By name: a product of matrices, and the shapes of the factors of one of (M, K) and (K, N).
PRODUCTS: dict[str, tuple[Callable[..., Any], Callable[[int, int, int], tuple[Shape, Shape]]]] = {
    "a @ b.T": (lambda a, b: a @ b.T, lambda M, K, N: ((M, K), (N, K))),
    "a @ b": (lambda a, b: a @ b, lambda M, K, N: ((M, K), (K, N))),
    "a.T @ b": (lambda a, b: a.T @ b, lambda M, K, N: ((K, M), (K, N))),
}


def tensor_core_matmuls(
    sizes: Iterable[tuple[int, int, int]], device: str, products: tuple[str, ...], all_formats: bool = False
) -> Iterator[Case]:
    """Some of :data:`PRODUCTS`, of (M, K, N), by every rung of the device on tensor cores, of few rows or
    columns by those that take them, and with a vector by its own; in bfloat16 or in all formats."""
    modules = {"tensor_core": cuda.matmul_tensor_core, "wgmma": cuda.matmul_wgmma}
    there = mg.device(device).xp.empty(0, np.float32)
    rungs = [rung for rung, module in modules.items() if module.is_supported(there)]
    formats = {"float16": 2, "tf32": 4} if all_formats else {}
    if BFLOAT16:
        formats["bfloat16"] = 2

    def rungs_of(M: int, N: int) -> list[str]:
        if 1 in (M, N):
            return ["gemv"]
        return ["tensor_core", "skinny"] if rungs and cuda.matmul_skinny.suits(M, N) else rungs

    for M, K, N in sizes:
        for format, itemsize in formats.items():
            for name, rung in itertools.product(products, rungs_of(M, N)):
                call, shapes_of = PRODUCTS[name]
                yield Case(
                    f"matmul {format}, {rung}",
                    f"{M}x{K}x{N}, {name}",
                    shapes_of(M, K, N),
                    call,
                    lambda torch, a, b, call=call: call(a, b),
                    2.0 * M * N * K,
                    float(itemsize * (M * K + K * N + M * N)),
                    ("matmul",),
                    rung,
                    format=format,
                )


def linear_layers(tokens: int, features: int, outputs: int, device: str) -> Iterator[Case]:
    """A layer of a transformer under autocast: parameters and inputs in float32, products in bfloat16."""
    if BFLOAT16 is None:
        return
    kind = mg.device(device).type

    def ours(x: Any, weight: Any, bias: Any) -> Any:
        with mg.autocast(kind, BFLOAT16):
            return mg.nn.functional.linear(x, weight, bias)

    def theirs(torch: Any, x: Any, weight: Any, bias: Any) -> Any:
        with torch.autocast(torch_device(kind), torch.bfloat16):
            return torch.nn.functional.linear(x, weight, bias)

    def weight_gradient(layer: Callable[..., Any], x: Any, weight: Any, bias: Any, g: Any) -> Any:
        weight, bias = (parameter.detach().requires_grad_() for parameter in (weight, bias))
        y = layer(x, weight, bias)
        y.backward(g.to(y.dtype))
        return weight.grad

    size = f"{tokens}x{features} -> {outputs}"
    shapes = ((tokens, features), (outputs, features), (outputs,))
    read, written = FLOAT * sum(map(prod, shapes)), 2 * tokens * outputs
    operations = 2.0 * tokens * features * outputs
    yield Case(
        "linear, autocast",
        size,
        shapes,
        ours,
        theirs,
        operations,
        read + written,
        ("matmul",),
        format="autocast",
    )
    yield Case(
        "linear, autocast, weight gradient",
        size,
        (*shapes, (tokens, outputs)),
        lambda *inputs: weight_gradient(ours, *inputs),
        lambda torch, *inputs: weight_gradient(functools.partial(theirs, torch), *inputs),
        2 * operations,
        read + written + FLOAT * (tokens * outputs + outputs * features),
        ("matmul",),
        format="autocast",
    )


Layer = tuple[int, int, int, int, int, int, int, int]

"""(N, C, O, H = W, kernel, stride, padding, groups)"""


def convolutions(layer: Layer, device: str) -> Iterator[Case]:
    """The three passes of one layer, with every rung that takes it."""
    for name, op, shapes, ours, theirs, attributes in convolution_passes(layer):
        for rung in rungs_that_take(op, shapes, attributes, device):
            size, cost = layer_size(layer), layer_cost(layer, FLOAT)
            yield Case(f"conv2d {name}, {rung}", size, shapes, ours, theirs, *cost, (op.name,), rung)


def tensor_core_convolutions(layer: Layer, device: str) -> Iterator[Case]:
    """The three passes of one layer on tensor cores. PyTorch is given its tensors with channels last."""
    there = mg.device(device).xp.empty(0, np.float32)
    if not cuda.conv2d_tensor_core.is_supported(there):
        return
    formats = {"float16": 2, "tf32": 4} | ({"bfloat16": 2} if BFLOAT16 else {})
    _, C, _, H, K, stride, padding, groups = layer
    rungs = (
        ["tensor_core", "pointwise"] if (K, stride, padding, H * H % 8) == (1, 1, 0, 0) else ["tensor_core"]
    )
    has_wgmma = cuda.conv2d_wgmma.is_supported(there) and groups == 1 and C % 8 == 0
    for format, itemsize in formats.items():
        for name, op, shapes, ours, theirs, _ in convolution_passes(layer):
            for rung in [*rungs, "wgmma"] if has_wgmma and format == "bfloat16" else rungs:
                yield Case(
                    f"conv2d {name} {format}, {rung}",
                    layer_size(layer),
                    shapes,
                    ours,
                    with_channels_last(theirs),
                    *layer_cost(layer, itemsize),
                    (op.name,),
                    rung,
                    format=format,
                    # On an H200 one of cuDNN's was 1.1e-3 off, as if it had added up parts in 16 bits.
                    torch_steps=2 if (name, format) == ("weight gradient", "float16") else 1,
                )


def convolutions_of_channels_last(layer: Layer, device: str) -> Iterator[Case]:
    """The three passes of one layer in bfloat16, by wgmma and mma.sync; of groups by the latter alone. Both
    libraries are given their tensors with channels last."""
    grouped = layer[7] > 1
    module = cuda.conv2d_tensor_core if grouped else cuda.conv2d_wgmma
    if not (BFLOAT16 and module.is_supported(mg.device(device).xp.empty(0, np.float32))):
        return
    for name, op, shapes, ours, theirs, _ in convolution_passes(layer):
        call = with_channels_last(lambda _module, *tensors, ours=ours: ours(*tensors))
        for rung in ("tensor_core",) if grouped else ("tensor_core", "wgmma"):
            yield Case(
                f"conv2d {name} bfloat16, channels last, {rung}",
                layer_size(layer),
                shapes,
                functools.partial(call, mg),
                with_channels_last(theirs),
                *layer_cost(layer, 2),
                (op.name,),
                rung,
                format="bfloat16",
            )


def convolutions_with_relu(layer: Layer, pooled: bool = False) -> Iterator[Case]:
    """Convolution, bias and ReLU in one kernel, which on tensor cores may find maxima of 2x2 windows, too:
    ``pooled``. PyTorch has a call for each."""
    x, weight, y = layer_shapes(layer)
    options = layer[5:7]  # stride and padding
    op = "conv2d_pooled" if pooled else "conv2d_relu"
    call = getattr(mg.nn.functional, op)

    def theirs(torch: Any, x: Any, w: Any, b: Any) -> Any:
        y = torch.nn.functional.conv2d(x, w, b, *options).relu()
        return torch.nn.functional.max_pool2d(y, 2) if pooled else y

    formats = {"float32": 4, "tf32": 4, "float16": 2} | ({"bfloat16": 2} if BFLOAT16 else {})
    for format, itemsize in formats.items():
        operations, moved = layer_cost(layer, itemsize)
        not_written = itemsize * (prod(y) - prod(y[:2]) * (y[2] // 2) ** 2) if pooled else 0
        yield Case(
            f"conv2d + bias + ReLU{' + max pooling' * pooled} {format}",
            layer_size(layer),
            (x, weight, weight[:1]),
            lambda x, w, b: call(x, w, b, *options),
            theirs,
            operations,
            moved - not_written,
            (op,),
            format=format,
        )


def layer_shapes(layer: Layer) -> tuple[Shape, Shape, Shape]:
    """Of the input, the weight and the output."""
    N, C, O, H, K, stride, padding, groups = layer  # noqa: E741
    out = (H + 2 * padding - K) // stride + 1
    return (N, C, H, H), (O, C // groups, K, K), (N, O, out, out)


def layer_size(layer: Layer) -> str:
    """What the table shows."""
    N, C, O, H, K, stride, _, groups = layer  # noqa: E741
    size = f"{N}x{C}x{H}x{H} -> {O}, {K}x{K}" + (f"/{stride}" if stride > 1 else "")
    return size + (f", {groups} groups" if groups > 1 else "")


def layer_cost(layer: Layer, itemsize: int) -> tuple[float, float]:
    """(operations, bytes) of one pass."""
    x, weight, y = layer_shapes(layer)
    return 2.0 * prod(y) * prod(weight[1:]), itemsize * (prod(x) + prod(weight) + prod(y))


def convolution_passes(layer: Layer) -> list[tuple]:
    """Of each pass: its name, op, inputs' shapes, our call and PyTorch's, and the op's attributes."""
    _, _, _, H, K, stride, padding, groups = layer
    x, weight, y = layer_shapes(layer)
    options = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": groups}
    input_options, weight_options = options | {"input_size": (H, H)}, options | {"kernel_size": (K, K)}
    return [
        (
            "forward",
            conv2d_forward,
            (x, weight),
            lambda x, w: conv2d_forward(x, w, None, **options),
            lambda torch, x, w: torch.nn.functional.conv2d(x, w, None, stride, padding, 1, groups),
            options,
        ),
        (
            "input gradient",
            conv2d_input_grad,
            (y, weight),
            lambda g, w: conv2d_input_grad(g, w, **input_options),
            lambda torch, g, w: torch_gradient(torch, 0, g, empty_as(torch, g, x), w, *layer[5:]),
            input_options,
        ),
        (
            "weight gradient",
            conv2d_weight_grad,
            (y, x),
            lambda g, x: conv2d_weight_grad(g, x, **weight_options),
            lambda torch, g, x: torch_gradient(torch, 1, g, x, empty_as(torch, g, weight), *layer[5:]),
            weight_options,
        ),
    ]


def torch_gradient(
    torch: Any, number: int, g: Any, x: Any, weight: Any, stride: int, padding: int, groups: int
) -> Any:
    """PyTorch's gradient for ``x``, number 0, or for ``weight``, 1, whose own numbers do not matter then.

    ``torch.nn.grad`` asks for their shapes alone, but passes on a number that is seen in that shape, and is
    copied into an image.
    """
    options = (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), groups, [number == 0, number == 1, False]
    return torch.ops.aten.convolution_backward(g, x, weight, None, *options)[number]


def empty_as(torch: Any, g: Any, shape: Shape) -> Any:
    """A tensor of four axes that lies in memory as ``g`` does, and holds no numbers yet."""
    last = g.is_contiguous(memory_format=torch.channels_last) and not g.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=form)


def transposed_convolution(
    N: int,
    C: int,
    O: int,  # noqa: E741
    H: int,
    K: int,
    stride: int,
    padding: int,
    device: str,
) -> Case:
    """One layer, on the best rung that takes it."""
    x, weight = (N, C, H, H), (C, O, K, K)
    out = (H - 1) * stride - 2 * padding + K
    options = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": 1}
    rungs = rungs_that_take(conv2d_input_grad, (x, weight), options | {"input_size": (out, out)}, device)
    return Case(
        f"conv_transpose2d, {rungs[-1]}",
        f"{N}x{C}x{H}x{H} -> {O}, {K}x{K}/{stride}",
        (x, weight),
        lambda x, w: mg.nn.functional.conv_transpose2d(x, w, None, stride, padding),
        lambda torch, x, w: torch.nn.functional.conv_transpose2d(x, w, None, stride, padding),
        2.0 * prod(x) * O * K * K,
        FLOAT * (prod(x) + prod(weight) + N * O * out * out),
        ("conv2d_input_grad",),
        rungs[-1],
    )
