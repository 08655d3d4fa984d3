"""Attention forward: one kernel, and no T × S matrix in memory. See `tinyprune.ops.attention`.

A block has a tile of queries of one head of one batch entry. It goes through the head's keys tile by tile: first the
persistent ones, then those of the context that at least one of its queries sees (online softmax: Milakov & Gimelshein
2018; tiling: Dao et al. 2022).

    for each tile of keys:
        s       = scores to base 2, LOWEST where a query does not see a key
        highest = max(highest, max_j s)        and total and sums times 2^(previous highest − highest)
        p       = 2^(s − highest)
        total  += Σ_j p        sums += p ṽ        where dropout has set weights to zero
    o = sums / total / (1 − dropout)        out = o · scale · gate

It saves the log-sum-exp for backward, lse = highest + log2 total. A block reads q once from global memory, and each key
and value that its queries see once; it writes o and out.

Scores are q·k + q·r + (u·k + w·r). The terms in brackets depend on the key or on the distance alone. They are computed
before, as `key_bias` and `distance_bias`, and are loaded to the places after the rows of k and r.

A tile has 4 · side keys, so that `side` threads share a query's scores. They exchange maxima in shared memory for every
tile of keys, and totals at the end.
"""

import math

from tinyprune.kernels.cuda.attend import steps, tiles
from tinyprune.kernels.cuda.attend.inputs import Inputs, Scales, Sizes
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Layout
from tinyprune.kernels.cuda.attend.walk import gate_of, key_tile, key_tiles, load_keys, source_of
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, larger, load1, store1
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32
from tinyprune.kernels.cuda.dropout import DROPOUT


def forward_layout(width: int) -> Layout:
    """Return the constants of a width. In shared memory lie, one after the other:

    x          queries
    y          keys, then values
    z          position keys, some columns at a time, then weights p
    maxima     (query, thread), at the end totals
    shrink     2^(previous highest − highest) of each query
    """
    n = tiles.layout(width, queries=64, keys=32)
    y = n.queries * n.x_stride
    z = y + n.keys * n.x_stride
    maxima = z + max(n.z_rows * n.z_stride, n.queries * n.p_stride)
    shrink = maxima + n.queries * n.side
    return n._replace(y=y, z=z, p=z, maxima=maxima, shrink=shrink, size=shrink + n.queries)


@device
def store_maxima(n, smem, place, s):
    """Store the largest score of each of the thread's queries; then all threads have to wait."""
    for m in range(ROWS):
        best = LOWEST
        for c in range(COLUMNS):
            best = larger(best, s[m * COLUMNS + c])
        store1(smem, n.maxima + (place.i + m * n.side) * n.side + place.j, best)


@device
def weigh(n, smem, place, weight, highest, total, s):
    """Set s to 2^(s − highest) · weight, and update the queries' maxima and the thread's totals.

    A NaN does not change a maximum, but its weight is NaN, and so are the total and out.
    """
    for m in range(ROWS):
        query, best = place.i + m * n.side, highest[m]
        for c in range(n.side):
            best = larger(best, load1(smem, n.maxima + query * n.side + c))
        shrink = exp2(highest[m] - best)
        highest[m] = best
        total[m] *= shrink
        if place.j == 0:
            store1(smem, n.shrink + query, shrink)
        for c in range(COLUMNS):
            p = exp2(s[m * COLUMNS + c] - best)
            total[m] += p
            s[m * COLUMNS + c] = p * weight


@device
def shrink_sums(n, smem, out_i, sums):
    """Multiply the thread's rows of out by how much their weights have become smaller."""
    for m in range(n.out_queries):
        shrink = load1(smem, n.shrink + out_i + m * n.side)
        for c in range(4):
            sums[4 * m + c] *= shrink


@device
def total_of(n, smem, query):
    """Return Σ_j p of a query, from the totals of its threads."""
    return steps.sum_of(smem, n.maxima + query * n.side, n.side)


