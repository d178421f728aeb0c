"""Where a kernel may take vectors of 16 bytes instead of single elements (``vector.cuh``)."""

from __future__ import annotations

from typing import Any

from ..arguments import address

VECTOR_BYTES = 16


def starts_at_vector(*arrays: Any) -> bool:
    """Whether each array's first element lies at a multiple of 16 bytes, as a vector has to."""
    for array in arrays:  # noqa: SIM110 - all() would make a generator, at each launch
        if address(array) % VECTOR_BYTES:
            return False
    return True


def is_wide(columns: int, *arrays: Any) -> bool:
    """Whether rows of so many ``columns``, of arrays of one dtype, are made of whole vectors."""
    return columns % (VECTOR_BYTES // arrays[0].itemsize) == 0 and starts_at_vector(*arrays)
