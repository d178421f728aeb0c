"""Function transforms, under PyTorch's names (``torch.func``): gradients, Jacobians, vmap.

All run on the graph that ops record, and so have gradients themselves, of any order. Arguments and results
may be dicts, lists and tuples of tensors. ::

    params = dict(model.named_parameters())
    loss = lambda params, x, y: criterion(functional_call(model, params, x), y)
    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(params, images, labels)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minigrad.autograd import enable_grad
from minigrad.autograd import grad as gradients_of
from minigrad.graph import Variable
from minigrad.ops.elementwise import clone, zeros_like
from minigrad.ops.join import stack, unbind
from minigrad.ops.shape import movedim, reshape

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacobian",
    "jacrev",
    "vjp",
    "vmap",
]


def functional_call(
    module: Any, parameter_and_buffer_dicts: Any, args: Any = None, kwargs: dict[str, Any] | None = None
) -> Any:
    """Call ``module`` with other tensors in the place of its parameters and buffers.

    Args:
        module: an :class:`minigrad.nn.Module`; it stays as it is.
        parameter_and_buffer_dicts: from paths, as in ``named_parameters()``, to tensors; or several such.
            What is not named stays; a tensor that stands in several places is replaced in all.
        args: a tuple of arguments, or the only one.
        kwargs: arguments by name.

    Raises:
        AttributeError: there is no such path.
    """
    dicts = parameter_and_buffer_dicts
    replaced = {}
    for path, tensor in [
        pair for d in ([dicts] if isinstance(dicts, Mapping) else dicts) for pair in d.items()
    ]:
        owner, _, name = path.rpartition(".")
        attributes = vars(module.get_submodule(owner))
        if not isinstance(attributes.get(name), Variable):
            kind = type(module).__name__
            raise AttributeError(f"functional_call: {kind} has no parameter or buffer {path!r}")
        replaced[id(attributes[name])] = tensor
    places = [
        (vars(inner), name, value)
        for inner in module.modules()
        for name, value in vars(inner).items()
        if id(value) in replaced
    ]
    for attributes, name, value in places:
        attributes[name] = replaced[id(value)]
    arguments = args if isinstance(args, tuple) else () if args is None else (args,)
    try:
        return module(*arguments, **(kwargs or {}))
    finally:
        for attributes, name, value in places:
            attributes[name] = value


def grad(func: Callable, argnums: Any = 0, has_aux: bool = False) -> Callable:
    """The function that computes the gradient of ``func``, whose result is a number.

    Args:
        func: a function of tensors.
        argnums: for which argument, or a tuple of them, for which the gradients are then a tuple.
        has_aux: ``func`` returns (the number, something else), and the new function (gradient, that).
    """

    def gradient(*args: Any, **kwargs: Any) -> Any:
        found, value = grad_and_value(func, argnums, has_aux)(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient


def grad_and_value(func: Callable, argnums: Any = 0, has_aux: bool = False) -> Callable:
    """As :func:`grad`, for a function that returns (gradient, what ``func`` returns)."""

    def both(*args: Any, **kwargs: Any) -> Any:
        with enable_grad():
            watched, inputs, given = _watched(args, argnums)
            result = func(*watched, **kwargs)
            value = result[0] if has_aux else result
            if value.numel() != 1:
                raise ValueError(f"grad: the function must return one number, got shape {value.shape}")
            found = _gradients(value, inputs)
        if not has_aux:
            return _like(given, _free(found, inputs)), _free([value], inputs)[0]
        return _like(given, _free(found, inputs)), (_free([value], inputs)[0], result[1])

    return both


def vjp(func: Callable, *primals: Any) -> tuple[Any, Callable]:
    """``func(*primals)``, a tensor, and the function from v to v^T J, an entry for each of ``primals``."""
    with enable_grad():
        args, inputs, _ = _watched(primals, tuple(range(len(primals))))
        value = func(*args)

    def product(v: Any) -> tuple:
        with enable_grad():
            return _like(primals, _free(_gradients(value, inputs, v), inputs))

    return _free([value], inputs)[0], product


def jacrev(func: Callable, argnums: int = 0) -> Callable:
    """The function that computes the Jacobian of ``func`` for an argument, a tensor, row by row.

    Its shape is that of the result of ``func``, a tensor, and then the argument's.
    """

    def found(*args: Any, **kwargs: Any) -> Any:
        with enable_grad():
            watched, inputs, _ = _watched(args, argnums)
            return _free(_jacobians(func(*watched, **kwargs), inputs), inputs)[0]

    return found


jacfwd = jacrev
"""PyTorch's computes the same Jacobian column by column."""


def hessian(func: Callable, argnums: int = 0) -> Callable:
    """The function that computes the matrix of second derivatives of ``func`` for an argument, a tensor."""
    return jacrev(jacrev(func, argnums), argnums)


def jacobian(func: Callable, inputs: Any, create_graph: bool = False, **options: Any) -> Any:
    """``torch.autograd.functional.jacobian``: the Jacobian of ``func`` at ``inputs``, a tensor or a tuple.

    With several inputs it is a tuple, with an entry for each; if ``func`` returns several tensors, a tuple of
    those. With ``create_graph`` it has a gradient; ``options`` are accepted and ignored.
    """
    several = isinstance(inputs, tuple)
    with enable_grad():
        args, watched, _ = _watched(
            inputs if several else (inputs,), tuple(range(len(inputs) if several else 1))
        )
        outputs = func(*args)
        found = [_jacobians(out, watched) for out in (outputs if isinstance(outputs, tuple) else (outputs,))]
    if not create_graph:
        found = [[one.detach() for one in row] for row in found]
    rows = tuple(tuple(row) if several else row[0] for row in found)
    return rows if isinstance(outputs, tuple) else rows[0]


