"""Float32 arithmetic for the tiles of a matrix product.

A thread has 8 × 8 sums (4 × 4 with small tiles), in squares of 4 × 4. For every k it reads 8 numbers of a and 8 of b
from shared memory, four per instruction, for 64 multiply-adds: 16 for each load.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.device.instructions import load4, store_some
from tinyprune.kernels.cuda.device.jit import cuda, device, float32
from tinyprune.kernels.cuda.products.arithmetic import ALIGNED_OUT, STRIP, finished, row_begin

ROWS, COLUMNS = 16, 32  # of out from one square of a thread to its next: 4 × 8 threads of a warp lie between


def make_multiply_add(TILE: int) -> tuple[int, Callable, Callable, Callable]:
    """Make the functions for tiles of this size, see `product`."""
    PAD = 4
    K_STRIDE = TILE + PAD
    DEPTH = STRIP // TILE
    SQUARES = TILE // 64  # along each side of a thread's sums: 2 × 2 squares, or 1
    SIDE = 4 * SQUARES  # rows and columns of a thread
    SUMS = SIDE * SIDE

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
    def add_products(strips_a, a_at, strips_b, b_at, a_regs, b_regs, sums):
        """Add to sums the thread's SIDE numbers of a for one k times its SIDE numbers of b."""
        for s in range(SQUARES):
            at = a_at + s * ROWS
            a_regs[4 * s], a_regs[4 * s + 1], a_regs[4 * s + 2], a_regs[4 * s + 3] = load4(strips_a, at)
            at = b_at + s * COLUMNS
            b_regs[4 * s], b_regs[4 * s + 1], b_regs[4 * s + 2], b_regs[4 * s + 3] = load4(strips_b, at)
        for y in range(SIDE):
            for x in range(SIDE):
                sums[y * SIDE + x] += a_regs[y] * b_regs[x]

    @device
    def add_strips(strips_a, strips_b, buffer, thread, sums):
        """Add to sums the product of the strips that begin at index `buffer`."""
        a_regs = cuda.local.array(SIDE, float32)
        b_regs = cuda.local.array(SIDE, float32)
        row, column = corner(thread)
        a_at, b_at = buffer + row, buffer + column
        for _ in range(0, DEPTH, 4):
            # Unrolled by four, which the compiler does not do for so long a loop: so numbers for the next k are loaded
            # while these are multiplied. Unrolled by eight, two blocks would not have registers enough.
            add_products(strips_a, a_at, strips_b, b_at, a_regs, b_regs, sums)
            add_products(strips_a, a_at + K_STRIDE, strips_b, b_at + K_STRIDE, a_regs, b_regs, sums)
            add_products(strips_a, a_at + 2 * K_STRIDE, strips_b, b_at + 2 * K_STRIDE, a_regs, b_regs, sums)
            add_products(strips_a, a_at + 3 * K_STRIDE, strips_b, b_at + 3 * K_STRIDE, a_regs, b_regs, sums)
            a_at, b_at = a_at + 4 * K_STRIDE, b_at + 4 * K_STRIDE

    @device
    def write(sums, thread, top, left, first, group_rows, p):
        """Write the finished sums to the product's out, from entry `first` on; the tile begins at `top` and `left`."""
        y_0, x_0 = corner(thread)
        for y in range(SIDE):
            i = top + y_0 + y // 4 * ROWS + y % 4
            to = first + row_begin(i, group_rows, p.out_group, p.out_row)
            for s in range(SQUARES):
                j = left + x_0 + s * COLUMNS
                there = p.N - j if i < p.M else 0
                x0, x1, x2, x3 = sums[4 * s], sums[4 * s + 1], sums[4 * s + 2], sums[4 * s + 3]
                if p.finish:
                    x0 = finished(x0, p, to, j) if there > 0 else x0
                    x1 = finished(x1, p, to, j + 1) if there > 1 else x1
                    x2 = finished(x2, p, to, j + 2) if there > 2 else x2
                    x3 = finished(x3, p, to, j + 3) if there > 3 else x3
                store_some(p.out, to + j, there, p.alignment & ALIGNED_OUT, x0, x1, x2, x3)
            # The next row moves to the first one's registers: indexed by a variable, sums would not be in any.
            for n in range(SUMS - SIDE):
                sums[n] = sums[n + SIDE]

    return PAD, rounded, add_strips, write
