"""Reads CUDA sources: expands their includes and finds the kernels, with the types of their parameters.

A kernel's own signature is the only place where its parameter types are written, so the launch code takes
them from there. The reader knows the part of C++ that kernel signatures are written in: ``__global__``
functions, templates over types and integers, pointers, numbers, and plain structs passed by value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

CUDA_DIRECTORY = Path(__file__).parent / "cuda"
"""Where ``#include "..."`` looks after the directory of the including file."""

BFLOAT16 = np.dtype("u2", metadata={"type": "__nv_bfloat16"})
"""Stands for ``__nv_bfloat16``, which NumPy lacks: the 16 bits. Told from other ``uint16`` by identity."""

NUMBER_TYPES = {
    "bool": np.dtype("?"),
    "signed char": np.dtype("i1"),
    "char": np.dtype("i1"),
    "unsigned char": np.dtype("u1"),
    "short": np.dtype("i2"),
    "unsigned short": np.dtype("u2"),
    "int": np.dtype("i4"),
    "unsigned int": np.dtype("u4"),
    "long long": np.dtype("i8"),
    "unsigned long long": np.dtype("u8"),
    "__half": np.dtype("f2"),
    "__nv_bfloat16": BFLOAT16,
    "float": np.dtype("f4"),
    "double": np.dtype("f8"),
}
"""The C++ number types, with the dtypes of their values."""

VECTOR_TYPES = {
    f"{name}{count}": (NUMBER_TYPES[element], count)
    for name, element in {
        "char": "signed char",
        "uchar": "unsigned char",
        "short": "short",
        "ushort": "unsigned short",
        "int": "int",
        "uint": "unsigned int",
        "longlong": "long long",
        "ulonglong": "unsigned long long",
        "float": "float",
        "double": "double",
        "__half": "__half",
        "half": "__half",
        "__nv_bfloat16": "__nv_bfloat16",
        "nv_bfloat16": "__nv_bfloat16",
    }.items()
    for count in ((2,) if element in ("__half", "__nv_bfloat16") else (1, 2, 3, 4))
}
"""The C++ vector types, which a kernel may point to: the dtype of an element, and how many there are."""

HALF_HEADERS = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
"""Where ``__half`` and ``__nv_bfloat16`` are defined. Not every machine with a card has these files."""

_OTHER_NAMES = {
    "unsigned": "unsigned int",
    "long": "long long",
    "unsigned long": "unsigned long long",
    "size_t": "unsigned long long",
    "int8_t": "signed char",
    "uint8_t": "unsigned char",
    "int16_t": "short",
    "uint16_t": "unsigned short",
    "int32_t": "int",
    "uint32_t": "unsigned int",
    "int64_t": "long long",
    "uint64_t": "unsigned long long",
    "half": "__half",
    "nv_bfloat16": "__nv_bfloat16",
}

_KERNEL = re.compile(
    r"(?:\btemplate\s*<(?P<template>[^;{}]*?)>\s*)?(?:\bextern\s+)?__global__\s"
    r"(?:\s*(?:__launch_bounds__\s*\((?P<bounds>[^()]*(?:\([^()]*\)[^()]*)*)\)"
    r"|__cluster_dims__\s*\((?P<cluster>[^()]*)\)"
    r"|\w+\b(?!\s*\()))*"  # void, static
    r"\s*(?P<name>\w+)\s*\((?P<parameters>[^;{}]*?)\)\s*[;{]"
)

_TYPE_OF_DTYPE = {
    dtype: name for name, dtype in NUMBER_TYPES.items() if name != "char" and dtype is not BFLOAT16
}


def is_bfloat16(dtype: np.dtype) -> bool:
    """Whether ``dtype`` stands for ``__nv_bfloat16``: BFLOAT16 itself, or the package ml_dtypes' bfloat16."""
    return dtype is BFLOAT16 or (dtype.kind == "V" and dtype.type.__name__ == "bfloat16")


def computed_dtype(dtype: np.dtype) -> np.dtype:
    """What kernels compute with where arrays are of ``dtype``: float32 for floats of 16 bits."""
    if dtype.itemsize != 2:  # most
        return dtype
    return NUMBER_TYPES["float"] if dtype.kind == "f" or is_bfloat16(dtype) else dtype


