"""Sums over a tile in shared memory: scores, which of them are hidden or dropped, and rows times weights. See `tiles`.

Parameters x, y, z and p are the index in `smem` of the thread's first row or column of these arrays. In loops, i and j
count the thread's own rows, which are SIDE apart: 0 … 3 for its queries (ROWS) and its keys (COLUMNS).

Loops count with 32 bits (`np.int32`): with 64, the compiler counts with five instructions instead of three.
"""

from collections.abc import Callable

import numpy as np
from numba import int64

from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Tiles, clear, layout
from tinyprune.kernels.cuda.device.instructions import load1, load4, store1, store4, thread_index
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32, uint32
from tinyprune.kernels.cuda.parts.masks import kept


@device
def dot4(x, y, total):
    """Return total + Σ x · y of four numbers each."""
    return total + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]


def make_scores(tiles: Tiles, load_rows: Callable) -> tuple[Callable, Callable, Callable]:
    """Make `dots`, `sliding_dots` and `scores`; `load_rows` is that of `make_loads` for the same tiles."""
    D, SIDE, n = tiles.width, tiles.side, layout(tiles)
    X_STRIDE, Z_STRIDE, Z_COLUMNS, Z_ROWS = n.x_stride, n.z_stride, n.z_columns, n.z_rows
    STEPS, Z_STEPS = np.int32(D // 4), np.int32(Z_COLUMNS // 4)

    @device
    def dots(smem, x, y, s):
        """Add Σ_d x[i, d] · y[j, d] to s[i, j]."""
        for _ in range(STEPS):
            x0, x1 = load4(smem, x), load4(smem, x + SIDE * X_STRIDE)
            x2, x3 = load4(smem, x + 2 * SIDE * X_STRIDE), load4(smem, x + 3 * SIDE * X_STRIDE)
            for j in range(COLUMNS):
                key = load4(smem, y + j * SIDE * X_STRIDE)
                s[j] = dot4(x0, key, s[j])
                s[COLUMNS + j] = dot4(x1, key, s[COLUMNS + j])
                s[2 * COLUMNS + j] = dot4(x2, key, s[2 * COLUMNS + j])
                s[3 * COLUMNS + j] = dot4(x3, key, s[3 * COLUMNS + j])
            x, y = x + 4, y + 4

    @device
    def sliding_dots(smem, x, z, z_regs, s):
        """Add Σ_d x[i, d] · z[i − j, d] to s[i, j], over the columns of z in shared memory.

        z: in the row of the thread's first query and key. Row n of z_regs is the one where i − j = n + 1 − COLUMNS.
        """
        for _ in range(Z_STEPS):
            for n in range(ROWS + COLUMNS - 1):
                m, row = 4 * n, z + (n + 1 - COLUMNS) * SIDE * Z_STRIDE
                z_regs[m], z_regs[m + 1], z_regs[m + 2], z_regs[m + 3] = load4(smem, row)
            for i in range(ROWS):
                a, b, c, e = load4(smem, x + i * SIDE * X_STRIDE)
                for j in range(COLUMNS):
                    m, n = i * COLUMNS + j, 4 * (i - j + COLUMNS - 1)
                    s[m] = s[m] + a * z_regs[n] + b * z_regs[n + 1] + c * z_regs[n + 2] + e * z_regs[n + 3]
            x, z = x + 4, z + 4

    @device
    def add_biases(smem, y, z, s):
        """Add to s[i, j] the biases after row j of y and after row i − j of z."""
        for i in range(ROWS):
            for j in range(COLUMNS):
                key, slide = y + j * SIDE * X_STRIDE + D, z + (i - j) * SIDE * Z_STRIDE + Z_COLUMNS
                s[i * COLUMNS + j] += load1(smem, key) + load1(smem, slide)

    @device
    def scores(smem, x, y, z, to, source, begin, stride, first, count, W, sliding, z_regs, s):
        """Set s[i, j] to Σ_d x[i, d] · y[j, d] and, if `sliding`, add Σ_d x[i, d] · z[i − j, d] and the rows' biases.

        Z_COLUMNS columns of z at a time are copied from `source` to smem[to …], see `load_rows`; then all threads wait.
        """
        clear(s, ROWS * COLUMNS)
        for d0 in range(0, D if sliding else Z_COLUMNS, Z_COLUMNS):
            if d0 > 0:
                cuda.syncthreads()  # all threads have read the columns before
            if sliding:
                load_rows(source, begin, stride, first, count, d0, W, smem, to, Z_ROWS, Z_COLUMNS)
            cuda.syncthreads()  # x, y and the columns are there
            if d0 == 0:
                dots(smem, x, y, s)
            if sliding:
                sliding_dots(smem, x + d0, z, z_regs, s)
        if sliding:
            add_biases(smem, y, z, s)

    return dots, sliding_dots, scores


@device
def hide(s, last, rise, span, side):
    """Set scores of keys that their queries do not see to LOWEST.

    The thread's query i sees its key j if last + i · rise − span ≤ j · side ≤ last + i · rise, with keys counted from
    the thread's first one. In most tiles it sees all of them; one test on two corners finds this out.
    """
    if last < (COLUMNS - 1) * side or last + (ROWS - 1) * rise > span:
        for i in range(ROWS):
            end = int32(last + i * rise)
            for j in range(COLUMNS):
                if not int32(end - span) <= j * side <= end:
                    s[i * COLUMNS + j] = LOWEST


@device
def add32(number, by):
    """Return number + by modulo 2³², as dropout numbers its entries."""
    return uint32((int64(number) + by) & 0xFFFFFFFF)


@device
def drop(x, entry, row_entries, key_entries, dropout):
    """Set what dropout takes out to zero. Score (i, j) is entry + i · row_entries + j · key_entries of the mask."""
    _, key0, key1, limit = dropout
    if limit > 0:
        for i in range(ROWS):
            for j in range(COLUMNS):
                if not kept(add32(entry, i * row_entries + j * key_entries), key0, key1, limit):
                    x[i * COLUMNS + j] = float32(0)


@device
def add_scaled(sums, at, weight, x):
    """Add weight · x, four numbers, to sums[at …]."""
    for n in range(4):
        sums[at + n] += weight * x[n]


@device
def write(out, at, sums, row, factor):
    """Write the 4 columns of one of a thread's rows of out, times a factor, to out[at …]."""
    n = 4 * row
    store4(out, at, sums[n] * factor, sums[n + 1] * factor, sums[n + 2] * factor, sums[n + 3] * factor)


@device
def sum_of(smem, begin, count):
    """Return the sum of `count` numbers in shared memory."""
    total = float32(0)
    for n in range(count):
        total += load1(smem, begin + n)
    return total


@device
def store_row(smem, at, s, m):
    """Store a thread's 4 weights of its query m from smem[at] on: in p its keys are side by side."""
    store4(smem, at, s[4 * m], s[4 * m + 1], s[4 * m + 2], s[4 * m + 3])


def make_mix(tiles: Tiles) -> tuple[Callable, Callable, Callable]:
    """Make `mix` and `sliding_mix`, for tiles of 4 · side keys, and `mix_transposed`, for all."""
    SIDE, n = tiles.side, layout(tiles)
    OUT_QUERIES, OUT_KEYS, X_STRIDE, P_STRIDE = n.out_queries, n.out_keys, n.x_stride, n.p_stride
    STEPS, QUERY_STEPS = np.int32(SIDE), np.int32(tiles.queries // 4)

    @device
    def mix(smem, p, y, sums):
        """Add Σ_j p[i, j] · y[j, d] to out[i, d]; y: the thread's first column in row 0 of y."""
        for _ in range(STEPS):  # 4 keys at a time, SIDE apart: they are side by side in p
            y0, y1 = load4(smem, y), load4(smem, y + SIDE * X_STRIDE)
            y2, y3 = load4(smem, y + 2 * SIDE * X_STRIDE), load4(smem, y + 3 * SIDE * X_STRIDE)
            for i in range(OUT_QUERIES):
                a, b, c, e = load4(smem, p + i * SIDE * P_STRIDE)
                for n in range(4):
                    m = 4 * i + n
                    sums[m] = sums[m] + a * y0[n] + b * y1[n] + c * y2[n] + e * y3[n]
            p, y = p + 4, y + X_STRIDE

    @device
    def sliding_mix(smem, p, z, z_regs, sums):
        """Add Σ_j p[i, j] · z[i − j, d] to out[i, d]; z: the thread's first column, in the row of its query and key 0.

        Here z has all D columns. For 4 keys, SIDE apart, row n of z_regs is the one where i − j = n − 3.
        """
        z -= 3 * SIDE * X_STRIDE  # to the row of the last of the 4 keys
        for _ in range(STEPS):
            for n in range(OUT_QUERIES + 3):
                m = 4 * n
                z_regs[m], z_regs[m + 1], z_regs[m + 2], z_regs[m + 3] = load4(smem, z + n * SIDE * X_STRIDE)
            for i in range(OUT_QUERIES):
                a, b, c, e = load4(smem, p + i * SIDE * P_STRIDE)
                for n in range(4):
                    m = 4 * i + n
                    sums[m] = sums[m] + a * z_regs[m + 12] + b * z_regs[m + 8] + c * z_regs[m + 4] + e * z_regs[m]
            p, z = p + 4, z - X_STRIDE

    @device
    def add_outer(smem, p, x, sums):
        """Add p[j] · x[d] to out[j, d] for one query, and for the thread's keys and columns."""
        row = load4(smem, x)
        if OUT_KEYS == 4:
            a, b, c, e = load4(smem, p)
            add_scaled(sums, 0, a, row)
            add_scaled(sums, 4, b, row)
            add_scaled(sums, 8, c, row)
            add_scaled(sums, 12, e, row)
        else:
            for j in range(OUT_KEYS):
                add_scaled(sums, 4 * j, load1(smem, p + j), row)

    @device
    def mix_transposed(smem, p, x, sums):
        """Add Σ_i p[i, j] · x[i, d] to out[j, d]; p, x: the thread's first columns, in row 0."""
        for _ in range(QUERY_STEPS):  # 4 queries at a time
            for i in range(4):
                add_outer(smem, p + i * P_STRIDE, x + i * X_STRIDE, sums)
            p, x = p + 4 * P_STRIDE, x + 4 * X_STRIDE

    return mix, sliding_mix, mix_transposed


def make_biases(tiles: Tiles, begin: int) -> tuple[Callable, Callable, Callable]:
    """Make functions for the terms of u, which is added to all queries, from sums of ds over the queries of a key:

        dk[j] += Σ_i ds[i, j] · u        du += Σ_j (Σ_i ds[i, j]) · k[j]

    So also for w, with distances r in place of k. PEERS threads have scores of a key; each has a partial sum. These lie
    in shared memory from `begin` on, as (key, peer). After `store_partial_sums` all threads have to wait.
    """
    SIDE, KEYS, THREADS, X_STRIDE = tiles.side, tiles.keys, layout(tiles).threads, layout(tiles).x_stride
    PEERS = tiles.queries // ROWS

    @device
    def store_partial_sums(smem, i, j, ds_sums):
        """Store the thread's sum of ds for each of its keys; i, j: its first query and key."""
        peer = i % SIDE + i // (ROWS * SIDE) * SIDE
        for c in range(COLUMNS):
            store1(smem, begin + j * PEERS + peer + c * SIDE * PEERS, ds_sums[c])

    @device
    def add_bias(smem, key, bias, first, sums, row):
        """Add Σ_i ds[i, key] · bias[first …] to the 4 columns of one of a thread's rows of dk."""
        total = sum_of(smem, begin + key * PEERS, PEERS)
        for c in range(4):
            sums[4 * row + c] += total * bias[first + c]

    @device
    def write_bias_gradient(smem, W, out, first, factor):
        """Set out[first …], W numbers, to Σ_key (Σ_i ds[i, key]) · k[key] · factor; k begins in shared memory at 0."""
        for d in range(thread_index(THREADS), W, THREADS):
            total = float32(0)
            for key in range(KEYS):
                total += sum_of(smem, begin + key * PEERS, PEERS) * load1(smem, key * X_STRIDE + d)
            out[first + d] = total * factor

    return store_partial_sums, add_bias, write_bias_gradient
