"""What ``gpu_vs_torch.py`` measures: for every row the inputs, our call, PyTorch's call, and its floor.

A row's floor is the time that no implementation goes below: its operations at the card's matrix rate, or its
bytes (each input read once, each output written once) at the card's copy rate, whichever takes longer.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.dispatch import Spec
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda
from minigrad.ops.conv import conv2d_input_grad, conv2d_weight_grad
from minigrad.ops.dropout import _dropout as dropout
from minigrad.ops.embedding import embedding_grad

conv2d_forward = mg.get_op("conv2d")

FLOAT = 4  # bytes

# Rungs that add up a row times a column in one float32 sum, and for how many terms that is precise enough.
ONE_SUM, LONGEST_SUM = ("naive", "tiled", "register_tile", "vectorized"), 1 << 18

Shape = tuple[int, ...]


@dataclass
class Case:
    """One row.

    Attributes:
        name, size: what the table shows.
        shapes: of the inputs, all normal random float32.
        ours: minigrad's call, on its tensors.
        theirs: PyTorch's, on (torch, its tensors).
        operations: floating-point operations, a multiply-add being two.
        bytes: the fewest that must be moved.
        ops: the ops inside that have kernels of ours; the record says which kernel each one ran.
        rung: the kernel to select for the first of ``ops``; None for the one that users get.
        random: whether PyTorch draws numbers of its own, so that its result cannot be compared.
        format: what the numbers are rounded to, in both libraries: ``"float32"``, ``"float16"``,
            ``"bfloat16"``, ``"tf32"``, which is float32 whose factors are rounded, or ``"autocast"``: float32
            that the call itself rounds to bfloat16.
    """

    name: str
    size: str
    shapes: tuple[Shape, ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    operations: float
    bytes: float
    ops: tuple[str, ...] = ()
    rung: str | None = None
    random: bool = False
    format: str = "float32"


@contextlib.contextmanager
def references(device: str) -> Iterator[None]:
    """A context in which every op on ``device`` runs its reference: array programs, no kernels of ours."""
    with contextlib.ExitStack() as stack:
        for op in {kernel.op for kernel in mg.list_kernels(device=device)}:
            stack.enter_context(mg.use_kernel(op, "reference", device))
        yield


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
            (128, 1 << 17, 128),
            (1, 1 << 20, 1),
        ]
    yield from matmuls(products, device)
    yield from tensor_core_matmuls((40,) if small else (4096, 8192), device)
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
    # The first layer of a ResNet, those of stride 1 and 2, a 1x1, and one of its last.
    on_tensor_cores = [(64, 3, 64, 224, 7, 2, 3, 1), *layers[1:5], (64, 512, 512, 7, 3, 1, 1, 1)]
    for layer in [layers[0], (2, 17, 18, 4, 1, 1, 0, 1)] if small else on_tensor_cores:
        yield from tensor_core_convolutions(layer, device)
        yield from convolutions_with_relu(layer)
    for layer in transposed:
        yield transposed_convolution(*layer, device)
    planes = (2, 3, 6, 8) if small else (64, 64, 112, 112)
    yield from poolings(planes, device)
    yield from overlapping_poolings(planes, device)
    yield from rows((6, 20) if small else (65536, 1024))
    yield from optimizer_steps((6, 20), (3, 5)) if small else optimizer_steps((4096, 4096), (256, 1024))
    yield from norms((6, 20), (3, 4, 5, 5)) if small else norms((65536, 1024), (64, 64, 56, 56))
    yield from cross_entropies((6, 20) if small else (32768, 32000), device)
    for shape in [(1, 2, 9, 8)] if small else [(8, 12, 1024, 64), (4, 16, 1024, 128)]:
        yield from attentions(shape)
        yield from in_16_bits(attentions(shape))
    yield from in_16_bits(
        rows((6, 24) if small else (65536, 1024)), "x + y", "gelu", "softmax", "sum over rows"
    )
    yield from in_16_bits(poolings((2, 3, 6, 16) if small else planes, device), "max pooling", "avg pooling")
    yield from in_16_bits(cross_entropies((6, 24) if small else (32768, 32000), device), "cross-entropy")
    yield from dropouts((6, 20) if small else (65536, 1024), device)
    yield from embeddings(*(40, 9, 20) if small else (32768, 32000, 1024), device)
    for sizes in [(3, 2, 5, 6)] if small else [(64, 32, 65, 128), (64, 32, 64, 256), (128, 64, 512, 512)]:
        yield from recurrent_layers(*sizes)


def in_16_bits(cases: Iterable[Case], *names: str) -> Iterator[Case]:
    """Those of the ``cases`` that users get, and whose names begin so, with arrays of 16 bits."""
    format = "bfloat16" if BFLOAT16 else "float16"
    for case in cases:
        if case.rung is None and case.name.startswith(names or ""):
            yield replace(case, name=f"{case.name}, {format}", bytes=case.bytes / 2, format=format)


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


def tensor_core_matmuls(sizes: tuple[int, ...], device: str) -> Iterator[Case]:
    """Square products on tensor cores, of rows by rows and of rows by columns: every rung of the device."""
    modules = {"tensor_core": cuda.matmul_tensor_core, "wgmma": cuda.matmul_wgmma}
    there = mg.device(device).xp.empty(0, np.float32)
    rungs = [rung for rung, module in modules.items() if module.is_supported(there)]
    formats = {"float16": 2, "tf32": 4} | ({"bfloat16": 2} if BFLOAT16 else {})
    calls = {"a @ b.T": lambda a, b: a @ b.T, "a @ b": lambda a, b: a @ b}
    for n in sizes:
        for format, itemsize in formats.items():
            for (name, call), rung in itertools.product(calls.items(), rungs):
                yield Case(
                    f"matmul {format}, {rung}",
                    f"{n}x{n}x{n}, {name}",
                    ((n, n), (n, n)),
                    call,
                    lambda torch, a, b, call=call: call(a, b),
                    2.0 * n**3,
                    3.0 * itemsize * n * n,
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
        with torch.autocast(_torch_device(kind), torch.bfloat16):
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
    if not cuda.conv2d_tensor_core.is_supported(mg.device(device).xp.empty(0, np.float32)):
        return
    formats = {"float16": 2, "tf32": 4} | ({"bfloat16": 2} if BFLOAT16 else {})
    _, _, _, H, K, stride, padding, _ = layer
    rungs = (
        ["tensor_core", "pointwise"] if (K, stride, padding, H * H % 8) == (1, 1, 0, 0) else ["tensor_core"]
    )
    for format, itemsize in formats.items():
        for name, op, shapes, ours, theirs, _ in convolution_passes(layer):
            for rung in rungs:
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
                )


def convolutions_with_relu(layer: Layer) -> Iterator[Case]:
    """Convolution, bias and ReLU in one kernel."""
    x, weight, _ = layer_shapes(layer)
    options = layer[5:7]  # stride and padding
    for format, itemsize in {"float32": 4, "float16": 2}.items():
        yield Case(
            f"conv2d + bias + ReLU {format}",
            layer_size(layer),
            (x, weight, weight[:1]),
            lambda x, w, b: mg.nn.functional.conv2d_relu(x, w, b, *options),
            lambda torch, x, w, b: torch.nn.functional.conv2d(x, w, b, *options).relu(),
            *layer_cost(layer, itemsize),
            ("conv2d_relu",),
            format=format,
        )


def with_channels_last(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` of PyTorch on copies of its tensors with channels last, each of which is made once."""
    copies: dict[int, tuple[Any, Any]] = {}  # by the tensor, which is kept

    def copied(torch: Any, *tensors: Any) -> Any:
        for tensor in tensors:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor, tensor.contiguous(memory_format=torch.channels_last)
        return call(torch, *(copies[id(tensor)][1] for tensor in tensors))

    return copied


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
            lambda torch, g, w: torch.nn.grad.conv2d_input(x, w, g, stride, padding, 1, groups),
            input_options,
        ),
        (
            "weight gradient",
            conv2d_weight_grad,
            (y, x),
            lambda g, x: conv2d_weight_grad(g, x, **weight_options),
            lambda torch, g, x: torch.nn.grad.conv2d_weight(x, weight, g, stride, padding, 1, groups),
            weight_options,
        ),
    ]


