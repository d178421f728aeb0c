"""The calls of ``gpu_every_kernel.py``: functions of tensors, and the shapes of their inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.kernels import cuda
from minigrad.ops.resample import resample

FUNCTIONS = mg.nn.functional

CONVOLUTION = "conv2d conv2d_input_grad conv2d_weight_grad"

BATCHES = (1, 67)  # of recurrent layers: a row of a batch has blocks of its own, or shares them

FEW_ROWS = tuple(product((7, 12), (40, 41), ("", ", transposed")))  # of whole vectors, and of none

# The calls that run on every rung of an op, and that op, or several.
LADDERS = {
    "matmul": "matmul",
    "matmul of whole vectors": "matmul",
    "matmul of a large batch": "matmul",
    **{f"matmul of {rows} rows, K = {K}{turned}": "matmul" for rows, K, turned in FEW_ROWS},
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
    "max_pool2d": "max_pool2d max_pool2d_input_grad",
    "avg_pool2d": "avg_pool2d avg_pool2d_input_grad",
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
    "batch norm of whole vectors": "batch_norm batch_norm_grad",
    "cross-entropy": "cross_entropy",
    "cross-entropy, gradient": "cross_entropy_grad",
    "smoothed cross-entropy": "cross_entropy",
    "smoothed cross-entropy, gradient": "cross_entropy_grad",
    **{f"{name} of {rows} rows": f"{name} {name}_grad" for name in ("lstm", "gru") for rows in BATCHES},
    **{f"rnn of {rows} rows, {name}": "rnn rnn_grad" for name in ("tanh", "relu") for rows in BATCHES},
}


def calls() -> dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]]:
    """By name: a function of tensors, and the shapes of its inputs. The gradients run too."""
    image = (2, 4, 7, 9)
    normalized, images = ((5, 1061), (1061,), (1061,)), ((3, 6, 13, 15), (6,), (6,))
    of_vectors, images_of_vectors = ((5, 1064), (1064,), (1064,)), ((3, 6, 13, 16), (6,), (6,))
    small_images = ((19, 7, 2, 3), (7,), (7,))
    logits = ((7, 1061),)
    other_images = (2, 2, 7, 8), (2, 2, 7, 9)
    return {
        "matmul": (lambda a, b: a @ b, ((37, 41), (41, 35))),
        "batched matmul": (lambda a, b: a @ b.transpose(1, 2), ((3, 5, 33), (3, 7, 33))),
        "matmul of whole vectors": (lambda a, b: a @ b, ((36, 40), (40, 44))),
        "matmul with a vector": (lambda a, b: a @ b, ((37, 41), (41,))),
        "matmul with an aligned vector": (lambda a, b: a @ b, ((36, 40), (40,))),
        "matmul of an aligned vector": (lambda a, b: a @ b, ((40,), (40, 36))),
        "matmul of a long K": (lambda a, b: a @ b, ((5, 700), (700, 7))),
        **{
            f"matmul of {rows} rows, K = {K}{turned}": (
                (lambda a, b: a @ b.transpose(0, 1)) if turned else (lambda a, b: a @ b),
                ((rows, K), (K - 4, K) if turned else (K, K - 4)),
            )
            for rows, K, turned in FEW_ROWS
        },
        "matmul of a large batch": (large_batch, ((132, 32, 4), (132, 4, 32))),
        "sums of rows": (lambda x: x.sum(1), ((3, 16400),)),
        "largest of rows": (lambda x: x.amax(1), ((3, 16400),)),
        "smallest of rows": (lambda x: x.amin(1), ((3, 16400),)),
        "sums of columns": (lambda x: x.sum((0, 2)), ((290, 3, 8),)),
        "extrema of columns": (lambda x: x.amax(0) + x.amin(0), ((290, 9),)),
        "softmax": (lambda x: FUNCTIONS.softmax(x, 1), logits),
        "softmax of short rows": (lambda *x: of_rows(FUNCTIONS.softmax, *x), ((37, 301), (37, 41))),
        "log_softmax of short rows": (lambda *x: of_rows(FUNCTIONS.log_softmax, *x), ((37, 301), (37, 41))),
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
        "depthwise conv2d of small squares": (small_squares, ((8, 2, 9, 11), (4, 1, 3, 3), (4, 1, 5, 5))),
        "depthwise conv2d of whole vectors": (small_squares, ((8, 2, 5, 24), (4, 1, 3, 3), (4, 1, 5, 5))),
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
        "max_pool2d of other strips": (lambda x: strips(x, FUNCTIONS.max_pool2d), ((2, 2, 7, 9),)),
        "avg_pool2d of other strips": (lambda x: strips(x, FUNCTIONS.avg_pool2d), ((2, 2, 7, 9),)),
        "max_pool2d of other windows": (lambda *x: other_windows(FUNCTIONS.max_pool2d, *x), other_images),
        "avg_pool2d of other windows": (lambda *x: other_windows(FUNCTIONS.avg_pool2d, *x), other_images),
        "means of planes": (lambda x: FUNCTIONS.adaptive_avg_pool2d(x, 1), (image,)),
        "large max_pool2d": (lambda x: FUNCTIONS.max_pool2d(x, (17, 16), 4), ((1, 2, 19, 21),)),
        "avg_pool2d": (lambda x: FUNCTIONS.avg_pool2d(x, 3, 2, 1), (image,)),
        "max_pool2d of squares": (lambda x: FUNCTIONS.max_pool2d(x, 2), ((2, 3, 6, 8),)),
        "max_pool2d of squares apart": (lambda x: FUNCTIONS.max_pool2d(x, 2, 3), ((2, 3, 8, 9),)),
        "avg_pool2d of squares": (lambda x: FUNCTIONS.avg_pool2d(x, 2), ((2, 3, 6, 8),)),
        "adaptive_avg_pool2d": (lambda x: FUNCTIONS.adaptive_avg_pool2d(x, (3, 4)), (image,)),
        "pooling of channels last": (pooled_last, ((2, 3, 6, 8), (2, 8, 6, 8))),
        "random numbers": (filled, ((13, 37),)),
        "transposed copies": (transposed, ((13, 37),)),
        "parts of a weight's gradient": (parts_added, ((13, 37),)),
        "dropout": (lambda x: mg.get_op("dropout")(x, p=0.3, seed=1, offset=2), ((13, 37),)),
        "embedding": (lambda w: FUNCTIONS.embedding(indices(w, 41), w), ((9, 36),)),
        "embedding, gradient": (lambda w: FUNCTIONS.embedding(indices(w, 300), w), ((3, 130),)),
        "optimizers": (trained, ((13, 37), (13, 37))),
        "layer norm": (layer_norm, normalized),
        "layer norm, gradient": (layer_norm, normalized),
        "group norm": (lambda x, w, b: FUNCTIONS.group_norm(x, 1, w, b), images),
        "group norm, gradient": (lambda x, w, b: FUNCTIONS.group_norm(x, 1, w, b), images),
        "layer norm of few columns": (layer_norm, ((5, 61), (61,), (61,))),
        "layer norm of more columns": (layer_norm, ((5, 91), (91,), (91,))),
        "layer norm of few vectors": (layer_norm, ((5, 64), (64,), (64,))),
        "layer norm of whole vectors": (layer_norm, of_vectors),
        "group norm of whole vectors": (lambda x, w, b: FUNCTIONS.group_norm(x, 2, w, b), images_of_vectors),
        "batch norm": (batch_norm, images),
        "batch norm, gradient": (batch_norm, images),
        "batch norm of whole vectors": (batch_norm, images_of_vectors),
        "batch norm of features": (batch_norm, ((19, 7), (7,), (7,))),
        "batch norm of features in vectors": (batch_norm, ((19, 8), (8,), (8,))),
        "batch norm of small images": (batch_norm, small_images),
        "batch norm of small images in vectors": (batch_norm, ((19, 8, 2, 3), (8,), (8,))),
        "batch norm, evaluation": (evaluated, images),
        "evaluation of whole vectors": (evaluated, images_of_vectors),
        "evaluation of small images": (evaluated, small_images),
        "cross-entropy": (lambda x: FUNCTIONS.cross_entropy(x, indices(x, 7)), logits),
        "cross-entropy of short rows": (lambda x: FUNCTIONS.cross_entropy(x, indices(x, 7)), ((7, 41),)),
        "smoothed cross-entropy of short rows": (smoothed_cross_entropy, ((7, 41),)),
        "cross-entropy, gradient": (lambda x: FUNCTIONS.cross_entropy(x, indices(x, 7)), logits),
        "smoothed cross-entropy": (smoothed_cross_entropy, logits),
        "smoothed cross-entropy, gradient": (smoothed_cross_entropy, logits),
        "attention": (attention, ((2, 5, 7), (2, 9, 7), (2, 9, 6))),
        "attention of 40 features": (attention, ((3, 40), (5, 40), (5, 8))),
        "attention of 65 features": (attention, ((3, 65), (5, 65), (5, 3))),
        "take_along_dim": (lambda x: mg.take_along_dim(x, indices(x, 11, 5), 0), ((7, 5),)),
        "losses of elements": (losses, ((13, 37), (13, 37))),
        "statistics of rows": (statistics, ((5, 61),)),
        "images seen through maps": (seen_through_maps, ((3, 2, 7, 9),)),
        **recurrent_layers(),
    }


def smoothed_cross_entropy(x: mg.Tensor) -> mg.Tensor:
    return FUNCTIONS.cross_entropy(x, indices(x, 7), x[0].detach().abs(), label_smoothing=0.1)


def losses(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
    """Means of losses of elements, each of them, and losses of classes."""
    p, q, classes = x.sigmoid(), y.sigmoid(), indices(x, 13)
    of_numbers = FUNCTIONS.mse_loss, FUNCTIONS.l1_loss, FUNCTIONS.smooth_l1_loss
    found = sum(f(x, y) + f(x, y, reduction="none") for f in of_numbers)
    for f, a, b in (
        (FUNCTIONS.binary_cross_entropy, p, q),
        (FUNCTIONS.binary_cross_entropy_with_logits, x, q),
        (functools.partial(FUNCTIONS.binary_cross_entropy_with_logits, pos_weight=1 + q[0].detach()), x, q),
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
    """Entries of :func:`calls`, for each of BATCHES."""
    lstm, gru, rnn = (mg.get_op(name) for name in ("lstm", "gru", "rnn"))
    found: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {}
    for rows in BATCHES:
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


def small_squares(x: mg.Tensor, *weights: mg.Tensor) -> mg.Tensor:
    """Depthwise convolutions of 3x3 and 5x5, of two outputs a channel and of one, then at a stride of 2."""
    for w in weights:
        padding = w.shape[2] // 2
        x = FUNCTIONS.conv2d(x, w, None, 1, padding, 1, 2)[:, :2]
        for stride in (1, 2):
            x = FUNCTIONS.conv2d(x, w[:2], None, stride, padding, 1, 2)
    return x


def elementwise(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
    """The functions of ELEMENTWISE."""
    return mg.where(x < y, mg.exp(x), mg.clamp(x, -0.5, 0.5) + y) + FUNCTIONS.relu(x)


def attention(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor) -> mg.Tensor:
    """Each query sees the keys up to its own place."""
    return FUNCTIONS.scaled_dot_product_attention(q, k, v, is_causal=True)


def other_windows(pool: Callable[..., mg.Tensor], *images: mg.Tensor) -> mg.Tensor:
    """Windows of 3 x 3 without padding, and of 3 x 2."""
    each = [pool(x, 3, 1).sum() * pool(x, 3, 2).sum() * (pool(x, (3, 2), 1) ** 2).sum() for x in images]
    return mg.stack(each)


def strips(x: mg.Tensor, pool: Callable[..., mg.Tensor]) -> mg.Tensor:
    """3x3 windows at both strides for which there is a kernel."""
    return pool(x, 3, 1, 1) * pool(x, 3, 2, 1).sum()


def of_rows(function: Callable[..., mg.Tensor], *matrices: mg.Tensor) -> mg.Tensor:
    """A function of the rows of some matrices, side by side."""
    return mg.cat([function(x, 1) for x in matrices], 1)


def both_strides(x: mg.Tensor, pool: Callable[..., mg.Tensor]) -> mg.Tensor:
    """The same as a sum, which is no larger than the input."""
    return pool(x, 3, 1, 1)[:, :, ::2, ::2] + pool(x, 3, 2, 1)


def pooled_last(*images: mg.Tensor) -> mg.Tensor:
    """Every pooling of images that lie channels last, side by side."""
    last = [x.contiguous(memory_format=mg.channels_last) for x in images]
    F = FUNCTIONS
    return mg.cat(
        [F.adaptive_avg_pool2d(x, (3, 4)) + F.avg_pool2d(x, 2) + F.max_pool2d(x, 2) for x in last], 1
    )


def depthwise_strides(x: mg.Tensor, *weights: mg.Tensor) -> mg.Tensor:
    """The same of one layer each, as a sum, divided."""
    total = 0.0
    for w in weights:
        padding = w.shape[2] // 2
        every = FUNCTIONS.conv2d(x, w, None, 1, padding, 1, 2)[:, 2:]
        every = every + FUNCTIONS.conv2d(x, w[:2], None, 1, padding, 1, 2)
        total = total + every[:, :, ::2, ::2] + FUNCTIONS.conv2d(x, w[:2], None, 2, padding, 1, 2)
    return total / 64


def layer_norm(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """Over the last axis."""
    return FUNCTIONS.layer_norm(x, weight.shape, weight, bias)


def batch_norm(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """With the batch's statistics, which are followed by themselves and, as by the layer, with a count.

    tanh, as the sum of the squares alone does not depend on ``x``."""
    running = [mg.ones(x.shape[1], dtype=x.dtype, device=x.device) for _ in range(2)]
    batches = mg.zeros(1, dtype=mg.int64, device=x.device)
    FUNCTIONS.batch_norm(x.detach(), *running, training=True, num_batches_tracked=batches)
    return mg.tanh(FUNCTIONS.batch_norm(x, *running, weight, bias, training=True))


def evaluated(x: mg.Tensor, weight: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:
    """Batch norm with statistics from elsewhere."""
    return FUNCTIONS.batch_norm(x, bias.detach(), weight.detach() ** 2 + 1, weight, bias)


def filled(x: mg.Tensor) -> mg.Tensor:
    """``x``, after the kernels that write random numbers and live ones; others test what these are."""
    if x.device.type != "cpu":
        numbers = cuda.live.LiveNumbers(x.device.xp.zeros(3, np.uint64))
        numbers.add("ddd", lambda: (1.0, 2.0, 3.0))
        numbers.write()
        for kernel in ("uniform_naive", "uniform_block", "normal_naive", "normal_block"):
            getattr(cuda.random, kernel)(x.device.xp.empty(x.shape, x.dtype), 1, 2)
    return x * 1.0


def seen_through_maps(x: mg.Tensor) -> mg.Tensor:
    """``x``, and how its images look turned and sheared."""
    rows = [[0.5, -0.75, 1.0], [0.75, 0.5, -2.0]]
    maps = mg.tensor([rows] * len(x), dtype=x.dtype, device=x.device)
    for bilinear in (False, True):
        options = {"size": x.shape[2:], "border": "reflect", "bilinear": bilinear}
        x = x + resample(x.detach(), maps, **options)
    return x


def transposed(x: mg.Tensor) -> mg.Tensor:
    """``x``, after the kernels that transpose; others test what they give."""
    if x.device.type != "cpu":
        shapes = product((1, 12, 24, 40), (12, 13, 68, 69))  # of few rows, or columns, made of vectors or not
        for dtype, shape in product((np.uint16, np.uint32, np.uint64), shapes):
            whole = x.device.xp.zeros((1, *shape), dtype)
            cuda.transpose.transpose(x.device.xp.empty_like(whole.swapaxes(1, 2), order="C"), whole)
            if dtype is np.uint16:
                wide = x.device.xp.zeros(shape, np.float32)[None]
                turned = x.device.xp.empty((1, *shape[::-1]), np.float16)
                cuda.transpose.transpose(turned, wide)
                copies = [
                    (x.device.xp.empty_like(turned), whole.view(np.float16), whole.shape) for _ in range(2)
                ]
                narrow = x.device.xp.zeros((1, 3, 12), np.float32)
                few = (x.device.xp.empty((1, 12, 3), np.float16), narrow, narrow.shape)
                for weight in ([], [(turned, wide, wide.shape)], [few]):
                    cuda.transpose.transpose_together(copies, weight)
    return x * 1.0


def parts_added(x: mg.Tensor) -> mg.Tensor:
    """``x``, after the kernels that add parts, few and many; others test what they give."""
    if x.device.type != "cpu":
        xp = x.device.xp
        for dtype, parts in product((np.float32, np.float16, np.uint16), (2, 9)):
            cuda.conv2d_parts.add_taps(xp.zeros((5, 3, 2, 2), dtype), xp.zeros((parts, 60), np.float32))
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
    "pooling of channels last",
    "layer norm",
    "layer norm of whole vectors",
    "batch norm of small images",
    "take_along_dim",
    "optimizers",
)


# Those whose gradients it can hold where the result is divided, and by what.
SCALED = {
    "group norm": 16,
    "group norm of whole vectors": 16,
    "batch norm": 16,
    "batch norm of whole vectors": 16,
    "batch norm, evaluation": 64,
    "evaluation of whole vectors": 64,
    "evaluation of small images": 64,
    "statistics of rows": 1024,
}


def divided(function: Callable[..., Any], by: int) -> Callable[..., Any]:
    """``function``, whose result is divided."""
    return lambda *inputs: function(*inputs) / by


def of_halved(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of inputs divided by 2: what a step rounds then fades in the next."""
    return lambda *inputs: function(*(x / 2 for x in inputs))


