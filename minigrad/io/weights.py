"""Weights in safetensors files: a JSON header with names, dtypes and shapes, then the raw values.

The format is described at https://github.com/huggingface/safetensors. It holds data only, so that loading a
file never runs code that came with it, unlike Python's pickles; PyTorch, JAX and others read and write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from minigrad.creation import from_numpy
from minigrad.dtypes import BFLOAT16
from minigrad.io.files import write_atomically
from minigrad.kernels.source import is_bfloat16
from minigrad.tensor import Tensor

__all__ = ["load_file", "read_arrays", "save_file"]

# The names of the element types in the file's header, and how NumPy reads them; for bfloat16 see _to_array.
# Eight-bit floats and complex numbers have no place in minigrad.
ELEMENT_TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_file(
    tensors: Mapping[str, Tensor | np.ndarray],
    path: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors`` to the safetensors file ``path``, as a whole or not at all.

    Args:
        tensors: name to Tensor (of any device and strides) or array; dtype and shape are kept. Tensors that
            share memory are written once for each name.
        path: or an open binary file, such as ``io.BytesIO()``.
        metadata: text to keep in the file's header, which ``load_file`` ignores.

    Raises:
        TypeError: something that is not a tensor under a name, or a dtype that the format lacks.
        OSError: ``path`` cannot be written; a file that was there before is as it was.
        ImportError: the safetensors package is missing: ``pip install "minigrad[io]"``.
    """
    arrays = {name: _to_savable(name, value) for name, value in _items(tensors)}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"save_file: metadata must be text to text, got {key!r}: {value!r}")
    content = _import_safetensors().numpy.save(arrays, metadata=dict(metadata) if metadata else None)
    if isinstance(path, (str, os.PathLike)):
        write_atomically(path, lambda file: file.write(content))
    elif hasattr(path, "write"):
        path.write(content)
    else:
        raise TypeError(f"save_file: expected a path or an open binary file, got {type(path).__name__}")


def load_file(path: str | os.PathLike[str] | BinaryIO, device: Any = "cpu") -> dict[str, Tensor]:
    """Read all tensors of the safetensors file ``path``, or open binary file, onto ``device``.

    Dtypes are kept. bfloat16, where the package ml_dtypes is not installed, comes as float32, of exactly
    the same value.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, not a safetensors file, or of an unknown element type.
        ImportError: the safetensors package is missing: ``pip install "minigrad[io]"``.
    """
    tensors = {name: from_numpy(array) for name, array in read_arrays(path)[0].items()}
    if str(device) == "cpu":
        return tensors
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def read_arrays(path: str | os.PathLike[str] | BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(the tensors of a safetensors file as arrays, its metadata); raises what :func:`load_file` does."""
    safetensors = _import_safetensors()
    if isinstance(path, (str, os.PathLike)):
        name_of_file = os.fspath(path)
        with open(path, "rb") as file:
            content = file.read()
    else:
        name_of_file = str(getattr(path, "name", "load"))
        read: Any = getattr(path, "read", lambda: None)
        content = read()
        if not isinstance(content, bytes):
            raise TypeError(f"load: expected a path or an open binary file, got {type(path).__name__}")
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name_of_file}: {_what_is_wrong(content)}: {error}") from error
    # The header has been checked by now: its length, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: _to_array(name_of_file, name, entry) for name, entry in entries}, header.get(
        "__metadata__"
    ) or {}


def _import_safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'saving and loading weights needs the safetensors package: pip install "minigrad[io]"'
        ) from error
    return safetensors


def _items(tensors: Any) -> Any:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: expected a mapping of names to tensors, got {type(tensors).__name__}")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"save: names of tensors must be text, got {name!r}")
        if name == "__metadata__":
            raise ValueError("save: a tensor cannot have the name '__metadata__', which the format reserves")
    return tensors.items()


def _to_savable(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"save: {name!r} must be a tensor, got {type(value).__name__}")
    if is_bfloat16(value.dtype):
        return np.asarray(value, order="C")
    little_endian = value.dtype.newbyteorder("<")
    if little_endian not in ELEMENT_TYPES.values():
        raise TypeError(f"save: {name!r} has dtype {value.dtype}, which safetensors files cannot hold")
    # The library reads the memory from the first element on, whatever the strides. (ascontiguousarray would
    # make a 0-d array 1-d.)
    return np.asarray(value, little_endian, order="C")


def _what_is_wrong(content: bytes) -> str:
    # Asked only when the file could not be read: a header of 640 bytes starts like a pickle, too.
    if not content.startswith(PICKLE_STARTS):
        return f"not a safetensors file, or a truncated or damaged one ({len(content)} bytes)"
    return (
        "not a safetensors file but a pickle, as torch.save writes it. Loading one can run code that comes "
        "with it, which minigrad never does; convert it where PyTorch is installed: "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)"
    )


def _to_array(path: str, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    element = ELEMENT_TYPES.get(entry["dtype"])
    if element is None:
        raise ValueError(
            f"{path}: tensor {name!r} has element type {entry['dtype']}; minigrad reads "
            f"{', '.join(ELEMENT_TYPES)}"
        )
    values = np.frombuffer(entry["data"], element)
    if entry["dtype"] == "BF16" and BFLOAT16 is not None:
        return values.copy().view(BFLOAT16).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        # bfloat16 is the upper half of a float32.
        values = (values.astype(np.uint32) << 16).view(np.float32)
    values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
    return values.reshape(entry["shape"])
