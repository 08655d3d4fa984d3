"""Scores of a tile of queries and a tile of keys: their sums, which of them are hidden, and dropped.

How often a loop runs has 32 bits: with 64, the compiler counts with five instructions instead of three.
"""

from collections.abc import Callable

import numpy as np

from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths
from tinyprune.kernels.cuda.device.instructions import load1, load4
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32
from tinyprune.kernels.cuda.parts.masks import kept


@device
def dot4(x, y, total):
    """Return total + Σ x · y of four numbers each."""
    return total + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]


def make_scores(tiles: Tiles, bring: Callable) -> tuple[Callable, Callable, Callable]:
    """Make `dots`, `sliding_dots` and `scores`; bring: of `make_loads`, for the same tiles."""
    D, SIDE, n = tiles.width, tiles.side, lengths(tiles)
    EACH, SCORES, WIDE, NARROW, COLUMNS, SLIDES = n.each, n.scores, n.wide, n.narrow, n.columns, n.slides
    STEPS, COLUMN_STEPS = np.int32(D // 4), np.int32(COLUMNS // 4)

    @device
    def dots(tile, x, y, s):
        """s[i, j] += Σ_d x[i, d] · y[j, d]; x and y: the thread's first rows."""
        for _ in range(STEPS):
            x0, x1 = load4(tile, x), load4(tile, x + SIDE * WIDE)
            x2, x3 = load4(tile, x + 2 * SIDE * WIDE), load4(tile, x + 3 * SIDE * WIDE)
            for j in range(EACH):
                some = load4(tile, y + j * SIDE * WIDE)
                s[j] = dot4(x0, some, s[j])
                s[EACH + j] = dot4(x1, some, s[EACH + j])
                s[2 * EACH + j] = dot4(x2, some, s[2 * EACH + j])
                s[3 * EACH + j] = dot4(x3, some, s[3 * EACH + j])
            x, y = x + 4, y + 4

    @device
    def sliding_dots(tile, x, z, some, s):
        """s[i, j] += Σ_d x[i, d] · z[i − j, d] over the columns that z has; z: the row of the thread's first (i, j)."""
        for _ in range(COLUMN_STEPS):
            for n in range(ROWS + EACH - 1):
                m = 4 * n
                some[m], some[m + 1], some[m + 2], some[m + 3] = load4(tile, z + (n + 1 - EACH) * SIDE * NARROW)
            for i in range(ROWS):
                a, b, c, e = load4(tile, x + i * SIDE * WIDE)
                for j in range(EACH):
                    m, n = i * EACH + j, 4 * (i - j + EACH - 1)
                    s[m] = s[m] + a * some[n] + b * some[n + 1] + c * some[n + 2] + e * some[n + 3]
            x, z = x + 4, z + 4

    @device
    def add_beside(tile, y, z, s):
        """s[i, j] += the numbers after row j of y and after row i − j of z; y and z as above."""
        for i in range(ROWS):
            for j in range(EACH):
                key, slide = y + j * SIDE * WIDE + D, z + (i - j) * SIDE * NARROW + COLUMNS
                s[i * EACH + j] += load1(tile, key) + load1(tile, slide)

    @device
    def scores(tile, x, y, z, slides, source, at, step, first, limit, W, sliding, some, s):
        """s[i, j] = Σ_d x[i, d] · y[j, d], and if `sliding` also Σ_d x[i, d] · z[i − j, d] and the numbers beside.

        x, y, z: the thread's first rows. Rows of z are brought from `source` to `slides`, some columns at a time; see
        `bring`. What was brought before is waited for.
        """
        clear(s, SCORES)
        for d0 in range(0, D if sliding else COLUMNS, COLUMNS):
            if d0 > 0:
                cuda.syncthreads()  # all threads have read the columns before
            if sliding:
                bring(source, at, step, first, limit, d0, W, tile, slides, SLIDES, COLUMNS)
            cuda.syncthreads()  # x, y and the columns are there
            if d0 == 0:
                dots(tile, x, y, s)
            if sliding:
                sliding_dots(tile, x + d0, z, some, s)
        if sliding:
            add_beside(tile, y, z, s)

    return dots, sliding_dots, scores


def make_masks(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make `hide` and `drop`: passes over the scores of a thread, which skips them where all are seen, or kept."""
    SIDE, EACH = tiles.side, lengths(tiles).each

    @device
    def hide(s, near, climb, reach):
        """Set scores of keys that their queries do not see to LOWEST.

        The thread's row m sees its keys c with near + m · climb − reach ≤ c · SIDE ≤ near + m · climb. In most tiles
        that is all of them, and one test finds it out.
        """
        if near < (EACH - 1) * SIDE or near + (ROWS - 1) * climb > reach:
            for m in range(ROWS):
                last = int32(near + m * climb)
                for c in range(EACH):
                    if not int32(last - reach) <= c * SIDE <= last:
                        s[m * EACH + c] = LOWEST

    @device
    def drop(x, entry, row_entries, step, dropout):
        """Set what dropout takes out to zero; entry: number of the first, and steps along rows and keys."""
        _, key0, key1, limit = dropout
        if limit > 0:
            for m in range(ROWS):
                for c in range(EACH):
                    if not kept(count_on(entry, m * row_entries + c * step), key0, key1, limit):
                        x[m * EACH + c] = float32(0)

    return hide, drop
