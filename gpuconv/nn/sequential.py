"""Sequential: modules one after the other, with the neighbours that have a fused primitive run as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpuconv import functional as F
from gpuconv.nn.layers import Conv2d, MaxPool2d, ReLU
from gpuconv.nn.module import Module


class Sequential(Module):
    """Run modules one after the other.

    ``Conv2d → ReLU → MaxPool2d`` and ``Conv2d → ReLU`` run as one primitive, with the same results and gradients; see
    :meth:`blocks`.

    Args:
        modules: the modules; or one dict of names and modules, which then name the parameters.
    """

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

    def blocks(self) -> list[tuple[str, ...]]:
        """Names of the modules, grouped as they run: several names are one fused primitive."""
        named = list(self._modules.items())
        groups, position = [], 0
        while position < len(named):
            length = _fusible([module for _, module in named[position : position + 3]])
            groups.append(tuple(name for name, _ in named[position : position + length]))
            position += length
        return groups

    def forward(self, input: Any) -> Any:
        for names in self.blocks():
            modules = [self._modules[name] for name in names]
            input = modules[0](input) if len(modules) == 1 else _run_fused(input, *modules)
        return input


def _fusible(modules: list[Module]) -> int:
    """How many of the first modules run as one. Subclasses may define another forward, so the types must be exact."""
    types = tuple(type(module) for module in modules)
    if types[:2] != (Conv2d, ReLU):
        return 1
    last = modules[-1]
    return 3 if type(last) is MaxPool2d and not last.options["return_indices"] else 2


def _run_fused(input: Any, conv: Any, relu: Any, pool: Any = None) -> Any:
    if pool is None:
        return F.conv2d_relu(input, *conv.arguments())
    return F.conv2d_relu_max_pool2d(
        input,
        *conv.arguments(),
        kernel_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
        pool_dilation=pool.options["dilation"],
        ceil_mode=pool.options["ceil_mode"],
    )
