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


def cases() -> Iterator[Case]:
    """All rows, in the order of the table."""
    for family in (
        *(matmuls, convolutions, poolings, elementwise, broadcasts, softmaxes, norms, reductions, losses),
        *(dropouts, optimizers, embeddings, recurrences, attentions, overheads, training_steps),
    ):
        yield from family()


# ---- matrix products ---------------------------------------------------------------------------------------


def matmuls() -> Iterator[Case]:
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


def poolings() -> Iterator[Case]:
    for kind, N, C, size, kernel, stride, padding in (
        *(("max", 32, 64, 56, 2, 2, 0), ("max", 8, 64, 112, 3, 2, 1), ("max", 32, 64, 28, 3, 1, 1)),
        *(("max", 128, 32, 28, 2, 2, 0), ("max", 32, 64, 27, 2, 2, 0)),
        *(("avg", 32, 64, 56, 2, 2, 0), ("avg", 32, 64, 28, 3, 1, 1), ("avg", 32, 64, 55, 3, 2, 1)),
    ):

        def make(lib, data, kind=kind, shape=(N, C, size, size), options=(kernel, stride, padding)):
            x = data.normal(*shape, grad=True)
            pool = getattr(lib.nn.functional, f"{kind}_pool2d")
            return lambda: pool(x, *options), (x,)

        name = f"{kind} {kernel}x{kernel}/{stride}{' padded' if padding else ''}, {N}x{C}x{size}^2"
        yield from passes("pooling", name, make)

    def adaptive(lib: Any, data: Data) -> tuple:
        x = data.normal(32, 512, 7, 7, grad=True)
        return lambda: lib.nn.functional.adaptive_avg_pool2d(x, 1), (x,)

    yield from passes("pooling", "global average, 32x512x7^2", adaptive)


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


def elementwise() -> Iterator[Case]:
    for names, draw in ((UNARY, Data.normal), (OF_POSITIVE, Data.positive)):
        for name, function in names.items():

            def unary(lib, data, function=function, draw=draw):
                x = draw(data, MILLION, grad=True)
                return lambda: function(lib, x), (x,)

            yield from passes("elementwise", f"{name}, 1M", unary)
    for name, function in BINARY.items():

        def binary(lib, data, function=function):
            x, y = data.positive(MILLION, grad=True), data.positive(MILLION, grad=True)
            return lambda: function(lib, x, y), (x, y)

        yield from passes("elementwise", f"{name}, 1M", binary)

    def large(lib: Any, data: Data) -> tuple:
        x = data.normal(16 * MILLION, grad=True)
        return lambda: lib.nn.functional.relu(x), (x,)

    def small(lib: Any, data: Data) -> tuple:
        x, y = data.normal(4096, grad=True), data.normal(4096, grad=True)
        return lambda: x * y + x, (x, y)

    yield from passes("elementwise", "relu, 16M", large)
    yield from passes("elementwise", "x * y + x, 4096", small)
    yield Case("elementwise", "x += y, 1M", in_place)


def in_place(lib: Any, data: Data) -> Run:
    x, y = data.normal(MILLION), data.normal(MILLION) * 1e-6

    def run() -> None:
        nonlocal x
        x += y

    return run


def broadcasts() -> Iterator[Case]:
    for name, shapes in {
        "row": ((2048, 512), (512,)),
        "column": ((2048, 512), (2048, 1)),
        "channels": ((32, 64, 28, 28), (64, 1, 1)),
        "outer": ((1024, 1), (1, 1024)),
    }.items():

        def make(lib, data, shapes=shapes):
            x, y = (data.normal(*shape, grad=True) for shape in shapes)
            return lambda: x * y, (x, y)

        yield from passes("elementwise", f"x * y, y a {name}" if name != "outer" else "outer product", make)

    def copy(lib: Any, data: Data) -> Run:
        x = data.normal(1024, 1024).transpose(0, 1)
        return lambda: x.contiguous()

    def transposed(lib: Any, data: Data) -> Run:
        x, y = data.normal(1024, 1024).transpose(0, 1), data.normal(1024, 1024)
        return lambda: x + y

    yield Case("elementwise", "copy of a transposed matrix", copy)
    yield Case("elementwise", "x + y, x transposed", transposed)


# ---- softmax, norms, reductions, losses, dropout -----------------------------------------------------------


def softmaxes() -> Iterator[Case]:
    for shape, dim in (((128, 10), -1), ((4096, 1000), -1), ((32, 4, 128, 128), -1), ((64, 100, 28, 28), 1)):
        for name in ("softmax", "log_softmax"):

            def make(lib, data, name=name, shape=shape, dim=dim):
                x = data.normal(*shape, grad=True)
                return lambda: getattr(lib.nn.functional, name)(x, dim=dim), (x,)

            if name == "softmax" or dim == -1:
                yield from passes("softmax", f"{name} {shape}, dim {dim}", make)


def norms() -> Iterator[Case]:
    for kind, shape in (
        *(("layer", (4096, 768)), ("layer", (32, 128, 64)), ("group", (32, 64, 28, 28))),
        *(("batch", (128, 32, 28, 28)), ("batch", (64, 64, 56, 56)), ("batch", (128, 512))),
    ):

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

    def evaluation(lib: Any, data: Data) -> Run:
        x, mean, var = data.normal(64, 64, 56, 56), data.normal(64), data.positive(64)
        weight, bias = data.normal(64), data.normal(64)
        return lambda: lib.nn.functional.batch_norm(x, mean, var, weight, bias)

    yield Case("norm", "batch norm (64, 64, 56, 56), evaluation", evaluation)


