"""What the kernels of attention share: a block's work on a tile of queries and a tile of keys.

    s[i, j]   += Σ_d x[i, d] · y[j, d]             `dots`            for i < QUERIES, j < KEYS, d < D
    s[i, j]   += Σ_d x[i, d] · z[i − j, d]         `sliding_dots`
    out[i, d] += Σ_j p[i, j] · y[j, d]             `mix`
    out[i, d] += Σ_j p[i, j] · z[i − j, d]         `sliding_mix`
    out[j, d] += Σ_i p[i, j] · x[i, d]             `mix_turned`

All operands are in one array of shared memory, `tile`, and functions are told where each begins. Sums are in registers.

x has a row for each query, y one for each key. z *slides*: a query and a key that both move by one keep their
distance, so a tile needs QUERIES + KEYS − 1 rows of position keys, and (i, j) uses row i − j + KEYS − 1. In the same
way, distance and query determine the key.

A thread computes the scores of 4 queries × 4 keys, whose rows are SIDE apart. So neighbouring threads read
neighbouring rows, which padding puts into different banks of shared memory, and the 16 scores of a thread have only 7
distances. For 4 numbers along d it reads 4 + 4 times 16 bytes for 64 multiply-adds, or 4 + 7 times where z slides.

The weights p are stored as their threads have them, with keys that are SIDE apart side by side: of each 4 · SIDE keys,
key j is in column j % SIDE · 4 + j / SIDE. A thread of `mix` reads 4 of them with one instruction, and 7 rows of z.

Most tiles are whole: they lie inside all arrays, and every query sees every key. They need no code of their own. Rows
outside are copies of the nearest row, which costs two instructions a row, where zeros took eight. Masks and dropout are
passes over the scores of a thread, which it skips if it has nothing to hide or to drop.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numba import int64

from tinyprune.kernels.cuda.device.instructions import own_thread
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32, uint32
from tinyprune.kernels.cuda.device.vectors import load1, load4, store1, store4
from tinyprune.kernels.cuda.parts.masks import kept

LOWEST = np.float32(-1e30)  # score of a key that a query does not see; not −∞, since −∞ − (−∞) is NaN
PAD = 4  # numbers after each row in shared memory; the first may hold one that belongs to the row
ROWS = 4  # queries of a thread


class Tiles(NamedTuple):
    """Sizes that are constants in a kernel."""

    width: int  # Dh, rounded up
    queries: int  # of a tile: 4 · side or 8 · side
    keys: int  # of a tile: the other of both
    columns: int = 32  # of the sliding rows that are in shared memory at a time
    side: int = 8  # a block has 2 · side² threads


def lengths(tiles: Tiles) -> tuple[int, ...]:
    """Work out what follows from these sizes, constants as well."""
    D, queries, keys, columns, side = tiles
    threads, columns = 2 * side**2, min(columns, D)
    each = queries * keys // (ROWS * threads)
    down = threads // (D // 4)  # threads along the rows of out; along its columns, each has 4
    out_queries = queries // down
    return (
        threads,  # THREADS of a block
        each,  # EACH: keys of a thread, which has `ROWS` queries
        ROWS * each,  # SCORES of a thread
        out_queries,  # OUT_QUERIES: rows of out that a thread makes
        keys // down,  # OUT_KEYS: and if they are keys
        D + PAD,  # WIDE: numbers from one row of x or y to the next
        columns + PAD,  # NARROW: of z
        keys + PAD,  # WEIGHTS: of p
        columns,  # COLUMNS of z
        queries + keys,  # SLIDES: rows of z, of which the last is not used
        4 * (max(ROWS + each, out_queries + 4) - 1),  # SOME: registers for the rows of z that a thread needs at a time
    )


@device
def count_on(number, by):
    """Return number + by in 32 bits, as dropout numbers its entries."""
    return uint32((int64(number) + by) & 0xFFFFFFFF)


@device
def inside(i, limit):
    """Return the row nearest to i of rows 0 … limit − 1."""
    return int32(min(max(int32(i), int32(0)), int32(limit - 1)))


@device
def dot4(x, y, total):
    """Return total + Σ x · y of four numbers each."""
    return total + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]


@device
def add_row(sums, at, weight, x):
    """Add weight · x, four numbers, to sums[at…]."""
    for n in range(4):
        sums[at + n] += weight * x[n]


@device
def clear(x, n):
    """Set n registers to zero."""
    for m in range(n):
        x[m] = float32(0)


def make_functions(tiles: Tiles, step: int = 8) -> SimpleNamespace:
    """Make the device functions for tiles of these sizes; step: columns of a step of the longest loops, 4 or 8."""
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, EACH, SCORES, OUT_QUERIES, OUT_KEYS, WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, _ = lengths(tiles)
    GROUP = 4 * SIDE  # columns of p in which keys have another order
    ACROSS = D // 4  # threads that share a row of out
    STEP = min(step, COLUMNS)  # columns of a step of the loops of `dots` and `sliding_dots`
    # Loops have long steps, whose multiply-adds outnumber what counts them. How often a loop runs has 32 bits: with 64,
    # the compiler counts with five instructions instead of three.
    D_STEPS, COLUMN_STEPS, KEY_STEPS = np.int32(D // STEP), np.int32(COLUMNS // STEP), np.int32(SIDE // 2)
    # Of narrow heads a thread has few columns or rows, so that steps are longer still, as far as tiles are.
    SLIDING_KEYS = 16 if OUT_QUERIES == 2 and SIDE % 4 == 0 else 8
    TURNED_ROWS = 4 if OUT_KEYS == 4 else 16 if QUERIES % 16 == 0 else 8
    SLIDING_STEPS, ROW_STEPS = np.int32(4 * SIDE // SLIDING_KEYS), np.int32(QUERIES // TURNED_ROWS)

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

    @device
    def dots_4(tile, x, y, s):
        """s[i, j] += Σ_d x[i, d] · y[j, d] over 4 columns."""
        x0, x1 = load4(tile, x), load4(tile, x + SIDE * WIDE)
        x2, x3 = load4(tile, x + 2 * SIDE * WIDE), load4(tile, x + 3 * SIDE * WIDE)
        for j in range(EACH):
            some = load4(tile, y + j * SIDE * WIDE)
            s[j] = dot4(x0, some, s[j])
            s[EACH + j] = dot4(x1, some, s[EACH + j])
            s[2 * EACH + j] = dot4(x2, some, s[2 * EACH + j])
            s[3 * EACH + j] = dot4(x3, some, s[3 * EACH + j])

    @device
    def dots(tile, x, y, s):
        """s[i, j] += Σ_d x[i, d] · y[j, d]; x and y: the thread's first rows."""
        for _ in range(D_STEPS):
            dots_4(tile, x, y, s)
            if STEP > 4:
                dots_4(tile, x + 4, y + 4, s)
            x, y = x + STEP, y + STEP

    @device
    def sliding_dots_4(tile, x, z, some, s):
        """s[i, j] += Σ_d x[i, d] · z[i − j, d] over 4 columns."""
        for n in range(ROWS + EACH - 1):
            m = 4 * n
            some[m], some[m + 1], some[m + 2], some[m + 3] = load4(tile, z + (n + 1 - EACH) * SIDE * NARROW)
        for i in range(ROWS):
            a, b, c, e = load4(tile, x + i * SIDE * WIDE)
            for j in range(EACH):
                m, n = i * EACH + j, 4 * (i - j + EACH - 1)
                s[m] = s[m] + a * some[n] + b * some[n + 1] + c * some[n + 2] + e * some[n + 3]

    @device
    def sliding_dots(tile, x, z, some, s):
        """s[i, j] += Σ_d x[i, d] · z[i − j, d] over the columns that z has; z: the row of the thread's first (i, j)."""
        for _ in range(COLUMN_STEPS):
            sliding_dots_4(tile, x, z, some, s)
            if STEP > 4:
                sliding_dots_4(tile, x + 4, z + 4, some, s)
            x, z = x + STEP, z + STEP

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
                cuda.syncthreads()  # everyone has read the columns before
            if sliding:
                bring(source, at, step, first, limit, d0, W, tile, slides, SLIDES, COLUMNS)
            cuda.syncthreads()  # x, y and the columns are there
            if d0 == 0:
                dots(tile, x, y, s)
            if sliding:
                sliding_dots(tile, x + d0, z, some, s)
        if sliding:
            add_beside(tile, y, z, s)

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

    @device
    def share_sum(tile, at, shares):
        """Return the sum of so many numbers from `at` on: of one row, what its threads have found."""
        total = float32(0)
        for n in range(shares):
            total += load1(tile, at + n)
        return total

    @device
    def put(tile, p, s, i):
        """Store the thread's weights of its row i in p; p: where those of its first row go."""
        store4(tile, p + i * SIDE * WEIGHTS, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3])

    @device
    def mix_4(tile, p, y, sums):
        """out[i, d] += Σ_j p[i, j] · y[j, d] over 4 keys, SIDE apart."""
        y0, y1 = load4(tile, y), load4(tile, y + SIDE * WIDE)
        y2, y3 = load4(tile, y + 2 * SIDE * WIDE), load4(tile, y + 3 * SIDE * WIDE)
        for i in range(OUT_QUERIES):
            a, b, c, e = load4(tile, p + i * SIDE * WEIGHTS)
            for n in range(4):
                m = 4 * i + n
                sums[m] = sums[m] + a * y0[n] + b * y1[n] + c * y2[n] + e * y3[n]

    @device
    def mix(tile, p, y, sums):
        """out[i, d] += Σ_j p[i, j] · y[j, d]; p: the thread's first row, y: its column in the first row of y.

        Here and in `sliding_mix` a tile has 4 · SIDE keys.
        """
        for _ in range(KEY_STEPS):
            mix_4(tile, p, y, sums)
            mix_4(tile, p + 4, y + WIDE, sums)
            p, y = p + 8, y + 2 * WIDE

    @device
    def sliding_mix_4(tile, p, z, some, sums):
        """out[i, d] += Σ_j p[i, j] · z[i − j, d] over 4 keys; z: the thread's column in the row of the last of them."""
        for n in range(OUT_QUERIES + 3):
            m = 4 * n
            some[m], some[m + 1], some[m + 2], some[m + 3] = load4(tile, z + n * SIDE * NARROW)
        for i in range(OUT_QUERIES):
            a, b, c, e = load4(tile, p + i * SIDE * WEIGHTS)
            for n in range(4):
                m = 4 * i + n
                sums[m] = sums[m] + a * some[m + 12] + b * some[m + 8] + c * some[m + 4] + e * some[m]

    @device
    def sliding_mix(tile, p, z, some, sums):
        """out[i, d] += Σ_j p[i, j] · z[i − j, d]; z: the thread's column in the row of its first query and key 0."""
        z -= 3 * SIDE * NARROW
        for _ in range(SLIDING_STEPS):
            sliding_mix_4(tile, p, z, some, sums)
            sliding_mix_4(tile, p + 4, z - NARROW, some, sums)
            if SLIDING_KEYS == 16:
                sliding_mix_4(tile, p + 8, z - 2 * NARROW, some, sums)
                sliding_mix_4(tile, p + 12, z - 3 * NARROW, some, sums)
            p, z = p + SLIDING_KEYS, z - SLIDING_KEYS // 4 * NARROW

    @device
    def add_outer(tile, p, x, sums):
        """out[j, d] += p[j] · x[d] for the keys and columns of a thread."""
        some = load4(tile, x)
        if OUT_KEYS == 4:
            a, b, c, e = load4(tile, p)
            add_row(sums, 0, a, some)
            add_row(sums, 4, b, some)
            add_row(sums, 8, c, some)
            add_row(sums, 12, e, some)
        else:
            for j in range(OUT_KEYS):
                add_row(sums, 4 * j, load1(tile, p + j), some)

    @device
    def add_outer_4(tile, p, x, sums):
        """The same for 4 rows of p and x."""
        add_outer(tile, p, x, sums)
        add_outer(tile, p + WEIGHTS, x + WIDE, sums)
        add_outer(tile, p + 2 * WEIGHTS, x + 2 * WIDE, sums)
        add_outer(tile, p + 3 * WEIGHTS, x + 3 * WIDE, sums)

    @device
    def mix_turned(tile, p, x, sums):
        """out[j, d] += Σ_i p[i, j] · x[i, d]; p: the thread's first column, x: its column in the first row of x."""
        for _ in range(ROW_STEPS):
            add_outer_4(tile, p, x, sums)
            if TURNED_ROWS >= 8:
                add_outer_4(tile, p + 4 * WEIGHTS, x + 4 * WIDE, sums)
            if TURNED_ROWS == 16:
                add_outer_4(tile, p + 8 * WEIGHTS, x + 8 * WIDE, sums)
                add_outer_4(tile, p + 12 * WEIGHTS, x + 12 * WIDE, sums)
            p, x = p + TURNED_ROWS * WEIGHTS, x + TURNED_ROWS * WIDE

    return SimpleNamespace(
        score_place=score_place, out_place=out_place, key_place=key_place, key_in=key_in, bring=bring,
        bring_beside=bring_beside, dots=dots, sliding_dots=sliding_dots, scores=scores, hide=hide, drop=drop, put=put,
        mix=mix, sliding_mix=sliding_mix, mix_turned=mix_turned, share_sum=share_sum,
    )  # fmt: skip
