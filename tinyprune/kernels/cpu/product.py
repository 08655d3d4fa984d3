"""The kernels of the matrix product: tiles in registers, panels in the cache, threads that share the tiles.

    for i, j, k: c[i, j] += a[i, k] · b[k, j]

It is the algorithm of Goto & van de Geijn 2008, without a packed copy of a; in its literature's letters:

    ROWS × width   MR × NR   the tile of c whose sums stay in registers; `width` is two vectors of columns
    panel          NR        K × width numbers of b, packed in the order in which a tile reads them
    DEPTH          KC        k is cut in blocks, so that scratch is small, however long the sums are
    BLOCK          NC / NR   panels that are packed together

What each step buys stands in data/results/speed/kernels.md. Rows of a are read where they lie. Copying them pays in two
cases only: when columns of a are read from rows that are far apart, and when rows lie whole pages apart, so that the
rows of a tile evict each other from the first-level cache. The distances a_row and a_k are variables on purpose: with a
constant a_k = 1, LLVM's loop is slower.
"""

import numpy as np
from numba import int64, prange

from tinyprune.kernels.cpu.dots import dots
from tinyprune.kernels.cpu.jit import inner, kernel, parallel_kernel
from tinyprune.kernels.cpu.panels import pack_rows
from tinyprune.kernels.cpu.simd import (
    REGISTERS,
    VECTOR_BYTES,
    add,
    broadcast,
    fetch_add,
    lanes,
    load,
    load_some,
    never_inline,
    store,
    store_some,
)
from tinyprune.kernels.cpu.tiles import microkernel, ragged_microkernel

ROWS = 12 if REGISTERS == 32 else 6  # of a tile: ROWS × 2 vectors of sums, with two vectors of b and one of a
FEW = 4  # rows of the smaller tile, for the rows at the end that do not fill a tile
LONG = 4  # panels in the tile for a single row
DEPTH = 256
BLOCK = 512 * 1024 // (2 * VECTOR_BYTES * DEPTH)  # panels: DEPTH rows of them, 512 KiB, stay in the second-level cache
# When to copy, and how b is read: where it lies, from packed panels, or row by row, see `dots`.
UNPACKED, PACKED, DOTS = 0, 1, 2
MIN_ROWS_TO_PACK = 4 * ROWS  # rows of c that read each panel
FAR, MANY = 512, 12  # columns of a this many numbers apart are copied too, when at least MANY panels read the copy
PAGE = 4096  # bytes: numbers this far apart compete for the same few places of the first-level cache
# How threads share the work: in parts, of which each is some row tiles by some panels.
MIN_WORK_PER_THREAD = 1 << 18  # multiply-adds
PARTS = 4  # for each thread, if rows suffice: a thread that is interrupted takes fewer, and the others take more
MIN_TILES, MIN_TILES_DEEP = 8, 32  # row tiles in a part; more where each part has to pack its panels again
CLEARLY_LESS = 0.95  # columns are shared only if the largest part is then this much smaller than with shared rows

first_tile = microkernel(ROWS, 2, False)  # c = a · b
next_tile = microkernel(ROWS, 2, True)  # c += a · b
narrow_tile = ragged_microkernel(ROWS, 1)
flat_tile = ragged_microkernel(FEW, 2)
long_tile = ragged_microkernel(1, 2 * LONG)


