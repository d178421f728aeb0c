"""``op.cuda``: kernels from CUDA source, which run on a card and on the simulator.

All that a launch needs stands in one call: the source, the kernel's arguments as expressions, and a rule for
the grid. It is checked when the kernel is registered, against the signature in the source; what compiling
alone can find is found on the first launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.dispatch import parse_dtypes
from minigrad.kernel_code import Arguments, Origin
from minigrad.kernels.cuda import workspace
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import NUMBER_TYPES, CudaSource, Parameter

if TYPE_CHECKING:
    from minigrad.op_definition import OpDefinition

__all__ = ["Launch"]

RULES = ("1d", "rows")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Launch:
    """One launch of a CUDA function; an op's kernel is one, or several that follow each other.

    Args:
        kernel: the function's name, with template arguments if it is a template (``"swish<T>"``), or such a
            name for each dtype, ``{"f4": "f<float, 256>", "f8": "f<double, 128>"}``; by default the op's.
        args: Python expressions, one for each parameter of the function, in their order or by name
            (``"out, x, n=out.size"``). A parameter that is left out gets what bears its own name.
        launch: ``"1d"``, a thread for each element of ``out``; ``"rows"``, a block for each row along the
            last dimension of the first input; or ``f(out, *inputs, **attributes)``, which returns (grid,
            block) or (grid, block, bytes of shared memory).
        block: the threads of a block, for the two rules that have a name.
        shared: the bytes of dynamic shared memory of a block, or an expression.
    """

    kernel: str | Mapping[Any, str] | None = None
    args: str | Sequence[str] | None = None
    launch: str | Callable = "1d"
    block: int | Sequence[int] = 256
    shared: int | str = 0


class _Step:
    """A :class:`Launch`, read and checked.

    Attributes:
        kernels: the CUDA function, by dtype if there are several.
        expressions: what each of its parameters gets.
        accepts: the dtypes that it takes for the first input; None if its template takes any.
        code: the lines that launch it.
    """

    def __init__(
        self, launch: Launch, source: CudaSource, arguments: Arguments, op: OpDefinition, number: int
    ):
        self.launch, self.arguments, self.who = launch, arguments, arguments.who
        chosen = op.name if launch.kernel is None else launch.kernel
        names = chosen if isinstance(chosen, Mapping) else {None: chosen}
        self.kernels = {dtype: self._find(source, name) for dtype, name in _by_dtype(names).items()}
        signatures = [kernel.signature for kernel in self.kernels.values()]
        parameters = [p.name for p in signatures[0].parameters]
        if any([p.name for p in s.parameters] != parameters for s in signatures):
            raise ValueError(f"{self.who}: the kernels of all dtypes need the same parameters")
        self.expressions = arguments.bind(launch.args, parameters)
        for signature in signatures:
            for parameter in signature.parameters:
                self._check_parameter(parameter, self.expressions[parameter.name])
        self.accepts = self._accepted()
        self.namespace, self.code = self._code(f"_{number}")

    def _find(self, source: CudaSource, name: str) -> CudaKernel:
        kernel = CudaKernel(source, name)
        try:
            kernel.check()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.who}: {error}") from None
        return kernel

    def _check_parameter(self, parameter: Parameter, expression: str) -> None:
        is_output = expression == "out" or expression in self.arguments.outputs
        problem = ""
        if parameter.is_pointer and expression in self.arguments.attributes:
            problem = f"expects an array, and {expression!r} is an attribute: pass a number by value"
        elif not parameter.is_pointer and self.arguments.is_array(expression):
            problem = f"expects a number, and {expression!r} is an array: declare `T* {parameter.name}`"
        elif is_output and parameter.is_const:
            problem = "could not be written, and gets an output: remove `const`"
        if problem:
            raise ValueError(f"{self.who}: the parameter `{parameter}` {problem}")

    def _accepted(self) -> tuple[np.dtype, ...] | None:
        if None not in self.kernels:
            return tuple(dtype for dtype in self.kernels if dtype is not None)
        (kernel,) = self.kernels.values()
        for parameter in kernel.signature.parameters:
            if parameter.is_pointer and self.expressions[parameter.name] == self.arguments.first:
                dtype = kernel.given_types.get(parameter.type) or NUMBER_TYPES.get(parameter.type)
                return None if dtype is None else (dtype,)
        return None

    def _code(self, suffix: str) -> tuple[dict[str, Any], list[str]]:
        """The names and the lines that make the launch."""
        kernel, rule = f"kernel{suffix}", f"rule{suffix}"
        namespace: dict[str, Any] = {
            kernel: self.kernels,
            rule: self.launch.launch,
            "geometry": self._geometry,
        }
        if None in self.kernels:
            namespace[kernel] = self.kernels[None]
            target = f"{kernel}.launch"
        else:
            target = f"{kernel}[{self.arguments.first}.dtype].launch"
        values = f"({''.join(f'{e}, ' for e in self.expressions.values())})"
        if callable(self.launch.launch):
            self.arguments.check_rule(self.launch.launch, "the launch rule")
            return namespace, [
                f"grid, block, shared = geometry({self.arguments.call_of(rule)})",
                f"{target}(grid, block, {values}, shared)",
            ]
        if self.launch.launch not in RULES:
            raise ValueError(
                f'{self.who}: launch is "1d", "rows" or a function of (out, *inputs, **attributes), got '
                f"{self.launch.launch!r}"
            )
        block = self.launch.block
        sizes = (block,) if isinstance(block, int) else tuple(block)
        threads = int(np.prod(sizes))
        if not 1 <= len(sizes) <= 3 or not all(isinstance(s, int) and s > 0 for s in sizes) or threads > 1024:
            raise ValueError(f"{self.who}: block is the threads of a block, 1 to 1024, got {block!r}")
        shared = self.launch.shared
        if not isinstance(shared, (int, str)):
            raise TypeError(f"{self.who}: shared is a number of bytes or an expression, got {shared!r}")
        shared = self.arguments.check(str(shared), "shared", extra=("block",))
        rows = self.arguments.number_of_rows
        grid = f"blocks(out.size, {threads})" if self.launch.launch == "1d" else rows
        lines = [f"block = {sizes if len(sizes) > 1 else threads}"]
        return namespace, [*lines, f"{target}({grid}, block, {values}, {shared})"]

    def _geometry(self, found: Any) -> tuple:
        """What a launch rule of the user's returned, as (grid, block, bytes of shared memory)."""
        if isinstance(found, (tuple, list)) and len(found) in (2, 3):
            return (*found, 0)[:3]
        raise TypeError(
            f"{self.who}: the launch rule must return (grid, block) or (grid, block, shared_bytes), got "
            f"{found!r:.80}"
        )


