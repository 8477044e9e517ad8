"""Counting a network: output shapes, parameters, connections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import use_backend


@dataclass(frozen=True)
class LayerSummary:
    """One layer: its dotted name, kind, output shape (batch left out), parameters and connections.

    A connection is one use of a weight or bias: each output element has ``weights of its filter + 1`` of them; of a
    transposed convolution each input element has the weights of its filter.
    Pooling, activations and flattening have neither parameters nor connections.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    connections: int


@dataclass(frozen=True)
class Summary:
    """All layers of a network in the order in which they run; print it to see a table."""

    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """Total number of learned values."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def connections(self) -> int:
        """Total number of connections."""
        return sum(layer.connections for layer in self.layers)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The table's rows, a header first and the totals last."""
        return [
            ("layer", "kind", "output", "parameters", "connections"),
            *(
                (
                    layer.name,
                    layer.kind,
                    "x".join(map(str, layer.output_shape)),
                    f"{layer.parameters:,}",
                    f"{layer.connections:,}",
                )
                for layer in self.layers
            ),
            ("total", "", "", f"{self.parameters:,}", f"{self.connections:,}"),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if column > 2 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * (sum(widths) + 8)
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def summarize(module: Any, input_shape: Sequence[int]) -> Summary:
    """Run one input of zeros through ``module`` and count every layer on its way.

    Args:
        module: a network, in evaluation mode.
        input_shape: shape of one sample, without the batch.

    Raises:
        ValueError: the input does not fit the network.
    """
    layers: list[LayerSummary] = []
    # Shapes are wanted, not numbers: to compile each layer would take seconds. What is on a GPU is computed there.
    with no_grad(), use_backend("numpy"), _layer_by_layer(module, layers):
        module(Tensor(np.zeros((1, *input_shape), next((p.dtype for p in module.parameters()), np.float32))))
    return Summary(tuple(layers))


@contextmanager
def _layer_by_layer(module: Any, layers: list[LayerSummary]) -> Iterator[None]:
    """Have each layer (a module with no others inside) note what it did, and run unfused so that each one does run."""
    touched: list[Any] = []
    for name, inside in module.named_modules():
        if not any(True for _ in inside.children()):
            inside.__dict__["forward"] = _noting(inside, name or type(inside).__name__, layers)
        elif hasattr(inside, "_fusing"):
            inside.__dict__["_fusing"] = False
        else:
            continue
        touched.append(inside)
    try:
        yield
    finally:
        for inside in touched:
            inside.__dict__.pop("forward", None)
            inside.__dict__.pop("_fusing", None)


def _noting(layer: Any, name: str, layers: list[LayerSummary]) -> Any:
    def forward(*inputs: Any, **options: Any) -> Any:
        output = type(layer).forward(layer, *inputs, **options)
        first = output[0] if isinstance(output, tuple) else output
        shape = tuple(first.shape[1:])
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        connections = layer.connections(tuple(inputs[0].shape[1:]), shape)
        layers.append(LayerSummary(name, type(layer).__name__, shape, parameters, connections))
        return output

    return forward
