"""Sums of rows of keys, values or queries, times weights that are in shared memory."""

from collections.abc import Callable

import numpy as np

from tinyprune.kernels.cuda.attend.tiles import ROWS, Tiles, lengths, share_sum
from tinyprune.kernels.cuda.device.instructions import load1, load4, own_thread, store1, store4
from tinyprune.kernels.cuda.device.jit import device, float32


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
    """Make `mix` and `sliding_mix`, whose rows of out are queries, for tiles of 4 · side keys; rows of z are whole."""
    SIDE, n = tiles.side, lengths(tiles)
    OUT_QUERIES, WIDE, WEIGHTS, STEPS = n.out_queries, n.wide, n.weights, np.int32(tiles.side)

    @device
    def mix(tile, p, y, sums):
        """out[i, d] += Σ_j p[i, j] · y[j, d]; p: the thread's first row, y: its column in the first row of y."""
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
        """out[i, d] += Σ_j p[i, j] · z[i − j, d]; z: the thread's column in the row of its first query and key 0."""
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
    def mix_turned(tile, p, x, sums):
        """out[j, d] += Σ_i p[i, j] · x[i, d]; p: the thread's first column, x: its column in the first row of x."""
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
