"""``save`` and ``load``, PyTorch's names: values in a safetensors file.

Tensors are the file's tensors; all else, numbers and text in lists and dicts, is JSON in its header. A dict
of nothing but tensors, as ``state_dict()`` of a model is, makes a plain file of weights, for others too.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from minigrad.creation import from_numpy
from minigrad.devices import Device
from minigrad.io.weights import read_arrays, save_file
from minigrad.tensor import Tensor

__all__ = ["checksum", "decode", "encode", "load", "save"]

FORMAT = "minigrad values 1"


def save(obj: Any, f: str | os.PathLike[str] | BinaryIO) -> None:
    """Write a state dict, or any numbers, text and tensors in lists, tuples and dicts, to ``f``.

    ``save(model.state_dict(), "model.safetensors")``, or ``save({"epoch": 3, "model": model.state_dict(),
    "optimizer": optimizer.state_dict()}, "run.safetensors")``.

    ``f`` is a path or an open binary file.

    Raises:
        TypeError: a value that is none of these, such as a model itself. Besides, as :func:`save_file`.
    """
    if isinstance(obj, Mapping) and all(
        isinstance(name, str) and isinstance(value, (Tensor, np.ndarray)) for name, value in obj.items()
    ):
        save_file(obj, f)
        return
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(encode(obj, "", arrays))
    save_file(arrays, f, {"format": FORMAT, "tree": text, "crc32": checksum(text, arrays)})


def load(f: str | os.PathLike[str] | BinaryIO, map_location: Any = None, *, weights_only: bool = True) -> Any:
    """What :func:`save` wrote: ``model.load_state_dict(load("model.safetensors"))``.

    Files of weights by others, in the safetensors format, are read as well. Damaged and missing ones raise
    what :func:`load_file` does.

    Args:
        map_location: the device to put the tensors on (default: the CPU, for a function or a dict, too).
        weights_only: accepted and ignored: only data is ever loaded, and no code in a file is run.
    """
    device = map_location if isinstance(map_location, (str, Device)) else "cpu"
    arrays, metadata = read_arrays(f)
    if metadata.get("format") != FORMAT:
        return {name: from_numpy(array).to(device) for name, array in arrays.items()}
    text = metadata.get("tree", "")
    if metadata.get("crc32") != checksum(text, arrays):
        raise ValueError(f"{f}: the file is damaged: its content has another checksum")
    return decode(json.loads(text), arrays, device)


def encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON; its tensors go to ``arrays``, under their ``path``."""
    if isinstance(value, (Tensor, np.ndarray)):
        while path in arrays:
            path += "'"
        tensor = isinstance(value, Tensor)
        arrays[path] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return {"tensor" if tensor else "array": path}
    if isinstance(value, Mapping):
        return {"dict": [[encode(k, path, {}), encode(v, f"{path}.{k}", arrays)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(v, f"{path}.{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"save: {path or 'it'} is a {type(value).__name__}; expected numbers, text, tensors, arrays, and "
        "lists, tuples and dicts of these; of an object, save its state_dict()"
    )


def decode(value: Any, arrays: Mapping[str, np.ndarray], device: Any = "cpu") -> Any:
    """The inverse of :func:`encode`, with tensors on ``device``."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays, device) for k, v in content}
    if kind in ("tensor", "array"):
        if content not in arrays:
            raise ValueError(f"the file is damaged: it has no tensor {content!r}")
        array = arrays[content]
        return from_numpy(array).to(device) if kind == "tensor" else array
    values = [decode(v, arrays, device) for v in content]
    return tuple(values) if kind == "tuple" else values


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of the header's JSON and all values, in the order of their names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc) if array.size else crc
    return f"{crc:08x}"