def _by_dtype(names: Mapping[Any, str]) -> dict[np.dtype | None, str]:
    """``{"f4": name}`` with dtypes as keys; None, for every dtype, stays."""
    return {None if key is None else parse_dtypes((key,))[0]: name for key, name in names.items()}


def _function_name(launch: Launch, default: str) -> str:
    """The CUDA function's name, without template arguments."""
    name = next(iter(launch.kernel.values())) if isinstance(launch.kernel, Mapping) else launch.kernel
    return (name or default).partition("<")[0].strip()


class _Scratch:
    """Makes an array in which one launch leaves what the next one reads."""

    def __init__(self, who: str, name: str, rule: Callable):
        self.who, self.name, self.rule = who, name, rule

    def __call__(self, out: Any, found: Any) -> Any:
        """The array of the shape, or (shape, dtype), ``found``, where ``out`` is."""
        try:
            whole = (
                isinstance(found, tuple) and len(found) == 2 and not isinstance(found[1], (int, np.integer))
            )
            shape, dtype = found if whole else (found, out.dtype)
            return workspace(out, shape, np.dtype(dtype))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self.who}: the rule of scratch {self.name!r} must return a shape, or (shape, dtype), got "
                f"{found!r:.80} ({error})"
            ) from None


def register_cuda(
    op: OpDefinition,
    source: Any,
    launches: Launch | Sequence[Launch],
    scratch: Mapping[str, Callable] | None,
    name: str | None,
    dtypes: Any,
    summary: str,
    options: dict,
) -> None:
    """Register a kernel as :meth:`minigrad.op.Op.cuda` describes it."""
    steps = [launches] if isinstance(launches, Launch) else list(launches)
    if not steps or not all(isinstance(step, Launch) for step in steps):
        raise TypeError(
            f"op {op.name!r}, cuda: expected a kernel's name or a list of Launch, got {launches!r}"
        )
    if any(isinstance(step.kernel, Mapping) and not step.kernel for step in steps):
        raise ValueError(f"op {op.name!r}, cuda: the dict of kernels by dtype holds no dtype")
    own = name or _function_name(steps[0], op.name)
    who = f"op {op.name!r}, kernel {own!r}"
    origin = Origin(source, "kernel.cu", who)
    code = CudaSource(origin.source)
    arguments = Arguments(op, who, scratch or ())
    read = [_Step(step, code, arguments, op, i) for i, step in enumerate(steps)]

    accepted = [step.accepts for step in read if step.accepts is not None]
    given = FLOATS if dtypes is None and not accepted else parse_dtypes(dtypes or accepted[0])
    for step in read:
        for dtype in given:
            if step.accepts is not None and dtype not in step.accepts:
                raise ValueError(
                    f"{who}: it is registered for {dtype}, and the CUDA function takes "
                    f"{', '.join(map(str, step.accepts))}: make it a template over T, or give dtypes"
                )

    lines: list[str] = []
    namespace: dict[str, Any] = {}
    for array, rule in (scratch or {}).items():
        arguments.check_rule(rule, f"the rule of scratch {array!r}")
        namespace[f"new_{array}"] = _Scratch(who, array, rule)
        lines.append(f"{array} = new_{array}(out, {arguments.call_of(f'new_{array}.rule')})")
    for step in read:
        namespace |= step.namespace
        lines += step.code
    expressions = [pair for step in read for pair in step.expressions.items()]

    def explain(error: Exception, names: dict) -> None:
        arguments.explain(error, names, expressions, origin)

    run = arguments.function(lines, namespace, explain)
    run.__name__, run.__doc__ = own, summary or code.comment(next(iter(read[0].kernels.values())).name)
    op.kernel("cuda", "sim", name=own, dtypes=given, **options)(run)
