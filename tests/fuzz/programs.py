"""Random programs: lists of statements in the names of ``dialect``, a function of the seed alone.

A statement is a line of Python (or a ``with`` block). Its variables are a letter and a number: x3 a Tensor or array, m0
a module, o1 an optimizer, s2 a state. Each array that a statement makes is written in it: shape, element type, layout,
seed of the elements. So statements can be dropped and shapes made smaller, which is what ``reducing`` does.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field
from typing import Any

from . import calls
from .dialect import LAYOUTS

VARIABLE = re.compile(r"\b[xmos]\d+\b")
_TARGETS = re.compile(r"([xmos]\d+(?:, [xmos]\d+)*) = (?!=)")
_FLOATS = ("float32", "float64")
_INTEGERS = ("int64", "int32", "uint8", "int8", "int16")


def targets(statement: str) -> list[str]:
    """The variables that a statement defines."""
    found = _TARGETS.match(statement)
    return found[1].split(", ") if found else []


def uses(statement: str) -> set[str]:
    """The variables that a statement reads."""
    found = _TARGETS.match(statement)
    return set(VARIABLE.findall(statement[found.end() :] if found else statement))


def has_effect(statement: str) -> bool:
    """Whether a statement does more than to define variables: the run cannot go on if one library refuses it."""
    return not targets(statement) or statement.startswith("with")


@dataclass
class Program:
    """Statements, and how they run.

    Attributes:
        eager: compiled code runs at any size, not only where it pays; convolutions are of a table's shapes then.
    """

    seed: int
    statements: list[str]
    eager: bool


@dataclass
class _Value:
    name: str
    shape: tuple[int, ...]
    dtype: str
    grad: bool = False  # requires grad
    leaf: bool = True
    array: bool = False  # no Tensor
    family: int = 0  # of those that may share memory
    size: float = 3.0  # magnitude of its largest elements, roughly


@dataclass
class _Module:
    name: str
    takes: tuple[Any, ...]  # shape of an input without the batch
    gives: tuple[Any, ...] | None  # None: as the input
    dtype: str
    optimizers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Conv:
    channels: int
    height: int
    width: int
    filters: int
    kernel: Any
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    window: Any  # of a max pooling behind it

    @property
    def output(self) -> tuple[int, int] | None:
        sizes = []
        for axis, size in enumerate((self.height, self.width)):
            extent = _of(self.dilation, axis) * (_of(self.kernel, axis) - 1) + 1
            padding = self.padding
            if isinstance(padding, str):
                total = extent - 1 if padding == "same" else 0
            else:
                side = _of(padding, axis)
                total = sum(side) if isinstance(side, tuple) else 2 * side
            sizes.append((size + total - extent) // _of(self.stride, axis) + 1)
        return (sizes[0], sizes[1]) if min(sizes) > 0 else None


def _of(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, tuple) else value


def _conv(r: random.Random) -> _Conv:
    """A convolution that is possible."""

    def one_or_two(low: int, high: int) -> Any:
        return r.randint(low, high) if r.random() < 0.6 else (r.randint(low, high), r.randint(low, high))

    while True:
        groups = r.choice([1, 1, 1, 2, 3])
        padding = r.choice([0, 0, one_or_two(0, 3), "same", "valid", ((1, 0), (0, 2)), ((0, 3), (2, 1))])
        made = _Conv(
            groups * r.randint(1, 3),
            r.randint(1, 9),
            r.choice([1, 2, 3, 5, 7, 8, 9, 13, 17]),
            groups * r.choice([1, 1, 2, 3, 5, 9]),
            one_or_two(1, 4),
            1 if padding == "same" else one_or_two(1, 3),
            padding,
            one_or_two(1, 1 if r.random() < 0.6 else 3),
            groups,
            r.choice([1, 2, 2, 3, (1, 2), (2, 3)]),
        )
        if made.output is not None:
            return made


def table(count: int) -> list[_Conv]:
    """The convolutions of eager programs: each is compiled once on a machine, which takes seconds."""
    r = random.Random(2016)
    return [_conv(r) for _ in range(count)]


class _Generator:
    def __init__(self, seed: int, convolutions: int):
        self.random = random.Random(seed)
        self.eager = self.random.random() < 0.5 and convolutions > 0
        self.table = table(convolutions) if self.eager else []
        self.statements: list[str] = []
        self.values: list[_Value] = []
        self.modules: list[_Module] = []
        self.optimizers: list[tuple[str, list[str]]] = []
        self.count = 0
        self.families = 0
        self.seeds = 0
        self.dtype = self.random.choice(_FLOATS)
        #: How often a program leaves what is plain.
        self.odd = self.random.choice([0.0, 0.15, 0.4])

    # -- pieces of text ------------------------------------------------------------------------------------------------

    def new(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def float_type(self) -> str:
        other = self.random.choice(_FLOATS)
        return other if self.chance(self.odd) else self.dtype

    def shape(self, low: int = 0, high: int = 4) -> tuple[int, ...]:
        sizes = [self.random.choice([1, 2, 2, 3, 3, 4, 5, 7]) for _ in range(self.random.randint(low, high))]
        if sizes and self.chance(0.05):
            sizes[self.random.randrange(len(sizes))] = 0
        return tuple(sizes)

    def array(self, shape: tuple[int, ...], dtype: str, values: Any = "normal", layout: str | None = None) -> str:
        self.seeds += 1
        if layout is None:
            layout = self.random.choice(LAYOUTS) if self.chance(max(0.15, self.odd)) else "C"
        options = f", {values!r}" if values != "normal" else ""
        return f"array({shape}, {dtype!r}, {layout!r}, {self.seeds}{options})"

    def layouts(self) -> str:
        kinds = [layout for layout in LAYOUTS if layout not in ("broadcast", "readonly")]
        return str(tuple(self.random.choice(kinds) for _ in range(self.random.randint(1, 3))))

    def add(self, statement: str) -> None:
        self.statements.append(statement)

    def define(self, text: str, shape: Any, dtype: str, *sources: _Value, view: bool = False, **options: Any) -> _Value:
        self.families += 1
        grad = options.pop("grad", any(source.grad for source in sources) and dtype[0] == "f")
        family = sources[0].family if view else self.families
        size = options.pop("size", max([source.size for source in sources], default=3.0))
        array = bool(sources) and all(source.array for source in sources)
        value = _Value(self.new("x"), tuple(shape), dtype, grad, not grad, array, family, size)
        for name, option in options.items():
            setattr(value, name, option)
        self.add(f"{value.name} = {text}")
        self.values.append(value)
        return value

    def pick(self, condition: Any = lambda value: True) -> _Value | None:
        found = [value for value in self.values if condition(value)]
        if not found:
            return None
        # Mostly one of the latest: programs are to be deep.
        return self.random.choice(found[-4:] if self.chance(0.6) else found)

    def float_value(self, low: int = 0, high: int = 5, dtype: str | None = None) -> _Value:
        wanted = self.pick(
            lambda v: v.dtype[0] == "f" and low <= len(v.shape) <= high and (dtype is None or v.dtype == dtype)
        )
        if wanted is None or self.chance(0.1):
            return self.leaf(self.shape(low, min(high, 4)), dtype or self.float_type())
        return wanted

    def leaf(self, shape: tuple[int, ...], dtype: str | None = None, grad: bool | None = None) -> _Value:
        dtype = dtype or self.float_type()
        grad = dtype[0] == "f" and (self.chance(0.7) if grad is None else grad)
        return self.define(f"Tensor({self.array(shape, dtype)}, {grad})", shape, dtype, grad=grad, leaf=True)

    def operand(self, shape: tuple[int, ...], dtype: str) -> tuple[str, _Value | None]:
        """A Tensor of a shape and type, or an array: the text, and the value if it has a name."""
        found = self.pick(lambda v: v.shape == shape and v.dtype == dtype)
        if found is not None and self.chance(0.5):
            return found.name, found
        if self.chance(0.15):
            return self.array(shape, dtype), None
        made = self.leaf(shape, dtype)
        return made.name, made

    # -- what a program does -------------------------------------------------------------------------------------------

    def unary(self) -> None:
        x = self.float_value()
        name, small = x.name, f"F.tanh({x.name})"
        dim = self.random.randrange(-max(1, len(x.shape)), max(1, len(x.shape)))
        bounded = x.name if x.size < 4 else small
        text, size = self.random.choice(
            [
                (f"F.relu({name})", x.size),
                (f"F.sigmoid({name})", 1.0),
                (f"F.tanh({name})", 1.0),
                (f"F.softmax({name}, {dim})", 1.0),
                (f"F.log_softmax({name}, {dim})", x.size * 2),
                (f"F.dropout({name}, {self.random.choice([0, 1, 0.0, 1.0])})", x.size),
                (f"F.dropout({name}, 0.3, training=False)", x.size),
                (f"{name}.flatten()" if x.array else f"-{name}", x.size),
                (f"F.softmax({name}, {dim}, dtype={self.random.choice(_FLOATS)})", 1.0),
                (f"F.relu(F.tanh({name}) + 0.5)", 1.5),
                (f"F.flatten({name})", x.size),
                (f"nn.Softmax({dim})({name})", 1.0),
            ]
            + (
                []
                if x.array
                else [
                    (f"{bounded}.exp()", 20.0),
                    (f"({name} * {name} + 1).log()", 3.0),
                    (f"{bounded} ** {self.random.choice([0, 1, 2, 3, 2.0, 'scalar(' + repr('int64') + ', 2)'])}", 16.0),
                    (f"({bounded} * {bounded} + 0.5) ** {self.random.choice([0.5, -1, -1.5])}", 4.0),
                ]
            )
        )
        dtype = x.dtype
        shape = x.shape
        if "flatten" in text:
            shape = (math.prod(shape),)
        if "dtype=" in text:
            dtype = text.split("dtype=")[1][:-1]
        view = "flatten" in text or "dropout" in text
        self.define(text, shape, dtype, x, size=size, view=view)

    def number(self) -> str:
        r = self.random
        if self.chance(0.5):
            return repr(r.choice([2, 0.5, -1, 1.5, 3, True]))
        dtype = r.choice(["float32", "float64", "int64", "int32", "bool", "uint8"])
        value = {"f": r.choice([0.5, -1.25, 2.0]), "b": True}.get(dtype[0], 2)
        return f"scalar({dtype!r}, {value})"

    def binary(self) -> None:
        r = self.random
        x = self.pick(lambda v: not v.array and v.dtype != "bool") or self.float_value()
        if x.array:
            return
        sign = r.choice(["+", "-", "*", "*", "/"])
        kind = r.random()
        other: _Value | None = None
        if kind < 0.3:
            text, dtype, size = self.number(), "", 2.0
            shape: tuple[int, ...] = x.shape
        else:
            shape = self.broadcastable(x.shape)
            other = self.pick(lambda v: _broadcast(v.shape, x.shape) is not None and v.dtype != "bool")
            if other is None or kind < 0.6:
                dtype = r.choice([*_INTEGERS, "bool", *_FLOATS]) if self.chance(0.3) else self.float_type()
                values = "mask" if dtype[0] != "f" and self.chance(0.6) else "normal"
                text, size = self.array(shape, dtype, "positive" if sign == "/" else values), 3.0
                if self.chance(0.5):
                    other = self.define(f"Tensor({text})", shape, dtype)
                    text = other.name
            else:
                text, dtype, size, shape = other.name, other.dtype, other.size, other.shape
            if sign == "/" and other is not None and text == other.name:
                text = f"({text} * {text} + 1)"
            shape = _broadcast(shape, x.shape) or ()
        if size * x.size > 200:
            sign = r.choice("+-")
        pair = f"{x.name} {sign} {text}" if self.chance(0.7) or sign == "/" else f"{text} {sign} {x.name}"
        if sign in "+-" and other is not None and self.chance(0.2):
            pair = f"{x.name}.{'add' if sign == '+' else 'sub'}({text}, alpha={self.number()})"
        elif self.chance(0.1):
            pair = f"{x.name}.{dict(zip('+-*/', ('add', 'sub', 'mul', 'div'), strict=True))[sign]}({text})"
        result = _promoted(x, dtype, shape, text, sign)
        self.define(
            pair, shape, result, x, *([other] if other else []), size=x.size * size if sign in "*" else x.size + size
        )

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        sizes = [1 if self.chance(0.25) else size for size in shape]
        if self.chance(0.2):
            sizes = sizes[self.random.randint(0, len(sizes)) :]
        elif len(sizes) < 4 and self.chance(0.1):
            sizes = [self.random.randint(1, 3), *sizes]
        return tuple(sizes)

    def mask(self) -> None:
        x = self.pick(lambda v: not v.array)
        if x is None:
            return
        sign = self.random.choice(["<", "<=", ">", ">=", "==", "!="])
        other = self.pick(lambda v: _broadcast(v.shape, x.shape) is not None)
        if other is None or self.chance(0.5):
            text, shape = self.random.choice([("0", x.shape), ("0.5", x.shape), (self.number(), x.shape)])
            if "int" in x.dtype and "scalar" in text:
                text = "0"
        else:
            text, shape = other.name, _broadcast(other.shape, x.shape) or ()
        value = self.define(f"{x.name} {sign} {text}", shape, "bool", x, grad=False)
        value.leaf, value.array = True, False

    def rearrange(self) -> None:
        r = self.random
        x = self.pick(lambda v: not v.array)
        if x is None:
            return
        ndim, shape = len(x.shape), x.shape
        kind = r.randrange(6)
        if kind == 0:
            order = list(range(ndim))
            r.shuffle(order)
            signed = [dim - ndim if self.chance(0.2) else dim for dim in order]
            self.define(
                f"{x.name}.permute({signed})" if ndim else f"{x.name}.permute(())",
                [shape[d] for d in order],
                x.dtype,
                x,
                view=True,
            )
        elif kind == 1:
            new = list(shape)
            r.shuffle(new)
            if self.chance(0.4):
                new = [math.prod(shape)]
            elif self.chance(0.3):
                new = [*new, 1]
            text = list(new)
            if new and 0 not in shape and self.chance(0.3):
                text[r.randrange(len(new))] = -1
            self.define(f"{x.name}.reshape({', '.join(map(str, text)) if text else '()'})", new, x.dtype, x, view=True)
        elif kind == 2 and ndim:
            start = r.randrange(ndim)
            end = r.randrange(start, ndim)
            merged = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
            self.define(
                f"{x.name}.flatten({start}, {end - ndim if self.chance(0.5) else end})", merged, x.dtype, x, view=True
            )
        elif kind == 3 and ndim == 2:
            self.define(f"{x.name}.T", shape[::-1], x.dtype, x, view=True)
        else:
            self.index(x)

    def index(self, x: _Value) -> None:
        r = self.random
        parts, sizes, arrays = [], [], 0
        for size in x.shape:
            kind = r.random()
            if kind < 0.25 and size and not arrays:  # beside arrays, dimensions end up where NumPy has them
                parts.append(str(r.randrange(-size, size)))
            elif kind < 0.4 and size:
                begin, step = r.randrange(size), r.choice([1, 1, 2])
                parts.append(f"{begin}::{step}" if step > 1 else f"{begin}:")
                sizes.append(len(range(begin, size, step)))
            elif kind < 0.5 and size and not arrays and len(sizes) == len(parts):
                arrays, count = 1, r.randint(0, 4)
                text = self.array((count,), r.choice(["int64", "int64", "int32"]), size)
                parts.append(r.choice([text, text, f"Tensor({text})"]))
                sizes.append(count)
            elif kind < 0.55:
                parts += ["None", ":"]
                sizes += [1, size]
            else:
                parts.append(":")
                sizes.append(size)
        if not parts:
            parts = ["..."]
        elif self.chance(0.2) and parts[-1] == ":":
            parts[-1] = "..."
        self.define(f"{x.name}[{', '.join(parts)}]", sizes, x.dtype, x, view=True)

    def reduce(self) -> None:
        x = self.pick(lambda v: not v.array and (v.dtype[0] == "f" or self.chance(0.5)))
        if x is None:
            return
        r, ndim = self.random, len(x.shape)
        name = r.choice(["sum", "mean"]) if x.dtype[0] == "f" else "sum"
        kind = r.randrange(4) if ndim else 0
        dims: list[int] = list(range(ndim))
        if kind == 0:
            text, keep = "", False
        else:
            dims = [r.randrange(ndim)] if kind < 3 else sorted(r.sample(range(ndim), r.randint(1, ndim)))
            keep = self.chance(0.4)
            signed = [d - ndim if self.chance(0.3) else d for d in dims]
            text = f"{signed[0] if kind < 3 else tuple(signed)}" + (", keepdim=True" if keep else "")
        shape = [1 if d in dims else s for d, s in enumerate(x.shape) if keep or d not in dims]
        dtype = x.dtype if x.dtype[0] == "f" else "int64"
        count = math.prod(x.shape) / max(1, math.prod(shape)) if name == "sum" else 1
        self.define(f"{x.name}.{name}({text})", shape, dtype, x, size=x.size * count**0.5)

    def call_by_name(self) -> None:
        """An operation of :mod:`calls`; its input is bounded, as some of them grow fast."""
        x = self.float_value(1)
        if 0 in x.shape or not x.shape:
            return
        kinds = [calls.SAME_SHAPE] if x.array else [calls.SAME_SHAPE, calls.METHODS, calls.NUMBERS]
        kind = self.random.choice(kinds)
        text = self.random.choice(kind)
        target = f"F.sigmoid({self.array(x.shape, x.dtype)})"
        source = x.name if x.size < 3 else f"F.tanh({x.name})"
        text = text.format(x=source, y=target, d=self.random.randrange(-len(x.shape), len(x.shape)))
        self.define(text, () if kind is calls.NUMBERS else x.shape, x.dtype, x, size=8.0, view="Identity" in text)

    def product(self) -> None:
        r = self.random
        x = self.float_value(1, 4)
        if x.size > 60:
            return
        features = x.shape[-1]
        outputs = r.choice([1, 2, 3, 5, 8, 17])
        grown = x.size * 3 * max(1, features) ** 0.5
        if not x.array and self.chance(0.35):
            shape = (features, outputs)
            if self.chance(0.2):
                shape = (features,)
            elif len(x.shape) > 2 and self.chance(0.4):
                shape = (*(1 if self.chance(0.3) else s for s in x.shape[:-2]), features, outputs)
            text, other = self.operand(shape, x.dtype)
            result = x.shape[:-1] if len(shape) == 1 else (*x.shape[:-1], outputs)
            self.define(
                f"{x.name} @ {text}" if self.chance(0.7) else f"{x.name}.matmul({text})",
                result,
                x.dtype,
                x,
                *([other] if other else []),
                size=grown,
            )
            return
        if features == 0:
            return
        weight, w = self.operand((outputs, features), x.dtype)
        bias, b = self.operand((outputs,), x.dtype) if self.chance(0.6) else ("None", None)
        sources = [x, *(s for s in (w, b) if s)]
        result = (*x.shape[:-1], outputs)
        if self.chance(0.3):
            last = r.choice([1, 4])
            second, w2 = self.operand((last, outputs), x.dtype)
            sources += [w2] if w2 else []
            flags = (self.chance(0.5), self.chance(0.5))
            self.define(
                f"F.linear_chain({x.name}, [{weight}, {second}], [{bias}, None], {flags})",
                (*x.shape[:-1], last),
                x.dtype,
                *sources,
                size=grown * 4,
            )
        else:
            name = r.choice(["linear", "linear", "linear_relu"])
            self.define(f"F.{name}({x.name}, {weight}, {bias})", result, x.dtype, *sources, size=grown)

    def images(self, channels: int, height: int, width: int, one_row: bool = False) -> _Value:
        """(N, C, H, W), mostly; without a batch sometimes."""
        inner = (channels, width) if one_row else (channels, height, width)
        ndim = len(inner)
        found = self.pick(lambda v: v.dtype[0] == "f" and v.shape[-ndim:] == inner and len(v.shape) in (ndim, ndim + 1))
        if found is not None:
            return found
        lead = self.random.choice([(), (0,), (1,), (2,), (2,), (3,)])
        x = self.pick(
            lambda v: (
                v.dtype[0] == "f" and not v.array and v.size < 20 and math.prod(v.shape) == math.prod((*lead, *inner))
            )
        )
        if x is not None and self.chance(0.5):
            return self.define(f"{x.name}.reshape({(*lead, *inner)})", (*lead, *inner), x.dtype, x, view=True)
        return self.leaf((*lead, *inner))

    def convolve(self) -> None:
        r = self.random
        conv = r.choice(self.table) if self.eager else _conv(r)
        assert conv.output is not None
        one_row = not self.eager and self.chance(0.2)
        x = self.images(conv.channels, conv.height, conv.width, one_row)
        lead, kernel = x.shape[: -2 if one_row else -3], (_of(conv.kernel, 0), _of(conv.kernel, 1))
        weight_shape = (conv.filters, conv.channels // conv.groups, *kernel)
        weight, w = self.operand(weight_shape[:2] + kernel[1:] if one_row else weight_shape, x.dtype)
        bias, b = self.operand((conv.filters,), x.dtype) if self.chance(0.6) else ("None", None)
        sources = [x, *(s for s in (w, b) if s)]
        size = x.size * 3 * math.prod(weight_shape[1:]) ** 0.5
        options = [conv.stride, conv.padding, conv.dilation]
        if one_row:
            options = [option if isinstance(option, str) else _of(option, 1) for option in options]
            if isinstance(options[1], tuple):
                options[1] = (options[1],)
            text = ", ".join(map(repr, [*options, conv.groups]))
            if not isinstance(options[1], tuple) and self.chance(0.3):
                layer = self.new("m")
                self.add(f"{layer} = nn.Conv1d({conv.channels}, {conv.filters}, {kernel[1]}, {text}, dtype={x.dtype})")
                self.seeds += 10
                self.add(f"fill({layer}, {self.seeds}, {self.layouts()})")
                shape = (*lead, conv.filters, conv.output[1])
                self.define(f"{layer}({x.name})", shape, x.dtype, x, grad=True, leaf=False, array=False, size=size)
                return
            self.define(
                f"F.conv1d({x.name}, {weight}, {bias}, {text})",
                (*lead, conv.filters, conv.output[1]),
                x.dtype,
                *sources,
                size=size,
            )
            return
        text = ", ".join(map(repr, [*options, conv.groups]))
        name = r.choice(["conv2d", "conv2d", "conv2d_relu", "conv2d_relu_max_pool2d"])
        shape = (*lead, conv.filters, *conv.output)
        if name == "conv2d_relu_max_pool2d":
            text += f", kernel_size={conv.window!r}"
            pooled = [shape[axis - 2] // _of(conv.window, axis) for axis in (0, 1)]
            if not self.eager and self.chance(0.3):
                stride = r.randint(1, 3)
                text += f", pool_stride={stride}"
                pooled = [(shape[axis - 2] - _of(conv.window, axis)) // stride + 1 for axis in (0, 1)]
            if min(pooled) < 1:
                name, text = "conv2d", text.partition(", kernel_size")[0]
            else:
                shape = (*shape[:-2], *pooled)
        self.define(f"F.{name}({x.name}, {weight}, {bias}, {text})", shape, x.dtype, *sources, size=size)

    def pool(self) -> None:
        r = self.random
        known = {(conv.height, conv.width) for conv in self.table}
        x = self.pick(
            lambda v: (
                v.dtype[0] == "f"
                and len(v.shape) in (3, 4)
                and 0 not in v.shape[-3:]
                and (not self.eager or v.shape[-2:] in known)
            )
        )
        if x is None:
            conv = r.choice(self.table) if self.eager else _conv(r)
            x = self.images(conv.channels, conv.height, conv.width)
        name = r.choice(
            [
                "max_pool2d",
                "max_pool2d",
                "avg_pool2d",
                "sum_pool2d",
                "adaptive_avg_pool2d",
                "max_pool1d",
                "avg_pool1d",
                "adaptive_avg_pool1d",
            ]
        )
        if "1d" in name and len(x.shape) == 4:
            name = name.replace("1d", "2d")
        if "adaptive" in name:
            size = r.randint(1, 5)
            self.define(
                f"F.{name}({x.name}, {size})",
                (*x.shape[:-1], size) if "1d" in name else (*x.shape[:-2], size, size),
                x.dtype,
                x,
            )
            return
        axes = 1 if "1d" in name else 2
        if self.eager:  # few for each size, as each is compiled
            r = random.Random(hash((x.shape[-2:], r.randint(0, 1))))
        window = tuple(r.choice([1, 2, 2, 3]) for _ in range(axes))
        stride = tuple(r.choice([1, 2, 3]) for _ in range(axes)) if r.random() < 0.5 else window
        padding = tuple(r.randint(0, size // 2) if r.random() < 0.4 else 0 for size in window)
        ceil = r.random() < 0.3
        dilation = r.choice([1, 1, 2]) if name.startswith("max") else 1
        shape = [*x.shape[:-axes]]
        for axis in range(axes):
            span = x.shape[axis - axes] + 2 * padding[axis] - dilation * (window[axis] - 1) - 1
            steps = -(-span // stride[axis]) if ceil else span // stride[axis]
            if ceil and steps * stride[axis] >= x.shape[axis - axes] + padding[axis]:
                steps -= 1
            if span < 0:
                return
            shape.append(steps + 1)
        text = f"F.{name}({x.name}, {window}, {stride}, {padding}"
        if name.startswith("max"):
            text += f", {dilation}, {ceil}"
            if self.chance(0.25):
                value = _Value(self.new("x"), tuple(shape), x.dtype, x.grad, False, x.array, -self.count, x.size)
                where = _Value(self.new("x"), tuple(shape), "int64", False, True, x.array, -self.count, 1.0)
                self.add(f"{value.name}, {where.name} = {text}, True)")
                self.values += [where, value]
                return
        else:
            text += f", {ceil}"
            if name.startswith("avg"):
                text += f", {self.chance(0.6)}"
                if name == "avg_pool2d" and self.chance(0.2):
                    text += f", {r.choice([1, 3, -2])}"
        self.define(f"{text})", shape, x.dtype, x, size=x.size * math.prod(window))

    def loss(self) -> None:
        r = self.random
        x = self.float_value(1, 4)
        reduction = r.choice(["mean", "sum", "none", "mean"])
        if self.chance(0.4):
            dtype = x.dtype if self.chance(1 - self.odd / 4) else r.choice([*_FLOATS, "int64"])
            found = self.pick(lambda v: v.shape == x.shape and v.dtype == dtype and v is not x)
            target = found.name if found and self.chance(0.5) else self.array(x.shape, dtype)
            name = r.choice(["F.mse_loss", "F.mse_loss", "F.half_squared_error", "nn.MSELoss"])
            text = (
                f"nn.MSELoss({reduction!r})({x.name}, {target})"
                if name == "nn.MSELoss"
                else (f"{name}({x.name}, {target}, {reduction!r})")
            )
            if name == "nn.MSELoss":
                text = text.replace("MSELoss(", "MSELoss(reduction=", 1)
            self.define(
                text,
                x.shape if reduction == "none" else (),
                x.dtype,
                x,
                *([found] if found and found.name == target else []),
                size=x.size**2,
            )
            return
        axis = 0 if len(x.shape) == 1 else 1
        classes, rest = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
        if classes == 0:
            return
        smoothing = r.choice([0.0, 0.0, 0.1, 1.0])
        weight = self.array((classes,), x.dtype, "positive") if self.chance(0.4) else "None"
        ignore = -100
        if self.chance(0.25):
            target = self.array(x.shape, x.dtype, "probabilities")
        else:
            target = self.array(rest, r.choice(["int64", "int64", "int64", "int32", "uint8"]), classes)
            ignore = r.choice([-100, -100, 0, 1])
        if self.chance(0.5):
            target = f"Tensor({target})"
        text = f"F.cross_entropy({x.name}, {target}, {weight}, {ignore}, {reduction!r}, {smoothing})"
        if self.chance(0.2):
            text = (
                f"nn.CrossEntropyLoss(weight={weight}, ignore_index={ignore}, reduction={reduction!r}, "
                f"label_smoothing={smoothing})({x.name}, {target})"
            )
        self.define(text, rest if reduction == "none" else (), x.dtype, x, size=x.size * 3)

    # -- modules -------------------------------------------------------------------------------------------------------

    def module(self) -> None:
        r = self.random
        dtype = self.float_type()
        layers: list[str] = []
        typed = f", dtype={dtype}" if dtype == "float64" or self.chance(0.1) else ""
        shape: tuple[int, ...]
        takes: tuple[int, ...]
        conv = r.choice(self.table) if self.eager else _conv(r)
        by_side = isinstance(conv.padding, tuple) and isinstance(conv.padding[0], tuple)  # which PyTorch does not have
        if self.chance(0.6) and not by_side:
            assert conv.output is not None
            takes = (conv.channels, conv.height, conv.width)
            layers.append(
                f"nn.Conv2d({conv.channels}, {conv.filters}, {conv.kernel!r}, {conv.stride!r}, {conv.padding!r}, "
                f"{conv.dilation!r}, {conv.groups}, bias={self.chance(0.7)}{typed})"
            )
            shape = (conv.filters, *conv.output)
            if self.chance(0.7):
                layers.append(r.choice(["nn.ReLU()", "nn.ReLU()", "nn.Tanh()", "nn.Sigmoid()"]))
            windows = (_of(conv.window, 0), _of(conv.window, 1))
            if self.chance(0.6) and shape[1] >= windows[0] and shape[2] >= windows[1]:
                layers.append(f"nn.{r.choice(['MaxPool2d', 'MaxPool2d', 'AvgPool2d', 'SumPool2d'])}({windows})")
                shape = (shape[0], shape[1] // windows[0], shape[2] // windows[1])
            elif self.chance(0.2):
                layers.append("nn.AdaptiveAvgPool2d(1)")
                shape = (shape[0], 1, 1)
            if self.chance(0.7):
                layers.append("nn.Flatten()")
                shape = (math.prod(shape),)
        else:
            shape = takes = (r.choice([1, 2, 3, 5, 7]),)
        while len(shape) == 1 and len(layers) < 8 and self.chance(0.75):
            outputs = r.choice([1, 2, 3, 5, 16])
            layers.append(f"nn.Linear({shape[0]}, {outputs}, bias={self.chance(0.8)}{typed})")
            shape = (outputs,)
            if self.chance(0.6):
                layers.append(r.choice(["nn.ReLU()", "nn.ReLU()", "nn.Tanh()", "nn.LogSoftmax(-1)", "nn.Dropout(0.0)"]))
        if not any("Linear" in layer or "Conv" in layer for layer in layers):
            layers.append(f"nn.Linear({shape[-1]}, 3{typed})")
            shape = (*shape[:-1], 3)
        name = self.new("m")
        text = ", ".join(layers)
        self.add(f"{name} = {text if len(layers) == 1 and self.chance(0.5) else f'nn.Sequential({text})'}")
        how = r.choice(["state", "state", "data", "torch", "weights"])
        self.seeds += 10
        self.add(f"fill({name}, {self.seeds}, {self.layouts()}, {how!r})")
        self.modules.append(_Module(name, takes, shape, dtype))

    def call(self) -> None:
        if not self.modules or self.chance(0.1):
            self.module()
        module = self.random.choice(self.modules)
        x = self.pick(lambda v: v.dtype == module.dtype and v.shape[1:] == module.takes)
        if x is None or self.chance(0.3):
            lead = (self.random.choice([1, 2, 3, 3, 0]),)
            if self.chance(0.15) and len(module.takes) == 1:
                lead = ()
            x = self.leaf((*lead, *module.takes), module.dtype, grad=self.chance(0.4))
        lead = x.shape[: len(x.shape) - len(module.takes)]
        shape = (*lead, *(module.gives or ()))
        if self.chance(0.15):
            value = self.define(
                f"predict({module.name}, {x.name}, {self.random.choice([1, 2, 100])})", shape, x.dtype, x, grad=False
            )
            value.array, value.leaf = True, True
            return
        if self.chance(0.15):
            name = self.new("x")
            self.add(f"with no_grad():\n    {name} = {module.name}({x.name})")
            self.families += 1
            self.values.append(_Value(name, shape, x.dtype, family=self.families, size=10.0))
            return
        self.define(f"{module.name}({x.name})", shape, x.dtype, x, grad=True, leaf=False, array=False, size=10.0)

    def share(self) -> None:
        """State from one module to another, weights in common, parameters frozen or exchanged."""
        if not self.modules:
            self.module()
        r = self.random
        module = r.choice(self.modules)
        name = module.name
        kind = r.randrange(8)
        if kind == 0:
            twin = self.new("m")
            self.add(f"{twin} = copy_of({name})")
            self.modules.append(_Module(twin, module.takes, module.gives, module.dtype))
        elif kind == 1:
            state = self.new("s")
            self.add(f"{state} = state_of({name})")
            twins = [
                m for m in self.modules if (m.takes, m.gives, m.dtype) == (module.takes, module.gives, module.dtype)
            ]
            if self.chance(0.7):
                self.update()
            self.add(f"{r.choice(twins).name}.load_state_dict({state})")
            self.forget_views()
        elif kind == 2:
            self.add(f"next(iter({name}.parameters())).requires_grad = {self.chance(0.4)}")
        elif kind == 3:
            self.add(f"{name}.{r.choice(['train', 'eval'])}()")
        elif kind == 4:
            self.seeds += 10
            self.add(f"fill({name}, {self.seeds}, {self.layouts()}, {r.choice(['state', 'torch', 'weights'])!r})")
            self.forget_views()
        elif kind == 5:
            self.add(f"{name}.zero_grad()")
        elif kind == 6 and len(module.takes) == 1:
            twin, typed = self.new("m"), f", dtype={module.dtype}"
            features = module.takes[0]
            self.add(
                f"{twin} = nn.Sequential(nn.Linear({features}, {features}{typed}), nn.Tanh(), "
                f"nn.Linear({features}, {features}{typed}))"
            )
            self.seeds += 10
            self.add(f"fill({twin}, {self.seeds})")
            self.add(f"{twin}[2].weight = {twin}[0].weight")
            self.modules.append(_Module(twin, module.takes, module.takes, module.dtype))
        else:
            self.add(f"[p.requires_grad for p in {name}.parameters()]")

    # -- gradients -----------------------------------------------------------------------------------------------------

    def backward(self) -> None:
        x = self.pick(lambda v: v.grad and not v.leaf and not v.array) or self.pick(lambda v: v.grad and not v.array)
        if x is None:
            return
        retain = self.chance(0.3)
        kept = "retain_graph=True" if retain else ""
        if x.shape == () and self.chance(0.7):
            self.add(f"{x.name}.backward({kept})")
        elif self.chance(0.5):
            self.add(f"{x.name}.sum().backward({kept})")
        else:
            dtype = x.dtype
            self.add(f"{x.name}.backward({self.array(x.shape, dtype)}{', ' + kept if kept else ''})")
        if not retain:
            # What depends on the freed graph is of little use; leaves go on.
            self.values = [v for v in self.values if v.leaf or self.chance(0.15)]

    def forget_views(self) -> None:
        """After memory was written: what might be a view of it, as layouts decide, is not looked at any more."""
        gone = [v for v in self.values if not v.leaf and v.grad]
        self.drop(gone)

    def drop(self, gone: list[_Value]) -> None:
        if gone:
            self.add(f"del {', '.join(v.name for v in gone)}")
            self.values = [v for v in self.values if v not in gone]

    def in_place(self) -> None:
        r = self.random
        x = self.pick(lambda v: not v.array and v.leaf and v.dtype != "bool")
        if x is None:
            return
        family = [v for v in self.values if v.family == x.family and v is not x]
        self.drop(family)
        kind = r.randrange(6)
        shape = tuple(1 if self.chance(0.2) else size for size in x.shape)
        sign = r.choice(["+=", "-=", "*=", "/="])
        if kind == 0:
            text = f"{x.name} {sign} {self.number()}"
        elif kind == 1:
            text = f"{x.name} {r.choice(['+=', '-=', '*='])} {self.array(shape, self.float_type())}"
        elif kind == 2 and x.grad:
            text = f"{x.name} -= 0.1 * {x.name}.grad"
        elif kind == 3:
            text = f"overwrite({x.name}, {self.array(x.shape, r.choice([x.dtype, *_FLOATS]))})"
            if x.dtype[0] != "f":
                text = f"overwrite({x.name}, {self.array(x.shape, x.dtype)})"
        elif kind == 4 and x.grad:
            text = f"{x.name}.grad *= 0.5"
        else:
            text = f"{x.name} {sign} 2"
        if x.grad and not self.chance(0.1):
            text = f"with no_grad():\n    {text}"
        self.add(text)
        if self.chance(0.7):
            self.forget_views()

    def gradient_by_hand(self) -> None:
        r = self.random
        x = self.pick(lambda v: v.grad and v.leaf and not v.array)
        if x is not None and self.chance(0.7):
            other = r.choice([x.dtype] * 8 + [*_FLOATS])
            self.add(
                r.choice(
                    [
                        f"{x.name}.grad = Tensor({self.array(x.shape, other)})",
                        f"{x.name}.grad = None",
                        f"{x.name}.grad = Tensor({self.array(x.shape[::-1], x.dtype)})",
                    ]
                )
            )
        elif self.modules:
            name = r.choice(self.modules).name
            self.add(f"[setattr(p, 'grad', None if p.grad is None else p.grad * 0.5) for p in {name}.parameters()]")

    def optimizer(self) -> None:
        r = self.random
        leaves = [v.name for v in self.values if v.grad and v.leaf and not v.array]
        names = r.sample(leaves, r.randint(0, min(3, len(leaves))))
        module = r.choice(self.modules).name if self.modules and self.chance(0.8) else None
        if not names and module is None:
            return
        params = (f"list({module}.parameters())" if module else "") + (" + " if module and names else "")
        params += f"[{', '.join(names)}]" if names else ""
        decay = r.choice(["", ", weight_decay=0.1"])
        lr = r.choice([0.1, 0.01, 0.5])
        text = r.choice(
            [
                f"optim.SGD({params}, lr={lr}{decay})",
                f"optim.SGD({params}, lr={lr}, momentum=0.9{decay})",
                f"optim.SGD({params}, lr={lr}, momentum=0.5, dampening=0.25{decay})",
                f"optim.SGD({params}, lr={lr}, momentum=0.9, nesterov=True{decay})",
                # Divided by the usual eps, what rounding leaves of a gradient of zero is as good as any other.
                f"optim.Adam({params}, lr={lr}, eps=1e-2{decay})",
                f"optim.Adam({params}, lr={lr}, betas=(0.5, 0.9), eps=1e-3{decay})",
                f"optim.AdamW({params}, lr={lr}, eps=1e-2{decay})",
            ]
        )
        name = self.new("o")
        self.add(f"{name} = {text}")
        self.optimizers.append((name, names))

    def update(self) -> None:
        if not self.optimizers:
            self.optimizer()
        if not self.optimizers:
            return
        name, names = self.random.choice(self.optimizers)
        kind = self.random.random()
        if kind < 0.12:
            state = self.new("s")
            self.add(f"{state} = state_of({name})")
            self.step(name, names)
            self.add(f"{name}.load_state_dict({state})")
        elif kind < 0.2:
            self.add(f"set_lr({name}, {self.random.choice([0.0, 0.05, 0.2])})")
        elif kind < 0.3:
            self.add(f"{name}.zero_grad()")
        else:
            self.step(name, names)

    def step(self, name: str, names: list[str]) -> None:
        families = {v.family for v in self.values if v.name in names}
        self.drop([v for v in self.values if v.family in families and v.name not in names])
        self.add(f"{name}.step()")
        if self.chance(0.8):
            self.forget_views()
        if self.chance(0.5):
            self.add(f"{name}.zero_grad()")

    def train(self) -> None:
        """Steps as everybody takes them: forward, loss, backward, update."""
        if not self.modules:
            self.module()
        module = self.random.choice(self.modules)
        name = self.new("o")
        self.add(
            f"{name} = optim."
            + self.random.choice(
                ["SGD({}, lr=0.05, momentum=0.9)", "Adam({}, lr=0.01, eps=1e-3)", "AdamW({}, lr=0.01, eps=1e-3)"]
            ).format(f"{module.name}.parameters()")
        )
        self.optimizers.append((name, []))
        for _ in range(self.random.randint(1, 3)):
            x = self.leaf((self.random.choice([1, 2, 3]), *module.takes), module.dtype, grad=False)
            y = self.define(
                f"{module.name}({x.name})", (x.shape[0], *(module.gives or ())), x.dtype, x, grad=True, size=10.0
            )
            if self.chance(0.5):
                target = self.array(y.shape[:1] + y.shape[2:], "int64", y.shape[1])
                loss = self.define(f"F.cross_entropy({y.name}, {target})", (), x.dtype, y)
            else:
                loss = self.define(f"F.mse_loss({y.name}, {self.array(y.shape, x.dtype)})", (), x.dtype, y)
            self.add(f"{name}.zero_grad()")
            self.add(f"{loss.name}.backward()")
            self.values = [v for v in self.values if v.leaf]
            self.step(name, [])

    def convert(self) -> None:
        x = self.pick(lambda v: not v.array)
        if x is None:
            return
        one = math.prod(x.shape) == 1
        kinds = [f"{x.name}.detach()", f"copy.deepcopy({x.name})", f"{x.name}.requires_grad", f"{x.name}.is_leaf"]
        kinds += (
            [f"f'{{{x.name} * 0 + 1:.3f}}'", f"float({x.name})", f"{x.name}.item()", f"int({x.name} * 0.5)"]
            if one
            else [f"len({x.name})"]
        )
        if x.shape and x.shape[0] == 2:
            first = self.new("x"), self.new("x")
            self.add(f"{first[0]}, {first[1]} = {x.name}")
            self.values += [
                _Value(name, x.shape[1:], x.dtype, x.grad, not x.grad, False, x.family, x.size) for name in first
            ]
            return
        text = self.random.choice(kinds)
        if text.endswith("detach()"):
            self.define(text, x.shape, x.dtype, x, grad=False, leaf=True, view=True)
        elif "deepcopy" in text and x.leaf:
            self.define(text, x.shape, x.dtype, x, grad=x.grad, leaf=True)
        elif "deepcopy" not in text:
            name = self.new("x")
            self.add(f"{name} = {text}")

    def without_graph(self) -> None:
        x = self.float_value()
        if x.array:
            return
        name = self.new("x")
        self.add(f"with no_grad():\n    {name} = F.relu({x.name} * 2) - 1")
        self.families += 1
        self.values.append(_Value(name, x.shape, x.dtype, family=self.families, size=2 * x.size))

    def __call__(self) -> list[str]:
        actions = {
            self.unary: 6, self.call_by_name: 6, self.binary: 8, self.mask: 2, self.rearrange: 6, self.reduce: 4,
            self.product: 4,
            self.convolve: 5, self.pool: 4, self.loss: 4, self.module: 1, self.call: 4, self.share: 2,
            self.backward: 5, self.in_place: 2, self.gradient_by_hand: 1, self.optimizer: 1, self.update: 3,
            self.train: 1, self.convert: 1, self.without_graph: 1,
        }  # fmt: skip
        self.leaf(self.shape(1))
        length = self.random.randint(4, 22)
        while len(self.statements) < length:
            self.random.choices([*actions], [*actions.values()])[0]()
        if self.chance(0.8):
            self.backward()
        return self.statements


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    sizes = []
    for one, other in zip(((1,) * len(b) + a)[::-1], ((1,) * len(a) + b)[::-1], strict=True):
        if one != other and 1 not in (one, other):
            return None
        sizes.append(other if one == 1 else one)
    return tuple(sizes[: max(len(a), len(b))][::-1])


def _promoted(x: _Value, dtype: str, shape: tuple[int, ...], text: str, sign: str) -> str:
    """The element type of a result: what the generator goes on with, not what is checked."""
    other = dtype or ("float32" if "." in text or "float" in text else "int64" if "True" not in text else "bool")
    ranks = {"b": 0, "u": 1, "i": 1, "f": 2}
    if ranks[other[0]] > ranks[x.dtype[0]]:
        result = other
    elif ranks[other[0]] < ranks[x.dtype[0]] or not dtype:
        result = x.dtype
    else:
        result = max(x.dtype, other, key=lambda name: int(re.sub(r"\D", "", name) or 0))
    return "float32" if sign == "/" and result[0] != "f" else result


def generate(seed: int, convolutions: int = 24) -> Program:
    """The program of a seed. ``convolutions``: how many shapes eager ones choose from; without any, none is eager."""
    generator = _Generator(seed, convolutions)
    return Program(seed, generator(), generator.eager)


def script(program: Program, why: str) -> str:
    """A program as a script that runs on a backend or PyTorch."""
    lines = [
        f'"""{why}',
        "",
        "From the repository's root: python THIS_FILE numba (or numpy, or torch).",
        '"""',
        "",
        "import sys",
        "",
        'sys.path.insert(0, ".")',
        "from tests.fuzz import dialect, running",
        "",
        'library = sys.argv[1] if len(sys.argv) > 1 else "numba"',
        "globals().update(dialect.names(library))",
        *(["running.compile_everything(True)"] if program.eager else []),
        "with dialect.running(library):",
    ]
    for statement in program.statements:
        lines += ["    " + line for line in statement.splitlines()]
        lines += [f"    print({name!r}, {name})" for name in targets(statement)]
        if has_effect(statement) and not statement.startswith("del"):
            lines += [f"    print({name!r}, {name}, getattr({name}, 'grad', None))" for name in sorted(uses(statement))]
    return "\n".join(lines) + "\n"
