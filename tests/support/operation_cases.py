"""Calls of operations that `test_operations.py` compares with PyTorch: one line a call, the same for both libraries.

A call takes a library, ``gpuconv`` or ``torch``, and Tensors of it. ``L.nn.functional`` is both libraries' name.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuconv
import gpuconv.functional as F

Array = np.ndarray[Any, Any]
INF, NAN = np.inf, np.nan


@dataclass(frozen=True)
class In:
    """How one input is drawn.

    Attributes:
        shape: its shape.
        kind: 'real', 'positive', 'unit' (between 0 and 1), 'whole' (small whole numbers as floats: ties), 'int',
            'bool'; or the values themselves, an array with its type.
        high: of 'int', from 0 to below it.
        grad: whether floats require grad.
    """

    shape: tuple[int, ...]
    kind: Any = "real"
    high: int = 5
    grad: bool = True

    def draw(self, rng: np.random.Generator, dtype: Any) -> Array:
        if isinstance(self.kind, np.ndarray):
            return self.kind.copy()
        if not isinstance(self.kind, str):
            return np.asarray(self.kind, dtype)
        if self.kind == "int":
            return np.asarray(rng.integers(0, self.high, self.shape), np.int64)
        if self.kind == "bool":
            return np.asarray(rng.random(self.shape) < 0.5)
        values = {
            "real": lambda: rng.standard_normal(self.shape) * 1.5,
            "positive": lambda: rng.uniform(0.2, 3.0, self.shape),
            "unit": lambda: rng.uniform(0.05, 0.95, self.shape),
            "whole": lambda: rng.integers(-2, 3, self.shape),
        }[self.kind]()
        return np.asarray(values, dtype)


@dataclass(frozen=True)
class Case:
    """A call and the inputs on which it is made.

    Attributes:
        name: names the test.
        call: takes a library and Tensors.
        samples: several lists of inputs; the first one is small, smooth and not empty.
        arrays: whether it takes arrays, too (methods of Tensors do not).
        smooth: whether finite differences of the first sample make sense.
        tolerance: what PyTorch itself is off by, where it is more than the tests allow.
    """

    name: str
    call: Callable[..., Any]
    samples: tuple[tuple[In, ...], ...]
    arrays: bool = True
    smooth: bool = True
    tolerance: float = 0.0

    def draw(self, sample: Sequence[In], dtype: Any) -> list[Array]:
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return [one.draw(rng, dtype) for one in sample]

    def step(self) -> tuple[Callable[..., list[gpuconv.Tensor]], list[Array], list[Array], list[bool]]:
        """A step to capture, forward and backward on the first sample; that, other values, and which require grad."""
        sample = self.samples[0]
        first = self.draw(sample, np.float32)
        second = [np.ascontiguousarray(array[::-1]) if array.ndim else array for array in first]
        wanted = [one.grad and array.dtype.kind == "f" for one, array in zip(sample, first, strict=True)]

        def step(*inputs: gpuconv.Tensor) -> list[gpuconv.Tensor]:
            results = self.call(gpuconv, *inputs)
            results = list(results) if isinstance(results, (tuple, list)) else [results]
            for leaf in inputs:
                leaf.grad = None
            for result in results:
                if result.requires_grad:
                    (result * result).sum().backward(retain_graph=True)
            return [*results, *(leaf.grad for leaf in inputs if leaf.grad is not None)]

        return step, first, second, wanted

    @property
    def operation(self) -> str:
        """The name of what is called: the first word of the case's name."""
        return re.split(r"[( ]", self.name.removeprefix("Tensor."))[0]

    def __str__(self) -> str:
        return self.name


SHAPES = ((2, 3), (2, 3, 4), (), (0, 3), (1,))
#: Where functions have kinks, and what is no number.
SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 25.0, -25.0, 90.0, -90.0, INF, -INF, NAN]


def on(*shapes: tuple[int, ...], kind: Any = "real", **options: Any) -> tuple[tuple[In, ...], ...]:
    """Samples of one input."""
    return tuple((In(shape, kind, **options),) for shape in shapes)


def pointwise(name: str, call: Callable[..., Any], kind: str = "real", special: Any = SPECIAL, **options: Any) -> Case:
    """An element-wise function of one input: all shapes, and special values."""
    samples = on(*SHAPES, kind=kind)
    if special is not None:
        samples += ((In((len(special),), tuple(special)),),)
    return Case(name, call, samples, **options)


def _activation(name: str, *arguments: Any, **options: Any) -> Case:
    shown = ", ".join([*map(str, arguments), *(f"{k}={v}" for k, v in options.items())])
    return pointwise(f"{name}({shown})", lambda L, x: getattr(L.nn.functional, name)(x, *arguments, **options))


ACTIVATIONS = [
    _activation("relu"),
    _activation("leaky_relu"),
    _activation("leaky_relu", 0.2),
    _activation("leaky_relu", negative_slope=-0.5),
    _activation("elu"),
    _activation("elu", alpha=0.3),
    _activation("celu"),
    _activation("celu", 2.0),
    _activation("selu"),
    # In float32 PyTorch's vector loop makes NaN of infinity; its scalar loop does not.
    *[
        pointwise(f"gelu({how})", lambda L, x, how=how: L.nn.functional.gelu(x, approximate=how), special=SPECIAL[:13])
        for how in ("none", "tanh")
    ],
    _activation("silu"),
    _activation("mish"),
    _activation("relu6"),
    _activation("hardtanh"),
    _activation("hardtanh", -3, 0.5),
    _activation("hardtanh", min_val=1.0, max_val=1.0),
    # PyTorch's slope is a sixth in float32, whatever the type.
    pointwise("hardsigmoid", lambda L, x: L.nn.functional.hardsigmoid(x), tolerance=2e-8),
    _activation("hardswish"),
    _activation("hardshrink"),
    _activation("hardshrink", 1.0),
    _activation("softshrink"),
    _activation("softshrink", lambd=1.0),
    _activation("tanhshrink"),
    _activation("softplus"),
    _activation("softplus", beta=2.0, threshold=1.0),
    _activation("softplus", beta=-1.0),
    _activation("softsign"),
    _activation("logsigmoid"),
    _activation("threshold", 0.5, -7.0),
    *[
        Case(
            f"{name}(dim={dim})",
            lambda L, x, name=name, dim=dim: getattr(L.nn.functional, name)(x, dim=dim),
            on((2, 4), (2, 4, 6), (4,), (0, 4)),
        )
        for name in ("softmin", "glu")
        for dim in (-1, 0)
    ],
    Case("softmin(a number)", lambda L, x: L.nn.functional.softmin(x, 0), on(())),
    *[
        Case(
            f"{name}(dtype)",
            lambda L, x, name=name: getattr(L.nn.functional, name)(x, 0, dtype=L.float64),
            (*on((2, 3)), *on((2, 3), kind="int")),
        )
        for name in ("softmin", "softmax", "log_softmax")
    ],
    Case(
        "prelu",
        lambda L, x, w: L.nn.functional.prelu(x, w),
        (
            (In((2, 3)), In((3,))),
            (In((2, 3, 4, 2)), In((3,))),
            (In((2, 3, 4)), In((1,))),
            (In((5,)), In((1,))),
            (In(()), In((1,))),
            (In((0, 3, 2)), In((3,))),
            (In((2, 1, 4)), In((1,))),
            (In((16,), tuple(SPECIAL)), In((1,))),
        ),
    ),
    *[
        pointwise(f"Tensor.{name}", lambda L, x, name=name: getattr(x, name)(), arrays=False)
        for name in ("relu", "sigmoid", "tanh")
    ],
    *[
        Case(f"Tensor.{name}", lambda L, x, name=name: getattr(x, name)(1), on((2, 3), (2, 3, 4)), arrays=False)
        for name in ("softmax", "log_softmax")
    ],
]

#: Modules: how each is made, with PyTorch's defaults and with options; and a shape that it takes.
MODULES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("LeakyReLU", (), {}, (2, 3)),
    ("LeakyReLU", (0.2, True), {}, (2, 3)),
    ("PReLU", (), {}, (2, 3)),
    ("PReLU", (3, 0.1), {}, (2, 3, 4)),
    ("ELU", (0.5,), {"inplace": True}, (2, 3)),
    ("CELU", (0.5,), {}, (2, 3)),
    ("SELU", (), {}, (2, 3)),
    ("GELU", (), {}, (2, 3)),
    ("GELU", ("tanh",), {}, (2, 3)),
    ("SiLU", (), {"inplace": True}, (2, 3)),
    ("Mish", (), {}, (2, 3)),
    ("ReLU6", (True,), {}, (2, 3)),
    ("ReLU", (True,), {}, (2, 3)),
    ("Hardtanh", (-0.5, 0.7), {}, (2, 3)),
    ("Hardsigmoid", (), {}, (2, 3)),
    ("Hardswish", (), {}, (2, 3)),
    ("Hardshrink", (), {}, (2, 3)),
    ("Softshrink", (0.3,), {}, (2, 3)),
    ("Tanhshrink", (), {}, (2, 3)),
    ("Threshold", (0.1, 20), {}, (2, 3)),
    ("Softplus", (2.0,), {}, (2, 3)),
    ("Softsign", (), {}, (2, 3)),
    ("LogSigmoid", (), {}, (2, 3)),
    ("Softmin", (1,), {}, (2, 3)),
    ("Softmax2d", (), {}, (2, 3, 2, 2)),
    ("GLU", (), {}, (2, 4)),
    ("BatchNorm1d", (3,), {}, (4, 3)),
    ("BatchNorm1d", (3, 1e-3, 0.3), {"affine": False}, (4, 3, 2)),
    ("BatchNorm2d", (3,), {"momentum": None}, (4, 3, 2, 2)),
    ("BatchNorm2d", (3,), {"track_running_stats": False}, (4, 3, 2, 2)),
    ("BatchNorm3d", (2,), {}, (2, 2, 2, 1, 3)),
    ("InstanceNorm1d", (3,), {}, (2, 3, 4)),
    ("InstanceNorm1d", (3,), {"affine": True, "track_running_stats": True}, (3, 4)),
    ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True}, (2, 3, 4, 2)),
    ("InstanceNorm3d", (3,), {"affine": True}, (2, 3, 2, 2, 2)),
    ("LayerNorm", (4,), {}, (3, 4)),
    ("LayerNorm", ((3, 4),), {"bias": False}, (2, 3, 4)),
    ("LayerNorm", (4,), {"elementwise_affine": False}, (3, 4)),
    ("RMSNorm", (4,), {}, (3, 4)),
    ("GroupNorm", (2, 4), {}, (3, 4, 2)),
    ("GroupNorm", (2, 4), {"affine": False}, (3, 4)),
    ("LocalResponseNorm", (3,), {}, (2, 4, 3)),
    ("Identity", (1, 2), {"a": 3}, (2, 3)),
    ("ConstantPad1d", (1, 2.5), {}, (2, 3, 4)),
    ("ConstantPad2d", ((1, 0, -1, 2), -1.0), {}, (2, 3, 4)),
    ("ConstantPad3d", (1, 0.5), {}, (1, 2, 2, 3, 2)),
    ("ZeroPad1d", (1,), {}, (2, 3)),
    ("ZeroPad2d", ((1, 2, 0, 1),), {}, (1, 2, 3, 4)),
    ("ZeroPad3d", (1,), {}, (1, 2, 2, 2)),
    ("ReflectionPad1d", ((1, 2),), {}, (2, 3)),
    ("ReflectionPad2d", (1,), {}, (1, 2, 3, 4)),
    ("ReflectionPad3d", (1,), {}, (1, 2, 2, 3, 4)),
    ("ReplicationPad1d", (2,), {}, (2, 3)),
    ("ReplicationPad2d", (2,), {}, (1, 2, 3, 4)),
    ("ReplicationPad3d", (1,), {}, (1, 2, 2, 3, 4)),
    ("CircularPad1d", (2,), {}, (2, 3)),
    ("CircularPad2d", (2,), {}, (1, 2, 3, 4)),
    ("CircularPad3d", (1,), {}, (1, 2, 2, 3, 4)),
    ("PixelShuffle", (2,), {}, (1, 4, 2, 3)),
    ("PixelUnshuffle", (2,), {}, (1, 1, 2, 4)),
    ("Unfold", (2,), {"stride": 2}, (1, 2, 4, 4)),
    ("Fold", ((4, 4), 2), {"stride": 2}, (1, 8, 4)),
    ("Upsample", (), {"scale_factor": 2}, (1, 2, 3, 2)),
    ("Upsample", ((5, 3), None, "bilinear", True), {}, (1, 2, 3, 2)),
    ("Upsample", (), {"scale_factor": 1.5, "mode": "trilinear"}, (1, 2, 2, 3, 2)),
    ("UpsamplingNearest2d", (), {"scale_factor": 2}, (1, 2, 3, 2)),
    ("UpsamplingBilinear2d", (5,), {}, (1, 2, 3, 2)),
    ("Unflatten", (1, (2, -1)), {}, (2, 6)),
    ("Unflatten", (-1, (3, 2)), {}, (2, 6)),
    ("ConvTranspose1d", (2, 3, 3, 2), {"output_padding": 1}, (2, 2, 4)),
    ("ConvTranspose2d", (2, 4, 3), {"stride": (2, 1), "padding": 1, "groups": 2}, (1, 2, 3, 4)),
    ("ConvTranspose2d", (2, 3, 2), {"bias": False, "dilation": 2}, (2, 3, 4)),
    ("Conv3d", (2, 4, (2, 3, 1)), {"stride": (1, 2, 1), "padding": 1, "groups": 2}, (1, 2, 3, 4, 2)),
    ("Conv3d", (2, 3, 3), {"padding": "same", "bias": False}, (2, 3, 4, 2)),
    ("Conv1d", (2, 3, 3), {"padding": 2, "padding_mode": "circular"}, (2, 2, 5)),
    ("Conv2d", (2, 3, 3, 2, (2, 1)), {"padding_mode": "reflect"}, (2, 2, 4, 5)),
    ("Conv2d", (2, 3, (2, 3)), {"padding": "same", "padding_mode": "replicate", "dilation": 2}, (2, 4, 5)),
    ("Conv3d", (1, 2, (3, 2, 3)), {"padding": (1, 0, 2), "padding_mode": "replicate"}, (1, 1, 3, 4, 3)),
    ("Conv3d", (1, 2, 3), {"padding": "same", "padding_mode": "circular"}, (1, 1, 3, 4, 3)),
    ("ConvTranspose3d", (2, 3, 2, 2), {"output_padding": 1}, (2, 2, 2, 3, 2)),
    ("MaxPool3d", (2,), {"stride": 1, "padding": 1}, (2, 2, 3, 4, 2)),
    ("AvgPool3d", ((1, 2, 2),), {"ceil_mode": True}, (2, 2, 3, 3, 4)),
    ("AdaptiveAvgPool3d", ((2, None, 1),), {}, (1, 2, 3, 4, 2)),
    ("AdaptiveMaxPool3d", (2,), {}, (1, 2, 3, 4, 2)),
    ("LPPool3d", (2, 2), {}, (1, 2, 3, 4, 2)),
    ("AvgPool1d", (3,), {"stride": 1, "padding": 1}, (2, 2, 5)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 2, 5)),
    ("AdaptiveAvgPool2d", ((2, None),), {}, (2, 2, 5, 3)),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 2, 5)),
    ("AdaptiveMaxPool2d", ((2, 3),), {}, (2, 2, 5, 4)),
    ("LPPool1d", (2, 3), {}, (2, 2, 6)),
    ("LPPool2d", (2, (2, 3)), {"stride": 2}, (2, 2, 5, 6)),
]


