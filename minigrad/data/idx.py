"""The IDX file format, in which MNIST and its relatives are published.

A gzip-compressed IDX file holds one array, most significant byte first throughout::

    bytes 0-1        zero
    byte  2          element type: 0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64
    byte  3          number of dimensions, d
    4 bytes x d      the dimensions, uint32
    the rest         the elements, in C order

The format is described at http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import numpy as np

__all__ = ["DataError", "read_idx"]

GZIP_MAGIC = b"\x1f\x8b"

ELEMENT_TYPES: dict[int, np.dtype] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


class DataError(ValueError):
    """A data file is damaged, or is not the file that was expected. The message names it."""


def read_idx(
    path: str | os.PathLike[str], *, dtype: np.typing.DTypeLike | None = None, ndim: int | None = None
) -> np.ndarray:
    """Read the array in the gzip-compressed IDX file ``path``.

    Args:
        dtype: the element type that the file must have (any, if not given).
        ndim: the number of dimensions that it must have (any, if not given).

    Returns:
        A new, writable array in the machine's byte order.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is not gzip, not IDX, of another type or rank, truncated, or too long.
    """
    path = os.fspath(path)
    content = _decompress(path)
    element, shape = _parse_header(path, content)
    if dtype is not None and element.newbyteorder("=") != np.dtype(dtype):
        raise DataError(f"{path}: expected {np.dtype(dtype)} elements, the file holds {element.name}")
    if ndim is not None and len(shape) != ndim:
        raise DataError(
            f"{path}: expected an array of {ndim} dimension(s), the file holds {len(shape)}, shape {shape}"
        )

    # Python integers: three dimensions of up to 2^32 each do not fit 64 bits.
    start = 4 + 4 * len(shape)
    expected, found = math.prod(shape) * element.itemsize, len(content) - start
    if found != expected:
        raise DataError(
            f"{path}: the header announces shape {shape}, which is {expected} bytes of {element.name}, "
            f"but {found} bytes follow it; delete the file and get it again"
        )
    array = np.frombuffer(content, element, offset=start).reshape(shape)
    return array.astype(element.newbyteorder("="), copy=not array.flags.writeable)


def _decompress(path: str) -> bytes | bytearray:
    with open(path, "rb") as file:
        if file.read(2) != GZIP_MAGIC:
            raise DataError(
                f"{path}: not a gzip file: it does not start with the bytes 1f 8b. Expected an IDX file as "
                f"published, compressed (its name ends in .gz)"
            )
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) as unzipped:
                return unzipped.read()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{path}: truncated or damaged gzip file ({error}, {os.path.getsize(path)} bytes); "
                f"delete it and get it again"
            ) from error


def _parse_header(path: str, content: bytes | bytearray) -> tuple[np.dtype, tuple[int, ...]]:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in ELEMENT_TYPES:
        raise DataError(
            f"{path}: not an IDX file: expected it to start with 00 00, an element type (08 for uint8) and "
            f"the number of dimensions, found {content[:4].hex(' ') or 'nothing'}"
        )
    ndim = content[3]
    if len(content) < 4 + 4 * ndim:
        raise DataError(
            f"{path}: truncated IDX header: {ndim} dimensions take {4 + 4 * ndim} bytes, found "
            f"{len(content)}; delete the file and get it again"
        )
    return ELEMENT_TYPES[content[2]], struct.unpack_from(f">{ndim}I", content, 4)