def vmap(
    func: Callable, in_dims: Any = 0, out_dims: Any = 0, randomness: str = "different", **options: Any
) -> Callable:
    """The function that calls ``func`` for each entry along an axis, and stacks what it returns.

    It is a loop, and as quick as one: where speed matters, write the batch as an axis of the operations.

    Args:
        func: a function of tensors.
        in_dims: the axis of each argument, None for one that is the same for all; or one axis for all.
        out_dims: where the axis stands in the results; or for a function that returns a tuple, a tuple.
        randomness, options: accepted and ignored.
    """

    def mapped(*args: Any, **kwargs: Any) -> Any:
        dims = in_dims if isinstance(in_dims, (tuple, list)) else (in_dims,) * len(args)
        split = [_slices(arg, dim) for arg, dim in zip(args, dims, strict=True)]
        sizes = {len(slices) for slices in split if slices is not None}
        if len(sizes) != 1:
            raise ValueError(f"vmap: the arguments must have one size along their axes, got {sorted(sizes)}")
        results = [
            func(*[arg if part is None else part[i] for arg, part in zip(args, split, strict=True)], **kwargs)
            for i in range(sizes.pop())
        ]
        if isinstance(out_dims, (tuple, list)):
            columns = zip(zip(*results, strict=True), out_dims, strict=True)
            return tuple(_stacked(parts, dim) for parts, dim in columns)
        return _stacked(results, out_dims)

    return mapped


def _stacked(results: Sequence, dim: int) -> Any:
    """The trees of tensors ``results`` as one, whose tensors have an axis ``dim`` more."""
    return _map(lambda *parts: movedim(stack(parts), 0, dim), *results)


# ---- tensors in dicts, lists and tuples -------------------------------------------------------------------


def _map(function: Callable, tree: Any, *others: Any) -> Any:
    """``tree`` with ``function`` of each tensor, and of those in the same place of ``others``."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        mapped = [_map(function, *values) for values in zip(tree, *others, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return function(tree, *others)


def _slices(tree: Any, dim: Any) -> list | None:
    """The entries of a tree of tensors along ``dim``, or along a tree of axes; None if that is None."""
    if dim is None:
        return None
    if isinstance(tree, Variable):
        return list(unbind(tree, dim))
    keys = list(tree) if isinstance(tree, Mapping) else range(len(tree))
    inner = [_slices(tree[key], dim if isinstance(dim, int) else dim[key]) for key in keys]
    count = next(len(slices) for slices in inner if slices is not None)
    rows = [
        [tree[key] if slices is None else slices[i] for key, slices in zip(keys, inner, strict=True)]
        for i in range(count)
    ]
    return [
        dict(zip(keys, row, strict=True)) if isinstance(tree, Mapping) else type(tree)(row) for row in rows
    ]


def _watched(args: tuple, argnums: Any) -> tuple[list, list, Any]:
    """The arguments with new tensors for those of ``argnums``; these tensors; the arguments they stand for.

    They stand for the function's own use of an argument alone, and continue a graph that it is part of.
    """
    inputs: list[Any] = []

    def watch(tensor: Any) -> Any:
        inputs.append(clone(tensor) if tensor.requires_grad else tensor.detach().requires_grad_())
        return inputs[-1]

    numbers = (argnums,) if isinstance(argnums, int) else argnums
    numbers = [n % len(args) for n in numbers]
    new = [_map(watch, arg) if i in numbers else arg for i, arg in enumerate(args)]
    given = args[numbers[0]] if isinstance(argnums, int) else tuple(args[n] for n in numbers)
    return new, inputs, given


def _like(tree: Any, tensors: list) -> Any:
    """``tensors`` in the places of those of ``tree``."""
    rest = iter(tensors)
    return _map(lambda _: next(rest), tree)


def _gradients(value: Any, inputs: list, v: Any = None) -> list:
    if not value.requires_grad:
        return [zeros_like(tensor) for tensor in inputs]
    found = gradients_of(value, inputs, v, create_graph=True, allow_unused=True)
    return [zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def _jacobians(value: Any, inputs: list) -> list:
    """For each input d value / d input, of the shape of ``value`` and then the input's."""
    elements = unbind(reshape(value, (value.numel(),)))
    rows = [_gradients(element, inputs) for element in elements]
    return [
        reshape(stack([row[i] for row in rows]), (*value.shape, *tensor.shape))
        for i, tensor in enumerate(inputs)
    ]


def _free(results: list, inputs: list) -> list:
    """``results``, outside the graph if no tensor but ``inputs`` wants their gradient."""
    own = {id(tensor) for tensor in inputs if tensor.is_leaf}
    waiting = [result for result in results if result.requires_grad]
    seen: set[int] = set()
    while waiting:
        place = waiting.pop()
        if isinstance(place, Variable):
            if place._node is None:
                if id(place) not in own:
                    return results
                continue
            place = place._node
        if id(place) not in seen:
            seen.add(id(place))
            edges = [edge for edge in place.edges if edge is not None]
            waiting += [edge[0] if isinstance(edge, tuple) else edge for edge in edges]
    return [result.detach() for result in results]