def _math(name: str, kind: str = "real", special: Any = SPECIAL, **options: Any) -> list[Case]:
    return [
        pointwise(f"{name}", lambda L, x: getattr(L, name)(x), kind, special, **options),
        Case(f"Tensor.{name}", lambda L, x: getattr(x, name)(), on((2, 3), kind=kind), arrays=False, **options),
        Case(f"{name} of integers", lambda L, x: getattr(L, name)(x), on((3, 4), (0,), kind="int")),
    ]


_DIMS = (0, 1, -1)


def _reduction(
    name: str, kind: str = "real", empty: bool = True, several: bool = True, smooth: bool = True, **options: Any
) -> list[Case]:
    """A reduction over all, one or several dimensions, kept or not; of ties if ``kind`` is 'whole'."""
    shapes = [(2, 3), (2, 3, 4), (1, 1)] + [(0, 3)] * empty
    cases = [
        Case(f"{name} {kind}", lambda L, x: getattr(L, name)(x, **options), on(*shapes, (), kind=kind), smooth=smooth),
        Case(
            f"Tensor.{name} {kind}",
            lambda L, x: getattr(x, name)(**options),
            on((2, 3), kind=kind),
            arrays=False,
            smooth=smooth,
        ),
    ]
    for dim in _DIMS:
        for keepdim in (False, True):
            cases.append(
                Case(
                    f"{name}(dim={dim}, keepdim={keepdim}) {kind}",
                    lambda L, x, dim=dim, keepdim=keepdim: getattr(L, name)(x, dim=dim, keepdim=keepdim, **options),
                    on(*[s for s in shapes if s[dim]], (3, 0) if dim == 0 else (0, 3), kind=kind),
                    smooth=smooth,
                )
            )
    if several:
        cases.append(
            Case(
                f"{name}(dim=(0, -1)) {kind}",
                lambda L, x: getattr(L, name)(x, dim=(0, -1), **options),
                on((2, 3), (2, 3, 4), *[(2, 0, 4)] * empty, kind=kind),
                smooth=smooth,
            )
        )
    return cases


ELEMENTWISE = [
    *_math("abs", special=SPECIAL[:-1]),
    *_math("neg"),
    *_math("square"),
    *_math("sqrt", "positive"),
    *_math("rsqrt", "positive"),
    *_math("reciprocal"),
    *_math("sign"),
    *_math("floor", smooth=False),
    *_math("ceil", smooth=False),
    *_math("trunc", smooth=False),
    *_math("round", smooth=False),
    *_math("sin"),
    *_math("cos"),
    *_math("tan"),
    *_math("asin", "unit"),
    *_math("acos", "unit"),
    *_math("atan"),
    *_math("erf"),
    *_math("expm1", special=SPECIAL[:10]),
    *_math("log1p", "positive"),
    *_math("log2", "positive"),
    *_math("log10", "positive"),
    *_math("isnan", smooth=False),
    *_math("isinf", smooth=False),
    *_math("isfinite", smooth=False),
    pointwise("round(decimals=1)", lambda L, x: L.round(x, decimals=1), smooth=False),
    pointwise("clamp(min)", lambda L, x: L.clamp(x, -0.5)),
    pointwise("clamp(max)", lambda L, x: L.clamp(x, max=0.5)),
    pointwise("clamp(both)", lambda L, x: L.clamp(x, -0.5, 1)),
    pointwise("clamp(crossing)", lambda L, x: L.clamp(x, 1.0, -1.0)),
    pointwise("clip", lambda L, x: L.clip(x, -0.5, 1)),
    Case("Tensor.clamp", lambda L, x: x.clamp(0, 1), on((2, 3)), arrays=False),
    Case("clamp of integers", lambda L, x: L.clamp(x, 1, 3), on((3, 4), kind="int")),
    Case("clamp of integers by floats", lambda L, x: L.clamp(x, 1.5), on((3, 4), kind="int")),
    *[
        Case(
            f"clamp by Tensors, {kind}",
            lambda L, x, low, high: L.clamp(x, low, high),
            (
                (In((2, 3), kind), In((3,), kind), In((2, 1), kind)),
                (In((2, 3, 4), kind), In((2, 3, 4), kind), In((), kind)),
                (In((0, 3), kind), In((3,), kind), In((1,), kind)),
            ),
            smooth=kind == "real",
        )
        for kind in ("real", "whole")
    ],
    Case("clamp by one Tensor", lambda L, x, low: L.clamp(x, min=low), ((In((2, 3)), In((3,))),)),
    Case("clamp by the other", lambda L, x, high: L.clamp(x, max=high), ((In((2, 3)), In((3,))),)),
    *[
        Case(
            f"{name} {kind}",
            lambda L, x, y, name=name: getattr(L, name)(x, y),
            (
                (In((2, 3), kind), In((3,), kind)),
                (In((2, 1, 4), kind), In((3, 1), kind)),
                (In((), kind), In((2,), kind)),
                (In((0, 3), kind), In((3,), kind)),
                (In((16,), tuple(SPECIAL)), In((16,), tuple(SPECIAL[::-1]))),
                (In((3,), "int"), In((3,), kind)),
                (In((3,), "int"), In((3,), "int")),
            ),
            smooth=kind == "real",
        )
        for name in ("maximum", "minimum")
        for kind in ("real", "whole")
    ],
    Case(
        "where",
        lambda L, c, x, y: L.where(c, x, y),
        (
            (In((2, 3), "bool"), In((2, 3)), In((3,))),
            (In((3, 1), "bool"), In((1, 4)), In(())),
            (In((), "bool"), In((2,)), In((2,), "int")),
            (In((0, 3), "bool"), In((3,)), In((1,))),
            (In((3,), "bool"), In((3,), "int"), In((3,), "int")),
        ),
    ),
    Case("where(numbers)", lambda L, c, x: L.where(c, x, 0.0), ((In((2, 3), "bool"), In((2, 3))),)),
    Case("where(numbers first)", lambda L, c, x: L.where(c, 1, x), ((In((2, 3), "bool"), In((2, 3))),)),
    Case("Tensor.where", lambda L, c, x: x.where(c, -1.0), ((In((2, 3), "bool"), In((2, 3))),), arrays=False),
    Case(
        "masked_fill",
        lambda L, x, m: L.masked_fill(x, m, -INF),
        (
            (In((2, 3)), In((2, 3), "bool")),
            (In((2, 3, 4)), In((3, 1), "bool")),
            (In(()), In((), "bool")),
            (In((0, 3)), In((3,), "bool")),
        ),
        smooth=False,
    ),
    Case(
        "masked_fill(Tensor)",
        lambda L, x, m, v: L.masked_fill(x, m, v),
        ((In((2, 3)), In((2, 3), "bool"), In(())), (In((2, 3), "int"), In((3,), "bool"), In((), "int"))),
    ),
    Case("Tensor.masked_fill", lambda L, x, m: x.masked_fill(m, 2), ((In((2, 3)), In((3,), "bool")),), arrays=False),
    Case("abs()", lambda L, x: abs(x), on((2, 3)), arrays=False),
    pointwise("clamp_min", lambda L, x: L.clamp_min(x, -0.5)),
    pointwise("clamp_max", lambda L, x: L.clamp_max(x, 0.5)),
    *[
        Case(
            f"{name}({options})",
            lambda L, x, a, b, name=name, options=options: getattr(L, name)(x, a, b, **options),
            (
                (In((2, 3)), In((3,)), In((2, 1), "positive")),
                (In(()), In((2, 2)), In((2,), "positive")),
                *([(In((3,), "int"), In((3,), "int"), In((3,), "int"))] if name == "addcmul" else []),
            ),
        )
        for name in ("addcmul", "addcdiv")
        for options in ({}, {"value": 2})
    ],
    Case(
        "lerp",
        lambda L, x, y, w: L.lerp(x, y, w),
        ((In((2, 3)), In((3,)), In((2, 1), "unit")), (In((2,)), In((2,)), In(()))),
    ),
    Case("lerp(a number)", lambda L, x, y: L.lerp(x, y, 0.25), ((In((2, 3)), In((3,))),)),
    *[
        Case(
            name,
            lambda L, x, y, name=name: getattr(L, name)(x, y),
            (
                (In((2, 3), "whole"), In((3,), "whole")),
                (In((16,), tuple(SPECIAL)), In((16,), tuple(SPECIAL[::-1]))),
                (In((3,), "int"), In((3,), "whole")),
                (In((3,), "bool"), In((2, 1), "bool")),
                (In((0, 3)), In(())),
            ),
        )
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")
    ],
    *[
        Case(f"{name}(a number)", lambda L, x, name=name: getattr(L, name)(x, 1), on((3, 4), kind="int"))
        for name in ("eq", "lt", "bitwise_and", "bitwise_or", "bitwise_xor")
    ],
    pointwise("logical_not", lambda L, x: L.logical_not(x), "whole"),
    *[
        Case(
            name,
            lambda L, x, y, name=name: getattr(L, name)(x, y),
            (
                (In((2, 3), "bool"), In((3,), "bool")),
                (In((4, 5), "int", high=9), In((5,), "int", high=9)),
                (In((4,), "bool"), In((4,), "int")),
                (In((2,), np.array([200, 7], np.uint8)), In((2,), np.array([-3, 2], np.int8))),
            ),
        )
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor")
    ],
    Case(
        "bitwise_not",
        lambda L, x: L.bitwise_not(x),
        (*on((2, 3), (), kind="bool"), *on((3,), kind="int"), (In((2,), np.array([200, 7], np.uint8)),)),
    ),
    Case("masks by operators", lambda L, x: (x > -1) & (x < 1) | ~(x != 2) ^ True, on((4, 5)), arrays=False),
    *[
        Case(
            f"isclose({options})",
            lambda L, x, y, options=options: L.isclose(x, y, **options),
            (
                (In((2, 3), "whole"), In((3,), "whole")),
                (In((16,), tuple(SPECIAL)), In((16,), tuple(SPECIAL))),
                (In((3,), (1.0, 1e5, 0.0)), In((3,), (1.00002, 1e5 + 0.5, 1e-7))),
                (In((5,), "int"), In((5,), "int")),
            ),
        )
        for options in ({}, {"equal_nan": True}, {"rtol": 0.5, "atol": 1.0})
    ],
    pointwise("nan_to_num", lambda L, x: L.nan_to_num(x), special=(NAN, 1.0)),
    pointwise("nan_to_num(numbers)", lambda L, x: L.nan_to_num(x, 1.0, posinf=2.0, neginf=-3.0)),
]

#: Where division has a rest, a sign, or none: at 0, infinity and NaN.
_DIVIDENDS = (1.0, 6.0, -1.0, 7.0, -7.0, 7.0, 0.0, -0.0, 2.0, -2.0, INF, NAN, 5.0, -5.0)
_DIVISORS = (0.1, 0.1, 0.1, 2.0, 2.0, -2.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0, INF, INF)
_PAIRS = (
    (In((2, 3)), In((3,), "positive")),
    (In((2, 1, 4)), In((3, 1), "positive")),
    (In(()), In((2,), "positive")),
    (In((0, 3)), In((3,), "positive")),
)
_SPECIAL_PAIR = (In((14,), _DIVIDENDS), In((14,), _DIVISORS))
#: Of integers, which have a type of their own.
_INTEGER_PAIRS = tuple(
    (In((6,), np.array([7, -7, 0, 5, 6, -6], first)), In((6,), np.array([2, 2, 3, -3, 3, 3], second)))
    for first, second in ((np.int64, np.int64), (np.int8, np.int8), (np.int32, np.int8))
)
_NUMBERED = (*on((2, 3)), *on((2, 3), kind="int"))