def calls_in_halves() -> dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]]:
    """As :func:`calls`, of what has kernels for floats of 16 bits, with numbers that float16 can hold."""
    known = calls()
    return {
        **{name: known[name] for name in UNSCALED},
        **{name: (divided(known[name][0], by), known[name][1]) for name, by in SCALED.items()},
        **{name: (of_halved(call), shapes) for name, (call, shapes) in recurrent_layers().items()},
        "matmul with a vector": (lambda a, b: a @ b / 16, ((37, 41), (41,))),
        "matmul with an aligned vector": (lambda a, b: a @ b / 16, ((40, 48), (48,))),
        "matmul of an aligned vector": (lambda a, b: a @ b / 16, ((40,), (40, 48))),
        "matmul of long vectors": (lambda a, b: (a / 8) @ (b / 8), ((1, 8200), (8200, 3))),
        "softmax": (lambda x: FUNCTIONS.softmax(x, 1) * 64, ((7, 1061),)),
        "log_softmax": (lambda x: FUNCTIONS.log_softmax(x, 1) / 64, ((7, 1061),)),
        "sums of rows": (lambda x: x.sum(1) / 64, ((3, 16400),)),
        "max_pool2d of strips": (lambda x: both_strides(x, FUNCTIONS.max_pool2d), ((2, 2, 7, 16),)),
        "avg_pool2d of strips": (lambda x: both_strides(x, FUNCTIONS.avg_pool2d), ((2, 2, 7, 16),)),
        "sums of columns": (lambda x: x.sum((0, 2)) / 64, ((290, 3, 8),)),
        "depthwise conv2d of small squares": (depthwise_strides, ((8, 2, 9, 11), (4, 1, 3, 3), (4, 1, 5, 5))),
        "depthwise conv2d": (
            lambda x, w: FUNCTIONS.conv2d(x, w, None, (2, 1), 1, 1, 4) / 64,
            ((2, 4, 7, 9), (8, 1, 4, 3)),
        ),
    }
