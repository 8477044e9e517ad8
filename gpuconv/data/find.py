"""Finding the digit in a picture: what stands out from the background."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.lines import without_lines
from gpuconv.data.raster import (
    Gray,
    Mask,
    border,
    bounding_box,
    components,
    correlation,
    is_noise,
    noise_level,
    otsu,
    window_mean,
    windowed,
)

__all__ = ["LEAST_CONTRAST", "NoDigitError", "find_digit"]

LEAST_CONTRAST = 8.0  # of 255; less is an empty sheet
_MANY = 3  # so many shapes that stand out alike may be noise


class NoDigitError(Exception):
    """A picture does not show one digit; the message says what it shows instead."""


class _Shape(NamedTuple):
    """Something that stands out from the background."""

    box: tuple[slice, slice]  # where in the picture
    mask: Mask  # which pixels of the box
    pixels: Gray  # of the box: 0 outside the mask, 1 inside a stroke
    contrast: float  # of a stroke's inside, 0 to 255
    cut_off: bool  # whether it runs out of the picture (but does not fill it, as a digit cropped closely does)
    others: int  # shapes that stand out as much


def find_digit(gray: Gray, invert: bool | Literal["auto"]) -> Gray:
    """The digit in a picture, cropped: (h, w), float32, 1 inside a stroke and 0 around it.

    Args:
        gray: brightness of the picture, 0 to 255, (H, W).
        invert: whether the digit is darker than its background; ``"auto"`` detects it.

    Raises:
        NoDigitError: the picture is blank, noise, or shows two shapes.
    """
    digit = _find(gray, invert)
    if digit is None:
        raise NoDigitError("blank, no digit found: nothing stands out from the background")
    return digit


def _find(gray: Gray, invert: bool | Literal["auto"], *, in_sheet: bool = False) -> Gray | None:
    """As `find_digit`; None if nothing stands out."""
    least = max(LEAST_CONTRAST, 0.15 * float(np.ptp(gray)))
    if not in_sheet:
        gray = _without_edges(gray)
    best, best_score, doubtful, picture = None, 0.0, False, gray
    for estimate in (_local_background,) if in_sheet else (_flat_background, _lit_background, _local_background):
        seen = _reduced(gray) if estimate is _lit_background else gray
        for dark in (False, True) if invert == "auto" else (bool(invert),):
            residual = estimate(255 - seen if dark else seen)
            shape = None if residual is None else _most_prominent(residual)
            if residual is None or shape is None or shape.contrast < least:
                continue
            shaded = estimate is _flat_background and _is_shaded(residual)
            # A shadow or the edge of a table is large and dark, but it runs out of the picture.
            score = shape.contrast * max(shape.mask.shape) * (0.1 if shape.cut_off or shaded else 1)
            if estimate is _lit_background:
                # Gaps between strokes and the edge of a shadow stand out, too. These factors are 1 if nothing is told.
                score *= (2 * _narrowness(seen, dark) * _evenness(shape.mask) / 0.6) ** 2 * len(gray) / len(seen)
            if score > best_score:
                best, best_score, doubtful, picture = shape, score, shape.cut_off or shaded, seen
        if best is not None and not doubtful:
            break
    if best is None:
        return None
    if not in_sheet and _is_sheet(best, picture.shape):
        digit = _find(_sheet_alone(picture, best), invert, in_sheet=True)
        if digit is not None:
            return digit
    if is_noise(gray) and correlation(gray) < 0.25:
        if in_sheet:
            return None  # what looked like a sheet is none
        raise NoDigitError("nothing but noise")
    if best.others and not best.cut_off:
        raise NoDigitError(_what_else(gray, best.others))
    return best.pixels


def _what_else(gray: Gray, others: int) -> str:
    if others >= _MANY and is_noise(gray):
        return "nothing but noise"
    count = {1: "two", 2: "three", 3: "four"}.get(others, str(others + 1))
    return f"{count} shapes stand out alike, where one digit was expected"


# -- what is brighter than the background ------------------------------------------------------------------------------


def _flat_background(gray: Gray) -> Gray | None:
    """What the picture has above the brightness of a good part of its border, as in a drawing or a scan."""
    edge = np.sort(gray[border(gray.shape)])
    tolerance = max(0.03 * float(np.ptp(gray)), 2 * noise_level(gray))
    alike = np.searchsorted(edge, edge + tolerance, "right") - np.searchsorted(edge, edge - tolerance, "left")
    if alike.max() < 0.4 * len(edge):
        return None
    return gray - float(np.median(edge[alike == alike.max()]))


def _lit_background(gray: Gray) -> Gray | None:
    """What is narrower than a quarter of the picture, and brighter than what is around it.

    That is a morphological opening: shadows stay what they are, with hard edges, too. As light falls on paper and ink
    alike, what stands out is measured by what room there is for it.
    """
    radius = round(0.125 * max(gray.shape))
    if radius < 3:
        return None
    smooth = window_mean(gray, 1)
    opened = _opened(smooth, radius)
    residual = (gray - opened) * (255 / np.maximum(255 - opened, 96))
    return (residual - max(0.0, float(np.median(residual)))).astype(np.float32)


def _reduced(gray: Gray) -> Gray:
    """At most 256 pixels high and wide: wide windows take their time."""
    from PIL import Image

    image = Image.fromarray(gray)
    image.thumbnail((256, 256), Image.Resampling.BOX)
    return np.asarray(image)


def _opened(gray: Gray, radius: int) -> Gray:
    """Without what is brighter than its surroundings and in no square of that radius."""
    # Mirrored at the edges, where a dark corner would otherwise be narrower than the square that it ends in.
    around = np.pad(gray, radius, mode="symmetric")
    opened = windowed(windowed(around, radius, np.minimum, np.inf), radius, np.maximum, -np.inf)
    return opened[radius:-radius, radius:-radius]


def _narrowness(gray: Gray, dark: bool) -> float:
    """How much of what is narrow in a picture is darker (else brighter) than its surroundings, from 0 to 1.

    Shadows aside, a digit's strokes are narrower than the gaps between them.
    """
    from PIL import Image

    small = Image.fromarray(gray)
    small.thumbnail((128, 128), Image.Resampling.BOX)
    values = np.asarray(small)
    bright, black = (
        sum(float((part - _opened(part, radius)).mean()) for radius in (2, 3, 5, 8)) for part in (values, -values)
    )
    return (black if dark else bright) / max(bright + black, 1e-9)


def _evenness(mask: Mask) -> float:
    """The mean width of a shape beside its greatest: near 1 for strokes, less for what ends in points, as gaps do."""
    left = np.pad(mask, 1)
    mean = 2 * float(left.sum()) / max(1, int((left & ~windowed(left, 1, np.minimum)).sum()))
    greatest = -1
    while left.any():
        left, greatest = windowed(left, 1, np.minimum), greatest + 2
    return mean / max(1, greatest)


def _is_shaded(residual: Gray) -> bool:
    """Whether something as wide as no stroke runs out of the picture: its background is not of one brightness."""
    threshold = max(4 * noise_level(residual), 0.15 * float(np.ptp(residual)))
    if max(residual.shape) < 40:
        return False
    radius = round(0.12 * max(residual.shape))
    for outside in (residual > threshold, residual < -threshold):
        if windowed(outside, radius, np.minimum, True)[border(residual.shape)].any():
            return True
    return False


def _without_edges(gray: Gray) -> Gray:
    """Without the sides of a box along which the picture was cut; with them, if there are not three of them."""
    depth = max(6, round(0.03 * max(gray.shape)))
    if min(gray.shape) < 5 * depth:
        return gray
    contrast, cut = float(np.ptp(gray)), []
    for side in (gray, gray[::-1], gray.T, gray.T[::-1]):
        profile = np.abs(np.median(side[: depth + 1], axis=1) - np.median(side[depth]))
        frame = np.flatnonzero(profile >= 0.2 * contrast)
        # One more, which may be half of the line.
        cut.append(int(frame[-1]) + 2 if frame.size and frame[-1] < depth - 1 else 0)
    if sum(n > 0 for n in cut) < 3:
        return gray
    inner = gray[cut[0] : len(gray) - cut[1], cut[2] : gray.shape[1] - cut[3]]
    # A digit of straight strokes that was cropped to its box: nothing is in it, or what is hangs on its sides.
    edge = inner[border(inner.shape)]
    hangs = (np.abs(edge - np.median(edge)) > 0.3 * contrast).any()
    return gray if hangs or np.ptp(inner) < 0.4 * contrast else inner


def _local_background(gray: Gray) -> Gray | None:
    """What is brighter than the median of its surroundings: that follows light and shadow, but no stroke."""
    from PIL import Image

    grid, window = 64, 25
    height, width = gray.shape
    coarse = Image.fromarray(gray).resize((min(width, grid), min(height, grid)), Image.Resampling.BOX)
    padded = np.pad(np.asarray(coarse), window // 2, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
    median = np.median(windows.reshape(*windows.shape[:2], -1), axis=-1)
    return gray - np.asarray(Image.fromarray(median).resize((width, height), Image.Resampling.BILINEAR))


# -- which of it is the digit ------------------------------------------------------------------------------------------


def _most_prominent(residual: Gray) -> _Shape | None:
    """The shape of most ink in a picture whose background was subtracted; ink is above 0."""
    ink = np.maximum(residual, 0)
    peak = float(ink.max())
    if peak < LEAST_CONTRAST:
        return None
    noise = noise_level(residual)
    high = max(otsu(ink), min(5 * noise, 0.8 * peak))  # Otsu splits the noise where there is little ink
    contrast = float(np.median(ink[ink >= high]))
    # Hysteresis: the soft edge of a stroke belongs to the digit, the same brightness elsewhere does not.
    all_ink = ink >= min(max(4 * noise, 0.25 * contrast), high)
    sure = np.where(ink >= high, ink, 0)
    parts = _Parts.of(all_ink, sure).without_frames()
    strokes = without_lines(parts.number > 0)
    if not np.array_equal(strokes, parts.number > 0):
        parts = _Parts.of(strokes, sure).without_frames()
    if not parts.mass.any():
        return None
    if (strokes != all_ink).any() and (strokes & (ink >= high)).any():
        contrast = float(np.median(ink[strokes & (ink >= high)]))

    main = parts.main
    begin, end, mass, cut_off = parts.begin, parts.end, parts.mass, parts.cut_off
    # Strokes need not hang together: what is near and not too small is part of the digit, such as the bar of a 5.
    reach = 0.3 * (end - begin)[:, main].max()
    near = ((begin <= end[:, [main]] + reach) & (end >= begin[:, [main]] - reach)).all(axis=0)
    chosen = near & (mass >= 0.03 * mass[main]) & (mass > 0) & (~cut_off | cut_off[main])
    mask = np.append(False, chosen)[parts.number]
    box = bounding_box(mask)
    mask = mask[box]
    pixels = np.where(mask, np.minimum(ink[box] / contrast, 1), 0).astype(np.float32)
    return _Shape(box, mask, pixels, contrast, bool(cut_off[main]), parts.like(main, chosen))


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of a mask that hang together, N of them."""

    number: NDArray[np.intp]  # (H, W): of the part, from 1; 0 is outside
    mass: NDArray[np.float64]  # (N,): ink
    begin: NDArray[np.intp]  # (2, N): first row and column
    end: NDArray[np.intp]  # (2, N): row and column behind the last
    cut_off: Mask  # (N,): whether it runs out of the picture, but does not fill it

    @classmethod
    def of(cls, mask: Mask, ink: Gray) -> _Parts:
        number = components(mask)
        y, x = np.nonzero(number)
        part = number[y, x] - 1
        count = int(number.max(initial=0))
        mass = np.bincount(part, weights=ink[y, x], minlength=count)
        begin, end = np.full((2, count), max(mask.shape)), np.zeros((2, count), dtype=int)
        for axis, position in enumerate((y, x)):
            np.minimum.at(begin[axis], part, position)
            np.maximum.at(end[axis], part, position + 1)
        shape = np.array(mask.shape)[:, None]
        at_border = (begin == 0).any(axis=0) | (end == shape).any(axis=0)
        return cls(
            number, np.asarray(mass, dtype=np.float64), begin, end, at_border & (end - begin < 0.9 * shape).any(axis=0)
        )

    @property
    def longest(self) -> NDArray[np.intp]:
        """Of each part, its longer side."""
        return (self.end - self.begin).max(axis=0)

    @property
    def main(self) -> int:
        """Which part has most ink; one that is cut off only if there is little else."""
        return int(np.argmax(np.where(self.cut_off, 0.03 * self.mass, self.mass)))

    def without_frames(self) -> _Parts:
        """Without parts that go around others, such as boxes, which need not be straight."""
        kept = self.mass > 0
        while kept.any():
            left = replace(self, mass=np.where(kept, self.mass, 0))
            frames = left.frames_of(left.main)
            if not frames.any():
                if not left.frames_another(left.main):
                    break
                frames[left.main] = True
            kept &= ~frames
        number = np.where(np.append(False, kept)[self.number], self.number, 0)
        return replace(self, number=number, mass=np.where(kept, self.mass, 0))

    def frames_of(self, one: int) -> Mask:
        """Which parts go around a part: longer ones that are on two opposite sides of it, alone or together."""
        frames: Mask = np.zeros(len(self.mass), dtype=bool)
        sides: Mask = np.zeros(4, dtype=bool)
        for other in np.flatnonzero((self.mass > 0) & (self.longest >= 1.15 * self.longest[one])).tolist():
            covered = self.sides(one, other)
            if other != one and covered.any():
                frames[other] = True
                sides |= covered
        return frames if sides[:2].all() or sides[2:].all() else np.zeros_like(frames)

    def frames_another(self, one: int) -> bool:
        """Whether a part goes around one that has less ink, but is more than a spot."""
        inside = np.array((self.begin >= self.begin[:, [one]]).all(axis=0))
        inside &= (self.end <= self.end[:, [one]]).all(axis=0)
        large = (self.longest >= 0.2 * self.longest[one]) & (self.mass >= 0.04 * self.mass[one]) & (self.mass > 0)
        inside[one] = False
        covered = [self.sides(other, one) for other in np.flatnonzero(inside & large).tolist()]
        return any(sides[:2].all() or sides[2:].all() for sides in covered)

    def sides(self, one: int, other: int) -> Mask:
        """Whether the second part is left of, right of, above and below the first one, nearly all along it."""
        (top, left), (bottom, right) = self.begin[:, one], self.end[:, one]
        number = other + 1
        beside = [self.number[top:bottom, :left], self.number[top:bottom, right:]]
        above = [self.number[:top, left:right], self.number[bottom:, left:right]]
        shares = [(part == number).any(axis=1).mean() for part in beside]
        shares += [(part == number).any(axis=0).mean() for part in above]
        return np.asarray(np.array(shares) >= 0.85)

    def like(self, main: int, chosen: Mask) -> int:
        """How many other parts stand out as the chosen ones do."""
        mass, longest = float(self.mass[chosen].sum()), int(self.longest[main])
        others = ~chosen & ~self.cut_off & (self.mass >= 0.25 * mass) & (self.longest >= 0.5 * longest)
        # Two digits close to each other: as high as both together, one beside the other.
        top, bottom = self.begin[0, chosen].min(), self.end[0, chosen].max()
        height = bottom - top
        high = np.flatnonzero(chosen & (self.end[0] - self.begin[0] >= 0.6 * height) & (self.mass >= 0.2 * mass))
        beside = 0
        if len(high) > 1:
            order = high[np.argsort(self.begin[1, high])]
            beside = int((self.begin[1, order[1:]] - self.end[1, order[:-1]] >= 0.02 * height).sum())
        return int(others.sum()) + beside


def _is_sheet(shape: _Shape, picture: tuple[int, ...]) -> bool:
    """Whether a shape is too compact to consist of strokes, and has the picture's background around it."""
    shorter, longest = min(shape.mask.shape), max(shape.mask.shape)
    if longest < 48 or all(n >= 0.9 * m for n, m in zip(shape.mask.shape, picture, strict=True)):
        return False
    if shorter > longest / 2 and shape.mask.mean() > 0.75:
        return True
    # Half the width of the boldest strokes is about 0.17 of a digit's longer side (measured on MNIST).
    return bool(windowed(shape.mask, round(0.19 * longest), np.minimum).any())


def _sheet_alone(gray: Gray, sheet: _Shape) -> Gray:
    """The picture cropped to a sheet, with the sheet's brightness where something else shows at its edges."""
    mask = sheet.mask
    ahead = [np.maximum.accumulate(mask, axis) for axis in (0, 1)]
    behind = [np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis) for axis in (0, 1)]
    inside = ahead[0] & behind[0] & ahead[1] & behind[1]  # has pixels of the sheet above, below, left and right
    inside = windowed(inside, 1 + max(mask.shape) // 50, np.minimum)
    crop = gray[sheet.box]
    return np.where(inside, crop, np.median(crop[mask]))
