"""Lines that are no part of a digit: the sides of a box, a grid, ruled paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.raster import Mask, bounding_box, components, runs, windowed

__all__ = ["without_lines"]

_GREATEST_SLOPE = 0.1  # 6 degrees
_MOST_LINES = 40  # of each direction
_Ints = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class _Runs:
    """The runs of a mask's pixels down each column: their column, first row, and length."""

    column: _Ints
    row: _Ints
    length: _Ints

    @classmethod
    def of(cls, mask: Mask) -> _Runs:
        return cls(*runs(mask.T))

    def of_which(self, chosen: Mask) -> _Runs:
        return _Runs(self.column[chosen], self.row[chosen], self.length[chosen])

    def paint(self, shape: tuple[int, ...]) -> Mask:
        """The pixels of the runs."""
        change = np.zeros((shape[0] + 1, shape[1]), dtype=np.int32)
        np.add.at(change, (self.row, self.column), 1)
        np.add.at(change, (self.row + self.length, self.column), -1)
        return np.cumsum(change, axis=0)[:-1] > 0


@dataclass(frozen=True, eq=False)
class _Line:
    """A straight line from left to right (or, `down`, from top to bottom; its mask is transposed to that)."""

    down: bool
    slope: float
    offset: float  # row at column 0
    begin: int  # columns
    end: int
    thickness: float
    spans: bool  # from edge to edge of the picture
    pixels: Mask  # of the picture: what goes with it; where a stroke crosses, nothing
    band: Mask  # of the picture: all of its length and thickness

    def rows(self, first: int, last: int) -> tuple[float, float]:
        """Least and greatest row between two columns."""
        ends = self.offset + self.slope * first, self.offset + self.slope * last
        return min(ends) - self.thickness / 2, max(ends) + self.thickness / 2


def without_lines(mask: Mask) -> Mask:
    """What is left of a mask without the lines in it that are surely no strokes of a digit.

    A line is straight, thin, within 6 degrees of the picture's sides and longer than what remains between or on such
    lines: it goes on beyond that at both ends. A digit's own straight strokes do not, as they end where others begin.
    Of a line that reaches from edge to edge that is enough, if it is thinner than the strokes that it crosses; others
    have to have a second one at the other side, as boxes have, or to touch nothing.
    """
    if mask.sum() < 12:
        return mask
    lines = _lines(mask, down=False) + _lines(mask.T, down=True)
    before = components(mask) if lines else None
    while lines:
        removed = _pixels(lines, mask)
        left = mask & ~removed
        rest = _main_part(left)
        if rest is None or _is_remnant(rest, [line for line in lines if not line.spans]):
            # The digit itself was a straight line, as a 1 is. Those from edge to edge may still be others.
            spanning = [line for line in lines if line.spans]
            if len(spanning) == len(lines):
                break
            lines = spanning
            continue
        sure = [line for line in lines if _is_no_stroke(line, lines, rest, before)]
        if len(sure) == len(lines):
            return _tidied(mask, left, removed, rest, before, lines)
        lines = sure
    return mask


def _pixels(lines: list[_Line], mask: Mask) -> Mask:
    """What goes with lines: also the corners of a box, where each of two sides looks like a stroke to the other."""
    removed, bands = np.zeros_like(mask), [np.zeros_like(mask), np.zeros_like(mask)]
    for line in lines:
        removed |= line.pixels
        bands[line.down] |= line.band
    return mask & (removed | (bands[0] & bands[1]))


# -- candidates --------------------------------------------------------------------------------------------------------


