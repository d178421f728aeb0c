"""Launches every CUDA kernel once at small sizes, on a card or on the simulator, for a memory checker.

    compute-sanitizer --tool memcheck --error-exitcode 1 python benchmarks/gpu_every_kernel.py
    python benchmarks/gpu_every_kernel.py --device sim

Sizes are odd, so that the last block of each grid hangs over the end. Results are compared with NumPy's
references in float64. A kernel that no call here reaches is an error, and so is a wrong result. Of the
elementwise kernels, all generated from the same two texts, those in ``ELEMENTWISE`` stand for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gpu_cases import references

import minigrad as mg
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda
from minigrad.kernels.cuda.elementwise import Elementwise
from minigrad.kernels.launch import CudaKernel

FUNCTIONS = mg.nn.functional

CONVOLUTION = "conv2d conv2d_input_grad conv2d_weight_grad"

# Of one, two and three inputs, of numbers among them, and of bools in and out.
ELEMENTWISE = {"exp", "add", "clamp", "where", "lt", "relu", "relu_grad"}

# The calls that run on every rung of an op, and that op, or several.
LADDERS = {
    "matmul": "matmul",
    "matmul of whole vectors": "matmul",
    "matmul of a large batch": "matmul",
    "sums of rows": "sum",
    "largest of rows": "amax",
    "smallest of rows": "amin",
    "sums of columns": "sum",
    "softmax": "softmax",
    "softmax, gradient": "softmax_grad",
    "log_softmax": "log_softmax",
    "log_softmax, gradient": "log_softmax_grad",
    "batched matmul": "matmul",
    "conv2d": CONVOLUTION,
    "grouped conv2d": CONVOLUTION,
    "depthwise conv2d": CONVOLUTION,
    "conv2d of one channel": CONVOLUTION,
    "max_pool2d": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "max_pool2d of tiles": "max_pool2d",
    "avg_pool2d of tiles": "avg_pool2d",
    "dropout": "dropout",
    "embedding": "embedding",
    "embedding, gradient": "embedding_grad",
    "take_along_dim": "put_along_dim",
    "layer norm": "layer_norm",
    "layer norm, gradient": "layer_norm_grad",
    "group norm": "group_norm",
    "group norm, gradient": "group_norm_grad",
    "batch norm": "batch_norm",
    "batch norm, gradient": "batch_norm_grad",
    "cross-entropy": "cross_entropy",
    "cross-entropy, gradient": "cross_entropy_grad",
}


def calls() -> dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]]:
    """By name: a function of tensors, and the shapes of its inputs. The gradients run too."""
    image = (2, 4, 7, 9)
    normalized, images = ((5, 1061), (1061,), (1061,)), ((3, 6, 13, 15), (6,), (6,))
    of_vectors, images_of_vectors = ((5, 1064), (1064,), (1064,)), ((3, 6, 13, 16), (6,), (6,))
    small_images = ((19, 7, 2, 3), (7,), (7,))
    logits = ((7, 1061),)
    return {
        "matmul": (lambda a, b: a @ b, ((37, 41), (41, 35))),
        "batched matmul": (lambda a, b: a @ b.transpose(1, 2), ((3, 5, 33), (3, 7, 33))),
        "matmul of whole vectors": (lambda a, b: a @ b, ((36, 40), (40, 44))),
        "matmul with a vector": (lambda a, b: a @ b, ((37, 41), (41,))),
        "matmul with an aligned vector": (lambda a, b: a @ b, ((36, 40), (40,))),
        "matmul of an aligned vector": (lambda a, b: a @ b, ((40,), (40, 36))),
        "matmul of a long K": (lambda a, b: a @ b, ((5, 700), (700, 7))),
        "matmul of a large batch": (large_batch, ((132, 32, 4), (132, 4, 32))),
        "sums of rows": (lambda x: x.sum(1), ((3, 8200),)),
        "largest of rows": (lambda x: x.amax(1), ((3, 8200),)),
        "smallest of rows": (lambda x: x.amin(1), ((3, 8200),)),
        "sums of columns": (lambda x: x.sum((0, 2)), ((290, 3, 8),)),
        "extrema of columns": (lambda x: x.amax(0) + x.amin(0), ((290, 9),)),
        "softmax": (lambda x: FUNCTIONS.softmax(x, 1), logits),
        "softmax, gradient": (lambda x: FUNCTIONS.softmax(x, 1), logits),
        "log_softmax": (lambda x: FUNCTIONS.log_softmax(x, 1), logits),
        "log_softmax, gradient": (lambda x: FUNCTIONS.log_softmax(x, 1), logits),
        "elementwise": (elementwise, ((13, 37), (13, 37))),
        "elementwise on views": (lambda x, y: elementwise(x.T, y[:, 0]).T, ((13, 37), (13, 2))),
        "conv2d": (
            lambda x, w, b: FUNCTIONS.conv2d(x, w, b, 2, 1),
            ((1, 17, 4, 5), (18, 17, 3, 2), (18,)),
        ),
        "grouped conv2d": (
            lambda x, w: FUNCTIONS.conv2d(x, w, None, 1, 1, 1, 2),
            ((1, 34, 3, 2), (36, 17, 2, 1)),
        ),
        "depthwise conv2d": (
            lambda x, w: FUNCTIONS.conv2d(x, w, None, (2, 1), 1, 1, 4),
            (image, (8, 1, 3, 3)),
        ),
        "conv2d of large tiles": (large_tiles, ((1, 40, 3, 3), (72, 40, 1, 1), (40, 72, 3, 1))),
        "depthwise conv2d of small squares": (small_squares, ((8, 2, 9, 11), (2, 1, 3, 3), (4, 1, 5, 5))),
        # So many outputs that the sums of the weight's gradient are cut into parts.
        "conv2d of one channel": (
            lambda x, w: FUNCTIONS.conv2d(x, w),
            ((3, 1, 21, 22), (16, 1, 3, 3)),
        ),
        "max_pool2d": (lambda x: FUNCTIONS.max_pool2d(x, 3, 2, 1), (image,)),
        "max_pool2d of tiles": (lambda x: FUNCTIONS.max_pool2d(x, 3, 2, 1), ((1, 2, 13, 71),)),
        "avg_pool2d of tiles": (lambda x: FUNCTIONS.avg_pool2d(x, 3, 1, 1), ((1, 2, 7, 37),)),
        "max_pool2d of strips": (lambda x: strips(x, FUNCTIONS.max_pool2d), ((2, 2, 7, 8),)),
        "avg_pool2d of strips": (lambda x: strips(x, FUNCTIONS.avg_pool2d), ((2, 2, 7, 8),)),
        "large max_pool2d": (lambda x: FUNCTIONS.max_pool2d(x, (17, 16), 4), ((1, 2, 19, 21),)),
        "avg_pool2d": (lambda x: FUNCTIONS.avg_pool2d(x, 3, 2, 1), (image,)),
        "max_pool2d of squares": (lambda x: FUNCTIONS.max_pool2d(x, 2), ((2, 3, 6, 8),)),
        "max_pool2d of squares apart": (lambda x: FUNCTIONS.max_pool2d(x, 2, 3), ((2, 3, 8, 9),)),
        "avg_pool2d of squares": (lambda x: FUNCTIONS.avg_pool2d(x, 2), ((2, 3, 6, 8),)),
        "adaptive_avg_pool2d": (lambda x: FUNCTIONS.adaptive_avg_pool2d(x, (3, 4)), (image,)),
        "random numbers": (filled, ((13, 37),)),
        "transposed copies": (transposed, ((13, 37),)),
        "dropout": (lambda x: mg.get_op("dropout")(x, p=0.3, seed=1, offset=2), ((13, 37),)),
        "embedding": (lambda w: FUNCTIONS.embedding(indices(w, 41), w), ((9, 36),)),
        "embedding, gradient": (lambda w: FUNCTIONS.embedding(indices(w, 83), w), ((3, 130),)),
        "optimizers": (trained, ((13, 37), (13, 37))),
        "layer norm": (layer_norm, normalized),
        "layer norm, gradient": (layer_norm, normalized),
        "group norm": (lambda x, w, b: FUNCTIONS.group_norm(x, 1, w, b), images),
        "group norm, gradient": (lambda x, w, b: FUNCTIONS.group_norm(x, 1, w, b), images),
        "layer norm of few columns": (layer_norm, ((5, 61), (61,), (61,))),
        "layer norm of whole vectors": (layer_norm, of_vectors),
        "group norm of whole vectors": (lambda x, w, b: FUNCTIONS.group_norm(x, 2, w, b), images_of_vectors),
        "batch norm": (batch_norm, images),
        "batch norm, gradient": (batch_norm, images),
        "batch norm of whole vectors": (batch_norm, images_of_vectors),
        "batch norm of small images": (batch_norm, small_images),
        "batch norm, evaluation": (evaluated, images),
        "evaluation of whole vectors": (evaluated, images_of_vectors),
        "evaluation of small images": (evaluated, small_images),
        "cross-entropy": (lambda x: FUNCTIONS.cross_entropy(x, indices(x, 7)), logits),
        "cross-entropy, gradient": (lambda x: FUNCTIONS.cross_entropy(x, indices(x, 7)), logits),
        "attention": (attention, ((2, 5, 7), (2, 9, 7), (2, 9, 6))),
        "attention of 40 features": (attention, ((3, 40), (5, 40), (5, 3))),
        "attention of 65 features": (attention, ((3, 65), (5, 65), (5, 3))),
        "take_along_dim": (lambda x: mg.take_along_dim(x, indices(x, 11, 5), 0), ((7, 5),)),
        "losses of elements": (losses, ((13, 37), (13, 37))),
        "statistics of rows": (statistics, ((5, 61),)),
        **recurrent_layers(),
    }


def losses(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
    """Means of losses of elements, each of them, and losses of classes."""
    p, q, classes = x.sigmoid(), y.sigmoid(), indices(x, 13)
    of_numbers = FUNCTIONS.mse_loss, FUNCTIONS.l1_loss, FUNCTIONS.smooth_l1_loss
    found = sum(f(x, y) + f(x, y, reduction="none") for f in of_numbers)
    for f, a, b in (
        (FUNCTIONS.binary_cross_entropy, p, q),
        (FUNCTIONS.binary_cross_entropy_with_logits, x, q),
        (FUNCTIONS.kl_div, x, q),
        (functools.partial(FUNCTIONS.kl_div, log_target=True), x, y),
    ):
        found = found + f(a, b) + f(a, b, reduction="none")
    return found + FUNCTIONS.cross_entropy(x, classes) + FUNCTIONS.nll_loss(x, classes, y[0])


def statistics(x: mg.Tensor) -> mg.Tensor:
    """What more than a sum takes, of each row."""
    places = x.argmax(1, keepdim=True), x.argmin(1, keepdim=True)
    extrema = x.amax(1) + sum(mg.take_along_dim(x, place, 1).sum(1) for place in places)
    return x.var(1) + x.norm(dim=1) + x.logsumexp(1) + extrema + x.cumsum(1).sum(1) + x.cumsum(0).sum(1)


def recurrent_layers() -> dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]]:
    """Entries of :func:`calls`, for a batch of one row and of several."""
    lstm, gru, rnn = (mg.get_op(name) for name in ("lstm", "gru", "rnn"))
    found: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {}
    for rows in (1, 3):
        state = (rows, 5)
        weights = ((20, 4), (20, 5), (20,))
        found[f"lstm of {rows} rows"] = (lambda *x: lstm(*x)[0], ((2, rows, 4), state, state, *weights))
        found[f"gru of {rows} rows"] = (lambda *x: gru(*x)[0], ((2, rows, 15), state, (15, 5), (15,)))
        for name in ("tanh", "relu"):
            found[f"rnn of {rows} rows, {name}"] = (
                lambda *x, name=name: rnn(*x, nonlinearity=name),
                ((2, rows, 5), state, (5, 5)),
            )
    return found


def large_batch(a: mg.Tensor, b: mg.Tensor) -> mg.Tensor:
    """As many products as the large tiles of the register rungs wait for, without their gradients."""
    return a * b.transpose(1, 2) + (a.detach() @ b.detach()).sum()


def large_tiles(x: mg.Tensor, w: mg.Tensor, v: mg.Tensor) -> mg.Tensor:
    """Convolutions of more channels than 32, and than 64, at either end."""
    return FUNCTIONS.conv2d(FUNCTIONS.conv2d(x, w), v)


def small_squares(x: mg.Tensor, w3: mg.Tensor, w5: mg.Tensor) -> mg.Tensor:
    """Depthwise convolutions of 3x3 and 5x5, at strides of 1 and 2, one after the other."""
    x = FUNCTIONS.conv2d(FUNCTIONS.conv2d(x, w3, None, 1, 1, 1, 2), w3, None, 2, 1, 1, 2)
    return FUNCTIONS.conv2d(FUNCTIONS.conv2d(x, w5, None, 1, 2, 1, 2)[:, :2], w5, None, 2, 2, 1, 2)


def elementwise(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
    """The functions of ELEMENTWISE."""
    return mg.where(x < y, mg.exp(x), mg.clamp(x, -0.5, 0.5) + y) + FUNCTIONS.relu(x)


def attention(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor) -> mg.Tensor:
    """Each query sees the keys up to its own place."""
    return FUNCTIONS.scaled_dot_product_attention(q, k, v, is_causal=True)


def strips(x: mg.Tensor, pool: Callable[..., mg.Tensor]) -> mg.Tensor:
    """3x3 windows at both strides for which there is a kernel."""
    return pool(x, 3, 1, 1) * pool(x, 3, 2, 1).sum()


def both_strides(x: mg.Tensor, pool: Callable[..., mg.Tensor]) -> mg.Tensor:
    """The same as a sum, which is no larger than the input."""
    return pool(x, 3, 1, 1)[:, :, ::2, ::2] + pool(x, 3, 2, 1)


def layer_norm(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """Over the last axis."""
    return FUNCTIONS.layer_norm(x, weight.shape, weight, bias)


def batch_norm(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """With the batch's statistics; tanh, as the sum of the squares alone does not depend on ``x``."""
    running = (mg.ones(x.shape[1], dtype=x.dtype, device=x.device) for _ in range(2))
    return mg.tanh(FUNCTIONS.batch_norm(x, *running, weight, bias, training=True))


