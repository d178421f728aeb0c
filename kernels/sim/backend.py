"""Runs kernels on the simulator: the counterpart of ``minigrad.kernels.cuda.backend``."""

from __future__ import annotations

import ctypes
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import sim
from ..errors import KernelAccessError, KernelLaunchError, KernelOrderError
from ..source import CudaSource, Parameter, Signature
from .architectures import SHARED_BYTES
from .build import load_kernel, load_runtime
from .checked import Checks, GuardedArrays, with_source_lines
from .profiler import REPORT, Recorder, get_launches
from .translate import translate

# Fewer simulated threads than this are done before a second worker has started.
SERIAL_THREADS = 4096

BAD_ACCESS = 2  # what sim_launch returns then; 1 is any other failure


class Options(ctypes.Structure):
    """``Options`` of runtime.cpp."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("shared_limit", ctypes.c_size_t),
        ("architecture", ctypes.c_char_p),
        ("checks", ctypes.POINTER(Checks)),
        ("report", REPORT),
        ("order", ctypes.c_uint32),
        ("max_workers", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("asynchronous", ctypes.c_uint32),
    ]


class SimulatorBackend:
    """Compiles kernels as C++ and runs them on the CPU; arrays are NumPy's."""

    packs = False

    def load(self, source: CudaSource, signature: Signature, instance: str):
        """A launcher of ``instance``, as :class:`minigrad.kernels.launch.Backend` describes it."""
        if source.architecture and source.architecture not in SHARED_BYTES:
            raise KernelLaunchError(
                f"{instance}: {source.name} is written for cards of {source.architecture} alone, whose "
                "instructions the simulator does not have"
            )
        kernel = _Kernel(source, signature, instance)
        kernel.library(_mode())  # so that compile errors come now
        return kernel.launch


backend = SimulatorBackend()


def _mode() -> str:
    """How launches are made now: one of ``MODES`` of build.py."""
    if get_launches() is not None:
        return "profiled"
    return "checked" if sim.get_checks() else "plain"


