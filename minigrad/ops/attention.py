"""Scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.autograd import mode, no_grad, wrap
from minigrad.dispatch import Spec
from minigrad.dtypes import FLOAT32, is_floating, is_half
from minigrad.kernels import cpu, cuda, philox
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.source import computed_dtype
from minigrad.mixed_precision import LOWER, autocast, cast_inputs, in_float32
from minigrad.op import Op, op
from minigrad.ops.composed import composed_gradient, tensors
from minigrad.ops.dropout import dropout, kept_scale
from minigrad.ops.elementwise import where, zeros_like
from minigrad.ops.matmul import _matmul as matmul
from minigrad.ops.reduce import amax
from minigrad.ops.reduce import any as any_of
from minigrad.ops.shape import broadcast_to, reshape, transpose
from minigrad.ops.softmax import softmax
from minigrad.random import default_generator

PER_BLOCK = 4
"""Keys whose weights are dropped by one block of random words; a query's first key begins one."""


@op(materialize_grads=False, ops_alone=True, promote=None, non_differentiable=("mask",))
def attention(xp, q, k, v, mask=None, *, is_causal=False, scale=1.0, dropout_p=0.0, seed=0, offset=0):
    """softmax(scale q k^T + mask) v, and the logarithms of the sums of exponentials.

    Args:
        q, k, v: (..., L, E), (..., S, E) and (..., S, V).
        mask: broadcasts to (..., L, S): of bool, true where a query sees a key, or float32, added to the
            scores, where -infinity hides a key. A query that sees no key has an output of zeros, and the
            logarithm infinity, with which its probabilities are 0.
        is_causal: query i sees the keys 0 to i only.
        dropout_p: a factor of v is dropped with this probability, else multiplied by 1 / (1 - dropout_p).
        seed, offset: the stream of :mod:`minigrad.kernels.philox` from which is drawn what is dropped.

    Returns:
        (..., L, V) and (..., L), the latter in float32 where q is of 16 bits.
    """
    scores = _scores(xp, q, k, mask, is_causal, scale)
    if not scores.shape[-1]:  # no keys
        nothing = xp.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
        return nothing, xp.full(q.shape[:-1], -np.inf, q.dtype)
    largest = xp.max(scores, axis=-1, keepdims=True)
    sees_none = _sees_none(xp, mask, is_causal, scores.shape)
    e = xp.exp(scores - xp.where(sees_none, scores.dtype.type(0), largest))
    total = xp.where(sees_none, scores.dtype.type(1), e.sum(-1, keepdims=True))
    lse = xp.where(sees_none, scores.dtype.type(np.inf), largest + xp.log(total))
    if dropout_p:
        e = e * _kept(xp, e, dropout_p, seed, offset)
    return xp.matmul(e, v) / total, lse[..., 0]


@op(materialize_grads=False, promote=None, non_differentiable=("mask",))
def attention_grad(
    xp,
    g,
    q,
    k,
    v,
    out,
    lse,
    grad_lse=None,
    mask=None,
    *,
    is_causal=False,
    scale=1.0,
    dropout_p=0.0,
    seed=0,
    offset=0,
):
    """The gradients of q, k and v, from those of ``attention``'s outputs ``out`` and ``lse``."""
    p = xp.exp(_scores(xp, q, k, mask, is_causal, scale) - lse[..., None])
    inner = (g * out).sum(-1)
    if grad_lse is not None:
        inner = inner - grad_lse
    dp, weights = xp.matmul(g, xp.swapaxes(v, -1, -2)), p
    if dropout_p:
        kept = _kept(xp, p, dropout_p, seed, offset)
        dp, weights = dp * kept, p * kept
    ds = p * (dp - inner[..., None]) * scale
    return xp.matmul(ds, k), xp.matmul(xp.swapaxes(ds, -1, -2), q), xp.matmul(xp.swapaxes(weights, -1, -2), g)


