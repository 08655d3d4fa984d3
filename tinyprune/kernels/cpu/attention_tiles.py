"""The parts that fused attention is made of: panels of keys, three small products and the rows of the softmax.

A tile is TILE queries by a run of keys, with *keys in the lanes* of the vectors. Whatever is multiplied with a tile's
rows is packed once into panels `[key / WIDTH][d][WIDTH]`, where WIDTH is two vectors: for every d, the next WIDTH keys
lie side by side. Scratch arrays are flat; a matrix in one is given as its offset and the distance between its rows.
"""

from typing import NamedTuple

from numpy.typing import NDArray

from tinyprune.kernels.cpu.jit import kernel, part
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
    microkernel,
    multiply,
    never_inline,
    only_lanes,
    store,
    subtract,
    transpose,
)

TILE = 32  # queries in a tile
ROWS = 8 if REGISTERS == 32 else 4  # of a register tile: ROWS × 2 sums, 2 vectors of keys, 1 number
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
    D: int  # Dh, rounded up to whole vectors with zeros
    span: int  # a query sees the context keys at the distances 0 … span
    row: int  # distance between the rows of a tile's scores
    relative: bool  # whether there are relative positions


class Dropout(NamedTuple):
    """How attention weights are dropped, see `simd.drop`."""

    key0: int
    key1: int
    limit: int  # what an entry's hash has to reach; 0 for no dropout
    factor: float  # of what is kept, 1 / (1 − rate)


class Mask(NamedTuple):
    """Bounds of a mask: query t of a tile sees the keys low + t · slope ≤ j < high + t · slope."""

    low: int
    high: int
    slope: int


class Running(NamedTuple):
    """The online softmax of a tile's queries after some of the keys."""

    max: NDArray  # (TILE,)
    sum: NDArray  # of 2^(s − max), (TILE, lanes)
    out: NDArray  # Σ 2^(s − max) · v, (TILE, D)


@kernel
def whole(n, multiple):
    """Round n up to a multiple."""
    return (n + multiple - 1) // multiple * multiple


@part
def fill_zero(x, at, n):
    """Set x[at : at + n] = 0, n a multiple of the lanes."""
    zero = broadcast(x, 0.0)
    for i in range(at, at + n, lanes(x)):
        store(x, i, zero)


@part
def pack(source, at, stride, n, target, to, front, panels, D, factor):
    """Transpose n rows of `source` times `factor` into panels: `front` rows of zeros, the n rows, zeros to the end.

    Row j of D numbers starts at source[at + j · stride]; the first panel at target[to].
    """
    never_inline()
    W = lanes(source)
    width = 2 * W
    for panel in range(panels):
        x = to + panel * width * D
        first = panel * width - front
        if first >= 0 and first + width <= n:
            for d in range(0, D, W):
                transpose(source, at + first * stride + d, stride, target, x + d * width, width, factor)
                transpose(source, at + (first + W) * stride + d, stride, target, x + d * width + W, width, factor)
        else:
            for lane in range(width):
                j = first + lane
                if 0 <= j < n:
                    for d in range(D):
                        target[x + d * width + lane] = source[at + j * stride + d] * factor
                else:
                    for d in range(D):
                        target[x + d * width + lane] = 0


