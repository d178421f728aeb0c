"""What kernels given as source have in common: where the source stands, and how its arguments are made.

The arguments of such a kernel are Python expressions over the op's outputs, inputs and attributes. They are
read, and checked, when the kernel is registered, and become one Python function, so that a call evaluates
nothing but that function's code.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.errors import KernelCompileError, KernelLaunchError
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.launch import blocks, strided

if TYPE_CHECKING:
    from minigrad.op_definition import OpDefinition

FUNCTIONS = ("abs", "bool", "float", "int", "len", "max", "min", "range", "round", "sum", "tuple")
GIVEN = {
    "np": np,
    "math": math,
    "blocks": blocks,
    "strided": strided,
    "get_num_threads": get_num_threads,
    **{name: getattr(builtins, name) for name in FUNCTIONS},
}
"""What an expression may use beside the op's own names."""

_OURS = {f"minigrad.{name}" for name in ("op", "op_definition", "cuda_kernels", "cython_kernels")}


class Origin:
    """Where a kernel's source comes from: a file beside the caller's, or a string in the caller's code.

    Args:
        source: code, or the path of a file: a Path, or a string that ends in ``suffix``; a relative one
            counts from the folder of the caller's file.
        name: what messages call code that is no file: ``kernel.cu``. It has the suffix that files have.
        who: what error messages begin with.

    Attributes:
        source: the code, or the file's absolute path.
    """

    def __init__(self, source: Any, name: str, who: str):
        frame: Any = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, *_OURS):
            frame = frame.f_back
        self._file, self._line = frame.f_code.co_filename, frame.f_lineno
        self.source: str | Path
        self._name, suffix = name, Path(name).suffix
        if isinstance(source, Path) or (isinstance(source, str) and _is_path(source, suffix)):
            folder = Path(self._file).parent if Path(self._file).is_file() else Path()
            self.source = (folder / Path(source).expanduser()).absolute()
            if not self.source.is_file():
                raise FileNotFoundError(
                    f"{who}: there is no file {self.source}; a relative path counts from the folder of the "
                    "file that registers the kernel"
                )
        elif isinstance(source, str) and ("\n" in source or "(" in source):
            self.source = source
        else:
            raise TypeError(
                f"{who}: the source is code, or the path of a {suffix} file, got {type(source).__name__} "
                f"{source!r:.60}"
            )

    @property
    def is_file(self) -> bool:
        """Whether the source is a file of its own."""
        return isinstance(self.source, Path)

    def in_callers_lines(self, message: str) -> str:
        """``message`` with each line of a source in the caller's code told as a line of the caller's file."""
        if self.is_file:
            return message
        before = self._lines_before()
        if before is None:
            return message
        file = Path(self._file).name
        message = re.sub(rf"^{re.escape(self._name)}(?=: )", file, message, flags=re.M)  # "x.cu: In function"
        return re.sub(
            rf"(?<!\w){re.escape(self._name)}(?P<by>[:(])(?P<line>\d+)",
            lambda found: f"{file}{found['by']}{int(found['line']) + before}",
            message,
        )

    def place_of(self, error: BaseException) -> str:
        """The line of the source that raised ``error``, `` (file:line)``; empty if none did."""
        name = self.source.name if isinstance(self.source, Path) else self._name
        lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == name]
        return self.in_callers_lines(f" ({name}:{lines[-1]})") if lines else ""

    def _lines_before(self) -> int | None:
        """How many lines stand before the source in the caller's file; None if it is not there as it is."""
        text = "".join(linecache.getlines(self._file))
        first_of_call = text.split("\n")[: self._line]
        at = text.rfind(str(self.source), 0, len("\n".join(first_of_call)) + len(str(self.source)))
        if at < 0:
            at = text.find(str(self.source))
        return None if at < 0 else text.count("\n", 0, at)


def _is_path(source: str, suffix: str) -> bool:
    return source.strip().endswith(suffix) and "\n" not in source and "{" not in source


