"""Matrix multiplication, with NumPy's rules for vectors and for broadcasting over batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.autograd import mode
from minigrad.dtypes import FLOAT32
from minigrad.graph import Variable
from minigrad.kernels import cpu, cuda
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.cpu import small
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.cuda.vector import VECTOR_BYTES
from minigrad.mixed_precision import LOWER, cast_inputs
from minigrad.op import op
from minigrad.ops.shape import reshape, transpose, unsqueeze
from minigrad.precision import get_float32_matmul_precision

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


@op(name="matmul", arithmetic=True, ops_alone=True, small=small.matmul)
def _matmul(xp, a, b):
    """(..., M, K) @ (..., K, N) -> (..., M, N); the leading dimensions broadcast."""
    return xp.matmul(a, b)


def _transposed(x: Any) -> Any:
    return transpose(x, -1, -2) if isinstance(x, Variable) else x.swapaxes(-1, -2)


_matmul.grad(
    a=lambda g, _y, _a, b: _matmul(g, _transposed(b)),
    b=lambda g, _y, a, _b: _matmul(_transposed(a), g),
)


@_matmul.shape
def _(a, b):
    left, right = a.shape, b.shape
    if left[-1] != right[-2]:
        raise ValueError(
            f"matmul: the last size of the first tensor (shape {a.shape}) must equal the last but one of the "
            f"second (shape {b.shape}): {a.shape[-1]} is not {b.shape[-2]}"
        )
    if len(left) == len(right) == 2:
        return left[0], right[1]
    try:
        batch = np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: the batch dimensions of {a.shape} and {b.shape} do not broadcast"
        ) from None
    return *batch, left[-2], right[-1]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for tensors of one or more dimensions.

    A vector is a row on the left, a column on the right.
    """
    if not (isinstance(a, Variable) and isinstance(b, Variable)):
        raise TypeError(f"matmul: expected two tensors, got {type(a).__name__} and {type(b).__name__}")
    if a._array.ndim == b._array.ndim >= 2 and a._array.dtype is b._array.dtype:
        return _matmul(a, b)  # most products, without the questions below
    if mode.autocast is not None:
        a, b = cast_inputs(LOWER, (a, b))
    if a.dtype != b.dtype:
        raise TypeError(
            f"matmul: inputs of different dtypes (a is {a.dtype}, b is {b.dtype}); convert one with .to()"
        )
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(
            f"matmul: both tensors need at least one dimension, got shapes {a.shape} and {b.shape}"
        )
    if a.ndim == 1:
        product = matmul(unsqueeze(a, 0), b)
        return reshape(
            product, product.shape[:-1] if b.ndim == 1 else (*product.shape[:-2], product.shape[-1])
        )
    if b.ndim == 1:
        product = matmul(a, unsqueeze(b, 1))
        return reshape(product, product.shape[:-1])
    if b.ndim == 2 and a.ndim > 2 and a.shape[-1] == b.shape[0] and a.is_contiguous():
        rows = reshape(a, (int(np.prod(a.shape[:-1])), a.shape[-1]))  # one large product, not a batch
        return reshape(_matmul(rows, b), (*a.shape[:-1], b.shape[1]))
    return _matmul(a, b)


def mm(a: Any, b: Any) -> Any:
    """``a @ b`` for two matrices."""
    return matmul(*_of_dimensions("mm", 2, a, b))


def bmm(a: Any, b: Any) -> Any:
    """``a @ b`` for two batches of matrices: (B, M, K) and (B, K, N)."""
    return matmul(*_of_dimensions("bmm", 3, a, b))


def mv(a: Any, b: Any) -> Any:
    """The product of a matrix and a vector."""
    if a.ndim != 2 or b.ndim != 1:
        raise ValueError(f"mv: expected a matrix and a vector, got shapes {a.shape} and {b.shape}")
    return matmul(a, b)


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta input + alpha mat1 @ mat2, for matrices; ``input`` is broadcast."""
    return _weighted_sum(input, mm(mat1, mat2), beta, alpha)


def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta input + alpha batch1 @ batch2, for batches of matrices; ``input`` is broadcast."""
    return _weighted_sum(input, bmm(batch1, batch2), beta, alpha)


