"""Multi-head attention; https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.creation import empty
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.linear import Linear
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops.elementwise import where
from minigrad.ops.join import split
from minigrad.ops.softmax import softmax
from minigrad.tensor import Tensor

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Module):
    """Attention in several heads, each of which sees a projection of its own.

    Args:
        embed_dim: the size of queries and of the output; ``num_heads`` divides it.
        num_heads: the number of heads.
        dropout: the probability with which, in training, a weight of the attention is dropped.
        bias: whether the projections have one.
        add_bias_kv, add_zero_attn: not supported; must be False.
        kdim, vdim: the sizes of keys and values; ``embed_dim`` by default.
        batch_first: inputs and output are (N, L, E) rather than (L, N, E).
        device, dtype: of the parameters; float32 on the CPU by default.

    Attributes:
        in_proj_weight: (3 embed_dim, embed_dim), the projections of query, key and value below one another;
            with other sizes of keys or values q_proj_weight, k_proj_weight and v_proj_weight.
        in_proj_bias: (3 embed_dim,) or None.
        out_proj: the linear layer behind all heads.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: num_heads must divide embed_dim, got {num_heads} and {embed_dim}"
            )
        if add_bias_kv or add_zero_attn:
            raise ValueError("MultiheadAttention: add_bias_kv and add_zero_attn are not supported")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        place = {"device": device, "dtype": dtype}
        self._is_joint = self.kdim == self.vdim == embed_dim
        sizes = {"q": embed_dim, "k": self.kdim, "v": self.vdim}
        for name, size in sizes.items():
            weight = None if self._is_joint else Parameter(empty(embed_dim, size, **place))
            self.register_parameter(f"{name}_proj_weight", weight)
        joint = Parameter(empty(3 * embed_dim, embed_dim, **place)) if self._is_joint else None
        self.register_parameter("in_proj_weight", joint)
        self.register_parameter("in_proj_bias", Parameter(empty(3 * embed_dim, **place)) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias, **place)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections of the inputs anew, by Xavier's rule; set all biases to 0."""
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output (L, N, E), and the weights (N, L, S) if they are wanted.

        Args:
            query: (L, N, E), or (N, L, E) if ``batch_first``, or (L, E).
            key, value: (S, N, kdim) and (S, N, vdim), ordered as the query.
            key_padding_mask: (N, S) or (S,): of bool, true where a key is *not* seen; else
                added to the scores.
            need_weights: return the weights, too. Without them attention needs less memory.
            attn_mask: (L, S) or (N num_heads, L, S): of bool, true where a query does *not* see a key; else
                added to the scores.
            average_attn_weights: the mean of the weights over the heads, else (N, num_heads, L, S).
            is_causal: a hint that ``attn_mask``, which has to be given, is the causal one.
        """
        batched = query.ndim == 3
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
            raise ValueError(
                "MultiheadAttention: query, key and value need 3 dimensions, or 2 without a batch; got "
                f"shapes {query.shape}, {key.shape} and {value.shape}"
            )
        if is_causal and attn_mask is None:
            raise ValueError("MultiheadAttention: is_causal needs the attn_mask that it is a hint for")
        inputs = (query, key, value)
        if not batched:
            inputs = tuple(x.unsqueeze(0) for x in inputs)
        elif not self.batch_first:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        q, k, v = self._projected(*inputs)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        if is_causal and key_padding_mask is None and not need_weights:
            out, weights = self._attend(q, k, v, None, True), None
        elif need_weights:
            scores = q @ k.mT * (1 / math.sqrt(self.head_dim))
            weights = softmax(scores if mask is None else scores + _additive(mask, q), -1)
            weights = F.dropout(weights, self.dropout, self.training)
            out = weights @ v
        else:
            if mask is not None:  # to the function, a bool says what is seen
                mask = ~mask if mask.dtype == np.bool_ else _additive(mask, q)
            out, weights = self._attend(q, k, v, mask, False), None
        N, _, L, _ = out.shape
        out = self.out_proj(out.transpose(1, 2).reshape(N, L, self.embed_dim))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The heads (N, num_heads, length, head_dim) of query, key and value."""
        E = self.embed_dim
        for name, x, size in (("query", query, E), ("key", key, self.kdim), ("value", value, self.vdim)):
            if x.shape[-1] != size:
                raise ValueError(f"MultiheadAttention: {name} must have {size} features, got shape {x.shape}")
        if query is key is value and self.in_proj_weight is not None:
            parts = split(F.linear(query, self.in_proj_weight, self.in_proj_bias), E, 2)
        else:
            names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            weights = tuple(getattr(self, name) for name in names)
            if self.in_proj_weight is not None:
                weights = split(self.in_proj_weight, E)
            biases = (None,) * 3 if self.in_proj_bias is None else split(self.in_proj_bias, E)
            parts = tuple(map(F.linear, (query, key, value), weights, biases))
        heads = (x.reshape(*x.shape[:2], self.num_heads, self.head_dim) for x in parts)
        return tuple(x.transpose(1, 2) for x in heads)

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one for the scores (N, num_heads, L, S): of bool as they are, or added."""
        (N, heads, L, _), S = q.shape, k.shape[2]
        if mask is not None:
            if mask.shape not in ((L, S), (N * heads, L, S)):
                raise ValueError(
                    f"MultiheadAttention: attn_mask must have shape {(L, S)} or {(N * heads, L, S)}, "
                    f"got {mask.shape}"
                )
            mask = mask if mask.ndim == 2 else mask.reshape(N, heads, L, S)
        if padding is not None:
            if padding.shape not in ((N, S), (S,)):
                raise ValueError(
                    f"MultiheadAttention: key_padding_mask must have shape {(N, S)}, got {padding.shape}"
                )
            padding = padding.reshape(-1, 1, 1, S)
        if mask is None or padding is None:
            return padding if mask is None else mask
        if mask.dtype == padding.dtype == np.bool_:
            return mask | padding
        return _additive(mask, q) + _additive(padding, q)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is added: minus infinity where a bool one is true."""
    if mask.dtype != np.bool_:
        return mask.to(like.dtype)
    return where(mask, like.new_tensor(-math.inf), like.new_tensor(0.0))
