"""Sums over the threads of a block, over the columns of a matrix, and products of rows. Each has one fixed order.

`block_sum`, `block_max`: half of the threads add what the other half found: 128 add what 128 others have, then 64, 32,
… 1. Each step waits for the one before.

`run_sums`: a block takes 32 neighbouring columns and a run of rows. Its 32 lines of threads take every 32nd row, and
their sums are joined in shared memory. The sums of the runs are rows again, and are summed in the same way.

`row_dots`: a block takes 16 rows with 8 threads each, whose sums are joined in shared memory.

The orders depend on shapes and numbers of threads alone, so every result is the same each time.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.instructions import divmod32
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.together import TOGETHER, launch_together, of_block

THREADS = 256  # of a block of `divided_sums`
WIDE = 32  # columns of a block of `run_sums`
LINES = 32  # of its threads
RUN = 2048  # rows of a block: most sums take one launch
LANES, DOT_ROWS = 8, 16  # threads for each row of `row_dots`, and rows of a block


@device
def larger_or_nan(a, b):
    """Return the larger of two numbers; NaN, which is not equal to itself and not larger than anything, if one is."""
    return b if b > a or b != b else a


def make_reduction(joined: Callable) -> Callable:
    """Make a device function that joins a value of every thread of the block, two by two."""

    @device
    def reduction(value, scratch):
        """Return the joined value of all threads of the block (along x alone, a power of 2) to every thread.

        scratch: shared memory, an entry for each thread. It may be used again at once.
        """
        x = cuda.threadIdx.x
        scratch[x] = value
        half = cuda.blockDim.x // 2
        while half > 0:
            cuda.syncthreads()  # the other half has written what this half reads
            if x < half:
                scratch[x] = joined(scratch[x], scratch[x + half])
            half //= 2
        cuda.syncthreads()  # the result is there before any thread reads it
        result = scratch[0]
        cuda.syncthreads()  # all threads have read it before its place is used again
        return result

    return reduction


block_sum, block_max = make_reduction(operator.add), make_reduction(larger_or_nan)


class Columns(NamedTuple):
    """What `run_sums` is told of one problem: out (runs, C) has the sums over each run of rows of x (R, C)."""

    x: DeviceArray
    out: DeviceArray
    R: int
    C: int
    first: int


@kernel(*TOGETHER * (Columns,), threads=(WIDE, LINES))
def run_sums(p, p1, p2, p3):
    """Compute the sums over each run of rows of each problem."""
    scratch = cuda.shared.array((LINES, WIDE), float32)
    column, line, block = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.x
    x, out, R, C, first = of_block(block, p, p1, p2, p3)
    run, c = divmod32(block - first, (C + WIDE - 1) // WIDE)
    c = c * WIDE + column
    end = min((run + 1) * RUN, R)
    total = float32(0)
    if c < C:
        for r in range(run * RUN + line, end, LINES):
            total += x[r * C + c]
    scratch[line, column] = total
    cuda.syncthreads()  # all lines have written before the first one sums them
    if line == 0 and c < C:
        for other in range(1, LINES):
            total += scratch[other, column]
        out[run * C + c] = total


def grid_of(R: int, C: int, run: int = RUN) -> tuple[int, int]:
    """Return how many blocks lie across C columns, and how many runs there are of R rows: one of no rows."""
    return blocks(C, WIDE), max(blocks(R, run), 1)


def sum_all(sums: Sequence[tuple[DeviceArray, int, DeviceArray]]) -> None:
    """For each (x, R, out) set `out`, contiguous, to the sums of its entries over R slots of them, x (R, size).

    Without slots they are zeros.
    """
    while sums:
        launched, joined = [], []
        for x, R, out in sums:
            across, runs = grid_of(R, out.size)
            to = out if runs == 1 else empty((runs, out.size))
            launched.append((across * runs, (x, to, R, out.size)))
            if runs > 1:
                joined.append((to, runs, out))
        launch_together(run_sums, launched)
        sums = joined


@kernel(floats, int32, float32, floats, threads=THREADS)
def divided_sums(x, size, divisor, out):
    """Compute out (rows,) = Σ x (rows, size) / divisor: a block for each row."""
    scratch = cuda.shared.array(THREADS, float32)
    begin, total = cuda.blockIdx.x * size, float32(0)
    for i in range(cuda.threadIdx.x, size, THREADS):
        total += x[begin + i]
    total = block_sum(total, scratch)
    if cuda.threadIdx.x == 0:
        out[cuda.blockIdx.x] = total / divisor


def row_sums(x: DeviceArray, divisor: float = 1.0) -> DeviceArray:
    """Sum each row of x (rows, size), contiguous, and divide the sums: (rows,)."""
    out = empty(len(x))
    divided_sums(len(x), x, x.shape[1], np.float32(divisor), out)
    return out


class Dots(NamedTuple):
    """What `dot_rows` is told of one problem: out (H, R) has factor · Σ_d x · y of the rows of x (R, H, D)."""

    x: DeviceArray
    y: DeviceArray
    out: DeviceArray
    R: int
    H: int
    D: int
    y_step: int  # entries from y[r] to y[r + 1]: 0 if all r have the same
    factor: float
    first: int


@kernel(*TOGETHER * (Dots,), threads=(LANES, DOT_ROWS))
def dot_rows(p, p1, p2, p3):
    """Compute the products of rows of each problem: a block for 16 r of one h."""
    scratch = cuda.shared.array((DOT_ROWS, LANES), float32)
    lane, line, block = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.x
    p = of_block(block, p, p1, p2, p3)
    H, D = p.H, p.D
    r, h = divmod32(block - p.first, H)
    r = r * DOT_ROWS + line
    total = float32(0)
    if r < p.R:
        for d in range(lane, D, LANES):
            total += p.x[(r * H + h) * D + d] * p.y[r * p.y_step + h * D + d]
    scratch[line, lane] = total
    cuda.syncthreads()  # all lanes have written before the first one sums them
    if lane == 0 and r < p.R:
        for other in range(1, LANES):
            total += scratch[line, other]
        p.out[h * p.R + r] = total * p.factor


def row_dots(*pairs: tuple[DeviceArray, DeviceArray], factor: float = 1.0) -> list[DeviceArray]:
    """Multiply x (…, H, D) of each pair by y, of the same shape or (H, D), row by row, in one launch.

    Returns for each out[h, r] = factor · Σ_d x · y, (H, R). x and y are contiguous; R is the product of the other axes.
    Neighbouring threads write neighbouring numbers.
    """
    problems, found = [], []
    for x, y in pairs:
        *lead, H, D = x.shape
        R, step = math.prod(lead), 0
        if y.ndim == x.ndim:
            step = H * D
        found.append(empty((H, R)))
        problems.append((blocks(R, DOT_ROWS) * H, (x, y, found[-1], R, H, D, step, factor)))
    launch_together(dot_rows, problems)
    return found
