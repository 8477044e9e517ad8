"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gpuconv.backends import Backend
from gpuconv.optim.array_formulas import each, moments
from gpuconv.optim.optimizer import Optimizer, Together


class Adam(Optimizer, settings=("betas", "eps", "weight_decay", "amsgrad")):
    """Adam (Kingma & Ba, 2015); ``weight_decay`` is added to the gradient.

    ``m = beta1 · m + (1 - beta1) · g; v = beta2 · v + (1 - beta2) · g²; w -= lr · m̂ / (√v̂ + eps)`` with
    ``m̂ = m / (1 - beta1^t)``, ``v̂ = v / (1 - beta2^t)``; ``amsgrad`` takes the largest v so far (Reddi et al., 2018).
    """

    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        )

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("mean", "square", "largest") if group["amsgrad"] else ("mean", "square")

    def _update(self, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
        if together.group["amsgrad"]:
            each(self._amsgrad, backend, together, *arrays)
        else:
            backend.adam_update_all(*arrays, together=together, **together.numbers())

    def _amsgrad(
        self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, mean: Any, square: Any, largest: Any
    ) -> None:
        beta1, beta2 = group["betas"]
        moments(group, self._decoupled, w, g, mean, square)
        xp.maximum(largest, square, out=largest)
        w -= group["lr"] / (1 - beta1**t) * (mean / (xp.sqrt(largest) / (1 - beta2**t) ** 0.5 + group["eps"]))

    def _numbers(self, group: dict[str, Any], step: int, lr: float) -> dict[str, Any]:
        return {
            "step": step,
            "lr": lr,
            "beta1": float(group["betas"][0]),
            "beta2": float(group["betas"][1]),
            "eps": float(group["eps"]),
            "weight_decay": float(group["weight_decay"]),
            "decoupled": self._decoupled,
        }


class AdamW(Adam):
    """Adam that decays the weights directly, and not through the gradient (Loshchilov & Hutter, 2019)."""

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
