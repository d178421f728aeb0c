"""The op: a name, a reference in NumPy terms, a gradient in Tensor terms, and any number of kernels.

minigrad's own operations are defined with what it hands to its users::

    @mg.op
    def swish(xp, x, *, beta=1.0):
        return x / (1 + xp.exp(-beta * x))

    @swish.grad
    def _(g, y, x, *, beta):
        s = mg.sigmoid(beta * x)
        return g * (s + beta * x * s * (1 - s))

    @swish.kernel("cpu", name="fused")
    def _(out, x, *, beta):
        my_extension.swish(out, x, beta)

The reference's positional parameters after ``xp`` are the inputs (tensors, or Python scalars where the
computation allows them), the keyword-only ones are attributes. Gradient rules compute with tensors, so the
gradient of a gradient needs no rule of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np

from minigrad.anomaly import calling_stack, check_outputs
from minigrad.devices import cpu
from minigrad.dispatch import Spec, enter_quiet, leave_quiet, run_kernel
from minigrad.dtypes import FLOAT32, FLOATING_KINDS, is_floating, is_half
from minigrad.graph import Node, Variable, mode, wrap, written_cell
from minigrad.kernels.cpu import memory
from minigrad.mixed_precision import cast_inputs
from minigrad.op_definition import OpDefinition, _ops
from minigrad.op_inputs import SCALARS, check_broadcast, device_error, harmonise
from minigrad.op_options import call as call_with_options
from minigrad.recording import recorder

__all__ = ["Op", "get_op", "op"]

LARGE_ARRAY = 1 << 17
"""The bytes of an input from which on NumPy is told to use minigrad's allocator, which takes 0.5 us."""


def _has_large(arrays: list) -> bool:
    for array in arrays:  # noqa: SIM110 - any() would make a generator, at each call of an op
        if type(array) is np.ndarray and array.nbytes >= LARGE_ARRAY:
            return True
    return False


def _is_half_array(array: Any) -> bool:
    return hasattr(array, "dtype") and is_half(array.dtype)


def cast_array(device: Any, array: Any, dtype: np.dtype) -> Any:
    """``array``, of ``device``, converted to ``dtype`` by the op ``cast``."""
    return _ops["cast"]._compute(device, array.dtype, [array], {"dtype": dtype})


def _as_specs(op: str, rule_result: Any, dtype: np.dtype) -> list:
    """What the shape rule of ``op`` returned, as (shape, dtype) of each output."""
    if type(rule_result) is tuple:
        return [(rule_result, dtype)]
    if isinstance(rule_result, Spec):
        return [rule_result]
    if isinstance(rule_result, list):
        return [r if isinstance(r, Spec) else (tuple(r), dtype) for r in rule_result]
    raise TypeError(
        f"op {op!r}: the shape rule returns a shape (a tuple), a Spec(shape, dtype), or a list of them, one "
        f"for each output; it returned {rule_result!r:.80}"
    )


def _broadcast_shape(arrays: list) -> tuple:
    """The shape that the arrays among the inputs broadcast to."""
    if len(arrays) == 1:
        return arrays[0].shape
    shapes = [a.shape for a in arrays if hasattr(a, "shape")]
    for shape in shapes:
        if shape != shapes[0]:
            return np.broadcast_shapes(*shapes)
    return shapes[0]


def get_op(name: str) -> Op:
    """The op named ``name``; ValueError lists the names there are."""
    try:
        return _ops[name]
    except KeyError:
        raise ValueError(f"no op is named {name!r}; there are: {', '.join(sorted(_ops))}") from None


def op(reference: Callable | None = None, *, name: str | None = None, **options: Any) -> Any:
    """Decorator: make an :class:`Op` of a reference ``f(xp, *inputs, **attributes)``.

    Args:
        name: the op's name; by default the function's.
        options: ``promote``, ``one_dtype``, ``differentiable``, ``view``, ``moves``, ``arithmetic``,
            ``ops_alone``, ``add_gradient``, ``part``, ``saved_outputs``, ``materialize_grads``, ``outputs``,
            ``returns``, ``non_differentiable``, ``in_place`` as in :class:`Op`.
    """
    if reference is None:
        return lambda function: Op(function, name, **options)
    return Op(reference, name, **options)


