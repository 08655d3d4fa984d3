"""Scores of a tile: their sums, which are hidden, which are dropped; and sums of rows times weights in shared memory.

How often a loop runs has 32 bits: with 64, the compiler counts with five instructions instead of three.
"""

from collections.abc import Callable

import numpy as np

from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths
from tinyprune.kernels.cuda.device.instructions import load1, load4, own_thread, store1, store4
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
        """Add Σ_d x[i, d] · y[j, d] to s[i, j]; x and y: the thread's first rows."""
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
        """Add Σ_d x[i, d] · z[i − j, d] over the columns of z to s[i, j]; z: the row of the thread's first (i, j)."""
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
        """Add to s[i, j] the numbers after row j of y and after row i − j of z; y and z as above."""
        for i in range(ROWS):
            for j in range(EACH):
                key, slide = y + j * SIDE * WIDE + D, z + (i - j) * SIDE * NARROW + COLUMNS
                s[i * EACH + j] += load1(tile, key) + load1(tile, slide)

    @device
    def scores(tile, x, y, z, slides, source, at, step, first, limit, W, sliding, some, s):
        """Set s[i, j] to Σ_d x[i, d] · y[j, d] and, if `sliding`, Σ_d x[i, d] · z[i − j, d] and the numbers beside.

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


@device
def add_row(sums, at, weight, x):
    """Add weight · x, four numbers, to sums[at…]."""
    for n in range(4):
        sums[at + n] += weight * x[n]


@device
def write(out, at, sums, n, factor):
    """Write four of a thread's sums, from 4 · n on, times a factor to out[at …]."""
    n = 4 * n
    store4(out, at, sums[n] * factor, sums[n + 1] * factor, sums[n + 2] * factor, sums[n + 3] * factor)


@device
def share_sum(tile, at, shares):
    """Return the sum of so many numbers from `at` on: of one row, what its threads have found."""
    total = float32(0)
    for n in range(shares):
        total += load1(tile, at + n)
    return total


def make_put(tiles: Tiles) -> Callable:
    """Make `put` for tiles of these sizes."""
    SIDE, WEIGHTS = tiles.side, lengths(tiles).weights

    @device
    def put(tile, p, s, i):
        """Store the thread's weights of its row i in p; p: where those of its first row go."""
        store4(tile, p + i * SIDE * WEIGHTS, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3])

    return put


def make_mix(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make `mix` and `sliding_mix`, whose rows of out are queries, for tiles of 4 · side keys; rows of z are whole."""
    SIDE, n = tiles.side, lengths(tiles)
    OUT_QUERIES, WIDE, WEIGHTS, STEPS = n.out_queries, n.wide, n.weights, np.int32(tiles.side)

    @device
    def mix(tile, p, y, sums):
        """Add Σ_j p[i, j] · y[j, d] to out[i, d]; p: the thread's first row, y: its column in the first row of y."""
        for _ in range(STEPS):  # 4 keys at a time, SIDE apart
            y0, y1 = load4(tile, y), load4(tile, y + SIDE * WIDE)
            y2, y3 = load4(tile, y + 2 * SIDE * WIDE), load4(tile, y + 3 * SIDE * WIDE)
            for i in range(OUT_QUERIES):
                a, b, c, e = load4(tile, p + i * SIDE * WEIGHTS)
                for n in range(4):
                    m = 4 * i + n
                    sums[m] = sums[m] + a * y0[n] + b * y1[n] + c * y2[n] + e * y3[n]
            p, y = p + 4, y + WIDE

    @device
    def sliding_mix(tile, p, z, some, sums):
        """Add Σ_j p[i, j] · z[i − j, d] to out[i, d]; z: the thread's column in the row of its query and key 0."""
        z -= 3 * SIDE * WIDE
        for _ in range(STEPS):  # z: in the row of the last of 4 keys
            for n in range(OUT_QUERIES + 3):
                m = 4 * n
                some[m], some[m + 1], some[m + 2], some[m + 3] = load4(tile, z + n * SIDE * WIDE)
            for i in range(OUT_QUERIES):
                a, b, c, e = load4(tile, p + i * SIDE * WEIGHTS)
                for n in range(4):
                    m = 4 * i + n
                    sums[m] = sums[m] + a * some[m + 12] + b * some[m + 8] + c * some[m + 4] + e * some[m]
            p, z = p + 4, z - WIDE

    return mix, sliding_mix


def make_mix_turned(tiles: Tiles) -> Callable:
    """Make `mix_turned`, whose rows of out are keys."""
    n = lengths(tiles)
    OUT_KEYS, WIDE, WEIGHTS, STEPS = n.out_keys, n.wide, n.weights, np.int32(tiles.queries // 4)

    @device
    def add_outer(tile, p, x, sums):
        """Add p[j] · x[d] to out[j, d] for the keys and columns of a thread."""
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
    def mix_turned(tile, p, x, sums):
        """Add Σ_i p[i, j] · x[i, d] to out[j, d]; p: the thread's first column, x: its column in the first row of x."""
        for _ in range(STEPS):
            for i in range(4):
                add_outer(tile, p + i * WEIGHTS, x + i * WIDE, sums)
            p, x = p + 4 * WEIGHTS, x + 4 * WIDE

    return mix_turned


def make_biases(tiles: Tiles, at: int) -> tuple[Callable, Callable, Callable]:
    """Make what u and w, which are added to all queries, need: functions of sums of ds over the queries of a key.

        dk[j] += Σ_i ds[i, j] · u        du += Σ_j (Σ_i ds[i, j]) · k[j]          and so with distances, r and w

    at: where the sums of threads are in shared memory. After `put_shares` all threads have to wait.
    """
    SIDE, KEYS, n = tiles.side, tiles.keys, lengths(tiles)
    THREADS, EACH, WIDE = n.threads, n.each, n.wide
    SHARES = tiles.queries // ROWS  # threads that share a key's scores

    @device
    def put_shares(tile, i, j, found):
        """Store the thread's sum for each of its keys; i, j: its first query and key."""
        share = i % SIDE + i // (ROWS * SIDE) * SIDE
        for c in range(EACH):
            store1(tile, at + j * SHARES + share + c * SIDE * SHARES, found[c])

    @device
    def add_bias(tile, key, bias, first, sums, n):
        """Add Σ ds of a key times four numbers of a bias, from `first` on, to the thread's sums from 4 · n on."""
        total = share_sum(tile, at + key * SHARES, SHARES)
        for c in range(4):
            sums[4 * n + c] += total * bias[first + c]

    @device
    def put_bias_gradient(tile, W, out, first, factor):
        """Set out[first …] to Σ_key (Σ ds) · key · factor; the tile's keys begin in shared memory at 0."""
        for d in range(own_thread(THREADS), W, THREADS):
            total = float32(0)
            for key in range(KEYS):
                total += share_sum(tile, at + key * SHARES, SHARES) * load1(tile, key * WIDE + d)
            out[first + d] = total * factor

    return put_shares, add_bias, put_bias_gradient