def evaluated(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """Batch norm with statistics from elsewhere."""
    return FUNCTIONS.batch_norm(x, bias.detach(), weight.detach() ** 2, weight, bias)


def filled(x: mg.Tensor) -> mg.Tensor:
    """``x``, after the kernels that write random numbers and live ones; others test what these are."""
    if x.device.type != "cpu":
        numbers = cuda.live.LiveNumbers(x.device.xp.zeros(3, np.uint64))
        numbers.add("ddd", lambda: (1.0, 2.0, 3.0))
        numbers.write()
        for kernel in ("uniform_naive", "uniform_block", "normal_naive", "normal_block"):
            getattr(cuda.random, kernel)(x.device.xp.empty(x.shape, x.dtype), 1, 2)
    return x * 1.0


def transposed(x: mg.Tensor) -> mg.Tensor:
    """``x``, after the kernels that transpose; others test what they give."""
    if x.device.type != "cpu":
        for dtype in (np.uint16, np.uint32, np.uint64):
            whole = x.device.xp.zeros((1, *x.shape), dtype)
            cuda.transpose.transpose(x.device.xp.empty_like(whole.swapaxes(1, 2), order="C"), whole)
    return x * 1.0


def trained(x: mg.Tensor, grad: mg.Tensor) -> mg.Tensor:
    """``x`` times ``grad``, plus what each optimizer makes of ``x`` in a step."""
    y = x * grad
    for make in (mg.optim.SGD, lambda params: mg.optim.SGD(params, momentum=0.9), mg.optim.AdamW):
        param = x.detach().clone()
        param.grad = grad.detach()
        make([param]).step()
        y = y + param
    return y


def indices(x: mg.Tensor, *shape: int) -> mg.Tensor:
    """Random numbers of the rows of ``x``, the same in every call."""
    return mg.tensor(np.random.default_rng(0).integers(0, x.shape[0], shape), device=x.device)


def run(function: Callable[..., Any], arrays: list[np.ndarray], device: str) -> list[np.ndarray]:
    """The result, the gradients of its squares' sum, and, of max pooling, a gradient's gradient."""
    tensors = [mg.tensor(a, device=device, requires_grad=True) for a in arrays]
    y = function(*tensors)
    first = mg.autograd.grad((y * y).sum(), tensors, create_graph=True)
    second = mg.autograd.grad(sum((g * g).sum() for g in first), tensors)
    return [t.detach().numpy() for t in (y, *first, *second)]


def worst_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest relative error, by norm; infinite where something is not finite."""
    errors = [
        np.linalg.norm(f - e) / (np.linalg.norm(e) or 1.0) for f, e in zip(found, expected, strict=True)
    ]
    return max(float(e) if np.isfinite(e) else float("inf") for e in errors)


def watch(launched: set[CudaKernel]) -> None:
    """Note every kernel that is loaded, as it is for its first launch, from now on."""
    name_instance = CudaKernel.instance

    def instance(self: CudaKernel, types: Any) -> str:
        launched.add(self)
        return name_instance(self, types)

    CudaKernel.instance = instance  # type: ignore[method-assign]


def kernels_in(value: Any) -> Iterator[CudaKernel]:
    """The kernels in a module's variable: one, a table of them or of tables, or a representative function."""
    if isinstance(value, CudaKernel):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from kernels_in(part)
    elif isinstance(value, Elementwise) and value.name in ELEMENTWISE:
        yield from value.kernels
        yield from value.half_kernels if BFLOAT16 else ()


# What a kernel's name ends with, and what makes its arrays of float32. Factors of -1, 0 and 1 have exact
# products and sums in all three. bfloat16 goes as its bits.
TENSOR_CORE_FORMATS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "tf32": ("", lambda x: x),
    "float16": ("", lambda x: x.astype(np.float16)),
    "bfloat16": ("_bfloat16", lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)),
}


