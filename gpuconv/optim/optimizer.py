"""The base of optimizers: parameter groups with settings, arrays kept for each parameter, step counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv import backends, versions
from gpuconv.autograd import Tensor, native, overwrite, to_array
from gpuconv.backends import Backend, capturing
from gpuconv.dtypes import is_half, kind_of
from gpuconv.geometry import flag

__all__ = ["Optimizer", "Together"]

#: Settings that are on or off.
_FLAGS = {"nesterov", "amsgrad", "centered", "decoupled_weight_decay"}


class Together:
    """Parameters that an optimizer updates in one call: of one group, and with the same number of steps.

    Attributes:
        optimizer: whose parameters they are.
        group: their settings, one of ``optimizer.param_groups``.
        members: their indices in ``optimizer.params``.
        behind: in how many of the optimizer's steps they had no gradient, and so were not updated.
        slots: the arrays that are kept for each.
        prepared: what a backend has prepared for the next steps.
    """

    __slots__ = ("behind", "group", "members", "optimizer", "prepared", "slots")

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], behind: int):
        self.optimizer, self.group, self.behind = optimizer, group, behind
        self.members: list[int] = []
        self.slots = optimizer.slots_of(group)
        self.prepared = optimizer.prepared

    @property
    def steps(self) -> int:
        """How many steps the parameters have taken."""
        return self.optimizer.steps - self.behind

    def settings(self) -> tuple[Any, ...]:
        """All that the numbers of an update depend on, except the step number."""
        schedule = self.optimizer.schedule
        without = ("params", "initial_lr", *([] if schedule is None else ["lr"]))
        return schedule, self.behind, *[value for name, value in self.group.items() if name not in without]

    def stays(self) -> bool:
        """Whether all later steps use the same numbers as this one, as long as the settings do not change."""
        return self.optimizer.schedule is None and self.optimizer._stays(self.group, self.steps)

    def numbers(self) -> dict[str, Any]:
        """The keyword arguments of the backend's update in the current step."""
        return self.optimizer._numbers(self.group, self.steps, float(self.group["lr"]))

    def coming(self, count: int, needed: int = 1) -> list[dict[str, Any]]:
        """The keyword arguments of the backend's update in the current step and in the following ones.

        They are for ``count`` steps, or for one if they do not change (:meth:`stays`); at least for ``needed`` if a
        schedule ends earlier.
        """
        optimizer = self.optimizer
        rates = [float(self.group["lr"])] * (1 if self.stays() else count)
        if optimizer.schedule is not None:
            rates = []
            for ahead in range(count):
                try:
                    rates.append(float(optimizer.schedule(optimizer.steps - 1 + ahead)))
                except Exception:
                    if ahead < needed:
                        raise
                    break
        return [optimizer._numbers(self.group, self.steps + number, lr) for number, lr in enumerate(rates)]


