"""Optimizers, beside Adam, that scale each step by past gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gpuconv.optim.array_formulas import ArrayOptimizer, decayed, moments


class Adagrad(ArrayOptimizer, settings=("lr_decay", "weight_decay", "initial_accumulator_value", "eps")):
    """Adagrad (Duchi, Hazan & Singer, 2011).

    ``s += g²; w -= lr / (1 + (t - 1) · lr_decay) · g / (√s + eps)``, s beginning at ``initial_accumulator_value``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ):
        settings = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "initial_accumulator_value": initial_accumulator_value, "eps": eps})

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def add_param_group(self, group: Any) -> None:
        there = len(self.params)
        super().add_param_group(group)
        for arrays in self._arrays[there:]:
            arrays["sum"][...] = float(self.param_groups[-1]["initial_accumulator_value"])

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        (total,) = slots
        g = decayed(group, w, g)
        total += g * g
        w -= group["lr"] / (1 + (t - 1) * group["lr_decay"]) * (g / (xp.sqrt(total) + group["eps"]))


class Adadelta(ArrayOptimizer, settings=("rho", "eps", "weight_decay")):
    """Adadelta (Zeiler, 2012).

    ``s = rho · s + (1 - rho) · g²; d = √(u + eps) / √(s + eps) · g; u = rho · u + (1 - rho) · d²; w -= lr · d``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("square", "delta")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        super()._check_settings(settings)
        if settings["rho"] > 1:
            raise ValueError(f"Adadelta: rho must be at most 1, got {settings['rho']}")

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        (square, delta), rho, eps = slots, float(group["rho"]), float(group["eps"])
        g = decayed(group, w, g)
        square *= rho
        square += (1 - rho) * g * g
        change = xp.sqrt(delta + eps) / xp.sqrt(square + eps) * g
        delta *= rho
        delta += (1 - rho) * change * change
        w -= group["lr"] * change


class RMSprop(ArrayOptimizer, settings=("alpha", "eps", "weight_decay", "momentum", "centered")):
    """RMSprop (Hinton, 2012), with momentum; ``centered`` by the variance of the gradients (Graves, 2013).

    ``s = alpha · s + (1 - alpha) · g²; w -= lr · g / (√s + eps)``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        settings = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "momentum": momentum, "centered": centered})

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (
            "square",
            *(["velocity"] if group["momentum"] else []),
            *(["mean"] if group["centered"] else []),
        )

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        square, alpha, momentum = slots[0], float(group["alpha"]), float(group["momentum"])
        g = decayed(group, w, g)
        square *= alpha
        square += (1 - alpha) * g * g
        variance = square
        if group["centered"]:
            mean = slots[-1]
            mean += (1 - alpha) * (g - mean)
            variance = square - mean * mean
        step = g / (xp.sqrt(variance) + group["eps"])
        if momentum:
            slots[1][...] = step = momentum * slots[1] + step
        w -= group["lr"] * step


class Adamax(ArrayOptimizer, settings=("betas", "eps", "weight_decay")):
    """Adam with the largest gradient in place of the mean square (Kingma & Ba, 2015, section 7.1).

    ``m = beta1 · m + (1 - beta1) · g; u = max(beta2 · u, |g| + eps); w -= lr / (1 - beta1^t) · m / u``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("mean", "largest")

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        (mean, largest), (beta1, beta2) = slots, group["betas"]
        g = decayed(group, w, g)
        mean += (1 - beta1) * (g - mean)
        largest *= beta2
        xp.maximum(largest, xp.abs(g) + group["eps"], out=largest)
        w -= group["lr"] / (1 - beta1**t) * (mean / largest)


class NAdam(ArrayOptimizer, settings=("betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay")):
    """Adam with Nesterov's momentum (Dozat, 2016).

    ``µ_t = beta1 · (1 - 0.96^(t · momentum_decay) / 2); w -= lr · ((1 - µ_t) · g / (1 - Π µ) + µ_{t+1} · m /
    (1 - µ_{t+1} · Π µ)) / (√v̂ + eps)``, the product being over all steps to this one.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        #: For a beta and a decay, the product of µ after each step.
        self._products: dict[tuple[float, float], list[float]] = {}
        super().__init__(
            params,
            {**settings, "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay},
        )

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("mean", "square")

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        (mean, square), (beta1, beta2), lr = slots, group["betas"], float(group["lr"])
        decay = float(group["momentum_decay"])

        def momentum(step: int) -> float:
            return float(beta1 * (1 - 0.5 * 0.96 ** (step * decay)))

        products = self._products.setdefault((beta1, decay), [1.0])
        while len(products) <= t:
            products.append(products[-1] * momentum(len(products)))
        g = moments(group, group["decoupled_weight_decay"], w, g, mean, square)
        spread = xp.sqrt(square / (1 - beta2**t)) + group["eps"]
        now, coming = momentum(t), momentum(t + 1)
        w -= lr * (1 - now) / (1 - products[t]) * (g / spread)
        w -= lr * coming / (1 - products[t] * coming) * (mean / spread)


class RAdam(ArrayOptimizer, settings=("betas", "eps", "weight_decay", "decoupled_weight_decay")):
    """Adam that starts as plain momentum, until the variance of its step is bounded (Liu et al., 2020)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "decoupled_weight_decay": decoupled_weight_decay})

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("mean", "square")

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        (mean, square), (beta1, beta2), lr = slots, group["betas"], float(group["lr"])
        g = moments(group, group["decoupled_weight_decay"], w, g, mean, square)
        step = mean * (lr / (1 - beta1**t))
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            w -= step * (math.sqrt(rectified) * math.sqrt(1 - beta2**t)) / (xp.sqrt(square) + group["eps"])
        else:
            w -= step