def multiply_on_tensor_cores(rung: str, device: mg.Device) -> list[str]:
    """Run a rung of matmul in every format, on rows and on columns; returns what is wrong."""
    module, xp, rng, wrong = getattr(cuda, f"matmul_{rung}"), device.xp, np.random.default_rng(0), []
    a, b = (rng.integers(-1, 2, shape).astype(np.float32) for shape in ((37, 41), (41, 35)))
    for dtype, (suffix, encode) in TENSOR_CORE_FORMATS.items():
        run = getattr(module, rung + suffix)
        expected = encode(a @ b)
        right = True
        for a_order, b_order in itertools.product("CF", repeat=2):
            out = xp.empty(expected.shape, expected.dtype)
            run(out, xp.asarray(encode(a), order=a_order), xp.asarray(encode(b), order=b_order))
            right &= np.array_equal(out if xp is np else out.get(), expected)
        told = f"matmul {rung} {dtype}"
        print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
        if not right:
            wrong.append(told)
    return wrong


# The calls whose numbers float16 can hold.
UNSCALED = (
    "attention",
    "attention of 65 features",
    "elementwise",
    "elementwise on views",
    "cross-entropy",
    "dropout",
    "embedding",
    "avg_pool2d",
    "adaptive_avg_pool2d",
)