def _scores(xp: Any, q: Any, k: Any, mask: Any, is_causal: bool, scale: float) -> Any:
    scores = xp.matmul(q, xp.swapaxes(k, -1, -2)) * scale
    if is_causal:
        arrays = q.device.xp if xp is tensors else xp
        above = arrays.triu(arrays.full(scores.shape[-2:], -np.inf, q.dtype), 1)
        scores = scores + (wrap(above, q.device) if xp is tensors else above)
    if mask is not None:
        infinity = -np.inf if xp is tensors else scores.dtype.type(-np.inf)
        seen = mask if mask.dtype == np.bool_ else mask != -np.inf
        scores = xp.where(seen, scores if seen is mask else scores + mask, infinity)
    return scores


def _sees_none(xp: Any, mask: Any, is_causal: bool, shape: tuple[int, ...]) -> Any:
    """Whether the mask leaves a query no key, as (..., L, 1)."""
    if mask is None:
        return xp.zeros((), np.bool_)
    seen = xp.broadcast_to(mask if mask.dtype == np.bool_ else mask != -np.inf, shape)
    if is_causal:
        seen = xp.tril(seen)
    return ~seen.any(-1, keepdims=True)


def _kept(xp: Any, weights: Any, p: float, seed: int, offset: int) -> Any:
    """1 / (1 - p), or 0 where a weight is dropped. Rows take whole blocks of random words."""
    *rows, S = weights.shape
    words = -(-S // PER_BLOCK) * PER_BLOCK
    arrays = weights.device.xp if xp is tensors else xp
    kept = philox.kept(arrays, math.prod(rows) * words, p, seed, offset).reshape(*rows, words)[..., :S]
    kept = kept * weights.dtype.type(kept_scale(p))
    return wrap(kept, weights.device) if xp is tensors else kept


@attention.grad
def _(g, y, q, k, v, mask, **options):
    grad_out, grad_lse = g
    out, lse = y
    if grad_out is None:
        grad_out = zeros_like(out)
    return *attention_grad(grad_out, q, k, v, out, lse, grad_lse, mask, **options), None


@attention_grad.grad
def _(g, _z, grad_out, q, k, v, out, lse, grad_lse, mask, **options):
    def composed(*inputs):
        wide = [x if x is None else x.to(computed_dtype(x.dtype)) for x in inputs]
        found = attention_grad.reference(tensors, *wide, mask, **options)
        return tuple(y.to(x.dtype) for y, x in zip(found, (q, k, v), strict=True))

    return *composed_gradient(composed, (grad_out, q, k, v, out, lse, grad_lse), g), None


@attention.shape
def _(q, k, v, mask=None, **_):
    return [(*q.shape[:-1], v.shape[-1]), Spec(q.shape[:-1], computed_dtype(q.dtype))]


@attention_grad.shape
def _(g, q, k, v, out, lse, grad_lse=None, mask=None, **_):
    return [q.shape, k.shape, v.shape]


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale query key^T + mask) value.

    Args:
        query: (..., L, E).
        key, value: (..., S, E) and (..., S, V); the leading dimensions broadcast.
        attn_mask: broadcasts to (..., L, S): of bool, true where a query sees a key; else added to the
            scores, where -infinity hides a key. A query that sees no key has an output of zeros.
        dropout_p: the probability with which a weight is dropped; the others are scaled by 1 / (1 - p).
        is_causal: query i sees the keys 0 to i only; not together with ``attn_mask``.
        scale: 1 / sqrt(E) by default.
        enable_gqa: query is (..., Hq, L, E), and key and value have H heads, a divisor of Hq: each is shared
            by Hq / H queries that follow each other (grouped-query attention, arXiv:2305.13245).

    Returns:
        (..., L, V).

    Plain and causal attention is computed in blocks, forward and backward: the weights (..., L, S) are never
    in memory. On ``cuda`` and ``sim`` this holds of float32 and 16 bits with up to 128 features, with masks
    and dropout, too. The weights are in memory in float64 and with more features there; on the CPU with a
    mask or dropout; and where the mask requires a gradient, is of float64 or of integers, or has more
    dimensions than the query, or a larger batch, or where the query has more than four dimensions.

    Raises:
        ValueError: dropout_p is not in [0, 1], or the shapes do not fit together.
    """
    name = "scaled_dot_product_attention"
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{name}: dropout_p must be a probability in [0, 1], got {dropout_p}")
    if mode.autocast is not None:
        query, key, value = cast_inputs(LOWER, (query, key, value))
    if not query.dtype == key.dtype == value.dtype or not is_floating(query.dtype):
        raise TypeError(
            f"{name}: query, key and value must have one floating dtype, got {query.dtype}, {key.dtype} and "
            f"{value.dtype}; convert with .to(dtype)"
        )
    if enable_gqa:
        heads = [x.shape[-3] if x.ndim > 2 else 0 for x in (query, key, value)]
        if any(not n or heads[0] % n for n in heads):
            raise ValueError(
                f"{name}: with enable_gqa the heads of key and value must divide those of query, got shapes "
                f"{query.shape}, {key.shape} and {value.shape}"
            )
        key, value = _repeat_heads(key, heads[0]), _repeat_heads(value, heads[0])
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ValueError(
            f"{name}: query, key and value need at least 2 dimensions, got shapes {query.shape}, {key.shape} "
            f"and {value.shape}"
        )
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"{name}: expected query (..., L, E), key (..., S, E) and value (..., S, V), got shapes "
            f"{query.shape}, {key.shape} and {value.shape}"
        )
    if is_causal and attn_mask is not None:
        raise ValueError(f"{name}: attn_mask must be None where is_causal is set")
    if scale is None:
        scale = 1 / math.sqrt(max(query.shape[-1], 1))
    options = {"is_causal": is_causal, "scale": float(scale), "dropout_p": dropout_p}
    if attn_mask is None and dropout_p == 0:
        return attention(*_in_one_batch(name, query, key, value), None, **options, seed=0, offset=0)[0]
    q, k, v = _in_one_batch(name, query, key, value)
    if attn_mask is not None:
        _check_mask(name, attn_mask, q, k)
    out = _by_kernel(q, k, v, attn_mask, options)
    if out is not None:
        return out
    if is_half(query.dtype):
        with autocast(query.device.type, enabled=False):
            return in_float32(
                scaled_dot_product_attention,
                *(query, key, value, attn_mask, dropout_p, is_causal, scale),
            )
    if is_causal:
        attn_mask = _lower_triangle(query, query.shape[-2], key.shape[-2])
    scores = matmul(query, transpose(key, -1, -2)) * scale
    return matmul(_drop(_weights(scores, attn_mask), dropout_p), value)


def _in_one_batch(name: str, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """The inputs, with the same leading dimensions."""
    leading = [x.shape[:-2] for x in (query, key, value)]
    if leading[0] == leading[1] == leading[2]:
        return query, key, value
    try:
        batch = np.broadcast_shapes(*leading)
    except ValueError:
        raise ValueError(
            f"{name}: the leading dimensions of query, key and value do not broadcast, got shapes "
            f"{query.shape}, {key.shape} and {value.shape}"
        ) from None
    q, k, v = (broadcast_to(x, (*batch, *x.shape[-2:])) for x in (query, key, value))
    return q, k, v


def _check_mask(name: str, mask: Any, q: Any, k: Any) -> None:
    """A ValueError unless ``mask`` broadcasts with the scores, of which it may enlarge the batch alone."""
    L, S = q.shape[-2], k.shape[-2]
    try:
        fits = np.broadcast_shapes(mask.shape, (*q.shape[:-1], S))[-2:] == (L, S)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: attn_mask must broadcast to the scores of shape {(*q.shape[:-1], S)}, got {mask.shape}"
        )


def _by_kernel(q: Any, k: Any, v: Any, mask: Any, options: dict) -> Any:
    """The attention with a mask or dropout by a kernel, or None where there is none that takes it."""
    is_added = mask is not None and is_floating(mask.dtype) and mask.dtype.itemsize <= FLOAT32.itemsize
    read = None
    if mask is not None:
        enlarges = np.broadcast_shapes(q.shape[:-2], mask.shape[:-2]) != q.shape[:-2]
        if enlarges or (mode.grad and mask.requires_grad):
            return None
        read = Spec(mask.shape, FLOAT32 if is_added else mask.dtype)
    options = {**options, "seed": 0, "offset": 0}
    with q.device.active():
        arrays = [q._array, k._array, v._array, read]
        if attention.kernels.choose(q.device.type, q.dtype, arrays, options) is None:
            return None
    if is_added:
        mask = _below_zero(mask)
    if options["dropout_p"]:
        options["seed"], options["offset"] = default_generator.next_stream(q.device)
    return attention(q, k, v, mask, **options)[0]


def _below_zero(mask: Any) -> Any:
    """A mask that is added, in float32, and 0 at most for each query, which is the same to a softmax.

    Beside -1e9 the logarithm of a sum of exponentials would have no digits left.
    """
    with no_grad():
        mask = mask.to(FLOAT32)
        largest = amax(mask, -1, keepdim=True)
        return mask - where(largest == -math.inf, 0.0, largest)


def _drop(weights: Any, p: float) -> Any:
    """The weights of :func:`attention` with ``dropout_p``, from the same random numbers."""
    *rows, S = weights.shape
    lacking = -S % PER_BLOCK
    if not (p and lacking):
        return dropout(weights, p)
    with weights.device.active():
        ones = wrap(weights.device.xp.ones((*rows, S + lacking), weights.dtype), weights.device)
    return weights * dropout(ones, p)[..., :S]


def _repeat_heads(x: Any, heads: int) -> Any:
    """(..., H, S, E) as (..., heads, S, E), each head heads / H times in a row."""
    *batch, H, S, E = x.shape
    if heads == H:
        return x
    repeated = broadcast_to(reshape(x, (*batch, H, 1, S, E)), (*batch, H, heads // H, S, E))
    return reshape(repeated, (*batch, heads, S, E))


def _lower_triangle(like: Any, rows: int, columns: int) -> Any:
    with like.device.active():
        xp = like.device.xp
        return wrap(xp.tril(xp.ones((rows, columns), bool)), like.device)


def _weights(scores: Any, mask: Any) -> Any:
    """The softmax of the scores that the mask leaves; zeros where it leaves none."""
    if mask is None:
        return softmax(scores, -1)
    seen = mask if mask.dtype == np.bool_ else mask != -math.inf
    sees_any = any_of(seen, -1, keepdim=True)
    masked = where(mask, scores, -math.inf) if mask.dtype == np.bool_ else scores + mask
    # What sees nothing takes the scores as they are, so that no NaN arises, here or in the gradient.
    return where(sees_any, softmax(where(sees_any, masked, scores), -1), 0.0)


# ---- kernels ----------------------------------------------------------------------------------------------


def _matrices(x: Any) -> Any:
    """(..., rows, columns) as (B, H, rows, columns) with contiguous rows; a view if the strides allow it."""
    if x.shape[-1] > 1 and x.strides[-1] != x.itemsize:
        x = _contiguous(x)
    return x if x.ndim == 4 else x.reshape(math.prod(x.shape[:-3]), *(1,) * (x.ndim == 2), *x.shape[-3:])


def _contiguous(x: Any) -> Any:
    return x if is_contiguous(x) else x.copy(order="C")


def _rows(x: Any) -> Any:
    """(..., rows) as a contiguous (B, H, rows)."""
    x = _contiguous(x)
    return x if x.ndim == 3 else x.reshape(math.prod(x.shape[:-2]), *(1,) * (x.ndim == 1), *x.shape[-2:])


def _mask_for(q: Any, k: Any, mask: Any) -> Any:
    """``mask`` as (B, H, L, S), a view."""
    if mask is None:
        return None
    B, H, L, _ = _matrices(q).shape
    return cuda.array_module(mask).broadcast_to(mask, (B, H, L, k.shape[-2]))


def _has_keys(_q: Any, k: Any, _v: Any, _mask: Any, **_: Any) -> bool:
    return k.shape[-2] > 0


def _is_plain(_q: Any, _k: Any, _v: Any, mask: Any, *, dropout_p: float, **_: Any) -> bool:
    return mask is None and not dropout_p


def _has_plain_keys(*inputs: Any, **options: Any) -> bool:
    return _has_keys(*inputs, **options) and _is_plain(*inputs, **options)


def _of_output_alone(fits: Callable[..., bool]) -> Callable[..., bool]:
    """The condition of a gradient's kernel: ``fits`` of what forward takes; no gradient of the logarithms."""
    return lambda _g, q, k, v, _out, _lse, grad_lse, mask, **options: (
        grad_lse is None and fits(q, k, v, mask, **options)
    )


