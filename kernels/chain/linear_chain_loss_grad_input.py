"""Gradients of the mean cross-entropy of a chain's results: before each layer's ReLU, and for the chain's input.

For three layers, as LeNet's: the first one's results are given, the other two are computed again. So it waits neither
for the chain's logits, nor for their loss, whose kernels may run beside it. One launch does what would be three.

A block takes ``rows`` rows through the last two layers, softmax, and back, and then multiplies with some columns of the
first layer's weights; blocks for the same rows do the same until then, and the first of them writes it. All weights
that a thread needs are fetched at the beginning, into registers:

- Of the second layer a warp has ``features`` features, and a lane four neighbouring inputs of them. Forward, the lanes'
  parts meet by shuffles; backward, by the same weights, the warps' parts meet in shared memory.
- Of the last layer, which is small, the block has all weights in shared memory. A warp computes a row's logits, a
  column a lane, and from them the gradient: softmax minus one, divided by the number of labels that count.
- Of the first layer ``lanes`` neighbouring lanes have four columns each, and groups of them share its features; the
  groups' parts meet in shared memory.

All sums have a fixed order. A label that is neither a class nor ``ignore_index`` gives its row the gradient zero, as in
``softmax_cross_entropy_mean``.

Shared bytes: at most 48 KB; LeNet's need 28. Registers aimed at: at most 168, what 384 threads leave each other.
Expected bottleneck: about 1,500 instructions of a warp, of which there are three a scheduler.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.chain.linear_chain import fits_chain
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, Refusal
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg, ldg4, ldg_if, st
from gpuconv.kernels.device.reduce import reduce_scatter, reduction
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

DTYPES = ("float32",)

#: Features of the first layer for each warp at most, so that a thread holds few of its weights.
_FEATURES_A_WARP = 10
_MOST_WARPS = 14
#: Bytes of static shared memory.
_SHARED_BYTES = 48 * 1024


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        rows: rows a block, 1, 2 or 4.
        features: the second layer's features a warp, 4 or 8.
        lanes: lanes that share a row of the first layer's weights, 16 or 32, four columns each.
    """

    rows: int
    features: int
    lanes: int


def supports(geometry: ChainGeometry) -> Answer:
    """True for three layers with a ReLU behind the first two, as wide as a block has room for."""
    if not (fits := fits_chain(geometry)):
        return fits
    sizes = geometry.sizes
    if geometry.relu != (True, True, False):
        return Refusal("it is for three layers with a ReLU between them")
    if sizes[0] % 4 or sizes[1] % 4:
        return Refusal(f"128 bits do not divide rows of {sizes[0]} and {sizes[1]} weights")
    if sizes[1] > 128 or _warps(sizes, 8) > _MOST_WARPS or sizes[3] > 16:
        return Refusal(f"layers of {sizes[1]}, {sizes[2]} and {sizes[3]} features are more than 128, 112 and 16")
    return True