def calls_in_halves() -> dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]]:
    """As :func:`calls`, of what has kernels for floats of 16 bits, with numbers that float16 can hold."""
    known = calls()
    return {
        **{name: known[name] for name in UNSCALED},
        "softmax": (lambda x: FUNCTIONS.softmax(x, 1) * 64, ((7, 1061),)),
        "log_softmax": (lambda x: FUNCTIONS.log_softmax(x, 1) / 64, ((7, 1061),)),
        "sums of rows": (lambda x: x.sum(1) / 64, ((3, 8200),)),
        "max_pool2d of strips": (lambda x: both_strides(x, FUNCTIONS.max_pool2d), ((2, 2, 7, 16),)),
        "avg_pool2d of strips": (lambda x: both_strides(x, FUNCTIONS.avg_pool2d), ((2, 2, 7, 16),)),
        "sums of columns": (lambda x: x.sum((0, 2)) / 64, ((290, 3, 8),)),
    }


def convolve_on_tensor_cores(device: mg.Device) -> list[str]:
    """Run convolution and its gradients in every format and tile; returns what is wrong."""
    xp, rng, wrong = device.xp, np.random.default_rng(0), []
    forward, of_weight = cuda.conv2d_tensor_core, cuda.conv2d_tensor_core_weight_grad
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 1}
    numbers = *options["stride"], *options["padding"], *options["dilation"], options["groups"]
    for channels, tile in ((9, 64), (70, 128)):
        shapes = (1, channels, 5, 6), (channels, channels, 3, 2), (1, channels, 3, 5)
        x, w, g = (mg.tensor(rng.integers(-1, 2, shape).astype(np.float32)) for shape in shapes)
        expected = (
            mg.get_op("conv2d")(x, w, None, **options),
            mg.get_op("conv2d_input_grad")(g, w, input_size=(5, 6), **options),
            mg.get_op("conv2d_weight_grad")(g, x, kernel_size=(3, 2), **options),
        )
        pool = FUNCTIONS.max_pool2d(expected[0].relu(), 2)
        for name, (suffix, encode) in TENSOR_CORE_FORMATS.items():
            passes = (
                (functools.partial(getattr(forward, f"forward{suffix}"), tile=tile), (x, w), (None,)),
                (functools.partial(getattr(forward, f"input_grad{suffix}"), tile=tile), (g, w), ()),
                (getattr(of_weight, f"weight_grad{suffix}"), (g, x), ()),
            )
            right = True
            for (run, inputs, bias), result in zip(passes, expected, strict=True):
                bits = encode(result.numpy())
                out = xp.empty(bits.shape, bits.dtype)
                run(out, *(xp.asarray(encode(tensor.numpy())) for tensor in inputs), *bias, *numbers)
                right &= np.array_equal(out if xp is np else out.get(), bits)
            pooled, bits = getattr(forward, f"pooled{suffix}"), encode(pool.numpy())
            out, taps = xp.empty(bits.shape, bits.dtype), xp.empty(bits.shape, np.uint8)
            pooled((out, taps), *(xp.asarray(encode(t.numpy())) for t in (x, w)), None, *numbers, tile=tile)
            right &= np.array_equal(out if xp is np else out.get(), bits)
            told = f"conv2d tensor_core {name}, {channels} channels"
            print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
            wrong += [] if right else [told]
    return wrong