class Arguments:
    """The names that the expressions of one kernel may use, and the code made of them.

    Args:
        op: the kernel's op.
        who: what error messages begin with: op and kernel.
        scratch: the names of the kernel's own arrays.
    """

    def __init__(self, op: OpDefinition, who: str, scratch: Iterable[str] = ()):
        self.who, self._op = who, op
        self.inputs, self.variadic = op.inputs, op.variadic
        self.attributes = tuple(op.attributes)
        self.outputs = tuple(op.outputs)
        self.scratch = tuple(scratch)
        first = self.first = f"{op.inputs[0]}[0]" if op.variadic else op.inputs[0] if op.inputs else "out"
        own = ("out", "outs", *self.outputs, *self.inputs, *self.attributes, *self.scratch)
        for name in own:
            if own.count(name) > 1:
                raise ValueError(f"{who}: {name!r} names two things among {', '.join(own)}; rename one")
        self.number_of_rows = f"math.prod({first}.shape[:-1])"
        derived = {
            "n": "out.size",
            "rows": self.number_of_rows,
            "columns": f"({first}.shape[-1] if {first}.ndim else 1)",
            "itemsize": f"{first}.itemsize",
            "threads": "get_num_threads()",
        }
        self.derived = {name: code for name, code in derived.items() if name not in own}
        self.names = {*own, *self.derived, *GIVEN}
        self._used: set[str] = set()

    def is_array(self, expression: str) -> bool:
        """Whether ``expression`` is the name of an output or of a scratch array."""
        return expression == "out" or expression in self.outputs or expression in self.scratch

    def check(self, expression: str, what: str, extra: Sequence[str] = ()) -> str:
        """``expression``, which is ``what``, if it can be read and uses nothing but names that there are."""
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except SyntaxError as error:
            raise ValueError(f"{self.who}: {what} is no Python expression: {expression!r}: {error}") from None
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - bound - set(extra)
        for name in sorted(used - self.names):
            own = sorted(self.names - set(GIVEN))
            raise ValueError(
                f"{self.who}: {what}, `{expression}`, uses {name!r}, which is none of {', '.join(own)}"
            )
        self._used |= used
        return expression.strip()

    def bind(self, args: str | Sequence[str] | None, parameters: Sequence[str]) -> dict[str, str]:
        """The expression for each of a kernel's ``parameters``: as ``args`` has it, or its own name."""
        given = self._split(args)
        positional = [expression for name, expression in given if name is None]
        if len(positional) > len(parameters):
            raise ValueError(
                f"{self.who}: args has {len(positional)} expressions for {len(parameters)} parameters "
                f"({', '.join(parameters)})"
            )
        bound = dict(zip(parameters, positional, strict=False))
        for name, expression in given:
            if name is None:
                continue
            if name not in parameters or name in bound:
                problem = "is given twice" if name in bound else "is no parameter of it"
                raise ValueError(
                    f"{self.who}: args `{name}={expression}`: {name!r} {problem}; its parameters are "
                    f"{', '.join(parameters)}"
                )
            bound[name] = expression
        for name in parameters:
            if name not in bound and (name not in self.names or name in GIVEN):
                raise ValueError(
                    f"{self.who}: nothing is called {name!r}, as this parameter is; say what it gets with "
                    f'args="..., {name}=..." (there are {", ".join(sorted(self.names - set(GIVEN)))})'
                )
        return {name: self.check(bound.get(name, name), f"the argument for {name!r}") for name in parameters}

    def _split(self, args: str | Sequence[str] | None) -> list[tuple[str | None, str]]:
        """``"out, n=out.size"`` as [(None, "out"), ("n", "out.size")]."""
        text = "" if args is None else args if isinstance(args, str) else ", ".join(args)
        try:
            call: Any = ast.parse(f"f({text})", mode="eval").body
        except SyntaxError as error:
            raise ValueError(
                f"{self.who}: args are Python expressions, separated by commas; cannot read {text!r}: "
                f"{error.msg}"
            ) from None
        if not isinstance(call, ast.Call) or any(isinstance(a, ast.Starred) for a in call.args):
            raise ValueError(f"{self.who}: args are Python expressions, separated by commas, got {text!r}")
        return [(None, ast.unparse(a)) for a in call.args] + [
            (keyword.arg, ast.unparse(keyword.value)) for keyword in call.keywords
        ]

    def function(
        self, lines: Sequence[str], namespace: Mapping[str, Any], explain: Callable[[Exception, dict], None]
    ) -> Callable[..., None]:
        """``run(out, *inputs, **attributes)``, which runs ``lines``.

        An error is passed to ``explain`` with the names as they are then, which may raise a better one.
        """
        inputs = f"*{self.inputs[0]}" if self.variadic else ", ".join(self.inputs)
        star = "" if self.variadic or not self.attributes else "*"
        parameters = ", ".join(filter(None, ("out", inputs, star, *self.attributes)))
        head = ["outs = out if type(out) is tuple else (out,)", "out = outs[0]"]
        head += [f"{name} = outs[{i}]" for i, name in enumerate(self.outputs)]
        head += [f"{name} = {self.derived[name]}" for name in self.derived if name in self._used]
        body = "\n".join(f"        {line}" for line in (*head, *lines))
        code = (
            f"def run({parameters}):\n    try:\n{body}\n    except Exception as error:\n"
            "        explain(error, locals())\n        raise\n"
        )
        everything: dict[str, Any] = {**GIVEN, **namespace, "explain": explain}
        exec(compile(code, f"<{self.who}>", "exec"), everything)
        return everything["run"]

    def check_rule(self, rule: Any, what: str) -> None:
        """Raise unless ``rule`` can be called as ``rule(out, *inputs, **attributes)``."""
        self._op.check_callable(rule, f"{self.who}: {what}", "out")

    def call_of(self, name: str) -> str:
        """Code that calls a function of the user's as ``name(out, *inputs, **attributes)``."""
        inputs = f"*{self.inputs[0]}" if self.variadic else ", ".join(self.inputs)
        attributes = (f"{a}={a}" for a in self.attributes)
        return f"{name}({', '.join(filter(None, ('outs if len(outs) > 1 else out', inputs, *attributes)))})"

    def explain(
        self, error: Exception, names: dict, expressions: Iterable[tuple[str, str]], origin: Origin
    ) -> None:
        """Raise what names op, kernel and argument in place of ``error``; returns if there is nothing to add.

        Args:
            names: the values that the expressions saw.
            expressions: (parameter, expression) of each argument.
        """
        if isinstance(error, (KernelCompileError, KernelLaunchError)):
            message = origin.in_callers_lines(str(error))
            raise type(error)(message if message.startswith(self.who) else f"{self.who}: {message}") from None
        for parameter, expression in expressions:
            try:
                eval(expression, {**GIVEN, **names})
            except Exception as cause:
                raise ValueError(
                    f"{self.who}: the argument for {parameter!r}, `{expression}`, cannot be computed: "
                    f"{type(cause).__name__}: {cause}"
                ) from None
        if isinstance(error, BufferError):
            error = ValueError(str(error))
        explained = (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError)
        if type(error) in explained and not str(error).startswith(self.who):
            raise type(error)(f"{self.who}: {error}{origin.place_of(error)}") from None
