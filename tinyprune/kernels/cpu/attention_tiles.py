"""The parts that fused attention is made of: panels of keys, three small products and the rows of the softmax.

A tile is TILE queries by a run of keys, with *keys in the lanes* of the vectors. Whatever is multiplied with a tile's
rows is packed once into panels `[key / WIDTH][d][WIDTH]`, where WIDTH is two vectors: for every d, the next WIDTH keys
lie side by side. Scratch arrays are flat; a matrix in one is given as its offset (a0) and the distance of rows (s_row).
"""

from typing import NamedTuple

from numba import int64
from numpy.typing import NDArray

from tinyprune.kernels.cpu.jit import inner, kernel
from tinyprune.kernels.cpu.simd import (
    REGISTERS,
    add,
    any_greater,
    broadcast,
    drop,
    exp2,
    lanes,
    largest,
    load,
    maximum,
    multiply,
    never_inline,
    only_lanes,
    store,
    subtract,
    zeros,
)
from tinyprune.kernels.cpu.tiles import microkernel

TILE = 32  # queries in a tile
ROWS = 8 if REGISTERS == 32 else 4  # of a register tile: ROWS × 2 vectors of sums, two of keys, one of a query's number
SLACK = 8.0  # a query's maximum is raised, and its sums are scaled, only for a score this much above it: rarely
LOWEST = -1e30  # the score of a key that is masked out; not −∞, since −∞ − (−∞) is NaN

tile_set = microkernel(ROWS, 2, False)
tile_add = microkernel(ROWS, 2, True)
narrow_add = microkernel(2 * ROWS, 1, True)


class Sizes(NamedTuple):
    """Numbers that are the same for every head."""

    B: int  # batch entries
    T: int  # queries
    S: int  # context keys
    N: int  # persistent keys
    H: int  # heads
    D: int  # Dh rounded up to whole vectors; what is beyond Dh is zero
    span: int  # a query sees the context keys at the distances 0 … span
    row: int  # distance between the rows of a tile's scores
    relative: bool  # whether there are relative positions
    score_scale: float  # 1 / √Dh, by which scores are multiplied
    pv_scale: float  # √N, by which persistent values are multiplied


class Mask(NamedTuple):
    """Bounds of a mask: query t of a tile sees the keys low + t · slope ≤ j < high + t · slope."""

    low: int
    high: int
    slope: int  # 1 for context keys: each query sees one further than the query before it; 0 for persistent ones


class Running(NamedTuple):
    """The online softmax of a tile's queries after some of the keys."""

    max: NDArray  # (TILE,), not above the true maximum and at most SLACK below it
    sum: NDArray  # of 2^(s − max), (TILE, lanes)
    out: NDArray  # Σ 2^(s − max) · v, (TILE, D)


@kernel
def round_up(n, multiple):
    """Round n up to a multiple."""
    return (n + multiple - 1) // multiple * multiple


@inner
def fill_zero(x, at, n):
    """Set x[at : at + n] = 0, n a multiple of the lanes."""
    zero = zeros(x)
    for i in range(at, at + n, lanes(x)):
        store(x, i, zero)


@inner
def seen_by(mask, j, n):
    """Return the range of queries, in whole register tiles, that see any of the n keys from j on."""
    if mask.slope == 0:
        return int64(0), int64(TILE)
    return max(j - mask.high + 1, 0) // ROWS * ROWS, round_up(min(j + n - mask.low, TILE), ROWS)


@inner
def scores(a, a0, panels, p0, n, s, s0, s_row, D, mask, accumulate):
    """Set s[t, j] = Σ_d a[t, d] · panels[j, d], or add it, for TILE queries and n keys, n a multiple of WIDTH.

    Register tiles in which no query sees any key are left as they are.
    """
    never_inline()
    width = 2 * lanes(s)
    for j in range(0, n, width):
        for t in range(*seen_by(mask, j, width), ROWS):
            at, panel, to = a0 + t * D, p0 + j * D, s0 + j + t * s_row
            if accumulate:
                tile_add(a, at, D, 1, panels, panel, width, s, to, s_row, D)
            else:
                tile_set(a, at, D, 1, panels, panel, width, s, to, s_row, D)


@inner
def seen_from(mask, t, rows, n):
    """Return the range of keys, among n, that any of the queries t … t + rows − 1 sees."""
    return max(mask.low + t * mask.slope, 0), min(mask.high + (t + rows - 1) * mask.slope, n)


@inner
def mix(s, s0, s_row, x, x0, x_row, n, out, out0, D, mask):
    """Add Σ_j s[t, j] · x[j, d] to out[t, d] for the tile's queries and n keys; s is 0 for keys that are not seen."""
    never_inline()
    W = lanes(s)
    if D % (2 * W) == 0:
        for t in range(0, TILE, ROWS):
            low, high = seen_from(mask, t, ROWS, n)
            if low < high:
                at, to = s0 + t * s_row + low, out0 + t * D
                for d in range(0, D, 2 * W):
                    tile_add(s, at, s_row, 1, x, x0 + low * x_row + d, x_row, out, to + d, D, high - low)
    else:
        for t in range(0, TILE, 2 * ROWS):
            low, high = seen_from(mask, t, 2 * ROWS, n)
            if low < high:
                at, to = s0 + t * s_row + low, out0 + t * D
                for d in range(0, D, W):
                    narrow_add(s, at, s_row, 1, x, x0 + low * x_row + d, x_row, out, to + d, D, high - low)