ARITHMETIC = [
    *[
        Case(
            f"div({mode})",
            lambda L, x, y, mode=mode: L.div(x, y, rounding_mode=mode),
            # PyTorch rounds the quotient of half types before it cuts the decimals off: not the first three.
            (*_PAIRS, (In((11,), _DIVIDENDS[3:]), In((11,), _DIVISORS[3:])), (In((3,), "int"), In((3,), "positive"))),
        )
        for mode in (None, "trunc", "floor")
    ],
    *[
        Case(f"div({mode}) of integers", lambda L, x, y, mode=mode: L.div(x, y, rounding_mode=mode), _INTEGER_PAIRS)
        for mode in (None, "trunc", "floor")
    ],
    *[
        Case(f"div({mode}, a number)", lambda L, x, mode=mode: L.div(x, -3, rounding_mode=mode), _NUMBERED)
        for mode in ("trunc", "floor")
    ],
    Case(
        "floor_divide",
        lambda L, x, y: L.floor_divide(x, y),
        tuple((In(x.shape, x.kind, grad=False), In(y.shape, y.kind, grad=False)) for x, y in (*_PAIRS, _SPECIAL_PAIR)),
    ),
    Case("floor_divide by operator", lambda L, x, y: x // y, _INTEGER_PAIRS, arrays=False),
    Case("floor_divide of a number", lambda L, x: 7 // (x + 1), on((2, 3), kind="int"), arrays=False),
    *[
        case
        for name in ("remainder", "fmod")
        for case in (
            Case(
                name,
                lambda L, x, y, name=name: getattr(L, name)(x, y),
                (*_PAIRS, _SPECIAL_PAIR),
            ),
            Case(f"{name} of integers", lambda L, x, y, name=name: getattr(L, name)(x, y), _INTEGER_PAIRS),
            Case(f"{name}(a number)", lambda L, x, name=name: getattr(L, name)(x, -3), _NUMBERED),
        )
    ],
    Case("remainder by operator", lambda L, x, y: x % y, _PAIRS[:1], arrays=False),
    Case("remainder of a number", lambda L, x: 5.5 % x, on((2, 3), kind="positive", grad=False), arrays=False),
    Case(
        "pow(Tensor)",
        lambda L, x, y: L.pow(x, y),
        (
            (In((2, 3), "positive"), In((3,))),
            (In((2, 1, 4), "positive"), In((3, 1))),
            (In(()), In((2,), "whole")),
            (In((0, 3)), In((3,))),
            # At 0, and of negative numbers.
            (In((8,), (0, 0, 0, 2, -2, -2, 1, 0)), In((8,), (0, 2, -1, 0, 2, 0.5, 3, 1))),
            (In((3,), "int"), In((3,))),
            (In((3,), "positive"), In((3,), "int")),
        ),
    ),
    Case(
        "pow(Tensor) of integers",
        lambda L, x, y: L.pow(x, y),
        (
            (In((2, 3), "int"), In((3,), "int")),
            (In((6,), np.array([1, -1, -1, 2, -2, 7])), In((6,), np.array([-2, -1, -2, -1, 3, 0]))),
            (In((3,), np.array([True, False, True])), In((3,), np.array([2, 0, 1], np.int8))),
        ),
    ),
    Case("pow of a number", lambda L, x: 2**x, on((2, 3), (), (0,)), arrays=False),
    Case("pow of 0", lambda L, x: 0.0**x, on((4,), kind=(0.0, 2.0, -1.0, 0.5)), arrays=False, smooth=False),
    Case("pow of a number, integers", lambda L, x: 2**x, on((2, 3), kind="int"), arrays=False),
    Case("pow(a number)", lambda L, x: x**2, (*on((2, 3)), *on((2, 3), kind="int"), *on((2, 3), kind="bool"))),
]

REDUCTIONS = [
    *_reduction("var"),
    *_reduction("std"),
    *_reduction("var", unbiased=False),
    *_reduction("std", correction=0),
    *_reduction("var_mean")[::3],
    *_reduction("std_mean")[::3],
    Case("var(unbiased)", lambda L, x: L.var(x, False), on((2, 3), (4,))),
    Case("var(dim, unbiased, keepdim)", lambda L, x: L.var(x, 1, False, True), on((2, 3), (2, 3, 4))),
    Case("std of equals", lambda L, x: L.std(x, 0), on((2, 3), kind=((1, 1, 1), (1, 1, 1))), smooth=False),
    *[
        case
        for name in ("amax", "amin")
        for kind in ("real", "whole")
        for case in _reduction(name, kind, empty=False, smooth=kind == "real")
    ],
    *[
        case
        for name in ("max", "min")
        for kind in ("real", "whole")
        for case in _reduction(name, kind, empty=False, several=False, smooth=kind == "real")
    ],
    *[
        Case(f"{name}(dim) of integers", lambda L, x, name=name: getattr(L, name)(x, 1), on((2, 3), kind="int"))
        for name in ("max", "min")
    ],
    *[
        Case(f"{name}(Tensor)", lambda L, x, y, name=name: getattr(L, name)(x, y), ((In((2, 3)), In((3,))),))
        for name in ("max", "min")
    ],
    *[
        Case(
            f"{name} with NaN",
            lambda L, x, name=name: getattr(L, name)(x),
            on((4,), kind=(1, NAN, NAN, 2)),
            smooth=False,
        )
        # Not amax and amin: there PyTorch divides by the number of elements that equal NaN, none.
        for name in ("max", "min", "argmax", "argmin")
    ],
    *[
        Case(
            f"{name}(0) with NaN",
            lambda L, x, name=name: getattr(L, name)(x, 0),
            on((4, 1), kind=((1,), (NAN,), (NAN,), (2,))),
            smooth=False,
        )
        for name in ("max", "min")
    ],
    *[case for name in ("argmax", "argmin") for case in _reduction(name, "whole", empty=False, several=False)],
    *[
        Case(f"{name}(0) of a number", lambda L, x, name=name: getattr(L, name)(x, 0), on(()))
        for name in ("max", "min", "argmax", "argmin", "amax", "prod", "cumsum", "logsumexp", "norm", "any", "all")[:4]
    ],
    *_reduction("prod", several=False),
    *_reduction("prod", "whole", several=False),
    Case("prod of integers", lambda L, x: L.prod(x), on((4,), (0,), kind="int")),
    Case("prod(dim) of integers", lambda L, x: L.prod(x, 0), on((4, 2), kind="int")),
    *[Case(f"cumsum({d})", lambda L, x, d=d: L.cumsum(x, d), on((2, 3), (2, 3, 4), (0, 3))) for d in (0, 1, -1)],
    *[
        Case(
            f"{name}(dtype={dtype})",
            lambda L, x, name=name, dtype=dtype: getattr(L, name)(x, 0, dtype=getattr(L, dtype)),
            on((2, 3), kind=kind, grad=dtype == "float64"),
        )
        for name in ("sum", "mean", "prod", "cumsum")
        for dtype in ("float64", "int32", "uint8")[: 1 if name == "mean" else 3]
        for kind in ("real", "int")
        if dtype != "uint8" or kind == "int"  # what a negative float becomes is up to the machine
    ],
    Case("norm(dtype)", lambda L, x: L.norm(x, dtype=L.float64), on((2, 3))),
    Case("sum(dtype=bool)", lambda L, x: L.sum(x, dtype=L.bool), on((2, 3), (0,), kind="int")),
    Case("cumsum of a number", lambda L, x: L.cumsum(x, 0), on(())),
    Case("cumsum of integers", lambda L, x: L.cumsum(x, 0), on((2, 3), kind="int")),
    *_reduction("logsumexp")[2:],
    Case(
        "logsumexp of infinities",
        lambda L, x: L.logsumexp(x, 1),
        on((4, 2), kind=((INF, 1), (-INF, -INF), (-INF, 2), (NAN, 1))),
        smooth=False,
    ),
    *[
        case
        for p in ("fro", 2, 1, 3, 0.5, 0, INF, -INF)
        for case in (
            Case(f"norm({p})", lambda L, x, p=p: L.norm(x, p), on((2, 3), (2, 3, 4), ()), smooth=p != 0),
            Case(
                f"norm({p}, dim)",
                lambda L, x, p=p: L.norm(x, p, dim=1, keepdim=True),
                on((2, 3), (2, 3, 4)),
                smooth=p != 0,
            ),
        )
    ],
    *[
        Case(
            f"norm({p}) of zeros",
            lambda L, x, p=p: L.norm(x, p, dim=1),
            on((2, 2), kind=((0, 0), (0, 1))),
            smooth=False,
        )
        for p in (2, 1, 3)
    ],
    Case("norm(dims)", lambda L, x: L.norm(x, dim=(0, 2)), on((2, 3, 4))),
    *[
        Case(
            f"{name}({dim}, {down})",
            lambda L, x, name=name, dim=dim, down=down: getattr(L, name)(x, dim, down),
            on((3, 5), (2, 3, 4), (3, 0), *([(4,), ()] if dim != 1 else [])),
        )
        for name in ("sort", "argsort")
        for dim in (-1, 0, 1)
        for down in (False, True)
    ],
    *[
        Case(
            f"sort of equals ({down})",
            lambda L, x, down=down: L.sort(x, descending=down, stable=True),
            (*on((9,), kind=(1, 0, NAN, 1, INF, 0, NAN, -INF, 1)), *on((3, 8), kind="int"), *on((7,), kind="bool")),
            smooth=False,
        )
        for down in (False, True)
    ],
    *[
        Case(
            f"topk({k}, {dim}, {largest})",
            lambda L, x, k=k, dim=dim, largest=largest: L.topk(x, k, dim, largest),
            on((3, 5), (3, 4, 5), *([(1,), ()] if (k, dim) == (1, -1) else [])),
        )
        for k, dim in ((1, -1), (3, 0), (2, 1), (0, 0))
        for largest in (True, False)
    ],
    Case("Tensor.norm", lambda L, x: x.norm(), on((2, 3)), arrays=False),
    *[case for name in ("any", "all") for kind in ("bool", "whole", "int") for case in _reduction(name, kind)],
    Case("count_nonzero", lambda L, x: L.count_nonzero(x), on((2, 3), (), kind="whole")),
    Case("count_nonzero(dim)", lambda L, x: L.count_nonzero(x, dim=1), on((2, 3), kind="whole")),
]


def _method(name: str, *arguments: Any, shapes: Any = ((2, 3), (2, 3, 4)), **options: Any) -> list[Case]:
    """A function of the library and the Tensor's method of the same name."""
    shown = f"({', '.join([*map(repr, arguments), *(f'{k}={v!r}' for k, v in options.items())])})"
    return [
        Case(name + shown, lambda L, x: getattr(L, name)(x, *arguments, **options), on(*shapes)),
        Case(f"Tensor.{name}{shown}", lambda L, x: getattr(x, name)(*arguments, **options), on(*shapes), arrays=False),
    ]


def _tensor(name: str, *arguments: Any, shapes: Any = ((2, 3), (1, 3), (2, 3, 4)), **options: Any) -> Case:
    """A Tensor's method alone."""
    shown = ", ".join(map(repr, arguments))
    return Case(
        f"Tensor.{name}({shown})", lambda L, x: getattr(x, name)(*arguments), on(*shapes), arrays=False, **options
    )


_PADS: list[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]] = [
    ("constant", (1, 2), ((2, 3), (3,), (2, 0), (0, 3))),
    ("constant", (-1, 2, 0, 1), ((2, 3), (2, 3, 4))),
    ("constant", (1, 0, -1, -1, 2, 2), ((2, 3, 4), (1, 2, 3, 4))),
    ("constant", (-2, -1), ((2, 3),)),
    ("constant", (), ((2, 3), ())),
    ("reflect", (1, 2), ((2, 3), (2, 2, 4))),
    ("reflect", (2, 1, 1, 0), ((2, 3, 4), (2, 2, 3, 4))),
    ("reflect", (1, 1, 1, 2, 0, 1), ((2, 2, 3, 4), (1, 2, 2, 3, 4))),
    ("replicate", (3, 2), ((2, 3), (2, 2, 1))),
    ("replicate", (2, 1, 5, 0), ((2, 3, 4), (2, 2, 3, 4))),
    ("replicate", (1, 1, 1, 2, 0, 1), ((2, 2, 3, 4),)),
    ("replicate", (-1, 2), ((2, 3), (2, 2, 4))),
    ("circular", (1, 2), ((2, 3), (2, 2, 4))),
    ("circular", (3, 0, 1, 3), ((2, 3, 4), (2, 2, 3, 4))),
    ("circular", (1, 1, 1, 2, 0, 1), ((2, 2, 3, 4),)),
    ("circular", (-1, 2), ((2, 3), (2, 2, 4))),
]


def _interpolations() -> list[Case]:
    cases = []
    for mode, shapes in [
        ("nearest", ((2, 3, 5), (2, 2, 3, 4), (1, 2, 2, 3, 2))),
        ("nearest-exact", ((2, 3, 5), (2, 2, 3, 4), (1, 2, 2, 3, 2))),
        ("linear", ((2, 3, 5),)),
        ("bilinear", ((2, 2, 3, 4), (0, 2, 3, 4))),
        ("trilinear", ((1, 2, 2, 3, 2), (2, 1, 3, 2, 4))),
        ("bicubic", ((2, 2, 3, 4), (0, 2, 3, 4), (1, 1, 2, 7))),
        ("area", ((2, 3, 5), (2, 2, 3, 4))),
    ]:
        for options in ({"size": 7}, {"size": 2}, {"scale_factor": 2}, {"scale_factor": 1.7}, {"scale_factor": 0.6}):
            corners = [{}, {"align_corners": True}] if mode.endswith(("linear", "cubic")) else [{}]
            for extra in corners:
                cases.append(
                    Case(
                        f"interpolate({mode}, {options}, {extra})",
                        lambda L, x, mode=mode, options={**options, **extra}: L.nn.functional.interpolate(
                            x, mode=mode, **options
                        ),
                        on(*shapes),
                    )
                )
    return [
        *cases,
        Case(
            "interpolate(as large)",
            lambda L, x: L.nn.functional.interpolate(x, scale_factor=(1.3, 1.2), mode="bilinear"),
            on((1, 2, 3, 4)),
        ),
        Case(
            "interpolate(nearly twice as large)",
            lambda L, x: L.nn.functional.interpolate(x, scale_factor=(2.2, 1.1)),
            on((1, 2, 2, 6)),
        ),
        Case("interpolate(pair)", lambda L, x: L.nn.functional.interpolate(x, (2, 5)), on((1, 2, 3, 4))),
        Case(
            "interpolate(recompute)",
            lambda L, x: L.nn.functional.interpolate(
                x, scale_factor=(1.3, 0.7), mode="bilinear", recompute_scale_factor=True
            ),
            on((1, 2, 3, 4)),
        ),
        Case(
            "interpolate(recompute, depths)",
            lambda L, x: L.nn.functional.interpolate(
                x, scale_factor=(1.3, 0.7, 2.4), mode="trilinear", recompute_scale_factor=True
            ),
            on((1, 1, 2, 3, 2)),
        ),
        *[
            Case(
                f"grid_sample({', '.join(map(str, options))}, {len(places)} dimensions)",
                lambda L, x, grid, options=options: L.nn.functional.grid_sample(x, grid, *options),
                ((In(image), In(places)),),
            )
            for options in itertools.product(
                ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (True, False)
            )
            for image, places in (((2, 2, 3, 4), (2, 2, 5, 2)), ((1, 2, 1, 3, 2), (1, 2, 1, 3, 3)))
            if (options[0], len(places)) != ("bicubic", 5)
        ],
        *[
            Case(
                f"affine_grid({corners})",
                lambda L, theta, corners=corners: L.nn.functional.affine_grid(
                    theta, (2, 1, 3, 4) if theta.shape[1] == 2 else (2, 1, 2, 4, 3), corners
                ),
                on((2, 2, 3), (2, 3, 4)),
            )
            for corners in (True, False)
        ],
        Case(
            "upsample",
            lambda L, x: L.nn.functional.upsample(x, scale_factor=2, mode="bilinear", align_corners=True),
            on((1, 2, 3, 4)),
        ),
    ]


#: Of different types, and with what PyTorch takes for nothing.
_CATS = ((In((3,)), In((0,)), In((2,), "int")), (In((0,)), In((2, 3)), In((1, 3))))

SHAPE = [
    *[
        Case(
            f"{name}({d})",
            lambda L, x, y, z, name=name, d=d: getattr(L, name)([x, y, z], d),
            ((In(a), In(b), In(c)), *more),
        )
        for name, d, a, b, c, more in [
            (
                "cat",
                0,
                (2, 3),
                (1, 3),
                (0, 3),
                ((In((3,)), In((0,)), In((2,), "int")), (In((0,)), In((2, 3)), In((1, 3)))),
            ),
            ("cat", 1, (2, 3), (2, 1), (2, 2), ()),
            ("cat", -1, (2, 3, 1), (2, 3, 4), (2, 3, 2), ((In((2,), "int"), In((2,), "int"), In((3,), "bool")),)),
            ("concat", 0, (2, 3), (1, 3), (4, 3), ()),
            ("stack", 0, (2, 3), (2, 3), (2, 3), ((In(()), In(()), In(())), (In((0, 3)), In((0, 3)), In((0, 3))))),
            ("stack", -1, (2, 3), (2, 3), (2, 3), ((In((3,)), In((3,), "int"), In((3,), "int")),)),
        ]
    ],
    *[
        Case(
            name,
            lambda L, x, y, name=name: getattr(L, name)((x, y)),
            ((In((2, 3)), In((2, 3))), (In((3,)), In((3,), "int")), (In(()), In(())), (In((2, 3, 2)), In((2, 3, 2)))),
        )
        for name in ("hstack", "vstack")
    ],
    *[
        case
        for arguments in ((1,), (2, -1), ([1, 2], 1), ([0, 3], 1), (5, 0))
        for case in _method("split", *arguments, shapes=((2, 3), (2, 3, 4)))[arguments[0] == [1] :]
    ],
    *_method("chunk", 2, 1),
    *_method("chunk", 5, -1),
    *_method("unbind"),
    *_method("unbind", 1),
    *_method("squeeze", shapes=((2, 1, 3), (2, 3), (1, 1), ())),
    *_method("squeeze", 0, shapes=((1, 3), (2, 3), (1,), ())),
    *_method("squeeze", (0, -1), shapes=((1, 3, 1), (2, 3))),
    *_method("unsqueeze", 0, shapes=((2, 3), (), (0, 3))),
    *_method("unsqueeze", -1, shapes=((2, 3), ())),
    *_method("transpose", 0, 1),
    *_method("transpose", -1, 0, shapes=((2, 3), (2, 3, 4), (3,), ())),
    *_method("swapaxes", 0, 1),
    *_method("t", shapes=((2, 3), (3,), ())),
    *_method("movedim", 0, -1),
    *_method("movedim", (0, 1), (1, 0)),
    _tensor("view", -1),
    _tensor("view", 3, -1),
    _tensor("view", (1, -1)),
    _tensor("expand", 2, 2, 3, shapes=((2, 3), (1, 3), (2, 1))),
    _tensor("expand", (4, -1), shapes=((1, 3),)),
    _tensor("repeat", 2, 3, shapes=((2, 3), (3,), ())),
    _tensor("repeat", (2, 1, 2), shapes=((2, 3), (0, 3))),
    _tensor("tile", 2),
    *_method("flip", (0,)),
    *_method("flip", (0, -1), shapes=((2, 3), (2, 3, 4), (0, 3))),
    *_method("flip", dims=(1,), shapes=((2, 3),)),
    *_method("permute", dims=(1, 0), shapes=((2, 3),)),
    *_method("reshape", shape=(3, -1), shapes=((2, 3),)),
    *_method("tile", dims=(2,), shapes=((2, 3),)),
    *_method("roll", 1),
    *_method("roll", -4, 1),
    *_method("roll", (1, 2), (0, -1), shapes=((2, 3), (2, 3, 4), (0, 3))),
    *_method("tril", shapes=((2, 3), (3, 2), (2, 3, 3), (0, 2))),
    *_method("tril", diagonal=-1, shapes=((3, 3), (2, 3))),
    *_method("triu", 1, shapes=((3, 3), (2, 2, 3))),
    *_method("ravel", shapes=((2, 3), (), (0, 3))),
    *_method("unflatten", 1, (3, -1), shapes=((2, 6), (2, 3, 4))),
    *_method("unflatten", -1, (2, 2), shapes=((3, 4),)),
    *_method("broadcast_to", (2, 2, 3), shapes=((2, 3), (3,), ())),
    *[
        _tensor("unfold", *arguments, shapes=shapes)
        for *arguments, shapes in [
            (0, 2, 1, ((4, 3), (3,))),
            (-1, 3, 2, ((2, 7), (2, 2, 4), (0, 3))),
            (1, 2, 3, ((2, 7, 2),)),
            (0, 1, 1, ((3,), ())),
            (0, 0, 1, ((3, 2), ())),
        ]
    ],
    *_method("narrow", 1, 1, 2),
    *_method("narrow", -1, -2, 1),
    *_method("select", 1, -1),
    _tensor("clone", shapes=((2, 3), (), (0, 3))),
    _tensor("contiguous"),
    Case("Tensor.view_as", lambda L, x, y: x.view_as(y), ((In((2, 3)), In((6,))),), arrays=False),
    Case("Tensor.expand_as", lambda L, x, y: x.expand_as(y), ((In((1, 3)), In((2, 3))),), arrays=False),
    *[
        Case(
            f"index_select({d})",
            lambda L, x, i, d=d: L.index_select(x, d, i),
            ((In((5, 6)), In((4,), "int")), (In((5, 6, 5)), In((3,), "int")), (In((5, 5)), In((0,), "int"))),
        )
        for d in (0, -1)
    ],
    *[
        Case(
            f"gather({d})",
            lambda L, x, i, d=d: L.gather(x, d, i),
            ((In((5, 6)), In((5, 6), "int")), (In((5, 6, 5)), In((2, 6, 5) if d else (7, 6, 2), "int"))),
        )
        for d in (0, 1)
    ],
    *[
        Case(
            f"{name}({d})",
            lambda L, x, i, y, name=name, d=d: getattr(L, name)(x, d, i, y),
            (
                (In((5, 6)), places((5, 6), d), In((5, 6))),
                (In((5, 6, 5)), places((2, 6, 4) if d else (5, 3, 2), d), In((5, 6, 5), grad=False)),
                (In((5, 6)), In((0, 6), "int"), In((3, 6), grad=False)),
            ),
        )
        # Where an index comes twice along the dimension, scatter puts one of two elements.
        for name, places in (
            ("scatter", lambda shape, d: In(shape, np.argsort(np.random.default_rng(0).random(shape), d))),
            ("scatter_add", lambda shape, d: In(shape, "int")),
        )
        for d in (0, 1)
    ],
    Case("scatter to a number", lambda L, x, i, y: L.scatter(x, 0, i, y), ((In(()), In((1,), "int", high=1), In(())),)),
    Case(
        "scatter of a number",
        lambda L, x, i: L.scatter(x, 1, i, value=0.5) + x.scatter(1, i, 2),
        ((In((4, 6)), In((4, 2), "int")),),
        arrays=False,
    ),
    Case(
        "gather of a number",
        lambda L, x, i: L.gather(x, 0, i),
        (
            (In(()), In((), "int", high=1)),
            (In(()), In((3,), "int", high=1)),
            (In((5,)), In((), "int")),
            (In((5,)), In((2, 0), "int")),
        ),
    ),
    Case(
        "index_select of a number",
        lambda L, x, i: L.index_select(x, 0, i),
        ((In(()), In((1,), "int", high=1)), (In(()), In((), "int", high=1)), (In((5,)), In((), "int"))),
    ),
    Case("one_hot", lambda L, i: L.nn.functional.one_hot(i), on((2, 3), (), (4,), kind="int")),
    Case("one_hot(7)", lambda L, i: L.nn.functional.one_hot(i, 7), on((2, 3), (0, 2), kind="int")),
    *[
        Case(
            f"Tensor.{name}()",
            lambda L, x, name=name: getattr(x, name)(),
            on((2, 3), kind=kind),
            arrays=False,
            smooth=False,
        )
        for name in ("float", "double", "int", "long", "bool")
        for kind in ("real", "int", "bool")
    ],
    *[
        Case(
            f"pad({mode}, {amounts})",
            lambda L, x, mode=mode, amounts=amounts: L.nn.functional.pad(x, amounts, mode),
            on(*shapes),
        )
        for mode, amounts, shapes in _PADS
    ],
    Case("pad(value)", lambda L, x: L.nn.functional.pad(x, (1, 1), value=2.5), on((2, 3))),
    Case("pad of integers", lambda L, x: L.nn.functional.pad(x, (1, 1), value=2), on((2, 3), kind="int")),
    Case("pad with infinity", lambda L, x: L.nn.functional.pad(x, (0, 1), "constant", -INF), on((2, 3)), smooth=False),
    *[
        Case(
            f"unfold({k}, {d}, {p}, {s})",
            lambda L, x, k=k, d=d, p=p, s=s: L.nn.functional.unfold(x, k, d, p, s),
            on((1, 2, 4, 5), (2, 4, 5), (2, 3, 6, 7)),
        )
        for k, d, p, s in [(2, 1, 0, 1), ((2, 3), 1, (1, 2), (2, 1)), (2, (2, 3), 1, 2)]
    ],
    *[
        Case(
            f"fold({size}, {k}, {d}, {p}, {s})",
            lambda L, x, size=size, k=k, d=d, p=p, s=s: L.nn.functional.fold(x, size, k, d, p, s),
            on((1, 2 * taps, count), (taps, count)),
        )
        for size, k, d, p, s, taps, count in [
            ((4, 5), 2, 1, 0, 1, 4, 12),
            ((4, 5), (2, 3), 1, (1, 2), (2, 1), 6, 21),
            (4, 2, 1, 0, 2, 4, 4),
        ]
    ],
    Case(
        "pixel_shuffle", lambda L, x: L.nn.functional.pixel_shuffle(x, 2), on((1, 8, 2, 3), (4, 2, 3), (2, 1, 4, 1, 1))
    ),
    Case("pixel_unshuffle", lambda L, x: L.nn.functional.pixel_unshuffle(x, 2), on((1, 2, 4, 2), (4, 2, 6))),
    Case(
        "channel_shuffle",
        lambda L, x: L.nn.functional.channel_shuffle(x, 2),
        tuple((In(shape, grad=shape[0] < 0),) for shape in ((1, 6, 2, 3), (2, 4, 3))),
    ),
    *_interpolations(),
    Case("outer", lambda L, a, b: L.outer(a, b), ((In((2,)), In((3,))), (In((0,)), In((2,))))),
    Case("dot", lambda L, a, b: L.dot(a, b), ((In((3,)), In((3,))), (In((0,)), In((0,))))),
    Case("mv", lambda L, a, b: L.mv(a, b), ((In((2, 3)), In((3,))), (In((0, 3)), In((3,))))),
    Case("mm", lambda L, a, b: L.mm(a, b), ((In((2, 3)), In((3, 4))), (In((0, 3)), In((3, 2))))),
    Case("bmm", lambda L, a, b: L.bmm(a, b), ((In((2, 2, 3)), In((2, 3, 4))), (In((0, 2, 3)), In((0, 3, 1))))),
    Case("Tensor.bmm", lambda L, a, b: a.bmm(b), ((In((2, 2, 3)), In((2, 3, 4))),), arrays=False),
    Case(
        "addmm",
        lambda L, c, a, b: L.addmm(c, a, b, beta=0.5, alpha=2),
        ((In((4,)), In((2, 3)), In((3, 4))), (In((2, 1)), In((2, 3)), In((3, 4)))),
    ),
    Case("addmm()", lambda L, c, a, b: L.addmm(c, a, b), ((In((2, 4)), In((2, 3)), In((3, 4))),)),
    Case("baddbmm", lambda L, c, a, b: L.baddbmm(c, a, b), ((In((2, 1)), In((2, 2, 3)), In((2, 3, 4))),)),
]


def _loss(name: str, samples: Any, options: Any = ({},), reductions: Any = ("mean", "sum", "none")) -> list[Case]:
    """A loss with each of some options and reductions."""
    return [
        Case(
            f"{name}({reduction}, {option})",
            lambda L, *inputs, option=option, reduction=reduction: getattr(L.nn.functional, name)(
                *inputs, reduction=reduction, **option
            ),
            samples,
        )
        for option in options
        for reduction in reductions
    ]


def _two(*kinds: Any, shapes: Any = ((2, 3), (2, 3, 2), (), (0, 3))) -> tuple[tuple[In, ...], ...]:
    """Samples of several inputs of one shape."""
    return tuple(tuple(In(shape, kind) for kind in kinds) for shape in shapes)


#: Labels of 1 and -1.
_SIGNS = (1.0, -1.0, 1.0)

LOSSES = [
    *_loss("l1_loss", (*_two("real", "real"), *_two("whole", "whole")[:2])),
    *_loss("smooth_l1_loss", _two("real", "real"), ({}, {"beta": 0.3}, {"beta": 0.0})),
    *_loss("huber_loss", _two("real", "real"), ({}, {"delta": 0.3})),
    *_loss(
        "nll_loss",
        (
            (In((4, 5)), In((4,), "int")),
            (In((5,)), In((), "int")),
            (In((2, 5, 3)), In((2, 3), "int")),
            (In((2, 5, 3, 2)), In((2, 3, 2), "int")),
            (In((0, 5)), In((0,), "int")),
        ),
        ({}, {"ignore_index": 2}),
    ),
    *[
        Case(
            f"nll_loss({reduction}, weighted)",
            lambda L, x, t, w, reduction=reduction: L.nn.functional.nll_loss(
                x, t, w, ignore_index=1, reduction=reduction
            ),
            (
                (In((4, 5)), In((4,), "int"), In((5,), "unit", grad=False)),
                (In((2, 5, 3)), In((2, 3), "int"), In((5,), "unit", grad=False)),
            ),
        )
        for reduction in ("mean", "sum", "none")
    ],
    *_loss("binary_cross_entropy", _two("unit", "unit")),
    *_loss(
        "binary_cross_entropy_with_logits",
        (*_two("real", "unit"), (In((16,), (*SPECIAL[:13], 2, 3, 4)), In((16,), "unit"))),
    ),
    *[
        Case(
            f"{name}(weighted)",
            lambda L, x, t, w, name=name: getattr(L.nn.functional, name)(x, t, w),
            ((In((2, 3), "unit"), In((2, 3), "unit"), In((3,), "unit", grad=False)),),
        )
        for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits")
    ],
    Case(
        "binary_cross_entropy_with_logits(pos_weight)",
        lambda L, x, t, w, p: L.nn.functional.binary_cross_entropy_with_logits(x, t, w, pos_weight=p),
        (
            (In((2, 3)), In((2, 3), "unit"), In((2, 1), "unit", grad=False), In((3,), "positive", grad=False)),
            (In((2, 3, 2)), In((2, 3, 2), "unit"), In((2,), "unit", grad=False), In((3, 1), "positive", grad=False)),
        ),
    ),
    Case(
        "binary_cross_entropy at its ends",
        lambda L, x, t: L.nn.functional.binary_cross_entropy(x, t),
        ((In((4,), (0, 1, 0, 1)), In((4,), (0, 1, 1, 0), grad=False)),),
        smooth=False,
        tolerance=1e-8,  # PyTorch's 1e-12 is a float32
    ),
    *_loss("kl_div", _two("real", "unit"), ({},), ("mean", "sum", "none", "batchmean")),
    *_loss("kl_div", _two("real", "real"), ({"log_target": True},), ("mean", "sum", "none", "batchmean")),
    Case(
        "kl_div of zeros",
        lambda L, x, t: L.nn.functional.kl_div(x, t, reduction="sum"),
        ((In((3,)), In((3,), (0, 0.5, 0.5), grad=False)),),
    ),
    *_loss("poisson_nll_loss", _two("positive", "positive"), ({}, {"log_input": False}, {"full": True})),
    *_loss(
        "gaussian_nll_loss",
        (
            *_two("real", "real", "positive", shapes=((2, 3), (2, 3, 2))),
            (In((2, 3)), In((2, 3)), In((2, 1), "positive")),
            (In((2, 3)), In((2, 3)), In((2,), "positive")),
            (In((2, 3)), In((3,)), In((1, 3), "positive")),
            (In((2, 1)), In((2, 3)), In((2, 1), "positive")),
            (In((3,)), In(()), In((3,), "positive")),
        ),
        ({}, {"full": True}),
    ),
    Case(
        "gaussian_nll_loss(a number)",
        lambda L, x, t: L.nn.functional.gaussian_nll_loss(x, t, 0.5),
        (*_two("real", "real"), (In((2, 3)), In((1, 3)))),
    ),
    Case(
        "gaussian_nll_loss(eps)",
        lambda L, x, t, v: L.nn.functional.gaussian_nll_loss(x, t, v, eps=1.0),
        _two("real", "real", "positive", shapes=((2, 3),)),
        smooth=False,
    ),
    *[
        Case(
            f"cosine_similarity({d})",
            lambda L, x, y, d=d: L.nn.functional.cosine_similarity(x, y, dim=d),
            ((In((2, 3)), In((2, 3))), (In((2, 3, 4)), In((3, 1))), (In((0, 3)), In((0, 3)))),
        )
        for d in (1, -1)
    ],
    *[
        Case(
            f"pairwise_distance({options})",
            lambda L, x, y, options=options: L.nn.functional.pairwise_distance(x, y, **options),
            ((In((2, 3)), In((2, 3))), (In((3,)), In((3,))), (In((2, 3)), In((3,)))),
        )
        for options in ({}, {"p": 1}, {"p": 3.0, "keepdim": True})
    ],
    *_loss("margin_ranking_loss", ((In((3,)), In((3,)), In((3,), _SIGNS, grad=False)),), ({}, {"margin": 0.5})),
    *_loss("hinge_embedding_loss", ((In((3,)), In((3,), _SIGNS, grad=False)),), ({}, {"margin": 0.5})),
    *_loss("soft_margin_loss", ((In((3,)), In((3,), _SIGNS, grad=False)),)),
    *_loss(
        "cosine_embedding_loss",
        ((In((3, 4)), In((3, 4)), In((3,), _SIGNS, grad=False)), (In((4,)), In((4,)), In((), -1.0, grad=False))),
        ({}, {"margin": 0.1}),
    ),
    *_loss("triplet_margin_loss", ((In((3, 4)), In((3, 4)), In((3, 4))),), ({}, {"swap": True, "p": 1.0})),
    *_loss(
        "cross_entropy",
        ((In((2, 3, 2, 2)), In((2, 2, 2), "int", high=3)), (In((2, 3)), In((2, 3), "unit"))),
        ({}, {"label_smoothing": 0.1}),
    ),
]


def _normalization(
    name: str, call: Callable[..., Any], shapes: Any, parameters: Callable[..., Any], **options: Any
) -> Case:
    """A normalisation with weight and bias, whose shape is a function of the input's."""
    samples = tuple((In(shape), In(parameters(shape)), In(parameters(shape))) for shape in shapes)
    return Case(name, call, samples)


def _channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:2]


