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

What happens in a call, by the example of ``x @ w``:

1. ``Tensor.__matmul__`` (:mod:`minigrad.operators`) calls the function ``matmul`` of
   :mod:`minigrad.ops.matmul`, which makes matrices of vectors and calls the op of the same name.
2. :meth:`Op.apply` takes the arrays out of the tensors, and checks that they share a device and a dtype; what
   is unusual, such as lists or mixed dtypes, :mod:`minigrad.op_inputs` converts.
3. :meth:`Op._compute` asks the op's :class:`~minigrad.dispatch.KernelTable` for the kernel that fits device,
   dtype and arrays, and :func:`~minigrad.dispatch.run_kernel` allocates the output and runs it. Without a
   kernel that fits, the reference runs.
4. The result becomes a tensor. If an input requires a gradient, :meth:`Op._record` makes the
   :class:`~minigrad.graph.Node` that leads back to the inputs.

The way back is in :mod:`minigrad.autograd`; for each node it calls :meth:`Op.apply_gradient`.
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
from minigrad.op_inputs import SCALARS, check_broadcast, convert_inputs, device_error
from minigrad.op_options import call as call_with_options
from minigrad.recording import recorder

__all__ = ["Op", "get_op", "op"]

LARGE_ARRAY = 1 << 17
"""From inputs of this many bytes on, NumPy uses minigrad's allocator; to tell it so takes 0.5 us."""


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
    """What the shape rule of ``op`` returned, as a list with the (shape, dtype) of each output."""
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
    found: Any = None
    for array in arrays:
        shape = getattr(array, "shape", None)  # a tuple that CuPy makes each time
        if found is None:
            found = shape
        elif shape is not None and shape != found:
            return np.broadcast_shapes(*[a.shape for a in arrays if hasattr(a, "shape")])
    return found


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
            tuple of arrays. It runs where no kernel fits, and every kernel is tested against it.
        name: the op's name, unique in the process; by default the reference's.
        promote: convert all inputs to one dtype first, by PyTorch's type promotion (for arithmetic). If
            False, inputs of different floating dtypes are an error; if None, they stay as they are.
        one_dtype: inputs of different dtypes are an error, integers among them. Otherwise integers may stand
            beside floats, as class labels and row indices do.
        differentiable: False for ops without a gradient, such as comparisons.
        view: the output may be a view of the first input's memory.
        moves: the op only moves, converts or tests elements, and so takes 16-bit floats as they are. All
            others compute with them in float32, and round the result once.
        arithmetic: the gradient rules use only ops and operators (``+``, ``*``), and so run on bare arrays as
            on tensors. Unless ``create_graph`` is set they are given arrays, which is faster, if these are
            small and not of 16 bits.
        ops_alone: the gradient rules use only ops: they are given arrays of any size and dtype; of an op with
            several outputs, if a gradient came for the first one alone. Unless ``arithmetic`` is set too,
            such rules may read the shape and dtype of inputs that are not kept for them.
        small: ``small(*inputs)``, a compiled function for small arrays on the CPU, without the overhead of
            dispatch; it returns the output, or None where it does not apply. For ops without attributes.
        direct: not an argument, but set where the op's kernels are registered: ``direct(*inputs,
            **attributes)``, tried after ``small``, allocates the output on the CPU and runs the kernel, or
            returns None. It saves the time of the shape rule and of the kernels' conditions.
        add_gradient: ``add_gradient(total, g, **attributes)`` adds the gradient of the only input to
            ``total``, an array of its shape, in place. It replaces the rule and the engine's addition for ops
            that select a part of their input, whose gradient is zero everywhere else.
        part: beside ``add_gradient``: ``part(shape, **attributes)`` is the (axis, start, stop) that the op
            selects from an input of this shape, or None if it is no such slice.
        saved_outputs: of several outputs, the positions of those that the gradient rules need; of the others
            they are given Specs. By default all.
        materialize_grads: of several outputs, those without a gradient get one of zeros; if False, the rules
            are given None, and may return None.
        outputs: the names of several outputs, which kernels from source code use.
        returns: how many of several outputs a call returns. The rest are computed for the gradient rule,
            which is given all outputs, and all their gradients (a second derivative may reach the rest, too).
        non_differentiable: names of inputs that never get a gradient, whatever their dtype.
        in_place: the name of an input that the call changes: the output is copied into its memory, and the
            call returns it. The reference and the kernels do not write to the input themselves. What
            ``x.add_(y)`` may not be applied to is refused here as well.
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
        """Apply the op to all its inputs and attributes: steps 2 to 4 of the module's text.

        Returns:
            A tensor, or a tuple of tensors; arrays, if a gradient rule that runs on arrays is the caller.
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
                    mixed = True  # but not for integers, such as labels and indices, beside floats
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
            converted = convert_inputs(self, args, device)
            if converted is not None:
                return self.apply(converted, attrs)

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
        if self.view and results.base is not None and _share_memory(results, arrays[0], device):
            out._written = written_cell(args[0])
        if recorded and results.dtype.kind in FLOATING_KINDS:  # integers have no gradient
            self._record(args, attrs, device, [out], needs)
        return out

    def _record(self, args: tuple, attrs: dict, device: Any, outputs: list, needs: int) -> None:
        """Record the call: make the node that leads from ``outputs`` back to ``args``."""
        saves = self._saves.get(needs)
        if saves is None:
            saves = self._what_to_save(needs, len(args))
        save_inputs, save_outputs = saves
        node = Node(self, attrs, device, args, outputs, save_inputs, save_outputs)
        if mode.anomaly:
            node.stack = calling_stack()
            check_outputs(self, args, outputs)

    def _compute(self, device: Any, dtype: np.dtype, arrays: list, attrs: dict) -> Any:
        """Run the kernel that fits, or the reference, on arrays of ``device``.

        Args:
            dtype: of the first array.

        Returns:
            An array, or a tuple of arrays.
        """
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
        """:meth:`_compute` for 16-bit floats: on float32, and the results rounded to ``dtype``."""
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
        if self.view:  # computes and allocates nothing: no warnings to silence, no allocator to set
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
        """Apply the gradient rules; for each input its gradient, or None where ``needed`` is None.

        Args:
            g: the gradient of the output, or a tuple, one for each output.
            y: the output or outputs, as far as the rules need them.
            inputs: the inputs, or their Specs.
        """
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
        """The gradients by the rule of :meth:`grad_together`, by the input's number, if all are needed."""
        places, rule = self._together  # type: ignore[misc]
        if any(needed[i] is None for i in places):
            return {}
        return dict(zip(places, rule(*arguments, **attrs), strict=True))

    def _check_joint(self, found: Any, needed: Sequence) -> list:
        """What the rule for all inputs returned, checked, with None where no gradient is needed."""
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
        """Which inputs the rules need, and whether they need the outputs, by their parameters' names.

        Args:
            needs: a bit for each input that requires a gradient.
            count: the number of inputs.
        """
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


def _share_memory(view: Any, array: Any, device: Any) -> bool:
    """Whether ``view``, made from ``array``, is a view: a reshape, say, may have had to copy the elements."""
    base = view.base
    if base is array or base is array.base:
        return True
    with device.active():
        return bool(device.xp.may_share_memory(view, array))
