"""The kernels of the matrix product whose factors are rounded to bfloat16 while they are packed; sums are float32.

    for i, j, k: c[i, j] += bf16(a[i, k]) · bf16(b[k, j])

They share the loops around `product.product`, which hand out parts to threads; only what computes a part differs.
Both matrices are packed here: tiles read pairs of numbers, see `bfloat16_tiles`.
"""

from numba import int64

from tinyprune.kernels.cpu import product as of_floats
from tinyprune.kernels.cpu.bfloat16_tiles import (
    ROWS,
    STEP,
    UNIT,
    begin_tiles,
    end_tiles,
    first_tile,
    next_tile,
    pack_pairs,
)
from tinyprune.kernels.cpu.jit import inner, kernel, parallel_kernel, variant
from tinyprune.kernels.cpu.product import BLOCK, copy_rows, start_rows
from tinyprune.kernels.cpu.simd import lanes, never_inline

DEPTH = 512  # numbers along k in a block: as many bytes as 256 of float32


def scratch_size(K: int, N: int, L: int) -> int:
    """Return how many numbers of scratch a thread needs for sums of K and N columns; L: lanes of a vector."""
    pairs = -(-min(K, DEPTH) // (2 * STEP)) * STEP
    width = 2 * L
    return min(BLOCK, -(-N // width)) * width * pairs + after_panels(pairs, width)


def after_panels(pairs: int, width: int) -> int:
    """Return the numbers behind the panels: a tile's rows of a, its sums, and a square block."""
    return (ROWS + width) * pairs + (ROWS + width) * width


@inner
def product(a, b, c, residual, bias, steps, extents, scratch, packed):
    """Compute a part of the product, as `product.product` does, from pairs.

        for a block of panels:            # scratch holds it
            for a block of depths k:
                for a tile of rows:       # packed as well
                    for each panel: c[rows, panel] += a[rows, depths] · b[depths, panel]

    Tiles are whole; at the end of the rows or columns one is computed in scratch, and copied.
    """
    never_inline()
    (a_group, a_row, a_k_group, a_k), (b_group, b_row, b_column), (c_group, c_row), (r_group, r_row), sizes = steps
    M, N, K, k_groups, _, _, accumulate = sizes
    tile_0, tile_1, panel_0, panel_1 = extents
    width = 2 * lanes(b)
    tiles, depths = (M + ROWS - 1) // ROWS, (K + DEPTH - 1) // DEPTH
    begin_tiles()
    for panel in range(panel_0, panel_1, BLOCK):
        j = panel * width
        columns = min(N, min(panel + BLOCK, panel_1) * width) - j
        for block in range(k_groups * depths):
            g, d = block // depths, block % depths
            k = K * d // depths
            depth = K * (d + 1) // depths - k
            pairs = (depth + 2 * STEP - 1) // (2 * STEP) * STEP
            strip = (columns + width - 1) // width * width * pairs
            edge = strip + (ROWS + width) * pairs
            square = edge + ROWS * width
            if packed == 0:
                for p in range(0, columns, width):
                    b_at, some = g * b_group + k * b_row + (j + p) * b_column, min(width, columns - p)
                    pack_pairs(
                        b, b_at, b_column, b_row, some, depth, scratch, p * pairs, int64(1), width, pairs, square
                    )
            for t in range(tile_0, tile_1):
                group, i = t // tiles, t % tiles * ROWS
                rows = min(ROWS, M - i)
                c_at = group * c_group + i * c_row + j
                if block == 0 and (residual.size or bias.size):
                    start_rows(c, c_at, c_row, residual, group * r_group + i * r_row + j, r_row, bias, j, rows, columns)
                add_up = accumulate == 1 or block > 0
                a_at = group * a_group + i * a_row + g * a_k_group + k * a_k
                pack_pairs(a, a_at, a_row, a_k, rows, depth, scratch, strip, pairs, int64(1), pairs, square)
                for p in range(0, columns, width):
                    y, z, z_row, to = p * pairs, c, c_row, c_at + p
                    some = min(width, columns - p)
                    whole = rows == ROWS and some == width
                    if not whole:
                        z, z_row, to = scratch, width, edge
                        if add_up:
                            copy_rows(c, c_at + p, c_row, rows, some, scratch, edge, width)
                    if add_up:
                        next_tile(scratch, strip, pairs, 1, scratch, y, width, z, to, z_row, pairs)
                    else:
                        first_tile(scratch, strip, pairs, 1, scratch, y, width, z, to, z_row, pairs)
                    if not whole:
                        copy_rows(scratch, edge, width, rows, some, c, c_at + p, c_row)
    end_tiles()


OURS = {"product": product, "ROWS": ROWS, "DEPTH": DEPTH}  # in place of what the functions of `product` name so
NAME = f"bfloat16_{UNIT}"
alone = variant(of_floats.alone.py_func, kernel, NAME, **OURS)
parts = variant(of_floats.parts.py_func, inner, NAME, **OURS)
shared = variant(of_floats.shared.py_func, parallel_kernel, NAME, **OURS, parts=parts)
