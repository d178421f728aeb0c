"""Makes C++ of CUDA: turns ``__shared__`` declarations into references to the block's shared memory.

Everything else that CUDA C++ adds is done by the headers. The translation keeps every line where it was.
"""

from __future__ import annotations

import re
from itertools import count

from ..source import CudaSource, Signature, split_commas

_ALIGNMENT = re.compile(r"\b(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)")
_DECLARATION = re.compile(
    rf"(?P<before>(?:(?:\b(?:extern|static|volatile)\b|{_ALIGNMENT.pattern})\s*)*)"
    r"\b__shared__\b(?P<declaration>[^;{}=]*);"
)
_DECLARATOR = re.compile(r"(?P<name>\w+)\s*(?P<dimensions>(?:\[.*\])?)", re.DOTALL)


def translate(source: CudaSource, signature: Signature, instance: str) -> str:
    """C++ code of a library that runs the kernel ``instance`` (``"matmul_tiled<float>"``) of ``source``."""
    parts, end, number = ['#include "cuda_sim.h"\n'], 0, count()
    for found in _DECLARATION.finditer(source.code):
        parts += [source.text[end : found.start()], _shared_variables(found, number)]
        end = found.end()
    parts += [source.text[end:], f'\n#line 1 "<the call of {instance}>"\nSIM_ENTRY({instance})\n']
    parameters = ", ".join(f"{kind} {name}" for name, kind in signature.template.items())
    template = f"template <{parameters}> " if parameters else ""
    arguments = instance.removeprefix(signature.name)
    if signature.max_threads is not None:
        parts += [
            f"{template}constexpr unsigned sim_bound = {signature.max_threads};\n",
            f"SIM_MAX_THREADS(sim_bound{arguments})\n",
        ]
    if signature.cluster is not None:
        parts += [
            f"{template}constexpr dim3 sim_blocks_of_cluster({signature.cluster});\n",
            f"SIM_CLUSTER(sim_blocks_of_cluster{arguments})\n",
        ]
    return "".join(parts)


def _shared_variables(found: re.Match, number: count) -> str:
    """The declaration as references: ``float (&a)[16][17] = sim::static_shared<float[16][17], 0>("a");``"""
    declaration = _ALIGNMENT.sub(" ", found["declaration"]).strip()
    first, *others = split_commas(declaration)
    match = re.fullmatch(r"(?P<type>.*?[\w>]\s*\**)\s*\b(?P<declarator>\w+\s*(?:\[.*\])?)", first, re.DOTALL)
    if not match:
        return found[0]  # left to the compiler, which will say what is wrong with it
    lines = []
    for declarator in (match["declarator"], *others):
        variable = _DECLARATOR.fullmatch(declarator)
        if not variable:
            return found[0]
        name, dimensions, element = variable["name"], variable["dimensions"], match["type"]
        if "extern" in found["before"]:
            lines.append(f'{element}* const {name} = sim::dynamic_shared<{element}>("{name}");')
        else:
            kind = f"{element}{dimensions}"
            reference = f"(&{name}){dimensions}" if dimensions else f"&{name}"
            lines.append(f'{element} {reference} = sim::static_shared<{kind}, {next(number)}>("{name}");')
    line_breaks = "\n" * found[0].count("\n")
    return " ".join(lines).replace("\n", " ") + line_breaks