def _lines(mask: Mask, *, down: bool) -> list[_Line]:
    """All that might be lines from left to right in a mask, by a Hough transform of its thin runs."""
    height, width = mask.shape
    everything = _Runs.of(mask)
    most = max(7, round(0.025 * max(height, width)))
    thin = everything.of_which(everything.length <= most)
    box = bounding_box(mask)
    least = max(12, 0.4 * max(part.stop - part.start for part in box))
    if len(thin.row) < least:
        return []
    middle = thin.row + (thin.length - 1) / 2
    steps = int(np.ceil(_GREATEST_SLOPE * width / 2))
    slopes = np.linspace(-_GREATEST_SLOPE, _GREATEST_SLOPE, 2 * steps + 1)
    margin = int(np.ceil(_GREATEST_SLOPE * width)) + 2
    free = np.ones(len(middle), dtype=bool)
    at_slopes = middle - slopes[:, None] * thin.column
    votes = _votes(at_slopes, margin, height)
    found: list[_Line] = []
    for _ in range(2 * _MOST_LINES):
        best, at = np.unravel_index(int(votes.argmax()), votes.shape)
        if votes[best, at] < 0.5 * least or len(found) == _MOST_LINES:
            break
        near = free & (np.abs(at_slopes[best] - (at - margin)) <= 1.6)
        line = _traced(mask, thin, middle, near, float(slopes[best]), float(at - margin), least, down=down)
        if line is not None:
            found.append(line)
            near = free & (np.abs(middle - line.slope * thin.column - line.offset) <= line.thickness / 2 + 1.5)
        if not near.any():
            votes[best, at] = 0
            continue
        free &= ~near
        votes -= _votes(at_slopes[:, near], margin, height)
    return found


def _votes(offsets: NDArray[np.float64], margin: int, height: int) -> _Ints:
    """For each slope (row) and offset from -margin on (column): how many runs are within 1.5 pixels of such a line."""
    count = height + 2 * margin + 2
    at = np.floor(offsets + margin + 0.5).astype(np.intp).clip(1, count - 2)
    at += count * np.arange(len(offsets))[:, None]
    votes = np.bincount(at.ravel(), minlength=count * len(offsets)).reshape(len(offsets), count)
    votes[:, 1:-1] = votes[:, :-2] + votes[:, 1:-1] + votes[:, 2:]
    return votes


def _traced(
    mask: Mask,
    thin: _Runs,
    middle: NDArray[np.float64],
    near: Mask,
    slope: float,
    offset: float,
    least: float,
    *,
    down: bool,
) -> _Line | None:
    """The longest stretch of a line without a gap; None if that is too short, or much of it is within strokes."""
    height, width = mask.shape
    if near.sum() < 2:
        return None
    column = np.arange(width)
    row = np.round(slope * column + offset).astype(int)
    inside = np.zeros(width, dtype=bool)
    for shift in (-1, 0, 1):
        inside |= mask[np.clip(row + shift, 0, height - 1), column] & (row + shift >= 0) & (row + shift < height)
    supported = np.zeros(width, dtype=bool)
    supported[thin.column[near]] = True
    inside |= supported
    gap = max(3, round(0.015 * width))
    on = np.flatnonzero(inside)
    if not on.size:
        return None
    pieces = np.split(on, np.flatnonzero(np.diff(on) > gap) + 1)
    longest = max(pieces, key=len)
    begin, end = int(longest[0]), int(longest[-1])
    support = supported[begin : end + 1]
    if end - begin + 1 < least or support.mean() < 0.5:
        return None
    members = near & (thin.column >= begin) & (thin.column <= end)
    fitted = np.polyfit(thin.column[members], middle[members], 1) if members.sum() > 8 else (slope, offset)
    slope, offset = float(fitted[0]), float(fitted[1])
    thickness = float(np.median(thin.length[members]))
    distance = np.abs(middle - slope * thin.column - offset)
    members = (
        (distance <= thickness / 2 + 1.5)
        & (thin.length <= 1.6 * thickness + 2)
        & (thin.column >= begin - 1)
        & (thin.column <= end + 1)
    )
    top = np.round(slope * column + offset - (thickness - 1) / 2 - 1).astype(int)
    y = np.arange(height)[:, None]
    band = (y >= top) & (y <= top + thickness + 1) & (column >= begin - 2) & (column <= end + 2)
    pixels = thin.of_which(members).paint(mask.shape)
    spans = begin <= 2 and end >= width - 3
    if down:
        pixels, band = pixels.T, band.T
    return _Line(down, slope, offset, begin, end, thickness, spans, pixels, band)


