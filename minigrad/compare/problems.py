"""The problems that the ladders climb: a matrix product, a convolution and a pooling, at several sizes.

A problem is a size of one op. It makes its inputs, runs minigrad's op on them, and has two other solutions
to compare with: one as a NumPy user would write it, which in float64 is also what every result is checked
against, and one in plain Python. It knows its work: the operations and the bytes that no solution can do
without.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["LADDERS", "Conv2d", "Matmul", "MaxPool2d", "Problem"]

DTYPE = np.dtype(np.float32)


class Problem:
    """What the three problems share.

    Attributes:
        op: the name under which the op's kernels are registered.
        bound: what limits a perfect kernel, ``"compute"`` or ``"memory"``.
        size: the sizes as text, ``"1024x1024x1024"``.
        shapes: the shapes of the inputs.
        operations: floating-point operations (a multiply-add is two).
        bytes: the inputs read once and the outputs written once.
        tolerance: the largest error that rounding explains, for inputs of unit variance.
    """

    op: ClassVar[str]
    bound: ClassVar[str]
    numpy_adds: ClassVar[str]
    python_adds: ClassVar[str]
    shapes: tuple[tuple[int, ...], ...]
    operations: int
    bytes: int
    tolerance: float

    @property
    def size(self) -> str:
        return "x".join(map(str, astuple(self)))  # type: ignore[call-overload]

    @property
    def unit(self) -> str:
        """``"GFLOP/s"`` where arithmetic is the limit, ``"GB/s"`` where memory is."""
        return "GFLOP/s" if self.bound == "compute" else "GB/s"

    @property
    def work(self) -> int:
        """What the rate counts: operations, or bytes."""
        return self.operations if self.bound == "compute" else self.bytes

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Fresh normal float32 inputs."""
        return [rng.standard_normal(shape, DTYPE) for shape in self.shapes]

    def run(self, *tensors: Any) -> Any:
        """minigrad's op on tensors, through the dispatcher."""
        raise NotImplementedError

    def array_program(self, xp: Any, *arrays: Any) -> Any:
        """The solution in NumPy (or CuPy, where that has one)."""
        raise NotImplementedError

    def plain_python(self, *lists: Any) -> Any:
        """The solution in Python alone: nested lists in, nested lists out."""
        raise NotImplementedError

    @classmethod
    def odd(cls) -> Problem:
        """A small problem whose sizes fill no tile, to check a kernel's edges with."""
        raise NotImplementedError

    @classmethod
    def sizes(cls, device_type: str, quick: bool) -> list[Problem]:
        """The sizes to climb, smallest first; the last is the one to measure if a rung is fast enough."""
        raise NotImplementedError


def _rounding(terms: int) -> float:
    """The error of a sum of ``terms`` products of unit variance: a random walk of ``terms`` roundings, each
    relative to a sum that grows to sqrt(terms); with room for the largest of millions."""
    return 4.0 * float(np.finfo(DTYPE).eps) * terms


def _shortened(sizes: list, quick: bool) -> list:
    return sizes[:-1] if quick and len(sizes) > 1 else sizes


@dataclass(frozen=True)
class Matmul(Problem):
    """out (M, N) = a (M, K) @ b (K, N)."""

    M: int
    N: int
    K: int

    op: ClassVar[str] = "matmul"
    bound: ClassVar[str] = "compute"
    numpy_adds: ClassVar[str] = "a @ b: the BLAS library that NumPy was built with."
    python_adds: ClassVar[str] = (
        "Three loops over lists: every number is an object, every step is interpreted."
    )

    @property
    def shapes(self):
        return (self.M, self.K), (self.K, self.N)

    @property
    def operations(self):
        return 2 * self.M * self.N * self.K

    @property
    def bytes(self):
        return (self.M * self.K + self.K * self.N + self.M * self.N) * DTYPE.itemsize

    @property
    def tolerance(self):
        return _rounding(self.K)

    def run(self, a, b):
        return a @ b

    def array_program(self, xp, a, b):
        return xp.matmul(a, b)

    def plain_python(self, a, b):
        out = []
        for i in range(self.M):
            row = []
            for j in range(self.N):
                total = 0.0
                for k in range(self.K):
                    total += a[i][k] * b[k][j]
                row.append(total)
            out.append(row)
        return out

    @classmethod
    def odd(cls):
        return cls(67, 45, 131)

    @classmethod
    def sizes(cls, device_type, quick):
        sides = {"sim": (32, 64), "cuda": (64, 256, 1024, 2048, 4096), "cpu": (64, 128, 256, 512, 1024)}
        return _shortened([cls(n, n, n) for n in sides[device_type]], quick)


