"""Sums of rows of keys, values or queries, times weights that are in shared memory; for steps of loops see `scores`."""

from collections.abc import Callable

import numpy as np

from tinyprune.kernels.cuda.attend.tiles import Tiles, lengths
from tinyprune.kernels.cuda.device.jit import device
from tinyprune.kernels.cuda.device.vectors import load1, load4, store4


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


def make_put(tiles: Tiles) -> Callable:
    """Make `put` for tiles of these sizes."""
    SIDE, WEIGHTS = tiles.side, lengths(tiles).weights

    @device
    def put(tile, p, s, i):
        """Store the thread's weights of its row i in p; p: where those of its first row go."""
        store4(tile, p + i * SIDE * WEIGHTS, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3])

    return put


def make_mix(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make `mix` and `sliding_mix`, whose rows of out are queries. A tile has 4 · side keys."""
    SIDE, n = tiles.side, lengths(tiles)
    OUT_QUERIES, WIDE, NARROW, WEIGHTS = n.out_queries, n.wide, n.narrow, n.weights
    # Of narrow heads a thread has few rows, so that steps are longer still, as far as tiles are.
    SLIDING_KEYS = 16 if OUT_QUERIES == 2 and SIDE % 4 == 0 else 8
    KEY_STEPS, SLIDING_STEPS = np.int32(SIDE // 2), np.int32(4 * SIDE // SLIDING_KEYS)

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
        """out[i, d] += Σ_j p[i, j] · y[j, d]; p: the thread's first row, y: its column in the first row of y."""
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

    return mix, sliding_mix


def make_mix_turned(tiles: Tiles) -> Callable:
    """Make `mix_turned`, whose rows of out are keys."""
    QUERIES, n = tiles.queries, lengths(tiles)
    OUT_KEYS, WIDE, WEIGHTS = n.out_keys, n.wide, n.weights
    TURNED_ROWS = 4 if OUT_KEYS == 4 else 16 if QUERIES % 16 == 0 else 8
    ROW_STEPS = np.int32(QUERIES // TURNED_ROWS)

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

    return mix_turned
