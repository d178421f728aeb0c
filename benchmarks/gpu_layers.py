"""Rows of ``gpu_vs_torch.py``: what stands between the products of a network, and its optimizer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from gpu_case import (
    FLOAT,
    Case,
    Shape,
    input_gradient,
    ours,
    rungs_that_take,
    torch_device,
    with_channels_last,
)

import minigrad as mg
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda
from minigrad.kernels.cuda import recurrent_cluster, recurrent_sequence
from minigrad.ops.attention import attention, attention_grad
from minigrad.ops.dropout import _dropout as dropout
from minigrad.ops.embedding import embedding_grad


def poolings(shape: Shape, device: str) -> Iterator[Case]:
    """2x2 at stride 2, forward, and forward with backward: by default, and with every rung.

    The one that is for channels last is given its tensors so, and so is PyTorch beside it.
    """
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

        def gradient(lib: Any, x: Any, g: Any, pool: Callable[..., Any] = pool) -> Any:
            return input_gradient(lambda x: pool(lib.nn.functional, x), x, g)

        rungs = [kernel.name for kernel in mg.list_kernels(names[1], device) if kernel.name != "planes"]
        for rung in (None, *rungs):
            call = with_channels_last(gradient) if rung == "channels_last" else gradient
            yield Case(
                f"{kind} pooling, forward + backward" + (f", {rung}" if rung else ""),
                size,
                (shape, pooled),
                functools.partial(call, mg),
                call,
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


def poolings_of_planes(shape: Shape) -> Iterator[Case]:
    """Each plane's average, which is one window of it; forward, and forward with backward."""
    window, pooled = shape[2:], (*shape[:2], 1, 1)

    def pool(lib: Any, x: Any) -> Any:
        return lib.nn.functional.avg_pool2d(x, window)

    def gradient(lib: Any, x: Any, g: Any) -> Any:
        return input_gradient(lambda x: pool(lib, x), x, g)

    size, forward = "x".join(map(str, shape)), FLOAT * (prod(shape) + prod(pooled))
    ops = ("avg_pool2d", "avg_pool2d_input_grad")
    for name, call, inputs, moved, op in (
        ("avg pooling of planes", pool, (shape,), forward, ops[0]),
        ("avg pooling of planes, forward + backward", gradient, (shape, pooled), 2 * forward, ops[1]),
    ):
        yield Case(f"{name}, planes", size, inputs, ours(call), call, 0.0, moved, (op,), "planes")


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
        yield Case(name, size, (shape,) * inputs, ours(call), call, 0.0, moved, ops.get(name, ()))
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
        yield Case(name, size, (shape,), ours(call), call, 0.0, FLOAT * (values + outputs))


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
            ours(step),
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
    theirs = functools.cache(lambda torch: torch.tensor(words, device=torch_device(device)))
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


def recurrent_rungs(gates: int, H: int, device: str) -> list[str | None]:
    """None, the default, and the rungs that a layer can run on, where there are two."""
    weight = mg.device(device).xp.empty((gates * H, H), np.float32)
    others = {"fused_sequence": recurrent_sequence, "fused_cluster": recurrent_cluster}
    able = [rung for rung, module in others.items() if module.takes(weight)]
    return [None, "fused_step", *able] if able else [None]


