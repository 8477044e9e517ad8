"""Optimizers, with PyTorch's names, arguments and formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpuconv import backends
from gpuconv.autograd import Tensor, native, overwrite, to_array
from gpuconv.backends import Backend, capturing

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


class Optimizer:
    """Base: the parameters, and for each some arrays of its shape that live as long as the optimizer.

    Args:
        params: leaf Tensors, at least one; those that do not require grad never have one, and stay as they are.
        lr: learning rate; may be changed between steps.

    Attributes:
        lr: learning rate.
        steps: how many steps were taken.
        schedule: if not None, a function that gives the learning rate of a step by the number of steps taken before it;
            ``lr`` is then what the last step took. On a GPU it is asked for some hundred steps ahead: it must depend
            on the number alone.
    """

    #: Names of the arrays kept for each parameter.
    slots: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Tensor], lr: float):
        if isinstance(params, Tensor):
            raise TypeError(
                f"{type(self).__name__}: params must be an iterable of Tensors, got one Tensor; put it in a list"
            )
        self.params = list(params)
        if not self.params:
            raise ValueError(f"{type(self).__name__}: params is empty (an iterator that was used up?)")
        for param in self.params:
            if not isinstance(param, Tensor) or not param.is_leaf or param.dtype.kind != "f":
                raise TypeError(
                    f"{type(self).__name__}: params must be leaf Tensors of floats, got {type(param).__name__}"
                )
        self.lr = _at_least_zero(self, "lr", lr)
        self.steps = 0
        self.schedule: Callable[[int], float] | None = None
        #: The array of each parameter that its others are known to fit.
        self._known: list[Any] = [None] * len(self.params)
        #: What a backend keeps on a device for the updates, see ``gpuconv.backends.cuda_numbers``.
        self.on_device: dict[Any, Any] = {}
        self._arrays: list[dict[str, Any]] = [
            {slot: _zeros_like(param.data) for slot in self.slots} for param in self.params
        ]

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        if capturing.current() is None:
            for param in self.params:
                param._grad = None
        else:
            for param in self.params:
                param.zero_grad()

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        Raises:
            ValueError: the array of a parameter or of its gradient was exchanged for one of another shape or element
                type, or a parameter's is read-only; nothing is updated.
        """
        updates: dict[type, list[tuple[Any, ...]]] = {}  # by the kind of array: a network may lie on two devices
        capture = capturing.current()
        for number, (param, arrays) in enumerate(zip(self.params, self._arrays, strict=True)):
            if param.grad is None:
                continue
            data, grad = param.data, param.grad.data
            if capture is not None:
                capture.reads_grad(param)
            if grad.shape != data.shape or grad.dtype != data.dtype:
                self._check(param, grad, {})
            if data is not self._known[number]:
                self._check(param, grad, arrays)
                self._known[number] = data
                for slot, array in arrays.items():
                    if type(array) is not type(data):  # the parameters have been moved since
                        with capturing.outside():
                            arrays[slot] = _zeros_like(data)
                            overwrite(arrays[slot], array)
            updates.setdefault(type(data), []).append((data, grad, *arrays.values()))
        self.steps += 1
        try:
            if self.schedule is not None:
                self.lr = float(self.schedule(self.steps - 1))
            for of_a_kind in updates.values():
                params, *others = zip(*of_a_kind, strict=True)
                self._update(backends.current(params[0]), params, *others)
        except BaseException:
            self.steps -= 1
            raise
        if capturing.current() is not None:
            self.steps -= 1  # it is taken when the graph runs

    def _check(self, param: Tensor, grad: Any, arrays: dict[str, Any]) -> None:
        """Compiled updates go by the parameter's shape and type: what does not fit may not reach them."""
        data = param.data
        if not getattr(data.flags, "writeable", True):
            number = next(i for i, one in enumerate(self.params) if one is param)
            raise ValueError(f"{type(self).__name__}: the array of parameter {number} is read-only; give it a copy")
        for name, array in (("gradient", grad), *arrays.items()):
            if array.shape != data.shape or native(array.dtype) != native(data.dtype):
                number = next(i for i, one in enumerate(self.params) if one is param)
                raise ValueError(
                    f"{type(self).__name__}: parameter {number} is {data.dtype} of shape {tuple(data.shape)}, but its "
                    f"{name} is {array.dtype} of shape {tuple(array.shape)}: an optimizer keeps to the arrays that it "
                    "was made for; make another one"
                )

    def repeated(self, numbers: Any, count: int) -> None:
        """Count the steps that a graph is about to take; ``numbers`` are those that their kernel reads.

        Raises:
            RuntimeError: a term of the formula has been added or dropped since the step was captured.
        """
        self.steps += 1
        numbers.prepare(self, count)
        self.steps += count - 1
        if self.schedule is not None:
            self.lr = float(self.schedule(self.steps - 1))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is on a device for the next steps: a copy makes its own."""
        return {**self.__dict__, "on_device": {}}

    def settings(self) -> tuple[Any, ...]:
        """All that the numbers of an update depend on, but for the number of the step."""
        raise NotImplementedError

    def _rate(self) -> Any:
        return float(self.lr) if self.schedule is None else self.schedule

    def coming(self, count: int, needed: int = 1) -> list[dict[str, Any]]:
        """What the backend's update takes by keyword in the step that is being taken, and in those behind it.

        ``count`` of them, or one if that :meth:`stays`; of a schedule that ends before, at least ``needed``.
        """
        rates = [self.lr] * (1 if self.stays() else count)
        if self.schedule is not None:
            rates = []
            for ahead in range(count):
                try:
                    rates.append(float(self.schedule(self.steps - 1 + ahead)))
                except Exception:
                    if ahead < needed:
                        raise
                    break
        return [self._numbers(self.steps + number, lr) for number, lr in enumerate(rates)]

    def stays(self) -> bool:
        """Whether what this step takes is what all later ones take, as long as the settings are the same."""
        return False

    def _numbers(self, step: int, lr: float) -> dict[str, Any]:
        raise NotImplementedError

    def _update(self, backend: Backend, params: Sequence[Any], grads: Sequence[Any], *slots: Sequence[Any]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """``lr``, ``steps``, and a copy of the arrays as NumPy arrays, named ``'<number of parameter>.<slot>'``."""
        state: dict[str, Any] = {"lr": self.lr, "steps": self.steps}
        for number, arrays in enumerate(self._arrays):
            for slot, array in arrays.items():
                state[f"{number}.{slot}"] = Tensor(array).numpy().copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; nothing is changed if it does not fit.

        Raises:
            ValueError: names or shapes that do not fit.
        """
        own = {
            f"{number}.{slot}": array for number, arrays in enumerate(self._arrays) for slot, array in arrays.items()
        }
        expected = {"lr", "steps", *own}
        if expected != set(state):
            raise ValueError(
                f"load_state_dict: the state is not that of a {type(self).__name__} of {len(self.params)} parameters: "
                f"names differ in {sorted(expected ^ set(state))[:4]}"
            )
        for name, array in own.items():
            if tuple(state[name].shape) != tuple(array.shape):
                raise ValueError(
                    f"load_state_dict: {name} has shape {tuple(state[name].shape)} instead of {array.shape}"
                )
        self.lr, self.steps = float(state["lr"]), int(state["steps"])
        for name, array in own.items():
            overwrite(array, to_array(state[name]))


