"""Rows of queries, keys and values, brought to shared memory.

Most tiles are whole: they lie inside all arrays. They need no code of their own, since in place of rows outside come
copies of the nearest row, which costs two instructions a row, where zeros took eight.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.attend.tiles import PAD, Tiles, lengths
from tinyprune.kernels.cuda.device.instructions import own_thread
from tinyprune.kernels.cuda.device.jit import device, float32, int32
from tinyprune.kernels.cuda.device.vectors import load4, store1, store4


@device
def inside(i, limit):
    """Return the row nearest to i of rows 0 … limit − 1."""
    return int32(min(max(int32(i), int32(0)), int32(limit - 1)))


def make_loads(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make `bring` and `bring_beside` for tiles of these sizes."""
    THREADS = lengths(tiles).threads

    @device
    def bring(source, at, step, first, limit, d0, W, tile, to, rows, columns):
        """Copy rows from `first` of `source`, and columns from d0, to shared memory: `rows` × `columns` from `to` on.

        Row i begins at entry at + i · step, a multiple of 4. In place of rows outside 0 … limit − 1 come copies of the
        first or last: whoever computes with them gives them no weight, so all that matters is that they are finite
        where others are. Columns ≥ W become zero.
        """
        across = columns // 4
        down = THREADS // across
        row, column = own_thread(THREADS) // across, own_thread(THREADS) % across * 4
        put, zero = to + row * (columns + PAD) + column, float32(0)
        if d0 + column < W:
            at += d0 + column
            for n in range(rows // down):
                a, b, c, e = load4(source, at + inside(first + row + n * down, limit) * step)
                store4(tile, put + n * down * (columns + PAD), a, b, c, e)
        else:
            for n in range(rows // down):
                store4(tile, put + n * down * (columns + PAD), zero, zero, zero, zero)

    @device
    def bring_beside(source, at, step, first, limit, tile, to, rows, columns):
        """Copy one number for each of those rows, to the place after it."""
        for part in range((rows + THREADS - 1) // THREADS):
            row = own_thread(THREADS) + part * THREADS
            if row < rows:
                store1(tile, to + row * (columns + PAD) + columns, source[at + inside(first + row, limit) * step])

    return bring, bring_beside
