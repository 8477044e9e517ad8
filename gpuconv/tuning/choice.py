"""Chooses the kernel variant and tiling that run an operation. The first of these that applies decides:

1. The user: an argument, :func:`use_variant`, or the environment variable ``GPUCONV_VARIANTS``
   (``conv2d=direct,conv2d_grad_input=tiled``), in this order. Where TF32 is allowed, a convolution that fills the tiles
   of tensor cores runs there, rounded to it.
2. What ``gpuconv tune`` has measured, in :mod:`gpuconv.tuning.store`. It holds for one geometry on one model of GPU.
3. What was measured on another GPU of the same compute capability, and ships with the package where it beats the rule.
4. The rule, :data:`RULES`. It lists the variants of an operation in the order in which they are tried, each with a
   condition and the reason for it. The first variant whose condition holds and that supports the geometry is taken,
   with its first tiling. ``python -m bench.rules`` shows how far it is from the fastest that was measured.

For a fused operation the last variant is :data:`COMPOSED`: it has no kernel of its own, and runs the kernels of its
parts one after the other. It can be asked for like any other.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from gpuconv import kernels
from gpuconv.geometry import BlockGeometry, BlockPairGeometry, ChainGeometry, Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.kernels.operations import HALF_TYPES
from gpuconv.names import did_you_mean
from gpuconv.tuning import store
from gpuconv.tuning.store import Platform

#: Asks for variants: ``conv2d=tiled,max_pool2d=direct``.
ENVIRONMENT_VARIABLE = "GPUCONV_VARIANTS"
#: The variant of a fused operation that runs its parts one after the other.
COMPOSED = "composed"

#: The variant of convolutions that can compute in TF32, and on half types as they are.
TENSOR_CORE = "tensor_core"

_NOTHING: Mapping[str, tuple[str, Any]] = {}
_chosen: ContextVar[Mapping[str, tuple[str, Any]]] = ContextVar("gpuconv_variants")
_tf32: ContextVar[bool] = ContextVar("gpuconv_allow_tf32", default=False)


@dataclass(frozen=True)
class Rule:
    """When to take a variant.

    Attributes:
        variant: its name in ``kernels.VARIANTS``, or ``COMPOSED``.
        when: whether it suits a geometry and a dtype; of a half type, one that :func:`computed_in` leaves as it is.
        reason: the condition in words, and why.
    """

    variant: str
    when: Callable[[Any, str], bool]
    reason: str


@dataclass(frozen=True)
class Choice:
    """The variant that will run, and why.

    Attributes:
        operation, variant, tiling: what runs.
        source: 'argument', 'use_variant', 'environment', 'allow_tf32', 'store', 'default' (ships with the package) or
            'rule'.
        reason: why.
    """

    operation: str
    variant: str
    tiling: Any
    source: str
    reason: str


def _always(geometry: Any, dtype: str) -> bool:
    return True


def _reduction(g: Conv2dGeometry) -> int:
    return g.c // g.groups * g.r * g.s


def _one_channel_a_filter(g: Conv2dGeometry, dtype: str) -> bool:
    return g.groups == g.c > 1


def _fills_a_gemm(g: Conv2dGeometry, dtype: str) -> bool:
    # Images of a pixel are rows of a fully connected layer: one thread an output would read each weight by itself.
    positions = g.n * g.p * g.q >= 1024 or (g.h * g.w == 1 and g.n >= 16)
    return dtype == "float32" and g.groups == 1 and g.k >= 32 and _reduction(g) >= 64 and positions


def _fills_a_weight_gemm(g: Conv2dGeometry, dtype: str) -> bool:
    return g.k // g.groups >= 16 and _reduction(g) >= 64


def _gradient_fills_a_gemm(g: Conv2dGeometry, dtype: str) -> bool:
    # Of a strided convolution each phase is a product, of its share of the taps and of the positions.
    phases = g.stride[0] * g.stride[1]
    products, positions = g.k * g.r * g.s // min(phases, g.r * g.s), g.n * g.h * g.w // phases
    alike = dtype == "float32" and g.groups == 1 and phases <= 4
    return alike and g.c >= 32 and products >= 64 and positions >= 1024


def _never(geometry: Any, dtype: str) -> bool:
    return False


def _is_half(geometry: Any, dtype: str) -> bool:
    return dtype in HALF_TYPES


def _reuses_a_halo(g: Conv2dGeometry, dtype: str) -> bool:
    return g.r * g.s > 1 and g.p * g.q >= 16


def _serves_several_channels(g: Conv2dGeometry, dtype: str) -> bool:
    channels = g.c // g.groups
    return g.p * g.q >= 16 and channels > 1 and (g.r * g.s > 1 or (channels >= 32 and g.stride == (1, 1)))


def _is_small(g: BlockGeometry, dtype: str) -> bool:
    return not _fills_a_gemm(g.conv, dtype)


def _few_images(g: BlockPairGeometry, dtype: str) -> bool:
    return 16 <= g.first.conv.n <= 264 and all(_is_small(block, dtype) for block in g)


def _few_rows(g: ChainGeometry, dtype: str) -> bool:
    return g.n <= 512 and sum(first * second for first, second in pairwise(g.sizes)) <= 2**17


def _is_short(g: ChainGeometry, dtype: str) -> bool:
    first = g.sizes[0] * g.sizes[1]
    return 16 <= g.n <= 80 and len(g.relu) > 1 and first >= 2**14 and _few_rows(g, dtype)


#: Where TF32 is allowed, and of half types, when tensor cores are worth it.
_ON_TENSOR_CORES: dict[str, Callable[[Any, str], bool]] = {
    "conv2d": _fills_a_gemm,
    "conv2d_grad_input": _gradient_fills_a_gemm,
    "conv2d_grad_weight": _fills_a_weight_gemm,
}
_HALF_OR_ON_REQUEST = Rule(
    TENSOR_CORE,
    _is_half,
    "float16 and bfloat16 that fill the tiles of a matrix product: half of the bytes, and no copies in float32. "
    "Float32 on request, or where that was measured to be fastest. No GPU has timed it yet",
)

_FEW_ROWS = (
    "at most 512 rows, and 131,072 weights, which each block reads: one launch instead of one or two for each layer; "
    "for more, cuBLAS reads them less often"
)
_COMPOSED = Rule(COMPOSED, _always, "one kernel for each part: they support everything")
_OF_PARTS = (
    Rule(
        "one_launch",
        _always,
        "in a captured step: adds up the gradients of convolutions itself, a launch less; no GPU has timed it yet",
    ),
    _COMPOSED,
)

#: operation -> what is tried, in this order. An operation that is not listed takes its first variant in the table.
RULES: dict[str, tuple[Rule, ...]] = {
    "conv2d": (
        Rule("depthwise", _one_channel_a_filter, "each filter sees one channel: bound by memory, nothing to share"),
        Rule(
            "implicit_gemm",
            _fills_a_gemm,
            "float32, at least 32 filters, 64 products a sum and 1,024 positions, or 16 images of one pixel: fills the "
            "tiles of a matrix product",
        ),
        Rule("tiled", _reuses_a_halo, "windows of neighbouring outputs overlap: read once into shared memory"),
        _HALF_OR_ON_REQUEST,
        Rule("direct", _always, "supports everything"),
    ),
    "conv2d_grad_input": (
        Rule(
            "implicit_gemm",
            _gradient_fills_a_gemm,
            "float32, strides of at most 4 together, at least 32 channels, and in each of a stride's phases "
            "64 products a sum and 1,024 positions: as forward",
        ),
        Rule(
            "tiled",
            _serves_several_channels,
            "a gradient that is read once into shared memory serves several channels, and the windows that overlap; "
            "by a 1x1 window, at least 32 channels",
        ),
        _HALF_OR_ON_REQUEST,
        Rule("direct", _always, "supports everything"),
    ),
    "conv2d_grad_weight": (
        Rule(
            "implicit_gemm",
            _fills_a_weight_gemm,
            "at least 16 filters, and 64 weights in each: fills the tiles of a matrix product",
        ),
        _HALF_OR_ON_REQUEST,
        Rule("direct", _always, "supports everything"),
    ),
    "conv2d_relu_max_pool2d": (
        Rule("fused", _is_small, "too small for a matrix product's tiles: saves writing and reading the unpooled maps"),
        _COMPOSED,
    ),
    "conv2d_relu_max_pool2d_grad_input": (
        Rule("gathered", _is_small, "as forward: saves writing and reading the gradient of the unpooled maps"),
        _COMPOSED,
    ),
    "conv2d_relu_max_pool2d_grad_weight": (
        Rule("sparse", _is_small, "as forward; visits the winners alone, and sums weight and bias in one pass"),
        _COMPOSED,
    ),
    "conv2d_relu_max_pool2d_pair": (
        Rule(
            "image",
            _few_images,
            "16 to 264 images, of which each with its maps and the weights fits into shared memory: one launch instead "
            "of two, and more threads; no GPU has timed it yet",
        ),
        _COMPOSED,
    ),
    "linear_chain": (
        Rule(
            "split",
            _is_short,
            "16 to 80 rows, and at least 16,384 weights in the first of several layers: blocks that each read all of "
            "them wait longest for that; no GPU has timed it yet",
        ),
        Rule("rows", _few_rows, _FEW_ROWS),
        _COMPOSED,
    ),
    "linear_chain_grad_input": (Rule("rows", _few_rows, _FEW_ROWS), _COMPOSED),
    "linear_chain_loss_grad_input": (
        Rule(
            "recomputed",
            _is_short,
            "as forward: what is behind the first layer is computed again, and waits for no logits and no loss; no GPU "
            "has timed it yet",
        ),
        _COMPOSED,
    ),
    "linear_chain_grad_weight": (Rule("tiled", _few_rows, _FEW_ROWS), _COMPOSED),
    "sgd_update_all_of_parts": _OF_PARTS,
    "adam_update_all_of_parts": _OF_PARTS,
    "softmax_cross_entropy_mean": (
        Rule("one_block", _always, "few logits: losses, their mean and its gradient in one launch instead of several"),
        _COMPOSED,
    ),
}


def _names(operation: str) -> tuple[str, ...]:
    """The variants that may be asked for."""
    composed = (COMPOSED,) if any(rule.variant == COMPOSED for rule in RULES.get(operation, ())) else ()
    return (*kernels.VARIANTS.get(operation, ()), *composed)


def _supports(operation: str, variant: str, geometry: Any, dtype: str, platform: Platform | None) -> Any:
    """True, or a Refusal."""
    capability = None if platform is None else platform.compute_capability
    return variant == COMPOSED or kernels.load(operation, variant).supports(geometry, dtype, capability)


def _first_tiling(operation: str, variant: str, geometry: Any) -> Any:
    if variant == COMPOSED:
        return None
    first = kernels.load(operation, variant).tilings(geometry)[0]
    return replace(first, products=1) if variant == TENSOR_CORE and _tf32.get() else first


def _rules(operation: str) -> tuple[Rule, ...]:
    listed = RULES.get(operation, ())
    rest = [variant for variant in kernels.VARIANTS[operation] if variant not in {rule.variant for rule in listed}]
    # A variant without a rule comes last: it is taken on request, or if nothing else supports the geometry.
    reason = "no rule speaks of it" if listed else "the only one" if len(rest) == 1 else "the first of the table"
    return (*listed, *(Rule(variant, _always, reason) for variant in rest))


def _checked(operation: str, variant: str, source: str) -> str:
    """The variant, if it is in the table or is the composition of a fused operation.

    Raises:
        ValueError: it is neither; the nearest name is suggested.
    """
    for value, known, what in (
        (operation, tuple(kernels.VARIANTS), "operation"),
        (variant, _names(operation), f"variant of {operation}"),
    ):
        if value not in known:
            there_are = f"there are {', '.join(known)}{did_you_mean(value, known)}"
            raise ValueError(f"{source}: unknown {what} {value!r}; {there_are}")
    return variant


@contextmanager
def use_variant(operation: str, variant: str, tiling: Any = None) -> Iterator[None]:
    """Run ``operation`` with ``variant`` (and ``tiling``) inside a ``with`` block, in this thread or task only.

    Raises:
        ValueError: no such operation or variant; or, at the launch, it does not support the geometry.
    """
    _checked(operation, variant, "use_variant")
    token = _chosen.set({**_chosen.get({}), operation: (variant, tiling)})
    try:
        yield
    finally:
        _chosen.reset(token)


class allow_tf32:
    """What :func:`gpuconv.cuda.allow_tf32` makes: from now on, or inside of a ``with`` block."""

    def __init__(self, mode: bool = True) -> None:
        self._token = _tf32.set(bool(mode))

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *exc_info: object) -> None:
        _tf32.reset(self._token)


def _from_environment(operation: str) -> str | None:
    wish = None
    for part in filter(None, os.environ.get(ENVIRONMENT_VARIABLE, "").replace(" ", "").split(",")):
        name, equals, variant = part.partition("=")
        if not equals:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {part!r} is not operation=variant")
        _checked(name, variant, ENVIRONMENT_VARIABLE)
        if name == operation:
            wish = variant
    return wish


def wish(operation: str) -> tuple[Any, str | None, bool]:
    """What the user asks for at present, for :func:`choose` to apply. It is cheap, and can be used as a key."""
    chosen = _chosen.get(_NOTHING)
    return chosen.get(operation) if chosen else None, os.environ.get(ENVIRONMENT_VARIABLE), _tf32.get()


def place_of(operation: str, geometry: Any) -> tuple[str, Conv2dGeometry, Pair] | None:
    """The operation, geometry and window under which something is tuned; None if it is not tuned.

    Args:
        operation: a name of ``kernels.VARIANTS``.
        geometry: what the operation's variants take.
    """
    if isinstance(geometry, BlockGeometry) and operation == "conv2d_relu_max_pool2d":
        window = (geometry.pool.r, geometry.pool.s)
        if geometry.pool != Pool2dGeometry.of(geometry.conv.output_shape, window):
            return None  # only pooling windows without overlap or gaps are tuned
        return "conv2d", geometry.conv, window
    if isinstance(geometry, Conv2dGeometry):
        return operation, geometry, (1, 1)
    return None


def _tiling_of(operation: str, geometry: Any, variant: str, fields: Mapping[str, Any] | None) -> Any:
    """The tiling with these fields, if the variant and the tiling still exist; else None."""
    if variant in kernels.VARIANTS[operation]:
        module = kernels.load(operation, variant)
        for tiling in module.tilings(geometry) if module.supports(geometry) else ():
            if asdict(tiling) == fields:
                return tiling
    return None


@store.cached
def _from_store(operation: str, geometry: Any, dtype: str, platform: Platform) -> Choice | None:
    """The fastest that was measured here, if that variant and tiling still exist."""
    if (place := place_of(operation, geometry)) is None:
        return None
    tuned, convolution, window = place
    winner = store.find(store.Key(platform, tuned, convolution, dtype, window))
    if winner is None:
        return None
    if (tiling := _tiling_of(operation, geometry, winner.variant, winner.tiling)) is not None:
        return Choice(operation, winner.variant, tiling, "store", "the fastest when it was measured here")
    store.unusable(
        f"{operation}: the tuning store names {winner.variant!r} in the tiling {winner.tiling}, which there is not"
    )
    return None


@functools.lru_cache(maxsize=1024)
def _from_defaults(operation: str, geometry: Any, dtype: str, capability: str | None) -> Choice | None:
    """What ships with the package, if that variant and tiling still exist; no warning, as the user could not fix it."""
    if capability is None or (place := place_of(operation, geometry)) is None:
        return None
    tuned, convolution, window = place
    default = store.defaults().get((capability, tuned, convolution, dtype, window))
    if default is None or (tiling := _tiling_of(operation, geometry, default.variant, default.tiling)) is None:
        return None
    return Choice(operation, default.variant, tiling, "default", f"measured on {default.device}, {default.date}")


def _wishes(operation: str, variant: str | None, tiling: Any) -> Iterator[tuple[str, str, Any]]:
    """What the user asks for, the first one first: where, which variant, and its tiling, which may be None."""
    if variant is not None:
        yield "argument", variant, tiling
    if (chosen := _chosen.get(_NOTHING).get(operation)) is not None:
        yield "use_variant", *chosen
    if (named := _from_environment(operation)) is not None:
        yield "environment", named, None


def computed_in(
    operation: str, geometry: Any, dtype: str, *, variant: str | None = None, platform: Platform | None = None
) -> str:
    """The type in which the kernels of an operation compute, given that of its arrays.

    That is the same type, but for float16 and bfloat16 float32, unless tensor cores take them as they are: where the
    user asks for these, or, without a wish, where a convolution fills their tiles. Arguments as of :func:`choose`.
    """
    if dtype not in HALF_TYPES:
        return dtype
    wished = next((name for _, name, _ in _wishes(operation, variant, None)), None)
    fills = _ON_TENSOR_CORES.get(operation, _never)(geometry, "float32") if wished is None else wished == TENSOR_CORE
    able = fills and TENSOR_CORE in kernels.VARIANTS[operation]
    return dtype if able and _supports(operation, TENSOR_CORE, geometry, dtype, platform) else "float32"


def choose(
    operation: str,
    geometry: Any,
    dtype: str = "float32",
    *,
    variant: str | None = None,
    tiling: Any = None,
    platform: Platform | None = None,
) -> Choice:
    """The variant and tiling that run an operation; the module's docstring says how they are chosen.

    Args:
        operation: a name of ``kernels.VARIANTS``.
        geometry: what the operation's variants take.
        dtype: 'float32' or 'float64'; or a half type, which stands for the type that :func:`computed_in` gives.
        variant, tiling: asked for by the caller.
        platform: the device that it will run on; None, as in the simulator, ignores measurements.

    Raises:
        ValueError: an unknown name; a variant asked for does not support the geometry; or no variant does.
    """
    dtype = computed_in(operation, geometry, dtype, variant=variant, platform=platform)
    for source, wished, how in _wishes(operation, variant, tiling):
        answer = _supports(operation, _checked(operation, wished, source), geometry, dtype, platform)
        if not answer:
            raise ValueError(f"{operation}: the variant {wished}, asked for by {source}, refuses: {answer}")
        return Choice(operation, wished, how or _first_tiling(operation, wished, geometry), source, "asked for")
    fills = _ON_TENSOR_CORES.get(operation, _never) if _tf32.get() else _never
    if fills(geometry, dtype) and _supports(operation, TENSOR_CORE, geometry, dtype, platform):
        tiling, reason = _first_tiling(operation, TENSOR_CORE, geometry), "it fills the tiles of tensor cores"
        return Choice(operation, TENSOR_CORE, tiling, "allow_tf32", reason)
    if platform is not None:
        measured = _from_store(operation, geometry, dtype, platform)
        measured = measured or _from_defaults(operation, geometry, dtype, platform.compute_capability)
        if measured is not None:
            return measured
    refusals = []
    for rule in _rules(operation):
        if not rule.when(geometry, dtype) or rule.variant not in _names(operation):
            continue
        if answer := _supports(operation, rule.variant, geometry, dtype, platform):
            return Choice(
                operation, rule.variant, _first_tiling(operation, rule.variant, geometry), "rule", rule.reason
            )
        refusals.append(f"{rule.variant}: {answer}")
    raise ValueError(f"{operation}: no kernel supports {geometry}: {'; '.join(refusals)}")


def candidates(
    operation: str, geometry: Any, dtype: str = "float32", platform: Platform | None = None
) -> list[tuple[str, str]]:
    """Every variant of an operation, and why it was taken or not: what ``explain`` shows."""
    dtype = computed_in(operation, geometry, dtype, platform=platform)
    choice = choose(operation, geometry, dtype, platform=platform)
    rows = []
    for rule in _rules(operation):
        if rule.variant not in _names(operation):
            continue
        answer = _supports(operation, rule.variant, geometry, dtype, platform)
        if rule.variant == choice.variant:
            how = "" if choice.tiling is None else f"; {choice.tiling}"
            who = "taken: default" if choice.source == "default" else f"taken, by {choice.source}:"
            rows.append((rule.variant, f"{who} {choice.reason}{how}"))
        elif not answer:
            rows.append((rule.variant, f"does not support it: {answer}"))
        elif choice.source == "store":
            rows.append((rule.variant, "was slower when it was measured here"))
        elif choice.source == "default":
            rows.append((rule.variant, f"was slower when it was {choice.reason}"))
        elif choice.source != "rule":
            rows.append((rule.variant, f"another one was asked for by {choice.source}"))
        elif not rule.when(geometry, dtype):
            rows.append((rule.variant, f"does not suit it; it is for: {rule.reason}"))
        else:
            rows.append((rule.variant, f"comes after {choice.variant} in the rule"))
    return rows