def convolve_pointwise(device: mg.Device) -> list[str]:
    """Run 1x1 convolution and its gradients in every format and tile; returns what is wrong."""
    xp, rng, wrong, options = device.xp, np.random.default_rng(0), [], (1, 1, 0, 0, 1, 1, 1)
    x, w, g = (
        rng.integers(-1, 2, shape).astype(np.float32) for shape in ((2, 9, 4, 4), (70, 9), (2, 70, 4, 4))
    )
    weight = w[:, :, None, None]
    passes = {
        "forward": ((x, weight, None), np.maximum(np.einsum("oc,nchw->nohw", w, x), 0)),
        "input_grad": ((g, weight), np.einsum("oc,nohw->nchw", w, g)),
        "weight_grad": ((g, x), np.einsum("nohw,nchw->oc", g, x)[:, :, None, None]),
    }
    for (name, (_, encode)), tile in itertools.product(TENSOR_CORE_FORMATS.items(), (64, 128)):
        if (name, tile) == ("tf32", 128):  # there is none
            continue
        for which, (inputs, expected) in passes.items():
            bits = encode(expected)
            out = xp.empty(bits.shape, bits.dtype)
            arrays = [a if a is None else xp.asarray(encode(a)) for a in inputs]
            relu = {"relu": True} if which == "forward" else {}
            getattr(cuda.conv2d_pointwise, which)(out, *arrays, *options, tile=tile, **relu)
            told = f"conv2d pointwise {which} {name}, {tile} rows"
            right = np.array_equal(out if xp is np else out.get(), bits)
            print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
            wrong += [] if right else [told]
    return wrong