def rungs_that_take(op: Any, shapes: tuple[Shape, ...], attributes: dict, device: str) -> list[str]:
    """The kernels of ``op`` whose condition lets them compute inputs of these shapes."""
    specs = [Spec(shape, np.dtype(np.float32)) for shape in shapes]
    inputs = specs + [None] * (len(op.inputs) - len(specs))
    kernels = mg.list_kernels(op.name, device)
    return [kernel.name for kernel in kernels if kernel.when is None or kernel.when(*inputs, **attributes)]


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


def poolings(shape: Shape, device: str) -> Iterator[Case]:
    """2x2 at stride 2, forward, and forward with backward: by default, and with every rung."""
    N, C, H, W = shape
    pooled = (N, C, H // 2, W // 2)
    size = "x".join(map(str, shape))
    values, windows = prod(shape), prod(pooled)
    for kind, tap in (("max", 1), ("avg", 0)):  # max pooling keeps a byte for each window
        names = (f"{kind}_pool2d", f"{kind}_pool2d_input_grad")
        forward = FLOAT * (values + windows) + tap * windows

        def pool(functional: Any, x: Any, name: str = names[0]) -> Any:
            return getattr(functional, name)(x, 2)

        attributes = pooling_attributes(kind, 2, 2, 0, pooled)
        for rung in (None, *rungs_that_take(mg.get_op(names[0]), (shape,), attributes, device)):
            yield Case(
                f"{kind} pooling" + (f", {rung}" if rung else ""),
                size,
                (shape,),
                lambda x, pool=pool: pool(mg.nn.functional, x),
                lambda torch, x, pool=pool: pool(torch.nn.functional, x),
                0.0,
                forward,
                names[:1],
                rung,
            )
        for rung in (None, *(kernel.name for kernel in mg.list_kernels(names[1], device))):
            yield Case(
                f"{kind} pooling, forward + backward" + (f", {rung}" if rung else ""),
                size,
                (shape, pooled),
                lambda x, g, pool=pool: input_gradient(lambda x: pool(mg.nn.functional, x), x, g),
                lambda torch, x, g, pool=pool: input_gradient(lambda x: pool(torch.nn.functional, x), x, g),
                0.0,
                2 * forward,
                names[::-1],
                rung,
            )


def overlapping_poolings(shape: Shape, device: str) -> Iterator[Case]:
    """3x3 at stride 1, padding 1, forward: every rung."""
    size = "x".join(map(str, shape))
    for kind, tap in (("max", 1), ("avg", 0)):
        name = f"{kind}_pool2d"
        attributes = pooling_attributes(kind, 3, 1, 1, shape)
        for rung in rungs_that_take(mg.get_op(name), (shape,), attributes, device):
            yield Case(
                f"{kind} pooling 3x3, {rung}",
                size,
                (shape,),
                lambda x, name=name: getattr(mg.nn.functional, name)(x, 3, 1, 1),
                lambda torch, x, name=name: getattr(torch.nn.functional, name)(x, 3, 1, 1),
                0.0,
                (2 * FLOAT + tap) * prod(shape),
                (name,),
                rung,
            )


def pooling_attributes(kind: str, kernel: int, stride: int, padding: int, pooled: Shape) -> dict:
    """The attributes of the op ``max_pool2d`` or ``avg_pool2d`` for square windows."""
    own: dict = {"dilation": (1, 1)} if kind == "max" else {"include_pad": True, "divisor": None}
    square = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2}
    return square | own | {"size": pooled[2:]}