def _warps(sizes: tuple[int, ...], features: int) -> int:
    return max(4, -(-sizes[2] // features), -(-sizes[1] // _FEATURES_A_WARP))


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """The fewest rows, and so instructions, with which a quarter of the multiprocessors is left; else few blocks.

    The kernels for logits and loss run beside this one, whose blocks share a multiprocessor with no other block: they
    have too many registers. What finds no multiprocessor would wait for all of a block.
    """
    # More than 12 warps leave each other 128 registers, and with 32 lanes a thread has twice as many weights.
    most = 32 if _warps(geometry.sizes, 8) <= 12 else 16
    choices = [Tiling(rows, 8, lanes) for rows in (1, 2, 4) for lanes in (16, most)[: most // 16]]
    if _warps(geometry.sizes, 4) <= _MOST_WARPS:
        choices.append(Tiling(4, 4, 16))
    choices = [tiling for tiling in choices if 4 * sum(_shared(geometry.sizes, tiling)) <= _SHARED_BYTES]

    def order(tiling: Tiling) -> tuple[int, int, int]:
        blocks = -(-geometry.n // tiling.rows) * _across(geometry.sizes[0], tiling.lanes)[0]
        return max(0, blocks - MULTIPROCESSORS * 3 // 4), tiling.rows, tiling.lanes

    return tuple(sorted(choices, key=order))


def _across(inputs: int, lanes: int) -> tuple[int, int]:
    """Blocks for the columns of a row, and how many times four columns each of them has."""
    quads = inputs // 4
    blocks = -(-quads // lanes)
    return blocks, -(-quads // blocks)


def _shared(sizes: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    """Elements of shared memory: last weights, results of each layer, last one first, and parts of sums."""
    warps, groups = _warps(sizes, tiling.features), _warps(sizes, tiling.features) * (32 // tiling.lanes)
    width, columns = warps * tiling.features, 4 * _across(sizes[0], tiling.lanes)[1]
    parts = max(-(-sizes[2] // tiling.features) * sizes[1], groups * columns)
    row = -(-sizes[3] // 4) * 4, width, -(-sizes[1] // groups) * groups, parts
    return sizes[3] * width, *(tiling.rows * one for one in row)


@specialised
def _kernel(
    sizes: tuple[int, ...], has_bias: tuple[bool, ...], tiling: Tiling, dtype: str, aligned16: bool
) -> Callable[..., None]:
    """``aligned16``: weights, and the first layer's results, begin at multiples of 128 bits."""
    real = getattr(types, dtype)
    inputs, first_size, second_size, classes = sizes
    rows, features, lanes = tiling.rows, tiling.features, tiling.lanes
    warps, used_warps = _warps(sizes, features), -(-second_size // features)
    threads, width = 32 * warps, features * warps
    blocks_across, quads = _across(inputs, lanes)
    columns, groups = 4 * quads, warps * (32 // lanes)
    share = -(-first_size // groups)
    padded_first, pairs = groups * share, first_size // 2
    values = rows * features
    lanes_a_value = 32 // values
    scores = 1
    while scores < classes:
        scores *= 2
    lanes_a_score, score_pitch = 32 // scores, -(-classes // 4) * 4
    second_biased, last_biased = has_bias[1], has_bias[2]
    weights_size, scores_size, second_results, first_results, parts_size = _shared(sizes, tiling)
    # As many threads as features, for some classes at once.
    classes_at_once = threads // width
    class_rounds = -(-classes // classes_at_once)
    lowest = float("-inf")
    load_pair, load_four, store_four = vector_access(2)[0], vector_access(4)[0], vector_access(4)[2]
    load_rows = vector_access(rows)[0]
    sum_over_lanes, score_of_lane = reduce_scatter(values), reduce_scatter(scores)
    largest_of_warp, sum_of_warp = reduction(32, threads, dtype, largest=True), reduction(32, threads, dtype)

    # Beyond the last feature, row or column the last one is fetched again: it is multiplied with zero, or what is made
    # of it is not written. Offsets are signed, so that what is added becomes part of the instruction.

    @device_function
    def fetch_four(i: int, found: Any, array: Any, at: Any) -> None:
        if aligned16:
            found[i, 0], found[i, 1], found[i, 2], found[i, 3] = ldg4(array, at)
        else:
            for e in range(4):
                found[i, e] = ldg(array, at + e)

    @device_function
    def fetch_second(j: int, w: Any, weight: Any, feature: Any, at: Any) -> None:
        fetch_four(j, w, weight, i32(minimum(feature + j, second_size - 1) * first_size + at))

    @device_function
    def fetch_first(i: int, w: Any, weight: Any, feature: Any, column: Any) -> None:
        if padded_first == first_size:
            fetch_four(i, w, weight, i32(feature * inputs + column) + i * inputs)
        else:
            fetch_four(i, w, weight, i32(minimum(feature + i, first_size - 1) * inputs + column))

    @device_function
    def fetch_row(r: int, x: Any, y: Any, first_row: Any, at: Any, exists: Any, n: Any) -> None:
        fetch_four(r, x, y, i32(minimum(first_row + r, n - 1) * first_size + at))
        for e in range(4):
            x[r, e] = x[r, e] if exists else real(0)

    @device_function
    def fetch_last(i: int, found: Any, weight: Any, class_: Any, at: Any) -> None:
        class_ += i * classes_at_once
        found[i] = ldg_if(weight, class_ * second_size + at, (class_ < classes) & (at < second_size))

    @device_function
    def put_last(i: int, found: Any, last_weights: Any, class_: Any, at: Any) -> None:
        class_ += i * classes_at_once
        if class_ < classes:
            st(last_weights, class_ * width + at, found[i])

    @device_function
    def multiply_second(j: int, sums: Any, w: Any, x: Any) -> None:
        for r in range(rows):
            total = w[j, 0] * x[r, 0]
            for e in range(1, 4):
                total = fma(w[j, e], x[r, e], total)
            sums[j * rows + r] = total

    @device_function
    def score(c: int, sums: Any, w: Any, x: Any, last_weights: Any, lane: Any) -> None:
        load_four(w, last_weights, c * width + 4 * lane)
        total = w[0] * x[0]
        for e in range(1, 4):
            total = fma(w[e], x[e], total)
        sums[c] = total

    @device_function
    def add_second(j: int, sums: Any, w: Any, grads: Any) -> None:
        for r in range(rows):
            for e in range(4):
                sums[r, e] = fma(w[j, e], grads[r, j], sums[r, e])

    @device_function
    def add_first(i: int, sums: Any, w: Any, one: Any, grads: Any, feature: Any) -> None:
        load_rows(one, grads, (feature + i) * rows)
        for r in range(rows):
            for e in range(4):
                sums[r, e] = fma(w[i, e], one[r], sums[r, e])

    fetch_all_second, fetch_all_first = unrolled(fetch_second, features), unrolled(fetch_first, share)
    fetch_rows, multiply_all_second = unrolled(fetch_row, rows), unrolled(multiply_second, features)
    fetch_all_last, put_all_last = unrolled(fetch_last, class_rounds), unrolled(put_last, class_rounds)
    score_all, add_all_second, add_all_first = (
        unrolled(score, classes),
        unrolled(add_second, features),
        unrolled(add_first, share),
    )

    @device_function
    def of_labels(labels: Any, row: Any, lane: Any, n: Any, no_class: Any) -> Any:
        """Of a row, by a warp: its label, or what is no class where it does not count; and how many rows count."""
        count = real(0)
        i = lane
        while i < n:
            other = ldg(labels, i)
            count += real(1) if (other != no_class) & (other >= 0) & (other < classes) else real(0)
            i += 32
        label = ldg_if(labels, row, row < n)
        counts = (label != no_class) & (label >= 0) & (label < classes) & (row < n)
        return u32(label) if counts else u32(classes), sum_of_warp(count)

    @device_function
    def gradient_of_scores(
        results: Any, last_weights: Any, here: Any, lane: Any, bias: Any, label: Any, count: Any
    ) -> Any:
        """Of a row, by a warp: the gradient for the class that a lane has."""
        sums, w, x = cuda.local.array(scores, real), cuda.local.array(4, real), cuda.local.array(4, real)
        for c in range(scores):
            sums[c] = real(0)
        if 4 * lane < width:
            load_four(x, results, here * width + 4 * lane)
            score_all(sums, w, x, last_weights, lane)
        score_of_lane(sums, lane)
        class_, logit = lane // lanes_a_score, sums[0] + bias
        largest = largest_of_warp(logit if class_ < classes else real(lowest))
        exponential = real(math.exp(logit - largest))
        total = sum_of_warp(exponential if (lane % lanes_a_score == 0) & (class_ < classes) else real(0))
        value = exponential / total
        if class_ == label:
            value -= real(1)
        return value / count if label < classes else real(0)

    @jit(launch_bounds=threads)
    def linear_chain_loss_grad_input(
        y: Any, labels: Any, weights: Any, biases: Any, grads: Any, out: Any, no_class: Any, rows_given: Any
    ) -> None:
        last_weights = cuda.shared.array(weights_size, real, alignment=16)
        second = cuda.shared.array(second_results, real, alignment=16)
        first = cuda.shared.array(first_results, real, alignment=16)
        last = cuda.shared.array(scores_size, real, alignment=16)
        parts = cuda.shared.array(parts_size, real, alignment=16)
        w2, w1 = cuda.local.array((features, 4), real), cuda.local.array((share, 4), real)
        x, sums = cuda.local.array((rows, 4), real), cuda.local.array(values, real)
        back, grads_here = cuda.local.array((rows, 4), real), cuda.local.array((rows, features), real)
        last_found = cuda.local.array(class_rounds, real)
        one, four, pair = cuda.local.array(rows, real), cuda.local.array(4, real), cuda.local.array(2, real)

        n = u32(rows_given)
        thread = u32(cuda.threadIdx.x)
        warp, lane = thread >> 5, thread & 31
        block_down, block_across = divmod(u32(cuda.blockIdx.x), blocks_across)
        first_row, writes = block_down * rows, block_across == 0
        # What is needed last is fetched with the rest, so that all of it is on its way at once.
        feature = warp * features
        at = minimum(4 * lane, first_size - 4)
        fetch_all_second(w2, weights[1], feature, at)
        fetch_rows(x, y, first_row, at, 4 * lane < first_size, n)
        group, quad = warp * (32 // lanes) + lane // lanes, lane % lanes
        column = minimum(block_across * columns + 4 * quad, inputs - 4)
        fetch_all_first(w1, weights[0], group * share, column)
        class_, at = divmod(thread, width)
        fetch_all_last(last_found, weights[2], class_, at)
        pair_row, pair_feature = divmod(thread, pairs)
        pair_feature *= 2
        pair_at = (first_row + pair_row) * first_size + pair_feature
        pair_exists = (pair_row < rows) & (first_row + pair_row < n)
        masks = ldg_if(y, pair_at, pair_exists), ldg_if(y, pair_at + 1, pair_exists)
        j, r = divmod(lane // lanes_a_value, rows)
        mine, leads, score_class = feature + j, lane % lanes_a_value == 0, lane // lanes_a_score
        second_bias = ldg(biases[1], minimum(mine, second_size - 1)) if second_biased else real(0)
        label, count, last_bias = u32(classes), real(1), real(0)
        if warp < rows:
            label, count = of_labels(labels, first_row + warp, lane, n, no_class)
            if last_biased:
                last_bias = ldg(biases[2], minimum(score_class, classes - 1))
        put_all_last(last_found, last_weights, class_, at)
        i = thread + rows * first_size
        while i < first_results:
            st(first, i, real(0))
            i += threads

        multiply_all_second(sums, w2, x)
        sum_over_lanes(sums, lane)
        result = sums[0] + second_bias
        # Written so that a NaN stays, but not of a feature that does not exist.
        result = real(0) if (result <= real(0)) | (mine >= second_size) else result
        if leads:
            st(second, r * width + mine, result)
        cuda.syncthreads()

        if warp < rows:
            value = gradient_of_scores(second, last_weights, warp, lane, last_bias, label, count)
            if (lane % lanes_a_score == 0) & (score_class < classes):
                st(last, warp * score_pitch + score_class, value)
                if writes & (first_row + warp < n):
                    st(grads[2], (first_row + warp) * classes + score_class, value)
        cuda.syncthreads()

        total = real(0)
        for c in range(classes):
            total = fma(ld(last_weights, c * width + mine), ld(last, r * score_pitch + c), total)
        total = real(0) if result <= real(0) else total
        if leads:
            st(second, r * width + mine, total)
            if writes & (first_row + r < n) & (mine < second_size):
                st(grads[1], (first_row + r) * second_size + mine, total)
        # A warp reads the features that it has written.
        cuda.syncwarp()
        for r in range(rows):
            for j in range(0, features, 4):
                load_four(four, second, r * width + feature + j)
                for e in range(4):
                    grads_here[r, j + e] = four[e]
            for e in range(4):
                back[r, e] = real(0)
        add_all_second(back, w2, grads_here)
        if (warp < used_warps) & (4 * lane < first_size):
            for r in range(rows):
                for e in range(4):
                    four[e] = back[r, e]
                store_four(four, parts, (warp * rows + r) * first_size + 4 * lane)
        cuda.syncthreads()

        if pair_row < rows:
            low, high = real(0), real(0)
            for w in range(used_warps):
                load_pair(pair, parts, (w * rows + pair_row) * first_size + pair_feature)
                low += pair[0]
                high += pair[1]
            # Written so that a NaN lets the gradient through.
            low, high = real(0) if masks[0] <= real(0) else low, real(0) if masks[1] <= real(0) else high
            st(first, pair_feature * rows + pair_row, low)
            st(first, (pair_feature + 1) * rows + pair_row, high)
            if writes & pair_exists:
                st(grads[0], pair_at, low)
                st(grads[0], pair_at + 1, high)
        cuda.syncthreads()

        for r in range(rows):
            for e in range(4):
                back[r, e] = real(0)
        add_all_first(back, w1, one, first, group * share)
        if quad < quads:
            for r in range(rows):
                for e in range(4):
                    four[e] = back[r, e]
                store_four(four, parts, (group * rows + r) * columns + 4 * quad)
        cuda.syncthreads()
        i = 2 * thread
        while i < rows * columns:
            row, at = divmod(i, columns)
            at += block_across * columns
            row += first_row
            if (row < n) & (at < inputs):
                low, high = real(0), real(0)
                for g in range(groups):
                    load_pair(pair, parts, g * rows * columns + i)
                    low += pair[0]
                    high += pair[1]
                st(out, row * inputs + at, low)
                st(out, row * inputs + at + 1, high)
            i += 2 * threads

    return linear_chain_loss_grad_input


def calls(a: Arguments, geometry: ChainGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, blocks for some rows and some columns of the input."""
    n, sizes, _ = geometry
    kernel = _kernel(sizes, a.has("biases"), tiling, a.dtype, a.aligned("y", "weights"))
    blocks = -(-n // tiling.rows) * _across(sizes[0], tiling.lanes)[0]
    threads = 32 * _warps(sizes, tiling.features)
    yield call(kernel, blocks, threads, a.y, a.labels, a.weights, a.biases, a.grads, a.out, a.ignore_index, n)