def compute_in_halves(device: mg.Device) -> list[str]:
    """Run :func:`calls_in_halves`; returns the names of what is wrong."""
    wrong, rng, bounds = [], np.random.default_rng(0), {np.dtype(np.float16): 4e-3}
    if BFLOAT16:
        bounds[BFLOAT16] = 3e-2
    for name, (function, shapes) in calls_in_halves().items():
        for half, bound in bounds.items():
            inputs = [rng.standard_normal(shape).astype(half) for shape in shapes]
            expected = run(function, [a.astype(np.float64) for a in inputs], "cpu")
            found = [a.astype(np.float64) for a in run(function, inputs, str(device))]
            error = worst_error(found, expected)
            print(f"{name + ' ' + half.name:40} error {error:.1e}", flush=True)
            if not error < bound:
                wrong.append(f"{name} {half.name}")
    return wrong


def unscale_gradients(device: mg.Device) -> list[str]:
    """A step of a scaled loss; returns its name if it is wrong."""
    x = mg.ones(1061, device=device, requires_grad=True)
    optimizer, scaler = mg.optim.SGD([x], lr=1.0), mg.amp.GradScaler()
    scaler.scale((x * 0.5).sum()).backward()
    scaler.step(optimizer)
    right = bool((x.detach() == 0.5).all())
    print(f"{'scaled loss':40} {'exact' if right else 'wrong'}", flush=True)
    return [] if right else ["scaled loss"]