def _weighted_sum(input: Any, product: Any, beta: float, alpha: float) -> Any:
    product = product if alpha == 1 else product * alpha
    if beta == 0:  # what input holds, NaN too, does not matter then
        return product
    return product + (input if beta == 1 else input * beta)


def dot(a: Any, b: Any) -> Any:
    """The inner product of two vectors."""
    return matmul(*_of_dimensions("dot", 1, a, b))


def outer(a: Any, b: Any) -> Any:
    """The matrix of all products of the elements of two vectors: (M,) and (N,) -> (M, N)."""
    a, b = _of_dimensions("outer", 1, a, b)
    return unsqueeze(a, 1) * b


def _of_dimensions(name: str, ndim: int, a: Any, b: Any) -> tuple:
    if not a.ndim == b.ndim == ndim:
        raise ValueError(f"{name}: both tensors need {ndim} dimension(s), got shapes {a.shape} and {b.shape}")
    return a, b


# ---- kernels ----------------------------------------------------------------------------------------------


def _batched(xp: Any, out: Any, a: Any, b: Any) -> tuple:
    """``a`` and ``b`` as views with the batch dimensions of ``out``."""
    batch = out.shape[:-2]
    if a.shape[:-2] != batch:
        a = xp.broadcast_to(a, (*batch, *a.shape[-2:]))
    if b.shape[:-2] != batch:
        b = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
    return a, b


def _register_cpu(run: Any, name: str) -> None:
    def kernel(out, a, b):
        if a.ndim != 2 or b.ndim != 2:
            a, b = _batched(np, out, a, b)
        run(out, a, b, get_num_threads())

    kernel.__doc__ = run.__doc__
    _matmul.kernel("cpu", name=name, layout="strided")(kernel)


def _fills_tiles(a: Any, b: Any) -> bool:
    return cuda.matmul.fills_tiles(a.shape[-2], b.shape[-1])


def _has_a_vector(a: Any, b: Any) -> bool:
    return a.shape[-2] == 1 or b.shape[-1] == 1


def _suits_warp_tiles(a: Any, b: Any) -> bool:
    return cuda.matmul_warp_tile.suits(a.dtype, a.shape[-2], b.shape[-1])


def _has_long_K(a: Any, b: Any) -> bool:
    """Whether K is so long, and the output so small, that its multiply-adds are worth splitting."""
    if a.shape[-1] < 2 * cuda.split_k.PART:  # most products: answered without their batch
        return False
    if a.dtype.itemsize == 2 and not _has_a_vector(a, b):
        return False
    return cuda.split_k.parts_of(a.dtype, _batches(a, b), a.shape[-2], b.shape[-1], a.shape[-1]) > 1


def _batches(a: Any, b: Any) -> int:
    return math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))


def _register_cuda(
    run: Any, name: str, when: Any, dtypes: str = "f4 f8", adds_bias: bool = False, prefer: Any = None
) -> None:
    """``adds_bias``: whether the rung takes a bias, and adds it while the sums are in registers."""

    def kernel(out, a, b):
        if not a.ndim == b.ndim == 2:
            a, b = _batched(cuda.array_module(out), out, a, b)
        run(out, a, b)

    kernel.__doc__ = run.__doc__
    _matmul.kernel("cuda", "sim", name=name, dtypes=dtypes, layout="strided", when=when, prefer=prefer)(
        kernel
    )
    if adds_bias:
        kernel.adds_bias = run  # type: ignore[attr-defined]


def multiply(out: Any, a: Any, b: Any, bias: Any = None) -> None:
    """a @ b + bias for matrices on a card or on the simulator, by the kernel that the op would run there."""
    kernel = _matmul.kernels.choose("sim" if isinstance(out, np.ndarray) else "cuda", out.dtype, [a, b], {})
    adds_bias = None if kernel is None or bias is None else getattr(kernel.run, "adds_bias", None)
    if adds_bias is not None:
        adds_bias(out, a, b, bias=bias if is_contiguous(bias) else bias.copy())
        return
    if kernel is None:
        out[...] = a @ b
    else:
        kernel.run(out, a, b)
    cuda.elementwise.add_bias(out, bias)


def _lies_along_k(a: Any, b: Any) -> bool:
    """Whether the neighbours run along K of a's rows, or of b's columns, if these are fewer."""
    return (a.strides[-1] if a.shape[-2] <= b.shape[-1] else b.strides[-2]) == a.itemsize


