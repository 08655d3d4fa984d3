"""Which rows and columns of a tile are a thread's; see the drawing in `tiles`."""

from collections.abc import Callable

from tinyprune.kernels.cuda.attend.tiles import ROWS, Tiles, lengths
from tinyprune.kernels.cuda.device.jit import device


def make_places(tiles: Tiles) -> tuple[Callable, Callable, Callable, Callable]:
    """Make `score_place`, `out_place`, `key_place` and `key_in` for tiles of these sizes."""
    QUERIES, KEYS, SIDE = tiles.queries, tiles.keys, tiles.side
    n = lengths(tiles)
    EACH, OUT_QUERIES, OUT_KEYS = n.each, n.out_queries, n.out_keys
    GROUP = 4 * SIDE  # columns of p in which keys have another order
    ACROSS = tiles.width // 4  # threads that share a row of out

    @device
    def score_place(thread):
        """Return the first query and the first key of a thread's scores, and the column of p for them.

        Threads that differ in the lowest bit read the same keys, and in the next the same queries: shared memory serves
        both at once.
        """
        x, y = thread // 2 % SIDE, thread // (2 * SIDE) * 2 + thread % 2
        half = y // SIDE  # the second half of the threads has other queries or, if there are none, other keys
        i, j = y % SIDE + half * (QUERIES - ROWS * SIDE), x + half * (KEYS - EACH * SIDE)
        return i, j, j // GROUP * GROUP + x * 4 + j % GROUP // SIDE

    @device
    def out_place(thread):
        """Return a thread's first query, the others follow SIDE rows apart, and its first column of out."""
        y = thread // (2 * ACROSS) * 2 + thread % 2
        return y // SIDE * SIDE * OUT_QUERIES + y % SIDE, thread // 2 % ACROSS * 4

    @device
    def key_place(thread):
        """Return the same if rows of out are keys: the first one's column of p, the others follow, and that of out."""
        y = thread // (2 * ACROSS) * 2 + thread % 2
        return y * OUT_KEYS, thread // 2 % ACROSS * 4

    @device
    def key_in(column):
        """Return the key whose weights are in this column of p."""
        return column // GROUP * GROUP + column % GROUP // 4 + column % 4 * SIDE

    return score_place, out_place, key_place, key_in
