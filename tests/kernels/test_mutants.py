"""The shipped kernels with a barrier, a bound or an index changed: the simulator finds each change.

That says two things: the checks see mistakes in real kernels, and the tests' sizes reach the places where a
kernel could go wrong.
"""

import re

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.cuda import conv2d, matmul, pool2d, reduce, softmax
from minigrad.kernels.errors import KernelLaunchError
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import CUDA_DIRECTORY, CudaSource

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def apply(kernel, shape, *args):
    """Run ``kernel`` as an op's: its output starts without a value."""
    out = sim.empty(shape)
    with sim.operation("the kernel", [a for a in args if isinstance(a, np.ndarray)], (out,)):
        kernel(out, *args)


A, B, ROWS, LONG = normal(33, 40), normal(40, 35), normal(9, 300), normal(3, 2051)
IMAGE, WEIGHT, GRAD, OPTIONS = (
    normal(2, 4, 9, 8),
    normal(6, 2, 3, 3),
    normal(2, 6, 5, 4),
    (2, 1, 1, 0, 1, 2, 2),
)
WINDOW = (3, 2, 2, 2, 1, 0)


def max_pool():
    taps = sim.empty((2, 4, 5, 4), np.uint8)
    apply(lambda out: pool2d.max_pool2d(out, taps, IMAGE, *WINDOW, 1, 1), (2, 4, 5, 4))


# The calls that are made of each module, and what they are to find.
CALLS = {
    "matmul_naive": (matmul, lambda: apply(matmul.naive, (33, 35), A, B)),
    "matmul_tiled": (matmul, lambda: apply(matmul.tiled, (33, 35), A, B)),
    "reduce_naive": (reduce, lambda: apply(reduce.naive, 9, ROWS)),
    "reduce_tree": (reduce, lambda: apply(reduce.tree, 9, ROWS)),
    "reduce_shuffle": (reduce, lambda: apply(reduce.shuffle, 9, ROWS)),
    "reduce_split": (reduce, lambda: apply(reduce.split, 1, normal(1, 16385))),
    "reduce_columns": (reduce, lambda: apply(reduce.columns, (1, 5), normal(1, 3000, 5))),
    "softmax_naive": (softmax, lambda: apply(softmax.softmax_naive, (9, 300), ROWS)),
    "softmax_warp": (softmax, lambda: apply(softmax.softmax_warp, (9, 300), ROWS)),
    "softmax_vectorized": (softmax, lambda: apply(softmax.softmax_vectorized, (3, 2051), LONG)),
    "softmax_grad_registers": (softmax, lambda: apply(softmax.softmax_grad_registers, (3, 2051), LONG, LONG)),
    "conv2d_forward": (conv2d, lambda: apply(conv2d.forward, (2, 6, 5, 4), IMAGE, WEIGHT, None, *OPTIONS)),
    "conv2d_weight_grad": (conv2d, lambda: apply(conv2d.weight_grad, (6, 2, 3, 3), GRAD, IMAGE, *OPTIONS)),
    "max_pool2d": (pool2d, max_pool),
    "avg_pool2d": (pool2d, lambda: apply(pool2d.avg_pool2d, (2, 4, 5, 4), IMAGE, *WINDOW, True, None)),
}

RACE = r"race on \w+\[\d+\] of the shared variable .*a __syncthreads\(\) between these two lines"
BEYOND = r"(reads|writes) 4 bytes at \w+\[\d+\] \(\w+\.cuh?:\d+\), beyond the end of"
UNWRITTEN = r"elements were never written|which nothing has written"
GARBAGE = (
    r"reads \w+\[\d+\] of the shared variable \w+ at \w+\.cuh?:\d+, which no thread of the block has written"
)