def reductions() -> Iterator[Case]:
    for name, shape, reduce in (
        ("sum of all", (MILLION,), lambda _, x: x.sum()),
        ("sum of rows", (2048, 512), lambda _, x: x.sum(1)),
        ("sum of columns", (2048, 512), lambda _, x: x.sum(0)),
        ("sum over N, H, W", (32, 64, 28, 28), lambda _, x: x.sum((0, 2, 3))),
        ("mean of all", (MILLION,), lambda _, x: x.mean()),
        ("variance of rows", (2048, 512), lambda _, x: x.var(1)),
        ("norm", (MILLION,), lambda lib, x: (x * x).sum().sqrt()),
        ("max of all", (MILLION,), lambda _, x: x.max()),
        ("max of rows", (2048, 512), lambda lib, x: lib.amax(x, 1)),
    ):

        def make(lib, data, shape=shape, reduce=reduce):
            x = data.normal(*shape, grad=True)
            return lambda: reduce(lib, x), (x,)

        yield from passes("reduction", f"{name}, {shape}", make)

    def argmax(lib: Any, data: Data) -> Run:
        x = data.normal(2048, 512)
        return lambda: x.argmax(1)

    def cumsum(lib: Any, data: Data) -> Run:
        x = data.normal(2048, 512)
        return lambda: lib.cumsum(x, 1)

    yield Case("reduction", "argmax of rows, (2048, 512)", argmax)
    yield Case("reduction", "cumsum of rows, (2048, 512)", cumsum)


def losses() -> Iterator[Case]:
    for N, classes in ((128, 10), (2048, 65), (4096, 1000)):

        def make(lib, data, N=N, classes=classes):
            x, target = data.normal(N, classes, grad=True), data.integers(classes, N)
            return lambda: lib.nn.functional.cross_entropy(x, target), (x,)

        yield from passes("loss", f"cross_entropy ({N}, {classes})", make)
    for name in ("mse_loss", "l1_loss", "binary_cross_entropy_with_logits"):

        def elementwise_loss(lib, data, name=name):
            x, target = data.normal(MILLION, grad=True), data.lib.sigmoid(data.normal(MILLION))
            return lambda: getattr(lib.nn.functional, name)(x, target), (x,)

        yield from passes("loss", f"{name}, 1M", elementwise_loss)


def dropouts() -> Iterator[Case]:
    def make(lib: Any, data: Data) -> tuple:
        x = data.normal(64, 64, 28, 28, grad=True)
        return lambda: lib.nn.functional.dropout(x, 0.5, training=True), (x,)

    yield from passes("random", "dropout (64, 64, 28, 28)", make, random=True)
    for name in ("rand", "randn"):
        yield Case(
            "random",
            f"{name}, 1M",
            lambda lib, data, name=name: lambda: getattr(lib, name)(MILLION, device=data.device),
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


def optimizers() -> Iterator[Case]:
    sets = {"1M": [(MILLION,)], "20 parameters of ResNet-20": [(32, 32, 3, 3), (32,)] * 10}
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

    def clip(lib: Any, data: Data) -> Run:
        parameters = [data.normal(64, 64, 3, 3, grad=True) for _ in range(20)]
        for parameter in parameters:
            parameter.grad = data.normal(*parameter.shape)
        return lambda: lib.nn.utils.clip_grad_norm_(parameters, 1e9)

    yield Case("optimizer", "clip_grad_norm_, 20 parameters", clip)


def embeddings() -> Iterator[Case]:
    for count, size, tokens in ((65, 128, (32, 64)), (30000, 256, (32, 64))):

        def make(lib, data, count=count, size=size, tokens=tokens):
            weight, index = data.normal(count, size, grad=True), data.integers(count, *tokens)
            return lambda: lib.nn.functional.embedding(index, weight), (weight,)

        yield from passes("embedding", f"{count}x{size}, {math.prod(tokens)} tokens", make)


def recurrences() -> Iterator[Case]:
    usual, large, small = (64, 32, 65, 128, 1), (64, 32, 128, 256, 2), (16, 1, 32, 32, 1)
    for kind, sizes in {"LSTM": (usual, large, small), "GRU": (usual, small), "RNN": (usual, small)}.items():
        for T, N, inputs, hidden, layers in sizes:

            def make(lib, data, kind=kind, T=T, N=N, inputs=inputs, hidden=hidden, layers=layers):
                module = data.fill(getattr(lib.nn, kind)(inputs, hidden, layers))
                x = data.normal(T, N, inputs, grad=True)
                return lambda: module(x)[0], (x, *module.parameters())

            yield from passes(kind, f"T={T}, N={N}, {inputs} -> {hidden}, {layers} layers", make)


def attentions() -> Iterator[Case]:
    for B, heads, T, D, causal in ((8, 4, 128, 32, True), (8, 4, 512, 64, True), (8, 4, 512, 64, False)):

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


def overheads() -> Iterator[Case]:
    for name, function in CHAINS.items():

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


def training_steps() -> Iterator[Case]:
    for name, build in networks.STEPS.items():
        yield Case("training step", name, build)