def type_of_dtype(dtype: np.dtype) -> str | None:
    """The C++ type of a dtype's elements; None if it has none here."""
    return "__nv_bfloat16" if is_bfloat16(dtype) else _TYPE_OF_DTYPE.get(dtype)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: as written in the kernel.
        type: the type's name without ``const`` and ``*``: a number type, a template parameter, or a struct.
        is_pointer: whether an array is expected.
        is_const: whether the kernel only reads what the pointer points to.
    """

    name: str
    type: str
    is_pointer: bool
    is_const: bool

    def __str__(self) -> str:
        const = "const " if self.is_const and self.is_pointer else ""
        return f"{const}{self.type}{'*' if self.is_pointer else ''} {self.name}"


@dataclass(frozen=True)
class Signature:
    """A kernel's name, template parameters and parameters.

    ``template`` maps each template parameter to ``"typename"`` or to its type (``"int"``), in order.
    ``max_threads`` is the C++ expression in its ``__launch_bounds__``: the most threads of a block;
    ``cluster`` is what its ``__cluster_dims__`` says.
    """

    name: str
    template: dict[str, str]
    parameters: tuple[Parameter, ...]
    max_threads: str | None = None
    cluster: str | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))})"


def _of_plain_name(path: Path) -> Path:
    """``matmul.cu`` for what a compiled module makes of its own name: ``matmul.cpython-311-x86_64.cu``."""
    tag = Path(EXTENSION_SUFFIXES[0]).stem
    return path.with_name(path.name.replace(tag, "")) if path.stem.endswith(tag) else path


class CudaSource:
    """The text of one ``.cu`` file with the files that it includes, or a string of CUDA code.

    Args:
        source: the path of a file, or CUDA code (any string with a line break or a brace).
        architecture: the only one whose instructions the code is written for, such as ``"sm_90a"``; by
            default it compiles for every card.

    Attributes:
        name: what error messages call it.
    """

    path: Path | None

    def __init__(self, source: str | Path, architecture: str | None = None):
        self.architecture = architecture
        if isinstance(source, Path) or not ("\n" in source or "{" in source):
            self.path = _of_plain_name(Path(source))
            self.name = self.path.name
        else:
            self.path, self.name, self._code = None, "kernel.cu", source

    @cached_property
    def text(self) -> str:
        """Self-contained code: every ``#include "..."`` that could be found is expanded in place, and
        ``#line`` directives let compilers name the lines of the original files."""
        if self.path is None:
            return _expand_includes(self._code, self.name, CUDA_DIRECTORY, set())
        path = self.path.resolve()
        return _expand_includes(path.read_text(), str(path), path.parent, set())

    @cached_property
    def code(self) -> str:
        """``text`` with comments and string literals blanked; every character keeps its place."""
        return blank_comments(self.text)

    @cached_property
    def with_halves(self) -> CudaSource:
        """The same code after HALF_HEADERS: for templates whose types may be floats of 16 bits."""
        source = CudaSource(HALF_HEADERS + self.text, self.architecture)
        source.name = self.name
        return source

    @cached_property
    def _kernels(self) -> dict[str, re.Match]:
        """The heads of all ``__global__`` functions, by name."""
        found: dict[str, re.Match] = {}
        for match in _KERNEL.finditer(self.code):
            found.setdefault(match["name"], match)
        return found

    def signature(self, kernel: str) -> Signature:
        """The signature of the ``__global__`` function named ``kernel``. Raises ValueError if absent."""
        head = self._kernels.get(kernel)
        if not head:
            raise ValueError(
                f"{self.name} has no kernel `__global__ void {kernel}(...)`; "
                f"it has: {', '.join(self._kernels) or 'none'}"
            )
        template = dict(_template_parameter(text) for text in split_commas(head["template"] or ""))
        parameters = tuple(_parameter(text, kernel) for text in split_commas(head["parameters"]))
        bounds = split_commas(head["bounds"] or "")
        return Signature(kernel, template, parameters, bounds[0] if bounds else None, head["cluster"])

    def comment(self, kernel: str) -> str:
        """The first paragraph of the comment right above the ``__global__`` function named ``kernel``."""
        before = self.text[: self._kernels[kernel].start()].rstrip()
        found = re.search(
            r"(?:/\*(?P<block>(?:(?!\*/).)*)\*/|(?P<lines>(?:^[ \t]*//[^\n]*\n?)+))\Z", before, re.S | re.M
        )
        if not found:
            return ""
        lines = re.sub(r"^[ \t]*(?://+|\*+)", "", found["block"] or found["lines"] or "", flags=re.M)
        return " ".join(re.split(r"\n\s*\n", lines.strip())[0].split())

    def struct(self, name: str) -> np.dtype | None:
        """The struct ``name`` as a structured dtype with C++'s own offsets; None if it is not defined.

        Its metadata hold the struct's ``alignment``, of which NumPy knows only that of the fields.
        """
        found = re.search(
            rf"\bstruct\s+(?:alignas\((\d+)\)\s*)?{re.escape(name)}\s*\{{([^{{}}]*)\}}", self.code
        )
        if not found:
            return None
        fields = []
        for declaration in filter(None, map(str.strip, found[2].split(";"))):
            match = re.fullmatch(
                r"(?P<type>[\w\s]*?\w)\s+(?P<names>\w+\s*(?:\[\s*\d+\s*\])?\s*(?:,.*)?)", declaration
            )
            dtype = NUMBER_TYPES.get(canonical_type(match["type"])) if match else None
            if match is None or dtype is None:
                raise ValueError(f"struct {name} in {self.name}: cannot read the field `{declaration};`")
            for field in split_commas(match["names"]):
                identifier, _, length = field.rstrip("] ").partition("[")
                fields.append((identifier.strip(), dtype, (int(length),)) if length else (identifier, dtype))
        dtype = np.dtype(fields, align=True)
        alignment = int(found[1] or dtype.alignment)
        if dtype.itemsize % alignment:
            raise ValueError(f"struct {name} in {self.name}: no multiple of alignas({alignment})")
        return np.dtype(fields, align=True, metadata={"alignment": alignment})


