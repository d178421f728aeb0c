"""The operations of networks under PyTorch's names and argument orders, usually imported as ``F``.

Most are functions of :mod:`minigrad.ops` as they are. ``inplace=True`` writes the result into ``input`` too,
and is an error where the graph still needs the old values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.argument_errors import explain_arguments
from minigrad.autograd import mode, wrap
from minigrad.creation import rand_like
from minigrad.dispatch import kernel_table
from minigrad.dtypes import is_half
from minigrad.kernels.arguments import is_contiguous
from minigrad.mixed_precision import LOWER, WIDER, cast_inputs, in_float32
from minigrad.ops import activation, elementwise
from minigrad.ops import dropout as _dropout
from minigrad.ops.activation import gelu, glu, hardshrink, prelu, sigmoid, softshrink, softsign, tanh
from minigrad.ops.adaptive_max_pool import adaptive_max_pool2d, max_unpool2d
from minigrad.ops.attention import scaled_dot_product_attention
from minigrad.ops.conv import conv2d, conv_transpose2d
from minigrad.ops.conv_pooled import conv2d_pooled
from minigrad.ops.conv_relu import conv2d_relu
from minigrad.ops.cross_entropy import cross_entropy, nll_loss
from minigrad.ops.ctc_loss import ctc_loss
from minigrad.ops.distance import cosine_similarity, pairwise_distance
from minigrad.ops.einsum import einsum
from minigrad.ops.embedding_bag import embedding_bag
from minigrad.ops.fold import channel_shuffle, fold, pixel_shuffle, pixel_unshuffle, unfold
from minigrad.ops.grid_sample import affine_grid, grid_sample
from minigrad.ops.instance_norm import instance_norm, rms_norm
from minigrad.ops.interpolate import interpolate
from minigrad.ops.likelihood_loss import gaussian_nll_loss, kl_div, poisson_nll_loss
from minigrad.ops.linear import linear as _linear
from minigrad.ops.linear import linear_relu as _linear_relu
from minigrad.ops.lookup import embedding
from minigrad.ops.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    check_tensors,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from minigrad.ops.margin_loss import (
    cosine_embedding_loss,
    hinge_embedding_loss,
    margin_ranking_loss,
    multi_margin_loss,
    multilabel_soft_margin_loss,
    soft_margin_loss,
    triplet_margin_loss,
)
from minigrad.ops.matmul import matmul as _matmul
from minigrad.ops.norm import batch_norm, group_norm, layer_norm
from minigrad.ops.one_dimension import (
    adaptive_avg_pool1d,
    adaptive_max_pool1d,
    avg_pool1d,
    conv1d,
    conv_transpose1d,
    max_pool1d,
)
from minigrad.ops.padding import pad
from minigrad.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minigrad.ops.reduce import amax, amin
from minigrad.ops.softmax import log_softmax, softmax
from minigrad.ops.squares import norm
from minigrad.tensor import Tensor

upsample = interpolate  # its older name

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "affine_grid",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv2d_pooled",
    "conv2d_relu",
    "conv_transpose1d",
    "conv_transpose2d",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "dropout1d",
    "dropout2d",
    "elu",
    "elu_",
    "embedding",
    "embedding_bag",
    "fold",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "grid_sample",
    "group_norm",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "leaky_relu_",
    "linear",
    "linear_relu",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
    "mish",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pairwise_distance",
    "pixel_shuffle",
    "pixel_unshuffle",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rms_norm",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "triplet_margin_loss",
    "unfold",
]


_products = kernel_table("matmul")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight^T + bias.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features), or (in_features,) for a single output.
        bias: (out_features,), or None.

    Returns:
        (..., out_features), or (...) for a weight of one dimension.
    """
    try:
        ndim, weight_ndim = input.ndim, weight.ndim
    except AttributeError:
        check_tensors("linear", input=input, weight=weight)
        raise
    fused = weight_ndim == 2 and not _products.is_replaced  # else a product, by the user's kernel, and a sum
    if fused and (ndim == 2 or (ndim > 2 and (input.device.type == "cpu" or is_contiguous(input._array)))):
        return _linear(input, weight, bias)  # which casts, and checks the sizes
    if mode.autocast is not None:
        input, weight, bias = cast_inputs(LOWER, (input, weight, bias))
    if weight_ndim not in (1, 2):
        raise ValueError(f"linear: weight needs 1 or 2 dimensions, got shape {weight.shape}")
    if ndim == 0 or input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: weight expects {weight.shape[-1]} input features (weight shape {weight.shape}), "
            f"got input of shape {input.shape}"
        )
    if weight_ndim == 2 and ndim > 2:  # on a card one large product of a copy, which the gradient needs, too
        rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
        return linear(rows, weight, bias).reshape(*input.shape[:-1], weight.shape[0])
    out = _matmul(input, weight.T if weight_ndim == 2 else weight)
    return out if bias is None else out + bias


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``relu(linear(...))``, bit for bit, on the processor with ReLU applied before the sums are stored.

    The arguments and errors are those of :func:`linear`. On a card, under autocast, and where a kernel was
    chosen for a part, the two ops run.
    """
    plain = all(table.takes_shortcuts for table in (_products, _linear.kernels, activation.relu.kernels))
    if plain and mode.autocast is None and input.device.type == "cpu" and input.ndim > 1 and weight.ndim == 2:
        return _linear_relu(input, weight, bias)
    return activation.relu(linear(input, weight, bias))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)"""
    return input.relu_() if inplace else activation.relu(input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope x"""
    return _apply(activation.leaky_relu, input, inplace, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (exp(x) - 1); https://arxiv.org/abs/1511.07289"""
    return _apply(activation.elu, input, inplace, alpha)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x), also called swish"""
    return _apply(activation.silu, input, inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``."""
    if is_half(input.dtype):
        return in_float32(softplus, input, beta, threshold, policy=WIDER)
    scaled = input * beta
    return elementwise.where(scaled > threshold, input, activation.softplus(scaled) / beta)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)"""
    return _apply(activation.relu6, input, inplace)


def relu_(input: Tensor) -> Tensor:
    """max(x, 0), in place"""
    return input.relu_()


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """:func:`leaky_relu`, in place"""
    return leaky_relu(input, negative_slope, inplace=True)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """:func:`elu`, in place"""
    return elu(input, alpha, inplace=True)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (exp(x / alpha) - 1); https://arxiv.org/abs/1704.07483"""
    return _apply(activation.celu, input, inplace, alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale elu(x, alpha), with fixed numbers; https://arxiv.org/abs/1706.02515"""
    return _apply(activation.selu, input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(log(1 + exp(x))); https://arxiv.org/abs/1908.08681"""
    return _apply(activation.mish, input, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Each element limited to [min_val, max_val]; outside, and at the bounds, the gradient is 0."""
    return _apply(activation.hardtanh, input, inplace, min_val, max_val)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6"""
    return _apply(activation.hardsigmoid, input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x relu6(x + 3) / 6; https://arxiv.org/abs/1905.02244"""
    return _apply(activation.hardswish, input, inplace)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else ``value``"""
    return _apply(activation.threshold, input, inplace, threshold, value)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)"""
    return input - tanh(input)


def softmin(input: Tensor, dim: int | None = None) -> Tensor:
    """softmax(-x) over ``dim``"""
    return softmax(-input, dim)


def gumbel_softmax(
    logits: Tensor, tau: float = 1.0, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A sample of a softened choice with probabilities softmax(logits), differentiable for the logits.

    ``tau`` is the temperature. With ``hard``, the output is the unit vector of the choice itself, and only
    its gradient that of the softened one; https://arxiv.org/abs/1611.01144. ``eps`` has no meaning, as in
    PyTorch.
    """
    gumbels = -elementwise.log(-elementwise.log(rand_like(logits)))
    soft = softmax((logits + gumbels) / tau, dim)
    if not hard:
        return soft
    choice = elementwise.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return choice - soft.detach() + soft


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), computed without overflow"""
    return -activation.softplus(-input)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, each element set to zero with probability ``p``, the others scaled by 1 / (1 - p)."""
    return _apply(_dropout.dropout, input, inplace, p, training)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, each channel of (N, C, H, W) or (N, C, L) set to zero with probability ``p``, the others
    scaled by 1 / (1 - p); https://arxiv.org/abs/1411.4280."""
    return _apply(_dropout.dropout2d, input, inplace, p, training)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As :func:`dropout2d`, for (N, C, L) or (C, L)."""
    if input.ndim == 2:
        return dropout1d(input.unsqueeze(0), p, training, inplace).squeeze(0)
    if input.ndim != 3:
        raise ValueError(f"dropout1d: expected (N, C, L) or (C, L), got shape {input.shape}")
    return dropout2d(input, p, training, inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """In training, each element set to SELU's lowest value with probability ``p``; then all are scaled and
    shifted, so that mean 0 and variance 1 stay. https://arxiv.org/abs/1706.02515"""
    if not training or p == 0:
        return input
    lowest = -1.7580993408473766  # -scale alpha of SELU
    drawn = _dropout.dropout(elementwise.zeros_like(input.detach()) + 1.0, p, True)
    kept = (drawn != 0).to(input.dtype)
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * lowest * lowest)) if p < 1 else 0.0
    return _apply(lambda x: (x * kept + (1.0 - kept) * lowest) * scale - scale * lowest * p, input, inplace)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_k = x1^T W_k x2 + b_k, of (..., in1), (..., in2) and a weight (out, in1, in2): (..., out)"""
    if input1.shape[:-1] != input2.shape[:-1] or (input1.shape[-1], input2.shape[-1]) != weight.shape[1:]:
        raise ValueError(
            f"bilinear: expected inputs (..., {weight.shape[1]}) and (..., {weight.shape[2]}) for a weight "
            f"{weight.shape}, got {input1.shape} and {input2.shape}"
        )
    out = einsum("...i,kij,...j->...k", input1, weight, input2)
    return out if bias is None else out + bias


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha mean(x^2 over the ``size`` channels around it))^beta, for (N, C, ...)"""
    if input.ndim < 3:
        raise ValueError(f"local_response_norm: expected (N, C, ...), got shape {input.shape}")
    samples, channels = input.shape[:2]
    squares = (input * input).reshape(samples, 1, channels, -1)
    energy = avg_pool2d(pad(squares, (0, 0, size // 2, (size - 1) // 2)), (size, 1), 1)
    return input / (energy.reshape(input.shape) * alpha + k) ** beta


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Integers of shape (...) as int64 unit vectors (..., num_classes); -1 takes the largest plus 1.

    Raises:
        ValueError: a value is negative or not below ``num_classes``, or there is nothing to infer it from.
    """
    if tensor.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected integers, got {tensor.dtype}")
    low, high = (int(amin(tensor)), int(amax(tensor))) if tensor.numel() else (0, -1)
    if num_classes == -1:
        if not tensor.numel():
            raise ValueError("one_hot: num_classes cannot be inferred from an empty tensor")
        num_classes = high + 1
    if num_classes < 1 or low < 0 or high >= num_classes:
        raise ValueError(f"one_hot: values from {low} to {high} do not fit into {num_classes} classes")
    with tensor.device.active():
        classes = tensor.device.xp.arange(num_classes)
        return wrap((tensor._array[..., None] == classes).astype(np.int64), tensor.device)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """input / max(p-norm over ``dim``, eps)"""
    if is_half(input.dtype):
        return in_float32(normalize, input, p, dim, eps, policy=WIDER)
    if p == 2:
        # The limit is applied under the root, whose gradient at 0 would be infinite.
        squares = (input * input).sum(dim, keepdim=True)
        return input / squares.clamp(min=eps * eps).sqrt()
    return input / norm(input, p, dim, keepdim=True).clamp(min=eps)


def _apply(function: Callable[..., Tensor], input: Tensor, inplace: bool, *options: Any) -> Tensor:
    """``function(input, *options)``, if ``inplace`` written into ``input``."""
    if not inplace:
        return function(input, *options)

    def op(x: Tensor) -> Tensor:
        return function(x.clone(), *options)  # what the gradient needs of it is not overwritten

    op.__name__ = function.__name__
    return input._in_place(op)


explain_arguments(globals(), but=("linear", "linear_relu", "relu", "sigmoid", "tanh"))
