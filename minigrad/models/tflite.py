"""The tensors of a network in TensorFlow Lite's format, which is a tree of FlatBuffers tables.

A table starts with the distance to its vtable, a list of 16-bit numbers: its own size in bytes, the table's,
and for each field of the schema the place of its value in the table, 0 where it is left out. Tables, vectors
and strings stand elsewhere, and a value is the distance to there. See https://flatbuffers.dev/internals, and
TensorFlow's ``schema.fbs`` for the numbers of fields.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from minigrad.creation import from_numpy
from minigrad.data.idx import DataError
from minigrad.tensor import Tensor

__all__ = ["read_tflite"]

MODEL_SUBGRAPHS, MODEL_BUFFERS = 2, 4
SUBGRAPH_TENSORS = 0
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER, TENSOR_NAME, TENSOR_QUANTIZATION = range(5)
QUANTIZATION_SCALE, QUANTIZATION_ZERO_POINT = 2, 3
BUFFER_DATA = 0
ELEMENT_TYPES = {0: "<f4", 2: "<i4", 3: "u1", 9: "i1"}


class Table:
    """A table of a file's ``content``, at a place in it."""

    def __init__(self, content: bytes, place: int):
        self.content, self.place = content, place
        self.vtable = place - self._number("<i", place)

    def _number(self, kind: str, place: int) -> int:
        return struct.unpack_from(kind, self.content, place)[0]

    def _field(self, field: int) -> int | None:
        """The place of a field's value, or None."""
        entry = 4 + 2 * field
        if entry >= self._number("<H", self.vtable):
            return None
        offset = self._number("<H", self.vtable + entry)
        return self.place + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """The value of a field that is a number; 0 by default."""
        place = self._field(field)
        return 0 if place is None else self._number(kind, place)

    def table(self, field: int) -> Table | None:
        """The table that a field refers to."""
        place = self._field(field)
        return None if place is None else Table(self.content, self._target(place))

    def array(self, field: int, dtype: str) -> np.ndarray:
        """The vector that a field refers to; empty by default."""
        place = self._field(field)
        if place is None:
            return np.empty(0, dtype)
        start = self._target(place)
        return np.frombuffer(self.content, dtype, self._number("<I", start), start + 4)

    def tables(self, field: int) -> list[Table]:
        """The tables that a field's vector refers to."""
        place = self._field(field)
        if place is None:
            return []
        first = self._target(place) + 4
        count = self._number("<I", first - 4)
        return [Table(self.content, self._target(first + 4 * i)) for i in range(count)]

    def _target(self, place: int) -> int:
        return place + self._number("<I", place)


def read_tflite(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name to float32 Tensor for all constants of a TensorFlow Lite file, in TensorFlow's layouts.

    Integers that stand for quantized numbers become these: ``(value - zero_point) * scale``.

    Raises:
        DataError: it is no such file, or a damaged one.
    """
    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise DataError(f"{os.fspath(path)}: not a file of TensorFlow Lite")
    try:
        model = Table(content, struct.unpack_from("<I", content)[0])
        buffers = model.tables(MODEL_BUFFERS)
        return {
            tensor.array(TENSOR_NAME, "u1").tobytes().decode(): from_numpy(_values(tensor, data))
            for tensor in model.tables(MODEL_SUBGRAPHS)[0].tables(SUBGRAPH_TENSORS)
            if len(data := buffers[tensor.number(TENSOR_BUFFER, "<I")].array(BUFFER_DATA, "u1"))
        }
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{os.fspath(path)}: a damaged file of TensorFlow Lite: {error!r}") from error


def _values(tensor: Table, data: np.ndarray) -> np.ndarray:
    values = data.view(ELEMENT_TYPES[tensor.number(TENSOR_TYPE, "b")])
    quantization = tensor.table(TENSOR_QUANTIZATION)
    if quantization is not None and len(scale := quantization.array(QUANTIZATION_SCALE, "<f4")):
        zero_point = quantization.array(QUANTIZATION_ZERO_POINT, "<i8")
        values = (values - zero_point).astype(np.float32) * scale
    return values.astype(np.float32).reshape(tensor.array(TENSOR_SHAPE, "<i4"))