@dataclass(frozen=True)
class Conv2d(Problem):
    """A 3x3 convolution, stride 1, padding 1: x (N, C, H, W), weight (O, C, 3, 3) -> out (N, O, H, W)."""

    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741 (the field's name for output channels)

    KERNEL: ClassVar[int] = 3
    op: ClassVar[str] = "conv2d"
    bound: ClassVar[str] = "compute"
    numpy_adds: ClassVar[str] = "Nine shifted copies of each image, stacked, and one BLAS product."
    python_adds: ClassVar[str] = (
        "Seven loops over lists: every number is an object, every step is interpreted."
    )

    @property
    def size(self):
        return f"{self.N}x{self.C}x{self.H}x{self.W} * {self.O}x{self.C}x3x3"

    @property
    def shapes(self):
        return (self.N, self.C, self.H, self.W), (self.O, self.C, self.KERNEL, self.KERNEL)

    @property
    def operations(self):
        return 2 * self.N * self.O * self.H * self.W * self._terms

    @property
    def bytes(self):
        pixels = self.N * self.H * self.W
        return (pixels * (self.C + self.O) + self.O * self._terms) * DTYPE.itemsize

    @property
    def tolerance(self):
        return _rounding(self._terms)

    @property
    def _terms(self):
        return self.C * self.KERNEL * self.KERNEL

    def run(self, x, weight):
        from minigrad.ops.conv import conv2d

        return conv2d(x, weight, padding=1)

    def array_program(self, xp, x, weight):
        padded = xp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out = xp.empty((self.N, self.O, self.H, self.W), x.dtype)
        taps = [(i, j) for i in range(self.KERNEL) for j in range(self.KERNEL)]
        for image, result in zip(padded, out, strict=True):
            shifted = [image[:, i : i + self.H, j : j + self.W] for i, j in taps]
            columns = xp.stack(shifted, axis=1).reshape(self._terms, self.H * self.W)
            xp.matmul(
                weight.reshape(self.O, self._terms), columns, out=result.reshape(self.O, self.H * self.W)
            )
        return out

    def plain_python(self, x, weight):
        return [
            [
                [[self._pixel(image, kernel, i, j) for j in range(self.W)] for i in range(self.H)]
                for kernel in weight
            ]
            for image in x
        ]

    def _pixel(self, image, kernel, i, j):
        total = 0.0
        for plane, taps in zip(image, kernel, strict=True):
            for u in range(max(0, i - 1), min(self.H, i + 2)):
                for v in range(max(0, j - 1), min(self.W, j + 2)):
                    total += plane[u][v] * taps[u - i + 1][v - j + 1]
        return total

    @classmethod
    def odd(cls):
        return cls(2, 3, 13, 11, 17)

    @classmethod
    def sizes(cls, device_type, quick):
        first = cls(1, 4, 14, 14, 16)
        on_cpu = [first, cls(1, 16, 14, 14, 16), cls(2, 32, 28, 28, 32), cls(4, 64, 28, 28, 64)]
        on_card = [first, *on_cpu[-1:], cls(32, 64, 56, 56, 64), cls(128, 64, 56, 56, 64)]
        sizes = {"sim": [first], "cuda": on_card, "cpu": [*on_cpu, cls(16, 64, 28, 28, 64)]}
        return _shortened(sizes[device_type], quick)


@dataclass(frozen=True)
class MaxPool2d(Problem):
    """The largest of each 2x2 window: x (N, C, H, W) -> out (N, C, H / 2, W / 2)."""

    N: int
    C: int
    H: int
    W: int

    op: ClassVar[str] = "max_pool2d"
    bound: ClassVar[str] = "memory"
    numpy_adds: ClassVar[str] = (
        "np.maximum of four strided views (without the winners that the kernels keep)."
    )
    python_adds: ClassVar[str] = "Loops over lists: every number is an object, every step is interpreted."

    @property
    def shapes(self):
        return ((self.N, self.C, self.H, self.W),)

    @property
    def _windows(self):
        return self.N * self.C * (self.H // 2) * (self.W // 2)

    @property
    def operations(self):
        return 3 * self._windows

    @property
    def bytes(self):
        return (self.N * self.C * self.H * self.W + self._windows) * DTYPE.itemsize

    @property
    def tolerance(self):
        return 0.0

    def run(self, x):
        from minigrad.ops.pool import max_pool2d

        return max_pool2d(x, 2)

    def array_program(self, xp, x):
        x = x[:, :, : self.H // 2 * 2, : self.W // 2 * 2]
        upper, lower = x[:, :, ::2], x[:, :, 1::2]
        return xp.maximum(
            xp.maximum(upper[..., ::2], upper[..., 1::2]), xp.maximum(lower[..., ::2], lower[..., 1::2])
        )

    def plain_python(self, x):
        return [[self._pooled(plane) for plane in image] for image in x]

    def _pooled(self, plane):
        return [
            [
                max(plane[i][j], plane[i][j + 1], plane[i + 1][j], plane[i + 1][j + 1])
                for j in range(0, self.W - 1, 2)
            ]
            for i in range(0, self.H - 1, 2)
        ]

    @classmethod
    def odd(cls):
        return cls(3, 5, 13, 10)

    @classmethod
    def sizes(cls, device_type, quick):
        first = cls(1, 8, 28, 28)
        # In a hurry not much smaller: an array that fits in a cache would not show the memory.
        last = cls(32 if quick else 64, 64, 56, 56)
        on_cpu = [first, cls(4, 32, 56, 56), cls(16, 64, 56, 56), last]
        if device_type == "sim":
            return [first]
        return on_cpu if device_type == "cpu" else [*on_cpu, cls(256, 64, 112, 112)]


LADDERS: dict[str, type[Problem]] = {"matmul": Matmul, "conv2d": Conv2d, "pooling": MaxPool2d}
"""The ladders by the names that ``--only`` takes."""