def rows(shape: Shape) -> Iterator[Case]:
    """Elementwise functions, softmax and reductions of a matrix, through the tensor API."""
    size = "x".join(map(str, shape))
    values = prod(shape)
    functions = {
        "x + y": (2, lambda lib, x, y: x + y),
        "relu": (1, lambda lib, x: lib.nn.functional.relu(x)),
        "gelu": (1, lambda lib, x: lib.nn.functional.gelu(x)),
        "exp": (1, lambda lib, x: lib.exp(x)),
        "softmax": (1, lambda lib, x: lib.nn.functional.softmax(x, 1)),
        "log_softmax": (1, lambda lib, x: lib.nn.functional.log_softmax(x, 1)),
    }
    reductions = {
        "sum of all": (1, lambda lib, x: x.sum()),
        "sum over rows": (shape[1], lambda lib, x: x.sum(0)),
        "sum over columns": (shape[0], lambda lib, x: x.sum(1)),
        "max over columns": (shape[0], lambda lib, x: x.amax(1)),
    }
    ops = {"x + y": ("add",), "relu": ("relu",), "gelu": ("gelu",), "exp": ("exp",)}
    for name, (inputs, call) in functions.items():
        moved = FLOAT * values * (inputs + 1)
        yield Case(name, size, (shape,) * inputs, _ours(call), call, 0.0, moved, ops.get(name, ()))
    for name, gradient in (("relu", "relu_grad"), ("gelu", "gelu_grad"), ("exp", "mul")):
        call = functions[name][1]
        yield Case(
            f"{name}, forward + backward",
            size,
            (shape, shape),
            lambda x, g, call=call: input_gradient(lambda x: call(mg, x), x, g),
            lambda torch, x, g, call=call: input_gradient(lambda x: call(torch, x), x, g),
            0.0,
            FLOAT * values * (2 + 3),  # the gradient reads two arrays
            (name, gradient),
        )
    for name, (outputs, call) in reductions.items():
        yield Case(name, size, (shape,), _ours(call), call, 0.0, FLOAT * (values + outputs))