def recurrent_layers(T: int, N: int, E: int, H: int, device: str) -> Iterator[Case]:
    """A layer over a sequence, forward, and forward with backward, which gives all gradients.

    By default, and with each rung: of ``forward + backward``, of the gradient.
    """
    size = f"T={T} N={N} {E} -> {H}"
    kinds = ("LSTM", 4), ("GRU", 3), ("RNN", 1)
    rungs = [(*kind, rung) for kind in kinds for rung in recurrent_rungs(kind[1], H, device)]
    for name, gates, rung in rungs:
        layer = recurrent_layer(name, E, H)
        products = 2.0 * T * N * gates * H * (E + H)
        moved = FLOAT * (T * N * (E + H) + gates * H * (E + H + 2))
        told = f", {rung}" if rung else ""
        yield Case(
            name + told,
            size,
            ((T, N, E),),
            lambda x, layer=layer: layer(mg, x.dtype, x.device)(x)[0],
            lambda torch, x, layer=layer: layer(torch, x.dtype, x.device)(x)[0],
            products,
            moved,
            (name.lower(),),
            rung,
            steps=T,
        )
        yield Case(
            f"{name}, forward + backward{told}",
            size,
            ((T, N, E), (T, N, H)),
            lambda x, g, layer=layer: layer_gradient(layer(mg, x.dtype, x.device), x, g),
            lambda torch, x, g, layer=layer: layer_gradient(layer(torch, x.dtype, x.device), x, g),
            3 * products,
            3 * moved + 2 * FLOAT * T * N * gates * H,
            (f"{name.lower()}_grad",),
            rung,
            steps=2 * T,
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
    So does batch norm where a channel fits the shared memory of a cluster of blocks. By the rung ``split``
    it needs a channel's statistics before it can give one element, so it passes over memory three times
    where the floor has two, and its gradient, which needs two sums, five times where the floor has three.
    """
    groups = 2 if images[1] < 32 else 32
    calls = {
        "layer norm": (matrix, matrix[1], lambda F, x, w, b: F.layer_norm(x, w.shape, w, b)),
        "group norm": (images, images[1], lambda F, x, w, b: F.group_norm(x, groups, w, b)),
        "batch norm": (images, images[1], lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True)),
    }
    for name, rung in (*((name, None) for name in calls), ("batch norm", "split")):
        shape, channels, call = calls[name]
        op, told = name.replace(" ", "_"), f", {rung}" if rung else ""
        size, moved = "x".join(map(str, shape)), 2 * FLOAT * prod(shape)
        parameters = (channels,), (channels,)
        yield Case(
            name + told,
            size,
            (shape, *parameters),
            lambda x, w, b, call=call: call(mg.nn.functional, x, w, b),
            lambda torch, x, w, b, call=call: call(torch.nn.functional, x, w, b),
            0.0,
            moved,
            (op,),
            rung,
        )
        yield Case(
            f"{name}, forward + backward{told}",
            size,
            (shape, shape, *parameters),
            lambda x, g, w, b, call=call: normalized_gradient(call, mg.nn.functional, x, g, w, b),
            lambda torch, x, g, w, b, call=call: normalized_gradient(call, torch.nn.functional, x, g, w, b),
            0.0,
            2.5 * moved,  # x, y; then g, x, dx
            (f"{op}_grad", op) if rung else (op, f"{op}_grad"),
            rung,
        )


def normalized_gradient(call: Callable[..., Any], functional: Any, x: Any, g: Any, w: Any, b: Any) -> Any:
    """The gradient for ``x``; those for weight and bias are found, too."""
    w, b = (p.detach().requires_grad_() for p in (w, b))
    return input_gradient(lambda x: call(functional, x, w, b), x, g)


def cross_entropies(shape: Shape, device: str) -> Iterator[Case]:
    """The mean loss of logits, and its gradient, for random classes."""
    classes = np.random.default_rng(0).integers(0, shape[1], shape[0])
    ours = mg.tensor(classes, device=device)
    theirs = functools.cache(lambda torch: torch.tensor(classes, device=torch_device(device)))
    size, logits = "x".join(map(str, shape)), FLOAT * prod(shape)

    def our_loss(x: Any) -> Any:
        return mg.nn.functional.cross_entropy(x, ours)

    def their_loss(torch: Any, x: Any) -> Any:
        return torch.nn.functional.cross_entropy(x, theirs(torch))

    # PyTorch rounds the logarithms of probabilities, and their mean.
    yield Case(
        "cross-entropy", size, (shape,), our_loss, their_loss, 0.0, logits, ("cross_entropy",), torch_steps=2
    )
    yield Case(
        "cross-entropy, forward + backward",
        size,
        (shape,),
        lambda x: input_gradient(our_loss, x, None),
        lambda torch, x: input_gradient(lambda x: their_loss(torch, x), x, None),
        0.0,
        3 * logits,
        ("cross_entropy", "cross_entropy_grad"),
        torch_steps=2,
    )


def attend_causally(lib: Any, q: Any, k: Any, v: Any) -> Any:
    return lib.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def attentions(shape: Shape, call: Callable[..., Any] = attend_causally) -> Iterator[Case]:
    """Causal attention of (batch, heads, length, features), and the gradient of the queries.

    Where half of the scores are not needed, two products take length^2 features operations each; the
    gradients need five products of them.
    """
    operations, moved = 2.0 * prod(shape) * shape[2], 4 * FLOAT * prod(shape)

    def gradient(lib: Any, q: Any, k: Any, v: Any, g: Any) -> Any:
        k, v = (x.detach().requires_grad_() for x in (k, v))
        return input_gradient(lambda q: call(lib, q, k, v), q, g)

    size = "x".join(map(str, shape))
    yield Case("attention", size, (shape,) * 3, ours(call), call, operations, moved, ("attention",))
    yield Case(
        "attention, forward + backward",
        size,
        (shape,) * 4,
        ours(gradient),
        gradient,
        3.5 * operations,
        2 * moved,
        ("attention", "attention_grad"),
    )


def weighted_attentions(shape: Shape, device: str) -> Iterator[Case]:
    """Attention with a key-padding mask, and with dropout, and the gradients: all scores are computed.

    Of the sequences of a batch, the first has all its keys, and the last half of them.
    """
    batch, _, length, features = shape
    seen = (np.arange(length) < np.linspace(length, length // 2, batch)[:, None]).reshape(batch, 1, 1, length)
    mask = mg.tensor(seen, device=device)
    of_torch = functools.cache(lambda torch: torch.tensor(seen, device=torch_device(device)))

    def pad(lib: Any, q: Any, k: Any, v: Any) -> Any:
        attn_mask = mask if lib is mg else of_torch(lib)
        return lib.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask)

    def drop(lib: Any, q: Any, k: Any, v: Any) -> Any:
        if lib is mg:  # the same weights in every call
            return attention(q, k, v, None, scale=features**-0.5, dropout_p=0.1, seed=0, offset=0)[0]
        return lib.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)

    for how, call in (("padding", pad), ("dropout", drop)):
        for case in attentions(shape, call):
            name, operations = f"{case.name}, {how}", 2 * case.operations
            yield replace(case, name=name, operations=operations, random=call is drop)


def attentions_on_tensor_cores(shape: Shape, device: str) -> Iterator[Case]:
    """Attention of (batch, heads, length, features) in bfloat16, causal and not, and its gradients, by every
    rung of the device; PyTorch takes its flash attention. What is not causal takes twice the products."""
    modules = {"tensor_core": cuda.attention_tensor_core, "wgmma": cuda.attention_wgmma}
    there = mg.device(device).xp.empty(0, np.float32)
    rungs = [rung for rung, module in modules.items() if module.is_supported(there)]
    for is_causal, rung in itertools.product((False, True), rungs if BFLOAT16 else ()):

        def attend(lib: Any, q: Any, k: Any, v: Any, is_causal: bool = is_causal) -> Any:
            return lib.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

        for case in attentions(shape, attend):

            def by_rung(*inputs: Any, call: Any = case.ours, rung: str = rung) -> Any:
                with mg.use_kernel(attention_grad.name, rung, device):
                    return call(*inputs)

            yield replace(
                case,
                ours=by_rung,
                name=f"{case.name}, bfloat16, {'causal, ' * is_causal}{rung}",
                operations=case.operations * (1 if is_causal else 2),
                bytes=case.bytes / 2,
                rung=rung,
                format="bfloat16",
            )
