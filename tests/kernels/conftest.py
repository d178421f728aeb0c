"""Fixtures of the kernel tests: every instruction-set level that this machine runs, both float dtypes, and
where CUDA kernels run: the simulator and a card."""

from ctypes import c_ubyte
from functools import partial

import numpy as np
import pytest
from numpy.lib.array_utils import byte_bounds

from minigrad.kernels import cpu, cuda, sim
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import CudaSource


@pytest.fixture(scope="session", params=cpu.available_levels())
def kernel_module(request):
    """``kernel_module("matmul")`` is that extension module, of each level in turn."""
    return partial(cpu.kernel_module, level=request.param)


@pytest.fixture(scope="session", params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    """Each dtype of 16 bits."""
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(np.float16)


class Simulator:
    """NumPy arrays are where the simulator reads them."""

    put = put_strided = get = staticmethod(lambda array: array)


class Card:
    put = staticmethod(lambda array: cuda.cupy().asarray(array))
    get = staticmethod(lambda array: cuda.cupy().asnumpy(array))

    @staticmethod
    def put_strided(array):
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        # As bytes: CuPy lays out anew what is neither C- nor Fortran-contiguous, as astype() may leave it.
        begin, end = byte_bounds(base)
        memory = cuda.cupy().asarray(np.ctypeslib.as_array((c_ubyte * (end - begin)).from_address(begin)))
        start = memory.data + (array.ctypes.data - begin)
        return cuda.cupy().ndarray(array.shape, array.dtype, start, array.strides)


@pytest.fixture(params=["sim", "cuda"])
def backend(request):
    """Where CUDA kernels run: ``put`` and ``get`` move arrays; ``put_strided`` keeps strides."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    return Simulator() if request.param == "sim" else Card()


@pytest.fixture
def simulator():
    """The backend of tests that are for the simulator alone."""
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    return Simulator()


@pytest.fixture
def card(backend):
    """A card that has wgmma, or the simulator in the place of one."""
    if not cuda.matmul_wgmma.is_supported(backend.put(np.zeros(1))):
        pytest.skip("wgmma needs a card of compute capability 9.0")
    return backend


@pytest.fixture
def change(monkeypatch):
    """``change(module, old, new)``: launch the kernels of a module of ``cuda`` with ``new`` in the place of
    ``old`` in their source, until the test ends."""

    def change(module, old, new):
        text = module._source.text
        assert old in text
        source = CudaSource(text.replace(old, new, 1), module._source.architecture)
        tables = [table for table in vars(module).values() if isinstance(table, dict)]
        for table in tables:
            for key, kernel in table.items():
                if isinstance(kernel, CudaKernel):
                    monkeypatch.setitem(table, key, CudaKernel(source, kernel.expression))

    return change


@pytest.fixture
def run(backend):
    """``run(kernel, shape, dtype, *args)``: the output of a CUDA kernel, which starts filled with NaN.

    A list of shapes, and of dtypes if they differ, is for a kernel of several outputs, which takes and gives
    a tuple.
    """

    def run(kernel, shape, dtype, *args, fill=np.nan):
        args = [backend.put(a) if isinstance(a, np.ndarray) else a for a in args]
        if isinstance(shape, list):
            dtypes = dtype if isinstance(dtype, list) else [dtype] * len(shape)
            outs = tuple(backend.put(np.full(s, fill, d)) for s, d in zip(shape, dtypes, strict=True))
            kernel(outs, *args)
            return tuple(map(backend.get, outs))
        out = backend.put(np.full(shape, fill, dtype))
        kernel(out, *args)
        return backend.get(out)

    return run


@pytest.fixture
def checked_accesses():
    """The simulator checks every access of memory."""
    with sim.checks():
        yield


@pytest.fixture(params=["a launch a step", "one launch", "one launch, two rows a block", "clusters"])
def recurrent(request, monkeypatch):
    """Each module that launches the kernels of recurrent layers."""
    if request.param == "clusters":
        place = Card if request.node.callspec.params.get("backend") == "cuda" else Simulator
        if not cuda.recurrent_cluster.is_supported(place.put(np.zeros(1))):
            pytest.skip("clusters need a card of compute capability 9.0")
        return cuda.recurrent_cluster
    if request.param == "a launch a step":
        return cuda.recurrent
    sequence = cuda.recurrent_sequence
    if request.node.callspec.params.get("size", (1, 1, 1))[2] > sequence.THREADS:
        pytest.skip("more units than a block has threads")
    if request.param == "one launch, two rows a block":
        monkeypatch.setattr(sequence, "MANY_ROWS", 0)
    return sequence
