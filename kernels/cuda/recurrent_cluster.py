"""Launches ``recurrent_cluster.cu``: all steps of a recurrent layer, or of its gradient, by clusters.

For cards of compute capability 9.0. The functions, their arguments and results are those of
:mod:`.recurrent`, which launches each step; ``cluster`` is for tests: how many blocks a cluster has, in place
of as few as have room.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..errors import KernelLaunchError
from ..launch import CudaKernel, blocks
from ..source import CudaSource, computed_dtype
from .matmul_wgmma import is_supported, multiprocessors, require
from .recurrent import transposed

THREADS, VECTOR_BYTES = 256, 16  # as in recurrent_cluster.cu and recurrent_product.cuh
COLUMNS, STREAMED = 8, 4
BACKWARD_PARTS = 8
CLUSTERS = (8, 16)  # blocks of one; more than 8 are not possible on every card that has clusters
ROWS = 4  # of the batch, that a block multiplies at a time where a cluster has more than two
MOST_SHARED_BYTES = 227 * 1024 - 16  # beside two barriers

_source = CudaSource(Path(__file__).with_suffix(".cu"), "sm_90a")


def _by_shape(name: str, options: str = "") -> dict[tuple[int, int], CudaKernel]:
    """The kernels by (blocks of a cluster, rows that are multiplied at a time)."""
    shapes = [(cluster, rows) for cluster in CLUSTERS for rows in (1, ROWS)]
    return {
        (cluster, rows): CudaKernel(_source, f"{name}<T, {cluster}, {rows}{options}>")
        for cluster, rows in shapes
    }


_lstm, _lstm_grad = _by_shape("lstm_cluster"), _by_shape("lstm_grad_cluster")
_gru, _gru_grad = _by_shape("gru_cluster"), _by_shape("gru_grad_cluster")
_tanh, _tanh_grad = _by_shape("rnn_cluster", ", false"), _by_shape("rnn_grad_cluster", ", false")
_relu, _relu_grad = _by_shape("rnn_cluster", ", true"), _by_shape("rnn_grad_cluster", ", true")
_rnn = {"tanh": (_tanh, _tanh_grad), "relu": (_relu, _relu_grad)}


def takes(weight_hh: Any) -> bool:
    """Whether these kernels can run: on such a card, where a cluster has room for the weights."""
    gates, H = _gates(weight_hh), weight_hh.shape[-1]
    fits = all(_smallest_cluster(backward, gates, H, weight_hh.dtype) for backward in (False, True))
    return fits and is_supported(weight_hh)


def lstm(
    outs: tuple, h0: Any, c0: Any, weight_hh: Any, bias: Any, reverse: bool, *, cluster: int | None = None
) -> None:
    """All steps in one launch; see :func:`.recurrent.lstm`."""
    arrays = (*outs, h0, c0, weight_hh, bias)
    _launch(_lstm, False, weight_hh, arrays, h0.shape, len(outs[0]), reverse, cluster)


def lstm_grad(
    outs: tuple,
    weight_hh: Any,
    c0: Any,
    cells: Any,
    gates: Any,
    grad_y: Any,
    grad_c: Any,
    reverse: bool,
    *,
    cluster: int | None = None,
) -> None:
    """All steps in one launch; see :func:`.recurrent.lstm_grad`."""
    arrays = (*outs, transposed(weight_hh), c0, cells, gates, grad_y, grad_c)
    _launch(_lstm_grad, True, weight_hh, arrays, c0.shape, len(gates), reverse, cluster)


def gru(
    outs: tuple, z: Any, h0: Any, weight_hh: Any, bias: Any, reverse: bool, *, cluster: int | None = None
) -> None:
    """All steps in one launch; see :func:`.recurrent.gru`."""
    _launch(_gru, False, weight_hh, (*outs, z, h0, weight_hh, bias), h0.shape, len(z), reverse, cluster)


def gru_grad(
    outs: tuple,
    weight_hh: Any,
    h0: Any,
    y: Any,
    gates: Any,
    grad_y: Any,
    reverse: bool,
    *,
    cluster: int | None = None,
) -> None:
    """All steps in one launch; see :func:`.recurrent.gru_grad`."""
    arrays = (*outs, transposed(weight_hh), h0, y, gates, grad_y)
    _launch(_gru_grad, True, weight_hh, arrays, h0.shape, len(y), reverse, cluster)


def rnn(
    y: Any,
    z: Any,
    h0: Any,
    weight_hh: Any,
    nonlinearity: str,
    reverse: bool,
    *,
    cluster: int | None = None,
) -> None:
    """All steps in one launch; see :func:`.recurrent.rnn`."""
    forward, _ = _rnn[nonlinearity]
    _launch(forward, False, weight_hh, (y, z, h0, weight_hh), h0.shape, len(z), reverse, cluster)


def rnn_grad(
    dz: Any,
    grad_y: Any,
    y: Any,
    weight_hh: Any,
    nonlinearity: str,
    reverse: bool,
    *,
    cluster: int | None = None,
) -> None:
    """All steps in one launch; see :func:`.recurrent.rnn_grad`."""
    _, backward = _rnn[nonlinearity]
    arrays = (dz, grad_y, y, transposed(weight_hh))
    _launch(backward, True, weight_hh, arrays, y.shape[1:], len(y), reverse, cluster)


def _launch(
    kernels: dict[tuple[int, int], CudaKernel],
    backward: bool,
    weight_hh: Any,
    arrays: tuple,
    shape: tuple[int, int],
    steps: int,
    reverse: bool,
    cluster: int | None,
) -> None:
    """Launch for a batch and units of ``shape``, with as few rows a cluster as let all run at once."""
    require(weight_hh, "recurrent_cluster")
    (N, H), gates, dtype = shape, _gates(weight_hh), weight_hh.dtype
    cluster = cluster or _smallest_cluster(backward, gates, H, dtype)
    if not cluster:
        raise KernelLaunchError(f"recurrent_cluster: no cluster has room for {weight_hh.shape} of {dtype}")
    at_once = max(1, multiprocessors(weight_hh) // cluster)
    rows, per_cluster = _rows(backward, gates, H, dtype, cluster, blocks(N, at_once))
    sizes = {
        "rows": N,
        "steps": steps,
        "reverse": int(reverse),
        "H": H,
        "cluster_rows": per_cluster,
        "units": _units(H, cluster, dtype),
    }
    shared = _shared_bytes(backward, gates, H, dtype, cluster, per_cluster)
    kernels[cluster, rows].launch(cluster * blocks(N, per_cluster), THREADS, (*arrays, sizes), shared)


def _gates(weight_hh: Any) -> int:
    columns, H = weight_hh.shape
    return columns // H if H else 1


def _units(H: int, cluster: int, dtype: Any) -> int:
    """How many units of the state a block owns: whole vectors, and a multiple of STREAMED."""
    multiple = max(STREAMED, VECTOR_BYTES // dtype.itemsize)
    return blocks(H, cluster * multiple) * multiple


def _shared_bytes(backward: bool, gates: int, H: int, dtype: Any, cluster: int, rows: int) -> int:
    """What a block needs, with so many rows of the batch for a cluster."""
    units = _units(H, cluster, dtype)
    state, own = cluster * units, gates * units
    parts = BACKWARD_PARTS if backward else 32 if gates == 1 else 16
    columns, K = (state, own) if backward else (own, state)
    vector = VECTOR_BYTES // dtype.itemsize
    first_columns = min(columns, THREADS // parts * COLUMNS)
    resident_terms = min(K, parts * vector * (4 if dtype.itemsize == 4 else 2))
    weights = first_columns * (K - resident_terms) + (columns - first_columns) * K
    operand = blocks(K, parts * vector) * parts * vector
    # Forward two operands and the products; backward one operand, and twice the parts of each block.
    numbers = rows * (operand + 2 * state if backward else 2 * operand + own)
    return weights * dtype.itemsize + numbers * computed_dtype(dtype).itemsize


@cache
def _smallest_cluster(backward: bool, gates: int, H: int, dtype: Any) -> int:
    """The blocks of the smallest cluster that has room for the weights; 0: there is none."""
    for cluster in CLUSTERS if H else ():
        shared = _shared_bytes(backward, gates, H, dtype, cluster, 1)
        if _units(H, cluster, dtype) <= THREADS and shared <= MOST_SHARED_BYTES:
            return cluster
    return 0


def _rows(backward: bool, gates: int, H: int, dtype: Any, cluster: int, wanted: int) -> tuple[int, int]:
    """How many rows a block multiplies at a time, and how many a cluster has: ``wanted`` or fewer."""
    most = THREADS // _units(H, cluster, dtype)
    while most > 1 and _shared_bytes(backward, gates, H, dtype, cluster, most) > MOST_SHARED_BYTES:
        most -= 1
    if wanted <= 2 or most < ROWS:
        return 1, max(1, min(wanted, most))
    return ROWS, min(blocks(wanted, ROWS), most // ROWS) * ROWS