@attention.kernel("cpu", name="blocks", layout="strided", when=_has_plain_keys)
def _(outs, q, k, v, _mask, *, is_causal, scale, **_):
    """Blocks of queries, whose scores become probabilities and are multiplied with v while in cache."""
    out, lse = outs
    arrays = _matrices(out), _rows(lse), _matrices(q), _matrices(k), _matrices(v)
    cpu.attention.forward(*arrays, is_causal, scale, get_num_threads())


@attention_grad.kernel("cpu", name="blocks", layout="strided", when=_of_output_alone(_has_plain_keys))
def _(outs, g, q, k, v, out, lse, _grad_lse, _mask, *, is_causal, scale, **_):
    """Blocks of queries and keys, whose probabilities are computed anew and never leave the cache."""
    arrays = [_matrices(x) for x in (*outs, g, q, k, v, _contiguous(out))]
    cpu.attention.backward(*arrays, _rows(lse), is_causal, scale, get_num_threads())


def _fits(bytes_needed: Callable[[Any, Any], int]) -> Callable[..., bool]:
    """A condition: there are keys, and the features are no more than the CUDA kernels, and a card's shared
    memory, can hold: a block takes ``bytes_needed(q, v)`` of it."""

    def fits(q: Any, k: Any, v: Any, mask: Any, **_: Any) -> bool:
        if not (k.shape[-2] and 0 < max(q.shape[-1], v.shape[-1]) <= cuda.attention.MAX_FEATURES):
            return False
        return _is_readable(q, mask) and bytes_needed(q, v) <= cuda.most_shared_bytes(q)

    return fits


