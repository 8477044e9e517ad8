"""Sizes of convolutions and poolings: the only place where a stride, padding or shape is interpreted.

Every argument is normalised and every bad one refused here, once, with the same words on every backend. What leaves
this module is a frozen, hashable geometry that holds plain integers, so that it can key a cache of compiled kernels.

Letters are the field's: an input is ``(n, c, h, w)``, a filter bank ``(k, c / groups, r, s)``, an output
``(n, k, p, q)``. Padding is kept as ``((top, bottom), (left, right))``, because 'same' with an even kernel, and many
networks from other frameworks, pad the two sides differently.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypeVar

from gpuconv.names import did_you_mean

Pair: TypeAlias = tuple[int, int]
Padding2d: TypeAlias = tuple[Pair, Pair]
#: What a user may pass as a padding: one size, one a dimension, one a side, or 'same' / 'valid'.
PaddingLike: TypeAlias = "int | str | Sequence[int] | Sequence[Sequence[int]]"
IntOrPair: TypeAlias = "int | Sequence[int]"

_LARGEST = 2**63 - 1  # what an index can hold


def integer(value: Any, name: str, *, minimum: int, op: str) -> int:
    """Return ``value`` as an int of at least ``minimum``.

    Raises:
        TypeError: not an integer (a float with an integral value, or a bool, is most likely a mistake).
        ValueError: below ``minimum``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {_shown(value)}") from None
    if number < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {number}")
    if number > _LARGEST:
        raise ValueError(f"{op}: {name} must be at most {_LARGEST}, got {number}")
    return number


def flag(value: Any, name: str, *, op: str) -> bool:
    """Return a bool of Python or NumPy, or 0 or 1, as a bool.

    Raises:
        TypeError: something else; 'no' would count as true.
    """
    if type(value) is bool:
        return value
    try:
        number = operator.index(bool(value) if type(value).__name__ in ("bool", "bool_") else value)
    except TypeError:
        number = -1
    if number not in (0, 1):
        raise TypeError(f"{op}: {name} must be True or False, got {_shown(value)}")
    return bool(number)


def one_of(value: Any, name: str, choices: Sequence[str], *, op: str, otherwise: str = "") -> str:
    """Return one of some words; otherwise the nearest one is suggested.

    Args:
        value: the word.
        name: of the argument.
        choices: the words.
        op: name that error messages begin with.
        otherwise: what else would do, as the end of the list.

    Raises:
        ValueError: another word, or no word.
    """
    if isinstance(value, str) and value in choices:
        return value
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    what = f"{', '.join(map(repr, choices))}{otherwise}"
    raise ValueError(f"{op}: {name} must be {'' if otherwise else 'one of '}{what}, got {_shown(value)}{hint}")


def pair(value: Any, name: str, *, minimum: int, op: str) -> Pair:
    """Return an int, or a sequence of one or two ints, as ``(height, width)``; errors as for :func:`integer`."""
    if _is_sequence(value):
        if len(value) not in (1, 2):
            raise ValueError(
                f"{op}: {name} must be one integer or a pair (height, width), got {len(value)} values: {value!r}"
            )
        sizes = [integer(v, name, minimum=minimum, op=op) for v in value]
        return sizes[0], sizes[-1]
    size = integer(value, name, minimum=minimum, op=op)
    return size, size


