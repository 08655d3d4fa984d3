"""The kernels of the matrix product: tiles in registers, panels in the cache, threads that share the tiles.

    for i, j, k: c[i, j] += a[i, k] · b[k, j]

It is the algorithm of Goto & van de Geijn 2008, without a packed copy of a; in its literature's letters:

    ROWS × width   MR × NR   the tile of c whose sums stay in registers; `width` is two vectors of columns
    panel          NR        K × width numbers of b, packed in the order in which a tile reads them
    DEPTH          KC        k is cut in blocks, so that scratch is small, however long the sums are
    BLOCK          NC / NR   panels that are packed together

What each step buys stands in data/results/speed/kernels.md. Rows of a are read where they lie. Copying them pays in two
cases only: when columns of a are read from rows that are far apart, and when rows lie whole pages apart, so that the
rows of a tile evict each other from the first-level cache. The distances in `PlaceA` are variables on purpose: with a
constant step of 1, LLVM's loop is slower.
"""

from typing import NamedTuple

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
from tinyprune.kernels.cpu.tiles import PlaceA, PlaceB, PlaceC, microkernel, ragged_microkernel

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
def ragged_tiles(a, a_at, b, b_at, c, c_at, depth, rows, columns, accumulate):
    """Compute c[rows, columns] (+)= a · panel for a tile at the end of the rows or columns, rows ≤ ROWS."""
    never_inline()
    if rows == ROWS and columns <= lanes(b):
        narrow_tile(a, a_at, b, b_at, c, c_at, depth, rows, columns, accumulate)
    else:
        for i in range(0, rows, FEW):
            x_at = PlaceA(a_at.first + i * a_at.row, a_at.row, a_at.step)
            to = PlaceC(c_at.first + i * c_at.row, c_at.row)
            flat_tile(a, x_at, b, b_at, c, to, depth, rows - i, columns, accumulate)


@inner
def start_rows(c, c_at, residual, r_at, bias, first, rows, columns):
    """Set c[rows, columns] = residual + bias, either of which may be empty; the sums are then added to it."""
    never_inline()
    L = lanes(c)
    for r in range(rows):
        for j in range(0, columns, L):
            x = broadcast(c, 0)
            if residual.size:
                x = load_some(residual, r_at.first + r * r_at.row + j, columns - j)
            if bias.size:
                x = add(x, load_some(bias, first + j, columns - j))
            store_some(c, c_at.first + r * c_at.row + j, x, columns - j)


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
        a_at, b_at, c_at = group * a_group, j * b_column, group * c_group + j
        if residual.size or bias.size:
            r_at = PlaceC(group * r_group + j, r_row)
            start_rows(c, PlaceC(c_at, c_row), residual, r_at, bias, j, M, columns)
        dots(a, a_at, a_row, b, b_at, b_column, c, c_at, c_row, K, M, columns, accumulate == 1)


class Columns(NamedTuple):
    """The columns of c that are computed together, and where the panels of b for them begin."""

    count: int
    whole: int  # panels with all their columns: the first one at `first`, each `panel` after the one before it
    first: int
    panel: int
    step: int  # from k to k + 1
    ragged: int  # where the last panel begins in scratch, if it has fewer columns


@inner
def place_rows(a, a_at, depth, whole, scratch):
    """Return where a tile reads ROWS rows of a: where they lie, or copied to the strip at the end of scratch."""
    strip = len(scratch) - ROWS * DEPTH
    if whole >= MANY:
        if a_at.row == 1 and a_at.step >= FAR:
            copy_rows(a, a_at.first, a_at.step, depth, ROWS, scratch, strip, ROWS)
            return scratch, PlaceA(strip, a_at.row, int64(ROWS))
        if a_at.step == 1 and a_at.row * a.itemsize % PAGE == 0:
            copy_rows(a, a_at.first, a_at.row, ROWS, depth, scratch, strip, DEPTH)
            return scratch, PlaceA(strip, int64(DEPTH), a_at.step)
    return a, a_at


