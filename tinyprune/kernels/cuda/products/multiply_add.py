"""Float32 arithmetic for the tiles of a matrix product.

A thread has 8 × 8 sums (4 × 4 with small tiles), in squares of 4 × 4. For every k it reads 8 numbers of a and 8 of b
from shared memory, four per instruction, for 64 multiply-adds: 16 for each load.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.device.instructions import load4, load_up_to4, store_up_to4
from tinyprune.kernels.cuda.device.jit import cuda, device, float32
from tinyprune.kernels.cuda.products.arithmetic import (
    ALIGNED_OUT,
    BIAS,
    RELU,
    RESIDUAL,
    STRIP,
    WHERE,
    place,
    positive,
    where,
)

ROWS, COLUMNS = 16, 32  # of out from one square of a thread to its next: 4 × 8 threads of a warp lie between


def make_multiply_add(TILE: int) -> tuple[int, Callable, Callable, Callable]:
    """Make the functions for tiles of this size, see `product`."""
    PAD = 4
    WIDE = TILE + PAD
    DEPTH = STRIP // TILE
    SQUARES = TILE // 64  # along each side of a thread's part
    EACH = 4 * SQUARES  # rows and columns of a thread
    SUMS = EACH * EACH

    @device
    def rounded(x):
        """Return x: float32 needs no rounding."""
        return x

    @device
    def corner(thread):
        """Return row and column of the thread's first sum in the tile.

        The 8 warps are 4 × 2, the 32 threads of a warp 4 × 8. One load of a warp reads 64 different bytes of a, or 128
        of b; threads that read the same bytes are near each other, as in NVIDIA's CUTLASS.
        """
        warp, lane = thread // 32, thread % 32
        row = warp // 2 * ROWS * SQUARES + (lane // 16 * 2 + lane % 2) * 4
        column = warp % 2 * COLUMNS * SQUARES + lane // 2 % 8 * 4
        return row, column

    @device
    def add_products(strips_a, a_at, strips_b, b_at, some_a, some_b, sums):
        """Add to sums the thread's numbers of a for one k times its numbers of b."""
        for s in range(SQUARES):
            at = a_at + s * ROWS
            some_a[4 * s], some_a[4 * s + 1], some_a[4 * s + 2], some_a[4 * s + 3] = load4(strips_a, at)
            at = b_at + s * COLUMNS
            some_b[4 * s], some_b[4 * s + 1], some_b[4 * s + 2], some_b[4 * s + 3] = load4(strips_b, at)
        for y in range(EACH):
            for x in range(EACH):
                sums[y * EACH + x] += some_a[y] * some_b[x]

    @device
    def add_strips(strips_a, strips_b, at, thread, sums):
        """Add to sums the product of the strips that begin at `at`."""
        some_a = cuda.local.array(EACH, float32)
        some_b = cuda.local.array(EACH, float32)
        row, column = corner(thread)
        a_at, b_at = at + row, at + column
        for _ in range(0, DEPTH, 4):
            # Unrolled by four, which the compiler does not do for so long a loop: so numbers for the next k are loaded
            # while these are multiplied. Unrolled by eight, two blocks would not have registers enough.
            add_products(strips_a, a_at, strips_b, b_at, some_a, some_b, sums)
            add_products(strips_a, a_at + WIDE, strips_b, b_at + WIDE, some_a, some_b, sums)
            add_products(strips_a, a_at + 2 * WIDE, strips_b, b_at + 2 * WIDE, some_a, some_b, sums)
            add_products(strips_a, a_at + 3 * WIDE, strips_b, b_at + 3 * WIDE, some_a, some_b, sums)
            a_at, b_at = a_at + 4 * WIDE, b_at + 4 * WIDE

    @device
    def write(sums, thread, top, left, out, first, M, N, per, strides, bias, residual, finish, fours):
        """Write the finished sums to out, whose rows begin at `first`; the tile begins at row `top`, column `left`."""
        y_0, x_0 = corner(thread)
        for y in range(EACH):
            i = top + y_0 + y // 4 * ROWS + y % 4
            to = first + place(i, per, strides)
            for s in range(SQUARES):
                j = left + x_0 + s * COLUMNS
                there = N - j if i < M else 0
                x0, x1, x2, x3 = sums[4 * s], sums[4 * s + 1], sums[4 * s + 2], sums[4 * s + 3]
                if finish & BIAS:
                    y0, y1, y2, y3 = load_up_to4(bias, j, there, True)
                    x0, x1, x2, x3 = x0 + y0, x1 + y1, x2 + y2, x3 + y3
                if finish & RESIDUAL:
                    y0, y1, y2, y3 = load_up_to4(residual, to + j, there, fours & ALIGNED_OUT)
                    x0, x1, x2, x3 = x0 + y0, x1 + y1, x2 + y2, x3 + y3
                if finish & WHERE:
                    y0, y1, y2, y3 = load_up_to4(residual, to + j, there, fours & ALIGNED_OUT)
                    x0, x1, x2, x3 = where(x0, y0), where(x1, y1), where(x2, y2), where(x3, y3)
                if finish & RELU:
                    x0, x1, x2, x3 = positive(x0), positive(x1), positive(x2), positive(x3)
                store_up_to4(out, to + j, there, fours & ALIGNED_OUT, x0, x1, x2, x3)
            # The next row moves to the place of the first: indexed by a variable, the sums would not be in registers.
            for n in range(SUMS - EACH):
                sums[n] = sums[n + EACH]

    return PAD, rounded, add_strips, write
