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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.anomaly import calling_stack, check_outputs
from minigrad.devices import KINDS, cpu
from minigrad.dispatch import (
    LAYOUTS,
    Kernel,
    Spec,
    enter_quiet,
    kernel_table,
    leave_quiet,
    parse_dtypes,
    run_kernel,
)
from minigrad.dtypes import FLOAT32, FLOATING_KINDS, is_floating, is_half
from minigrad.errors import DeviceError
from minigrad.graph import Node, Variable, mode, wrap, written_cell
from minigrad.kernels.cpu import memory
from minigrad.mixed_precision import POLICIES, cast_inputs
from minigrad.op_options import attribute_types
from minigrad.op_options import call as call_with_options
from minigrad.promotion import result_dtype
from minigrad.recording import recorder

if TYPE_CHECKING:
    from minigrad.cuda_kernels import Launch

__all__ = ["Op", "get_op", "op"]

_ops: dict[str, Op] = {}
_SCALARS = (float, int, bool)

LARGE_ARRAY = 1 << 17
"""The bytes of an input from which on NumPy is told to use minigrad's allocator, which takes 0.5 us."""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


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


def _as_specs(rule_result: Any, dtype: np.dtype) -> list:
    """What a shape rule returned, as (shape, dtype) of each output."""
    if type(rule_result) is tuple:
        return [(rule_result, dtype)]
    if isinstance(rule_result, Spec):
        return [rule_result]
    if isinstance(rule_result, list):
        return [r if isinstance(r, Spec) else (tuple(r), dtype) for r in rule_result]
    return [(tuple(rule_result), dtype)]


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
        options: ``promote``, ``differentiable``, ``view``, ``moves``, ``arithmetic``, ``small``,
            ``add_gradient``, ``saved_outputs``, ``materialize_grads``, ``outputs``, ``returns``,
            ``non_differentiable``, ``in_place`` as in :class:`Op`.
    """
    if reference is None:
        return lambda function: Op(function, name, **options)
    return Op(reference, name, **options)


class Op:
    """An operation on tensors. Call it with tensors; see :func:`op` for how to make one.

    Args:
        reference: ``f(xp, *inputs, **attributes)`` on arrays of the module ``xp``; returns one array, or a
            tuple of arrays. It is what runs where no kernel fits, and the oracle of every kernel.
        name: the op's name, one for all that its kernels, errors and gradients are told by.
        promote: bring all inputs to one dtype first, by PyTorch's rules (for arithmetic). Otherwise inputs
            of different floating dtypes are an error.
        differentiable: False for ops without a gradient, such as comparisons.
        view: the output may show the first input's memory.
        moves: the op moves elements, converts them or looks at their bits, and so computes on 16-bit floats
            as they are. All others compute on them in float32, and round the result once.
        arithmetic: the gradient rules use nothing but ops, and the operators that bare arrays have too; where
            no graph of the gradient is wanted, they are given arrays instead of tensors, which is quicker.
        small: ``small(*inputs)``, what computes on small arrays of the CPU without the overhead of all else;
            it returns the output, or None where it does not apply. For ops without attributes.
        add_gradient: ``add_gradient(total, g, **attributes)`` adds the gradient of the only input to
            ``total``, an array of its shape, in place: what the rule gives and the engine then adds, without
            an array of its own. For ops that look at a part of their input.
        saved_outputs: of several outputs, the positions of those that the gradient rules look at; the others
            arrive there as Specs, and may be changed in place. By default all.
        materialize_grads: of several outputs, those that no gradient came for have one of zeros; if False,
            the rules are given None in its place.
        outputs: the names of several outputs, by which kernels from source refer to them.
        returns: how many of several outputs a call returns; the others are for the gradient alone, whose rule
            is given all of them, and the gradients of all of them: those of the others come from the second
            order.
        non_differentiable: names of inputs that never get a gradient, whatever their dtype.
        in_place: the name of an input that the call writes: the only output becomes its new value, and the
            call returns it. The reference and the kernels compute that value and leave the input alone.
            Allowed, and refused, as for ``x.add_(y)``.
    """

    def __init__(
        self,
        reference: Callable,
        name: str | None = None,
        *,
        promote: bool = False,
        differentiable: bool = True,
        view: bool = False,
        moves: bool = False,
        arithmetic: bool = False,
        small: Callable | None = None,
        add_gradient: Callable | None = None,
        saved_outputs: Sequence[int] | None = None,
        materialize_grads: bool = True,
        outputs: Sequence[str] = (),
        returns: int | None = None,
        non_differentiable: Sequence[str] = (),
        in_place: str | None = None,
    ):
        self.name = name or reference.__name__
        self.reference = reference
        self.promote = promote
        self.differentiable = differentiable
        self.view = view
        self.moves = moves or view
        self.arithmetic_rules = arithmetic
        self.small = small
        self.add_gradient = add_gradient
        self.saved_outputs = saved_outputs
        self.materialize_grads = materialize_grads
        self.outputs = tuple(outputs)
        self.returns = returns
        self.non_differentiable = _names(non_differentiable)
        self.in_place = in_place
        self.__doc__ = reference.__doc__
        self.kernels = kernel_table(self.name)
        self.autocast = POLICIES.get(self.name)
        self._shape_rule: Callable | None = None
        self._dtype_rule: Callable | None = None
        self._joint_rule: Callable | None = None
        self._saves: dict[int, tuple[tuple[bool, ...], bool]] = {}
        self._read_signature()
        self._check_options()
        self._rules = [self._no_rule(i) for i in range(len(self.inputs))]
        _ops[self.name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(self.inputs)})>"

    def __reduce__(self) -> tuple:
        return get_op, (self.name,)

    def __get__(self, instance: Any, owner: Any) -> Any:
        """As an attribute of a class, an op is a method."""
        return self if instance is None else MethodType(self, instance)

    def _read_signature(self) -> None:
        parameters = list(inspect.signature(self.reference).parameters.values())
        kinds = [p.kind for p in parameters]
        if not parameters or kinds[0] not in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.POSITIONAL_ONLY,
        ):
            raise TypeError(f"op {self.name!r}: the reference's first parameter is the array module, `xp`")
        inputs = parameters[1:]
        self.variadic = inspect.Parameter.VAR_POSITIONAL in kinds
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.inputs = tuple(p.name for p in inputs if p.kind != keyword)
        self.arity = len(self.inputs)
        self.optional = sum(p.default is not p.empty for p in inputs if p.kind != keyword)
        self.attributes = {p.name: p.default for p in inputs if p.kind == keyword}

    def _check_options(self) -> None:
        self.attribute_types = attribute_types(self.reference, self.attributes)
        for option in (*self.non_differentiable, *([] if self.in_place is None else [self.in_place])):
            if option not in self.inputs or self.variadic:
                raise ValueError(
                    f"op {self.name!r} has no input {option!r}; it has: {', '.join(self.inputs)}"
                )
        if self.returns is not None and not (isinstance(self.returns, int) and self.returns > 0):
            raise ValueError(
                f"op {self.name!r}: returns is how many outputs a call returns, got {self.returns!r}"
            )
        self.has_options = bool(
            self.attribute_types or self.non_differentiable or self.in_place or self.returns is not None
        )

    def input_name(self, i: int) -> str:
        return f"{self.inputs[0]}[{i}]" if self.variadic else self.inputs[i]

    # ---- definition ------------------------------------------------------------------------------------

    def grad(self, rule: Callable | None = None, **rules: Callable) -> Any:
        """Define the gradient: ``rule(g, y, *inputs, **attributes)``, on tensors.

        ``g`` is the gradient of the output ``y`` (tuples, if there are several outputs). There are two
        forms. As a decorator, the rule returns one gradient per input: a tuple, or a single tensor where
        there is one input; None means no gradient. With keywords, each input has a rule of its own, which
        runs only if that input needs a gradient::

            mul.grad(x=lambda g, _z, _x, y: g * y, y=lambda g, _z, x, _y: g * x)

        What a rule does not need is not kept for it: a parameter whose name starts with an underscore
        arrives as a :class:`~minigrad.dispatch.Spec` (shape and dtype only), an only output as None: its
        shape and dtype are those of ``g``.
        """
        if rule is not None:
            self._joint_rule = rule
            self._saves.clear()
            return rule
        for name, one in rules.items():
            if name not in self.inputs:
                raise ValueError(f"op {self.name!r} has no input {name!r}; it has: {', '.join(self.inputs)}")
            self._rules[self.inputs.index(name)] = one
        self._saves.clear()
        return self

    def shape(self, rule: Callable) -> Callable:
        """Decorator: ``rule(*inputs, **attributes)`` gives the output's shape, and refuses bad inputs.

        It is called with arrays before the reference or a kernel runs, and raises what the user will see.
        It returns a shape (the dtype is then the first input's), a :class:`Spec`, or for several outputs a
        list of them. Without it, outputs have the shape that the inputs broadcast to.
        """
        self._shape_rule = rule
        return rule

    def dtype(self, rule: Callable) -> Callable:
        """Decorator: ``rule(*inputs, **attributes)`` gives the dtype of an output that is broadcast.

        It is called with arrays before a kernel runs. Without it, the dtype is that of the first array input.
        """
        self._dtype_rule = rule
        return rule

    def kernel(
        self,
        *devices: str,
        name: str | None = None,
        dtypes: str | Sequence = "f4 f8",
        layout: str = "contiguous",
        when: Callable[..., bool] | None = None,
        prefer: Callable[..., bool] | None = None,
        amplification: float | None = None,
    ) -> Callable:
        """Decorator: register ``run(out, *inputs, **attributes)`` as a kernel of this op.

        Args:
            devices: device types: ``"cpu"``, ``"cuda"``, ``"sim"``.
            name: its name on the ladder; by default the function's.
            dtypes: dtypes of the first array input that it accepts, as NumPy codes or dtypes.
            layout: ``"contiguous"``, ``"strided"`` or ``"broadcast"``: see :mod:`minigrad.dispatch`.
            when: ``when(*inputs, **attributes)`` on arrays; the kernel runs only where it is true.
            prefer: ``prefer(*inputs, **attributes)``; where it is false, the kernel runs only if
                :func:`use_kernel` selects it.
            amplification: for an algorithm that loses digits: how many times the definition's rounding errors
                its own may be, relative to the result's largest elements. :func:`check_op` allows for it.

        The last kernel registered is preferred. The first paragraph of its docstring is shown in listings.
        """
        if not devices or set(devices) - set(KINDS):
            raise ValueError(f"op {self.name!r}: a kernel's devices are among {KINDS}, got {devices}")
        if layout not in LAYOUTS:
            raise ValueError(f"op {self.name!r}: a kernel's layout is one of {LAYOUTS}, got {layout!r}")

        def register(run: Callable) -> Callable:
            summary = " ".join((inspect.getdoc(run) or "").partition("\n\n")[0].split())
            if not callable(run):
                raise TypeError(f"op {self.name!r}: a kernel is a function of arrays, got {run!r:.60}")
            own, accepted = str(name or getattr(run, "__name__", "kernel")), parse_dtypes(dtypes)
            if self.small is not None and not (getattr(run, "__module__", "") or "").startswith("minigrad."):
                self.kernels.takes_all()  # what replaces a kernel of minigrad's is for small arrays too
            self.kernels.add(
                Kernel(self.name, own, devices, accepted, run, layout, when, summary, prefer, amplification)
            )
            return run

        return register

    def cuda(
        self,
        source: str | Path,
        kernel: str | Mapping[Any, str] | Sequence[Launch] | None = None,
        *,
        args: str | Sequence[str] | None = None,
        launch: str | Callable = "1d",
        block: int | Sequence[int] = 256,
        shared: int | str = 0,
        scratch: Mapping[str, Callable] | None = None,
        name: str | None = None,
        dtypes: str | Sequence | None = None,
        summary: str = "",
        **options: Any,
    ) -> Op:
        """Register a kernel from CUDA source, for cards and for the simulator; compiled on first use. ::

            swish.cuda("swish.cu")
            swish.cuda(code, "swish<T>", args="out, x, beta, n=out.size", launch="1d", block=256)
            matmul.cuda(code, "tiled<T>", args="out, a, b, m=a.shape[0], n=b.shape[1], k=a.shape[1]",
                        launch=lambda out, a, b: ((blocks(b.shape[1], 16), blocks(a.shape[0], 16)), (16, 16)))

        Args:
            source: CUDA code, or the path of a ``.cu`` file, relative to the caller's.
            kernel: the ``__global__`` function, with its template arguments; by default one of the op's name.
                A dict gives one for each dtype. A list of :class:`Launch` makes several launches, each with
                the arguments that follow.
            args: what the function's parameters get: Python expressions over the outputs (``out``, ``outs``
                or their names), the inputs, the attributes and the scratch arrays, in order or as
                ``parameter=expression``. A parameter that is left out gets what bears its own name. There
                are also ``n`` (``out.size``), ``rows`` and ``columns`` (of the first input, the last of its
                dimensions being a row), ``itemsize`` and ``np``.
            launch: ``"1d"``, a thread for each element of the output; ``"rows"``, a block for each row of the
                first input; or ``f(out, *inputs, **attributes)``, which returns (grid, block) or (grid,
                block, bytes of shared memory).
            block: the threads of a block, for ``"1d"`` and ``"rows"``.
            shared: the bytes of dynamic shared memory of a block, or an expression, which may use ``block``.
            scratch: arrays that one launch leaves to the next: by name, ``f(out, *inputs, **attributes)``,
                which returns a shape, or (shape, dtype).
            name: its name on the ladder; by default the function's.
            dtypes: of the first array input; by default what the function takes: ``"f4 f8"`` for a template.
            summary: what it adds; by default the comment above the function.
            options: ``layout``, ``when``, ``prefer``, ``amplification`` as in :meth:`kernel`.

        Raises:
            ValueError, TypeError, FileNotFoundError: something does not fit the function's signature.
        """
        from minigrad.cuda_kernels import Launch, register_cuda

        if kernel is None or isinstance(kernel, (str, Mapping)):
            kernel = [Launch(kernel, args, launch, block, shared)]
        elif args is not None or launch != "1d" or shared != 0:
            raise TypeError(f"op {self.name!r}, cuda: args, launch and shared belong to each Launch")
        register_cuda(self, source, kernel, scratch, name, dtypes, summary, options)
        return self

    def cython(
        self,
        source: str | Path,
        function: str | None = None,
        *,
        args: str | Sequence[str] | None = None,
        name: str = "cython",
        dtypes: str | Sequence | None = None,
        flags: Sequence[str] = (),
        directives: Mapping[str, Any] | None = None,
        summary: str = "",
        **options: Any,
    ) -> Op:
        """Register a kernel for the CPU from Cython source; compiled on first use, and kept on disk. ::

            swish.cython('''
            from libc.math cimport exp
            def swish(floating[::1] out, const floating[::1] x, double beta):
                for i in range(x.shape[0]):
                    out[i] = x[i] / (1 + exp(-beta * x[i]))
            ''')

        Args:
            source: Cython code, or the path of a ``.pyx`` file, relative to the caller's.
            function: the function (``def`` or ``cpdef``); by default one of the op's name.
            args: as for :meth:`cuda`; there is also ``threads``, minigrad's number of threads. An array that
                meets a parameter of one dimension is flattened.
            name: its name on the ladder.
            dtypes: of the first array input; by default what the first array parameter takes.
            flags, directives: as for :func:`minigrad.kernels.cython_module`.
            summary: what it adds; by default the first paragraph of the function's docstring.
            options: ``layout``, ``when``, ``prefer``, ``amplification`` as in :meth:`kernel`.

        Raises:
            ValueError, TypeError, FileNotFoundError: something does not fit the function's signature.
        """
        from minigrad.cython_kernels import register_cython

        register_cython(self, source, function, args, name, dtypes, summary, flags, directives, options)
        return self

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
            if bare is not None and isinstance(args[0], bare.array_type):
                if recorder.current is not None:
                    recorder.current.applies(self.name, args)
                return self._compute(bare, args[0].dtype, [*args], attrs)
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
                    raise self._device_error(args)
                elif array.dtype is not dtype and (self.promote or is_floating(array.dtype)):
                    mixed = True  # numbers of classes or rows beside floats are none to convert
                if variable.requires_grad:
                    needs |= bit
            else:
                arrays.append(arg)
                if type(arg) in _SCALARS:
                    scalars = True
                elif arg is not None or not self.optional:
                    mixed = True
            bit <<= 1
        if mixed or device is None or (scalars and dtype.kind not in FLOATING_KINDS):
            harmonised = self._harmonise(args, device)
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
        if self.view and results.base is not None:
            out._written = written_cell(args[0])
        if recorded:
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
        if self.small is not None and device is cpu and table.takes_small:
            result = self.small(*arrays)
            if result is not None:
                return result
        if dtype.itemsize == 2 and not self.moves and is_half(dtype):
            kernel = table.choose(device.type, dtype, arrays, attrs) if table.kernels else None
            if kernel is None:
                return self._compute_in_float32(device, dtype, arrays, attrs)
        specs = None
        if self._shape_rule is not None:
            specs = _as_specs(self._shape_rule(*arrays, **attrs), dtype)
        if table.kernels:
            kernel = table.choose(device.type, dtype, arrays, attrs)
            if kernel is not None:
                if specs is None:
                    if self._dtype_rule is not None:
                        dtype = self._dtype_rule(*arrays, **attrs)
                    specs = [(_broadcast_shape(arrays), dtype)]
                return run_kernel(kernel, device, arrays, attrs, specs)
        result = self._run_reference(device, arrays, attrs)
        if type(result) is device.array_type:
            if specs is not None and result.shape != specs[0][0]:
                raise RuntimeError(
                    f"op {self.name!r}: the reference returned shape {result.shape}, "
                    f"its shape rule says {specs[0][0]}"
                )
            return result
        if isinstance(result, (tuple, list)):
            results = tuple([device.xp.asarray(r) for r in result])
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
        return device.xp.asarray(result)  # NumPy gives a scalar for zero dimensions

    def _compute_in_float32(self, device: Any, dtype: np.dtype, arrays: list, attrs: dict) -> Any:
        """:meth:`_compute` for floats of 16 bits: on float32, and what comes out rounded to ``dtype``."""
        wide = [cast_array(device, a, FLOAT32) if _is_half_array(a) else a for a in arrays]
        results = self._compute(device, FLOAT32, wide, attrs)
        if type(results) is tuple:
            return tuple([cast_array(device, r, dtype) if r.dtype == FLOAT32 else r for r in results])
        return cast_array(device, results, dtype) if results.dtype == FLOAT32 else results

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
            self._check_broadcast(arrays)
            raise
        except memory.NumpyMemoryError as error:
            raise memory.explain(error) from error
        finally:
            leave_quiet(quiet)
            if entered is not None:
                memory.leave(entered)

    def _check_broadcast(self, arrays: Sequence) -> None:
        """Say so if what the reference stumbled over are shapes that do not broadcast."""
        if self.variadic or self._shape_rule is not None:
            return
        shapes = [tuple(a.shape) for a in arrays if hasattr(a, "shape")]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(
                f"{self.name}: the shapes {' and '.join(map(str, shapes))} do not broadcast; counted from "
                "the last dimension, sizes must be equal, or one of them 1"
            ) from None

    # ---- the gradient ----------------------------------------------------------------------------------

    def apply_gradient(self, g: Any, y: Any, inputs: Sequence, attrs: dict, needed: Sequence) -> list:
        """The gradient of each input whose entry in ``needed`` is not None; None for the others."""
        if self._joint_rule is not None:
            return self._check_joint(self._joint_rule(g, y, *inputs, **attrs), needed)
        found: list = []
        arguments = (g, y, *inputs)
        for i, rule in enumerate(self._rules):
            if needed[i] is None:
                found.append(None)
            elif attrs:
                found.append(rule(*arguments, **attrs))
            else:  # as above, but quicker
                found.append(rule(*arguments))
        return found

    def _check_joint(self, found: Any, needed: Sequence) -> list:
        """What a rule for all inputs returned, with None for the inputs that need no gradient."""
        if not isinstance(found, (tuple, list)):
            found = (found,)
        if len(found) != len(needed):
            raise RuntimeError(
                f"the gradient of {self.name!r} returned {len(found)} values for {len(needed)} inputs"
            )
        for i, (need, grad) in enumerate(zip(needed, found, strict=True)):
            if need is not None and grad is None:
                raise self._no_gradient(i)
        return [None if need is None else grad for need, grad in zip(needed, found, strict=True)]

    def _no_rule(self, i: int) -> Callable:
        """The rule of input ``i`` as long as none is defined."""

        def rule(*args: Any, **attrs: Any) -> None:
            raise self._no_gradient(i)

        return rule

    def _no_gradient(self, i: int) -> RuntimeError:
        return RuntimeError(
            f"op {self.name!r} has no gradient for its input {self.input_name(i)!r}: define one with "
            f"@{self.name}.grad, or pass the input through detach()"
        )

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

    # ---- the less common paths of a call ---------------------------------------------------------------

    def _complete(self, attrs: dict) -> dict:
        complete = {**self.attributes, **attrs}
        unknown = [name for name in attrs if name not in self.attributes]
        missing = [name for name, value in complete.items() if value is inspect.Parameter.empty]
        if unknown or missing:
            what = f"has no attribute {unknown[0]!r}" if unknown else f"needs the attribute {missing[0]!r}"
            raise TypeError(
                f"op {self.name!r} {what}; its attributes: {', '.join(self.attributes) or 'none'}"
            )
        return complete

    def _complete_inputs(self, args: tuple) -> tuple:
        lacking = len(self.inputs) - len(args)
        if 0 <= lacking <= self.optional:
            return args + (None,) * lacking
        expected = str(len(self.inputs))
        if self.optional:
            expected = f"{len(self.inputs) - self.optional} to {expected}"
        raise TypeError(
            f"op {self.name!r} takes {expected} inputs ({', '.join(self.inputs)}), got {len(args)}"
        )

    def _harmonise(self, args: tuple, device: Any) -> tuple | None:
        """``args`` with arrays made tensors, and brought to one dtype; None if there was nothing to do."""
        device = device or cpu
        changed = [self._as_input(a, device) for a in args]
        if self.promote:
            dtype = result_dtype(a if a is None or type(a) in _SCALARS else a._array for a in changed)
            cast = _ops["cast"]
            changed = [
                cast(a, dtype=dtype) if isinstance(a, Variable) and a._array.dtype != dtype else a
                for a in changed
            ]
            if all(type(a) in _SCALARS for a in changed):
                changed[0] = wrap(device.from_numpy(np.asarray(changed[0], dtype)), device)
        else:
            self._check_one_float(changed)
            if all(type(a) in _SCALARS for a in changed):
                changed[0] = wrap(
                    device.from_numpy(np.asarray(changed[0], result_dtype(changed[:1]))), device
                )
        return None if all(a is b for a, b in zip(args, changed, strict=True)) else tuple(changed)

    def _as_input(self, arg: Any, device: Any) -> Any:
        """A tensor, a Python scalar, None as they are; a NumPy scalar as Python's; an array as a tensor."""
        if isinstance(arg, Variable) or type(arg) in _SCALARS or (arg is None and self.optional):
            return arg
        if isinstance(arg, np.generic) and arg.dtype.kind in "fiub":
            return arg.item()
        if isinstance(arg, (np.ndarray, list, tuple)) and device.type != "cuda":
            array = np.asarray(arg)
            if array.dtype.kind in "fiub":
                return wrap(array, device)
        raise TypeError(
            f"op {self.name!r}: expected a tensor or a number, got {type(arg).__name__}: {arg!r:.60}"
        )

    def _check_one_float(self, args: Sequence) -> None:
        dtypes = [
            (i, a.dtype) for i, a in enumerate(args) if isinstance(a, Variable) and is_floating(a.dtype)
        ]
        if len({t for _, t in dtypes}) > 1:
            found = ", ".join(f"{self.input_name(i)} is {t}" for i, t in dtypes)
            raise TypeError(f"{self.name}: inputs of different dtypes ({found}); convert one with .to(dtype)")

    def _device_error(self, args: tuple) -> DeviceError:
        places = ", ".join(
            f"{self.input_name(i)} on {a.device}" for i, a in enumerate(args) if isinstance(a, Variable)
        )
        return DeviceError(f"{self.name}: tensors of different devices ({places}); move one with .to(device)")