class _Setting:
    """A setting of all parameter groups; reading it gives that of the first group."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self._name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        for group in optimizer.param_groups:
            group[self._name] = value


class Optimizer:
    """Base class: parameters in groups and, for each parameter, arrays of its shape that the optimizer keeps.

    Args:
        params: leaf Tensors, at least one, or dicts with ``params`` and settings for that group. Tensors that do not
            require grad get no gradient, and stay as they are.
        settings: the defaults for all groups.

    Attributes:
        param_groups: a dict for each group, with ``params`` and its settings, which may be changed between steps.
        lr: learning rate of all groups. Each other setting is an attribute too.
        steps: number of steps taken. A parameter counts only those in which it had a gradient.
        schedule: None, or a function that returns the learning rate of a step, given the number of steps before it;
            ``lr`` is then the rate of the last step. On a GPU it is called for some hundred steps ahead, so it must
            depend on that number alone.
    """

    lr: Any = _Setting()

    def __init_subclass__(cls, settings: Sequence[str] = (), **options: Any):
        super().__init_subclass__(**options)
        for name in settings:
            setattr(cls, name, setting := _Setting())
            setting.__set_name__(cls, name)

    def __init__(self, params: Iterable[Any], settings: dict[str, Any]):
        kind = type(self).__name__
        if isinstance(params, Tensor):
            raise TypeError(f"{kind}: params must be an iterable of Tensors, got one Tensor; put it in a list")
        try:
            given = list(params)
        except TypeError:
            what = f"{type(params).__name__}; pass its .parameters()" if hasattr(params, "parameters") else repr(params)
            raise TypeError(f"{kind}: params must be an iterable of Tensors, got {what}") from None
        if not given:
            raise ValueError(f"{kind}: params is empty (an iterator that was used up?)")
        self._defaults = settings
        self.param_groups: list[dict[str, Any]] = []
        self.params: list[Tensor] = []
        self.steps = 0
        self.schedule: Callable[[int], float] | None = None
        #: Of each parameter its group, the steps in which it had no gradient, and what is kept for it.
        self._group_of: list[dict[str, Any]] = []
        self._behind: list[int] = []
        self._arrays: list[dict[str, Any]] = []
        #: The array of each parameter that its others are known to fit, and that array's version.
        self._known: list[Any] = []
        self._versions: list[Any] = []
        #: See :class:`Together`.
        self.prepared: dict[Any, Any] = {}
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with settings of their own.

        Args:
            group: ``params``, a Tensor or an iterable of Tensors (or of names and Tensors), and settings by name.

        Raises:
            TypeError: not a dict, a parameter that is not a leaf Tensor of floats, or an unknown setting.
            ValueError: a parameter that the optimizer has already, or an invalid value of a setting.
        """
        kind = type(self).__name__
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{kind}: a group of parameters must be a dict with params, got {type(group).__name__}")
        unknown = set(group) - {"params", "initial_lr", *self._defaults}
        if unknown:
            raise TypeError(f"{kind}: {min(unknown)!r} is no setting; there are {', '.join(self._defaults)}")
        own = {**self._defaults, **group}
        params = [own["params"]] if isinstance(own["params"], Tensor) else list(own["params"])
        params = [one[1] if isinstance(one, tuple) and len(one) == 2 else one for one in params]
        self._check_settings({name: value for name, value in own.items() if name != "params"})
        there = {id(param) for param in self.params}
        for param in params:
            if not isinstance(param, Tensor) or not param.is_leaf or kind_of(param.dtype) != "f":
                raise TypeError(f"{kind}: params must be leaf Tensors of floats, got {type(param).__name__}")
            if id(param) in there:
                raise ValueError(f"{kind}: a parameter of shape {param.shape} is there twice")
            there.add(id(param))
        own["params"] = params
        self.param_groups.append(own)
        self.params += params
        self._group_of += [own] * len(params)
        self._behind += [self.steps] * len(params)
        self._arrays += [{slot: _zeros_like(param.data) for slot in self.slots_of(own)} for param in params]
        self._known += [None] * len(params)
        self._versions += [None] * len(params)

    # -- what an optimizer defines -----------------------------------------------------------------------------------

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the arrays that are kept for each parameter of a group."""
        return ()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Raise TypeError or ValueError for invalid settings; most must be numbers of at least 0."""
        for name, value in settings.items():
            if name in _FLAGS:
                flag(value, name, op=type(self).__name__)
            else:
                check = {"betas": _check_betas, "dampening": _check_number}.get(name, _check_at_least_zero)
                check(type(self).__name__, name, value)

    def _numbers(self, group: dict[str, Any], step: int, lr: float) -> dict[str, Any]:
        """The keyword arguments of the backend's update in a step, given its number, counted from 1."""
        raise NotImplementedError

    def _stays(self, group: dict[str, Any], steps: int) -> bool:
        """Whether all steps from number ``steps`` on use the same numbers, as long as the settings do not change."""
        return False

    def _update(self, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
        """Update parameters in place: ``arrays`` are the parameters, their gradients, and each slot's arrays."""
        raise NotImplementedError

    # -- steps -------------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None or, if not ``set_to_none``, to 0 in place."""
        if not set_to_none:
            for param in self.params:
                if param.grad is not None:
                    zero(param.grad.data)
        elif capturing.current() is None:
            for param in self.params:
                param._grad = None
        else:
            for param in self.params:
                param.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place, and count the step, as PyTorch does.

        Args:
            closure: called first, to compute the loss and its gradients.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            ValueError: the array of a parameter or of its gradient was replaced by one of another shape or dtype, or a
                parameter's array is read-only; nothing is updated.
        """
        loss = None if closure is None else closure()
        # By the kind of array, as a network may lie on two devices; half types by themselves; by group; and by the
        # steps that were not taken.
        updates: dict[tuple[Any, ...], tuple[Together, list[list[Any]]]] = {}
        missing: list[int] = []
        capture = capturing.current()
        for number, (param, arrays, group) in enumerate(zip(self.params, self._arrays, self._group_of, strict=True)):
            grad_tensor = param._grad
            if grad_tensor is None:
                missing.append(number)
                continue
            data, grad = param.data, grad_tensor.data
            if capture is not None:
                capture.reads_grad(param)
            key = type(data), data.itemsize == 2, id(group), self._behind[number]
            if key not in updates:
                updates[key] = Together(self, group, self._behind[number]), []
            together, of_a_kind = updates[key]
            if grad.shape != data.shape or grad.dtype != data.dtype:
                self._check(param, grad, {})
            if data is not self._known[number]:
                self._check(param, grad, arrays)
                self._known[number], self._versions[number] = data, versions.of(data)
                for slot, array in arrays.items():
                    if type(array) is not type(data):  # the parameters have been moved since
                        with capturing.outside():
                            arrays[slot] = _zeros_like(data)
                            overwrite(arrays[slot], array)
            for slot in together.slots:
                if slot not in arrays:  # a setting needs it only now
                    with capturing.outside():
                        arrays[slot] = _zeros_like(data)
            together.members.append(number)
            of_a_kind.append([data, grad, *[arrays[slot] for slot in together.slots]])
        if capture is not None and not capture.on_host:
            capture.updates.append(capturing.Update(self, missing, []))
            counts = self.counts()
            try:
                self._take(updates, [])
            finally:
                self.back(counts)  # the step is taken when the graph runs
        elif capture is not None:
            capture.steps(self)
            for _, of_a_kind in updates.values():
                for data, _, *slots in of_a_kind:
                    for array in (data, *slots):
                        capture.writes(array)
            capture.updates.append(capturing.Update(self, missing, []))
            touched = [array for _, of_a_kind in updates.values() for of_one in of_a_kind for array in of_one]
            capture.repeat(lambda: self._take(updates, missing), touched, own=True)
            if not capture.by_launches:  # then it runs again as a whole, and counts its steps by itself
                capture.updates.pop()
        else:
            self._take(updates, missing)
        return loss

    def _take(self, updates: dict[Any, tuple[Together, list[list[Any]]]], missing: list[int]) -> None:
        """Count a step, and update parameters; those whose indices are in ``missing`` have no gradient.

        Raises:
            RuntimeError: in a step that was captured before, some of the parameters that were updated together have
                taken steps without the others.
        """
        counts = self.counts()
        self.steps += 1
        try:
            if self.schedule is not None:
                self.lr = float(self.schedule(self.steps - 1))
            for together, of_a_kind in updates.values():
                self._check_together(together)
                for number in together.members:
                    self._versions[number].changes(f"{type(self).__name__}.step")
                update = self._update_halves if is_half(of_a_kind[0][0].dtype) else self._update
                update(backends.current(of_a_kind[0][0]), together, *zip(*of_a_kind, strict=True))
        except BaseException:
            self.back(counts)
            raise
        for number in missing:
            self._behind[number] += 1

    def _check_together(self, together: Together) -> None:
        """Bring parameters that are updated together up to date, in a captured step.

        Raises:
            RuntimeError: since the capture, the formula has gained or lost a term, or some of the parameters have taken
                steps without the others.
        """
        behind = {self._behind[number] for number in together.members}
        if len(behind) > 1:
            raise RuntimeError(
                "capture: some of the parameters that the captured step updates together have taken steps without "
                "the others since; capture the step again"
            )
        if together.slots != self.slots_of(together.group):
            raise RuntimeError(
                f"capture: the captured update has {', '.join(together.slots) or 'no momentum'}, and the optimizer "
                f"now {', '.join(self.slots_of(together.group)) or 'no momentum'}: capture the step again"
            )
        (together.behind,) = behind

    def _update_halves(self, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
        """:meth:`_update` of half types, which the slots have too: computed in float32, and rounded once."""
        with backend.computing():
            wide = [[array.astype(np.float32) for array in of_all] for of_all in arrays]
        self._update(backend, together, *wide)
        with backend.computing():
            for number, (stored, computed) in enumerate(zip(arrays, wide, strict=True)):
                if number != 1:  # gradients stay as they are
                    for target, values in zip(stored, computed, strict=True):
                        target[...] = values

    def _check(self, param: Tensor, grad: Any, arrays: dict[str, Any]) -> None:
        """Check shapes and dtypes before a compiled update, which relies on those of the parameter."""
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

    # -- steps that a graph takes ------------------------------------------------------------------------------------

    def repeated(self, update: capturing.Update, count: int) -> None:
        """Count the steps that a graph is about to take: ``count`` times the captured ``update``.

        Raises:
            RuntimeError: as of :meth:`_check_together`.
        """
        self.steps += 1
        for together, numbers in update.launches:
            self._check_together(together)
            numbers.prepare(together, count)
            for number in together.members:
                self._versions[number].changes("a captured step")
        self.steps += count - 1
        for number in update.missing:
            self._behind[number] += count
        if self.schedule is not None:
            self.lr = float(self.schedule(self.steps - 1))

    def counts(self) -> tuple[Any, ...]:
        """The step counts, for :meth:`back` to restore if a step could not be taken."""
        return self.steps, [group["lr"] for group in self.param_groups], list(self._behind)

    def back(self, counts: tuple[Any, ...]) -> None:
        """Restore the step counts that :meth:`counts` returned."""
        self.steps, rates, self._behind = counts
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr

    # -- state -------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what backends keep and what is known of arrays; a copy makes its own."""
        nothing = [None] * len(self.params)
        return {**self.__dict__, "prepared": {}, "_known": nothing, "_versions": list(nothing)}

    def state_dict(self) -> dict[str, Any]:
        """The state from which a run is resumed: numbers, and copies of the arrays as NumPy arrays.

        The keys are ``steps``; ``groups``, the settings of each group; ``'<number of parameter>.<slot>'``; and
        ``'<number of parameter>.behind'``, for a parameter that had no gradient in some steps, their number.
        """
        groups = [{k: copy.copy(v) for k, v in group.items() if k != "params"} for group in self.param_groups]
        state: dict[str, Any] = {"steps": self.steps, "groups": groups}
        state.update({f"{number}.behind": np.array(steps) for number, steps in enumerate(self._behind) if steps})
        for number, arrays in enumerate(self._arrays):
            for slot, array in arrays.items():
                state[f"{number}.{slot}"] = Tensor(array).numpy().copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`; if it does not fit, nothing is changed.

        Raises:
            ValueError: names or shapes that do not fit, or settings that this optimizer does not have.
        """
        kind = type(self).__name__
        names = {f"{number}.behind": number for number in range(len(self.params))}
        arrays = {name: value for name, value in state.items() if name not in ("steps", "groups", "lr", *names)}
        own = {f"{number}.{slot}": array for number, kept in enumerate(self._arrays) for slot, array in kept.items()}
        # As gpuconv 0.1 wrote it: the learning rate alone.
        groups = state.get("groups", [{"lr": state["lr"]}] * len(self.param_groups) if "lr" in state else None)
        if set(own) != set(arrays) or "steps" not in state or groups is None:
            raise ValueError(
                f"load_state_dict: the state is not that of a {kind} of {len(self.params)} parameters: names differ in "
                f"{sorted(set(own) ^ set(arrays))[:4]}"
            )
        if len(groups) != len(self.param_groups) or any(
            set(one) - set(group) - {"initial_lr"} for one, group in zip(groups, self.param_groups, strict=True)
        ):
            raise ValueError(
                f"load_state_dict: the state has other groups of parameters, or settings, than this {kind}"
            )
        for name, array in own.items():
            if tuple(state[name].shape) != tuple(array.shape):
                raise ValueError(
                    f"load_state_dict: {name} has shape {tuple(state[name].shape)} instead of {array.shape}"
                )
        for one in groups:
            self._check_settings({**self._defaults, **one})
        self.steps = int(state["steps"])
        self._behind = [int(state.get(name, 0)) for name in names]
        for one, group in zip(groups, self.param_groups, strict=True):
            # JSON makes lists of tuples.
            group.update({name: tuple(value) if isinstance(value, list) else value for name, value in one.items()})
        for name, array in own.items():
            overwrite(array, to_array(state[name]))


def zero(array: Any) -> None:
    """Set every element to 0."""
    if (capture := capturing.current()) is not None:
        capture.writes(array)
    capturing.repeated(lambda: array.__setitem__(..., 0), array)


def _zeros_like(array: Any) -> Any:
    """Zeros on the array's device."""
    zeros = array.copy()
    zeros[...] = 0
    return zeros


# -- settings --------------------------------------------------------------------------------------------------------


def _check_number(kind: str, name: str, value: Any) -> None:
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"{kind}: {name} must be a number, got {value!r}")


def _check_at_least_zero(kind: str, name: str, value: Any) -> None:
    _check_number(kind, name, value)
    if not float(value) >= 0:  # also refuses NaN
        raise ValueError(f"{kind}: {name} must be at least 0, got {value}")


def _check_betas(kind: str, name: str, value: Any) -> None:
    try:
        first, second = value
        for beta in (first, second):
            _check_number(kind, name, beta)
    except (TypeError, ValueError):
        raise TypeError(f"{kind}: {name} must be two numbers, got {value!r}") from None
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"{kind}: {name} must be at least 0 and below 1, got {value}")