@inner
def tile_of_rows(a, a_at, panels, columns, scratch, c, c_at, depth, rows, packing, add_up):
    """Compute c[rows, columns] (+)= a · panels, rows ≤ ROWS.

    In tiles of ROWS rows and a panel, or of one row and LONG panels; what is left, in ragged tiles.
    """
    width = 2 * lanes(c)
    whole, done = columns.whole, 0
    if rows == ROWS:
        done = whole
        for p in range(whole):
            b_at = PlaceB(columns.first + p * columns.panel, columns.step)
            to = PlaceC(c_at.first + p * width, c_at.row)
            if add_up:
                next_tile(a, a_at, panels, b_at, c, to, depth)
            else:
                first_tile(a, a_at, panels, b_at, c, to, depth)
    elif rows == 1 and not packing:
        done = whole // LONG * LONG
        for p in range(0, done, LONG):
            b_at = PlaceB(columns.first + p * columns.panel, columns.step)
            to = PlaceC(c_at.first + p * width, c_at.row)
            long_tile(a, a_at, panels, b_at, c, to, depth, 1, LONG * width, add_up)
    for p in range(done, whole):
        b_at = PlaceB(columns.first + p * columns.panel, columns.step)
        to = PlaceC(c_at.first + p * width, c_at.row)
        ragged_tiles(a, a_at, panels, b_at, c, to, depth, rows, width, add_up)
    left = columns.count - whole * width
    if left > 0:
        b_at, to = PlaceB(columns.ragged, width), PlaceC(c_at.first + whole * width, c_at.row)
        ragged_tiles(a, a_at, scratch, b_at, c, to, depth, rows, left, add_up)


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
    (a_group, a_row, a_k_group, a_k), (b_group, b_row, b_column), c_steps, r_steps, sizes = steps
    (c_group, c_row), (r_group, r_row) = c_steps, r_steps
    M, N, K, k_groups, _, packing, accumulate = sizes  # M rows in each group of rows; k_groups groups of K
    tile_0, tile_1, panel_0, panel_1 = extents
    if packing == DOTS:
        products_with_rows(a, b, c, residual, bias, steps, extents)
        return
    width, zero = 2 * lanes(b), int64(0)
    tiles = (M + ROWS - 1) // ROWS  # in a group of rows
    depths = (K + DEPTH - 1) // DEPTH
    for panel in range(panel_0, panel_1, BLOCK):
        j = panel * width
        count = min(N, min(panel + BLOCK, panel_1) * width) - j
        whole = count // width
        for block in range(k_groups * depths):
            g, d = block // depths, block % depths
            k, depth = K * d // depths, K * (d + 1) // depths - K * d // depths
            b_at = g * b_group + k * b_row + j * b_column
            if packing:
                size = width * depth
                panels, columns = scratch, Columns(count, whole, zero, size, width, whole * size)
                if packed == 0:
                    pack(b, b_at, b_row, b_column, depth, count, zero, scratch)
            else:
                panels, columns = b, Columns(count, whole, b_at, width, b_row, zero)
                pack(b, b_at, b_row, b_column, depth, count, whole, scratch)
            for t in range(tile_0, tile_1):
                group, i = t // tiles, t % tiles * ROWS
                rows = min(ROWS, M - i)
                c_at = PlaceC(group * c_group + i * c_row + j, c_row)
                if block == 0 and (residual.size or bias.size):
                    r_at = PlaceC(group * r_group + i * r_row + j, r_row)
                    start_rows(c, c_at, residual, r_at, bias, j, rows, count)
                add_up = accumulate == 1 or block > 0
                x, x_at = a, PlaceA(group * a_group + i * a_row + g * a_k_group + k * a_k, a_row, a_k)
                if rows == ROWS:
                    x, x_at = place_rows(a, x_at, depth, whole, scratch)
                tile_of_rows(x, x_at, panels, columns, scratch, c, c_at, depth, rows, packing, add_up)


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
