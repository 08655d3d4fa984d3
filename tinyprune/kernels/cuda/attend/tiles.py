"""What the kernels of attention share: a block's work on a tile of queries and a tile of keys.

    s[i, j]   += Σ_d x[i, d] · y[j, d]             `dots`            for i < queries, j < keys, d < D
    s[i, j]   += Σ_d x[i, d] · z[i − j, d]         `sliding_dots`
    out[i, d] += Σ_j p[i, j] · y[j, d]             `mix`
    out[i, d] += Σ_j p[i, j] · z[i − j, d]         `sliding_mix`
    out[j, d] += Σ_i p[i, j] · x[i, d]             `mix_transposed`

x has a row for each query, y one for each key, and z, the position keys, one for each distance. z *slides*: a query and
a key that both move by one keep their distance. So a tile needs queries + keys − 1 rows of z, and (i, j) uses row
i − j + keys − 1. With 3 queries and 4 keys:

    key j        0  1  2  3
    query 0      3  2  1  0
    query 1      4  3  2  1
    query 2      5  4  3  2

In `distances` the roles change: y has distances, and z the keys, which slide in the same way.

x, y, z and p lie in one array of shared memory, `smem`; functions get the index at which each begins. s and out are in
registers. This file has the sizes, says which scores and sums a thread has, and loads x, y and z; the sums are in
`sums`. Rows of a tile outside an array are copies of its nearest row, so that tiles at the edges need no other code.

A thread computes the scores of 4 queries × 4 keys, whose rows are `side` = 8 apart. In a tile of 64 queries and 32 keys
the thread whose first score is (1, 2) has those marked a, and its neighbour those marked b:

    keys j            0  1  2  3  4  …  9 10 11 12  … 17 18 19 20  … 25 26 27 28  …
    query i = 1             a  b           a  b           a  b           a  b
    query i = 9             a  b           a  b           a  b           a  b
    query i = 17            a  b           a  b           a  b           a  b
    query i = 25            a  b           a  b           a  b           a  b
    queries 32 … 63 belong to the other 64 threads

So neighbouring threads read neighbouring rows, which the padding puts into different banks of shared memory, and the 16
scores of a thread have only 7 distances. For 4 numbers along d a thread reads 4 + 4 vectors of 16 bytes for 64
multiply-adds, or 4 + 7 where z slides.

Columns of p are in another order than keys, so that the 4 keys of a thread are side by side, and are read and written
as one vector: of each 4 · side keys, key j is in column j % side · 4 + j // side.

    column of p   0  1  2  3    4  5  6  7    8  9 10 11   …
    key           0  8 16 24    1  9 17 25    2 10 18 26   …
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinyprune.kernels.cuda.device.instructions import load4, store1, store4, thread_index
from tinyprune.kernels.cuda.device.jit import device, float32, int32

LOWEST = np.float32(-1e30)  # score of a key that a query does not see; not −∞, since −∞ − (−∞) is NaN
PAD = 4  # numbers after each row in shared memory; the first of them holds the row's bias, if it has one
ROWS, COLUMNS = 4, 4  # a thread has the scores of 4 queries × 4 keys, in registers s[m * COLUMNS + c]


class Tiles(NamedTuple):
    """Sizes that are constants in a kernel. Queries · keys are 16 scores for each thread."""

    width: int  # Dh, rounded up to the width of a kernel: D
    queries: int  # of a tile: 4 · side, with 8 · side keys, or the other way round
    keys: int
    z_columns: int = 32  # of z that are in shared memory at a time
    side: int = 8  # a block has 2 · side² threads


class Layout(NamedTuple):
    """What follows from these sizes: constants as well."""

    threads: int  # of a block
    resident: int  # blocks that a multiprocessor has room for: their threads have 128 registers each, or 168
    scores: int  # of a thread
    out_queries: int  # rows of out that a thread sums in `mix`; it has 4 columns of each
    out_keys: int  # the same in `mix_transposed`
    x_stride: int  # numbers from one row of x or y to the next in shared memory
    z_stride: int  # the same of z
    p_stride: int  # and of p
    z_columns: int
    z_rows: int  # of which the last is not used
    z_regs: int  # registers for the 4 numbers along d of each row of z that a thread uses at a time


def layout(tiles: Tiles) -> Layout:
    """Return the layout for tiles of these sizes."""
    D, queries, keys, z_columns, side = tiles
    threads, z_columns = 2 * side**2, min(z_columns, D)
    down = threads // (D // 4)  # threads along the rows of out; along its columns, each has 4
    out_queries = queries // down
    return Layout(
        threads=threads,
        resident=4 if D <= 32 else 3,
        scores=ROWS * COLUMNS,
        out_queries=out_queries,
        out_keys=keys // down,
        x_stride=D + PAD,
        z_stride=z_columns + PAD,
        p_stride=keys + PAD,
        z_columns=z_columns,
        z_rows=queries + keys,
        z_regs=4 * (max(ROWS + COLUMNS, out_queries + 4) - 1),
    )


@device
def clear(x, n):
    """Set n registers to zero."""
    for m in range(n):
        x[m] = float32(0)


def make_places(tiles: Tiles) -> tuple[Callable, Callable, Callable, Callable]:
    """Make `first_score`, `first_out`, `first_key_out` and `key_of` for tiles of these sizes."""
    QUERIES, KEYS, SIDE = tiles.queries, tiles.keys, tiles.side
    n = layout(tiles)
    OUT_QUERIES, OUT_KEYS = n.out_queries, n.out_keys
    GROUP = 4 * SIDE  # columns of p in which keys have another order
    ACROSS = tiles.width // 4  # threads that share a row of out

    @device
    def first_score(thread):
        """Return the first query i and the first key j of a thread's scores, and the column of p for key j.

        (i, j) of threads 0, 1, 2, 3, … are (0, 0), (1, 0), (0, 1), (1, 1), …: two neighbours read the same row of x or
        of y, which shared memory sends to both at once.
        """
        across, down = thread // 2 % SIDE, thread // (2 * SIDE) * 2 + thread % 2
        half = down // SIDE  # the second half of the threads has other queries or, if there are none, other keys
        i, j = down % SIDE + half * (QUERIES - ROWS * SIDE), across + half * (KEYS - COLUMNS * SIDE)
        return i, j, j // GROUP * GROUP + across * 4 + j % GROUP // SIDE

    @device
    def first_out(thread):
        """Return the first query of a thread's rows of out, which are SIDE apart, and the first of its 4 columns.

        Two neighbours have rows 4 apart, so that what they read of 4 columns is in different banks.
        """
        down = thread // (2 * ACROSS)
        down = down // 4 * 8 + down % 4 + thread % 2 * 4
        return down // SIDE * SIDE * OUT_QUERIES + down % SIDE, thread // 2 % ACROSS * 4

    @device
    def first_key_out(thread):
        """Return the same where rows of out are keys: the first of its columns of p, and the first of its 4 of out."""
        down = thread // (2 * ACROSS) * 2 + thread % 2
        return down * OUT_KEYS, thread // 2 % ACROSS * 4

    @device
    def key_of(column):
        """Return the key whose weights are in this column of p."""
        return column // GROUP * GROUP + column % GROUP // 4 + column % 4 * SIDE

    return first_score, first_out, first_key_out, key_of


@device
def nearest_row(i, count):
    """Return the row nearest to i of rows 0 … count − 1."""
    return int32(min(max(int32(i), int32(0)), int32(count - 1)))


def make_loads(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make `load_rows` and `load_biases` for tiles of these sizes."""
    THREADS = layout(tiles).threads

    @device
    def load_rows(source, begin, stride, first, count, d0, W, smem, to, rows, columns):
        """Copy rows first … first + rows − 1 of `source`, columns d0 … d0 + columns − 1, to smem[to …].

        Row i of `source` begins at entry begin + i · stride, a multiple of 4. It has rows 0 … count − 1; others become
        copies of the nearest one: their weight is 0, but 0 · NaN would be NaN. Columns from W on become zero.
        """
        across = columns // 4
        down = THREADS // across
        row, column = thread_index(THREADS) // across, thread_index(THREADS) % across * 4
        at, zero = to + row * (columns + PAD) + column, float32(0)
        if d0 + column < W:
            begin += d0 + column
            for n in range(rows // down):
                a, b, c, e = load4(source, begin + nearest_row(first + row + n * down, count) * stride)
                store4(smem, at + n * down * (columns + PAD), a, b, c, e)
        else:
            for n in range(rows // down):
                store4(smem, at + n * down * (columns + PAD), zero, zero, zero, zero)

    @device
    def load_biases(source, begin, first, count, smem, to, rows, columns):
        """Copy one number for each of these rows, its bias, to the place after the row."""
        for part in range((rows + THREADS - 1) // THREADS):
            row = thread_index(THREADS) + part * THREADS
            if row < rows:
                bias = source[begin + nearest_row(first + row, count)]
                store1(smem, to + row * (columns + PAD) + columns, bias)

    return load_rows, load_biases