def step_many_parameters(device: mg.Device) -> list[str]:
    """Run ``optim_many.cu``, which the simulator's optimizers leave to ``optim.cu``, against that one."""
    xp, rng, wrong = device.xp, np.random.default_rng(0), []
    sgd, adam = (0.1, 0.0, 0.0, 0.01, False), (0.1, 0.9, 0.99, 1e-8, 0.01, True)
    momentum = (0.1, 0.9, 0.3, 0.01, False)
    for dtype in (np.float32, np.float64):
        drawn = [[np.abs(rng.standard_normal(n)).astype(dtype) for _ in range(4)] for n in (3, 2051)]
        for name, step, alone, states, flag, options in (
            ("sgd", cuda.optim_many.sgd_step, cuda.optim.sgd_step, 0, False, sgd),
            ("momentum", cuda.optim_many.sgd_step, cuda.optim.sgd_step, 1, False, momentum),
            ("adam", cuda.optim_many.adam_step, cuda.optim.adam_step, 2, 3, adam),
        ):
            arrays, others = ([[xp.array(a) for a in row] for row in drawn] for _ in range(2))
            columns = [list(column) for column in zip(*arrays, strict=True)][: 2 + states]
            for row in others:
                given = row[: 2 + states] if states else [*row[:2], None]
                alone(*given, *options, flag)
            step(*columns, *([] if states else [[None, None]]), [flag, flag], *options)
            found, expected = (
                [a if xp is np else a.get() for row in rows for a in row] for rows in (arrays, others)
            )
            error = worst_error(found, expected)
            told = f"{name} of many parameters {np.dtype(dtype).name}"
            print(f"{told:40} error {error:.1e}", flush=True)
            if not error < 10 * np.finfo(dtype).eps:
                wrong.append(told)
        wrong += clip_many_gradients(device, [row[1] for row in drawn])
    return wrong


def clip_many_gradients(device: mg.Device, grads: list[np.ndarray]) -> list[str]:
    """``grads`` clipped to half of their norm."""
    xp, eps = device.xp, np.finfo(grads[0].dtype).eps
    norm = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for grad in grads))
    given = [xp.array(grad) for grad in grads]
    total = cuda.optim_many.clip(given, cuda.optim_many.squares(given), norm / 2)
    found = [a if xp is np else a.get() for a in (total, *given)]
    error = worst_error(found, [norm, *(grad * (norm / 2 / (norm + 1e-6)) for grad in grads)])
    told = f"the norm of many gradients {grads[0].dtype.name}"
    print(f"{told:40} error {error:.1e}", flush=True)
    return [] if error < 50 * eps else [told]


def look_for_wrong_indices(device: mg.Device) -> list[str]:
    """Run ``index_check.cu``, with and without a wrong index among 300."""
    xp, right, found = device.xp, cuda.index_check.RIGHT, []
    indices = np.arange(300)
    for size in (300, 299):
        wrong = xp.asarray(np.array([right]).view(np.uint64))
        cuda.index_check.look(wrong, xp.asarray(indices), size)
        found.append(int((wrong if xp is np else wrong.get()).view(np.int64)[0]))
    replaced = xp.empty(300, np.int64)
    cuda.index_check.replace(xp.zeros(1, np.uint64), replaced, xp.asarray(indices), 299, -100)
    found.append(int(replaced[299]))
    outside = xp.zeros(1, np.uint64)
    cuda.index_check.look_outside(outside, xp.linspace(0, 1.001, 300), 0.0, 1.0)
    found.append(int(outside[0]))
    print(f"{'wrong indices':40} {found}", flush=True)
    return [] if found == [right, 299, -100, 299] else ["wrong indices"]