class _Kernel:
    """One instance of a kernel, compiled once for each mode that it is launched in."""

    def __init__(self, source: CudaSource, signature: Signature, instance: str):
        self.instance = instance
        self.only = source.architecture
        self.parameters = signature.parameters
        code = translate(source, signature, instance)
        self.library = cache(lambda mode: load_kernel(code, instance, mode))

    def launch(self, device: Any, grid: tuple, block: tuple, values: list, shared_bytes: int) -> None:
        """Run the kernel, in one order or in several."""
        mode = _mode()
        self._check_limits(mode, grid, math.prod(block), shared_bytes)
        run = partial(self._run, mode, grid, block, shared_bytes)
        orders = sim.orders() if mode != "profiled" else sim.orders()[:1]
        if mode == "plain" and len(orders) == 1:
            return run(values, None, orders[0])
        first = GuardedArrays(values, self.parameters)
        run(first.values, first, orders[0])
        for order in orders[1:]:
            other = GuardedArrays(values, self.parameters)
            run(other.values, other, order)
            self._compare(first, other, orders[0], order)
        first.copy_back()

    def _check_limits(self, mode: str, grid: tuple, threads: int, shared_bytes: int) -> None:
        """What a card would refuse to launch."""
        architecture = sim.get_architecture()
        if self.only and self.only != architecture:
            raise KernelLaunchError(
                f"{self.instance}: the source is written for cards of {self.only} alone, and the simulator "
                f"stands in for one of {architecture}: launch it inside sim.architecture({self.only!r})"
            )
        library = self.library(mode)
        if hasattr(library, "sim_max_threads") and threads > (most := library.sim_max_threads()):
            raise KernelLaunchError(
                f"{self.instance}: launched with blocks of {threads} threads, "
                f"but its __launch_bounds__ allow {most}"
            )
        if grid[0] % (cluster := _cluster(library)):
            raise KernelLaunchError(
                f"{self.instance}: launched with {grid[0]} blocks along x, no multiple of the {cluster} "
                "of a cluster"
            )
        if shared_bytes > (most := SHARED_BYTES[architecture]):
            raise KernelLaunchError(
                f"{self.instance}: launched with {shared_bytes} bytes of shared memory for each block; "
                f"{architecture} allows {most}"
            )

    def _run(
        self,
        mode: str,
        grid: tuple,
        block: tuple,
        shared_bytes: int,
        values: list,
        guarded: GuardedArrays | None,
        order: sim.Order,
    ) -> None:
        """One run, in ``order``. Raises what went wrong."""
        library = self.library(mode)
        arguments = b"".join(map(_pack, values, self.parameters))
        sizes = (ctypes.c_uint * 6)(*grid, *block)
        architecture = sim.get_architecture()
        options = Options(
            seed=order.seed,
            shared_limit=SHARED_BYTES[architecture],
            architecture=architecture.encode(),
            order=sim.ORDERS.index(order.name),
            max_workers=sim.get_num_threads() if math.prod(sizes) >= SERIAL_THREADS else 1,
            cluster=_cluster(library),
            asynchronous=bool(self.only),
        )
        recorder = Recorder() if mode == "profiled" else None
        if guarded and mode != "plain":
            options.checks = ctypes.pointer(guarded.describe(len(arguments)))
        if recorder:
            options.report = recorder.callback
        entry = ctypes.cast(library.sim_entry, ctypes.c_void_p)
        error = ctypes.create_string_buffer(4096)
        path = Path(library._name)

        def message() -> str:
            return with_source_lines(error.value.decode(errors="replace"), path)

        try:
            status = runtime()(
                self.instance.encode(),
                *(entry, arguments, sizes, shared_bytes, ctypes.byref(options), error, len(error)),
            )
        except KeyboardInterrupt:  # by Ctrl-C, which has ended the launch, too: where was it?
            raise KeyboardInterrupt(message()) from None
        if status:
            raise (KernelAccessError if status == BAD_ACCESS else KernelLaunchError)(message())
        launches = get_launches()
        if recorder and launches is not None:
            launches.append(recorder.result(self.instance, grid, block, path))

    def _compare(
        self, expected: GuardedArrays, got: GuardedArrays, first: sim.Order, order: sim.Order
    ) -> None:
        """Raise KernelOrderError if two runs have not left the same bits."""
        for parameter, a, b in zip(self.parameters, expected.values, got.values, strict=True):
            if not _is_output(parameter, a):
                continue
            differ = np.argwhere(_bits(a) != _bits(b))
            if len(differ):
                at = tuple(differ[0])
                raise KernelOrderError(
                    f"{self.instance}: `{parameter}` depends on the order in which the threads run: element "
                    f"{list(map(int, at))} is {a[at]} in the order {first} and {b[at]} in the order {order} "
                    f"({len(differ)} of {a.size} elements differ); sim.order({order.name!r}) and "
                    f"sim.seed({order.seed}) show it again"
                )


def _cluster(library: ctypes.CDLL) -> int:
    """How many blocks of the kernel run together."""
    return library.sim_cluster() if hasattr(library, "sim_cluster") else 1


def _is_output(parameter: Parameter, value: Any) -> bool:
    return parameter.is_pointer and not parameter.is_const and value is not None


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements as integers, so that a NaN equals itself and 0 is not -0."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)


def _pack(value: Any, parameter: Parameter) -> bytes:
    """One argument as its bytes, padded to a multiple of 16 (``sim::take`` in cuda_sim.h reads them)."""
    if not parameter.is_pointer:
        data = value.tobytes()
    else:
        data = (0 if value is None else value.ctypes.data).to_bytes(8, "little")
    return data.ljust(-(-len(data) // 16) * 16, b"\0")


@cache
def runtime():
    """The C function ``sim_launch`` of runtime.cpp."""
    function = load_runtime().sim_launch
    function.restype = ctypes.c_int
    function.argtypes = [
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_size_t,
        ctypes.POINTER(Options),
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return function
