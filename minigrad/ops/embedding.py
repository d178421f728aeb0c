"""The op embedding: rows of a matrix, looked up by their indices, and its gradient, which sums rows.

The function that users call, with its options, is in :mod:`minigrad.ops.lookup`: it uses ops that are made of
this file's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.dispatch import Spec
from minigrad.dtypes import INT64
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op


@op(name="embedding", ops_alone=True)
def embedding_rows(xp, weight, indices, *, padding_idx=None):
    """weight[indices]; the row ``padding_idx`` gets no gradient."""
    if xp is np:
        check_numbers(indices, weight)
    return xp.take(weight, indices, axis=0)


def check_numbers(numbers: Any, weight: Any) -> None:
    """IndexError if one of the ``numbers`` is none of the rows of ``weight`` (arrays); on a card, later."""
    shape = weight.shape

    def error(index: int) -> IndexError:
        return IndexError(
            f"embedding: index {index} is out of range: weight has {shape[0]} rows (shape {shape})"
        )

    if not isinstance(numbers, np.ndarray):
        place = cuda.index_check.place_for(error, numbers.data.device_id)
        cuda.index_check.look(place, cuda.cupy().ascontiguousarray(numbers), shape[0])
    elif numbers.size and (wrong := (numbers < 0) | (numbers >= shape[0])).any():
        raise error(int(numbers[wrong].ravel()[0]))


@embedding_rows.shape
def _(weight, indices, *, padding_idx):
    return Spec((*indices.shape, weight.shape[1]), weight.dtype)


@op
def embedding_grad(xp, g, indices, *, num_embeddings, padding_idx=None):
    """For each row of an embedding the sum of ``g`` over the places that show it; 0 for ``padding_idx``."""
    out = xp.zeros((num_embeddings, g.shape[-1]), g.dtype)
    places = ... if padding_idx is None else indices != padding_idx
    add_at(xp, out, indices[places], g[places])
    return out


@embedding_grad.shape
def _(g, indices, *, num_embeddings, padding_idx):
    return Spec((num_embeddings, g.shape[-1]), g.dtype)


def add_at(xp: Any, out: Any, index: Any, values: Any) -> None:
    """out[index] += values, where what is indexed twice gets both; on a card in no fixed order."""
    xp.add.at(out, index, values)


embedding_rows.grad(
    weight=lambda g, _y, _weight, indices, *, padding_idx: embedding_grad(
        g, indices, num_embeddings=_weight.shape[0], padding_idx=padding_idx
    )
)
embedding_grad.grad(
    g=lambda gg, _z, _g, indices, *, num_embeddings, padding_idx: embedding_rows(
        _without_row(gg, padding_idx), indices, padding_idx=padding_idx
    )
)


def _without_row(x: Any, row: int | None) -> Any:
    if row is None:
        return x
    with x.device.active():
        mask = x.device.xp.ones((x.shape[0], 1), x.dtype)
        mask[row] = 0
    return x * wrap(mask, x.device)


def row_number(name: str, padding_idx: int | None, rows: int) -> int | None:
    """``padding_idx`` counted from the start; ValueError, which ``name`` begins, if there is none."""
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise ValueError(f"{name}: padding_idx {padding_idx} is none of the {rows} rows of the weight")
    return padding_idx % rows


# ---- kernels ----------------------------------------------------------------------------------------------


def sum_rows(device: str, out: Any, g: Any, indices: Any) -> None:
    """The rows of ``g`` (n, columns) summed by ``indices`` (n,) into ``out``, on a type of device."""
    if device == "cpu":
        cpu.embedding.sum_rows(out, g, indices, get_num_threads())
    else:
        cuda.embedding.sum_found(out, g, indices)


def _numbers(indices: Any) -> Any:
    """Flat int64 indices."""
    flat = indices if indices.ndim == 1 else indices.reshape(-1)
    return flat if flat.dtype == INT64 else flat.astype(INT64)


def _rows(x: Any) -> Any:
    """(..., columns) as a matrix."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _has_elements(x: Any, indices: Any, **attrs: Any) -> bool:
    return x.size > 0 and indices.size > 0


def _register_gather(name: str, run: Any) -> None:
    def kernel(out, weight, indices, *, padding_idx):
        run(_rows(out), weight, _numbers(indices))

    kernel.__doc__ = run.__doc__
    embedding_rows.kernel("cuda", "sim", name=name, dtypes="f4 f8 f2 bf16", when=_has_elements)(kernel)


@embedding_rows.kernel("cpu", name="rows", when=_has_elements)
def _(out, weight, indices, *, padding_idx):
    """Each row is a copy of memory; threads divide the indices."""
    try:
        cpu.embedding.gather(_rows(out), weight, _numbers(indices), get_num_threads())
    except IndexError:
        check_numbers(indices, weight)
        raise


def _direct_rows(weight, indices, *, padding_idx):
    try:
        return cpu.embedding.new(weight, indices, get_num_threads())
    except IndexError:
        check_numbers(indices, weight)
        raise


embedding_rows.direct = _direct_rows


@embedding_grad.kernel("cpu", name="by_columns", when=_has_elements)
def _(out, g, indices, *, num_embeddings, padding_idx):
    """Cleared, then each row added as a vector, in the order of the indices; threads divide the columns."""
    numbers = _numbers(indices)
    if padding_idx is not None:
        numbers = np.where(numbers == padding_idx, -1, numbers)  # which the kernel does not count
    sum_rows("cpu", out, _rows(g), numbers)


def _register_sum(name: str, run: Any) -> None:
    def kernel(out, g, indices, *, num_embeddings, padding_idx):
        left_out = -1 if padding_idx is None else padding_idx
        run(out, _rows(g), _numbers(indices), left_out)

    kernel.__doc__ = run.__doc__
    dtypes = "f4 f8 f2 bf16" if name in ("split", "found") else "f4 f8"
    embedding_grad.kernel("cuda", "sim", name=name, dtypes=dtypes, when=_has_elements)(kernel)


for _name in ("naive", "vector"):
    _register_gather(_name, getattr(cuda.embedding, f"gather_{_name}"))
for _name in ("naive", "sorted", "split", "found"):
    _register_sum(_name, getattr(cuda.embedding, f"sum_{_name}"))
