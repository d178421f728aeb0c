"""Files that TensorBoard reads: a row of records, each an ``Event`` message of TensorFlow's ``event.proto``.

There is no need of TensorBoard to write them.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["EventFile", "crc32c"]


class EventFile:
    """A new file in ``folder``, made if it is not there: ``tensorboard --logdir folder`` shows it."""

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{os.getpid()}.{time.time_ns() % 10**9}"
        self._file = open(folder / name, "ab")  # noqa: SIM115  # closed in close()
        self._write(_bytes_field(3, b"brain.Event:2"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a number for each name, as float32: one that is too large as infinity."""
        with np.errstate(over="ignore"):
            numbers = np.array([*values.values()], np.float64).astype("<f4")
        summary = b"".join(
            _bytes_field(1, _bytes_field(1, name.encode()) + b"\x15" + number.tobytes())
            for name, number in zip(values, numbers, strict=True)
        )
        self._write(b"\x10" + _varint(step) + _bytes_field(5, summary))

    def close(self) -> None:
        """Close the file; what is written is on disk at any time."""
        self._file.close()

    def _write(self, message: bytes) -> None:
        event = struct.pack("<Bd", 0x09, time.time()) + message
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _varint(number: int) -> bytes:
    """An integer of protocol buffers: 7 bits a byte, the lowest first."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _bytes_field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def crc32c(content: bytes) -> int:
    """The Castagnoli checksum, bit by bit; https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked_crc(content: bytes) -> bytes:
    """As TFRecord files have it: turned by 15 bits, so that the checksum of a checksum differs from it."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
