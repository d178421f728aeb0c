"""Modules made of other modules: in a chain, in a list, in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from minigrad.nn.module import MODULE, Module, format_module

__all__ = ["ModuleDict", "ModuleList", "Sequential"]


class _Numbered(Module):
    """Modules in an order, under the names "0", "1", ... unless given others."""

    def _in_order(self) -> list[Module]:
        return [module for _, module in self._registered(MODULE)]

    def _replace_all(self, modules: Iterable[tuple[str, Module]]) -> None:
        for name, _ in self._registered(MODULE):
            delattr(self, name)
        for name, module in modules:
            self.add_module(name, module)

    def _name_at(self, index: int) -> str:
        names = [name for name, _ in self._registered(MODULE)]
        try:
            return names[index]
        except IndexError:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {len(names)} modules"
            ) from None

    def __len__(self) -> int:
        return len(self._in_order())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._in_order())

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._name_at(index), module)

    def append(self, module: Module) -> Self:
        """Add a module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Add a module before the one at ``index``; all are numbered anew."""
        if not isinstance(module, Module):
            raise TypeError(f"insert: expected an nn.Module, got {type(module).__name__}")
        modules = self._in_order()
        modules.insert(index, module)
        self._replace_all((str(i), m) for i, m in enumerate(modules))


class Sequential(_Numbered):
    """Modules in a chain: each is called with what the one before returned.

    ``Sequential(a, b, c)`` names them "0", "1", "2"; ``Sequential(OrderedDict(first=a, second=b))`` uses
    the given names. An index gives a module, a slice a Sequential of the same modules.
    """

    def __init__(self, *args: Any):
        super().__init__()
        named = len(args) == 1 and isinstance(args[0], Mapping)
        for name, module in args[0].items() if named else enumerate(args):
            self.add_module(str(name), module)

    def forward(self, input: Any) -> Any:
        """The output of the last module; ``input`` itself if there is none."""
        for module in self._in_order():
            input = module(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(self._registered(MODULE)[index]))
        return self.__dict__[self._name_at(index)]

    def __delitem__(self, index: int | slice) -> None:
        names = [name for name, _ in self._registered(MODULE)]
        for name in names[index] if isinstance(index, slice) else [self._name_at(index)]:
            delattr(self, name)
        # As in PyTorch, given names are lost here: what is left is numbered.
        self._replace_all((str(i), m) for i, m in enumerate(self._in_order()))


class ModuleList(_Numbered):
    """A list of modules, all registered; it is not called itself."""

    def __init__(self, modules: Iterable[Module] | None = None):
        super().__init__()
        self.extend(modules or ())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(self._in_order()[index])
        return self.__dict__[self._name_at(index)]

    def __delitem__(self, index: int | slice) -> None:
        modules = self._in_order()
        if not isinstance(index, slice):
            self._name_at(index)
        del modules[index]
        self._replace_all((str(i), m) for i, m in enumerate(modules))

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

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


class ModuleDict(Module):
    """A dictionary of modules, all registered; it is not called itself. It keeps their order."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None):
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> Module:
        if key not in self:
            raise KeyError(key)
        return self.__dict__[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._registered(MODULE))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self._registered(MODULE))

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self._registered(MODULE)]

    def values(self) -> list[Module]:
        """The modules."""
        return [module for _, module in self._registered(MODULE)]

    def items(self) -> list[tuple[str, Module]]:
        """(name, module) pairs."""
        return self._registered(MODULE)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add the modules of a dictionary, or of (name, module) pairs."""
        for key, module in dict(modules).items():
            self[key] = module

    def pop(self, key: str) -> Module:
        """Take a module out and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self) -> None:
        """Take all modules out."""
        for key in self.keys():
            del self[key]