# (call, file, what stands there after the kernel's name, what to put in its place, what is to be said)
MUTANTS = [
    ("matmul_naive", "matmul.cu", "column >= shape.N", "column > shape.N", f"{BEYOND}|race on out"),
    ("matmul_naive", "matmul.cu", "k < shape.K", "k <= shape.K", BEYOND),
    ("matmul_naive", "matmul.cu", "row >= shape.M ||", "row >= shape.M - 1 ||", UNWRITTEN),
    ("matmul_tiled", "matmul.cu", "__syncthreads();  // the tiles", ";  // the tiles", RACE),
    ("matmul_tiled", "matmul.cu", "__syncthreads();  // everyone", ";  // everyone", RACE),
    ("matmul_tiled", "matmul.cu", "row < shape.M && k0", "row <= shape.M && k0", BEYOND),
    ("matmul_tiled", "matmul.cu", "if (row < shape.M && column < shape.N)", "if (column < shape.N)", BEYOND),
    ("matmul_tiled", "matmul.cu", "k < TILE; k++", "k <= TILE; k++", r"index 32 is outside of the type"),
    ("reduce_naive", "reduce.cu", "row >= rows", "row > rows", BEYOND),
    ("reduce_naive", "reduce.cu", "column < columns", "column <= columns", BEYOND),
    ("reduce_tree", "reduce.cu", "__syncthreads();", ";", RACE),
    ("reduce_tree", "reduce.cu", "thread < half", "thread <= half", r"index 256 is outside|race on tree"),
    ("reduce_tree", "reduce.cu", "if (thread == 0) out", "out", r"race on out\[0\]|race on tree"),
    ("reduce_tree", "reduce.cu", "out[row] = tree[0]", "out[row + 1] = tree[0]", BEYOND),
    ("reduce_shuffle", "rows.cuh", "__syncthreads();  // all warps", ";  // all warps", RACE),
    ("reduce_shuffle", "rows.cuh", "lane < warps", "lane <= warps", GARBAGE),
    ("reduce_shuffle", "rows.cuh", "if (lane == 0) of_warp", "if (lane == 1 && warps < 2) of_warp", GARBAGE),
    ("reduce_shuffle", "reduce.cu", "(long long)blockIdx.x * blockDim.y", "blockIdx.x / 2", UNWRITTEN),
    (
        "reduce_split",
        "reduce.cu",
        "rest < length ? rest : length",
        "length",
        BEYOND,
    ),
    ("reduce_split", "reduce.cu", "blockIdx.x / parts", "blockIdx.x / (parts - 1)", BEYOND),
    ("reduce_columns", "reduce.cu", "__syncthreads();  // all have", ";  // all have", RACE),
    ("reduce_columns", "reduce.cu", "n < here ? from", "0 < here ? from", BEYOND),
    ("reduce_columns", "reduce.cu", "n < here; n++) out", "n < N; n++) out", f"{BEYOND}|race on out"),
    ("softmax_naive", "softmax.cu", "i < columns; i++) m", "i <= columns; i++) m", BEYOND),
    ("softmax_warp", "softmax.cu", "row >= rows", "row > rows", BEYOND),
    (
        "softmax_warp",
        "softmax.cu",
        "i = threadIdx.x; i < columns; i += WARP) out",
        "i = threadIdx.x; i < columns - 1; i += WARP) out",
        UNWRITTEN,
    ),
    ("softmax_vectorized", "normalizer.cuh", "__syncthreads();", ";", RACE),
    ("softmax_vectorized", "normalizer.cuh", "lane < warps", "lane <= warps", GARBAGE),
    (
        "softmax_grad_registers",
        "row_vectors.cuh",
        "n < left ? C(row",
        "0 < left ? C(row",
        BEYOND,
    ),
    (
        "softmax_grad_registers",
        "row_vectors.cuh",
        "if (n < left) row",
        "if (0 < left) row",
        f"{BEYOND}|race on out",
    ),
    ("conv2d_forward", "conv2d.cu", "y >= s.H", "y > s.H", BEYOND),
    (
        "conv2d_forward",
        "conv2d.cu",
        "(long long)s.N * s.O * s.OH * s.OW",
        "(long long)s.N * s.O * s.OH * s.OW - 1",
        UNWRITTEN,
    ),
    ("conv2d_weight_grad", "conv2d.cu", "__syncthreads();", ";", RACE),
    (
        "conv2d_weight_grad",
        "conv2d.cu",
        "threadIdx.x < half",
        "threadIdx.x <= half",
        r"index 256 is outside|race on sums",
    ),
    (
        "max_pool2d",
        "pool2d.cu",
        "number >= s.planes * s.OH * s.OW",
        "number > s.planes * s.OH * s.OW",
        BEYOND,
    ),
    (
        "avg_pool2d",
        "pool2d.cu",
        "number >= s.planes * s.OH * s.OW",
        "number >= s.planes * s.OH * s.W",
        f"{BEYOND}|race",
    ),
]


@pytest.fixture
def change(monkeypatch, tmp_path):
    """``change(call, file, old, new)``: let the module of ``call`` launch kernels with another text."""

    def kernels_of(module):
        values = list(vars(module).values())
        values += [kernel for table in values if isinstance(table, dict) for kernel in table.values()]
        return [value for value in values if isinstance(value, CudaKernel)]

    def change(call, file, old, new):
        module, _ = CALLS[call]
        stem = module.__name__.rpartition(".")[2]
        for name in {f"{stem}.cu", *(path.name for path in CUDA_DIRECTORY.glob("*.cuh"))}:
            text = (CUDA_DIRECTORY / name).read_text()
            start = text.index(f" {call}(") if f" {call}(" in text else 0
            head = text[:start]
            if name == file:
                assert old in text[start:], f"{file}: there is no {old!r} in {call}"
                text = head + text[start:].replace(old, new, 1)
            (tmp_path / name).write_text(text)
        source = CudaSource(tmp_path / f"{stem}.cu")
        for kernel in kernels_of(module):
            if kernel.source.path and kernel.source.path.name == f"{stem}.cu":
                monkeypatch.setattr(kernel, "source", source)
                monkeypatch.setattr(kernel, "_loaded", {})

    return change


@pytest.mark.parametrize("call", CALLS)
def test_without_a_change_nothing_is_said(call):
    with sim.checks(True), sim.stress(4):
        CALLS[call][1]()


@pytest.mark.parametrize(("call", "file", "old", "new", "says"), MUTANTS)
def test_a_change_is_found(change, call, file, old, new, says):
    change(call, file, old, new)
    with sim.checks(True), pytest.raises(KernelLaunchError) as caught:
        CALLS[call][1]()
    assert re.search(says, str(caught.value)), str(caught.value)