_IMAGES = ((2, 2, 3, 2), (3, 4), (3, 4, 5), (1, 2, 2, 2, 3))

NORMALIZATION = [
    _normalization(
        "batch_norm(training)",
        lambda L, x, w, b: L.nn.functional.batch_norm(x, None, None, w, b, training=True),
        _IMAGES,
        _channels,
    ),
    Case(
        "batch_norm(training, plain)",
        lambda L, x: L.nn.functional.batch_norm(x, None, None, training=True, eps=0.1),
        on(*_IMAGES),
    ),
    Case(
        "batch_norm",
        lambda L, x, m, v, w, b: L.nn.functional.batch_norm(x, m, v, w, b, eps=1e-3),
        tuple(
            (In(s), In(s[1:2], grad=False), In(s[1:2], "positive", grad=False), In(s[1:2]), In(s[1:2]))
            for s in (*_IMAGES, (0, 3, 2), (1, 3))
        ),
    ),
    Case(
        "batch_norm(plain)",
        lambda L, x, m, v: L.nn.functional.batch_norm(x, m, v),
        tuple((In(s), In(s[1:2], grad=False), In(s[1:2], "positive", grad=False)) for s in _IMAGES),
    ),
    _normalization(
        "instance_norm",
        lambda L, x, w, b: L.nn.functional.instance_norm(x, weight=w, bias=b),
        ((2, 2, 3, 2), (3, 4, 5), (1, 2, 2, 2, 3)),
        _channels,
    ),
    *[
        _normalization(
            f"layer_norm({last})",
            lambda L, x, w, b, last=last: L.nn.functional.layer_norm(x, last, w, b),
            shapes,
            lambda shape, last=last: last,
        )
        for last, shapes in [((3,), ((2, 3), (3,), (0, 3), (2, 4, 3))), ((2, 3), ((2, 3), (4, 2, 3)))]
    ],
    Case("layer_norm(plain)", lambda L, x: L.nn.functional.layer_norm(x, (4,), eps=0.1), on((3, 4))),
    Case(
        "rms_norm",
        lambda L, x, w: L.nn.functional.rms_norm(x, (4,), w),
        ((In((3, 4)), In((4,))), (In((2, 3, 4)), In((4,)))),
    ),
    Case("rms_norm(eps)", lambda L, x: L.nn.functional.rms_norm(x, (3, 4), eps=0.1), on((3, 4), (2, 3, 4))),
    *[
        _normalization(
            f"group_norm({groups})",
            lambda L, x, w, b, groups=groups: L.nn.functional.group_norm(x, groups, w, b),
            ((2, 4, 3), (3, 4, 2, 2), (0, 4, 3)),
            _channels,
        )
        for groups in (1, 2)
    ],
    Case("group_norm(plain)", lambda L, x: L.nn.functional.group_norm(x, 2), on((2, 4, 3), (2, 4))),
    *[
        Case(
            f"local_response_norm({size})",
            lambda L, x, size=size: L.nn.functional.local_response_norm(x, size, alpha=0.5, beta=0.6, k=2.0),
            on((2, 4, 3), (1, 5, 2, 2)),
        )
        for size in (1, 2, 3, 7)
    ],
    *[
        Case(
            f"normalize({options})",
            lambda L, x, options=options: L.nn.functional.normalize(x, **options),
            on((2, 3), (2, 3, 4), (0, 3)),
        )
        for options in ({}, {"p": 1.0}, {"dim": 0}, {"dim": (0, 1), "eps": 4.0})
    ],
]