# -- judgement ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rest:
    """The largest part of a mask."""

    box: tuple[slice, slice]
    mask: Mask  # of the picture
    stroke: float  # width of its strokes


def _main_part(mask: Mask) -> _Rest | None:
    parts = components(mask)
    if not parts.any():
        return None
    size = np.bincount(parts.ravel())
    size[0] = 0
    at_border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    weight = size.astype(np.float64)
    weight[at_border] *= 0.1  # what runs out of the picture is a rest of something else, if there is anything else
    main = parts == int(weight.argmax())
    if main.sum() < 8:
        return None
    box = bounding_box(main)
    crop = np.pad(main[box], 1)
    outline = crop & ~windowed(crop, 1, np.minimum)
    return _Rest(box, main, 2 * float(crop.sum()) / max(1, int(outline.sum())))


def _is_remnant(rest: _Rest, lines: list[_Line]) -> bool:
    """Whether what is left is too small to be what was written beside these lines."""
    longest = max((line.end - line.begin for line in lines), default=0)
    return max(part.stop - part.start for part in rest.box) < 0.25 * longest


def _is_no_stroke(line: _Line, lines: list[_Line], rest: _Rest, before: NDArray[np.intp] | None) -> bool:
    across, along = (rest.box[1], rest.box[0]) if line.down else rest.box
    if not _goes_beyond(line, along):
        return False
    top, bottom = line.rows(along.start, along.stop)
    crosses = top < across.stop - 1 and bottom > across.start + 1
    above = below = 0
    for other in lines:
        if other.down == line.down and other is not line and _goes_beyond(other, along):
            their_top, their_bottom = other.rows(along.start, along.stop)
            depth = 0.25 * (across.stop - across.start)
            above += their_bottom <= min(across.start + depth, top)
            below += their_top >= max(across.stop - depth, bottom)
    thin = line.thickness <= max(0.7 * rest.stroke, 1.5)
    height, width = rest.mask.shape
    free = (
        rest.box[0].start > 1
        and rest.box[1].start > 1
        and rest.box[0].stop < height - 1
        and rest.box[1].stop < width - 1
    )
    if crosses:
        return thin and ((line.spans and free) or above + below > 0)
    opposite = below if bottom <= across.start + 1 else above
    if opposite or (line.spans and free and not _is_remnant(rest, [line])):
        return True
    assert before is not None
    return thin and not np.isin(before[line.pixels], np.unique(before[rest.mask])).any()


def _goes_beyond(line: _Line, along: slice) -> bool:
    margin = max(2, 0.04 * (along.stop - along.start))
    return line.spans or (line.begin <= along.start - margin and line.end >= along.stop + margin)


def _tidied(
    mask: Mask, left: Mask, removed: Mask, rest: _Rest, before: NDArray[np.intp] | None, lines: list[_Line]
) -> Mask:
    """Without what hung on the lines and nothing else: most of it was line, or it is as thin and begins on one."""
    assert before is not None
    size = np.bincount(before.ravel())
    gone = np.bincount(before[removed], minlength=len(size))
    drop = gone >= 0.5 * size
    drop[np.unique(before[rest.mask])] = False
    drop[0] = False
    litter = drop[before] & mask
    left = left & ~litter

    thickness = max(line.thickness for line in lines)
    touching = windowed(removed, 2, np.maximum)
    parts = components(left)
    size = np.bincount(parts.ravel())
    core = left & windowed(left, max(1, round(thickness / 2)), np.minimum)
    thick = np.bincount(parts[core], minlength=len(size))
    touched = np.zeros(len(size), dtype=bool)
    touched[np.unique(parts[touching & left])] = True
    stub = touched & ((thick == 0) | (size <= 4 * thickness**2))
    stub[0] = False
    stub[np.unique(parts[rest.mask & left])] = False
    return left & ~stub[parts]
