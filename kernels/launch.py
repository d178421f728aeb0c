"""Launches CUDA kernels: on a card through CuPy, or on the CPU through the simulator.

The two differ in one object, a backend, chosen by the type of the first array among the arguments: a CuPy
array means the card that it lives on, a NumPy array means the simulator. All else is done here, once:
checking every argument against the kernel's signature, deducing the template's types, checking the limits
of a launch, and compiling on first use. ::

    saxpy = CudaKernel("saxpy.cu", "saxpy<T>")     # template <typename T>
                                                   # __global__ void saxpy(T* y, const T* x, T a, int n)
    saxpy.launch(blocks(n, 256), 256, (y, x, 2.0, n))
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from struct import error as StructError
from typing import Any, Protocol

import numpy as np

from .arguments import ArgumentBinder, strided
from .packing import Packing
from .source import (
    NUMBER_TYPES,
    CudaSource,
    Signature,
    canonical_type,
    computed_dtype,
    split_commas,
    type_of_dtype,
)

__all__ = ["Backend", "CudaKernel", "blocks", "strided"]

MAX_THREADS_PER_BLOCK = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_SHARED_BYTES = 227 * 1024  # of one block on compute capability 9.0; other cards have less

Dimensions = tuple[int, int, int]

Launcher = Callable[..., None]
"""Called as (the arrays' device, grid, block, the values that the binder made, shared_bytes); of a backend
that packs, as (the number of the card, grid, block, a Packing, what it packs, shared_bytes)."""


class Backend(Protocol):
    """Compiles one instance of a kernel, such as ``matmul_tiled<float>``, into something to call.

    Attributes:
        packs: whether its launchers take packed arguments.
    """

    packs: bool

    def load(self, source: CudaSource, signature: Signature, instance: str) -> Launcher: ...


def blocks(elements: int, per_block: int) -> int:
    """How many blocks of ``per_block`` elements cover ``elements``."""
    return -(-elements // per_block)


class CudaKernel:
    """One ``__global__`` function of a CUDA source, compiled on first launch for each backend and type.

    Making one costs nothing: the source is read when the kernel, or its ``signature``, is first used.

    Args:
        source: a ``.cu`` file, or a string of CUDA code.
        name: the kernel, with its template arguments if it is a template: ``"matmul_tiled<T>"``. A type
            parameter named there stands for the dtype of the arrays passed to it; anything else
            (``"reduce<float, 256>"``) is taken literally, but that True and False are written as in C++.
            Without ``<...>``, all types are deduced.

    Raises:
        ValueError: there is no such kernel, or its signature cannot be read (on first use).
    """

    def __init__(self, source: str | Path | CudaSource, name: str):
        self.source = source if isinstance(source, CudaSource) else CudaSource(source)
        self.expression = re.sub(r"\b(True|False)\b", lambda flag: flag[0].lower(), name)
        self.name = name.partition("<")[0].strip()
        self._loaded: dict[tuple, Launcher] = {}
        self._deciding: tuple[int, ...] = ()
        self._quick: dict[Any, tuple[Packing, Launcher]] = {}  # by the dtypes that decide the instance
        self._loading = threading.Lock()

    @cached_property
    def signature(self) -> Signature:
        """The kernel's template parameters and parameters, as its source has them."""
        return self.source.signature(self.name)

    @cached_property
    def _template_arguments(self) -> list[str]:
        """What stands between the brackets of the kernel's name, checked against its template."""
        template = self.signature.template
        written = self.expression.partition("<")[2].strip().removesuffix(">")
        arguments = split_commas(written) if written else list(template)
        if len(arguments) != len(template):
            names = ", ".join(template) or "(none)"
            raise ValueError(f"{self.expression}: the template has the parameters {names}")
        for (parameter, kind), argument in zip(template.items(), arguments, strict=True):
            if kind != "typename" and argument == parameter:
                raise ValueError(
                    f"{self.expression}: give the value of the template parameter `{kind} {parameter}`"
                )
            if kind == "typename" and argument != parameter and canonical_type(argument) not in NUMBER_TYPES:
                raise ValueError(
                    f"{self.expression}: `{argument}` is neither the parameter {parameter} nor a number type"
                )
        return arguments

    @cached_property
    def given_types(self) -> dict[str, np.dtype]:
        """The types that the kernel's name gives to template parameters: ``{"T": dtype}``."""
        given = zip(self.signature.template.items(), self._template_arguments, strict=True)
        return {
            parameter: NUMBER_TYPES[canonical_type(argument)]
            for (parameter, kind), argument in given
            if kind == "typename" and argument != parameter
        }

    @cached_property
    def _binder(self) -> ArgumentBinder:
        return ArgumentBinder(self.source, self.signature, self.given_types)

    def check(self) -> None:
        """Raise now, rather than on first use, what is wrong with the name or the signature."""
        for parameter in self._binder.signature.parameters:
            known = parameter.type in NUMBER_TYPES or parameter.type in self.signature.template
            if not parameter.is_pointer and not known and parameter.type not in self._binder.structs:
                raise ValueError(
                    f"{self.name}: `{parameter}` has a type that is neither a number nor a known struct"
                )

    def __repr__(self) -> str:
        return f"CudaKernel({self.source.name!r}, {self.expression!r})"

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        """Run the kernel: ``grid`` blocks of ``block`` threads (an int, or up to three with x first).

        A grid or block of zero launches nothing. On a card the work joins CuPy's current stream; on the
        simulator it is done when the call returns.

        Args:
            args: one for each parameter. For a pointer: an array of its dtype, C-contiguous (or wrapped in
                :class:`strided`) and, unless the parameter is ``const``, writeable; None passes a null
                pointer where it is ``const``. ``__half`` is float16; ``__nv_bfloat16`` takes uint16 that
                are its bits, or the package ml_dtypes' bfloat16; a vector (``float4``) takes an array of
                its elements, aligned to it. For a number: a Python or NumPy number that fits. For a
                struct: a mapping of its fields.
            shared_bytes: the size of the dynamic shared memory of each block.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names kernel and parameter.
            KernelCompileError: the source does not compile; the message holds the compiler's lines.
            KernelLaunchError: the kernel could not run, or not finish.
        """
        try:
            grid, block, is_empty = _sizes(self.name, grid, block, shared_bytes)
        except TypeError:  # lists, which no cache takes
            grid, block, is_empty = _sizes.__wrapped__(self.name, grid, block, shared_bytes)
        if not (self._quick and not is_empty and self._launch_quickly(grid, block, args, shared_bytes)):
            self._launch_checked(grid, block, is_empty, args, shared_bytes)

    def _launch_quickly(
        self, grid: Dimensions, block: Dimensions, args: Sequence[Any], shared_bytes: int
    ) -> bool:
        """Launch an instance that was launched before; False, and nothing done, if something does not fit."""
        try:
            packing, launcher = self._quick[self._deciding_dtypes(args)]
            fitting = packing.fit(args)
            if fitting is None:
                return False
            card, values = fitting
            launcher(card, grid, block, packing, values, shared_bytes)
        except (AttributeError, IndexError, KeyError, TypeError, OverflowError, StructError):
            return False
        if keep is not None:
            keep(args)
        return True

    def _launch_checked(
        self, grid: Dimensions, block: Dimensions, is_empty: bool, args: Sequence[Any], shared_bytes: int
    ) -> None:
        """Launch after a check of every argument that can say what is wrong with it."""
        values, arrays, types = self._binder.bind(args)
        if is_empty:
            return
        backend, device = _backend(arrays[0]), arrays[0].device
        launcher = self._launcher(backend, types)
        if not backend.packs:
            launcher(device, grid, block, values, shared_bytes)
            return
        packing = Packing(self._binder, types, values, type(arrays[0]))
        launcher(device.id, grid, block, packing, packing.bound(values), shared_bytes)
        if keep is not None:
            keep(args)
        if all(args[i] is not None for i in self._binder.deciding):
            self._deciding = self._binder.deciding
            self._quick[self._deciding_dtypes(args)] = packing, launcher

    def _deciding_dtypes(self, args: Sequence[Any]) -> Any:
        """The dtypes of the arguments that decide which instance of the kernel is launched."""
        deciding = self._deciding
        if not deciding:  # all types are given; most kernels have none or one, which is quicker
            return deciding
        if len(deciding) == 1:
            return args[deciding[0]].dtype
        return tuple([args[i].dtype for i in deciding])

    def _launcher(self, backend: Backend, types: Mapping[str, np.dtype]) -> Launcher:
        key = (backend, *types.values())
        launcher = self._loaded.get(key)
        if launcher is None:
            with self._loading:
                launcher = self._loaded.get(key)
                if launcher is None:
                    halves = any(computed_dtype(dtype) != dtype for dtype in types.values())
                    source = self.source.with_halves if halves else self.source
                    launcher = backend.load(source, self.signature, self.instance(types))
                    self._loaded[key] = launcher
        return launcher

    def instance(self, types: Mapping[str, Any]) -> str:
        """The kernel's C++ name with its template types replaced.

        ``instance({"T": "float32"})`` of ``matmul_tiled<T>`` is ``"matmul_tiled<float>"``.
        """
        if not self._template_arguments:
            return self.name
        names = [
            str(type_of_dtype(np.dtype(types[argument]))) if argument in types else argument
            for argument in self._template_arguments
        ]
        return f"{self.name}<{', '.join(names)}>"


keep: Callable[[Sequence[Any]], None] | None = None
"""Called with the arguments of each launch on a card while a step is recorded: a graph refers to their memory
by its address alone."""


@lru_cache(maxsize=4096)  # the same few sizes come in every step of a training
def _sizes(name: str, grid: Any, block: Any, shared_bytes: int) -> tuple[Dimensions, Dimensions, bool]:
    """(grid, block, whether they are empty) of a launch of kernel ``name``; ValueError beyond the limits."""
    grid, block = _dimensions(name, "grid", grid), _dimensions(name, "block", block)
    threads = block[0] * block[1] * block[2]
    if threads > MAX_THREADS_PER_BLOCK or any(map(operator.gt, block, MAX_BLOCK)):
        raise ValueError(
            f"{name}: block {block} has {threads} threads; a block has at most "
            f"{MAX_THREADS_PER_BLOCK}, and at most {MAX_BLOCK} along x, y and z"
        )
    if any(map(operator.gt, grid, MAX_GRID)):
        raise ValueError(f"{name}: grid {grid} exceeds the limits {MAX_GRID} along x, y and z")
    if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
        raise ValueError(f"{name}: shared_bytes is {shared_bytes}; a block has 0 to {MAX_SHARED_BYTES} bytes")
    return grid, block, 0 in grid or 0 in block


def _dimensions(name: str, what: str, size: int | Sequence[int]) -> Dimensions:
    try:
        sizes = tuple(map(operator.index, (size,) if hasattr(size, "__index__") else size))
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or min(sizes) < 0:
        raise ValueError(f"{name}: {what} must be one to three integers from 0, got {size!r}")
    x, y, z = sizes + (1,) * (3 - len(sizes))
    return x, y, z


_backends: dict[type, Backend] = {}
"""The backends by the type of their arrays: an import statement takes longer than this look-up."""


def _backend(array: Any) -> Backend:
    """The backend that computes on ``array``: the one place where simulator and card part ways."""
    found = _backends.get(type(array))
    if found is None:
        module: Any
        if isinstance(array, np.ndarray):
            from .sim import backend as module
        else:
            from .cuda import backend as module
        found = _backends[type(array)] = module.backend
    return found
