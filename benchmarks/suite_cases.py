"""What ``cpu_vs_torch.py`` and ``gpu_vs_torch.py`` both measure: rows that run in minigrad and PyTorch alike.

minigrad has PyTorch's names, so a row is a function of the library: ``lib`` is the module ``minigrad`` or
``torch``. Both get the same random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import suite_networks as networks
from suite_case import Case, Data, Run, passes
from suite_convolutions import convolutions


def cases(small: bool = False) -> Iterator[Case]:
    """All rows, in the order of the table; or ``small`` ones of every kind, for a simulator."""
    for family in (
        *(matmuls, convolutions, poolings, elementwise, broadcasts, softmaxes, norms, reductions, losses),
        *(dropouts, optimizers, embeddings, recurrences, attentions, overheads, training_steps),
    ):
        yield from family(small)


# ---- matrix products ---------------------------------------------------------------------------------------


def matmuls(small: bool) -> Iterator[Case]:
    if small:
        yield product(33, 65, 129)
        yield product(8, 9, 10, "ab")
        yield product(5, 6, 7, "b", batch=(2, 3))
        yield from passes("matmul", "linear 6x20 -> 5", lambda lib, data: linear(lib, data, 6, 20, 5))
        return
    for n in (32, 64, 128, 256, 512, 1024, 2048):
        yield product(n, n, n)
    for n in (64, 512):
        for transposed in ("a", "b", "ab"):
            yield product(n, n, n, transposed)
    for M, K, N in (
        *((12, 1024, 1024), (1024, 1024, 12), (128, 784, 128), (128, 128, 10), (1, 4096, 4096)),
        *((4096, 4096, 1), (16, 65536, 16), (128, 4096, 128), (33, 65, 129)),
    ):
        yield product(M, K, N)
    for batch, M, K, N in ((64, 64, 64, 64), (32, 128, 64, 128), (512, 16, 16, 16)):
        yield product(M, K, N, batch=(batch,))
    yield product(128, 64, 128, "b", batch=(8, 4))
    for N, K, M in ((128, 784, 256), (2048, 128, 512)):
        yield from passes(
            "matmul", f"linear {N}x{K} -> {M}", lambda lib, data, N=N, K=K, M=M: linear(lib, data, N, K, M)
        )


def product(M: int, K: int, N: int, transposed: str = "", batch: tuple[int, ...] = ()) -> Case:
    """(M, K) @ (K, N); operands named in ``transposed`` are transposed views."""

    def build(lib: Any, data: Data) -> Run:
        a = data.normal(*batch, K, M).transpose(-1, -2) if "a" in transposed else data.normal(*batch, M, K)
        b = data.normal(*batch, N, K).transpose(-1, -2) if "b" in transposed else data.normal(*batch, K, N)
        return lambda: a @ b

    name = "".join(f"{n}x" for n in batch) + f"{M}x{K}x{N}"
    return Case("matmul", name + (f", {' and '.join(transposed)} transposed" if transposed else ""), build)


def linear(lib: Any, data: Data, N: int, K: int, M: int) -> tuple:
    x, weight, bias = data.normal(N, K, grad=True), data.normal(M, K, grad=True), data.normal(M, grad=True)
    return lambda: lib.nn.functional.linear(x, weight, bias), (x, weight, bias)


# ---- pooling -----------------------------------------------------------------------------------------------


def poolings(small: bool) -> Iterator[Case]:
    windows = [
        *(("max", 32, 64, 56, 2, 2, 0), ("max", 8, 64, 112, 3, 2, 1), ("max", 32, 64, 28, 3, 1, 1)),
        *(("max", 128, 32, 28, 2, 2, 0), ("max", 32, 64, 27, 2, 2, 0)),
        *(("avg", 32, 64, 56, 2, 2, 0), ("avg", 32, 64, 28, 3, 1, 1), ("avg", 32, 64, 55, 3, 2, 1)),
    ]
    if small:
        windows = [("max", 2, 3, 8, 2, 2, 0), ("max", 2, 3, 7, 3, 2, 1), ("avg", 2, 3, 8, 2, 2, 0)]
    for kind, N, C, size, kernel, stride, padding in windows:

        def make(lib, data, kind=kind, shape=(N, C, size, size), options=(kernel, stride, padding)):
            x = data.normal(*shape, grad=True)
            pool = getattr(lib.nn.functional, f"{kind}_pool2d")
            return lambda: pool(x, *options), (x,)

        name = f"{kind} {kernel}x{kernel}/{stride}{' padded' if padding else ''}, {N}x{C}x{size}^2"
        yield from passes("pooling", name, make)

    shape = (2, 5, 3, 3) if small else (32, 512, 7, 7)

    def adaptive(lib: Any, data: Data) -> tuple:
        x = data.normal(*shape, grad=True)
        return lambda: lib.nn.functional.adaptive_avg_pool2d(x, 1), (x,)

    name = f"global average, {shape[0]}x{shape[1]}x{shape[2]}^2"
    yield from passes("pooling", name, adaptive)


# ---- elementwise -------------------------------------------------------------------------------------------

UNARY: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda lib, x: lib.nn.functional.relu(x),
    "gelu": lambda lib, x: lib.nn.functional.gelu(x),
    "silu": lambda lib, x: lib.nn.functional.silu(x),
    "sigmoid": lambda lib, x: lib.sigmoid(x),
    "tanh": lambda lib, x: lib.tanh(x),
    "exp": lambda lib, x: lib.exp(x),
    "sin": lambda lib, x: lib.sin(x),
    "erf": lambda lib, x: lib.erf(x),
    "x**2": lambda _, x: x**2,
    "-x": lambda _, x: -x,
    "2 * x + 1": lambda _, x: 2 * x + 1,
    "clamp": lambda lib, x: lib.clamp(x, -1.0, 1.0),
    "abs": lambda lib, x: lib.abs(x),
}
OF_POSITIVE: dict[str, Callable[[Any, Any], Any]] = {
    "log": lambda lib, x: lib.log(x),
    "sqrt": lambda lib, x: lib.sqrt(x),
    "1 / x": lambda _, x: 1 / x,
}
BINARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x + y": lambda _, x, y: x + y,
    "x * y": lambda _, x, y: x * y,
    "x / y": lambda _, x, y: x / y,
    "maximum": lambda lib, x, y: lib.maximum(x, y),
    "where": lambda lib, x, y: lib.where(x > y, x, y),
}
MILLION = 1 << 20
FEW = "relu", "gelu", "2 * x + 1", "log", "x * y", "where"  # what a simulator is given of them


def length(small: bool) -> tuple[int, str]:
    """How many elements a long vector has, and how the table says so."""
    return (600, "600") if small else (MILLION, "1M")


def elementwise(small: bool) -> Iterator[Case]:
    n, told = length(small)
    for names, draw in ((UNARY, Data.normal), (OF_POSITIVE, Data.positive)):
        for name, function in names.items():
            if small and name not in FEW:
                continue

            def unary(lib, data, function=function, draw=draw):
                x = draw(data, n, grad=True)
                return lambda: function(lib, x), (x,)

            yield from passes("elementwise", f"{name}, {told}", unary)
    for name, function in BINARY.items():
        if small and name not in FEW:
            continue

        def binary(lib, data, function=function):
            x, y = data.positive(n, grad=True), data.positive(n, grad=True)
            return lambda: function(lib, x, y), (x, y)

        yield from passes("elementwise", f"{name}, {told}", binary)

    def in_place(lib: Any, data: Data) -> Run:
        x, y = data.normal(n), data.normal(n) * 1e-6

        def run() -> None:
            nonlocal x
            x += y

        return run

    if small:
        yield Case("elementwise", f"x += y, {told}", in_place)
        return

    def large(lib: Any, data: Data) -> tuple:
        x = data.normal(16 * MILLION, grad=True)
        return lambda: lib.nn.functional.relu(x), (x,)

    def short(lib: Any, data: Data) -> tuple:
        x, y = data.normal(4096, grad=True), data.normal(4096, grad=True)
        return lambda: x * y + x, (x, y)

    yield from passes("elementwise", "relu, 16M", large)
    yield from passes("elementwise", "x * y + x, 4096", short)
    yield Case("elementwise", f"x += y, {told}", in_place)


def broadcasts(small: bool) -> Iterator[Case]:
    rows, columns, n = (12, 20, 9) if small else (2048, 512, 1024)
    images = (2, 3, 4, 4) if small else (32, 64, 28, 28)
    for name, shapes in {
        "row": ((rows, columns), (columns,)),
        "column": ((rows, columns), (rows, 1)),
        "channels": (images, (images[1], 1, 1)),
        "outer": ((n, 1), (1, n)),
    }.items():

        def make(lib, data, shapes=shapes):
            x, y = (data.normal(*shape, grad=True) for shape in shapes)
            return lambda: x * y, (x, y)

        yield from passes("elementwise", f"x * y, y a {name}" if name != "outer" else "outer product", make)

    def copy(lib: Any, data: Data) -> Run:
        x = data.normal(n, n).transpose(0, 1)
        return lambda: x.contiguous()

    def transposed(lib: Any, data: Data) -> Run:
        x, y = data.normal(n, n).transpose(0, 1), data.normal(n, n)
        return lambda: x + y

    yield Case("elementwise", "copy of a transposed matrix", copy)
    yield Case("elementwise", "x + y, x transposed", transposed)


# ---- softmax, norms, reductions, losses, dropout -----------------------------------------------------------


def softmaxes(small: bool) -> Iterator[Case]:
    shapes = [((128, 10), -1), ((4096, 1000), -1), ((32, 4, 128, 128), -1), ((64, 100, 28, 28), 1)]
    for shape, dim in [((12, 10), -1), ((2, 5, 3, 3), 1)] if small else shapes:
        for name in ("softmax", "log_softmax"):

            def make(lib, data, name=name, shape=shape, dim=dim):
                x = data.normal(*shape, grad=True)
                return lambda: getattr(lib.nn.functional, name)(x, dim=dim), (x,)

            if name == "softmax" or dim == -1:
                yield from passes("softmax", f"{name} {shape}, dim {dim}", make)


def norms(small: bool) -> Iterator[Case]:
    shapes = [
        *(("layer", (4096, 768)), ("layer", (32, 128, 64)), ("group", (32, 64, 28, 28))),
        *(("batch", (128, 32, 28, 28)), ("batch", (64, 64, 56, 56)), ("batch", (128, 512))),
    ]
    if small:
        shapes = [("layer", (6, 20)), ("group", (2, 16, 3, 3)), ("batch", (2, 4, 5, 5)), ("batch", (6, 20))]
    for kind, shape in shapes:

        def make(lib, data, kind=kind, shape=shape):
            F = lib.nn.functional
            channels = shape[-1] if kind == "layer" else shape[1]
            x = data.normal(*shape, grad=True)
            weight, bias = data.normal(channels, grad=True), data.normal(channels, grad=True)
            calls = {
                "layer": lambda: F.layer_norm(x, (channels,), weight, bias),
                "group": lambda: F.group_norm(x, 8, weight, bias),
                "batch": lambda: F.batch_norm(x, None, None, weight, bias, training=True),
            }
            return calls[kind], (x, weight, bias)

        yield from passes("norm", f"{kind} norm {shape}", make)

    images = (2, 4, 5, 5) if small else (64, 64, 56, 56)

    def evaluation(lib: Any, data: Data) -> Run:
        channels = images[1]
        x, mean, var = data.normal(*images), data.normal(channels), data.positive(channels)
        weight, bias = data.normal(channels), data.normal(channels)
        return lambda: lib.nn.functional.batch_norm(x, mean, var, weight, bias)

    yield Case("norm", f"batch norm {images}, evaluation", evaluation)


def reductions(small: bool) -> Iterator[Case]:
    vector, matrix = (length(small)[0],), (12, 20) if small else (2048, 512)
    for name, shape, reduce in (
        ("sum of all", vector, lambda _, x: x.sum()),
        ("sum of rows", matrix, lambda _, x: x.sum(1)),
        ("sum of columns", matrix, lambda _, x: x.sum(0)),
        ("sum over N, H, W", (2, 3, 4, 4) if small else (32, 64, 28, 28), lambda _, x: x.sum((0, 2, 3))),
        ("mean of all", vector, lambda _, x: x.mean()),
        ("variance of rows", matrix, lambda _, x: x.var(1)),
        ("norm", vector, lambda lib, x: (x * x).sum().sqrt()),
        ("max of all", vector, lambda _, x: x.max()),
        ("max of rows", matrix, lambda lib, x: lib.amax(x, 1)),
    ):

        def make(lib, data, shape=shape, reduce=reduce):
            x = data.normal(*shape, grad=True)
            return lambda: reduce(lib, x), (x,)

        yield from passes("reduction", f"{name}, {shape}", make)

    def argmax(lib: Any, data: Data) -> Run:
        x = data.normal(*matrix)
        return lambda: x.argmax(1)

    def cumsum(lib: Any, data: Data) -> Run:
        x = data.normal(*matrix)
        return lambda: lib.cumsum(x, 1)

    yield Case("reduction", f"argmax of rows, {matrix}", argmax)
    yield Case("reduction", f"cumsum of rows, {matrix}", cumsum)


def losses(small: bool) -> Iterator[Case]:
    n, told = length(small)
    for N, classes in [(12, 10)] if small else [(128, 10), (2048, 65), (4096, 1000)]:

        def make(lib, data, N=N, classes=classes):
            x, target = data.normal(N, classes, grad=True), data.integers(classes, N)
            return lambda: lib.nn.functional.cross_entropy(x, target), (x,)

        yield from passes("loss", f"cross_entropy ({N}, {classes})", make)
    for name in ("mse_loss", "l1_loss", "binary_cross_entropy_with_logits"):

        def elementwise_loss(lib, data, name=name):
            x, target = data.normal(n, grad=True), data.lib.sigmoid(data.normal(n))
            return lambda: getattr(lib.nn.functional, name)(x, target), (x,)

        yield from passes("loss", f"{name}, {told}", elementwise_loss)


def dropouts(small: bool) -> Iterator[Case]:
    shape, (n, told) = (2, 3, 4, 4) if small else (64, 64, 28, 28), length(small)

    def make(lib: Any, data: Data) -> tuple:
        x = data.normal(*shape, grad=True)
        return lambda: lib.nn.functional.dropout(x, 0.5, training=True), (x,)

    yield from passes("random", f"dropout {shape}", make, random=True)
    for name in ("rand", "randn"):
        yield Case(
            "random",
            f"{name}, {told}",
            lambda lib, data, name=name: lambda: getattr(lib, name)(n, device=data.device),
            random=True,
        )


# ---- optimizers, embedding, recurrence, attention ----------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any, Any], Any]] = {
    "SGD": lambda lib, p: lib.optim.SGD(p, lr=1e-3),
    "SGD with momentum": lambda lib, p: lib.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda lib, p: lib.optim.Adam(p),
    "AdamW": lambda lib, p: lib.optim.AdamW(p),
    "Adam (PyTorch: fused=True)": lambda lib, p: lib.optim.Adam(
        p, **({"fused": True} if lib.__name__ == "torch" else {})
    ),
}


def optimizers(small: bool) -> Iterator[Case]:
    sets = {"1M": [(MILLION,)], "20 parameters of ResNet-20": [(32, 32, 3, 3), (32,)] * 10}
    if small:
        sets = {"4 parameters": [(4, 4, 3, 3), (4,)] * 2}
    for name, make in OPTIMIZERS.items():
        for size, shapes in sets.items():

            def build(lib, data, make=make, shapes=shapes):
                parameters = [data.normal(*shape, grad=True) for shape in shapes]
                for parameter in parameters:
                    parameter.grad = data.normal(*parameter.shape)
                optimizer = make(lib, parameters)

                def run() -> list:
                    optimizer.step()
                    return parameters

                return run

            yield Case("optimizer", f"{name}, {size}", build)

    count, channels = (4, 4) if small else (20, 64)

    def clip(lib: Any, data: Data) -> Run:
        parameters = [data.normal(channels, channels, 3, 3, grad=True) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = data.normal(*parameter.shape)
        return lambda: lib.nn.utils.clip_grad_norm_(parameters, 1e9)

    yield Case("optimizer", f"clip_grad_norm_, {count} parameters", clip)


def embeddings(small: bool) -> Iterator[Case]:
    tables = [(9, 20, (2, 3))] if small else [(65, 128, (32, 64)), (30000, 256, (32, 64))]
    for count, size, tokens in tables:

        def make(lib, data, count=count, size=size, tokens=tokens):
            weight, index = data.normal(count, size, grad=True), data.integers(count, *tokens)
            return lambda: lib.nn.functional.embedding(index, weight), (weight,)

        yield from passes("embedding", f"{count}x{size}, {math.prod(tokens)} tokens", make)


def recurrences(small: bool) -> Iterator[Case]:
    usual, large, short = (64, 32, 65, 128, 1), (64, 32, 128, 256, 2), (16, 1, 32, 32, 1)
    for kind, sizes in {"LSTM": (usual, large, short), "GRU": (usual, short), "RNN": (usual, short)}.items():
        for T, N, inputs, hidden, layers in [(3, 2, 5, 6, 2)] if small else sizes:

            def make(lib, data, kind=kind, T=T, N=N, inputs=inputs, hidden=hidden, layers=layers):
                module = data.fill(getattr(lib.nn, kind)(inputs, hidden, layers))
                x = data.normal(T, N, inputs, grad=True)
                return lambda: module(x)[0], (x, *module.parameters())

            yield from passes(kind, f"T={T}, N={N}, {inputs} -> {hidden}, {layers} layers", make)


def attentions(small: bool) -> Iterator[Case]:
    shapes = [(8, 4, 128, 32, True), (8, 4, 512, 64, True), (8, 4, 512, 64, False)]
    for B, heads, T, D, causal in [(1, 2, 9, 8, True)] if small else shapes:

        def make(lib, data, shape=(B, heads, T, D), causal=causal):
            q, k, v = (data.normal(*shape, grad=True) for _ in range(3))
            attend = lib.nn.functional.scaled_dot_product_attention
            return lambda: attend(q, k, v, is_causal=causal), (q, k, v)

        name = f"{B}x{heads} heads, T={T}, D={D}{', causal' if causal else ''}"
        yield from passes("attention", name, make)


# ---- overhead and training ---------------------------------------------------------------------------------

CHAIN = 100
CHAINS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x * y": lambda _, x, y: x * y,
    "x + y": lambda _, x, y: x + y,
    "-x": lambda _, x, y: -x,
    "relu": lambda lib, x, y: lib.relu(x),
    "x @ w": lambda _, x, y: x @ y,
}


def overheads(small: bool) -> Iterator[Case]:
    for name, function in CHAINS.items():
        if small and name != "x * y":
            continue

        def make(lib, data, function=function, leaves=1 if name in ("-x", "relu") else 2):
            x, y = data.normal(4, 4, grad=True), data.normal(4, 4, grad=True)
            with lib.no_grad():
                y *= 0.25

            def chain() -> Any:
                out = x
                for _ in range(CHAIN):
                    out = function(lib, out, y)
                return out

            return chain, (x, y)[:leaves]

        yield from passes("overhead", f"{CHAIN} times {name} on 4x4", make)


def training_steps(small: bool) -> Iterator[Case]:
    for name, build in (networks.SMALL_STEPS if small else networks.STEPS).items():
        yield Case("training step", name, build)
