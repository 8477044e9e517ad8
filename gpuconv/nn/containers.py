"""Modules that hold other modules or parameters, as lists and dicts, and register them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from gpuconv.geometry import integer
from gpuconv.nn.module import Module, Parameter

__all__ = ["Identity", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"]


class Identity(Module):
    """Returns its input; arguments are accepted and ignored."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class _Collection(Module):
    """Has elements of one kind, which are registered under their names."""

    kind: ClassVar[type]

    def _elements(self) -> dict[str, Any]:
        raise NotImplementedError


class _OfModules(_Collection):
    kind = Module

    def _elements(self) -> dict[str, Any]:
        return self._modules


class _OfParameters(_Collection):
    kind = Parameter

    def _elements(self) -> dict[str, Any]:
        return self._parameters


class _List(_Collection):
    """Base of the lists; their elements are attributes with numbers as names."""

    def __init__(self, values: Iterable[Any] | None = None):
        super().__init__()
        if values is not None:
            self.extend(values)

    def _replace(self, values: list[Any]) -> None:
        for name in list(self._elements()):
            delattr(self, name)
        for number, value in enumerate(values):
            self._put(str(number), value)

    def _put(self, name: str, value: Any) -> None:
        if not isinstance(value, self.kind):
            own = type(self).__name__
            raise TypeError(f"{own}: element {name} must be a {self.kind.__name__}, got {type(value).__name__}")
        setattr(self, name, value)

    def _position(self, index: Any) -> int:
        position = integer(index, "index", minimum=-(2**31), op=type(self).__name__)
        if not -len(self) <= position < len(self):
            raise IndexError(f"{type(self).__name__}: index {position} is out of range of {len(self)} elements")
        return position % len(self)

    def __len__(self) -> int:
        return len(self._elements())

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._elements().values()))

    def __getitem__(self, index: Any) -> Any:
        values = list(self._elements().values())
        return type(self)(values[index]) if isinstance(index, slice) else values[self._position(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._put(str(self._position(index)), value)

    def __delitem__(self, index: Any) -> None:
        values = list(self._elements().values())
        del values[index if isinstance(index, slice) else self._position(index)]
        self._replace(values)

    def append(self, value: Any) -> Any:
        """Put an element at the end; returns self."""
        self._put(str(len(self)), value)
        return self

    def extend(self, values: Iterable[Any]) -> Any:
        """Put several elements at the end; returns self."""
        for value in list(values):
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> Any:
        return self.extend(values)


class ModuleList(_OfModules, _List):
    """A list of modules. It has no ``forward``; the module that contains it calls them."""

    def insert(self, index: int, module: Module) -> None:
        """Put a module before ``index``."""
        values = list(self)
        values.insert(index, module)
        self._replace(values)


class ParameterList(_OfParameters, _List):
    """A list of parameters; Tensors and arrays are converted."""

    def _put(self, name: str, value: Any) -> None:
        super()._put(name, value if isinstance(value, Parameter) else Parameter(value))


class _Dict(_Collection):
    """Base of the dicts; their elements are attributes."""

    def __init__(self, values: Any = None):
        super().__init__()
        if values is not None:
            self.update(values)

    def __len__(self) -> int:
        return len(self._elements())

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._elements()))

    def __contains__(self, key: object) -> bool:
        return key in self._elements()

    def __getitem__(self, key: str) -> Any:
        return self._elements()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        own = type(self).__name__
        if not isinstance(key, str):
            raise TypeError(f"{own}: keys must be strings, got {type(key).__name__}")
        if not isinstance(value, self.kind):
            raise TypeError(f"{own}: element {key!r} must be a {self.kind.__name__}, got {type(value).__name__}")
        setattr(self, key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self._elements():
            raise KeyError(key)
        delattr(self, key)

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._elements().keys()

    def values(self) -> Iterable[Any]:
        """The elements."""
        return self._elements().values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """The names and elements."""
        return self._elements().items()

    def update(self, values: Any) -> None:
        """Set several, from a mapping or from pairs."""
        for key, value in values.items() if isinstance(values, (Mapping, _Dict)) else values:
            self[key] = value

    def pop(self, key: str) -> Any:
        """Take an element out and return it."""
        value = self[key]
        del self[key]
        return value

    def clear(self) -> None:
        """Take all elements out."""
        for key in list(self):
            del self[key]


class ModuleDict(_OfModules, _Dict):
    """A dict of modules. It has no ``forward``; the module that contains it calls them."""


class ParameterDict(_OfParameters, _Dict):
    """A dict of parameters; Tensors and arrays are converted."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value if isinstance(value, Parameter) else Parameter(value))
