"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gpuconv.backends import Backend
from gpuconv.optim.optimizer import Optimizer, Together


class SGD(Optimizer, settings=("momentum", "dampening", "weight_decay", "nesterov")):
    """Stochastic gradient descent, with momentum (Polyak, 1964) or Nesterov's (Sutskever et al., 2013).

    ``g = grad + weight_decay · w; v = momentum · v + (1 - dampening) · g; w -= lr · v``, v being g at the first step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
        )

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("velocity",) if group["momentum"] else ()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        super()._check_settings(settings)
        if settings["nesterov"] and (settings["momentum"] == 0 or settings["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")

    def _update(self, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
        params, grads, *slots = arrays
        velocities = slots[0] if slots else [None] * len(params)
        backend.sgd_update_all(params, grads, velocities, together=together, **together.numbers())

    def _numbers(self, group: dict[str, Any], step: int, lr: float) -> dict[str, Any]:
        return {
            "lr": lr,
            "momentum": float(group["momentum"]),
            "dampening": float(group["dampening"]) if step > 1 else 0.0,
            "weight_decay": float(group["weight_decay"]),
            "nesterov": group["nesterov"],
        }

    def _stays(self, group: dict[str, Any], steps: int) -> bool:
        return steps > 1 or group["dampening"] == 0