def triple(value: Any, name: str, *, minimum: int, op: str) -> tuple[int, int, int]:
    """Return an int, or one or three ints, as ``(depth, height, width)``; errors as for :func:`integer`."""
    several = tuple(value) if _is_sequence(value) else (value,)
    if len(several) not in (1, 3):
        raise ValueError(
            f"{op}: {name} must be one integer or three (depth, height, width), got {len(several)} values: {value!r}"
        )
    depth, height, width = (integer(v, name, minimum=minimum, op=op) for v in several * (3 // len(several)))
    return depth, height, width


def sizes_of(value: Any, name: str, rank: int, *, minimum: int, op: str) -> tuple[int, ...]:
    """Return sizes for as many dimensions as ``rank``, 1 to 3, as the functions above and below do."""
    if rank == 1:
        return (single(value, name, minimum=minimum, op=op),)
    return (pair if rank == 2 else triple)(value, name, minimum=minimum, op=op)


def single(value: Any, name: str, *, minimum: int, op: str) -> int:
    """Return an int, or a sequence of one int, as an int: what the 1-D operations take."""
    if _is_sequence(value):
        if len(value) != 1:
            raise ValueError(f"{op}: {name} must be one integer, got {len(value)} values: {value!r}")
        value = value[0]
    return integer(value, name, minimum=minimum, op=op)


def _is_sequence(value: Any) -> bool:
    # A NumPy scalar or zero-dimensional array has neither a length nor a str's letters.
    return not isinstance(value, str) and hasattr(value, "__getitem__") and getattr(value, "ndim", 1) == 1


def _shown(value: Any) -> str:
    return f"{value!r}" if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def _sides(padding: Any, *, op: str) -> Padding2d:
    """``((top, bottom), (left, right))`` of a padding given in numbers."""
    if _is_sequence(padding) and any(_is_sequence(side) for side in padding):
        if len(padding) != 2 or not all(_is_sequence(side) and len(side) == 2 for side in padding):
            raise ValueError(f"{op}: padding by side must be ((top, bottom), (left, right)), got {tuple(padding)!r}")
        (top, bottom), (left, right) = (
            tuple(integer(v, "padding", minimum=0, op=op) for v in side) for side in padding
        )
        return (top, bottom), (left, right)
    height, width = pair(padding, "padding", minimum=0, op=op)
    return (height, height), (width, width)


def sides_1d(padding: Any, *, op: str) -> Any:
    """A 1-D padding as the 2-D one that leaves the height alone; a word stays a word."""
    if isinstance(padding, str):
        return padding
    if isinstance(padding, Sequence) and len(padding) == 1 and isinstance(padding[0], Sequence):
        left, right = pair(padding[0], "padding", minimum=0, op=op)
        return (0, 0), (left, right)
    size = single(padding, "padding", minimum=0, op=op)
    return (0, 0), (size, size)


def immutable(sizes: Any) -> Any:
    """Sizes that have been checked, in the form in which they were given, without a list that may change later."""
    if sizes is None or isinstance(sizes, str):
        return sizes
    return tuple(immutable(size) for size in sizes) if _is_sequence(sizes) else operator.index(sizes)


def effective(kernel: int, dilation: int) -> int:
    """Extent of a dilated kernel: ``dilation · (kernel - 1) + 1`` input positions."""
    return dilation * (kernel - 1) + 1


_Geometry = TypeVar("_Geometry")


def _remembered(of: Callable[..., _Geometry]) -> Callable[..., _Geometry]:
    """Decorator of ``of``: keep its latest results. A network asks for the same few in each step."""
    results = functools.lru_cache(maxsize=512, typed=True)(of)

    @functools.wraps(of)
    def remembering(*arguments: Any, **options: Any) -> _Geometry:
        # Equal arguments need not be equally good: 1 equals True and 1.0. The cache tells them apart, but not inside of
        # tuples.
        plain = all([_is_plain(value) for value in arguments[1:]]) and all([_is_plain(v) for v in options.values()])
        return (results if plain else of)(*arguments, **options)

    return remembering


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is tuple:
        return all([type(v) is int or (type(v) is tuple and _is_plain(v)) for v in value])
    return kind is int or kind is bool or kind is str or value is None


def _shape(shape: Sequence[int], names: str, what: str, *, op: str) -> tuple[int, ...]:
    """Check that ``shape`` has one size for each letter of ``names``, of which only N may be zero."""
    if len(shape) != len(names):
        raise ValueError(
            f"{op}: {what} must have {len(names)} dimensions ({', '.join(names)}), got shape {tuple(shape)}"
        )
    for letter, size in zip(names, shape, strict=True):
        if size == 0 and letter != "N":
            raise ValueError(f"{op}: {what} has no elements along {letter}, got shape {tuple(shape)}")
    return tuple(int(size) for size in shape)


@dataclass(frozen=True)
class Conv2dGeometry:
    """Everything that the shape of a 2-D convolution (cross-correlation) depends on.

    Build it with :meth:`of`, which checks; the constructor trusts its arguments. A 1-D convolution is the case
    ``h = r = 1``.

    Attributes:
        n, c, h, w: batch, channels, height and width of the input.
        k, r, s: number of filters, their height and width.
        stride, dilation: ``(height, width)``, at least 1.
        padding: ``((top, bottom), (left, right))``, at least 0.
        groups: divides ``c`` and ``k``; a filter sees ``c / groups`` channels.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Padding2d = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    @classmethod
    @_remembered
    def of(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        *,
        bias_shape: Sequence[int] | None = None,
        stride: IntOrPair = 1,
        padding: PaddingLike = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        op: str = "conv2d",
    ) -> Conv2dGeometry:
        """Normalise and check the arguments of a convolution.

        Args:
            input_shape: ``(n, c, h, w)``.
            weight_shape: ``(k, c / groups, r, s)``.
            bias_shape: ``(k,)``, or None for no bias.
            stride: int or pair.
            padding: int; pair; ``((top, bottom), (left, right))``; ``'valid'`` (none); or ``'same'``: output as
                large as the input, stride 1 only, the odd element of an even kernel at the bottom and right.
            dilation: int or pair.
            groups: int.
            op: name that error messages begin with.

        Raises:
            ValueError: a value or a shape does not fit; the message names the argument.
            TypeError: an argument is of the wrong kind.
        """
        n, c, h, w = _shape(input_shape, "NCHW", "input", op=op)
        k, channels, r, s = _shape(weight_shape, "KCRS", "weight", op=op)
        stride = pair(stride, "stride", minimum=1, op=op)
        dilation = pair(dilation, "dilation", minimum=1, op=op)
        groups = integer(groups, "groups", minimum=1, op=op)
        if channels * groups != c:
            raise ValueError(
                f"{op}: weight has {channels} input channels{' a group' if groups > 1 else ''}, "
                f"but input has {c} channels and groups={groups}"
            )
        if k % groups:
            raise ValueError(f"{op}: weight has {k} filters, which groups={groups} does not divide")
        if bias_shape is not None and tuple(bias_shape) != (k,):
            raise ValueError(f"{op}: bias must have shape ({k},), one value a filter, got {tuple(bias_shape)}")
        extent = effective(r, dilation[0]), effective(s, dilation[1])
        sides = conv_padding(padding, stride, extent, op=op)
        padded = h + sum(sides[0]), w + sum(sides[1])
        if padded[0] < extent[0] or padded[1] < extent[1]:
            raise ValueError(
                f"{op}: weight spans {extent[0]}x{extent[1]} (kernel {r}x{s}, dilation {dilation}), "
                f"which is larger than the padded input, {padded[0]}x{padded[1]}"
            )
        return cls(n, c, h, w, k, r, s, stride, sides, dilation, groups)

    @classmethod
    def of_transposed(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        *,
        bias_shape: Sequence[int] | None = None,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        groups: int = 1,
        dilation: IntOrPair = 1,
        op: str = "conv_transpose2d",
    ) -> Conv2dGeometry:
        """Normalise and check the arguments of a transposed convolution.

        Returns the geometry of the convolution whose input's gradient it is: what is transposed has the shape of its
        result, and gives the shape of its input. ``p`` and ``q`` are larger than the height and width of what is
        transposed where ``output_padding`` holds a whole stride: zeros fill that up.

        Args:
            input_shape: ``(n, c, h, w)`` of what is transposed.
            weight_shape: ``(c, k / groups, r, s)``.
            bias_shape: ``(k,)``, or None for no bias.
            stride, padding, dilation: int or pair, those of the convolution.
            output_padding: int or pair, less than stride or dilation: so many more rows and columns at the end.
            groups: int.
            op: name that error messages begin with.

        Raises:
            ValueError: a value or a shape does not fit; the message names the argument.
            TypeError: an argument is of the wrong kind.
        """
        n, c, h, w = _shape(input_shape, "NCHW", "input", op=op)
        filters, of_group, r, s = _shape(weight_shape, "CKRS", "weight", op=op)
        strides = pair(stride, "stride", minimum=1, op=op)
        dilations = pair(dilation, "dilation", minimum=1, op=op)
        groups = integer(groups, "groups", minimum=1, op=op)
        if isinstance(padding, str):
            raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
        pads = pair(padding, "padding", minimum=0, op=op)
        more = pair(output_padding, "output_padding", minimum=0, op=op)
        if filters != c:
            raise ValueError(f"{op}: weight has {filters} input channels, but input has {c} channels")
        if c % groups:
            raise ValueError(f"{op}: input has {c} channels, which groups={groups} does not divide")
        if bias_shape is not None and tuple(bias_shape) != (of_group * groups,):
            raise ValueError(
                f"{op}: bias must have shape ({of_group * groups},), one value a channel of the result, got "
                f"{tuple(bias_shape)}"
            )
        sizes = []
        for length, kernel, step, spread, pad, extra in zip(
            (h, w), (r, s), strides, dilations, pads, more, strict=True
        ):
            if extra >= max(step, spread):
                raise ValueError(
                    f"{op}: output_padding must be less than stride or dilation, got output_padding={more}, "
                    f"stride={strides}, dilation={dilations}"
                )
            sizes.append((length - 1) * step - 2 * pad + effective(kernel, spread) + extra)
        if min(sizes) < 1:
            raise ValueError(
                f"{op}: padding {pads} leaves nothing of the result: an input of {h}x{w} gives {sizes[0]}x{sizes[1]}"
            )
        (top, left), (height, width) = pads, sizes
        sides = (top, top), (left, left)
        return cls(n, of_group * groups, height, width, c, r, s, strides, sides, dilations, groups)

    @cached_property
    def p(self) -> int:
        """Output height: ``floor((h + top + bottom - dilation · (r - 1) - 1) / stride) + 1``."""
        return (self.h + sum(self.padding[0]) - effective(self.r, self.dilation[0])) // self.stride[0] + 1

    @cached_property
    def q(self) -> int:
        """Output width; the formula of :attr:`p`."""
        return (self.w + sum(self.padding[1]) - effective(self.s, self.dilation[1])) // self.stride[1] + 1

    @cached_property
    def input_shape(self) -> tuple[int, int, int, int]:
        """``(n, c, h, w)``."""
        return self.n, self.c, self.h, self.w

    @cached_property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(k, c / groups, r, s)``."""
        return self.k, self.c // self.groups, self.r, self.s

    @cached_property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``(n, k, p, q)``."""
        return self.n, self.k, self.p, self.q

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the forward pass, those with padding zeros included."""
        return self.n * self.k * self.p * self.q * (self.c // self.groups) * self.r * self.s


def conv_padding(padding: Any, stride: Pair, extent: Pair, *, op: str) -> Padding2d:
    """Padding by side of a convolution, see :meth:`Conv2dGeometry.of`.

    Args:
        padding: as a user gives it.
        stride: (height, width).
        extent: of the dilated kernel.
        op: name that error messages begin with.
    """
    if not isinstance(padding, str):
        return _sides(padding, op=op)
    if one_of(padding, "padding", ("same", "valid"), op=op, otherwise=" or sizes") == "valid":
        return (0, 0), (0, 0)
    if stride != (1, 1):
        # As in PyTorch: frameworks disagree on what 'same' means with a stride, so the sizes have to be said.
        raise ValueError(f"{op}: padding='same' needs stride 1, got stride={stride}; give the padding in numbers")
    total = extent[0] - 1, extent[1] - 1
    return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)


def pool_window(
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, *, op: str
) -> tuple[Pair, Pair, Padding2d, Pair]:
    """Kernel size, stride, padding by side and dilation of a pooling; see :meth:`Pool2dGeometry.of`."""
    kernel = pair(kernel_size, "kernel_size", minimum=1, op=op)
    # PyTorch's modules spell "as the window" None, its functions also accept an empty tuple.
    default = stride is None or (_is_sequence(stride) and len(stride) == 0)
    strides = kernel if default else pair(stride, "stride", minimum=1, op=op)
    dilations = pair(dilation, "dilation", minimum=1, op=op)
    if isinstance(padding, str):
        raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
    sides = _sides(padding, op=op)
    for side, size in zip(sides, kernel, strict=True):
        if max(side) > size // 2:
            raise ValueError(f"{op}: padding {max(side)} is more than half of kernel_size={kernel}")
    return kernel, strides, sides, dilations


def pool_divisor(divisor_override: Any, *, op: str) -> int | None:
    """Check what an average is divided by; None is the number of elements."""
    if divisor_override is None:
        return None
    number = integer(divisor_override, "divisor_override", minimum=-(2**31), op=op)
    if number == 0:
        raise ValueError(f"{op}: divisor_override must not be zero")
    return number


def pool_window_1d(kernel_size: Any, stride: Any, padding: Any, *, op: str) -> tuple[Pair, Pair, Any]:
    """Kernel size, stride and padding of a 1-D pooling as those of the 2-D one over a height of 1."""
    kernel = (1, single(kernel_size, "kernel_size", minimum=1, op=op))
    if stride is None or (isinstance(stride, Sequence) and not stride):
        return kernel, kernel, sides_1d(padding, op=op)
    return kernel, (1, single(stride, "stride", minimum=1, op=op)), sides_1d(padding, op=op)


def adaptive_sizes(output_size: Any, *, op: str, rank: int = 2) -> tuple[int | None, ...]:
    """Sizes of an adaptive pooling's result, one a dimension; None is the input's."""
    sizes = output_size if _is_sequence(output_size) else (output_size,) * rank
    if len(sizes) != rank:
        shown = {1: "integer", 2: "size or a pair (height, width)", 3: "size or three (depth, height, width)"}[rank]
        raise ValueError(f"{op}: output_size must be one {shown}, got {output_size!r}")
    return tuple(None if size is None else integer(size, "output_size", minimum=1, op=op) for size in sizes)


@dataclass(frozen=True)
class Pool2dGeometry:
    """Everything that the shape of a 2-D pooling depends on. Build it with :meth:`of`, which checks.

    Attributes:
        n, c, h, w: shape of the input.
        r, s: height and width of the window.
        stride, dilation: ``(height, width)``.
        padding: ``((top, bottom), (left, right))``; padded positions never win a maximum.
        ceil_mode: round the output size up, so that the last window may hang over the edge.
    """

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride: Pair
    padding: Padding2d = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @classmethod
    @_remembered
    def of(
        cls,
        input_shape: Sequence[int],
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair | None = None,
        padding: PaddingLike = 0,
        dilation: IntOrPair = 1,
        ceil_mode: bool = False,
        op: str = "max_pool2d",
    ) -> Pool2dGeometry:
        """Normalise and check the arguments of a pooling.

        Args:
            input_shape: ``(n, c, h, w)``.
            kernel_size: int or pair.
            stride: int or pair; None means ``kernel_size``.
            padding: int, pair or ``((top, bottom), (left, right))``; at most half of ``kernel_size`` (PyTorch's rule).
            dilation: int or pair.
            ceil_mode: round the output size up.
            op: name that error messages begin with.

        Raises:
            ValueError: a value or a shape does not fit; the message names the argument.
            TypeError: an argument is of the wrong kind.
        """
        n, c, h, w = _shape(input_shape, "NCHW", "input", op=op)
        (r, s), stride, sides, dilation = pool_window(kernel_size, stride, padding, dilation, op=op)
        extent = effective(r, dilation[0]), effective(s, dilation[1])
        geometry = cls(n, c, h, w, r, s, stride, sides, dilation, flag(ceil_mode, "ceil_mode", op=op))
        if geometry.p < 1 or geometry.q < 1:
            raise ValueError(
                f"{op}: kernel_size={r, s} with dilation {dilation} spans {extent[0]}x{extent[1]}, which is larger "
                f"than the padded input, {h + sum(sides[0])}x{w + sum(sides[1])}"
            )
        geometry._refuse_empty_windows(op)
        return geometry

    def _refuse_empty_windows(self, op: str) -> None:
        # Only a dilated window can step over the whole input, from the padding before it to the padding after. Its
        # maximum would be -inf at an index outside of the input, which is what PyTorch returns.
        if self.dilation == (1, 1) or self.padding == ((0, 0), (0, 0)):
            return
        for axis, (length, kernel, size) in enumerate(((self.h, self.r, self.p), (self.w, self.s, self.q))):
            for index in range(size):
                start = index * self.stride[axis] - self.padding[axis][0]
                if start >= 0:  # and below length, by the rule of _size: the first tap is inside
                    break
                first = start + -(start // self.dilation[axis]) * self.dilation[axis]
                if first >= length or first > start + (kernel - 1) * self.dilation[axis]:
                    raise ValueError(
                        f"{op}: with dilation={self.dilation} and padding={self.padding} a window of "
                        f"kernel_size={self.r, self.s} holds padding only, over an input of {self.h}x{self.w}"
                    )

    def _size(self, axis: int, length: int, kernel: int) -> int:
        before, after = self.padding[axis]
        stride = self.stride[axis]
        room = length + before + after - effective(kernel, self.dilation[axis])
        if not self.ceil_mode:
            return room // stride + 1
        size = -(-room // stride) + 1
        # As in PyTorch: the last window has to begin inside the input or the padding before it.
        return size - 1 if (size - 1) * stride >= length + before else size

    @cached_property
    def p(self) -> int:
        """Output height."""
        return self._size(0, self.h, self.r)

    @cached_property
    def q(self) -> int:
        """Output width."""
        return self._size(1, self.w, self.s)

    @cached_property
    def input_shape(self) -> tuple[int, int, int, int]:
        """``(n, c, h, w)``."""
        return self.n, self.c, self.h, self.w

    @cached_property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``(n, c, p, q)``."""
        return self.n, self.c, self.p, self.q

    @property
    def overhang(self) -> Pair:
        """Rows and columns by which the last window reaches beyond the padded input (``ceil_mode`` only)."""
        spans = (
            (size - 1) * stride + effective(kernel, dilation) - (length + sum(sides))
            for size, stride, kernel, dilation, length, sides in zip(
                (self.p, self.q),
                self.stride,
                (self.r, self.s),
                self.dilation,
                (self.h, self.w),
                self.padding,
                strict=True,
            )
        )
        height, width = (max(0, span) for span in spans)
        return height, width

    def window_counts(self, *, include_padding: bool) -> tuple[list[int], list[int]]:
        """Number of elements that each window averages, along the height and along the width.

        The count of window ``(i, j)`` is ``rows[i] * columns[j]``. Padding counts if ``include_padding``; what a
        ``ceil_mode`` window covers beyond the padding never does (PyTorch's rule).
        """

        def counts(size: int, stride: int, kernel: int, length: int, sides: Pair) -> list[int]:
            result = []
            for index in range(size):
                start = index * stride - sides[0]
                end = min(start + kernel, length + sides[1])
                result.append(end - start if include_padding else min(end, length) - max(start, 0))
            return result

        return (
            counts(self.p, self.stride[0], self.r, self.h, self.padding[0]),
            counts(self.q, self.stride[1], self.s, self.w, self.padding[1]),
        )


class ImageBatchGeometry(NamedTuple):
    """Images of one byte a pixel, some of a set, and the network's inputs that are made of them.

    Attributes:
        n: images of the batch.
        total: images of the set.
        h, w: height and width of an image.
        p, q: height and width of an input, at least h and w; the image stands in its middle.
        warps: whether each image has an affine transform.
    """

    n: int
    total: int
    h: int
    w: int
    p: int
    q: int
    warps: bool


class BlockGeometry(NamedTuple):
    """A convolution and the max pooling of its result."""

    conv: Conv2dGeometry
    pool: Pool2dGeometry


class BlockPairGeometry(NamedTuple):
    """Two blocks, the second of which takes the pooled maps of the first."""

    first: BlockGeometry
    second: BlockGeometry


class ChainGeometry(NamedTuple):
    """Fully connected layers, each taking the results of the one before.

    Attributes:
        n: rows of the input.
        sizes: features of the input, and results of each layer.
        relu: for each layer, whether a ReLU follows.
    """

    n: int
    sizes: tuple[int, ...]
    relu: tuple[bool, ...]


class PartialSums(NamedTuple):
    """Gradients of parameters that are not added up yet: a row of their elements for each part of a batch.

    Attributes:
        members: numbers of the parameters, in the order in which a row has their gradients.
        parts: rows.
    """

    members: tuple[int, ...]
    parts: int


class UpdateGeometry(NamedTuple):
    """Parameters, the gradients of some of which are still sums over parts.

    Attributes:
        sizes: elements of each parameter.
        sums: of those whose gradients have to be added up first; no parameter is in two of them.
    """

    sizes: tuple[int, ...]
    sums: tuple[PartialSums, ...]

    def row(self, sum_: PartialSums) -> int:
        """Elements of a row."""
        return sum(self.sizes[number] for number in sum_.members)
