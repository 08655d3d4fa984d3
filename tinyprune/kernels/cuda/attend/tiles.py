"""How a block of threads computes attention: its tile of queries × keys, what each thread has of it, shared memory.

    s[i, j]   += Σ_d x[i, d] · y[j, d]             `dots`            for i < queries, j < keys, d < D
    s[i, j]   += Σ_d x[i, d] · z[i − j, d]         `sliding_dots`
    out[i, d] += Σ_j p[i, j] · y[j, d]             `mix`
    out[i, d] += Σ_j p[i, j] · z[i − j, d]         `sliding_mix`
    out[j, d] += Σ_i p[i, j] · x[i, d]             `outer`

x has a row for each query, y one for each key, and z, the position keys, one for each distance. z *slides*: a query and
a key that both move by one keep their distance. So a tile needs queries + keys − 1 rows of z, and (i, j) uses row
i − j + keys − 1. With 3 queries and 4 keys:

                keys j: rows of y
                  0   1   2   3
    queries i:  ┌───┬───┬───┬───┐
    rows of x 0 │ 3 │ 2 │ 1 │ 0 │      in each square the row of z,
              1 │ 4 │ 3 │ 2 │ 1 │      of which there are 3 + 4 − 1
              2 │ 5 │ 4 │ 3 │ 2 │
                └───┴───┴───┴───┘

In `distances` the roles change: y has distances, and z the keys, which slide in the same way.

Scores. A thread computes those of 4 queries × 4 keys, whose rows are `side` = 8 apart: from its first query i and first
key j on the queries i, i + 8, i + 16, i + 24 and the keys j, j + 8, j + 16, j + 24. A tile of 64 × 32 or 32 × 64 is two
halves of 32 × 32, one for each 64 threads, and a half is 4 × 4 squares of 8 × 8. Each square of the first half has the
same threads, and each of the second half those with 64 more:

    key j         0    1    2    3    4    5    6    7
    query i = 0   0    2    4    6    8   10   12   14
            1     1    3    5    7    9   11   13   15
            2    16   18   20   22   24   26   28   30
            3    17   19   21   23   25   27   29   31
            4    32   34   36   38   40   42   44   46
            5    33   35   37   39   41   43   45   47
            6    48   50   52   54   56   58   60   62
            7    49   51   53   55   57   59   61   63

Neighbouring threads read neighbouring rows, which the padding puts into different banks of shared memory, or the same
row, which it sends to both at once. The 16 scores of a thread have only 7 distances. For 4 numbers along d it reads
4 + 4 vectors of 16 bytes for 64 multiply-adds, or 4 + 7 where z slides.

Columns of p are in another order than keys, so that the 4 keys of a thread are side by side, and are read and written
as one vector: of each 4 · side keys, key j is in column j % side · 4 + j // side.

    column of p   0  1  2  3    4  5  6  7    8  9 10 11   …
    key           0  8 16 24    1  9 17 25    2 10 18 26   …

x, y, z and p lie in one array of shared memory, `smem`; functions get the index at which each begins. s and out are in
registers. Rows of a tile outside an array are copies of its nearest row, so that tiles at the edges need no other code.

Each kernel comes for several widths, and hands a `Layout` of constants, n, to the functions that it calls: the compiler
puts them in place of a call, and then knows all of these numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.instructions import load4, store1, store4, thread_index
from tinyprune.kernels.cuda.device.jit import Kernel, device, float32, int32, kernel

LOWEST = np.float32(-1e30)  # score of a key that a query does not see; not −∞, since −∞ − (−∞) is NaN
PAD = 4  # numbers after each row in shared memory; the first of them holds the row's bias, if it has one
ROWS, COLUMNS = 4, 4  # a thread has the scores of 4 queries × 4 keys, in registers s[m * COLUMNS + c]


class Layout(NamedTuple):
    """Sizes that are constants in a kernel. Queries · keys are 16 scores for each thread."""

    width: int  # Dh, rounded up to the width of a kernel: D
    queries: int  # of a tile: 4 · side, with 8 · side keys, or the other way round
    keys: int
    side: int  # a block has 2 · side² threads
    threads: int  # of a block
    resident: int  # blocks that a multiprocessor has room for: their threads have 128 registers each, or 168
    out_queries: int  # rows of out that a thread sums in `mix`; it has 4 columns of each
    out_keys: int  # the same in `outer`
    x_stride: int  # numbers from one row of x or y to the next in shared memory
    z_stride: int  # the same of z
    p_stride: int  # and of p
    z_columns: int  # of z that are in shared memory at a time
    z_rows: int  # of which the last is not used
    z_regs: int  # registers for the 4 numbers along d of each row of z that a thread uses at a time
    # where operands begin in shared memory, which each kernel says; some kernels have more than these
    x: int = 0
    y: int = 0
    z: int = 0
    p: int = 0
    values: int = 0  # in `keys`
    maxima: int = 0  # in `forward`, as the next
    shrink: int = 0
    size: int = 0  # of all of it


def layout(width: int, queries: int, keys: int, z_columns: int = 32, side: int = 8) -> Layout:
    """Return the layout for tiles of these sizes, but for the places in shared memory."""
    threads, z_columns = 2 * side**2, min(z_columns, width)
    down = threads // (width // 4)  # threads along the rows of out; along its columns, each has 4
    out_queries = queries // down
    return Layout(
        width=width,
        queries=queries,
        keys=keys,
        side=side,
        threads=threads,
        resident=4 if width <= 32 else 3,
        out_queries=out_queries,
        out_keys=keys // down,
        x_stride=width + PAD,
        z_stride=z_columns + PAD,
        p_stride=keys + PAD,
        z_columns=z_columns,
        z_rows=queries + keys,
        z_regs=4 * (max(ROWS + COLUMNS, out_queries + 4) - 1),
    )


def kernel_of(n: Layout, *arguments: Any) -> Callable[[Callable], Kernel]:
    """Make a kernel of one of several widths, whose name it gets, too; arguments: types, see `jit.kernel`."""

    def made(function: Callable) -> Kernel:
        name = f"{function.__name__}_{n.width}"
        return kernel(*arguments, name=name, threads=n.threads, resident=n.resident, tiles=n)(function)

    return made


class Place(NamedTuple):
    """Which scores a thread has."""

    i: int  # its first query in the tile
    j: int  # its first key
    p: int  # where p[i, j] is in shared memory
    z: int  # where row i − j of z is


class Source(NamedTuple):
    """Rows of an array in the GPU's memory, of one head: row i begins at entry begin + i · stride, a multiple of 4."""

    array: DeviceArray
    begin: int
    stride: int
    count: int  # rows
    width: int  # numbers of a row


