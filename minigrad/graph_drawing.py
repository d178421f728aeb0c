"""The graph behind a tensor, drawn by Graphviz: the ops that made it, and the leaves that they read."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.graph import Node, Variable
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = ["GraphDrawing", "draw_graph"]

Named = Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]

HEAD = """\
digraph minigrad {
    graph [rankdir=TB, ranksep=0.35, nodesep=0.25]
    node [fontname="Helvetica", fontsize=11, height=0.3, margin="0.12,0.05", color="#5b6770"]
    edge [fontname="Helvetica", fontsize=9, fontcolor="#5b6770", color="#5b6770", arrowsize=0.6]
"""
STYLES = {
    "op": 'shape=box, style="rounded,filled", fillcolor="#ffffff"',
    "parameter": 'shape=box, style=filled, fillcolor="#cfe2f3"',
    "input": 'shape=box, style=filled, fillcolor="#e8eaed"',
    "output": 'shape=box, style=filled, fillcolor="#d5ead0"',
}


class GraphDrawing:
    """What :func:`draw_graph` returns. A notebook shows it by itself.

    Attributes:
        dot: the graph in the DOT language, which many programs read.
    """

    def __init__(self, dot: str):
        self.dot = dot

    def svg(self) -> str:
        """The picture as SVG; RuntimeError without the program ``dot``."""
        return self._draw("svg").decode()

    def save(self, path: str | Path) -> None:
        """Write the picture, in the format that the name ends with: .svg, .png, .pdf; .dot for the source.

        Raises:
            ValueError: the name has no ending.
            RuntimeError: the program ``dot`` is absent (``.dot`` needs none), or does not know the format.
        """
        path = Path(path)
        ending = path.suffix[1:].lower()
        if not ending:
            raise ValueError(f"save: the name ends with its format, as in graph.svg; got {str(path)!r}")
        path.write_bytes(self.dot.encode() if ending in ("dot", "gv") else self._draw(ending))

    def _repr_svg_(self) -> str:
        return self.svg()

    def _draw(self, format: str) -> bytes:
        program = shutil.which("dot")
        if program is None:
            raise RuntimeError(
                "the picture of a graph is drawn by Graphviz, whose program 'dot' is not installed. "
                "Install it (apt, brew or conda install graphviz), or use .dot, the source"
            )
        drawn = subprocess.run([program, f"-T{format}"], input=self.dot.encode(), capture_output=True)
        if drawn.returncode:
            raise RuntimeError(f"dot -T{format} failed: {drawn.stderr.decode(errors='replace').strip()}")
        return drawn.stdout


def draw_graph(tensor: Tensor | Sequence[Tensor], params: Named | None = None) -> GraphDrawing:
    """Draw the graph that ``backward()`` of ``tensor`` would walk, from the inputs down to ``tensor``.

    ::

        loss = nn.functional.cross_entropy(model(images), labels)
        mg.draw_graph(loss, params=model).save("graph.svg")

    White boxes are ops, with their numbers and options and the shapes and dtypes of what they give. Blue ones
    are leaves that get a gradient: parameters, and inputs that ask for one; grey ones are inputs that do not.
    An arrow is a tensor, and bears its shape. A graph of gradients (``create_graph=True``) is drawn in the
    same way. What has been walked already has forgotten its shapes: draw before ``backward()``.

    Args:
        tensor: one, or several that share a graph.
        params: names for leaves: a module, whose parameters' names are taken, or a mapping or pairs of names
            and tensors.

    Raises:
        ValueError: a tensor has no graph.
    """
    roots = [tensor] if isinstance(tensor, Tensor) else list(tensor)
    for root in roots:
        if not isinstance(root, Tensor):
            raise TypeError(f"draw_graph: expected a tensor or several, got {type(root).__name__}")
        if not root.requires_grad:
            raise ValueError(
                "draw_graph: the tensor has no graph: nothing that it is made of requires a gradient"
            )
    return GraphDrawing(_Writer(roots, _names(params)).dot())


def _names(params: Named | None) -> dict[int, str]:
    """The names of tensors by their ids."""
    if params is None:
        return {}
    if isinstance(params, Module):
        pairs: Iterable = [*params.named_parameters(), *params.named_buffers()]
    else:
        pairs = params.items() if isinstance(params, Mapping) else params
    return {id(tensor): name for name, tensor in pairs}


class _Writer:
    """Writes one graph. Boxes are numbered as the ops ran, so the same graph gives the same text."""

    def __init__(self, roots: Sequence[Tensor], names: dict[int, str]):
        self.roots = roots
        self.names = names
        self.nodes = _reachable(roots)
        self.ids = {node.number: f"op{i}" for i, node in enumerate(self.nodes)}
        self.leaves: dict[int, str] = {}  # the box of a tensor, by its id
        self.anonymous = 0
        self.lines: list[str] = []

    def dot(self) -> str:
        specs = _output_specs(self.nodes, self.roots)
        for node in self.nodes:
            self._box(self.ids[node.number], "op", [*_title(node), *_outputs(node, specs)])
            self._inputs_of(node)
        for i, root in enumerate(self.roots):
            name = self.names.get(id(root), "output" if len(self.roots) == 1 else f"output {i}")
            if root._node is not None:
                self._box(f"out{i}", "output", [name, _describe(root)])
                self._arrow(self._origin(root), f"out{i}", root)
            else:
                self._leaf(root)
        return HEAD + "".join(f"    {line}\n" for line in self.lines) + "}\n"

    def _inputs_of(self, node: Node) -> None:
        """The arrows to an op, and the boxes of the leaves that they come from."""
        inputs = node.inputs if node.inputs is not None else [None] * len(node.edges)
        for value, edge in zip(inputs, node.edges, strict=True):
            if isinstance(edge, Variable):
                origin = self._leaf(edge)
            elif edge is not None:
                origin = self.ids[_source(edge)[0]]
            elif isinstance(value, Variable):
                origin = self._leaf(value)
            elif isinstance(value, tuple):
                origin = f"in{self.anonymous}"
                self.anonymous += 1
                self._box(origin, "input", ["input", _describe(value)])
            else:  # a number, which stands in the op's box, or nothing
                continue
            self._arrow(origin, self.ids[node.number], edge if isinstance(edge, Variable) else value)

    def _origin(self, tensor: Variable) -> str:
        return self._leaf(tensor) if tensor._node is None else self.ids[tensor._node.number]

    def _leaf(self, tensor: Variable) -> str:
        """The box of a tensor that no op of this graph made."""
        if id(tensor) not in self.leaves:
            own = self.leaves[id(tensor)] = f"leaf{len(self.leaves)}"
            kind = "parameter" if isinstance(tensor, Parameter) else "input"
            style = "parameter" if tensor.requires_grad else "input"
            self._box(own, style, [self.names.get(id(tensor), kind), _describe(tensor)])
        return self.leaves[id(tensor)]

    def _box(self, name: str, style: str, lines: Iterable[str]) -> None:
        self.lines.append(f'{name} [label="{_escape(lines)}", {STYLES[style]}]')

    def _arrow(self, origin: str, target: str, value: Any) -> None:
        label = "" if value is None else f' [label="{tuple(_shape_and_dtype(value)[0])}"]'
        self.lines.append(f"{origin} -> {target}{label}")


def _reachable(roots: Iterable[Variable]) -> list[Node]:
    """The nodes behind ``roots``, those made first coming first."""
    reached: dict[int, Node] = {}
    waiting = [root._node for root in roots if root._node is not None]
    while waiting:
        node = waiting.pop()
        if node.number not in reached:
            reached[node.number] = node
            edges = (edge[0] if isinstance(edge, tuple) else edge for edge in node.edges)
            waiting.extend(edge for edge in edges if isinstance(edge, Node))
    return [reached[number] for number in sorted(reached)]


def _source(edge: Node | tuple[Node, int]) -> tuple[int, int]:
    """The number of the node that an edge leads to, and which of its outputs."""
    return (edge[0].number, edge[1]) if isinstance(edge, tuple) else (edge.number, 0)


def _output_specs(nodes: Iterable[Node], roots: Iterable[Variable]) -> dict[tuple[int, int], Any]:
    """What is known of the outputs, by their node's number and their place.

    A node does not keep the shape of its output, but what reads it keeps that of its inputs.
    """
    specs: dict[tuple[int, int], Any] = {}
    for node in nodes:
        for index, kept in enumerate(node.outputs):
            if kept is not None:
                specs[node.number, index] = kept
        for value, edge in zip(node.inputs or (), node.edges, strict=False):
            if edge is not None and not isinstance(edge, Variable):
                specs[_source(edge)] = value
    for root in roots:
        if root._node is not None:
            specs[root._node.number, root._index] = root
    return specs


def _title(node: Node) -> list[str]:
    """The name of an op; below it its numbers, and those options that have another value than by default."""
    numbers = {
        node.op.input_name(i): value
        for i, value in enumerate(node.inputs or ())
        if isinstance(value, (bool, int, float))
    }
    usual = {name: _brief(value) for name, value in node.op.attributes.items()}
    options = {name: value for name, value in node.attrs.items() if _brief(value) != usual.get(name)}
    shown = [f"{name}={text}" for name, value in {**numbers, **options}.items() if (text := _brief(value))]
    return [node.op.name, *textwrap.wrap(", ".join(shown), 44, break_on_hyphens=False)]


def _brief(value: Any) -> str | None:
    """A number, a name, or a few of them as text; None for all else."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or value is Ellipsis or isinstance(value, (bool, int, str, np.dtype)):
        return "..." if value is Ellipsis else str(value)
    if isinstance(value, slice):
        ends = ["" if end is None else str(end) for end in (value.start, value.stop, value.step)]
        return ":".join(ends if ends[2] else ends[:2])
    if isinstance(value, (tuple, list)) and len(value) <= 6:
        parts = [_brief(part) for part in value]
        return None if None in parts else f"({','.join(map(str, parts))}{',' * (len(parts) == 1)})"
    return None


def _outputs(node: Node, specs: Mapping[tuple[int, int], Any]) -> list[str]:
    count = len(node.outputs)
    known = [(i, specs[node.number, i]) for i in range(count) if (node.number, i) in specs]
    return [_describe(value) if count == 1 else f"[{i}] {_describe(value)}" for i, value in known]


def _shape_and_dtype(value: Any) -> tuple:
    return value if type(value) is tuple else (value.shape, value.dtype)


def _describe(value: Any) -> str:
    shape, dtype = _shape_and_dtype(value)
    return f"{tuple(shape)} {dtype}"


def _escape(lines: Iterable[str]) -> str:
    """Lines of text as a label of the DOT language."""
    return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