def _transposed(name: str, rank: int, options: dict[str, Any], cin: int, cout: int, kernel: int, size: int) -> Case:
    """A transposed convolution of a batch, of one image, and of no image; with bias."""
    groups = options.get("groups", 1)
    weight, bias = In((cin, cout // groups, *(kernel,) * rank)), In((cout,))
    shapes = [(*lead, cin, *range(size, size + rank)) for lead in ((1,), (2,), (), (0,))]
    return Case(
        f"{name}({options}, {kernel})",
        lambda L, x, w, b: getattr(L.nn.functional, name)(x, w, b, **options),
        tuple((In(shape), weight, bias) for shape in shapes),
    )


def _pooled(name: str, shapes: Any, *arguments: Any, **options: Any) -> Case:
    return Case(
        f"{name}({arguments}, {options})",
        lambda L, x: getattr(L.nn.functional, name)(x, *arguments, **options),
        on(*shapes),
    )


def _unpooled(name: str, pool: str, shapes: Any, arguments: Any, **options: Any) -> Case:
    """Pooled, doubled and put back."""

    def call(L: Any, x: Any) -> Any:
        y, where = getattr(L.nn.functional, pool)(x, *arguments, return_indices=True)
        return getattr(L.nn.functional, name)(y * 2, where, *arguments, **options)

    return Case(f"{name}({arguments}, {options})", call, on(*shapes))


WINDOWS = [
    *[
        _transposed(f"conv_transpose{rank}d", rank, options, *sizes)
        for rank in (1, 2, 3)
        for options, sizes in [
            ({}, (2, 3, 2, 3)),
            ({"stride": 2, "padding": 1, "output_padding": 1}, (2, 2, 3, 2)),
            ({"stride": 3, "padding": 0, "output_padding": 2, "groups": 2}, (4, 2, 2, 2)),
            ({"dilation": 3, "output_padding": 2, "stride": 2}, (2, 1, 2, 2)),
            ({"dilation": 3, "output_padding": 2, "padding": 1}, (1, 2, 3, 2)),
            ({"padding": 2, "groups": 3}, (3, 3, 3, 4)),
            ({"stride": 2}, (2, 2, 1, 2)),
        ]
    ],
    Case(
        "conv_transpose2d(pairs)",
        lambda L, x, w: L.nn.functional.conv_transpose2d(x, w, None, (1, 2), (0, 1), (0, 1), 1, (2, 1)),
        ((In((1, 2, 2, 3)), In((2, 2, 2, 3))),),
    ),
    *[
        Case(
            f"conv3d({options}, {kernel})",
            lambda L, x, w, b, options=options: L.nn.functional.conv3d(x, w, b, **options),
            tuple(
                (In((*lead, cin, *size)), In((cout, cin // options.get("groups", 1), *kernel)), In((cout,)))
                for lead, size in (((1,), (3, 4, 3)), ((2,), (5, 4, 6)), ((), (4, 3, 5)), ((0,), (3, 3, 3)))
            ),
        )
        for options, cin, cout, kernel in [
            ({}, 2, 3, (2, 2, 2)),
            ({"stride": 2, "padding": 1}, 2, 2, (3, 2, 3)),
            ({"stride": (2, 1, 1), "padding": (2, 1, 0), "groups": 2}, 2, 4, (2, 3, 1)),
            ({"dilation": (2, 1, 2), "padding": 2}, 1, 2, (2, 3, 2)),
            ({"padding": "same", "dilation": 2}, 1, 2, (3, 2, 1)),
            ({"padding": "valid", "stride": 3}, 1, 1, (1, 2, 2)),
            ({"padding": (3, 0, 0), "stride": (4, 1, 1)}, 1, 1, (2, 1, 1)),
        ]
    ],
    # Large enough for compiled kernels.
    Case(
        "conv_transpose2d(large)",
        lambda L, x, w, b: L.nn.functional.conv_transpose2d(x, w, b, 2, 1, 1),
        ((In((2, 8, 9, 7)), In((8, 12, 3, 3)), In((12,))),),
        smooth=False,
    ),
    *[
        _pooled(f"adaptive_{kind}_pool1d", ((2, 2, 6), (3, 7), (1, 1, 2)), size)
        for kind in ("avg", "max")
        for size in (1, 2, 5)
    ],
    *[
        _pooled(f"adaptive_{kind}_pool2d", ((1, 2, 4, 3), (2, 5, 7), (2, 1, 2, 6), (0, 2, 3, 4)), size)
        for kind in ("avg", "max")
        for size in (1, 2, (3, 1), (None, 2), 7)
    ],
    *[
        _pooled(f"adaptive_{kind}_pool3d", ((1, 2, 2, 4, 3), (2, 3, 5, 4), (0, 1, 2, 2, 2)), size)
        for kind in ("avg", "max")
        for size in (1, 2, (2, None, 3))
    ],
    _pooled("adaptive_max_pool3d", ((1, 2, 2, 4, 3), (2, 3, 5, 4)), (2, 1, 2), return_indices=True),
    *[
        _pooled("max_pool3d", ((1, 2, 3, 4, 5), (2, 4, 5, 4), (0, 2, 3, 4, 5)), *arguments, **options)
        for arguments, options in [
            ((2,), {}),
            ((2, 1), {"return_indices": True}),
            (((2, 3, 2), 2, (1, 1, 0)), {"return_indices": True}),
            (((1, 2, 2), (2, 1, 3)), {"ceil_mode": True, "return_indices": True}),
            ((2, 1, 1), {"dilation": (1, 2, 1), "return_indices": True}),
        ]
    ],
    *[
        Case(
            f"max_pool3d of {kind}",
            lambda L, x: L.nn.functional.max_pool3d(x, 2, 1, return_indices=True),
            ((In((1, 2, 2, 3), values, grad=False),),),
            smooth=False,
        )
        for kind, values in [
            ("ties", ((((1, 0, 1), (1, 1, 0)), ((1, 1, 1), (0, 1, 1))),)),
            ("NaN", ((((NAN, 0, 1), (NAN, 1, 0)), ((1, NAN, 1), (0, NAN, 1))),)),
        ]
    ],
    Case(
        "max_pool3d with ties",
        lambda L, x: L.nn.functional.max_pool3d(x, 2, 1),
        on((2, 3, 4, 3), kind="whole"),
        smooth=False,
    ),
    *[
        _pooled("avg_pool3d", ((1, 2, 3, 4, 5), (2, 4, 5, 4)), *arguments, **options)
        for arguments, options in [
            ((2,), {}),
            (((2, 3, 2), 2, (1, 1, 0)), {}),
            (((2, 3, 2), 1, 1), {"count_include_pad": False}),
            (((2, 3, 2), 2, 1), {"ceil_mode": True, "count_include_pad": True}),
            (((2, 3, 2), 2, 1), {"ceil_mode": True, "count_include_pad": False}),
            ((2, 1, 1), {"divisor_override": 3, "ceil_mode": True}),
        ]
    ],
    _unpooled("max_unpool3d", "max_pool3d", ((1, 2, 2, 4, 6), (2, 4, 2, 6)), (2,)),
    _unpooled("max_unpool3d", "max_pool3d", ((1, 2, 3, 4, 5),), (2, 2), output_size=(3, 4, 5)),
    *[
        _pooled("lp_pool3d", ((1, 2, 3, 4, 5), (2, 4, 5, 4)), p, *arguments, **options)
        for p, arguments, options in [(2, (2,), {}), (1, ((2, 1, 3), 2), {"ceil_mode": True}), (INF, (2,), {})]
    ],
    _pooled("interpolate", ((1, 2, 3, 4, 5),), (2, 3, 4), mode="area"),
    _pooled("adaptive_max_pool1d", ((2, 2, 6), (3, 7)), 4, return_indices=True),
    _pooled("adaptive_max_pool2d", ((1, 2, 4, 3), (2, 5, 7)), (3, 2), return_indices=True),
    *[
        Case(
            f"adaptive_max_pool2d of {what}",
            lambda L, x: L.nn.functional.adaptive_max_pool2d(x, 2, return_indices=True),
            ((In((1, 3, 3), values, grad=False),),),
            smooth=False,
        )
        for what, values in [
            ("ties", (((1, 1, 0), (1, 0, 1), (0, 1, 1)),)),
            ("NaN", (((NAN, NAN, 0), (1, NAN, 1), (0, 1, NAN)),)),
            ("infinities", (((-INF, -INF, -INF), (-INF, -INF, -INF), (0, INF, INF)),)),
        ]
    ],
    _pooled("max_pool2d", ((1, 2, 4, 5), (2, 4, 5)), 2, 1, return_indices=True),
    _pooled("max_pool1d", ((2, 2, 6), (3, 7)), 3, 2, 1, return_indices=True),
    _pooled("avg_pool1d", ((2, 2, 6), (3, 7)), 3, 2, 1, count_include_pad=False),
    _pooled("avg_pool1d", ((2, 2, 6), (3, 7)), 2, ceil_mode=True),
    _unpooled("max_unpool2d", "max_pool2d", ((1, 2, 4, 6), (2, 4, 6)), (2,)),
    _unpooled("max_unpool2d", "max_pool2d", ((1, 2, 4, 6), (2, 4, 6)), ((2, 3), (2, 3), (1, 0))),
    _unpooled("max_unpool2d", "max_pool2d", ((1, 2, 5, 7), (2, 5, 7)), (2, 2), output_size=(5, 7)),
    _unpooled("max_unpool2d", "max_pool2d", ((1, 2, 5, 7),), (2, 2), output_size=(1, 2, 5, 7)),
    _unpooled("max_unpool1d", "max_pool1d", ((1, 2, 6), (2, 7)), (2,)),
    *[
        _pooled(name, shapes, p, *arguments, **options)
        for name, shapes in [("lp_pool1d", ((1, 2, 6), (2, 7))), ("lp_pool2d", ((1, 2, 4, 6), (2, 5, 7)))]
        for p, arguments, options in [
            (2, (2,), {}),
            (1, (3, 2), {}),
            (2.0, (3, 1), {"ceil_mode": True}),
            (4, (2,), {"ceil_mode": True}),
            (INF, (2,), {}),
        ]
    ],
    Case(
        "lp_pool2d of zeros",
        lambda L, x: L.nn.functional.lp_pool2d(x, 2, 2),
        on((1, 2, 4), kind=(((0, 0, 0, 1), (0, 0, 0, 0)),)),
        smooth=False,
    ),
]

PRODUCTS = [
    *[
        Case(
            f"einsum({equation})",
            lambda L, *operands, equation=equation: L.einsum(equation, *operands),
            tuple(tuple(In(shape) for shape in shapes) for shapes in samples),
        )
        for equation, *samples in [
            ("ik,kj->ij", ((2, 3), (3, 4)), ((0, 3), (3, 2)), ((2, 0), (0, 2))),
            ("ik,kj", ((2, 3), (3, 4)), ((2, 1), (3, 4))),
            ("bik,bkj->bij", ((2, 2, 3), (2, 3, 4)), ((1, 2, 3), (2, 3, 4))),
            ("bik,bjk->bji", ((2, 2, 3), (2, 4, 3))),
            ("i,i->", ((3,), (3,))),
            ("i,j->ij", ((3,), (2,))),
            ("ij->ji", ((2, 3),)),
            ("ij->", ((2, 3),)),
            ("ii->i", ((3, 3),)),
            ("ii", ((3, 3),)),
            ("iji->ji", ((2, 3, 2),)),
            ("...ij,...jk->...ik", ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 1, 2, 3), (6, 3, 4))),
            ("...i", ((2, 3),)),
            ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 2))),
            ("bn,anm,bm->ba", ((2, 3), (2, 3, 4), (2, 4))),
            ("nchw,kc->nkhw", ((2, 3, 2, 2), (4, 3))),
            ("ij,ij->i", ((2, 3), (2, 3))),
            (" i j , j -> i ", ((2, 3), (3,))),
            ("ij,kl->jl", ((2, 3), (2, 2))),
        ]
    ],
    Case("einsum(list)", lambda L, a, b: L.einsum("ij,jk", [a, b]), ((In((2, 3)), In((3, 2))),)),
]
FAMILIES = {
    "products": PRODUCTS,
    "windows": WINDOWS,
    "activations": ACTIVATIONS,
    "arithmetic": ARITHMETIC,
    "elementwise": ELEMENTWISE,
    "reductions": REDUCTIONS,
    "shape": SHAPE,
    "losses": LOSSES,
    "normalization": NORMALIZATION,
}