@device
def clear(x, n):
    """Set n registers to zero."""
    for m in range(n):
        x[m] = float32(0)


@device
def first_score(n):
    """Return the thread's `Place`, see the table above."""
    thread = thread_index(n.threads)
    across, down = thread // 2 % n.side, thread // (2 * n.side) * 2 + thread % 2
    half = down // n.side  # the second half of the threads has other queries or, if there are none, other keys
    i, j = down % n.side + half * (n.queries - ROWS * n.side), across + half * (n.keys - COLUMNS * n.side)
    group = 4 * n.side  # keys whose columns in p have another order
    column = j // group * group + across * 4 + j % group // n.side
    return Place(i, j, n.p + i * n.p_stride + column, n.z + (i - j + n.keys - 1) * n.z_stride)


@device
def first_out(n):
    """Return the first query of the thread's rows of out, which are `side` apart, and the first of its 4 columns.

    Two neighbours have rows 4 apart, so that what they read of 4 columns is in different banks.
    """
    thread, across = thread_index(n.threads), n.width // 4  # threads that share a row of out
    down = thread // (2 * across)
    down = down // 4 * 8 + down % 4 + thread % 2 * 4
    return down // n.side * n.side * n.out_queries + down % n.side, thread // 2 % across * 4


@device
def first_key_out(n):
    """Return the same where rows of out are keys: the first of its columns of p, and the first of its 4 of out."""
    thread, across = thread_index(n.threads), n.width // 4
    down = thread // (2 * across) * 2 + thread % 2
    return down * n.out_keys, thread // 2 % across * 4


@device
def key_of(n, column):
    """Return the key whose weights are in this column of p."""
    group = 4 * n.side
    return column // group * group + column % group // 4 + column % 4 * n.side


@device
def nearest_row(i, count):
    """Return the row nearest to i of rows 0 … count − 1."""
    return int32(min(max(int32(i), int32(0)), int32(count - 1)))


@device
def load_rows(n, source, first, d0, smem, to, rows, columns):
    """Copy rows first … first + rows − 1 of `source`, columns d0 … d0 + columns − 1, to smem[to …].

    Rows that `source` does not have become copies of the nearest one: their weight is 0, but 0 · NaN would be NaN.
    Columns after its width become zero.
    """
    across = columns // 4
    down = n.threads // across
    row, column = thread_index(n.threads) // across, thread_index(n.threads) % across * 4
    at, zero = to + row * (columns + PAD) + column, float32(0)
    if d0 + column < source.width:
        begin = source.begin + d0 + column
        for m in range(rows // down):
            a, b, c, e = load4(source.array, begin + nearest_row(first + row + m * down, source.count) * source.stride)
            store4(smem, at + m * down * (columns + PAD), a, b, c, e)
    else:
        for m in range(rows // down):
            store4(smem, at + m * down * (columns + PAD), zero, zero, zero, zero)


@device
def load_biases(n, bias, begin, count, first, smem, to, rows, columns):
    """Copy one number for each of these rows, bias[begin + row], to the place after the row."""
    for turn in range((rows + n.threads - 1) // n.threads):
        row = thread_index(n.threads) + turn * n.threads
        if row < rows:
            store1(smem, to + row * (columns + PAD) + columns, bias[begin + nearest_row(first + row, count)])
