"""Modules made of other modules, or of parameters: in a chain, in a list, in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

from minigrad.nn.fusion import merged
from minigrad.nn.module import MODULE, PARAMETER, Module, format_module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]

Member = TypeVar("Member", Module, Parameter)


class _Container(Module, Generic[Member]):
    """What it holds has one role: modules, unless a subclass says parameters. A module may be None."""

    _role = MODULE

    def _members(self) -> list[tuple[str, Member]]:
        return self._registered(self._role, empty=True)

    def _to_member(self, value: Any) -> Any:
        """What is registered for ``value``."""
        if not isinstance(value, Module | None):
            raise TypeError(f"{type(self).__name__}: expected an nn.Module, got {type(value).__name__}")
        return value

    def _add(self, name: str, value: Any) -> None:
        self.add_module(name, value)


class _ParameterContainer(_Container[Parameter]):
    """Holds parameters; a tensor that is none becomes one."""

    _role = PARAMETER

    def _to_member(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(self).__name__}: expected a Tensor, got {type(value).__name__}")
        return value if isinstance(value, Parameter) else Parameter(value)

    def _add(self, name: str, value: Any) -> None:
        self.register_parameter(name, self._to_member(value))

    def __repr__(self) -> str:
        inner = [
            (name, f"Parameter containing: [{p.dtype} of size {'x'.join(map(str, p.shape))}]")
            for name, p in self._members()
        ]
        return format_module(type(self).__name__, self.extra_repr(), inner)


class _Numbered(_Container[Member]):
    """Members in an order, under the names "0", "1", ... unless given others."""

    def _in_order(self) -> list[Member]:
        return [member for _, member in self._members()]

    def _replace_all(self, members: Iterable[tuple[str, Member]]) -> None:
        for name, _ in self._members():
            delattr(self, name)
        for name, member in members:
            self._add(name, member)

    def _name_at(self, index: int) -> str:
        names = [name for name, _ in self._members()]
        try:
            return names[index]
        except IndexError:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {len(names)} {self._role}s"
            ) from None

    def __len__(self) -> int:
        return len(self._in_order())

    def __iter__(self) -> Iterator[Member]:
        return iter(self._in_order())

    def __setitem__(self, index: int, value: Member) -> None:
        self._add(self._name_at(index), value)

    def append(self, value: Member) -> Self:
        """Add a member at the end."""
        self._add(str(len(self)), value)
        return self

    def extend(self, values: Iterable[Member]) -> Self:
        """Add members at the end."""
        for value in list(values):
            self.append(value)
        return self

    def insert(self, index: int, value: Member) -> None:
        """Add a member before the one at ``index``; all are numbered anew."""
        members = self._in_order()
        members.insert(index, self._to_member(value))
        self._replace_all((str(i), member) for i, member in enumerate(members))


class _List(_Numbered[Member]):
    def __init__(self, values: Iterable[Member] | None = None):
        super().__init__()
        self.extend(values or ())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(self._in_order()[index])
        return self.__dict__[self._name_at(index)]

    def __delitem__(self, index: int | slice) -> None:
        members = self._in_order()
        if not isinstance(index, slice):
            self._name_at(index)
        del members[index]
        self._replace_all((str(i), member) for i, member in enumerate(members))

    def __iadd__(self, values: Iterable[Member]) -> Self:
        return self.extend(values)

    def pop(self, index: int = -1) -> Member:
        """Remove a member, by default the last, and return it."""
        member = self[index]
        del self[index]
        return member


class Sequential(_Numbered[Module]):
    """Modules in a chain: each is called with what the one before returned.

    ``Sequential(a, b, c)`` names them "0", "1", "2"; ``Sequential(OrderedDict(first=a, second=b))`` uses
    the given names. An index gives a module, a slice a Sequential of the same modules.

    On a card a Conv2d and the ReLU behind it run as one op, F.conv2d_relu, and with a MaxPool2d(2) as
    F.conv2d_pooled. They give the same bits; where something would see the difference, such as a hook, the
    modules run one by one.
    """

    def __init__(self, *args: Any):
        super().__init__()
        named = len(args) == 1 and isinstance(args[0], Mapping)
        for name, module in args[0].items() if named else enumerate(args):
            self.add_module(str(name), module)

    def forward(self, input: Any) -> Any:
        """The output of the last module; ``input`` itself if there is none."""
        for module in merged(self._in_order(), input):
            input = module(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(self._members()[index]))
        return self.__dict__[self._name_at(index)]

    def __add__(self, other: Any) -> Sequential:
        """The modules of both in one chain."""
        if not isinstance(other, Sequential):
            return NotImplemented
        return Sequential(*self, *other)

    def __delitem__(self, index: int | slice) -> None:
        names = [name for name, _ in self._members()]
        for name in names[index] if isinstance(index, slice) else [self._name_at(index)]:
            delattr(self, name)
        # As in PyTorch, given names are lost here: what is left is numbered.
        self._replace_all((str(i), m) for i, m in enumerate(self._in_order()))


class ModuleList(_List[Module]):
    """A list of modules, all registered; it is not called itself."""

    def __init__(self, modules: Iterable[Module] | None = None):
        super().__init__(modules)

    def __repr__(self) -> str:
        """Runs of modules that print alike are shown once: ``(0-2): 3 x Linear(...)``."""
        runs: list[list] = []  # [first index, last index, text]
        for i, text in enumerate(map(repr, self)):
            if runs and runs[-1][2] == text:
                runs[-1][1] = i
            else:
                runs.append([i, i, text])
        inner = [
            (str(first), text) if first == last else (f"{first}-{last}", f"{last - first + 1} x {text}")
            for first, last, text in runs
        ]
        return format_module(type(self).__name__, self.extra_repr(), inner)


class ParameterList(_ParameterContainer, _List[Parameter]):
    """A list of parameters, all registered; other tensors become parameters, in the same memory.

    Unlike PyTorch's it holds nothing but tensors.
    """


class _Dict(_Container[Member]):
    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None):
        super().__init__()
        self.update(values or {})

    def __getitem__(self, key: str) -> Member:
        if key not in self:
            raise KeyError(key)
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._add(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._members())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self._members())

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self._members()]

    def values(self) -> list[Member]:
        """The members."""
        return [member for _, member in self._members()]

    def items(self) -> list[tuple[str, Member]]:
        """(name, member) pairs."""
        return self._members()

    def update(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Add the members of a dictionary, or of (name, member) pairs."""
        for key, value in dict(values).items():
            self[key] = value

    def pop(self, key: str) -> Member:
        """Take a member out and return it."""
        member = self[key]
        del self[key]
        return member

    def clear(self) -> None:
        """Take all members out."""
        for key in self.keys():
            del self[key]


class ModuleDict(_Dict[Module]):
    """A dictionary of modules, all registered; it is not called itself. It keeps their order."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None):
        super().__init__(modules)


class ParameterDict(_ParameterContainer, _Dict[Parameter]):
    """A dictionary of parameters, all registered, in order; other tensors become parameters.

    Unlike PyTorch's it holds nothing but tensors.
    """

    def __init__(self, parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | None = None):
        super().__init__(parameters)

    def get(self, key: str, default: Any = None) -> Any:
        """The parameter of that name, or ``default``."""
        return dict(self._members()).get(key, default)

    def setdefault(self, key: str, default: Tensor) -> Parameter:
        """The parameter of that name; ``default`` is added under it where there is none."""
        if key not in self:
            self[key] = default
        return self[key]
