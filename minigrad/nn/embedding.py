"""The embedding layer."""

from __future__ import annotations

from typing import Any

from minigrad.autograd import no_grad
from minigrad.creation import empty
from minigrad.nn import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops.embedding import row_number
from minigrad.tensor import Tensor

__all__ = ["Embedding", "EmbeddingBag"]


class Embedding(Module):
    """A vector of its own for each of ``num_embeddings`` things, such as the words of a vocabulary.

    Args:
        num_embeddings, embedding_dim: the number of vectors, and their length.
        padding_idx: a vector that starts as 0 and gets no gradient, for what fills up short sequences;
            negative ones count from the end.
        max_norm: if given, those of the vectors that a batch asks for and that are longer are first scaled to
            this length, in place.
        norm_type: the p of the p-norm by which ``max_norm`` measures.
        scale_grad_by_freq: divide a vector's gradient by how often the batch asks for it.
        sparse: accepted and ignored; gradients are dense.
        device, dtype: of the vectors; float32 on the CPU by default.

    Attributes:
        weight: (num_embeddings, embedding_dim), normal with mean 0 and variance 1 at the start.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        for name, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"Embedding: {name} must be an integer of at least 0, got {size!r}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = row_number("Embedding", padding_idx, num_embeddings)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.weight = Parameter(empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Embedding:
        """A layer whose weight is ``embeddings`` (num_embeddings, embedding_dim), in the same memory.

        Args:
            embeddings: the vectors; that of ``padding_idx`` is kept as it is.
            freeze: whether they get no gradient.
            padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as for the layer.
        """
        if embeddings.ndim != 2:
            raise ValueError(
                f"Embedding.from_pretrained: expected two dimensions, got shape {embeddings.shape}"
            )
        layer = cls(0, 0, None, max_norm, norm_type, scale_grad_by_freq, sparse)
        layer.num_embeddings, layer.embedding_dim = embeddings.shape
        layer.padding_idx = row_number("Embedding", padding_idx, embeddings.shape[0])
        layer.weight = Parameter(embeddings, requires_grad=not freeze)
        return layer

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        _draw(self.weight, self.padding_idx)

    def forward(self, input: Tensor) -> Tensor:
        """Integers (...) in [0, num_embeddings) to (..., embedding_dim)."""
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

    def extra_repr(self) -> str:
        """The sizes, and what is not as usual."""
        options = (
            ("padding_idx", None),
            ("max_norm", None),
            ("norm_type", 2.0),
            ("scale_grad_by_freq", False),
        )
        shown = [f", {name}={getattr(self, name)}" for name, usual in options if getattr(self, name) != usual]
        return f"{self.num_embeddings}, {self.embedding_dim}{''.join(shown)}"


class EmbeddingBag(Module):
    """The vectors of several things, such as the words of a text, combined to one.

    Args:
        num_embeddings, embedding_dim: the number of vectors, and their length.
        max_norm, norm_type, scale_grad_by_freq, sparse: as for :class:`Embedding`.
        mode: ``"sum"``, ``"mean"`` or ``"max"`` of the vectors.
        include_last_offset: the offsets have one more, the number of elements.
        padding_idx: a number that belongs to no bag; its vector starts as 0.
        device, dtype: of the vectors; float32 on the CPU by default.

    Attributes:
        weight: (num_embeddings, embedding_dim), normal with mean 0 and variance 1 at the start.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        *,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.mode, self.sparse = scale_grad_by_freq, mode, sparse
        self.include_last_offset = include_last_offset
        self.padding_idx = row_number("EmbeddingBag", padding_idx, num_embeddings)
        self.weight = Parameter(empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        _draw(self.weight, self.padding_idx)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Integers (bags, size), or (n,) with the offsets (bags,), to (bags, embedding_dim)."""
        return F.embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        """The sizes, and what is not as usual."""
        options = (("max_norm", None), ("norm_type", 2.0), ("scale_grad_by_freq", False))
        shown = [f", {name}={getattr(self, name)}" for name, usual in options if getattr(self, name) != usual]
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        sizes = f"{self.num_embeddings}, {self.embedding_dim}"
        return f"{sizes}{''.join(shown)}, mode={self.mode!r}{padding}"


def _draw(weight: Parameter, padding_idx: int | None) -> None:
    init.normal_(weight)
    if padding_idx is not None:
        with no_grad():
            weight[padding_idx] = 0.0