class Op(OpDefinition):
    """An operation on tensors. Call it with tensors; see :func:`op` for how to make one.

    Args:
        reference: ``f(xp, *inputs, **attributes)`` on arrays of the module ``xp``; returns one array, or a
            tuple of arrays. It is what runs where no kernel fits, and the oracle of every kernel.
        name: the op's name, one for all that its kernels, errors and gradients are told by.
        promote: bring all inputs to one dtype first, by PyTorch's rules (for arithmetic). Otherwise inputs
            of different floating dtypes are an error; or stay as they are, if this is None.
        one_dtype: inputs of different dtypes are an error, of whatever kind. Without this and ``promote``,
            integers may stand beside floats, as numbers of classes or rows.
        differentiable: False for ops without a gradient, such as comparisons.
        view: the output may show the first input's memory.
        moves: the op moves elements, converts them or looks at their bits, and so computes on 16-bit floats
            as they are. All others compute on them in float32, and round the result once.
        arithmetic: the gradient rules use nothing but ops, and the operators that bare arrays have too; where
            no graph of the gradient is wanted, they are given arrays instead of tensors, which is quicker.
        ops_alone: the gradient rules use nothing but ops: the same, for arrays of 16 bits and for large ones,
            too; of several outputs, where a gradient came for the first alone. Unless they are arithmetic as
            well, they may look at the shapes and dtypes of what they do not name.
        small: ``small(*inputs)``, what computes on small arrays of the CPU without the overhead of all else;
            it returns the output, or None where it does not apply. For ops without attributes.
        direct: not given here but set beside the op's kernels: ``direct(*inputs, **attributes)``, asked after
            ``small``, allocates an output of the CPU and runs the kernel at once, or returns None. A few
            questions in compiled code take the place of the shape rule, the conditions of the kernels and
            their wrappers, which cost as much as 100,000 elements where the data has filled the caches.
        add_gradient: ``add_gradient(total, g, **attributes)`` adds the gradient of the only input to
            ``total``, an array of its shape, in place: what the rule gives and the engine then adds, without
            an array of its own. For ops that look at a part of their input.
        part: beside ``add_gradient``: ``part(shape, **attributes)`` says which part of an input of this shape
            the op looks at, (axis, start, stop), where that is its gradient's only place; else None.
        saved_outputs: of several outputs, the positions of those that the gradient rules look at; the others
            arrive there as Specs, and may be changed in place. By default all.
        materialize_grads: of several outputs, those that no gradient came for have one of zeros; if False,
            the rules are given None in its place, and may return None.
        outputs: the names of several outputs, by which kernels from source refer to them.
        returns: how many of several outputs a call returns; the others are for the gradient alone, whose rule
            is given all of them, and the gradients of all of them: those of the others come from the second
            order.
        non_differentiable: names of inputs that never get a gradient, whatever their dtype.
        in_place: the name of an input that the call writes: the only output becomes its new value, and the
            call returns it. The reference and the kernels compute that value and leave the input alone; it
            is copied there in the end, so that no kernel finds its output and an input in the same memory.
            Allowed, and refused, as for ``x.add_(y)``.
    """

    def __reduce__(self) -> tuple:
        return get_op, (self.name,)

    def __get__(self, instance: Any, owner: Any) -> Any:
        """As an attribute of a class, an op is a method."""
        return self if instance is None else MethodType(self, instance)

    # ---- application -----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        if len(attrs) != len(self.attributes):
            attrs = self._complete(attrs)
        if len(args) != self.arity and not self.variadic:
            args = self._complete_inputs(args)
        if self.has_options:
            return call_with_options(self, args, attrs)
        return self.apply(args, attrs)

    def apply(self, args: tuple, attrs: dict) -> Any:
        """The call with all inputs and attributes: compute the outputs and, if it is recorded, their node.

        In a gradient rule that is given bare arrays, ops take bare arrays and give bare arrays.
        """
        if args and not isinstance(args[0], Variable):
            bare = mode.bare
            if bare is not None and isinstance(args[0], (bare.array_type, np.generic)):
                if recorder.current is not None:
                    recorder.current.applies(self.name, args)
                arrays = [bare.xp.asarray(a) if isinstance(a, np.generic) else a for a in args]
                return self._compute(bare, arrays[0].dtype, arrays, attrs)
        if self.autocast is not None and mode.autocast is not None:
            args = cast_inputs(self.autocast, args)
        device: Any = None
        dtype: Any = None
        scalars = mixed = False
        needs, bit = 0, 1  # a bit for each input that requires a gradient
        arrays = []
        for arg in args:
            if isinstance(arg, Variable):
                variable = arg  # a name whose type the compiled engine knows
                array = variable._array
                arrays.append(array)
                if device is None:
                    device = variable.device
                    dtype = array.dtype
                elif variable.device is not device:
                    raise device_error(self, args)
                elif array.dtype is not dtype and (
                    self.promote or self.one_dtype or (self.promote is False and is_floating(array.dtype))
                ):
                    mixed = True  # else: numbers of classes or rows beside floats are none to convert
                if variable.requires_grad:
                    needs |= bit
            else:
                arrays.append(arg)
                if type(arg) in SCALARS:
                    scalars = True
                elif arg is not None or not self.optional:
                    mixed = True
            bit <<= 1
        if mixed or device is None or (scalars and dtype.kind not in FLOATING_KINDS):
            harmonised = harmonise(self, args, device)
            if harmonised is not None:
                return self.apply(harmonised, attrs)

        if device.is_card:
            if recorder.current is not None:
                recorder.current.applies(self.name, args)
            with device.active():
                results = self._compute(device, dtype, arrays, attrs)
        else:
            results = self._compute(device, dtype, arrays, attrs)

        recorded = needs and self.differentiable and mode.grad
        if type(results) is tuple:
            outputs = [wrap(array, device) for array in results]
            if recorded:
                self._record(args, attrs, device, outputs, needs)
            return tuple(outputs)
        out = wrap(results, device)
        if self.view and results.base is not None and _shows(results, arrays[0], device):
            out._written = written_cell(args[0])
        if recorded and results.dtype.kind in FLOATING_KINDS:  # to integers no gradient comes back
            self._record(args, attrs, device, [out], needs)
        return out

    def _record(self, args: tuple, attrs: dict, device: Any, outputs: list, needs: int) -> None:
        """Make the node from which ``outputs`` come."""
        saves = self._saves.get(needs)
        if saves is None:
            saves = self._what_to_save(needs, len(args))
        save_inputs, save_outputs = saves
        node = Node(self, attrs, device, args, outputs, save_inputs, save_outputs)
        if mode.anomaly:
            node.stack = calling_stack()
            check_outputs(self, args, outputs)

    def _compute(self, device: Any, dtype: np.dtype, arrays: list, attrs: dict) -> Any:
        """Run the chosen kernel, or the reference, on arrays: an array, or a tuple of them."""
        table = self.kernels
        if device is cpu and table.takes_shortcuts:
            if self.small is not None:
                result = self.small(*arrays)
                if result is not None:
                    return result
            if self.direct is not None:
                result = self.direct(*arrays, **attrs) if attrs else self.direct(*arrays)
                if result is not None:
                    return result
        kernel = None
        is_narrow = dtype.itemsize == 2 and not self.moves and is_half(dtype)
        if is_narrow:
            kernel = table.choose(device.type, dtype, arrays, attrs) if table.kernels else None
            if kernel is None:
                return self._compute_in_float32(device, dtype, arrays, attrs)
        specs = None
        if self._shape_rule is not None:
            specs = _as_specs(self.name, self._shape_rule(*arrays, **attrs), dtype)
        if table.kernels:
            if not is_narrow:
                kernel = table.choose(device.type, dtype, arrays, attrs)
            if kernel is not None:
                if specs is None:
                    if self._dtype_rule is not None:
                        dtype = self._dtype_rule(*arrays, **attrs)
                    try:
                        specs = [(_broadcast_shape(arrays), dtype)]
                    except ValueError:
                        check_broadcast(self, arrays)
                        raise
                return run_kernel(kernel, device, arrays, attrs, specs)
        result = self._run_reference(device, arrays, attrs)
        if type(result) is device.array_type:
            if self.outputs and len(self.outputs) != 1:
                raise self._wrong_outputs(1)
            if specs is not None and result.shape != specs[0][0]:
                raise RuntimeError(
                    f"op {self.name!r}: the reference returned shape {result.shape}, "
                    f"its shape rule says {specs[0][0]}"
                )
            return result
        if isinstance(result, (tuple, list)):
            results = tuple([device.xp.asarray(r) for r in result])
            if self.outputs and len(self.outputs) != len(results):
                raise self._wrong_outputs(len(results))
            shapes = [r.shape for r in results]
            if specs is not None and shapes != [tuple(spec[0]) for spec in specs]:
                raise RuntimeError(
                    f"op {self.name!r}: the reference returned the shapes {shapes}, its shape rule says "
                    f"{[tuple(spec[0]) for spec in specs]}"
                )
            return results
        if result is None:
            raise TypeError(
                f"op {self.name!r}: the reference returned None; it must return an array, or a tuple of them"
            )
        array = device.xp.asarray(result)  # NumPy gives a scalar for zero dimensions
        if array.dtype.kind in "OSU":
            raise TypeError(
                f"op {self.name!r}: the reference must return an array of numbers, or a tuple of them, got "
                f"{type(result).__name__} {result!r:.60}"
            )
        return array

    def _wrong_outputs(self, count: int) -> RuntimeError:
        return RuntimeError(
            f"op {self.name!r} has {len(self.outputs)} outputs ({', '.join(self.outputs)}), and the "
            f"reference returned {count}"
        )

    def _compute_in_float32(self, device: Any, dtype: np.dtype, arrays: list, attrs: dict) -> Any:
        """:meth:`_compute` for floats of 16 bits: on float32, and what comes out rounded to ``dtype``."""
        wide = [cast_array(device, a, FLOAT32) if _is_half_array(a) else a for a in arrays]
        results = self._compute(device, FLOAT32, wide, attrs)
        several = results if type(results) is tuple else (results,)
        dtypes = [dtype] * len(several)
        if self._shape_rule is not None:
            dtypes = [t for _, t in _as_specs(self.name, self._shape_rule(*arrays, **attrs), dtype)]
        pairs = zip(several, dtypes, strict=True)
        rounded = [cast_array(device, r, t) if r.dtype == FLOAT32 != t else r for r, t in pairs]
        return tuple(rounded) if type(results) is tuple else rounded[0]

    def _run_reference(self, device: Any, arrays: list, attrs: dict) -> Any:
        arguments = (device.xp, *arrays)
        if self.view:  # nothing is computed, so there is nothing to warn of, and nothing to allocate
            return self.reference(*arguments, **attrs)
        entered = None
        if device is cpu and _has_large(arrays):
            entered = memory.enter()
        quiet = enter_quiet()
        try:
            return self.reference(*arguments, **attrs) if attrs else self.reference(*arguments)
        except ValueError:
            check_broadcast(self, arrays)
            raise
        except memory.NumpyMemoryError as error:
            raise memory.explain(error) from error
        finally:
            leave_quiet(quiet)
            if entered is not None:
                memory.leave(entered)

    # ---- the gradient ----------------------------------------------------------------------------------

    def apply_gradient(self, g: Any, y: Any, inputs: Sequence, attrs: dict, needed: Sequence) -> list:
        """The gradient of each input whose entry in ``needed`` is not None; None for the others."""
        if self._joint_rule is not None:
            if self._tells_needed:
                attrs = {**attrs, "needed": tuple([need is not None for need in needed])}
            return self._check_joint(self._joint_rule(g, y, *inputs, **attrs), needed)
        found: list = []
        arguments = (g, y, *inputs)
        together = () if self._together is None else self._found_together(arguments, attrs, needed)
        for i, rule in enumerate(self._rules):
            if needed[i] is None:
                found.append(None)
            elif i in together:
                found.append(together[i])
            elif attrs:
                found.append(rule(*arguments, **attrs))
            else:  # as above, but quicker
                found.append(rule(*arguments))
        return found

    def _found_together(self, arguments: tuple, attrs: dict, needed: Sequence) -> dict[int, Any]:
        """By the number of the input, the gradients that one rule gives where all of them are needed."""
        places, rule = self._together  # type: ignore[misc]
        if any(needed[i] is None for i in places):
            return {}
        return dict(zip(places, rule(*arguments, **attrs), strict=True))

    def _check_joint(self, found: Any, needed: Sequence) -> list:
        """What a rule for all inputs returned, with None for the inputs that need no gradient."""
        if not isinstance(found, (tuple, list)):
            found = (found,)
        if len(found) != len(needed):
            raise RuntimeError(
                f"the gradient of {self.name!r} returned {len(found)} values for {len(needed)} inputs"
            )
        for i, (need, grad) in enumerate(zip(needed, found, strict=True)):
            if need is not None and grad is None and self.materialize_grads:
                raise self._no_gradient(i)
        return [None if need is None else grad for need, grad in zip(needed, found, strict=True)]

    def _what_to_save(self, needs: int, count: int) -> tuple[tuple[bool, ...], bool]:
        """Which inputs, and whether the outputs, the rules for the inputs in ``needs`` look at."""
        if self._joint_rule is not None:
            rules = [self._joint_rule]
        else:
            rules = [rule for i, rule in enumerate(self._rules) if needs >> i & 1]
        save_inputs, save_outputs = [False] * count, False
        for rule in rules:
            names = [
                (p.name, p.kind == p.VAR_POSITIONAL)
                for p in inspect.signature(rule).parameters.values()
                if p.kind != p.KEYWORD_ONLY and p.kind != p.VAR_KEYWORD
            ]
            positional = [name for name, star in names if not star]
            star = next((name for name, is_star in names if is_star), "_")
            wanted = positional + [star] * (count + 2 - len(positional))
            save_outputs = save_outputs or not wanted[1].startswith("_")
            save_inputs = [s or not w.startswith("_") for s, w in zip(save_inputs, wanted[2:], strict=False)]
        saves = tuple(save_inputs), save_outputs
        if not self.variadic:
            self._saves[needs] = saves
        return saves


def _shows(view: Any, array: Any, device: Any) -> bool:
    """Whether ``view`` shows the memory of ``array``: to reshape one, its elements may have to be copied."""
    base = view.base
    if base is array or base is array.base:
        return True
    with device.active():
        return bool(device.xp.may_share_memory(view, array))