def multiply_in_every_tiling(device: mg.Device) -> list[str]:
    """Run every instance of ``matmul_warp_tile.cu`` on integers; returns the names of what is wrong."""
    warp_tile, xp, rng, wrong = cuda.matmul_warp_tile, device.xp, np.random.default_rng(0), []
    a, b = (rng.integers(-1, 2, (69, 69)).astype(np.float32) for _ in range(2))
    for kernels, size in ((warp_tile.OF_VECTORS, 68), (warp_tile.OF_ELEMENTS, 69)):
        left, right = xp.asarray(a[:size, :size].copy()), xp.asarray(b[:size, :size].copy())
        for tiling, kernel in kernels.items():
            out = xp.empty((size, size), np.float32)
            warp_tile.warp_tile(out, left, right, tiling=tiling)
            exact = np.array_equal(out if xp is np else out.get(), a[:size, :size] @ b[:size, :size])
            print(f"{kernel.expression:40} {'exact' if exact else 'wrong'}", flush=True)
            if not exact:
                wrong.append(kernel.expression)
    return wrong


def check(name: str, function: Callable[..., Any], arrays: list[np.ndarray], device: mg.Device) -> list[str]:
    """Run one entry of :func:`calls` on every rung and in both dtypes; returns the names of what is wrong."""
    wrong = []
    kernels = [kernel for op in LADDERS.get(name, "").split() for kernel in mg.list_kernels(op, device.type)]
    rungs = list(dict.fromkeys(kernel.name for kernel in kernels)) or [""]
    for dtype, bound in ((np.float32, 1e-4), (np.float64, 1e-12)):
        # The reference sees the rounded inputs: max pooling may choose otherwise among the others.
        inputs = [a.astype(dtype) for a in arrays]
        with references("cpu"):
            expected = run(function, [a.astype(np.float64) for a in inputs], "cpu")
        for rung in rungs:
            with contextlib.ExitStack() as selected:
                for op in {kernel.op for kernel in kernels if kernel.name == rung}:
                    selected.enter_context(mg.use_kernel(op, rung, device.type))
                error = worst_error(run(function, inputs, str(device)), expected)
            told = " ".join(filter(None, (name, rung, np.dtype(dtype).name)))
            print(f"{told:40} error {error:.1e}", flush=True)
            if not error < bound:
                wrong.append(told)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ... or sim")
    options = parser.parse_args()
    try:
        device = mg.device(options.device)
    except mg.errors.DeviceError as error:
        print(error, file=sys.stderr)
        return 2

    if device.type == "cuda":
        # Without CuPy's pool every array is an allocation of its own, so that a checker sees where it ends.
        device.xp.cuda.set_allocator(None)
    rng, launched, wrong = np.random.default_rng(0), set(), []
    watch(launched)
    for name, (function, shapes) in calls().items():
        wrong += check(name, function, [rng.standard_normal(shape) for shape in shapes], device)

    wrong += compute_in_halves(device) + unscale_gradients(device)
    wrong += step_many_parameters(device) + look_for_wrong_indices(device)
    wrong += multiply_in_every_tiling(device)
    modules = set(cuda.MODULES)
    for rung in ("tensor_core", "wgmma"):
        if getattr(cuda, f"matmul_{rung}").is_supported(device.xp.empty(0)):
            wrong += multiply_on_tensor_cores(rung, device)
        else:
            print(f"{device} does not have the tensor cores that matmul_{rung} is for")
            modules.remove(f"matmul_{rung}")
    if cuda.conv2d_tensor_core.is_supported(device.xp.empty(0)):
        wrong += convolve_on_tensor_cores(device) + convolve_pointwise(device)
    else:
        print(f"{device} does not have the tensor cores that conv2d_tensor_core is for")
        modules -= {"conv2d_tensor_core", "conv2d_tensor_core_weight_grad", "conv2d_pointwise"}
    variables = [value for module in modules for value in vars(getattr(cuda, module)).values()]
    there = {kernel for value in variables for kernel in kernels_in(value)}
    missed = sorted(kernel.expression for kernel in there - launched)
    for what, names in (("wrong", wrong), ("never launched", missed)):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    print(f"{len(there) - len(missed)} of {len(there)} kernels launched on {device}")
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
