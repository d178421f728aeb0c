"""New arrays for kernels: made as CuPy's own call makes them, with less ado."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad.kernels.cuda.memory import maker, unused, workspace, workspaces
from minigrad.kernels.source import CudaSource


class Base:
    """What CuPy's arrays inherit from."""

    def _init(self, shape, dtype=float):
        self.shape, self.dtype = shape, np.dtype(dtype)


class Array(Base):
    """As CuPy's arrays: a call of the type makes one in several steps."""

    calls = 0
    data = SimpleNamespace(device_id=0)

    def __init__(self, shape, dtype=float):
        type(self).calls += 1
        self._init(shape, dtype)


class Plain:
    """Arrays of a CuPy with other internals."""

    def __init__(self, shape, dtype=float):
        self.shape, self.dtype = shape, np.dtype(dtype)


@pytest.mark.parametrize("kind", [Array, Plain])
def test_an_array_is_made_as_by_a_call_of_its_type(kind):
    made = maker(kind)((2, 3), np.float16)
    assert type(made) is kind and (made.shape, made.dtype) == ((2, 3), np.float16)


def test_a_workspace_is_of_the_type_and_dtype_of_the_array_beside_it():
    like, before = Array((4,), np.float16), Array.calls
    made, of_words = workspace(like, (2, 3)), workspace(like, 5, np.int64)
    assert type(made) is Array and (made.shape, made.dtype) == ((2, 3), np.float16)
    assert (of_words.shape, of_words.dtype) == (5, np.int64)
    first, second = workspaces(like, 7)
    assert first is not second and first.shape == second.shape == 7
    assert Array.calls == before


def test_there_is_one_unused_array_for_each_card_and_dtype():
    here, there = Array((4,)), Array((4,))
    there.data = SimpleNamespace(device_id=1)
    found = unused(here, np.int64)
    assert found is unused(here, np.int64) and found.shape == 0
    assert found is not unused(here, np.float32) and found is not unused(there, np.int64)


def test_the_simulator_gets_arrays_of_numpy():
    like = np.zeros(3, np.float32)
    assert workspace(like, (2,)).dtype == np.float32 and unused(like, np.int64).size == 0


def test_a_compiled_module_finds_the_source_beside_it(tmp_path):
    compiled = tmp_path / f"scale{EXTENSION_SUFFIXES[0]}"
    (tmp_path / "scale.cu").write_text("__global__ void scale(float* y) {}")
    for name in (compiled, Path(tmp_path / "scale.py")):
        source = CudaSource(name.with_suffix(".cu"))
        assert source.name == "scale.cu" and source.signature("scale").name == "scale"