def _is_readable(q: Any, mask: Any) -> bool:
    """Whether the CUDA kernels take ``mask``, or None: of several batches, its strides are those of one."""
    return mask is None or (mask.dtype in (np.bool_, FLOAT32) and mask.ndim <= q.ndim <= 4)


_fits_block_of_gradient = _fits(lambda q, v: cuda.attention.backward_bytes(cuda.attention.padded(q, v)))
_fits_block = _fits(lambda q, v: cuda.attention.forward_bytes(cuda.attention.padded(q, v)))
_fits_block_of_tensor_cores = _fits(cuda.attention_tensor_core.bytes_needed)


def _fits_forward(*inputs: Any, **options: Any) -> bool:
    """With a mask or dropout only where the gradients have a kernel, too; else another way is quicker."""
    return (_fits_block if _is_plain(*inputs, **options) else _fits_block_of_gradient)(*inputs, **options)


def _suits_tensor_cores(q: Any, k: Any, v: Any, mask: Any, **_: Any) -> bool:
    return cuda.attention_tensor_core.is_supported(q) and _fits_block_of_tensor_cores(q, k, v, mask)


def _suits_wgmma(q: Any, *inputs: Any, scale: float, **options: Any) -> bool:
    wgmma = cuda.attention_wgmma
    fits = _suits_wgmma_backward(q, *inputs, **options) and wgmma.is_supported(q)
    return fits and wgmma.LEAST_SCALE <= scale <= wgmma.LARGEST_SCALE


