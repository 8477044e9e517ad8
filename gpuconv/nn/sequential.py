"""Sequential: modules one after the other; neighbours that have a fused primitive run as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gpuconv import functional as F
from gpuconv.nn.conv_norm import NORMS, conv_norm, folds
from gpuconv.nn.layers import Conv2d, Linear, MaxPool2d, ReLU
from gpuconv.nn.module import Module
from gpuconv.nn.normalization import BatchNorm2d


class Sequential(Module):
    """Run modules one after the other.

    ``Conv2d → ReLU → MaxPool2d``, once or twice in a row, ``Conv2d → ReLU``, ``BatchNorm2d → ReLU`` and several
    ``Linear``, with or without ReLU behind each, run as one primitive, with the same results and gradients; see
    :meth:`blocks`. So do, in evaluation without a graph, ``Conv2d → BatchNorm2d`` and ``Conv2d → BatchNorm2d → ReLU``.

    Args:
        modules: the modules; or one dict of names and modules, which then name the parameters.
    """

    #: Whether neighbours run as one; set to False while a summary of the layers is made.
    _fusing = True

    def __init__(self, *modules: Any):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named = dict(modules[0])
        else:
            named = {str(i): module for i, module in enumerate(modules)}
        for name, module in named.items():
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: {name!r} is a {type(module).__name__}, not a Module")
            setattr(self, name, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: Any) -> Any:
        names = list(self._modules)
        if isinstance(index, slice):
            return Sequential({name: self._modules[name] for name in names[index]})
        return self._modules[names[index]]

    def append(self, module: Module) -> Sequential:
        """Put a module at the end; returns self. TypeError: not a Module."""
        return self.extend([module])

    def extend(self, modules: Iterable[Module]) -> Sequential:
        """Put several modules at the end; returns self. TypeError: not Modules."""
        self._replace([*self._modules.values(), *modules])
        return self

    def insert(self, index: int, module: Module) -> Sequential:
        """Put a module before ``index``; returns self. All names are numbers afterwards.

        Raises:
            TypeError: not a Module.
            IndexError: no such position.
        """
        modules: list[Any] = list(self._modules.values())
        if not -len(modules) <= index <= len(modules):
            raise IndexError(f"Sequential: insert: index {index} is out of range of {len(modules)} modules")
        modules.insert(index, module)
        self._check(modules)
        for name in list(self._modules):
            delattr(self, name)
        self._replace(modules)
        return self

    def _replace(self, modules: list[Any]) -> None:
        """Give modules that are new here numbers as names."""
        self._check(modules)
        for number, module in enumerate(modules[len(self) :], start=len(self)):
            setattr(self, str(number), module)

    @staticmethod
    def _check(modules: list[Any]) -> None:
        for number, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: module {number} is a {type(module).__name__}, not a Module")

    def blocks(self) -> list[tuple[str, ...]]:
        """Names of the modules, grouped as they run: several names are one fused primitive."""
        names = list(self._modules)
        return [tuple(names[span]) for span in self._spans(list(self._modules.values()))]

    def _spans(self, modules: list[Any]) -> Iterator[slice]:
        """Which modules run as one, first to last."""
        # Only those that are plain; written out, as a call for each module would be felt with a single image.
        kinds = [
            None if "forward" in module.__dict__ or "_hooked" in module.__dict__ else type(module) for module in modules
        ]
        position = 0
        while position < len(modules):
            length = _fusible(modules, kinds, position) if self._fusing else 1
            yield slice(position, position + length)
            position += length

    def forward(self, input: Any) -> Any:
        modules = list(self._modules.values())
        for span in self._spans(modules):
            first, *others = modules[span]
            input = _run_fused(input, first, *others) if others else first(input)
        return input


_Kinds = Sequence[Any]


def _fusible(modules: list[Any], kinds: _Kinds, position: int) -> int:
    """How many modules, from a position on, run as one."""
    types, first = kinds[position : position + 3], modules[position]
    if types[0] in NORMS and types[1:2] == [ReLU]:
        return 2
    if types[:2] == [Conv2d, BatchNorm2d] and folds(first, modules[position + 1]):
        return 3 if types[2:] == [ReLU] else 2
    if types[0] is Linear:
        return _linear_run(kinds, position)
    if not _is_block(modules, kinds, position):
        return 2 if types[:2] == [Conv2d, ReLU] and first.padding_mode == "zeros" else 1
    return 6 if _is_block(modules, kinds, position + 3) else 3


def _is_block(modules: list[Any], kinds: _Kinds, position: int) -> bool:
    """Whether a convolution, ReLU and max pooling stand at a position that run as one."""
    if kinds[position : position + 3] != [Conv2d, ReLU, MaxPool2d]:
        return False
    return modules[position].padding_mode == "zeros" and not modules[position + 2].options["return_indices"]


def _linear_run(kinds: _Kinds, position: int) -> int:
    """How many modules, from a position on, are fully connected layers and the ReLUs after them."""
    end = position
    while end < len(kinds) and kinds[end] is Linear:
        end += 2 if end + 1 < len(kinds) and kinds[end + 1] is ReLU else 1
    return end - position


def _chain_arguments(modules: Sequence[Any]) -> tuple[list[Any], list[Any], list[bool]]:
    """Weights, biases, and whether a ReLU follows, of fully connected layers."""
    layers = [module for module in modules if type(module) is Linear]
    relu = [type(follower) is ReLU for one, follower in pairwise((*modules, None)) if type(one) is Linear]
    return [layer.weight for layer in layers], [layer.bias for layer in layers], relu


def _run_fused(input: Any, layer: Any, second: Any, *rest: Any) -> Any:
    if isinstance(layer, NORMS):
        return layer.with_relu(input)
    if type(second) is BatchNorm2d:
        return conv_norm(input, layer, second, *rest)
    if type(layer) is Linear:
        if type(second) is ReLU and not rest:
            return F.linear_relu(input, layer.weight, layer.bias)
        return F.linear_chain(input, *_chain_arguments((layer, second, *rest)))
    if not rest:
        return F.conv2d_relu(input, *layer.arguments())
    pool, *others = rest
    if not others:
        return F.conv2d_relu_max_pool2d(input, **_block_arguments(layer, pool))
    following, _, last = others
    return F.conv2d_relu_max_pool2d_pair(input, _block_arguments(layer, pool), _block_arguments(following, last))


def _block_arguments(layer: Any, pool: Any) -> dict[str, Any]:
    """What ``conv2d_relu_max_pool2d`` takes for a convolution and a pooling, but the input."""
    names = "weight", "bias", "stride", "padding", "dilation", "groups"
    return {
        **dict(zip(names, layer.arguments(), strict=True)),
        "kernel_size": pool.kernel_size,
        "pool_stride": pool.stride,
        "pool_padding": pool.padding,
        "pool_dilation": pool.options["dilation"],
        "ceil_mode": pool.options["ceil_mode"],
    }
