"""What the kernels of attention share: a block's work on a tile of queries and a tile of keys.

    s[i, j]   += Σ_d x[i, d] · y[j, d]             `dots`            for i < queries, j < keys, d < D
    s[i, j]   += Σ_d x[i, d] · z[i − j, d]         `sliding_dots`
    out[i, d] += Σ_j p[i, j] · y[j, d]             `mix`
    out[i, d] += Σ_j p[i, j] · z[i − j, d]         `sliding_mix`
    out[j, d] += Σ_i p[i, j] · x[i, d]             `mix_turned`

This file has their sizes, says which rows and columns are a thread's, and brings operands; the sums are in `sums`. In
place of the rows of a tile that lie outside an array come copies of the nearest row,
so that tiles at the edges need no code.

All operands are in one array of shared memory, `tile`, and functions are told where each begins. Sums are in registers.

x has a row for each query, y one for each key. z *slides*: a query and a key that both move by one keep their
distance, so a tile needs queries + keys − 1 rows of position keys, and (i, j) uses row i − j + keys − 1. In the same
way, distance and query determine the key.

A thread computes the scores of 4 queries × 4 keys, whose rows are `side` = 8 apart. In a tile of 64 queries and 32 keys
the thread whose first score is (1, 2) has those marked a, and its neighbour those marked b:

    keys j            0  1  2  3  4  …  9 10 11 12  … 17 18 19 20  … 25 26 27 28  …
    query i = 1             a  b           a  b           a  b           a  b
    query i = 9             a  b           a  b           a  b           a  b
    query i = 17            a  b           a  b           a  b           a  b
    query i = 25            a  b           a  b           a  b           a  b
    queries 32 … 63 belong to the other 64 threads

So neighbouring threads read neighbouring rows, which padding puts into different banks of shared memory, and the 16
scores of a thread have only 7 distances. For 4 numbers along d it reads 4 + 4 times 16 bytes for 64 multiply-adds, or
4 + 7 times where z slides.

The weights p are stored as their threads have them, with keys that are `side` apart next to each other: of each
4 · side keys, key j is in column j % side · 4 + j / side. A thread of `mix` reads 4 of them with one instruction, and 7
rows of z.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import int64

from tinyprune.kernels.cuda.device.instructions import load4, own_thread, store1, store4
from tinyprune.kernels.cuda.device.jit import device, float32, int32, uint32

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


class Lengths(NamedTuple):
    """What follows from these sizes: constants as well."""

    threads: int  # of a block
    resident: int  # blocks of a multiprocessor: their threads have 128 registers each, or 168
    each: int  # keys of a thread, which has `ROWS` queries
    scores: int  # of a thread
    out_queries: int  # rows of out that a thread makes
    out_keys: int  # and if they are keys
    wide: int  # numbers from one row of x or y to the next
    narrow: int  # of z
    weights: int  # of p
    columns: int  # of z
    slides: int  # rows of z, of which the last is not used
    some: int  # registers for the rows of z that a thread needs at a time


def lengths(tiles: Tiles) -> Lengths:
    """Work them out."""
    D, queries, keys, columns, side = tiles
    threads, columns = 2 * side**2, min(columns, D)
    each = queries * keys // (ROWS * threads)
    down = threads // (D // 4)  # threads along the rows of out; along its columns, each has 4
    out_queries = queries // down
    return Lengths(
        threads=threads,
        resident=4 if D <= 32 else 3,
        each=each,
        scores=ROWS * each,
        out_queries=out_queries,
        out_keys=keys // down,
        wide=D + PAD,
        narrow=columns + PAD,
        weights=keys + PAD,
        columns=columns,
        slides=queries + keys,
        some=4 * (max(ROWS + each, out_queries + 4) - 1),
    )


@device
def count_on(number, by):
    """Return number + by in 32 bits, as dropout numbers its entries."""
    return uint32((int64(number) + by) & 0xFFFFFFFF)


@device
def clear(x, n):
    """Set n registers to zero."""
    for m in range(n):
        x[m] = float32(0)


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