@inner
def outer(a, a0, s, s0, s_row, n, panels, p0, D, mask):
    """Add Σ_t s[t, j] · a[t, d] over the tile's queries to panels[j, d], for n keys, n a multiple of WIDTH.

    s is 0 for keys that are not seen.
    """
    never_inline()
    width = 2 * lanes(s)
    for j in range(0, n, width):
        first, end = seen_by(mask, j, width)
        if first < end:
            at, to = s0 + first * s_row + j, p0 + j * D
            for d in range(0, D, ROWS):
                tile_add(a, a0 + first * D + d, 1, D, s, at, s_row, panels, to + d * width, width, end - first)


@inner
def visible_lanes(s, at, j, low, high):
    """Load the scores of the keys from j on, at s[at + j]; those of keys outside low … high − 1 become LOWEST.

    They stay in a register: a masked store would make the next load of the same place wait.
    """
    return only_lanes(load(s, at + j), low - j, high - j, LOWEST)


@inner
def weigh(s, at, score, m, total, entry, dropout):
    """Store the weights 2^(score − m), some of them dropped; returns `total` plus all of them, dropped or not."""
    p = exp2(subtract(score, m))
    if dropout.limit:
        store(s, at, drop(p, entry, dropout.key0, dropout.key1, dropout.limit))
    else:
        store(s, at, p)
    return add(total, p)


@inner
def softmax_rows(s, at, n, mask, running, entry, sizes, dropout):
    """Add n scores (base 2) of each query to its online softmax (Milakov & Gimelshein 2018, Alg. 3).

    Query t has its scores at s[at + t · row]. They become weights 2^(s − max), dropped ones 0. `entry` is the number of
    the tile's first weight, from which dropout makes its hash; a query has S + N weights.
    """
    never_inline()
    W, D = lanes(s), sizes.D
    for t in range(TILE):
        x = at + t * sizes.row
        low, high = max(mask.low + t * mask.slope, 0), min(mask.high + t * mask.slope, n)
        if high <= low:
            fill_zero(s, x, n)
            continue
        begin, last = low // W * W, (high - 1) // W * W  # the first and the last vector with visible keys
        fill_zero(s, x, begin)
        fill_zero(s, x + last + W, n - last - W)
        left, right = visible_lanes(s, x, begin, low, high), visible_lanes(s, x, last, low, high)
        best = maximum(left, right)
        for j in range(x + begin + W, x + last, W):
            best = maximum(load(s, j), best)
        m = running.max[t]
        total = load(running.sum, t * W)
        if any_greater(best, broadcast(s, m + SLACK)):
            new = max(m, largest(best))
            shrink = exp2(broadcast(s, m - new))
            total = multiply(total, shrink)
            for d in range(t * D, (t + 1) * D, W):
                store(running.out, d, multiply(load(running.out, d), shrink))
            running.max[t] = m = new
        m_all = broadcast(s, m)
        first = entry + t * (sizes.S + sizes.N)
        total = weigh(s, x + begin, left, m_all, total, first + begin, dropout)
        for j in range(begin + W, last, W):
            total = weigh(s, x + j, load(s, x + j), m_all, total, first + j, dropout)
        if last > begin:
            total = weigh(s, x + last, right, m_all, total, first + last, dropout)
        store(running.sum, t * W, total)


@inner
def weigh_backward(s, ds, at, score, lse, delta, entry, dropout):
    """Store the weights of some scores, and ds, see `softmax_rows_backward`."""
    a = exp2(subtract(score, lse))
    if dropout.limit:
        kept = drop(a, entry, dropout.key0, dropout.key1, dropout.limit)
        dropped = multiply(kept, broadcast(s, dropout.factor))
        store(s, at, dropped)
        store(ds, at, subtract(multiply(dropped, load(ds, at)), multiply(a, delta)))
    else:
        store(s, at, a)
        store(ds, at, multiply(a, subtract(load(ds, at), delta)))


@inner
def softmax_rows_backward(s, ds, at, n, mask, count, lse, delta, entry, sizes, dropout):
    """Turn n scores of each query, in s, and their da = do·v, in ds, into weights and ds, in place.

    a = 2^(s − lse)     ã = a · keep · factor     ds = ã · da − a · delta,     delta = Σ_j ã_j da_j = do · o

    Query t has its row at at + t · row of both, and lse[t] and delta[t]. The tile has `count` queries; the rows after
    them become zeros. `entry` as in `softmax_rows`.
    """
    never_inline()
    W = lanes(s)
    for t in range(TILE):
        x = at + t * sizes.row
        low, high = max(mask.low + t * mask.slope, 0), min(mask.high + t * mask.slope, n)
        if high <= low or t >= count:
            fill_zero(s, x, n)
            fill_zero(ds, x, n)
            continue
        begin, last = low // W * W, (high - 1) // W * W  # the first and the last vector with visible keys
        fill_zero(s, x, begin)
        fill_zero(ds, x, begin)
        fill_zero(s, x + last + W, n - last - W)
        fill_zero(ds, x + last + W, n - last - W)
        left, right = visible_lanes(s, x, begin, low, high), visible_lanes(s, x, last, low, high)
        lse_all, delta_all = broadcast(s, lse[t]), broadcast(s, delta[t])
        first = entry + t * (sizes.S + sizes.N)
        weigh_backward(s, ds, x + begin, left, lse_all, delta_all, first + begin, dropout)
        for j in range(begin + W, last, W):
            weigh_backward(s, ds, x + j, load(s, x + j), lse_all, delta_all, first + j, dropout)
        if last > begin:
            weigh_backward(s, ds, x + last, right, lse_all, delta_all, first + last, dropout)