def optimizer_steps(large: Shape, many: Shape) -> Iterator[Case]:
    """A step of Adam for one parameter, and for 24, by PyTorch's fused kernel on its side."""
    optimizers: dict[int, Any] = {}  # by the first parameter, which they keep

    def step(lib: Any, *tensors: Any, **options: Any) -> Any:
        params, grads = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        if id(params[0]) not in optimizers:
            optimizers[id(params[0])] = lib.optim.Adam(params, **options)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizers[id(params[0])].step()
        return params[-1]

    for name, count, shape in (("Adam step", 1, large), ("Adam step, 24 parameters", 24, many)):
        yield Case(
            name,
            "x".join(map(str, shape)),
            (shape,) * (2 * count),
            _ours(step),
            lambda torch, *tensors: step(torch, *tensors, fused=True),
            0.0,
            7 * FLOAT * count * prod(shape),  # four arrays read, three written
            ("adam_step",),
        )


def dropouts(shape: Shape, device: str) -> Iterator[Case]:
    """Every rung of dropout; there is no mask to write, or to read again in the backward pass."""
    for kernel in mg.list_kernels("dropout", device):
        yield Case(
            f"dropout, {kernel.name}",
            "x".join(map(str, shape)),
            (shape,),
            lambda x: dropout(x, p=0.5, seed=0, offset=0),
            lambda torch, x: torch.nn.functional.dropout(x, 0.5),
            0.0,
            2 * FLOAT * prod(shape),
            ("dropout",),
            kernel.name,
            random=True,
        )


