"""Lets the Python code of a kernel run in the laboratory, in a process in which ``numba.cuda`` is for a real GPU.

A function is copied with other globals: where it names the module ``numba.cuda``, or something from it, the copy finds
the laboratory's; where it names another kernel or function, a copy of that. Nothing of the process itself is changed,
but that device functions can be called while a simulated kernel runs.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from gpuconv.lab import device_names, launching, libdevice, mathematics, random_numbers

_LIBDEVICE = {"numba.cuda.libdevice", "numba_cuda_mlir.cuda.libdevice"}
#: Modules whose functions know nothing of CUDA.
_PLAIN = sys.stdlib_module_names | {"numpy", "numba", "greenlet"}


def is_cuda(value: Any) -> bool:
    """Whether a value is a module of kernels' names: ``numba.cuda``, or one with the same face."""
    return isinstance(value, ModuleType) and hasattr(value, "threadIdx") and hasattr(value, "syncthreads")


class Binder:
    """Copies functions. One is made for a process, so that a function is copied once."""

    def __init__(self) -> None:
        self.names = ModuleType("numba.cuda", "The names that kernels use, as the laboratory has them.")
        device_names.install(vars(self.names))
        vars(self.names).update(_more_names())
        self._functions: dict[int, tuple[Any, FunctionType]] = {}
        self._globals: dict[int, dict[str, Any]] = {}
        self._modules: dict[int, ModuleType] = {}

    def function(self, original: Any) -> Any:
        """A copy of a function, or of the function of a kernel."""
        original = getattr(original, "py_func", original)
        if not isinstance(original, FunctionType):
            raise TypeError(f"simulate: a kernel or a Python function is wanted, not {type(original).__name__}")
        known = self._functions.get(id(original))
        if known is not None and known[0] is original:
            return known[1]
        names = self._globals.setdefault(id(original.__globals__), {"__original__": original.__globals__})
        cells = tuple(CellType() for _ in original.__closure__ or ())
        copy = FunctionType(original.__code__, names, original.__name__, original.__defaults__, cells)
        copy.__kwdefaults__, copy.__qualname__ = original.__kwdefaults__, original.__qualname__
        self._functions[id(original)] = original, copy  # before what it names, which may be itself
        for name in ("__name__", "__builtins__", "__file__"):
            if name in original.__globals__:
                names[name] = original.__globals__[name]
        for name in _global_names(original.__code__):
            if name in original.__globals__:
                names[name] = self.value(original.__globals__[name])
        for cell, source in zip(cells, original.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not filled yet
                cell.cell_contents = self.value(source.cell_contents)
        return copy

    def value(self, value: Any) -> Any:
        """What stands in the laboratory for something that a function names."""
        if (own := mathematics.of_kernels(value)) is not value:
            return own
        if isinstance(value, ModuleType):
            return self._module(value)
        twin = _twin(value)
        if twin is not None:
            return twin
        if hasattr(value, "py_func"):
            drawing = random_numbers.FUNCTIONS if value.py_func.__module__ == "numba.cuda.random" else {}
            return drawing.get(value.py_func.__name__) or self.function(value)
        if type(value).__name__ == "ExternFunction":
            from gpuconv.lab import linked  # with the interpreter of PTX, which few need

            return linked.declared(value)
        name = _cuda_name(value)
        if name is not None:
            return _syncthreads if name == "syncthreads" else getattr(self.names, name)
        if type(value).__name__ == "Integer" and hasattr(np, str(value)):  # a type of Numba's: casts, or names a type
            return mathematics.of_kernels(getattr(np, str(value)))
        if type(value).__module__.startswith("numba_cuda_mlir."):
            # Numbers' types of the two packages have the same names; only Numba's can be called outside of a kernel.
            return getattr(importlib.import_module("numba.core.types"), str(value), value)
        if isinstance(value, FunctionType) and value.__module__ in _LIBDEVICE:
            return libdevice.functions()[value.__name__]
        plain = not isinstance(value, FunctionType) or (value.__module__ or "numba").partition(".")[0] in _PLAIN
        return value if plain else self.function(value)

    def _module(self, module: ModuleType) -> ModuleType:
        if is_cuda(module):
            return self.names
        top = module.__name__.partition(".")[0]
        if top in _PLAIN and top != "numba":
            return module
        if id(module) not in self._modules:
            self._modules[id(module)] = _Proxy(module, self)
        return self._modules[id(module)]


class _Proxy(ModuleType):
    """A module as a kernel sees it: what is taken from it is bound."""

    def __init__(self, module: ModuleType, binder: Binder) -> None:
        super().__init__(module.__name__)
        self.__dict__["__original__"], self.__dict__["__binder__"] = module, binder

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__["__binder__"].value(getattr(self.__dict__["__original__"], name))
        self.__dict__[name] = value
        return value


def _syncthreads() -> None:
    """The barrier, imported by its name: what it is depends on the launch."""
    launching.names["syncthreads"]()


def _global_names(code: CodeType) -> Iterator[str]:
    """The names that a function's code, or that of functions in it, may look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _cuda_name(value: Any) -> str | None:
    """The name of something that was imported from ``numba.cuda``."""
    for module in [module for name, module in sys.modules.items() if name in ("numba.cuda", "numba_cuda_mlir.cuda")]:
        for name in ("syncthreads", *device_names.NAMES):
            if getattr(module, name, _MISSING) is value:
                return name
    return None


_MISSING = object()


def _twin(value: Any) -> Any:
    """The Python version of an intrinsic of ``gpuconv.kernels``, None for anything else."""
    definition = getattr(value, "_defn", None)
    kept = sys.modules.get("gpuconv.kernels.device.intrinsic")
    if definition is None or kept is None:
        return None
    return next((kept.TWINS[name] for name, body in kept.BODIES.items() if body is definition), None)


def _more_names() -> dict[str, Any]:
    """Arithmetic of half floats and vectors, from Numba's simulator; all else as ``numba.cuda`` has it."""
    cuda = importlib.import_module("numba.cuda")
    api = importlib.import_module("numba.cuda.simulator.kernelapi")
    module = api.FakeCUDAModule((1, 1, 1), (1, 1, 1), 0)
    vectors = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    return {"fp16": module.fp16, **vectors, "__getattr__": lambda name: getattr(cuda, name)}


_binder: Binder | None = None


def bind(kernel: Any) -> Callable[..., None]:
    """The Python function of a kernel, as it can be launched in the laboratory."""
    global _binder
    if _binder is None:
        _binder = Binder()
        _let_device_functions_be_called(_binder)
    bound: Callable[..., None] = _binder.function(kernel)
    return bound


def _let_device_functions_be_called(binder: Binder) -> None:
    """Of those that a kernel reaches in a way that was not seen, as through an object: while it is simulated."""
    dispatcher = importlib.import_module("numba.cuda.dispatcher").CUDADispatcher
    call = dispatcher.__call__

    def wrapper(self: Any, *args: Any, **keywords: Any) -> Any:
        if launching.in_kernel():
            return binder.function(self)(*args, **keywords)
        return call(self, *args, **keywords)

    dispatcher.__call__ = wrapper