def _zeros_like(array: Any) -> Any:
    """Zeros where the array is, host or device."""
    zeros = array.copy()
    zeros[...] = 0
    return zeros


def _at_least_zero(optimizer: Optimizer, name: str, value: float) -> float:
    number = _number(optimizer, name, value)
    if not number >= 0:  # also refuses NaN
        raise ValueError(f"{type(optimizer).__name__}: {name} must be at least 0, got {value}")
    return number


def _number(optimizer: Optimizer, name: str, value: Any) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{type(optimizer).__name__}: {name} must be a number, got {value!r}")
    return float(value)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Polyak, 1964) or Nesterov's (Sutskever et al., 2013).

    ``g = grad + weight_decay · w; v = momentum · v + (1 - dampening) · g; w -= lr · v``, v being g at the first step.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        self.momentum = _at_least_zero(self, "momentum", momentum)
        self.dampening = _number(self, "dampening", dampening)
        self.weight_decay = _at_least_zero(self, "weight_decay", weight_decay)
        self.nesterov = nesterov
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(params, lr)

    def _update(self, backend: Backend, params: Sequence[Any], grads: Sequence[Any], *slots: Sequence[Any]) -> None:
        velocities = slots[0] if slots else [None] * len(params)
        backend.sgd_update_all(params, grads, velocities, optimizer=self, **self._numbers(self.steps, self.lr))

    def settings(self) -> tuple[Any, ...]:
        return self._rate(), self.momentum, self.dampening, self.weight_decay, self.nesterov

    def _numbers(self, step: int, lr: float) -> dict[str, Any]:
        return {
            "lr": float(lr),
            "momentum": self.momentum,
            "dampening": self.dampening if step > 1 else 0.0,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
        }

    def stays(self) -> bool:
        return self.schedule is None and (self.steps > 1 or self.dampening == 0)


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015); ``weight_decay`` is added to the gradient."""

    slots = ("mean", "square")
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas must be at least 0 and below 1, got {betas}")
        self.betas = betas
        self.eps = _at_least_zero(self, "eps", eps)
        self.weight_decay = _at_least_zero(self, "weight_decay", weight_decay)
        super().__init__(params, lr)

    def _update(self, backend: Backend, params: Sequence[Any], grads: Sequence[Any], *slots: Sequence[Any]) -> None:
        backend.adam_update_all(params, grads, *slots, optimizer=self, **self._numbers(self.steps, self.lr))

    def settings(self) -> tuple[Any, ...]:
        return self._rate(), tuple(self.betas), self.eps, self.weight_decay

    def _numbers(self, step: int, lr: float) -> dict[str, Any]:
        return {
            "step": step,
            "lr": float(lr),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "decoupled": self._decoupled,
        }


class AdamW(Adam):
    """Adam with the weight decay taken off the weights, not added to the gradient (Loshchilov & Hutter, 2019)."""

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