def embeddings(tokens: int, rows: int, columns: int, device: str) -> Iterator[Case]:
    """A text through an embedding, and back. The k-th word has a share of about 1 / k, as in a language."""
    words = (rows ** np.random.default_rng(0).random(tokens)).astype(np.int64) - 1
    ours = mg.tensor(words, device=device)
    theirs = functools.cache(lambda torch: torch.tensor(words, device=_torch_device(device)))
    size = f"{tokens} of {rows}x{columns}"
    weight, y = (rows, columns), (tokens, columns)
    yield Case(
        "embedding",
        size,
        (weight,),
        lambda w: mg.nn.functional.embedding(ours, w),
        lambda torch, w: torch.nn.functional.embedding(theirs(torch), w),
        0.0,
        2 * FLOAT * prod(y),
        ("embedding",),
    )
    yield Case(
        "embedding gradient",
        size,
        (y,),
        lambda g: embedding_grad(g, ours, num_embeddings=rows),
        lambda torch, g: torch.ops.aten.embedding_dense_backward(g, theirs(torch), rows, -1, False),
        0.0,
        FLOAT * (prod(y) + prod(weight)),
        ("embedding_grad",),
    )


def recurrent_layers(T: int, N: int, E: int, H: int) -> Iterator[Case]:
    """A layer over a sequence, forward, and forward with backward, which gives all gradients."""
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        layer = recurrent_layer(name, E, H)
        size = f"T={T} N={N} {E} -> {H}"
        products = 2.0 * T * N * gates * H * (E + H)
        moved = FLOAT * (T * N * (E + H) + gates * H * (E + H + 2))
        yield Case(
            name,
            size,
            ((T, N, E),),
            lambda x, layer=layer: layer(mg, x.dtype, x.device)(x)[0],
            lambda torch, x, layer=layer: layer(torch, x.dtype, x.device)(x)[0],
            products,
            moved,
        )
        yield Case(
            f"{name}, forward + backward",
            size,
            ((T, N, E), (T, N, H)),
            lambda x, g, layer=layer: layer_gradient(layer(mg, x.dtype, x.device), x, g),
            lambda torch, x, g, layer=layer: layer_gradient(layer(torch, x.dtype, x.device), x, g),
            3 * products,
            3 * moved + 2 * FLOAT * T * N * gates * H,
        )


def recurrent_layer(name: str, inputs: int, hidden: int) -> Callable[[Any, Any, Any], Any]:
    """What makes a layer of a library, with a dtype and on a device: always with the same weights."""
    weights = {
        key: value.numpy().copy() for key, value in getattr(mg.nn, name)(inputs, hidden).state_dict().items()
    }

    @functools.cache
    def layer(lib: Any, dtype: Any, device: Any) -> Any:
        made = getattr(lib.nn, name)(inputs, hidden)
        made.load_state_dict({key: lib.tensor(value) for key, value in weights.items()})
        return made.to(device, dtype)

    return layer


def layer_gradient(layer: Any, x: Any, g: Any) -> Any:
    """The gradient for ``x`` of a recurrent layer; those of its weights are found, too."""
    for parameter in layer.parameters():
        parameter.grad = None
    return input_gradient(lambda x: layer(x)[0], x, g)