def canonical_type(text: str) -> str:
    """One spelling for each type: ``"long int"`` and ``"int64_t"`` are ``"long long"``."""
    words = [word for word in text.split() if word not in ("const", "volatile", "struct", "typename")]
    if len(words) > 1 and "int" in words and words != ["unsigned", "int"]:
        words.remove("int")
    name = " ".join(words).removeprefix("std::")
    return _OTHER_NAMES.get(name, name)


def split_commas(text: str) -> list[str]:
    """``text`` split at the commas that stand outside of all brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def blank_comments(text: str) -> str:
    """``text`` with comments and string literals replaced by spaces; line breaks stay."""

    def blank(match: re.Match) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"", blank, text, flags=re.DOTALL)


def _template_parameter(text: str) -> tuple[str, str]:
    declaration = text.split("=")[0].split()
    kind = " ".join(declaration[:-1])
    return declaration[-1], "typename" if kind in ("typename", "class") else kind


def _parameter(text: str, kernel: str) -> Parameter:
    declaration = re.sub(r"\b(?:__restrict__|__restrict|__grid_constant__)\b", " ", text.split("=")[0])
    match = re.fullmatch(
        r"(?P<type>[\w\s:]*?[\w])\s*(?P<pointer>\*?)\s*(?:const\s+)?(?P<name>\w+)", declaration.strip()
    )
    if not match:
        raise ValueError(
            f"{kernel}: cannot read the parameter `{text}`; expected `type name` or `type* name`"
        )
    return Parameter(
        name=match["name"],
        type=canonical_type(match["type"]),
        is_pointer=bool(match["pointer"]),
        is_const="const" in match["type"].split(),
    )


def _expand_includes(code: str, label: str, directory: Path, seen: set[Path]) -> str:
    """``code`` with quoted includes in place, each file once, and a ``#line`` wherever the file changes."""
    lines = [_line_directive(1, label)]
    for number, line in enumerate(code.splitlines(), start=1):
        match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        path = next(
            (
                path
                for folder in (directory, CUDA_DIRECTORY)
                if match and (path := folder / match[1]).is_file()
            ),
            None,
        )
        if path is None:
            lines.append("" if re.match(r"\s*#\s*pragma\s+once\b", line) else line)
            continue
        path = path.resolve()
        if path not in seen:
            seen.add(path)
            lines.append(_expand_includes(path.read_text(), str(path), path.parent, seen))
        lines.append(_line_directive(number + 1, label))
    return "\n".join(lines)


def _line_directive(number: int, label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"')
    return f'#line {number} "{escaped}"'
