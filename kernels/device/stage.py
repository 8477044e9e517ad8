"""Staging: the threads of a block load the weights of its filters, and what its tile sees, into shared memory."""

from __future__ import annotations

from typing import Any

from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import ldg_if, st


def staging(products: int, filters: int, threads: int, put: Any) -> Any:
    """A device function ``stage(thread, *arguments)`` that calls ``put(product, filter, *arguments)`` for each weight.

    Each of ``filters`` filters has ``products`` weights. Eight neighbouring threads take eight weights of one filter,
    so that they load 32 neighbouring bytes. ``put`` is called for whole groups of eight, and so also for products that
    do not exist.
    """
    total = -(-products // 8) * 8 * filters

    @device_function
    def stage(thread: Any, *arguments: Any) -> None:
        i = thread
        while i < total:
            rest, product = divmod(i, 8)
            eight, filter_ = divmod(rest, filters)
            put(eight * 8 + product, filter_, *arguments)
            i += threads

    return stage


def weight_staging(staged: int, tile_filters: int, pitch: int, threads: int, *, products: int, filters: int) -> Any:
    """A device function ``stage(thread, to, weight, first_product, first_filter, at)``.

    It copies ``staged`` products, from ``first_product`` on, of ``tile_filters`` filters, from ``first_filter`` on, to
    shared memory: filters contiguous, products ``pitch`` apart. Products and filters beyond the last become zero.
    ``at`` is the element of ``weight`` where the first filter starts.
    """

    @device_function
    def put(product: Any, filter_: Any, to: Any, weight: Any, first_product: Any, first_filter: Any, at: Any) -> None:
        position = first_product + product
        inside = (product < staged) & (position < products) & (first_filter + filter_ < filters)
        st(to, product * pitch + filter_, ldg_if(weight, at + filter_ * products + position, inside))

    return staging(staged, tile_filters, threads, put)


def halo_staging(
    image: tuple[int, int], halo: tuple[int, int], threads: int, *, stage: int, channels: int, pitch: int, plane: int
) -> Any:
    """A device function ``fetch(thread, to, x, maps, channel, top_row, left_column)``.

    It copies what a tile sees of ``stage`` channels, from ``channel`` on, to shared memory: ``halo`` rows and columns
    from the top row and the left column on, unsigned words, so that what lies above or left of the image is a huge
    number. What is outside of the image becomes zero, and the channels beyond ``channels``.

    Args:
        image: height and width.
        halo: rows and columns.
        threads: of the block.
        stage, channels: how many are copied, and how many there are.
        pitch, plane: elements of shared memory from a row to the next, and from a channel to the next.

    ``maps`` is where in ``x`` the first of the channels begins.
    """
    (h, w), (height, width) = image, halo
    map_size, elements, ragged = h * w, height * width, channels % stage != 0

    @device_function
    def fetch(thread: Any, to: Any, x: Any, maps: Any, channel: Any, top_row: Any, left_column: Any) -> None:
        i = thread
        while i < elements:
            jr, jc = divmod(i, width)
            row, column = top_row + jr, left_column + jc
            inside = (row < h) & (column < w)
            offset = maps + (channel * h + row) * w + column
            # The loads of all channels are under way before the first is stored.
            for j in range(stage):
                there = inside & (channel + j < channels) if ragged else inside
                st(to, jr * pitch + jc + j * plane, ldg_if(x, offset + j * map_size, there))
            i += threads

    return fetch