_X = np.ones((2, 3), np.float32)
_I = np.ones((2, 3), np.int64)
_B = np.ones((2, 3), bool)
_IMAGE = np.ones((2, 2, 3), np.float32)
_VOLUME = np.ones((1, 2, 2, 2, 3), np.float32)
_FILTERS = np.ones((2, 1, 2, 2), np.float32)


#: Calls that are refused, the error, and how its message begins.
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gpuconv.einsum("ij,jk", _X), ValueError, "einsum: equation"),
    (lambda: gpuconv.einsum("ij", _X[0]), ValueError, r"einsum: operands\[0\]"),
    (lambda: gpuconv.einsum("ij,ij->i", _X, _X[:, :2]), ValueError, r"einsum: operands\[1\]"),
    (lambda: gpuconv.einsum("ii", _X), ValueError, r"einsum: operands\[0\]"),
    (lambda: gpuconv.einsum("ij->ik", _X), ValueError, "einsum: the result"),
    (lambda: gpuconv.einsum("ij->ii", _X), ValueError, "einsum: the result"),
    (lambda: gpuconv.einsum("i1", _X), ValueError, "einsum: equation"),
    (lambda: gpuconv.einsum(_X, "ij"), TypeError, "einsum: equation"),
    (lambda: gpuconv.einsum("ij,ij", _X, _X.astype(float)), TypeError, r"einsum: operands\[1\]"),
    (lambda: gpuconv.einsum("ij"), ValueError, "einsum: operands"),
    (lambda: gpuconv.tensor(_X).to("gpu"), ValueError, "backend"),
    (lambda: gpuconv.tensor(_X).to(1.5), TypeError, "to: device"),
    (lambda: gpuconv.tensor(_X).to(np.complex64), TypeError, "to: dtype"),
    (lambda: gpuconv.device("cuda:1"), ValueError, "device: name"),
    (lambda: gpuconv.tensor(_X).register_hook(print), RuntimeError, "register_hook: "),
    (lambda: gpuconv.tensor(_I).requires_grad_(), TypeError, "requires_grad_: "),
    (lambda: F.conv_transpose2d(_IMAGE, _X), ValueError, "conv_transpose2d: weight"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS[:1]), ValueError, "conv_transpose2d: weight"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, np.ones(2, np.float32)), ValueError, "conv_transpose2d: bias"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, groups=3), ValueError, "conv_transpose2d: .*groups"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, output_padding=1), ValueError, "conv_transpose2d: output_padding"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, padding=5), ValueError, "conv_transpose2d: padding"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, padding="same"), TypeError, "conv_transpose2d: padding"),
    (lambda: F.conv_transpose2d(_IMAGE, _FILTERS, stride=0), ValueError, "conv_transpose2d: stride"),
    (lambda: F.conv_transpose1d(_X, _X), ValueError, "conv_transpose1d: weight"),
    (lambda: F.conv_transpose1d(_IMAGE[None], _IMAGE), ValueError, "conv_transpose1d: input"),
    (lambda: gpuconv.nn.ConvTranspose2d(2, 2, 3, 2, output_padding=2), ValueError, "ConvTranspose2d: output_padding"),
    (lambda: gpuconv.nn.ConvTranspose2d(2, 3, 3, groups=2), ValueError, "ConvTranspose2d: groups"),
    (lambda: gpuconv.nn.ConvTranspose2d(2, 2, 3, 2)(_IMAGE, (99, 99)), ValueError, "ConvTranspose2d: output_size"),
    (lambda: F.conv3d(_IMAGE, _X), ValueError, "conv3d: weight"),
    (lambda: F.conv3d(_VOLUME, _VOLUME, groups=3), ValueError, "conv3d: weight has 2 input channels"),
    (lambda: F.conv3d(_VOLUME, _VOLUME, np.ones(2, np.float32)), ValueError, "conv3d: bias"),
    (lambda: F.conv3d(_VOLUME, _VOLUME, stride=(1, 2)), ValueError, "conv3d: stride"),
    (lambda: F.conv3d(_VOLUME, _VOLUME, padding="same", stride=2), ValueError, "conv3d: padding='same'"),
    (lambda: F.conv3d(_VOLUME, _VOLUME, padding="some"), ValueError, "conv3d: padding"),
    (lambda: F.conv3d(_VOLUME, np.ones((1, 2, 9, 1, 1), np.float32)), ValueError, "conv3d: weight spans 9x1"),
    (lambda: F.conv_transpose3d(_VOLUME, _VOLUME), ValueError, "conv_transpose3d: weight has 1 input channels"),
    (lambda: F.conv_transpose3d(_VOLUME[0], _VOLUME[0]), ValueError, "conv_transpose3d: weight"),
    (lambda: F.conv_transpose3d(_VOLUME, _VOLUME[0][:, None], padding=3), ValueError, "conv_transpose3d: padding"),
    (lambda: F.max_pool3d(_IMAGE, 2), ValueError, "max_pool3d: input"),
    (lambda: F.max_pool3d(_VOLUME, 2, padding=2), ValueError, "max_pool3d: padding"),
    (lambda: F.max_pool3d(_VOLUME, (2, 2)), ValueError, "max_pool3d: kernel_size"),
    (lambda: F.max_pool3d(_VOLUME, 5), ValueError, "max_pool3d: kernel_size"),
    (lambda: F.avg_pool3d(_VOLUME, 1, divisor_override=0), ValueError, "avg_pool3d: divisor_override"),
    (lambda: gpuconv.nn.MaxPool3d(2, padding=2), ValueError, "MaxPool3d: padding"),
    (lambda: gpuconv.nn.AvgPool3d(2, divisor_override=0), ValueError, "AvgPool3d: divisor_override"),
    (lambda: gpuconv.nn.Conv3d(1, 1, 3, 2, "same"), ValueError, "Conv3d: padding='same'"),
    (lambda: gpuconv.nn.Conv2d(1, 1, 3, padding_mode="mirror"), ValueError, "Conv2d: padding_mode"),
    (lambda: gpuconv.nn.Conv3d(1, 1, (3, 3)), ValueError, "Conv3d: kernel_size"),
    (lambda: F.adaptive_max_pool2d(_IMAGE, 0), ValueError, "adaptive_max_pool2d: output_size"),
    (lambda: F.adaptive_max_pool2d(_IMAGE, (1, 2, 3)), ValueError, "adaptive_max_pool2d: output_size"),
    (lambda: F.adaptive_avg_pool1d(_IMAGE[None], 1), ValueError, "adaptive_avg_pool1d: input"),
    (lambda: F.adaptive_max_pool1d(_X[:, :0], 1), ValueError, "adaptive_max_pool1d: input"),
    (lambda: F.adaptive_max_pool2d(_IMAGE, 1, "no"), TypeError, "adaptive_max_pool2d: return_indices"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE, 2), TypeError, "max_unpool2d: indices"),
    (lambda: F.max_unpool2d(_IMAGE, _I, 2), ValueError, "max_unpool2d: indices"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE.astype(int) + 23, 2), IndexError, "max_unpool2d: indices"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE.astype(int) - 2, 2), IndexError, "max_unpool2d: indices"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE.astype(int), 2, output_size=(4, 8)), ValueError, "max_unpool2d: output_siz"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE.astype(int), 2, output_size=(4,)), ValueError, "max_unpool2d: output_size"),
    (lambda: F.max_unpool2d(_IMAGE, _IMAGE.astype(int), 2, 2, 9), ValueError, "max_unpool2d: .*no elements"),
    (lambda: gpuconv.nn.LPPool2d(2, 0), ValueError, "LPPool2d: kernel_size"),
    (lambda: gpuconv.nn.MaxUnpool2d(2, 0), ValueError, "MaxUnpool2d: stride"),
    (lambda: gpuconv.nn.MaxUnpool1d(2, padding="a"), TypeError, "MaxUnpool1d: padding"),
    (lambda: F.lp_pool2d(_IMAGE, 0, 2), ValueError, "lp_pool2d: norm_type"),
    (lambda: F.lp_pool2d(_IMAGE, "2", 2), TypeError, "lp_pool2d: norm_type"),
    (lambda: F.lp_pool2d(_IMAGE, 2, 5), ValueError, "lp_pool2d: kernel_size"),
    (lambda: F.leaky_relu(_I), TypeError, "leaky_relu: input"),
    (lambda: F.leaky_relu(_X, "0.1"), TypeError, "leaky_relu: negative_slope"),
    (lambda: F.leaky_relu("text"), TypeError, "leaky_relu: input"),
    (lambda: F.leaky_relu(None), TypeError, "leaky_relu: input"),
    (lambda: F.prelu(_X, _X), ValueError, "prelu: weight"),
    (lambda: F.prelu(_X, np.ones(2, np.float32)), ValueError, "prelu: weight"),
    (lambda: F.prelu(_X, np.ones(3)), TypeError, "prelu: weight"),
    (lambda: F.celu(_X, 0), ValueError, "celu: alpha"),
    (lambda: F.elu(_X, None), TypeError, "elu: alpha"),
    (lambda: F.hardtanh(_X, 1, -1), ValueError, "hardtanh: min_val"),
    (lambda: F.gelu(_X, "exact"), ValueError, "gelu: approximate"),
    (lambda: F.softplus(_X, 0), ValueError, "softplus: beta"),
    (lambda: F.softshrink(_X, -1), ValueError, "softshrink: lambd"),
    (lambda: F.softshrink(_X, NAN), ValueError, "softshrink: lambd"),
    (lambda: F.glu(_X), ValueError, "glu: input"),
    (lambda: F.glu(np.float32(1)), ValueError, "glu: input"),
    (lambda: F.glu(_X, 2), IndexError, "glu: dim"),
    (lambda: F.softmin(_X, 2), IndexError, "softmin: dim"),
    (lambda: F.softmin(_X, 0.5), TypeError, "softmin: dim"),
    (lambda: F.dropout2d(_X), ValueError, "dropout2d: input"),
    (lambda: F.dropout1d(_X, 1.5), ValueError, "dropout1d: p"),
    (lambda: F.dropout1d(_X, "a"), TypeError, "dropout1d: p"),
    (lambda: F.dropout3d(_X), ValueError, "dropout3d: input"),
    (lambda: F.alpha_dropout(_X, NAN), ValueError, "alpha_dropout: p"),
    (lambda: F.alpha_dropout(_X, 0.5, True, generator=1), TypeError, "alpha_dropout: generator"),
    (lambda: F.feature_alpha_dropout(_X[0], training=True), ValueError, "feature_alpha_dropout: input"),
    (lambda: gpuconv.nn.Dropout2d(2), ValueError, "Dropout2d: p"),
    (lambda: gpuconv.nn.PReLU(0), ValueError, "PReLU: num_parameters"),
    (lambda: gpuconv.nn.Softmax2d()(_X), ValueError, "Softmax2d: input"),
    (lambda: gpuconv.abs("a"), TypeError, "abs: input"),
    (lambda: gpuconv.neg(_B), TypeError, "neg: input"),
    (lambda: gpuconv.round(_X, decimals=0.5), TypeError, "round: decimals"),
    (lambda: gpuconv.clamp(_X), ValueError, "clamp: min or max"),
    (lambda: gpuconv.clamp(_X, "a"), TypeError, "clamp: min"),
    (lambda: gpuconv.maximum(_X, "a"), TypeError, "maximum: other"),
    (lambda: gpuconv.where(_X, 1, 2), TypeError, "where: condition"),
    (lambda: gpuconv.where(_B, "a", 2), TypeError, "where: input"),
    (lambda: gpuconv.masked_fill(_X, _X, 1), TypeError, "masked_fill: mask"),
    (lambda: gpuconv.masked_fill(_I, _B, 0.5), TypeError, "masked_fill: value"),
    (lambda: gpuconv.masked_fill(_X, _B, _X), ValueError, "masked_fill: value"),
    (lambda: gpuconv.max(_X, 2), IndexError, "max: dim"),
    (lambda: gpuconv.max(_X[:0]), ValueError, "max: input"),
    (lambda: gpuconv.max(_X[:0], 0), ValueError, "max: input"),
    (lambda: gpuconv.max(_X, keepdim=True), TypeError, "max: keepdim"),
    (lambda: gpuconv.amin(_X, (0, 0)), ValueError, "amin: dim"),
    (lambda: gpuconv.amin(_X, (0, 5)), IndexError, "amin: dim"),
    (lambda: gpuconv.amax(_X[:0], 0), ValueError, "amax: input"),
    (lambda: gpuconv.argmax(_X[:0]), ValueError, "argmax: input"),
    (lambda: gpuconv.argmax(_X, "a"), TypeError, "argmax: dim"),
    (lambda: gpuconv.var(_I), TypeError, "var: input"),
    (lambda: gpuconv.std(_X, 0, correction="a"), TypeError, "std: correction"),
    (lambda: gpuconv.std(_X, 0, None), TypeError, "std: unbiased"),
    (lambda: gpuconv.prod(_X, (0, 1)), TypeError, "prod: dim"),
    (lambda: gpuconv.cumsum(_X, 3), IndexError, "cumsum: dim"),
    (lambda: gpuconv.logsumexp(_X, 3), IndexError, "logsumexp: dim"),
    (lambda: gpuconv.norm(_X, "nuc"), ValueError, "norm: p"),
    (lambda: gpuconv.norm(_X, None), TypeError, "norm: p"),
    (lambda: gpuconv.norm(_I), TypeError, "norm: input"),
    (lambda: gpuconv.any(_X, 4), IndexError, "any: dim"),
    (lambda: gpuconv.cat([]), ValueError, "cat: tensors"),
    (lambda: gpuconv.cat(1), TypeError, "cat: tensors"),
    (lambda: gpuconv.cat([_X, _X[0]]), ValueError, r"cat: tensors\[1\]"),
    (lambda: gpuconv.cat([_X, _X[:, :1]]), ValueError, r"cat: tensors\[1\]"),
    (lambda: gpuconv.cat([np.float32(1)]), ValueError, r"cat: tensors\[0\]"),
    (lambda: gpuconv.cat([_X, "a"]), TypeError, r"cat: tensors\[1\]"),
    (lambda: gpuconv.cat([_X, _X], 2), IndexError, "cat: dim"),
    (lambda: gpuconv.stack([_X, _X[:1]]), ValueError, r"stack: tensors\[1\]"),
    (lambda: gpuconv.split(_X, [1, 2]), ValueError, "split: split_size_or_sections"),
    (lambda: gpuconv.split(_X, 0), ValueError, "split: split_size_or_sections"),
    (lambda: gpuconv.split(_X, 1.5), TypeError, "split: split_size_or_sections"),
    (lambda: gpuconv.chunk(_X, 0), ValueError, "chunk: chunks"),
    (lambda: gpuconv.unbind(np.float32(1)), ValueError, "unbind: input"),
    (lambda: gpuconv.squeeze(_X, 2), IndexError, "squeeze: dim"),
    (lambda: gpuconv.squeeze(_X, (0, 0)), ValueError, "squeeze: dim"),
    (lambda: gpuconv.unsqueeze(_X, 4), IndexError, "unsqueeze: dim"),
    (lambda: gpuconv.transpose(_X, 0, 2), IndexError, "transpose: dim1"),
    (lambda: gpuconv.t(_X[None]), ValueError, "t: input"),
    (lambda: gpuconv.movedim(_X, 0, (0, 1)), ValueError, "movedim: destination"),
    (lambda: gpuconv.tensor(_X).view(np.float64), TypeError, "view: shape"),
    (lambda: gpuconv.tensor(_X).expand(3, 3), ValueError, "expand: sizes"),
    (lambda: gpuconv.tensor(_X).expand(3), ValueError, "expand: sizes"),
    (lambda: gpuconv.tensor(_X).expand(-1, 2, 3), ValueError, "expand: sizes"),
    (lambda: gpuconv.tensor(_X).repeat(2), ValueError, "repeat: sizes"),
    (lambda: gpuconv.tensor(_X).repeat(-1, 2), ValueError, "repeat: sizes"),
    (lambda: gpuconv.flip(_X, (0, 0)), ValueError, "flip: dims"),
    (lambda: gpuconv.narrow(_X, 1, 2, 2), ValueError, "narrow: start"),
    (lambda: gpuconv.narrow(_X, 1, 0, -1), ValueError, "narrow: length"),
    (lambda: gpuconv.select(_X, 0, 2), IndexError, "select: index"),
    (lambda: gpuconv.index_select(_X, 0, [2]), IndexError, "index_select: index"),
    (lambda: gpuconv.index_select(_X, 0, [-1]), IndexError, "index_select: index"),
    (lambda: gpuconv.index_select(_X, 0, [0.5]), TypeError, "index_select: index"),
    (lambda: gpuconv.index_select(_X, 0, [[0]]), ValueError, "index_select: index"),
    (lambda: gpuconv.gather(_X, 0, [0]), ValueError, "gather: index"),
    (lambda: gpuconv.gather(_X, 0, [[0, 0, 0, 0]]), ValueError, "gather: index"),
    (lambda: gpuconv.gather(_X, 1, [[3]]), IndexError, "gather: index"),
    (lambda: gpuconv.scatter(_X, 0, [[0, 0, 0, 0]], _X), ValueError, "scatter: index"),
    (lambda: gpuconv.scatter(_X, 1, [[0, 0]], _X[:, :1]), ValueError, "and src of shape"),
    (lambda: gpuconv.scatter(_X, 1, [[3]], 1.0), IndexError, "scatter: index"),
    (lambda: gpuconv.scatter(_X, 1, [[0]]), TypeError, "scatter: give src or value"),
    (lambda: gpuconv.scatter(_X, 1, [[0]], _X.astype(np.float64)), TypeError, "scatter: src"),
    (lambda: gpuconv.scatter_add(_X, 1, [[0]], 1.0), TypeError, "scatter_add: src"),
    (lambda: F.one_hot(_X), TypeError, "one_hot: tensor"),
    (lambda: F.one_hot([1, 2], 2), ValueError, "one_hot: tensor"),
    (lambda: F.one_hot(np.zeros(0, np.int64)), ValueError, "one_hot: num_classes"),
    (lambda: F.pad(_X, (1,)), ValueError, "pad: pad"),
    (lambda: F.pad(_X, 1), TypeError, "pad: pad"),
    (lambda: F.pad(_X, (1, 0.5)), TypeError, "pad: pad"),
    (lambda: F.pad(_X, (1, 1) * 3), ValueError, "pad: pad"),
    (lambda: F.pad(_X, (-2, -2)), ValueError, "pad: pad"),
    (lambda: F.pad(_X, (1, 1), "zeros"), ValueError, "pad: mode"),
    (lambda: F.pad(_X, (3, 0), "reflect"), ValueError, "pad: pad"),
    (lambda: F.pad(_X, (4, 0), "circular"), ValueError, "pad: pad"),
    (lambda: F.pad(_X, (1, 1, 1, 1), "replicate"), ValueError, "pad: pad"),
    (lambda: F.pad(_X, (1, 1), "reflect", 1.0), ValueError, "pad: value"),
    (lambda: F.pad(_I, (1, 1), value=0.5), TypeError, "pad: value"),
    (lambda: F.unfold(_X, 2), ValueError, "unfold: input"),
    (lambda: F.unfold(_X[None], 4), ValueError, "unfold: kernel_size"),
    (lambda: F.fold(_X, 4, 2), ValueError, "fold: input"),
    (lambda: F.pixel_shuffle(_X, 2), ValueError, "pixel_shuffle: input"),
    (lambda: F.pixel_unshuffle(_X[None], 2), ValueError, "pixel_unshuffle: input"),
    (lambda: F.pixel_shuffle(_X[None], 0), ValueError, "pixel_shuffle: upscale_factor"),
    (lambda: F.channel_shuffle(_X[None], 3), ValueError, "channel_shuffle: groups"),
    (lambda: F.interpolate(_X[None]), ValueError, "interpolate: size"),
    (lambda: F.grid_sample(_X, _X), ValueError, "grid_sample: input and grid"),
    (lambda: F.grid_sample(_X[None, None], _X[None, None]), ValueError, "grid_sample: input and grid"),
    (lambda: F.grid_sample(_X[None, None], np.zeros((1, 1, 1, 2))), TypeError, "grid_sample: grid is float64"),
    (lambda: F.grid_sample(_X[None, None, :0], np.zeros((1, 1, 1, 2), np.float32)), ValueError, "no elements to read"),
    (lambda: F.grid_sample(_X[None, None], np.zeros((1, 1, 1, 2), np.float32), "linear"), ValueError, "'bilinear'"),
    (lambda: F.affine_grid(_X[None], (1, 1, 2)), ValueError, "affine_grid: theta"),
    (lambda: F.affine_grid(_X[None], (1, 1, 0, 2)), ValueError, "affine_grid: size"),
    (lambda: F.interpolate(_X[None], 2, 2), ValueError, "interpolate: size"),
    (lambda: F.interpolate(_X[None], 0), ValueError, "interpolate: size"),
    (lambda: F.interpolate(_X[None], (2, 2)), ValueError, "interpolate: size"),
    (lambda: F.interpolate(_X[None], scale_factor=0.1), ValueError, "interpolate: scale_factor"),
    (lambda: F.interpolate(_X[None], scale_factor=-1), ValueError, "interpolate: scale_factor"),
    (lambda: F.interpolate(_X[None], 2, mode="cubic"), ValueError, "interpolate: mode"),
    (lambda: F.interpolate(_X[None], 2, mode="bilinear"), ValueError, "interpolate: input"),
    (lambda: F.interpolate(_X[None], 2, align_corners=True), ValueError, "interpolate: align_corners"),
    (lambda: F.interpolate(_X[None], 2, antialias=True), ValueError, "interpolate: antialias"),
    (lambda: gpuconv.mm(_X, _X), ValueError, "mm: mat2"),
    (lambda: gpuconv.bmm(_X, _X), ValueError, "bmm: input"),
    (lambda: gpuconv.mm(_X, np.ones((3, 2))), TypeError, "mm: mat2"),
    (lambda: gpuconv.addmm(np.ones(3, np.float32), _X, _X.T), ValueError, "addmm: input"),
    (lambda: gpuconv.zeros(-1), ValueError, "zeros: size"),
    (lambda: gpuconv.zeros(1.5), TypeError, "zeros: size"),
    (lambda: gpuconv.arange(0, 5, 0), ValueError, "arange: step"),
    (lambda: gpuconv.arange(0, 5, -1), ValueError, "arange: step"),
    (lambda: gpuconv.linspace(0, 1, -1), ValueError, "linspace: steps"),
    (lambda: gpuconv.randint(3, 1, (2,)), ValueError, "randint: low"),
    (lambda: gpuconv.randn(2, generator=0), TypeError, "randn: generator"),
    (lambda: gpuconv.from_numpy([1]), TypeError, "from_numpy: ndarray"),
    (lambda: gpuconv.tensor([1], requires_grad=True), TypeError, "requires_grad"),
    (lambda: F.l1_loss(_X, _X[:1]), ValueError, "l1_loss: target"),
    (lambda: F.l1_loss(_X, _X, "average"), ValueError, "l1_loss: reduction"),
    (lambda: F.l1_loss(_X, _X.astype(float)), TypeError, "l1_loss: target"),
    (lambda: F.smooth_l1_loss(_X, _X, beta=-1), ValueError, "smooth_l1_loss: beta"),
    (lambda: F.huber_loss(_X, _X, delta=0), ValueError, "huber_loss: delta"),
    (lambda: F.nll_loss(_X, [0, 3]), ValueError, "nll_loss: target"),
    (lambda: F.nll_loss(_X, [0]), ValueError, "nll_loss: target"),
    (lambda: F.nll_loss(_X, [0.5, 1]), TypeError, "nll_loss: target"),
    (lambda: F.nll_loss(_X, [0, 1], _X[0, :2]), ValueError, "nll_loss: weight"),
    (lambda: F.binary_cross_entropy(_X * 2, _X), ValueError, "binary_cross_entropy: input"),
    (lambda: F.binary_cross_entropy(_X * NAN, _X), ValueError, "binary_cross_entropy: input"),
    (lambda: F.binary_cross_entropy(_X, _X, _X[:, :2]), ValueError, "binary_cross_entropy: weight"),
    (
        lambda: F.binary_cross_entropy_with_logits(_X, _X, pos_weight=_X[:, :2]),
        ValueError,
        "binary_cross_entropy_with_logits: pos_weight",
    ),
    (lambda: F.kl_div(_X, _X, "average"), ValueError, "kl_div: reduction"),
    (lambda: F.gaussian_nll_loss(_X, _X, -_X), ValueError, "gaussian_nll_loss: var"),
    (lambda: F.gaussian_nll_loss(_X, _X, _X[0]), ValueError, "gaussian_nll_loss: var"),
    (lambda: F.gaussian_nll_loss(_X, _X[:, :2], _X), ValueError, "gaussian_nll_loss: target"),
    (lambda: gpuconv.bitwise_and(_X, _X), TypeError, "bitwise_and: input"),
    (lambda: gpuconv.eq("a", _X), TypeError, "eq: input"),
    (lambda: gpuconv.topk(_X, 4), ValueError, "topk: k"),
    (lambda: gpuconv.sort(_X, 2), IndexError, "sort: dim"),
    (lambda: gpuconv.roll(_X, (1, 2), 0), ValueError, "roll: shifts"),
    (lambda: gpuconv.tril(_X[0]), ValueError, "tril: input"),
    (lambda: gpuconv.unflatten(_X, 1, (2, -1)), ValueError, "unflatten: sizes"),
    (lambda: gpuconv.Tensor(_X).unfold(1, 4, 1), ValueError, "unfold: size"),
    (lambda: gpuconv.Tensor(_X).unfold(1, 2, 0), ValueError, "unfold: step"),
    (lambda: gpuconv.outer(_X, _X[0]), ValueError, "outer: input"),
    (lambda: gpuconv.dot(_X[0], _X[:, 0]), ValueError, "dot: tensor"),
    (lambda: gpuconv.mv(_X, _X[:, 0]), ValueError, "mv: vec"),
    (lambda: F.softmin(_X, 0, dtype=int), TypeError, "softmin: dtype"),
    (lambda: gpuconv.div(_X, 2, rounding_mode="round"), ValueError, "div: rounding_mode"),
    (lambda: gpuconv.div(_B, _B, rounding_mode="floor"), TypeError, "div: a and b"),
    (lambda: gpuconv.floor_divide(_I, 0), ZeroDivisionError, "floor_divide: b"),
    (lambda: gpuconv.remainder(_I, _I * 0), ZeroDivisionError, "remainder: b"),
    (lambda: gpuconv.pow(_I, -1), ValueError, "pow: exponent"),
    (lambda: gpuconv.pow(_B, _B), TypeError, "pow: a and exponent"),
    (lambda: gpuconv.mean(_X, dtype=int), TypeError, "mean: dtype"),
    (lambda: gpuconv.sum(_X, dtype="complex64"), TypeError, "sum: dtype"),
    (lambda: gpuconv.cumsum(_X, 0, dtype=3), TypeError, "cumsum: dtype"),
    (lambda: gpuconv.flip(_X, 0, dims=(1,)), TypeError, "flip: dims"),
    (lambda: gpuconv.index_select(_X.sum(), 0, [0, 0]), ValueError, "index_select: index"),
    (lambda: F.gaussian_nll_loss(_X, _X, _X, eps=0), ValueError, "gaussian_nll_loss: eps"),
    (lambda: F.cosine_similarity(_X, _X[:, :2]), ValueError, "cosine_similarity: x2"),
    (lambda: F.cosine_similarity(_X, _X, 2), IndexError, "cosine_similarity: dim"),
    (lambda: F.triplet_margin_loss(_X, _X, _X, 0), ValueError, "triplet_margin_loss: margin"),
    (lambda: F.margin_ranking_loss(_X, _X[:1], _X), ValueError, "margin_ranking_loss: input2"),
    (lambda: F.cosine_embedding_loss(_X, _X, _X), ValueError, "cosine_embedding_loss: target"),
    (lambda: F.batch_norm(_X, None, None), ValueError, "batch_norm: running_mean"),
    (lambda: F.batch_norm(_X[0], None, None, training=True), ValueError, "batch_norm: input"),
    (lambda: F.batch_norm(_X[:1], None, None, training=True), ValueError, "batch_norm: input"),
    (lambda: F.batch_norm(_X, _X[0], _X[0], _X), ValueError, "batch_norm: weight"),
    (lambda: F.batch_norm(_X, _X[0, :2], _X[0]), ValueError, "batch_norm: running_mean"),
    (lambda: F.batch_norm(_X, np.ones(3), _X[0]), TypeError, "batch_norm: running_mean"),
    (lambda: F.batch_norm(_X, _X[0], _X[0], eps=-1), ValueError, "batch_norm: eps"),
    (lambda: F.batch_norm(_I, None, None, training=True), TypeError, "batch_norm: input"),
    (lambda: F.instance_norm(_X), ValueError, "instance_norm: input"),
    (lambda: F.layer_norm(_X, 2), ValueError, "layer_norm: input"),
    (lambda: F.layer_norm(_X, 3, _X), ValueError, "layer_norm: weight"),
    (lambda: F.rms_norm(_X, "a"), TypeError, "rms_norm: normalized_shape"),
    (lambda: F.group_norm(_X, 2), ValueError, "group_norm: num_groups"),
    (lambda: F.local_response_norm(_X, 2), ValueError, "local_response_norm: input"),
    (lambda: F.local_response_norm(_X[None], 0), ValueError, "local_response_norm: size"),
    (lambda: F.normalize(_X, dim=2), IndexError, "normalize: dim"),
    (lambda: gpuconv.nn.BatchNorm2d(3)(_X), ValueError, "BatchNorm2d: input"),
    (lambda: gpuconv.nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features"),
    (lambda: gpuconv.nn.GroupNorm(2, 3), ValueError, "GroupNorm: num_groups"),
    (lambda: gpuconv.nn.L1Loss("average"), ValueError, "L1Loss: reduction"),
    (lambda: gpuconv.nn.ReLU().zero_grad(set_to_none=False), TypeError, "zero_grad: set_to_none"),
    (lambda: gpuconv.nn.ReLU().register_buffer("a.b", None), ValueError, "ReLU: register_buffer: name"),
    (lambda: gpuconv.nn.ReLU().register_buffer("forward", None), ValueError, "ReLU: register_buffer: name"),
    (lambda: gpuconv.nn.ReLU().register_buffer("a", 1), TypeError, "ReLU: buffer a"),
    (lambda: gpuconv.nn.ReLU().add_module("a", 1), TypeError, "ReLU: add_module: module"),
    (lambda: gpuconv.nn.ReLU().register_parameter("a", 1), TypeError, "ReLU: register_parameter: param"),
    (lambda: gpuconv.nn.ZeroPad2d((1, 2)), ValueError, "ZeroPad2d: padding"),
    (lambda: gpuconv.nn.ZeroPad2d("ab"), ValueError, "ZeroPad2d: padding"),
    (lambda: gpuconv.nn.PixelShuffle(0), ValueError, "PixelShuffle: upscale_factor"),
    (lambda: gpuconv.nn.Unflatten(1, 2), TypeError, "Unflatten: unflattened_size"),
    (lambda: gpuconv.nn.Unflatten(1, (2, 2))(_X), ValueError, "unflatten: sizes"),
    (lambda: gpuconv.nn.Unflatten(2, (2, 2))(_X), IndexError, "unflatten: dim"),
    (lambda: gpuconv.nn.ModuleList([1]), TypeError, "ModuleList: element 0"),
    (lambda: gpuconv.nn.ModuleList()[0], IndexError, "ModuleList: index"),
    (lambda: gpuconv.nn.ModuleDict({"a": 1}), TypeError, "ModuleDict: element 'a'"),
    (lambda: gpuconv.nn.ModuleDict([(1, gpuconv.nn.ReLU())]), TypeError, "ModuleDict: keys"),
    (lambda: gpuconv.nn.Sequential().append(1), TypeError, "Sequential: module 0"),
    (lambda: gpuconv.nn.Sequential().insert(2, gpuconv.nn.ReLU()), IndexError, "Sequential: insert: index"),
    (lambda: gpuconv.nn.utils.clip_grad_norm_([1], 1), TypeError, "clip_grad_norm_: parameters"),
    (lambda: gpuconv.nn.utils.clip_grad_norm_([], "a"), TypeError, "clip_grad_norm_: max_norm"),
    (lambda: gpuconv.nn.utils.clip_grad_value_(3, 1), TypeError, "clip_grad_value_: parameters"),
    (lambda: gpuconv.nn.utils.parameters_to_vector([]), ValueError, "parameters_to_vector: parameters"),
    (lambda: gpuconv.nn.utils.vector_to_parameters(_X, []), ValueError, "vector_to_parameters: vec"),
]