def norms(matrix: Shape, images: Shape) -> Iterator[Case]:
    """Layer, group and batch norm, forward, and forward with backward, which gives the input's gradient.

    The floor counts each array once. Layer and group norm come to that: a row fits the registers of a block.
    Batch norm does not: it needs a channel's statistics before it can give one element, so it passes over
    memory three times where the floor has two, and its gradient, which needs two sums, five times where the
    floor has three.
    """
    groups = 2 if images[1] < 32 else 32
    calls = {
        "layer norm": (matrix, matrix[1], lambda F, x, w, b: F.layer_norm(x, w.shape, w, b)),
        "group norm": (images, images[1], lambda F, x, w, b: F.group_norm(x, groups, w, b)),
        "batch norm": (images, images[1], lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True)),
    }
    for name, (shape, channels, call) in calls.items():
        op = name.replace(" ", "_")
        size, moved = "x".join(map(str, shape)), 2 * FLOAT * prod(shape)
        parameters = (channels,), (channels,)
        yield Case(
            name,
            size,
            (shape, *parameters),
            lambda x, w, b, call=call: call(mg.nn.functional, x, w, b),
            lambda torch, x, w, b, call=call: call(torch.nn.functional, x, w, b),
            0.0,
            moved,
            (op,),
        )
        yield Case(
            f"{name}, forward + backward",
            size,
            (shape, shape, *parameters),
            lambda x, g, w, b, call=call: normalized_gradient(call, mg.nn.functional, x, g, w, b),
            lambda torch, x, g, w, b, call=call: normalized_gradient(call, torch.nn.functional, x, g, w, b),
            0.0,
            2.5 * moved,  # x, y; then g, x, dx
            (op, f"{op}_grad"),
        )


def normalized_gradient(call: Callable[..., Any], functional: Any, x: Any, g: Any, w: Any, b: Any) -> Any:
    """The gradient for ``x``; those for weight and bias are found, too."""
    w, b = (p.detach().requires_grad_() for p in (w, b))
    return input_gradient(lambda x: call(functional, x, w, b), x, g)


def cross_entropies(shape: Shape, device: str) -> Iterator[Case]:
    """The mean loss of logits, and its gradient, for random classes."""
    classes = np.random.default_rng(0).integers(0, shape[1], shape[0])
    ours = mg.tensor(classes, device=device)
    theirs = functools.cache(lambda torch: torch.tensor(classes, device=_torch_device(device)))
    size, logits = "x".join(map(str, shape)), FLOAT * prod(shape)

    def our_loss(x: Any) -> Any:
        return mg.nn.functional.cross_entropy(x, ours)

    def their_loss(torch: Any, x: Any) -> Any:
        return torch.nn.functional.cross_entropy(x, theirs(torch))

    yield Case("cross-entropy", size, (shape,), our_loss, their_loss, 0.0, logits, ("cross_entropy",))
    yield Case(
        "cross-entropy, forward + backward",
        size,
        (shape,),
        lambda x: input_gradient(our_loss, x, None),
        lambda torch, x: input_gradient(lambda x: their_loss(torch, x), x, None),
        0.0,
        3 * logits,
        ("cross_entropy", "cross_entropy_grad"),
    )


def attentions(shape: Shape) -> Iterator[Case]:
    """Causal attention of (batch, heads, length, features), and the gradient of the queries.

    Where half of the scores are not needed, two products take length^2 features operations each; the
    gradients need five products of them.
    """
    operations, moved = 2.0 * prod(shape) * shape[2], 4 * FLOAT * prod(shape)

    def call(lib: Any, q: Any, k: Any, v: Any) -> Any:
        return lib.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def gradient(lib: Any, q: Any, k: Any, v: Any, g: Any) -> Any:
        k, v = (x.detach().requires_grad_() for x in (k, v))
        return input_gradient(lambda q: call(lib, q, k, v), q, g)

    size = "x".join(map(str, shape))
    yield Case("attention", size, (shape,) * 3, _ours(call), call, operations, moved, ("attention",))
    yield Case(
        "attention, forward + backward",
        size,
        (shape,) * 4,
        _ours(gradient),
        gradient,
        3.5 * operations,
        2 * moved,
        ("attention", "attention_grad"),
    )


def _torch_device(device: str) -> str:
    """Where PyTorch computes: beside the simulator, on the CPU."""
    return "cpu" if device == "sim" else device


def _ours(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors: call(mg, *tensors)


def input_gradient(function: Callable[[Any], Any], x: Any, g: Any) -> Any:
    """The gradient of ``function`` at ``x`` for the output's gradient ``g``; the same in both libraries.

    A loss of one element needs no ``g``: None.
    """
    x = x.detach().requires_grad_()
    function(x).backward(g)
    return x.grad


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