def make_forward(n: Layout) -> Kernel:
    """Make the kernel of a width."""
    SIZE, SCORES, Z_REGS, SUMS = n.size, ROWS * COLUMNS, n.z_regs, 4 * n.out_queries

    @tiles.kernel_of(n, Inputs, *3 * (floats,), Sizes, Scales, Scales, float32, DROPOUT)
    def attend(g, out, o, lse, sizes, context, persistent, scale, dropout):
        """Compute out and o (B, T, H, W), lse (H, B, T): a block for a tile of queries, grid (B, H, tiles).

        g: `Inputs`.   context, persistent: `Scales` of their keys.
        """
        B, T, S, H, N = sizes.B, sizes.T, sizes.S, sizes.H, sizes.N
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        highest = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * n.queries)
        place = tiles.first_score(n)
        out_i, d = tiles.first_out(n)
        queries, distances = source_of(g.q, b, h, T, sizes), source_of(g.r, 0, h, S, sizes)
        for m in range(ROWS):
            highest[m], total[m] = LOWEST, float32(0)
        tiles.clear(sums, SUMS)
        tiles.load_rows(n, queries, t0, 0, smem, n.x, n.queries, n.width)

        persistent_turns, turns, low = key_tiles(n, sizes, t0)
        # dropout numbers a query's scores, those of the context first; entry_0: of the thread's first query and key j
        entry_0, row_entries = ((b * H + h) * T + t0 + place.i) * (S + N) + place.j, n.side * (S + N)
        first, entry = int32(0), steps.add32(entry_0, S)
        for turn in range(turns):
            if turn == persistent_turns:
                first, entry = low, steps.add32(entry_0, low)
            own = t0 + S - T - first  # index in the tile of the key at the first query's position
            tile = key_tile(n, turn < persistent_turns, g, sizes, place, first, own, context, persistent)
            load_keys(n, smem, g, sizes, tile, first, own - n.keys + 1)
            steps.scores(n, smem, place, distances, own - n.keys + 1, tile.sliding, z_regs, s)
            for m in range(SCORES):
                s[m] *= tile.scales.score
            steps.hide(s, tile.last, tile.rise, tile.span, n.side)
            store_maxima(n, smem, place, s)
            cuda.syncthreads()  # maxima are there; all threads have read keys and position keys, which others replace
            weigh(n, smem, place, tile.scales.weight, highest, total, s)
            steps.drop(s, entry, row_entries, n.side, dropout)
            steps.store_weights(n, smem, place.p, s)
            tiles.load_rows(n, tile.values, first, 0, smem, n.y, n.keys, n.width)
            first, entry = int32(first + n.keys), steps.add32(entry, n.keys)
            cuda.syncthreads()  # weights and values are there
            shrink_sums(n, smem, out_i, sums)
            steps.mix(n, smem, n.p + out_i * n.p_stride, n.y + d, sums)
            cuda.syncthreads()  # all threads have read them before the next keys are loaded

        for m in range(ROWS):
            store1(smem, n.maxima + (place.i + m * n.side) * n.side + place.j, total[m])
        cuda.syncthreads()  # all threads' totals are there
        factor = scale * gate_of(g, sizes)
        for m in range(n.out_queries):
            query = out_i + m * n.side
            if t0 + query < T and d < sizes.W:
                weight = dropout.factor / total_of(n, smem, query)
                at = queries.begin + (t0 + query) * queries.stride + d
                for c in range(4):
                    sums[4 * m + c] *= weight
                steps.write(o, at, sums, m, float32(1))
                steps.write(out, at, sums, m, factor)
        for m in range(ROWS):
            query = place.i + m * n.side
            if place.j == 0 and t0 + query < T:
                lse[(h * B + b) * T + t0 + query] = highest[m] + math.log2(total_of(n, smem, query))

    return attend


FORWARD = {width: make_forward(forward_layout(width)) for width in (16, 32, 64)}