#: Losses: name, arguments, keywords, kinds of inputs.
LOSSES: list[tuple[str, dict[str, Any], str]] = [
    ("L1Loss", {}, "rr"),
    ("SmoothL1Loss", {"beta": 0.5}, "rr"),
    ("HuberLoss", {"reduction": "sum", "delta": 0.5}, "rr"),
    ("NLLLoss", {"weight": "weight", "ignore_index": 1}, "ri"),
    ("BCELoss", {"reduction": "none"}, "uu"),
    ("BCELoss", {"weight": "weight"}, "uu"),
    ("BCEWithLogitsLoss", {"weight": "weight", "pos_weight": "weight"}, "ru"),
    ("KLDivLoss", {"reduction": "batchmean"}, "ru"),
    ("KLDivLoss", {"reduction": "sum", "log_target": True}, "rr"),
    ("PoissonNLLLoss", {"full": True}, "uu"),
    ("GaussianNLLLoss", {"full": True}, "rru"),
    ("MarginRankingLoss", {"margin": 0.3}, "rrs"),
    ("HingeEmbeddingLoss", {"margin": 0.3}, "rs"),
    ("SoftMarginLoss", {}, "rs"),
    ("CosineEmbeddingLoss", {"margin": 0.1}, "rrl"),
    ("TripletMarginLoss", {"p": 1.0, "swap": True}, "rrr"),
    ("CosineSimilarity", {"dim": 0}, "rr"),
    ("PairwiseDistance", {"p": 1.0, "keepdim": True}, "rr"),
]