_matmul.kernels.decides = lambda a, b: (
    *(a.shape, b.shape, _lies_along_k(a, b)),
    *(get_float32_matmul_precision(), cuda.card_of(a)),
)
_matmul.direct = lambda a, b: cpu.matmul.product(a, b, get_num_threads())
for _name in ("naive", "tiled", "packed", "threaded"):
    _register_cpu(getattr(cpu.matmul, _name), _name)
_register_cuda(cuda.matmul.uncoalesced, "uncoalesced", None)
_register_cuda(cuda.matmul.naive, "naive", None)
_register_cuda(cuda.matmul.tiled, "tiled", None)
_register_cuda(cuda.matmul.register_tile, "register_tile", _fills_tiles)
_register_cuda(cuda.matmul.vectorized, "vectorized", _fills_tiles)
_register_cuda(cuda.matmul_warp_tile.warp_tile, "warp_tile", _suits_warp_tiles, adds_bias=True)
# Memory bounds a product with a vector, whatever multiplies: it is no task for tensor cores.
_OF_VECTORS = "f4 f8 f2 bf16"
_register_cuda(cuda.gemv.gemv, "gemv", _has_a_vector, _OF_VECTORS, adds_bias=True)
_register_cuda(cuda.split_k.split_k, "split_k", _has_long_K, _OF_VECTORS, adds_bias=True)


def _suits_tensor_cores(a: Any, b: Any) -> bool:
    if _has_a_vector(a, b):
        return False
    if a.dtype == FLOAT32:
        if get_float32_matmul_precision() == "highest":
            return False
        if _has_long_K(a, b) and not _suits_warp_tiles(a, b):  # most of a tile would hang over
            return False
    return cuda.matmul_tensor_core.is_supported(a)


# In 16 bits, or float32 rounded to TF32 where set_float32_matmul_precision allows it.
_register_cuda(
    *(cuda.matmul_tensor_core.tensor_core, "tensor_core", _suits_tensor_cores),
    dtypes="f2 bf16 f4",
    adds_bias=True,
)


def _suits_wgmma(a: Any, b: Any) -> bool:
    if not _suits_tensor_cores(a, b):  # most products of float32, by the first question
        return False
    return cuda.matmul_wgmma.fills_tiles(a.shape[-2], b.shape[-1]) and cuda.matmul_wgmma.is_supported(a)


# Of a K that does not fill wgmma's ring of tiles once no product has been timed.
LEAST_BYTES_OF_K = 512


def _prefers_wgmma(a: Any, b: Any) -> bool:
    """Whether wgmma is estimated to take less time: it makes tiles at twice the rate of mma.sync, but in
    pairs of 128 rows."""
    (M, K), N = a.shape[-2:], b.shape[-1]
    if K * a.itemsize < LEAST_BYTES_OF_K:
        return False
    sizes = _batches(a, b), M, N, K
    return cuda.matmul_wgmma.estimated_time(a, *sizes) < cuda.matmul_tensor_core.estimated_time(a, *sizes)


_register_cuda(
    *(cuda.matmul_wgmma.wgmma, "wgmma", _suits_wgmma),
    dtypes="f2 bf16 f4",
    adds_bias=True,
    prefer=_prefers_wgmma,
)


# Elements of a matrix from which on it pays to copy the vectors for it, in a launch more, if they are not the
# whole chunks along K that the kernel reads.
LARGE_MATRIX = 2**18


def _is_skinny(a: Any, b: Any) -> bool:
    few = min(a.shape[-2], b.shape[-1])
    return 1 < few <= cuda.matmul_skinny.MOST and (a.itemsize == 4 or cuda.matmul_tensor_core.is_supported(a))


def _prefers_skinny(a: Any, b: Any) -> bool:
    (M, K), N = a.shape[-2:], b.shape[-1]
    in_chunks = _lies_along_k(a, b) and K * a.itemsize % VECTOR_BYTES == 0
    return in_chunks or max(M, N) * K >= LARGE_MATRIX


_register_cuda(
    *(cuda.matmul_skinny.skinny, "skinny", _is_skinny),
    dtypes="f2 bf16 f4",
    adds_bias=True,
    prefer=_prefers_skinny,
)