@part
def unpack(source, at, front, n, target, to, stride, D, factor):
    """Reverse `pack`: write n rows at target[to + j · stride] from panels at source[at], times `factor`."""
    never_inline()
    W = lanes(source)
    width = 2 * W
    for panel in range((front + n + width - 1) // width):
        x = at + panel * width * D
        first = panel * width - front
        if first >= 0 and first + width <= n:
            for d in range(0, D, W):
                transpose(source, x + d * width, width, target, to + first * stride + d, stride, factor)
                transpose(source, x + d * width + W, width, target, to + (first + W) * stride + d, stride, factor)
        else:
            for lane in range(width):
                j = first + lane
                if 0 <= j < n:
                    for d in range(D):
                        target[to + j * stride + d] = source[x + d * width + lane] * factor


@part
def scores_set(a, a0, panels, p0, n, s, s0, s_row, D):
    """Set s[t, j] = Σ_d a[t, d] · panels[j, d] for the tile's TILE rows and n keys, n a multiple of WIDTH."""
    never_inline()
    width = 2 * lanes(s)
    for j in range(0, n, width):
        for t in range(0, TILE, ROWS):
            tile_set(a, a0 + t * D, D, 1, panels, p0 + j * D, width, s, s0 + j + t * s_row, s_row, D)


@part
def scores_add(a, a0, panels, p0, n, s, s0, s_row, D):
    """Add Σ_d a[t, d] · panels[j, d] to s[t, j], as `scores_set`."""
    never_inline()
    width = 2 * lanes(s)
    for j in range(0, n, width):
        for t in range(0, TILE, ROWS):
            tile_add(a, a0 + t * D, D, 1, panels, p0 + j * D, width, s, s0 + j + t * s_row, s_row, D)


@part
def mix(s, s0, s_row, x, x0, x_row, n, out, out0, D):
    """Add Σ_j s[t, j] · x[j, d] to out[t, d] for the tile's rows and n ≥ 1 rows of x."""
    never_inline()
    W = lanes(s)
    if D % (2 * W) == 0:
        for d in range(0, D, 2 * W):
            for t in range(0, TILE, ROWS):
                tile_add(s, s0 + t * s_row, s_row, 1, x, x0 + d, x_row, out, out0 + t * D + d, D, n)
    else:
        for d in range(0, D, W):
            for t in range(0, TILE, 2 * ROWS):
                narrow_add(s, s0 + t * s_row, s_row, 1, x, x0 + d, x_row, out, out0 + t * D + d, D, n)


@part
def outer(a, a0, s, s0, s_row, n, panels, p0, D):
    """Add Σ_t s[t, j] · a[t, d] over the tile's rows to panels[j, d], for n keys, n a multiple of WIDTH."""
    never_inline()
    width = 2 * lanes(s)
    for j in range(0, n, width):
        for d in range(0, D, ROWS):
            tile_add(a, a0 + d, 1, D, s, s0 + j, s_row, panels, p0 + j * D + d * width, width, TILE)


@part
def show_only(s, at, n, low, high):
    """Mask n scores: keep those of the keys low ≤ j < high, set others in the same vectors to LOWEST, the rest to 0.

    Returns where the vectors with visible keys begin and end, relative to `at`.
    """
    W = lanes(s)
    begin = low // W * W
    end = (high + W - 1) // W * W
    fill_zero(s, at, begin)
    fill_zero(s, at + end, n - end)
    if low > begin:
        store(s, at + begin, only_lanes(load(s, at + begin), low - begin, W, LOWEST))
    if high < end:
        store(s, at + end - W, only_lanes(load(s, at + end - W), 0, high - end + W, LOWEST))
    return begin, end


@part
def softmax_rows(s, at, n, mask, running, entry, sizes, dropout):
    """Take n more scores (base 2) of each query into its online softmax (Milakov & Gimelshein 2018, Alg. 3).

    Query t has its scores at s[at + t · row]. They become weights 2^(s − max), those that dropout takes out 0. `entry`
    is the number of the tile's first weight for the dropout hash; a query has S + N of them.
    """
    never_inline()
    W, D = lanes(s), sizes.D
    for t in range(TILE):
        x = at + t * sizes.row
        low, high = max(mask.low + t * mask.slope, 0), min(mask.high + t * mask.slope, n)
        if high <= low:
            fill_zero(s, x, n)
            continue
        begin, end = show_only(s, x, n, low, high)
        best = load(s, x + begin)
        for j in range(x + begin + W, x + end, W):
            best = maximum(load(s, j), best)
        m = running.max[t]
        total = load(running.sum, t * W)
        if any_greater(best, broadcast(s, m)):
            new = max(m, largest(best))
            shrink = exp2(broadcast(s, m - new))
            total = multiply(total, shrink)
            for d in range(t * D, (t + 1) * D, W):
                store(running.out, d, multiply(load(running.out, d), shrink))
            running.max[t] = m = new
        m_all = broadcast(s, m)
        if dropout.limit:
            first = entry + t * (sizes.S + sizes.N)
            for j in range(begin, end, W):
                p = exp2(subtract(load(s, x + j), m_all))
                total = add(total, p)
                store(s, x + j, drop(p, first + j, dropout.key0, dropout.key1, dropout.limit))
        else:
            for j in range(x + begin, x + end, W):
                p = exp2(subtract(load(s, j), m_all))
                total = add(total, p)
                store(s, j, p)
        store(running.sum, t * W, total)


@part
def softmax_rows_backward(s, ds, at, n, mask, count, lse, delta, entry, sizes, dropout):
    """Turn n scores of each query, in s, and their da = do·v, in ds, into weights and ds, in place.

    a = 2^(s − lse)     ã = a · keep · factor     ds = ã · da − a · delta,     delta = Σ_j ã_j da_j = do · o

    Query t has its row at at + t · row of both, and lse[t] and delta[t]. The tile has `count` queries; the rows after
    them become zeros. `entry` as in `softmax_rows`.
    """
    never_inline()
    W = lanes(s)
    factor = broadcast(s, dropout.factor)
    for t in range(TILE):
        x = at + t * sizes.row
        low, high = max(mask.low + t * mask.slope, 0), min(mask.high + t * mask.slope, n)
        if high <= low or t >= count:
            fill_zero(s, x, n)
            fill_zero(ds, x, n)
            continue
        begin, end = show_only(s, x, n, low, high)
        fill_zero(ds, x, begin)
        fill_zero(ds, x + end, n - end)
        lse_all, delta_all = broadcast(s, lse[t]), broadcast(s, delta[t])
        if dropout.limit:
            first = entry + t * (sizes.S + sizes.N)
            for j in range(begin, end, W):
                a = exp2(subtract(load(s, x + j), lse_all))
                dropped = multiply(drop(a, first + j, dropout.key0, dropout.key1, dropout.limit), factor)
                store(s, x + j, dropped)
                store(ds, x + j, subtract(multiply(dropped, load(ds, x + j)), multiply(a, delta_all)))
        else:
            for j in range(begin, end, W):
                a = exp2(subtract(load(s, x + j), lse_all))
                store(s, x + j, a)
                store(ds, x + j, multiply(a, subtract(load(ds, x + j), delta_all)))