@inner
def pack(b, at, b_row, b_column, depth, columns, panel, packed):
    """Copy b[at:], depth × columns, into panels `[panel][k][width]`, from number `panel` on; the last may be padded."""
    never_inline()
    L = lanes(b)
    width = 2 * L
    size = width * depth
    if b_column == 1:
        # four panels at a time: longer runs along a row
        for first in range(panel * width, columns, 4 * width):
            for k in range(depth):
                source, target = at + k * b_row, (first // width - panel) * size + k * width
                for j in range(first, min(first + 4 * width, columns), width):
                    if j + width <= columns:
                        store(packed, target, load(b, source + j))
                        store(packed, target + L, load(b, source + j + L))
                    else:
                        store(packed, target, load_some(b, source + j, columns - j))
                        store(packed, target + L, load_some(b, source + j + L, columns - j - L))
                    target += size
    else:
        first, panels = panel * width, (columns + width - 1) // width - panel
        pack_rows(b, at + first * b_column, b_column, columns - first, packed, int64(0), int64(0), panels, depth, 1.0)


@inner
def copy_rows(source, at, stride, n, columns, target, to, target_stride):
    """Copy a matrix (n, columns) from source[at] on, with a distance between its rows, to target[to] on."""
    never_inline()
    for i in range(n):
        for j in range(0, columns, lanes(source)):
            left = columns - j
            store_some(target, to + i * target_stride + j, load_some(source, at + i * stride + j, left), left)


@inner
def ragged_tiles(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, rows, columns, accumulate):
    """Compute c[rows, columns] (+)= a · panel for a tile at the end of the rows or columns, rows ≤ ROWS."""
    never_inline()
    if rows == ROWS and columns <= lanes(b):
        narrow_tile(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, rows, columns, accumulate)
    else:
        for i in range(0, rows, FEW):
            x, y = a_at + i * a_row, c_at + i * c_row
            flat_tile(a, x, a_row, a_k, b, b_at, b_k, c, y, c_row, depth, rows - i, columns, accumulate)


@inner
def start_rows(c, c_at, c_row, residual, r_at, r_row, bias, first, rows, columns):
    """Set c[rows, columns] = residual + bias, either of which may be empty; the sums are then added to it."""
    never_inline()
    L = lanes(c)
    for r in range(rows):
        for j in range(0, columns, L):
            x = broadcast(c, 0)
            if residual.size:
                x = load_some(residual, r_at + r * r_row + j, columns - j)
            if bias.size:
                x = add(x, load_some(bias, first + j, columns - j))
            store_some(c, c_at + r * c_row + j, x, columns - j)


@inner
def products_with_rows(a, b, c, residual, bias, steps, extents):
    """Compute a part of the product as `product`, with op(b) = bᵀ, whose rows are read where they lie, see `dots`."""
    (a_group, a_row, _, _), (_, _, b_column), (c_group, c_row), (r_group, r_row), sizes = steps
    M, N, K, _, _, _, accumulate = sizes
    first, end, panel_0, panel_1 = extents
    width = 2 * lanes(b)
    j = panel_0 * width
    columns = min(N, panel_1 * width) - j
    for group in range(first, end):
        a_at, c_at = group * a_group, group * c_group + j
        if residual.size or bias.size:
            start_rows(c, c_at, c_row, residual, group * r_group + j, r_row, bias, j, M, columns)
        dots(a, a_at, a_row, b, j * b_column, b_column, c, c_at, c_row, K, M, columns, accumulate == 1)


@inner
def product(a, b, c, residual, bias, steps, extents, scratch, packed):
    """Compute a part of the product: some row tiles by some panels (`extents`), which may be `packed` already.

    A view such as x[:, -T:] of (B, S, D) is read in place: its rows are B *groups* of T rows, with gaps between groups.
    Row i of group g of op(a) has its entry k at a[g · a_group + i · a_row + k · a_k]; c and the residual likewise. In
    aᵀ · b the sum runs over such rows, so k has groups too: a_k_group, and b[g · b_group + k · b_row + j · b_column].

        for a block of panels:            # scratch holds it, or if b is not packed only the last panel, if ragged
            for a block of depths k:
                for a tile of rows:       # the end of scratch (`strip`) holds its rows of a, if those are copied
                    for each panel: c[rows, panel] += a[rows, depths] · b[depths, panel]
    """
    never_inline()
    (a_group, a_row, a_k_group, a_k), (b_group, b_row, b_column), (c_group, c_row), (r_group, r_row), sizes = steps
    M, N, K, k_groups, _, packing, accumulate = sizes  # M rows in each group of rows; k_groups groups of K
    tile_0, tile_1, panel_0, panel_1 = extents
    if packing == DOTS:
        products_with_rows(a, b, c, residual, bias, steps, extents)
        return
    width = 2 * lanes(b)
    tiles = (M + ROWS - 1) // ROWS  # in a group of rows
    depths = (K + DEPTH - 1) // DEPTH
    strip = len(scratch) - ROWS * DEPTH
    for panel in range(panel_0, panel_1, BLOCK):
        j = panel * width
        columns = min(N, min(panel + BLOCK, panel_1) * width) - j
        whole = columns // width  # panels with all columns: panel p starts at panels[at + p · panel_step]
        for block in range(k_groups * depths):
            g, d = block // depths, block % depths
            k, depth = K * d // depths, K * (d + 1) // depths - K * d // depths
            b_at = g * b_group + k * b_row + j * b_column
            if packing:
                panels, at, b_k, panel_step, ragged_at = scratch, 0, width, width * depth, whole * width * depth
                if packed == 0:
                    pack(b, b_at, b_row, b_column, depth, columns, int64(0), scratch)
            else:
                panels, at, b_k, panel_step, ragged_at = b, b_at, b_row, width, 0
                pack(b, b_at, b_row, b_column, depth, columns, whole, scratch)
            for t in range(tile_0, tile_1):
                group, i = t // tiles, t % tiles * ROWS
                rows = min(ROWS, M - i)
                c_at = group * c_group + i * c_row + j
                if block == 0 and (residual.size or bias.size):
                    start_rows(c, c_at, c_row, residual, group * r_group + i * r_row + j, r_row, bias, j, rows, columns)
                add_up = accumulate == 1 or block > 0
                # The rows of a, x[x_at + row · x_row + k · x_k], where they lie or in the strip.
                x, x_at, x_row, x_k = a, group * a_group + i * a_row + g * a_k_group + k * a_k, a_row, a_k
                if rows == ROWS and whole >= MANY:
                    if a_row == 1 and a_k >= FAR:
                        copy_rows(a, x_at, a_k, depth, ROWS, scratch, strip, ROWS)
                        x, x_at, x_k = scratch, strip, ROWS
                    elif a_k == 1 and a_row * a.itemsize % PAGE == 0:
                        copy_rows(a, x_at, a_row, ROWS, depth, scratch, strip, DEPTH)
                        x, x_at, x_row = scratch, strip, DEPTH
                # Panels in tiles of ROWS rows, or of one row and LONG panels; the rest in ragged tiles.
                done = 0
                if rows == ROWS:
                    done = whole
                    for p in range(whole):
                        y, to = at + p * panel_step, c_at + p * width
                        if add_up:
                            next_tile(x, x_at, x_row, x_k, panels, y, b_k, c, to, c_row, depth)
                        else:
                            first_tile(x, x_at, x_row, x_k, panels, y, b_k, c, to, c_row, depth)
                elif rows == 1 and not packing:
                    done = whole // LONG * LONG
                    for p in range(0, done, LONG):
                        y, to = at + p * panel_step, c_at + p * width
                        long_tile(a, x_at, a_row, a_k, b, y, b_k, c, to, c_row, depth, 1, LONG * width, add_up)
                for p in range(done, whole):
                    y, to = at + p * panel_step, c_at + p * width
                    ragged_tiles(x, x_at, x_row, x_k, panels, y, b_k, c, to, c_row, depth, rows, width, add_up)
                if whole * width < columns:
                    y, to, left = ragged_at, c_at + whole * width, columns - whole * width
                    ragged_tiles(x, x_at, x_row, x_k, scratch, y, width, c, to, c_row, depth, rows, left, add_up)


@inner
def grid(tiles, panels, width, N, threads):
    """Return into how many parts the row tiles are cut, and the panels, so that the largest part is small.

    Cutting rows only is preferred if nearly as good: no two threads then write into the same cache line of c.
    """
    best, cuts = 0.0, (0, 0)
    for panel_parts in range(1, threads + 1):
        if threads % panel_parts == 0:
            row_parts = threads // panel_parts
            columns = min(N, (panels + panel_parts - 1) // panel_parts * width)  # the last panel may be ragged
            largest = (tiles + row_parts - 1) // row_parts * columns
            if panel_parts == 1 or largest < CLEARLY_LESS * best:
                best, cuts = largest, (row_parts, panel_parts)
    return cuts


@kernel
def alone(a, b, c, residual, bias, steps, scratch):
    """Compute the product in one thread."""
    M, N, _, _, groups, _, _ = steps[4]
    width = 2 * lanes(b)
    zero = int64(0)
    extents = (zero, groups * ((M + ROWS - 1) // ROWS), zero, (N + width - 1) // width)
    product(a, b, c, residual, bias, steps, extents, scratch[0], zero)


@inner
def parts(a, b, c, residual, bias, steps, counter, cuts, scratch):
    """Compute parts of the product until all are taken: parts of the same columns one after the other."""
    M, N, K, k_groups, groups, packing, accumulate = steps[4]
    R, P = cuts  # into how many parts the row tiles and the panels are cut
    width = 2 * lanes(b)
    tiles, panels = groups * ((M + ROWS - 1) // ROWS), (N + width - 1) // width
    # Where one block holds all panels of a part, they stay in scratch for the next part of the same columns.
    one_block = k_groups == 1 and K <= DEPTH and panels <= BLOCK * P
    packed = -1
    part = fetch_add(counter)
    while part < R * P:
        x, y = part % R, part // R
        extents = (tiles * x // R, tiles * (x + 1) // R, panels * y // P, panels * (y + 1) // P)
        product(a, b, c, residual, bias, steps, extents, scratch, int64(one_block and y == packed))
        packed = y
        part = fetch_add(counter)


@parallel_kernel
def shared(a, b, c, residual, bias, steps, scratch):
    """Compute the product in several threads; each packs what it reads for itself, so that none waits for another."""
    a_steps, b_steps, c_steps, r_steps, sizes = steps  # a parallel loop cannot take tuples of tuples
    M, N, K, k_groups, groups, _, _ = sizes
    width = 2 * lanes(b)
    tiles, panels = groups * ((M + ROWS - 1) // ROWS), (N + width - 1) // width
    row_parts, panel_parts = grid(tiles, panels, width, N, len(scratch))
    least = MIN_TILES if k_groups == 1 and K <= DEPTH else MIN_TILES_DEEP
    row_parts *= max(1, min(PARTS, tiles // (row_parts * least)))
    counter = np.empty(1, np.int64)
    counter[0] = 0
    for thread in prange(len(scratch)):
        again = a_steps, b_steps, c_steps, r_steps, sizes
        parts(a, b, c, residual, bias, again, counter, (row_parts, panel_parts), scratch[thread])
