"""The quick way to a launch on a card: arguments that fit are checked and packed in one pass.

:class:`~minigrad.kernels.arguments.ArgumentBinder` can say of every argument what is wrong with it, which
takes longer than a launch. Nearly all arguments fit. So the first launch of each instance of a kernel goes
through the binder, and from what it found a :class:`Packing` is made, whose checks are the same, but which
can only say that something does not fit; the binder then says what.

CUDA takes the arguments of a launch as one block of memory, each at a multiple of its own alignment, as the
fields of a struct. With one exception: an argument aligned to more than 16 bytes, such as a tensor map,
stands at a multiple of that in the card's own memory of parameters, which begins somewhere else. A cubin of
sm_90a has a pointer and a struct of alignas(64) at 0 and 48, for its parameters begin at 528. Where there is
such an argument, the driver is told where each one stands in the block, and moves them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np

from .arguments import PACKED_AS, ArgumentBinder, alignment_of, strided
from .source import is_bfloat16

_INTEGERS = frozenset({int, *(np.dtype(code).type for code in "bBhHiIqQ")})
_ACCEPTED = {
    "b": frozenset({bool, np.bool_}),
    "i": _INTEGERS | {bool},
    "u": _INTEGERS | {bool},
    "f": _INTEGERS | {bool, float, np.float16, np.float32, np.float64},
}
"""The types of numbers that a parameter takes, by the kind of its dtype; whether they are in range, the
module struct says."""

HEADER_BYTES = 16
"""Before the arguments, which start at a multiple of 16, stands their size."""

BLOCK_ALIGNMENT = 16
"""Of the arguments that may stand in the block as the card has them."""

_POINTER = "Q"
_POINTER_BYTES = 8


class Packing:
    """How the arguments of one instance of a kernel lie in memory, and whether given ones fit.

    Args:
        binder: the kernel's.
        types: the template's types in this instance.
        values: what the binder made of arguments that fit.
        array_type: the type of their arrays.

    Attributes:
        struct: packs the arguments' size and what :meth:`fit` returns.
        places: where each argument stands in the block, if the driver must be told; else empty.
    """

    def __init__(
        self, binder: ArgumentBinder, types: Mapping[str, np.dtype], values: Sequence[Any], array_type: type
    ):
        self.array_type = array_type
        self.count = len(values)
        self._arrays: list[tuple[int, np.dtype, bool, int]] = []
        self._numbers: list[tuple[int, frozenset]] = []
        self._structs: list[tuple[int, Any]] = []
        format, end = f"=Q{HEADER_BYTES - 8}x", 0
        places, largest = [], 0
        for i, parameter in enumerate(binder.signature.parameters):
            if parameter.is_pointer:
                dtype, vector = binder.elements_of(parameter, types)
                if values[i] is not None:
                    dtype = values[i].dtype  # bfloat16 has two
                mask = alignment_of(vector, dtype.itemsize) - 1 if dtype is not None else 0
                self._arrays.append((i, dtype, parameter.is_const, mask))
                code, size, alignment = _POINTER, _POINTER_BYTES, _POINTER_BYTES
            elif (packer := binder.structs.get(parameter.type)) is not None:
                self._structs.append((i, packer))
                code, size = f"{packer.dtype.itemsize}s", packer.dtype.itemsize
                alignment = packer.alignment
            else:
                rounded = is_bfloat16(binder.type_of(parameter, types))  # by the binder
                self._numbers.append((i, frozenset() if rounded else _ACCEPTED[values[i].dtype.kind]))
                code = PACKED_AS[values[i].dtype.str[1:]]
                size = alignment = values[i].dtype.itemsize
            padding = -end % alignment
            format += f"{padding}x{code}"
            places.append(end + padding)
            end += padding + size
            largest = max(largest, alignment)
        self.struct = Struct(format)
        self.places = tuple(places) if largest > BLOCK_ALIGNMENT else ()

    def fit(self, args: Sequence[Any]) -> tuple[int, list] | None:
        """(the number of the card, what ``struct`` packs), or None if the binder must look at ``args``."""
        if len(args) != self.count:
            return None
        values, card, array_type = [*args], None, self.array_type
        for i, dtype, is_const, mask in self._arrays:
            array = values[i]
            if type(array) is array_type:
                if not array._c_contiguous:  # CuPy's flags are an object, made anew each time
                    return None
            elif array is None and is_const:
                values[i] = 0
                continue
            elif type(array) is strided and type(array.array) is array_type:
                array = array.array
            else:
                return None
            data = array.data
            address = data.ptr
            if array.dtype is not dtype or address & mask:
                return None
            if card != data.device_id:
                if card is not None:
                    return None
                card = data.device_id
            values[i] = address
        for i, accepted in self._numbers:
            if type(values[i]) not in accepted:
                return None
        try:
            for i, packer in self._structs:
                values[i] = packer.packed(values[i])
        except (TypeError, KeyError, OverflowError, StructError):
            return None
        return None if card is None else (card, values)

    def bound(self, values: Sequence[Any]) -> list:
        """What ``struct`` packs, for the ``values`` that the binder made."""
        packed = list(values)
        for i, *_ in self._arrays:
            packed[i] = 0 if values[i] is None else values[i].data.ptr
        for i, _ in self._structs:
            packed[i] = values[i].tobytes()
        return packed
