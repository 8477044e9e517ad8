"""Which of the results a block or a thread computes."""

from __future__ import annotations

from typing import Any, TypeAlias

from numba import cuda

from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.words import u32

#: How an axis is cut up: into how many tiles, and the size of each.
Cut: TypeAlias = tuple[int, int]


def tile_of_block(*, maps: Cut, rows: Cut, columns: Cut) -> Any:
    """A device function of a block's number: what is left of it, and the first map, row and column of its tile.

    Neighbouring blocks have tiles beside each other in a row, then rows of tiles, then those of other maps.
    """
    (deep, tile_maps), (down, tile_rows), (beside, tile_columns) = maps, rows, columns

    @device_function
    def tile_of(block: Any) -> Any:
        rest, column = divmod(block, beside)
        rest, row = divmod(rest, down)
        rest, map_ = divmod(rest, deep)
        return rest, map_ * tile_maps, row * tile_rows, column * tile_columns

    return tile_of


def element_of_thread(threads: int, height: int, width: int, /) -> Any:
    """A device function without arguments: the number of the thread's element, and its map, row and column.

    Elements are numbered map by map and row by row; a block of ``threads`` has so many, one after the other.
    """

    @device_function
    def element() -> Any:
        i = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        # The compiler knows the bounds of a remainder, not those of `divmod`'s, which is a difference.
        line = i // width
        return i, line // height, line % height, i % width

    return element