def _suits_wgmma_backward(q: Any, *inputs: Any, **options: Any) -> bool:
    return (
        _is_plain(q, *inputs, **options)
        and _suits_tensor_cores(q, *inputs)
        and cuda.attention_wgmma_grad.is_supported(q)
    )


def _weighting(q: Any, k: Any, mask: Any, *, dropout_p: float, seed: Any, offset: Any) -> dict[str, Any]:
    """The keyword arguments of the CUDA kernels' functions where there is a mask or dropout."""
    if mask is None and not dropout_p:
        return {}
    return {"mask": _mask_for(q, k, mask), "dropout": (dropout_p, seed, offset) if dropout_p else None}


def _forward_of(run: Any) -> Any:
    """A kernel of the attention, which a module of ``cuda`` runs."""

    def kernel(outs, q, k, v, mask, *, is_causal, scale, **dropout):
        out, lse = outs
        arrays = _matrices(out), _rows(lse), _matrices(q), _matrices(k), _matrices(v)
        run.forward(*arrays, is_causal, scale, **_weighting(q, k, mask, **dropout))

    kernel.__doc__ = run.forward.__doc__
    return kernel


def _backward_of(run: Any) -> Any:
    """A kernel of its gradients."""

    def kernel(outs, g, q, k, v, out, lse, _grad_lse, mask, *, is_causal, scale, **dropout):
        g, out = (_contiguous(_matrices(x)) for x in (g, out))
        grads, qkv = (tuple(map(_matrices, arrays)) for arrays in (outs, (q, k, v)))
        weighting = _weighting(q, k, mask, **dropout)
        run.backward(grads, g, qkv, out, _rows(lse), is_causal, scale, **weighting)

    kernel.__doc__ = run.backward.__doc__
    return kernel


