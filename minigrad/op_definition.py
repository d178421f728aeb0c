"""The definition of an op: its signature, its options, its gradient rules and its kernels.

:class:`minigrad.op.Op`, the subclass that users see, adds what happens in a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from minigrad.devices import KINDS
from minigrad.dispatch import CHANNELS_LAST, LAYOUTS, Kernel, kernel_table, parse_dtypes
from minigrad.mixed_precision import POLICIES
from minigrad.op_options import attribute_types

if TYPE_CHECKING:
    from minigrad.cuda_kernels import Launch

_ops: dict[str, Any] = {}
"""The ops, by their names."""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _is_own(function: Callable) -> bool:
    """Whether a function is one of minigrad's own."""
    return (getattr(function, "__module__", None) or "").startswith("minigrad.")


def _is_user_defined(run: Callable) -> bool:
    """Whether a kernel is none of minigrad's own: a function of another module, or made of source code."""
    module = getattr(run, "__module__", None) or ""
    return not module.startswith("minigrad.") or module.endswith((".cuda_kernels", ".cython_kernels"))


class OpDefinition:
    """An op without its call. The arguments are described at :class:`minigrad.op.Op`."""

    def __init__(
        self,
        reference: Callable,
        name: str | None = None,
        *,
        promote: bool | None = False,
        one_dtype: bool = False,
        differentiable: bool = True,
        view: bool = False,
        moves: bool = False,
        arithmetic: bool = False,
        ops_alone: bool = False,
        small: Callable | None = None,
        add_gradient: Callable | None = None,
        part: Callable | None = None,
        saved_outputs: Sequence[int] | None = None,
        materialize_grads: bool = True,
        outputs: Sequence[str] = (),
        returns: int | None = None,
        non_differentiable: Sequence[str] = (),
        in_place: str | None = None,
    ):
        self.name = name or reference.__name__
        self._check_name(reference)
        self.reference = reference
        self.promote = promote
        self.one_dtype = one_dtype
        self.differentiable = differentiable
        self.view = view
        self.moves = moves or view
        self.arithmetic_rules = arithmetic
        self.ops_alone = ops_alone
        self.small = small
        self.direct: Callable | None = None
        self.add_gradient = add_gradient
        self.part = part
        self.saved_outputs = saved_outputs
        self.materialize_grads = materialize_grads
        self.outputs = _names(outputs)
        self.returns = returns
        self.non_differentiable = _names(non_differentiable)
        self.in_place = in_place
        self.__doc__ = reference.__doc__
        self.kernels = kernel_table(self.name)
        self.autocast = POLICIES.get(self.name)
        self._shape_rule: Callable | None = None
        self._dtype_rule: Callable | None = None
        self._joint_rule: Callable | None = None
        self._together: tuple[tuple[int, ...], Callable] | None = None  # set by grad_together
        self._tells_needed = False  # whether the joint rule has the keyword `needed`
        self._saves: dict[int, tuple[tuple[bool, ...], bool]] = {}
        self._read_signature()
        self._check_options()
        self._rules = [self._no_rule(i) for i in range(len(self.inputs))]
        _ops[self.name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(self.inputs)})>"

    def _check_name(self, reference: Callable) -> None:
        """Refuse the name of one of minigrad's own ops, which all of minigrad would then call."""
        known = _ops.get(self.name)
        if known is not None and _is_own(known.reference) and not _is_own(reference):
            raise ValueError(
                f"minigrad has an op {self.name!r} already: choose another name, or give that op a kernel of "
                f'your own: @mg.get_op("{self.name}").kernel("cpu")'
            )

    def check_callable(self, function: Any, what: str, *leading: str) -> None:
        """TypeError unless ``function`` can be called with ``leading``, then the inputs and the attributes.

        The message begins with ``what``. minigrad's own functions are not checked: that would slow the
        import, and the tests call them.
        """
        if _is_own(function):
            return
        given = (*leading, *(("x",) if self.variadic else self.inputs))
        try:
            inspect.signature(function).bind(*given, **dict.fromkeys(self.attributes))
        except TypeError:
            inputs = f"*{self.inputs[0]}" if self.variadic else ", ".join(self.inputs)
            star = "*" if self.attributes and not self.variadic else ""
            expected = ", ".join(filter(None, (*leading, inputs, star, *self.attributes)))
            raise TypeError(
                f"{what} is a function of ({expected}), got one of {inspect.signature(function)}"
            ) from None
        except ValueError:  # a callable that tells no signature
            return

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

    def _no_rule(self, i: int) -> Callable:
        """The rule that raises, for input ``i`` until one is defined."""

        def rule(*args: Any, **attrs: Any) -> None:
            raise self._no_gradient(i)

        return rule

    def _no_gradient(self, i: int) -> RuntimeError:
        return RuntimeError(
            f"op {self.name!r} has no gradient for its input {self.input_name(i)!r}: define one with "
            f"@{self.name}.grad, or pass the input through detach()"
        )

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
        inputs = f"{expected} input{'' if expected == '1' else 's'}"
        raise TypeError(
            f"op {self.name!r} takes {inputs} ({', '.join(self.inputs)}), got {len(args)}"
            + (f"; attributes are passed by name: {', '.join(self.attributes)}" if self.attributes else "")
        )

    # ---- rules and kernels -------------------------------------------------------------------------------

    def grad(self, rule: Callable | None = None, **rules: Callable) -> Any:
        """Define the gradient: ``rule(g, y, *inputs, **attributes)``, on tensors.

        ``g`` is the gradient of the output ``y`` (tuples, if there are several outputs). There are two
        forms. As a decorator, the rule returns one gradient per input: a tuple, or a single tensor where
        there is one input; None means no gradient. A keyword ``needed=None`` of such a rule is given a tuple
        that says which inputs need one: for the others it may return None. With keywords, each input has a
        rule of its own, which runs only if that input needs a gradient::

            mul.grad(x=lambda g, _z, _x, y: g * y, y=lambda g, _z, x, _y: g * x)

        What a rule does not need is not kept for it: a parameter whose name starts with an underscore
        arrives as a :class:`~minigrad.dispatch.Spec` (shape and dtype only), an only output as None: its
        shape and dtype are those of ``g``.
        """
        what = f"op {self.name!r}: a gradient rule"
        if rule is not None:
            self.check_callable(rule, what, "g", "y")
            self._joint_rule = rule
            defaults = getattr(rule, "__kwdefaults__", None) or ()
            self._tells_needed = "needed" in defaults and "needed" not in self.attributes
            self._saves.clear()
            return rule
        for name, one in rules.items():
            place = self._place(name)
            self.check_callable(one, what, "g", "y")
            self._rules[place] = one
        self._saves.clear()
        return self

    def grad_together(self, *names: str) -> Callable:
        """Decorator: a faster rule for the inputs ``names``, used where all of them need a gradient.

        ``rule(g, y, *inputs, **attributes)`` returns a gradient for each of ``names``, and needs no more than
        the rules that each of them has for itself.
        """
        places = tuple([self._place(name) for name in names])

        def register(rule: Callable) -> Callable:
            self.check_callable(rule, f"op {self.name!r}: a gradient rule", "g", "y")
            self._together = places, rule
            return rule

        return register

    def _place(self, name: str) -> int:
        if name not in self.inputs:
            raise ValueError(f"op {self.name!r} has no input {name!r}; it has: {', '.join(self.inputs)}")
        return self.inputs.index(name)

    def shape(self, rule: Callable) -> Callable:
        """Decorator: ``rule(*inputs, **attributes)`` gives the output's shape, and refuses bad inputs.

        It is called with arrays before the reference or a kernel runs, and raises what the user will see.
        It returns a shape (the dtype is then the first input's), a :class:`Spec`, or for several outputs a
        list of them. Without it, outputs have the shape that the inputs broadcast to.
        """
        self.check_callable(rule, f"op {self.name!r}: the shape rule")
        self._shape_rule = rule
        return rule

    def dtype(self, rule: Callable) -> Callable:
        """Decorator: ``rule(*inputs, **attributes)`` gives the dtype of an output that is broadcast.

        It is called with arrays before a kernel runs. Without it, the dtype is that of the first array input.
        """
        self.check_callable(rule, f"op {self.name!r}: the dtype rule")
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
        channels_last: str | None = None,
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
            channels_last: ``"reordered"`` or ``"kept"``, if it has outputs stored channels last for such
                inputs: see :mod:`minigrad.dispatch`.

        The last kernel registered is preferred. The first paragraph of its docstring is shown in listings.
        """
        if not devices or set(devices) - set(KINDS):
            raise ValueError(f"op {self.name!r}: a kernel's devices are among {KINDS}, got {devices}")
        if layout not in LAYOUTS:
            raise ValueError(f"op {self.name!r}: a kernel's layout is one of {LAYOUTS}, got {layout!r}")
        if channels_last not in (None, *CHANNELS_LAST):
            raise ValueError(
                f"op {self.name!r}: a kernel's channels_last is one of {CHANNELS_LAST}, got {channels_last!r}"
            )

        def register(run: Callable) -> Callable:
            summary = " ".join((inspect.getdoc(run) or "").partition("\n\n")[0].split())
            if not callable(run):
                raise TypeError(f"op {self.name!r}: a kernel is a function of arrays, got {run!r:.60}")
            own, accepted = str(name or getattr(run, "__name__", "kernel")), parse_dtypes(dtypes)
            who = f"op {self.name!r}, kernel {own!r}"
            self.check_callable(run, f"{who}: a kernel", "out")
            for condition, rule in (("when", when), ("prefer", prefer)):
                if rule is not None:
                    self.check_callable(rule, f"{who}: {condition}")
            self.kernels.add(
                Kernel(
                    self.name,
                    own,
                    devices,
                    accepted,
                    run,
                    layout,
                    when,
                    summary,
                    prefer,
                    amplification,
                    channels_last,
                    user_defined=_is_user_defined(run),
                )
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
    ) -> Self:
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
    ) -> Self:
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
