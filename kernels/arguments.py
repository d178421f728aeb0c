"""Checks the arguments of a kernel launch against the kernel's own signature.

A launch itself checks nothing: a Python float sent as a double where the kernel declares a float, or a
transposed view read as if it were contiguous, gives wrong numbers in silence. Here every argument becomes
exactly what its parameter says, or an error that names the kernel, the parameter, what it expects and what
it got.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from struct import Struct
from struct import error as StructError
from typing import Any, NoReturn

import numpy as np

from .source import (
    NUMBER_TYPES,
    VECTOR_TYPES,
    CudaSource,
    Parameter,
    Signature,
    is_bfloat16,
    type_of_dtype,
)


class strided:
    """Marks an array argument whose strides the kernel takes as arguments: it need not be C-contiguous."""

    __slots__ = ("array", "dtype")

    def __init__(self, array: Any):
        self.array = array
        self.dtype = getattr(array, "dtype", None)


def is_array(value: Any) -> bool:
    """Whether ``value`` is a NumPy or a CuPy array. CuPy is not imported to find out."""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def is_contiguous(array: Any) -> bool:
    """Whether an array is C-contiguous. CuPy makes an object of its flags each time they are asked for."""
    return array.flags.c_contiguous if isinstance(array, np.ndarray) else array._c_contiguous


class unchanging(dict):
    """The fields of a struct argument, which will not change any more once a kernel was given them.

    Attributes:
        packed: their bytes, by the packer of each kernel that was given them.
    """

    __slots__ = ("packed",)

    def __init__(self, *fields: Any, **more: Any):
        super().__init__(*fields, **more)
        self.packed: dict[StructPacker, bytes] = {}


class ArgumentBinder:
    """Turns the arguments of one kernel into what is passed to it.

    Args:
        source: where the kernel's structs are defined.
        signature: the kernel's.
        fixed: template types that are given rather than deduced, as ``{"T": dtype}``.

    Attributes:
        structs: what packs the kernel's structs, by their names.
        deciding: the positions of the arrays from which the other template types are deduced.
    """

    def __init__(self, source: CudaSource, signature: Signature, fixed: Mapping[str, np.dtype]):
        self.signature = signature
        self.fixed = dict(fixed)
        self.structs: dict[str, StructPacker] = {}
        for parameter in signature.parameters:
            known = parameter.type in NUMBER_TYPES or parameter.type in signature.template
            if not known and not parameter.is_pointer and (dtype := source.struct(parameter.type)):
                self.structs[parameter.type] = StructPacker(dtype)
        pointers = [p.type if p.is_pointer else "" for p in signature.parameters]
        deduced = [name for name in signature.template if name in pointers and name not in fixed]
        self.deciding = tuple([pointers.index(name) for name in deduced])

    def bind(self, args: Sequence[Any]) -> tuple[list, list, dict[str, np.dtype]]:
        """Check ``args``. Returns (the values to pass, the arrays among them, the template's types).

        A value is an array, None for a null pointer, a NumPy scalar of the parameter's exact type, or, for
        a struct, a NumPy array of one structured element.
        """
        parameters = self.signature.parameters
        if len(args) != len(parameters):
            raise TypeError(f"{self.signature}: expected {len(parameters)} arguments, got {len(args)}")
        types, values = dict(self.fixed), list(args)
        arrays: list[Any] = []
        for i, parameter in enumerate(parameters):  # arrays first: they decide the template's types
            if parameter.is_pointer:
                values[i] = self._array(parameter, values[i], types, arrays)
        if not arrays:
            raise TypeError(f"{self.signature}: at least one argument must be an array")
        for i, parameter in enumerate(parameters):
            if not parameter.is_pointer:
                values[i] = self._value(parameter, values[i], types)
        for name, kind in self.signature.template.items():
            if kind == "typename" and name not in types:
                raise TypeError(f"{self.signature}: no array tells the type of the template parameter {name}")
        return values, arrays, types

    def _array(self, parameter: Parameter, value: Any, types: dict, arrays: list) -> Any:
        if value is None and parameter.is_const:
            return None
        array = value.array if type(value) is strided else value
        if not is_array(array):
            self._wrong(parameter, "a NumPy or CuPy array", describe(array), TypeError)
        expected, vector = self.elements_of(parameter, types)
        if expected is None and parameter.type in self.signature.template and type_of_dtype(array.dtype):
            expected = types[parameter.type] = array.dtype
        if array.dtype != expected and not (
            expected is not None and is_bfloat16(expected) and is_bfloat16(array.dtype)
        ):
            self._wrong(
                parameter, f"an array of {expected or parameter.type}", f"one of {array.dtype}", TypeError
            )
        flags = array.flags
        if array is value and not flags.c_contiguous:
            self._wrong(parameter, "a C-contiguous array", f"strides {array.strides} for shape {array.shape}")
        if not parameter.is_const and not getattr(flags, "writeable", True):
            self._wrong(parameter, "a writeable array", "a read-only one")
        if not getattr(flags, "aligned", True):
            self._wrong(parameter, "an aligned array", "one that starts between two elements")
        if address(array) % (alignment := alignment_of(vector, array.itemsize)):
            self._wrong(parameter, f"an array that starts at a multiple of {alignment} bytes", "another")
        if arrays and (isinstance(array, np.ndarray) is not isinstance(arrays[0], np.ndarray)):
            self._wrong(
                parameter, f"a {kind(arrays[0])} array like those before it", f"a {kind(array)} array"
            )
        if arrays and array.device != arrays[0].device:
            self._wrong(parameter, f"an array on {arrays[0].device}", f"one on {array.device}")
        arrays.append(array)
        return array

    def type_of(self, parameter: Parameter, types: Mapping[str, np.dtype]) -> np.dtype | None:
        """The dtype of a number, or of a pointer's elements; None for all else, and as long as unknown."""
        return types.get(parameter.type) or NUMBER_TYPES.get(parameter.type)

    def elements_of(self, parameter: Parameter, types: Mapping[str, np.dtype]) -> tuple[np.dtype | None, int]:
        """(the dtype of the elements of a pointer's array, or None; how many of them make a vector)."""
        dtype = self.type_of(parameter, types)
        return (dtype, 1) if dtype is not None else VECTOR_TYPES.get(parameter.type, (None, 1))

    def _value(self, parameter: Parameter, value: Any, types: dict) -> Any:
        dtype = self.type_of(parameter, types)
        if dtype is not None:
            return self._number(parameter, dtype, value)
        struct = self.structs.get(parameter.type)
        if struct is None:
            raise TypeError(
                f"{self.signature}: `{parameter}` has a type that is neither a number nor a known struct"
            )
        if not isinstance(value, Mapping) or value.keys() != struct.fields.keys():
            got = (
                f"the fields {', '.join(map(str, value))}" if isinstance(value, Mapping) else describe(value)
            )
            self._wrong(parameter, f"a mapping with the fields {', '.join(struct.fields)}", got, TypeError)
        try:
            return struct.pack(value)
        except (TypeError, OverflowError, StructError):
            self._explain(parameter, struct.fields, value)
            raise

    def _explain(
        self, parameter: Parameter, fields: Mapping[str, np.dtype], value: Mapping[str, Any]
    ) -> None:
        """Raise the error of the first field of a struct that does not fit."""
        for name, dtype in fields.items():
            field = Parameter(f"{parameter.name}.{name}", parameter.type, is_pointer=False, is_const=False)
            element, shape = dtype.subdtype or (dtype, ())
            if not shape:
                self._number(field, element, value[name])
            elif not isinstance(value[name], Sequence) or len(value[name]) != shape[0]:
                self._wrong(field, f"{shape[0]} numbers", describe(value[name]))
            else:
                for item in value[name]:
                    self._number(field, element, item)

    def _number(self, parameter: Parameter, dtype: np.dtype, value: Any) -> np.generic:
        """``value`` in exactly the parameter's type; an error if it is of another kind, or too large."""
        if is_bfloat16(dtype):
            return bfloat16_bits(self._number(parameter, NUMBER_TYPES["float"], value))
        kinds = _KINDS[dtype.kind]
        if not isinstance(value, kinds):
            expected = {"b": "a bool", "f": f"a number ({dtype})"}.get(dtype.kind, f"an integer ({dtype})")
            self._wrong(parameter, expected, describe(value), TypeError)
        smallest, largest = _LIMITS[dtype]
        if -math.inf < value < math.inf and not smallest <= value <= largest:
            self._wrong(parameter, f"a number that fits {dtype}", repr(value))
        return dtype.type(value)

    def _wrong(self, parameter: Parameter, expected: str, got: str, error: type = ValueError) -> NoReturn:
        raise error(f"{self.signature.name}: argument `{parameter}` expects {expected}, got {got}")


class StructPacker:
    """Packs the fields of a struct, as C++ lays them out, in one call."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.alignment: int = (dtype.metadata or {}).get("alignment", dtype.alignment)
        self.fields = {name: dtype[name] for name in dtype.names or ()}
        offsets: Any = dtype.fields
        format, end = "=", 0
        for name, field in self.fields.items():
            offset = offsets[name][1]
            element, shape = field.subdtype or (field, ())
            format += f"{offset - end}x{math.prod(shape)}{PACKED_AS[element.str[1:]]}"
            end = offset + field.itemsize
        self._packer = Struct(f"{format}{dtype.itemsize - end}x")
        self._all_numbers = len(self.fields) > 1 and all(f.subdtype is None for f in self.fields.values())
        self._values = itemgetter(*self.fields) if self.fields else tuple

    def pack(self, value: Mapping[str, Any]) -> np.ndarray:
        """A NumPy array of one element that holds the struct."""
        return np.frombuffer(self.packed(value), self.dtype)

    def packed(self, value: Mapping[str, Any]) -> bytes:
        """The struct's bytes. Raises KeyError, TypeError, OverflowError or StructError."""
        if type(value) is not unchanging:
            return self._pack(value)
        packed = value.packed.get(self)
        if packed is None:
            packed = value.packed[self] = self._pack(value)
        return packed

    def _pack(self, value: Mapping[str, Any]) -> bytes:
        if len(value) != len(self.fields):
            raise StructError("fields that the struct has not")
        if self._all_numbers:
            return self._packer.pack(*self._values(value))
        numbers: list[Any] = []
        for name, field in self.fields.items():
            if field.subdtype is None:
                numbers.append(value[name])
            elif len(value[name]) == field.shape[0]:
                numbers.extend(value[name])
            else:
                raise StructError(name)
        return self._packer.pack(*numbers)


# NumPy's names of number types, and those of the module struct.
_NAMES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
PACKED_AS = dict(zip(_NAMES, "?bBhHiIqQefd", strict=True))

# What a parameter takes, by the kind of its dtype, and from where to where.
_INTEGERS = (int, np.integer)
_KINDS: dict[str, Any] = {
    "b": (bool, np.bool_),
    "i": _INTEGERS,
    "u": _INTEGERS,
    "f": (*_INTEGERS, float, np.floating),
}
_LIMITS: dict[np.dtype, tuple[Any, Any]] = {
    np.dtype("?"): (False, True),
    **{np.dtype(t): (-float(np.finfo(t).max), float(np.finfo(t).max)) for t in ("f2", "f4", "f8")},
}
for _dtype in NUMBER_TYPES.values():
    if _dtype.kind in "iu":
        _bits = 8 * _dtype.itemsize
        _LIMITS[_dtype] = (
            (-(2 ** (_bits - 1)), 2 ** (_bits - 1) - 1) if _dtype.kind == "i" else (0, 2**_bits - 1)
        )


def alignment_of(vector: int, itemsize: int) -> int:
    """The bytes at a multiple of which an array of vectors of so many elements starts; 1 if anywhere."""
    return min(16, vector * itemsize) if vector % 2 == 0 else 1


def bfloat16_bits(values: Any) -> Any:
    """Float32 ``values``, a NumPy array or scalar, rounded to bfloat16, as uint16."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)[()]


def describe(value: Any) -> str:
    """``value`` in an error message: its type and, if it is short, itself."""
    if is_array(value):
        return f"an array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 and "\n" not in text else type(value).__name__


def address(array: Any) -> int:
    """Where an array's first element is in memory."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def kind(array: Any) -> str:
    """``"NumPy"`` or ``"CuPy"``."""
    return "NumPy" if isinstance(array, np.ndarray) else "CuPy"
