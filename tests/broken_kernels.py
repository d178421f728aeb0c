"""Mistakes that people make in CUDA kernels, and how they are looked for.

Every kernel has a place marked ``@``, where it stands once as it should be, and once with a mistake, which
must be found, with the lines and with advice. The sound one must compute what it says, with no complaint.
"""

import re
import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel

rng = np.random.default_rng(0)
X = rng.integers(-9, 9, 1000).astype(np.float32)  # whole numbers: sums are exact in any order


@dataclass
class Mistake:
    """A kernel, its sound and its broken piece, and what is to be said of the latter.

    Attributes:
        code: with ``@`` for the piece. Its first line is line 1.
        says: regular expressions that the message must match.
        arrays: the arguments, the first of them the output, which starts as :func:`sim.empty`.
        expected: what the sound kernel leaves in the output.
    """

    code: str
    sound: str
    broken: str
    says: tuple[str, ...]
    arrays: tuple
    expected: np.ndarray
    grid: int | tuple = 1
    block: int | tuple = 64
    error: type = KernelAccessError
    shared_bytes: int = 0
    scalars: tuple = field(default=())


def out(size, dtype=np.float32):
    """A place for an output of that size."""
    return (size, dtype)


def run(mistake, piece):
    """The output of the kernel with ``piece`` in its place, launched as a kernel of an op is."""
    (size, dtype), *inputs = mistake.arrays
    output = sim.empty(size, dtype)
    inputs = [array if array is None else array.copy() for array in inputs]
    kernel = CudaKernel(textwrap.dedent(mistake.code).strip().replace("@", piece), "k")
    with sim.operation("the kernel", (), (output,)):
        kernel.launch(mistake.grid, mistake.block, (output, *inputs, *mistake.scalars), mistake.shared_bytes)
    return output


def check_is_found(mistake):
    with sim.checks(True), pytest.raises(KernelLaunchError) as caught:
        run(mistake, mistake.broken)
    assert type(caught.value) is mistake.error
    for pattern in mistake.says:
        assert re.search(pattern, str(caught.value)), str(caught.value)


def check_sound_is_let_pass(mistake, orders=sim.ORDERS):
    for order in orders:
        with sim.checks(True), sim.order(order), sim.seed(2):
            assert np.array_equal(run(mistake, mistake.sound), mistake.expected), order