# On an H200, 2 x 16 heads of 4096 x 64 in bfloat16: forward 307 us by wgmma, 464 by mma.sync; the gradients
# 873 and 1416. With few keys its loop has hardly begun when it is over, and with few queries half of the
# multiprocessors have no block; neither has been timed.
FEWEST_KEYS_OF_WGMMA = 512
LEAST_SHARE_OF_WGMMA = 0.75  # of the features in a tile


def _prefers_wgmma(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> bool:
    wgmma, keys = cuda.attention_wgmma, k.shape[-2]
    features = min(q.shape[-1], v.shape[-1])
    queries = math.prod(q.shape[:-1])
    return (
        keys >= FEWEST_KEYS_OF_WGMMA
        and features >= LEAST_SHARE_OF_WGMMA * wgmma.padded_features(q, v)
        and 2 * queries >= cuda.matmul_wgmma.multiprocessors(q) * wgmma.QUERIES
    )


def _prefers_wgmma_backward(_g: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> bool:
    return _prefers_wgmma(q, k, v)


def _decides(q: Any, k: Any, v: Any, mask: Any, *, scale: float, dropout_p: float, **_: Any) -> tuple:
    """What the conditions of the CUDA kernels look at."""
    of_mask = None if mask is None else (mask.dtype, mask.ndim)
    return q.shape, k.shape, v.shape, of_mask, scale, dropout_p, cuda.card_of(q)


attention.kernels.decides = _decides
attention_grad.kernels.decides = lambda _g, q, k, v, _out, _lse, grad_lse, mask, **options: (
    grad_lse is None,
    *_decides(q, k, v, mask, **options),
)


def _register(target: Op, rung: str, run: Any, dtypes: str, when: Any, prefer: Any = None) -> None:
    options = {"dtypes": dtypes, "layout": "strided", "when": when, "prefer": prefer}
    target.kernel("cuda", "sim", name=rung, **options)(run)


_register(attention, "online_softmax", _forward_of(cuda.attention), "f4", _fits_forward)
_register(attention, "tensor_core", _forward_of(cuda.attention_tensor_core), "f2 bf16", _suits_tensor_cores)
_register(attention, "wgmma", _forward_of(cuda.attention_wgmma), "f2 bf16", _suits_wgmma, _prefers_wgmma)

for _rung, _module, _dtypes, _when, _prefer in (
    ("recompute", cuda.attention, "f4", _fits_block_of_gradient, None),
    ("tensor_core", cuda.attention_tensor_core, "f2 bf16", _suits_tensor_cores, None),
    ("wgmma", cuda.attention_wgmma_grad, "f2 bf16", _suits_wgmma_backward, _prefers_wgmma_backward),
):
    _register(attention_grad, _rung, _backward_of(_module), _dtypes, _of_output_alone(_when), _prefer)
